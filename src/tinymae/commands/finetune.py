"""Fine-tune a pretrained encoder, or train the same classifier from scratch, with labels."""

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from typing_extensions import Self

from ..data.datasets import Dataset, has_several, with_label
from ..errors import InputError
from ..evaluation import figures
from ..evaluation.metrics import describe_score, with_intervals
from ..evaluation.probes import choose_probe, label_loss, label_score, linear_fits, predict_score
from ..interop.load import Model, load, require_autoencoder
from ..models.base import Encoder
from ..models.classifier import Classifier, build_classifier, encoder_of, feature_function, fold_probe
from ..models.drops import set_patch_drop
from ..models.mae import MaskedAutoencoder
from ..randomness import derive_seed
from ..training.device import choose_attention, deterministic_algorithms
from ..training.loop import create_optimizer, parameter_groups, train_steps
from ..training.run import Run
from ..training.schedule import Schedule, Stretch
from .by_class import report_classes
from .families import complete
from .features import map_together, remark_on_known, require_fit, split_features
from .fields import keywords_of, setting, with_default
from .learning import TrainingSettings, peak_rate
from .objective import create_losses, create_mixing, log_priors, prepare_inputs
from .recipes import RecipeSettings
from .results import Result
from .settings import EncoderSettings, Pool
from .unlabelled import Stage

VIT_ALONE: dict[str, Any] = {"layer_decay": 1.0, "patch_drop": 0.0}  # what these are where there is no ViT
FEW_LABELS = 1_000  # images up to which the head begins at a probe (docs/findings.md)
FEW_FEATURES = 2_048  # up to which a probe takes seconds


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings(RecipeSettings, EncoderSettings):
    """Settings of fine-tuning. The defaults are the recipe of the released classifier: see docs/results.md."""

    output_dir: str | Path = with_default(TrainingSettings, "output_dir", "runs/finetune")

    weights: str | Path | Model | None = setting(
        None, "what pretraining gave, or a classifier, whose head is left behind: a folder, or a Hub id; it fixes the "
        "architecture", group="model",
    )  # fmt: skip
    from_scratch: bool = setting(False, "start from random weights", group="model")
    probe_first: bool | None = setting(
        None, "begin with the head of a linear probe of the frozen features, which validation chooses (arXiv "
        f"2202.10054; default: of up to {FEW_LABELS:,} labelled images and {FEW_FEATURES:,} features, without "
        "--unlabelled)", group="training",
    )  # fmt: skip
    eval_every: int | None = setting(
        None, "epochs between validations (default: 5, or a sixteenth of them)", group="watching", least=1
    )

    pool: Pool | None = setting(
        None, "features: the mean of the patch tokens, or the class token (default: avg, or a classifier's own)",
        group="regularisation",
    )  # fmt: skip

    def resolve(self) -> Self:
        """See `RunSettings.resolve`; what depends on the images is left to `settle_for`."""
        if self.weights is None and not self.from_scratch:
            raise InputError("give --weights DIR, the folder of a pretraining run, or --from-scratch")
        if self.probe_first and self.from_scratch:
            raise InputError("probe_first needs features that were learned: leave it out with from_scratch")
        self.check_unlabelled()
        settled = super().resolve()
        if self.weights is None:
            return replace(settled, **complete("mae", self.constructor_settings))
        sizes = self.constructor_settings | {"image_size": self.image_size, "in_channels": self.in_channels}
        for name, value in sizes.items():
            if value is not None:
                raise InputError(f"{name} {value} goes with --from-scratch alone: weights have their own; leave it out")
        return settled

    def check_unlabelled(self) -> None:
        """Raises InputError for settings that do not go with images without labels."""
        if self.unlabelled_data is not None and not self.unlabelled:
            raise InputError("unlabelled_data without a ratio is not used: give unlabelled, such as 3, as well")
        if self.unlabelled and not self.ema_decay:
            raise InputError("unlabelled needs the moving average of the weights: give an ema_decay above 0")
        if self.unlabelled and (self.mixup or self.cutmix):
            raise InputError("unlabelled does not go with mixup and cutmix: make both 0")

    def settle_for(self, train_set: Dataset, encoder: Encoder | None = None) -> Self:
        """See `RecipeSettings.settle_for`; what only ViTs have is refused, or stated as not there, elsewhere.

        Without an `encoder` it will be a ViT.
        """
        settled = super().settle_for(train_set)
        if self.probe_first is None:
            few = len(train_set) <= FEW_LABELS and (encoder is None or encoder.num_features <= FEW_FEATURES)
            settled = replace(settled, probe_first=few and not (self.from_scratch or self.unlabelled))
        if encoder is None or encoder.layered:
            return replace(settled, layer_decay=1.0) if self.layer_decay is None and self.from_scratch else settled
        for name, none in VIT_ALONE.items():
            if getattr(self, name) not in (None, none):
                raise InputError(
                    f"{name} {getattr(self, name):g} is of ViTs, which these weights are not: leave it out"
                )
        return replace(settled, **VIT_ALONE)

    @property
    def start(self) -> str:
        """What the training starts from, for titles."""
        return "from scratch" if self.from_scratch else "fine-tuning"


def run(settings: FinetuneSettings) -> Result[Classifier]:
    """Train a classifier from pretrained weights, or from scratch, on labelled images.

    Validation is watched on the way; test is scored once, on the final weights (their moving average with ema_decay),
    or with no_test not even loaded, for whoever chooses between runs. Calling it again with the same arguments resumes,
    or gives what is finished.

    Raises InputError for settings or data that cannot work, Diverged if a loss is no longer finite, Stopped after
    Ctrl-C or at a pause: the state is saved then.
    """
    settings = settings.resolve()
    accelerator = settings.create_accelerator()
    torch.manual_seed(derive_seed(settings.seed, "weights"))
    start = None if settings.weights is None else load(settings.weights)
    settings = settings.reading_like(start)
    size, channels = (
        (settings.image_size, settings.in_channels or 3) if start is None else (start.image_size, start.in_channels)
    )
    splits = settings.load_labelled(image_size=size, channels=channels)
    # What cannot work is refused before a folder is made for it.
    chosen = settings.choose_labels({name: with_label(split) for name, split in splits.items()})
    encoder = None if start is None else encoder_of(start)
    asked, settings = settings, settings.settle_for(chosen["train"], encoder)
    model = create_model(settings, splits["train"], start)
    if start is not None and not settings.from_scratch:
        remark_on_known(start, chosen[settings.split_names[-1]])
    model.reading = settings.reading_kept(splits["train"])
    if settings.unlabelled:
        chosen["unlabelled"] = settings.load_unlabelled(splits["train"])
    if settings.unlabelled_data is not None:
        splits["unlabelled"] = chosen["unlabelled"]
    chosen = {name: split.to(accelerator.device) for name, split in chosen.items()}
    steps_per_epoch, stages = settings.plan_stages(accelerator, chosen)
    with asked.open_run(accelerator, splits=splits, weights=start) as run:
        if (finished := run.read_finished(type(model))) is not None:
            kept, results = finished
            return Result(kept.to(accelerator.device), results, run.folder)
        print_plan(settings, run, model, chosen, steps_per_epoch)
        with deterministic_algorithms(settings.deterministic):
            judged, results = train(settings, model, run, chosen, steps_per_epoch, stages)
        last = "val" if settings.no_test else "test"
        scores, shown = score(settings, judged, run, chosen[last], split=last)
        results |= scores
        results |= {"num_labels": len(chosen["train"]), "num_val_labels": len(chosen["val"])}
        open_ones = {name: value for name, value in settings.record().items() if getattr(asked, name) is None}
        results = {name: value for name, value in open_ones.items() if value is not None} | results
        if run.is_main:
            judged.write_weights(run.folder)
            panels = {
                "loss": ["loss"], "validation accuracy, %": ["accuracy_val"],
                "validation, mean average precision, %": ["mean_ap_val"], "learning rate": ["learning_rate"],
                "images that the teacher labels": ["unlabelled_kept", "unlabelled_right"],
            }  # fmt: skip
            title = f"{settings.start} on {settings.data_name}"
            figures.training_curves(run.progress.metrics, panels, run.folder / "curves.png", title)
        names = ["model.safetensors", "config.json", "metrics.jsonl", "curves.png", shown.name]
        run.finish(results, [run.folder / name for name in names])
    return Result(judged.eval(), results, run.folder)


finetune = keywords_of(run, FinetuneSettings)


def create_model(settings: FinetuneSettings, train_set: Dataset, start: Model | None) -> Classifier:
    """A classifier that starts at pretrained features, or anew."""
    if start is None:
        mean, std = train_set.statistics
        data: dict[str, Any] = {"image_size": train_set.image_shape[1:], "in_channels": train_set.image_shape[0]}
        start = MaskedAutoencoder(**settings.constructor_settings, **data, mean=mean, std=std)
    else:
        require_fit(start, train_set)
        if settings.from_scratch:
            start = require_autoencoder(start, settings.weights or start)
            start = type(start)(**start.config)
    model = build_classifier(
        start, classes=train_set.classes, several=has_several(train_set), pool=settings.pool,
        drop_path=settings.drop_path, patch_drop=settings.patch_drop or 0.0,
    ).float()  # fmt: skip  # weights of half precision would hardly move
    if settings.gradient_checkpointing:
        model.encoder.save_memory()
    return model


def print_plan(
    settings: FinetuneSettings, run: Run, model: Classifier, chosen: dict[str, Dataset], steps_per_epoch: int
) -> None:
    """Layers and lengths, for the user to check."""
    train_set, epochs = chosen["train"], settings.epochs
    assert epochs is not None  # settled
    run.print_summary(model.vit or model, depth=1)
    run.print(f"{len(train_set):,} labelled images, {run.processes}")
    if advice := settings.advise(epochs * len(train_set), run.accelerator.device.type):
        run.print(advice)
    run.print(f"{epochs} epochs of {steps_per_epoch} steps of {settings.batch_size} images")
    if settings.unlabelled:
        run.print(settings.describe_unlabelled(chosen))


def start_at_probe(settings: FinetuneSettings, model: Classifier, run: Run, chosen: dict[str, Dataset]) -> float:
    """Give the head the linear probe of the frozen features that has the lowest loss on validation; its score there.

    From a random head, what few labels teach at first is to bend good features towards it (Kumar et al., arXiv
    2202.10054). Not the probe with the best accuracy, which may be so sure of itself that the first steps undo it.
    """
    device, splits = run.accelerator.device, {name: chosen[name] for name in ("train", "val")}
    encode = feature_function(model.to(device).eval())
    features = split_features(encode, splits, run.accelerator, num_workers=settings.num_workers)
    labels = {name: split.labels.to(device) for name, split in splits.items() if split.labels is not None}

    @torch.no_grad()
    def judge(probe: nn.Module) -> float:
        return -label_loss(probe(features["val"]), labels["val"]).item()

    fits = linear_fits(features["train"], labels["train"], num_classes=len(model.classes))
    probe, l2, _ = choose_probe(fits, judge)
    fold_probe(model.head, probe)
    with torch.no_grad():
        model.head.bias.sub_(log_priors(settings, chosen["train"], device))  # which training adds again
    right = predict_score(probe, features["val"], labels["val"])
    scored = describe_score(right, len(labels["val"]), "val", several=model.several)
    run.print(f"the head begins as a linear probe, regularisation {l2:g}: {scored}")
    return right


def train(
    settings: FinetuneSettings, model: Classifier, run: Run, chosen: dict[str, Dataset], steps_per_epoch: int,
    stages: list[Stage],
) -> tuple[Classifier, dict]:  # fmt: skip
    """Train to the end: what is to be judged, and the results so far."""
    accelerator, val_set = run.accelerator, chosen["val"]
    saved = run.load_checkpoint()
    choose_attention(model, accelerator)
    start_score, probed = (None, 0.0) if saved is None else (saved.get("start_score"), saved.get("probed", 0.0))
    if settings.probe_first and saved is None:
        start_score, probed = start_at_probe(settings, model, run, chosen), run.clock.agreed_minutes(accelerator)
        if probed >= (settings.max_minutes or math.inf):
            raise InputError(
                f"max_minutes {settings.max_minutes:g} was over before the linear probe was found that the head begins "
                "as: give more, or no probe_first"
            )
    batch_size, epochs, every = settings.batch_size, settings.epochs, settings.eval_every
    assert batch_size and epochs and every and settings.layer_decay  # settled
    groups = parameter_groups(model.vit or model, weight_decay=settings.weight_decay, layer_decay=settings.layer_decay)
    optimizer = create_optimizer(settings.optimizer, groups, betas=(0.9, 0.999))
    # Around the model, as what is prepared computes in mixed precision for good, and so would the result.
    prepared, optimizer = accelerator.prepare(nn.Sequential(model), optimizer)
    ema = ModelEmaV3(model, decay=settings.ema_decay, use_warmup=True) if settings.ema_decay else None
    judged = ema.module if ema else model

    peak = peak_rate(settings.base_lr, batch_size)
    schedule = Schedule(
        peak=peak, last_step=epochs * steps_per_epoch,
        warmup=settings.warmup_of(epochs),
        minutes=None if settings.max_minutes is None else (probed, settings.max_minutes),
    )  # fmt: skip
    if settings.compiles(accelerator, is_vit=model.vit is not None, steps=schedule.last_step):
        model.encoder.compile_core()
    run.track(saved, model=model, optimizer=optimizer, ema=ema, start_score=start_score, probed=probed or None)
    step = 0 if saved is None else saved["step"]
    priors = log_priors(settings, chosen["train"], accelerator.device)

    for stage in stages:
        if stage.is_final:
            settings = settings.without_distortion()
            set_patch_drop(model, 0.0)
        mix = create_mixing(settings, model)
        draw_inputs = partial(prepare_inputs, settings, model, mix)
        compute_losses = create_losses(settings, prepared, judged, accelerator, soft=mix is not None, priors=priors)
        stretch = Stretch(schedule, steps_per_epoch, stage.batch_size)
        run.start(stretch, step=step, batch=("batch_size", batch_size))
        for state in train_steps(
            prepared, optimizer, draw_inputs, compute_losses, stage.batches(start_step=step), accelerator=accelerator,
            schedule=schedule, clock=run.clock, batch_size=stage.batch_size, seed=settings.seed, start_step=step,
            until=stage.until, clip_grad=settings.clip_grad, ema=ema,
            cuda_graph=settings.uses_graphs(accelerator, is_vit=model.vit is not None),
        ):  # fmt: skip
            step = state.step
            if stretch.ends_epoch(step, every) and step < schedule.last_step:
                run.settle(state)
                # Before the step's checkpoint: who stops there will not see it again.
                validate(settings, judged, val_set, run, step=step, epoch=stretch.epoch(step))
            run.report(state)
    run.end_stretch(step)
    found = validate(settings, judged, val_set, run, step=step, epoch=stretch.epoch(step))
    length = {"epochs": stretch.epoch(step), "steps": step, "minutes": run.clock.minutes}
    if length["epochs"] < epochs / 2 and not settings.from_scratch:
        run.print(
            f"the time ended it after {length['epochs']:.3g} of {epochs} epochs: hold it against linear-probe, which "
            "may be better"
        )
    found = found if judged.several else with_intervals(found, len(val_set))
    if start_score is not None:
        found |= hold_against_start(found, start_score, run)
    if settings.unlabelled:
        found |= settings.judge_unlabelled(run)
    return judged, found | length | {"base_lr": peak * 256 / batch_size}


def hold_against_start(found: dict, start_score: float, run: Run) -> dict[str, float]:
    """The score of the probe that the head began as, beside the one at the end: told where that is lower."""
    name = next(iter(found))
    if round(found[name], 2) < round(start_score, 2):  # as they are printed
        run.print(
            f"which is below the {start_score:.2f} % of the linear probe that the head began as: train longer "
            "(epochs, max_minutes), or take the probe itself, which linear-probe gives"
        )
    return {f"{name}_start": start_score}


def validate(
    settings: FinetuneSettings, judged: Classifier, dataset: Dataset, run: Run, *, step: int, epoch: float
) -> dict[str, float]:
    """Accuracy or, of several labels an image, mean average precision on validation: printed and logged."""
    assert dataset.labels is not None
    name, words = ("mean_ap_val", "mean average precision") if judged.several else ("accuracy_val", "accuracy")
    with run.pause():
        found = {name: label_score(predict(settings, judged, dataset, run), dataset.labels.cpu())}
    run.progress.log(step, found)
    run.print(f"epoch {epoch:.3g}: {words} {found[name]:.2f} % on validation")
    return found


def score(
    settings: FinetuneSettings, judged: Classifier, run: Run, dataset: Dataset, *, split: str
) -> tuple[dict, Path]:
    """The accuracy on the split that judges or, of several labels an image, the mean average precision; what is said of
    each class, and the file that shows it.
    """
    logits = predict(settings, judged, dataset, run)
    assert dataset.labels is not None
    result = label_score(logits, dataset.labels.cpu())
    title = f"{settings.start} on {settings.data_name}, {split}, {result:.1f} % of {len(dataset):,} images"
    run.print(describe_score(result, len(dataset), split, several=judged.several))
    by_class, shown = report_classes(run, logits, dataset.labels, judged.classes, split=split, title=title)
    # Of several labels an image, the mean is there among those by class.
    scores = {} if judged.several else with_intervals({f"accuracy_{split}": result}, len(dataset))
    return scores | by_class | {f"num_{split}_labels": len(dataset)}, shown


@torch.no_grad()
def predict(settings: FinetuneSettings, model: Classifier, dataset: Dataset, run: Run) -> Tensor:
    """Logits (N, classes), on the CPU."""
    model.eval()
    with torch.compiler.set_stance("force_eager"):  # compiling it would take longer
        return map_together(model, dataset, run.accelerator, num_workers=settings.num_workers)
