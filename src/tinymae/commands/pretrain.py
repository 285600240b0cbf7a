"""Pretrain a masked autoencoder, or one of its relatives, on images without labels."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from typing_extensions import Self

from ..data.batches import chunks, pick
from ..data.datasets import Dataset, with_label
from ..errors import InputError
from ..evaluation import figures
from ..evaluation.metrics import accuracy, describe_score
from ..evaluation.neighbours import knn_predict
from ..evaluation.sheets import Tile, in_rows, write_sheet
from ..interop.load import Model, load_mae
from ..models.adapt import adapt
from ..models.base import Autoencoder
from ..models.families import FAMILIES
from ..models.flops import reconstruction_flops
from ..models.mae import MaskedAutoencoder
from ..models.vit import describe
from ..randomness import derive_seed, seeded
from ..tensors import pair
from ..training.device import deterministic_algorithms
from ..training.loop import create_optimizer, parameter_groups, train_steps
from ..training.run import Run
from ..training.schedule import Schedule, Stretch
from .families import complete
from .features import map_together
from .fields import keywords_of, setting, with_default
from .learning import LONG_ON_CPU
from .phases import Part, PhaseSettings, draw_inputs, plan_parts
from .results import Result
from .settings import EncoderSettings, SheetSettings

ARCHITECTURE = ("encoder", "embed_dim", "depth", "num_heads", "decoder_dim", "decoder_depth", "decoder_heads")
SHOWN = 16  # validation images on a sheet
FEW_BLOCKS = 4  # learn more than twelve in an hour of a CPU: see docs/findings.md
BEGAN = ("first_step", "first_epoch")  # of a phase, in a checkpoint


@dataclass(frozen=True, kw_only=True)
class PretrainSettings(PhaseSettings, SheetSettings, EncoderSettings):
    """Settings of pretraining. The defaults are the recipe of the released weights: see docs/results.md."""

    heading = "model"
    output_dir: str | Path = with_default(PhaseSettings, "output_dir", "runs/pretrain")
    optimizer: Literal["adamw", "muon"] = with_default(PhaseSettings, "optimizer", "muon")

    weights: str | Path | Model | None = setting(None, "go on from this model; what it has replaces the defaults (mae)")
    decoder_dim: int | None = setting(None, constructor=True)
    decoder_depth: int | None = setting(None, constructor=True)
    decoder_heads: int | None = setting(None, constructor=True)
    norm_pix_loss: bool | None = setting(None, constructor=True)
    latent_dim: int | None = setting(None, constructor=True)
    width: int | None = setting(None, constructor=True)
    beta: float | None = setting(None, constructor=True)
    kl_warmup_steps: int | None = setting(None, constructor=True)
    codebook_size: int | None = setting(None, constructor=True)
    stem_size: int | None = setting(None, constructor=True)
    skips: bool | None = setting(None, constructor=True)
    loss: str | None = setting(None, constructor=True)

    probe_every: int = setting(
        20, "epochs between k-NN accuracies and images; without --max-minutes also at the start", group="watching",
        least=1,
    )  # fmt: skip
    probe_images: int = setting(10_000, "training images that k-NN compares with", group="watching", least=1)
    keep_every: int | None = setting(
        None, "epochs between weights kept in epochs/ (default: none)", group="watching", least=1, free=True
    )

    def resolve(self, start: MaskedAutoencoder | None = None) -> Self:
        """Every value settled; `start` is the model of `weights`, which are read where it is not given.

        Raises InputError for a setting of another family, one that contradicts the weights, or values that do not go
        together.
        """
        if self.weights is not None and self.model != "mae":
            raise InputError(f"weights go with --model mae, not {self.model}")
        if start is None and self.weights is not None:
            start = load_mae(self.weights, **self.of_official_file)
        settled = super().resolve()
        own = self.constructor_settings
        own = complete(self.model, own) if start is None else self.read_architecture(start, own)
        settled = replace(settled, **own).settle_contrast()
        return replace(settled, warmup_epochs=settled.warmup_of(settled.epochs) * settled.epochs)

    def read_architecture(self, start: MaskedAutoencoder, given: dict) -> dict:
        """The settings that the weights have. Raises InputError for a given one that contradicts them."""
        complete("mae", given)  # refuses those of other families
        has = describe(start.encoder) | start.decoder_sizes
        has |= {name: value for name, value in start.config.items() if value is not None}
        for name in ARCHITECTURE:
            if given[name] not in (None, has[name]):
                raise InputError(
                    f"{name} {given[name]} contradicts weights {self.weights}, which have {has[name]}: leave it out"
                )
        known = {name: has[name] if value is None else value for name, value in given.items() if name in has}
        known["patch_size"] = pair(known["patch_size"])
        size = start.image_size if self.image_size is None else self.image_size
        channels = start.in_channels if self.in_channels is None else self.in_channels
        return known | {"image_size": size, "in_channels": channels}

    @property
    def of_official_file(self) -> dict[str, int | None]:
        """What an official checkpoint may leave open: see `from_official`."""
        return {name: getattr(self, name) for name in ("num_heads", "decoder_dim", "decoder_depth", "decoder_heads")}


def run(settings: PretrainSettings) -> Result[Autoencoder]:
    """Pretrain an autoencoder on images; `.results` has k-NN's accuracy on validation where there are labels.

    He et al., *Masked Autoencoders Are Scalable Vision Learners*, arXiv 2111.06377; then the contrast of masked views,
    arXiv 2210.16870. Calling it again with the same arguments resumes, or gives what is finished.

    Raises InputError for settings or data that cannot work, Diverged if a loss is no longer finite, Stopped after
    Ctrl-C or at a pause: the state is saved then.
    """
    torch.manual_seed(derive_seed(settings.seed, "weights"))
    start = None if settings.weights is None else load_mae(settings.weights, **settings.of_official_file)
    settings = settings.resolve(start).reading_like(start)
    accelerator = settings.create_accelerator()
    channels = settings.in_channels or 3
    splits = settings.load_splits(["train", "val"], image_size=settings.image_size, channels=channels)
    found = splits["train"].image_shape[0]
    if start and found != channels:
        raise InputError(
            f"data set {settings.data_name} has {found} channels, not {channels}: give --in-channels {found}, which "
            "adapts the weights"
        )
    model = create_model(settings, splits["train"], start)
    model.reading = settings.reading_kept(splits["train"])
    train_set, val_set = (split.to(accelerator.device) for split in splits.values())
    # What cannot work is refused before a folder is made for it.
    parts = [] if model.fitted else plan_parts(settings, accelerator, model, train_set)
    with settings.open_run(accelerator, splits=splits, weights=start) as run:
        if (finished := run.read_finished(type(model))) is not None:
            kept, results = finished
            return Result(kept.to(accelerator.device), results, run.folder)
        known = pick(with_label(train_set), settings.probe_images)
        look = partial(look_at, settings, model, run, known, val_set)
        if model.fitted:
            results, curves = fit_at_once(model, run, train_set, look), []
        else:
            print_plan(settings, run, model, train_set, parts)
            with deterministic_algorithms(settings.deterministic):
                results = train(settings, model, run, parts, look)
            curves = ["metrics.jsonl", "curves.png"]
        if run.is_main:
            model.write_weights(run.folder)
            if curves:
                title = f"pretraining on {settings.data_name}"
                figures.pretraining_curves(run.progress.metrics, run.folder / "curves.png", title)
        names = ["model.safetensors", "config.json", *curves, "reconstructions.png"]
        run.finish(results, [run.folder / name for name in names])
    return Result(model.eval(), results, run.folder)


pretrain = keywords_of(run, PretrainSettings)


def train(settings: PretrainSettings, model: Autoencoder, run: Run, parts: list[Part], look) -> dict:
    """All phases, from where the last checkpoint is; the results.

    A phase begins where the one before it ended, which is early if a time limit ended it.
    """
    accelerator, saved = run.accelerator, run.load_checkpoint()
    step, epoch, contrasted = 0 if saved is None else saved["step"], 0.0, 0.0
    for number, part in enumerate(parts):
        if saved is not None and number < saved["phase"]:
            continue
        here = saved if saved is not None and number == saved["phase"] else None
        began = {"first_step": step, "first_epoch": epoch} if here is None else {k: here[k] for k in BEGAN}
        phase, stretch = part.phase, part.stretch.starting(**began)
        groups = parameter_groups(part.learner, weight_decay=settings.weight_decay)
        optimizer = create_optimizer(settings.optimizer, groups, betas=(0.9, 0.95), ends=model.end_weights)
        prepared, optimizer = accelerator.prepare(part.learner, optimizer)
        run.track(here, model=accelerator.unwrap_model(prepared), optimizer=optimizer, phase=number, **began)
        run.start(stretch, step=step, batch=(f"{phase.prefix}batch_size", phase.batch_size))
        if step == 0 and settings.max_minutes is None:  # it would take minutes of the first phase
            look(0)
        for state in train_steps(
            prepared, optimizer, partial(draw_inputs, settings, phase, model), prepared,
            part.batches(start_step=step - began["first_step"]), accelerator=accelerator,
            schedule=stretch.schedule, clock=run.clock, batch_size=phase.batch_size, seed=settings.seed,
            start_step=step, clip_grad=settings.clip_grad,
            cuda_graph=settings.uses_graphs(accelerator, is_vit=settings.model == "mae"),
        ):  # fmt: skip
            step = state.step
            model.after_step(accelerator, seeded(settings.seed, "after step", step))
            is_last = part is parts[-1] and step == stretch.schedule.last_step
            # What an epoch leaves comes before its checkpoint: a run that stops there will not see this step again.
            if stretch.ends_epoch(step, settings.probe_every) and not is_last:
                run.settle(state)
                look(step)
            if settings.keep_every and stretch.ends_epoch(step, settings.keep_every):
                run.settle(state)
                if run.is_main:
                    model.write_weights(run.folder / "epochs" / f"{round(stretch.epoch(step)):04d}")
            run.report(state)
        run.end_stretch(step)
        epoch = stretch.epoch(step)
        contrasted = 0.0 if phase.views == 1 else epoch - stretch.first_epoch
        del prepared, optimizer
        accelerator.free_memory()  # a second wrapper of the same weights must not meet the first
    length = {"epochs": epoch} | ({"contrast_epochs": contrasted} if settings.contrast_epochs else {})
    settled = {name: value for part in parts for name, value in part.phase.settled.items()}
    return length | {"steps": step, "minutes": run.clock.minutes} | settled | look(step)


def create_model(settings: PretrainSettings, dataset: Dataset, start: MaskedAutoencoder | None) -> Autoencoder:
    """The family's model for images like the data set's; or the one of the weights, adapted to them."""
    (channels, *size), (mean, std) = dataset.image_shape, dataset.statistics
    data: dict[str, Any] = {"image_size": (*size,), "in_channels": channels, "mean": mean, "std": std}
    if start:
        task: dict[str, Any] = {name: getattr(settings, name) for name in ("patch_size", "mask_ratio", "norm_pix_loss")}
        return adapt(start, **data, **task).train()
    own = complete(settings.model, settings.constructor_settings)
    return FAMILIES[settings.model](**own, **data)


def print_plan(settings: PretrainSettings, run: Run, model: Autoencoder, train_set: Dataset, parts: list[Part]) -> None:
    """Layers, FLOPs and lengths, for the user to check."""
    if not run.is_main:
        return
    run.print_summary(model, depth=2)
    run.print(f"{reconstruction_flops(model) / 1e9:.3f} GFLOP an image or view, forward and backward")
    run.print(f"{len(train_set):,} images to learn from, {run.processes}")
    views = sum(part.phase.epochs * part.phase.views for part in parts) * len(train_set)
    if advice := advise(settings, model, views, run.accelerator.device.type):
        run.print(advice)
    for part in parts:
        views = part.phase.views
        what = "reconstruction" if views == 1 else f"reconstruction and contrast of {views} views"
        if views > 1 and settings.final_mask_ratio != settings.mask_ratio:
            what += f", the last fifth with {settings.final_mask_ratio:.0%} hidden, which takes the most memory"
        steps = f"{part.stretch.steps_per_epoch} steps of {part.phase.batch_size} images"
        limit = part.stretch.schedule.minutes
        within = "" if limit is None else f", or what of them {limit[1] - limit[0]:.3g} minutes allow"
        run.print(f"{part.phase.epochs} epochs of {steps}: {what}{within}")


def advise(settings: PretrainSettings, model: Autoencoder, views: int, device: str) -> str | None:
    """What to say before so many images and views are trained on, if fewer blocks learn more in the time."""
    is_deep = isinstance(model, MaskedAutoencoder) and len(model.encoder.blocks) > FEW_BLOCKS
    if device != "cpu" or views < LONG_ON_CPU or settings.weights is not None or not is_deep:
        return None
    limit = "" if settings.max_minutes else " --max-minutes 60"
    return f"without a GPU {views:,} images and views take hours: --depth {FEW_BLOCKS}{limit} learns more in the time"


def fit_at_once(model: Any, run: Run, train_set: Dataset, look) -> dict:
    """A family that is `fitted`, and so has `fit`, has no gradient and no steps. The results."""
    run.load_checkpoint()
    run.start(Stretch(Schedule(peak=0.0, last_step=1, warmup=0.0), 1, len(train_set)), step=0)
    model.fit(torch.cat([images.cpu() for images, _ in chunks(train_set, 1000)]))
    results = {"epochs": 1, "steps": 1, "minutes": run.clock.minutes}
    model.to(run.accelerator.device)
    return results | look(1)


@torch.no_grad()
def look_at(
    settings: PretrainSettings, model: Autoencoder, run: Run, train_set: Dataset, val_set: Dataset, step: int
) -> dict:
    """k-NN accuracy on validation, whose features all processes compute together, and images."""
    results, accelerator = {}, run.accelerator
    model.eval()
    with run.pause(), accelerator.autocast(), torch.compiler.set_stance("force_eager"):
        asked = with_label(val_set)
        if train_set.labels is not None and asked.labels is not None:
            encode = partial(map_together, model.encode, accelerator=accelerator, num_workers=settings.num_workers)
            known, queries = (encode(dataset).to(accelerator.device) for dataset in (train_set, asked))
            labels = train_set.labels.to(accelerator.device)
            classes = knn_predict(known, labels, queries, num_classes=len(train_set.classes))
            results["knn_val"] = accuracy(classes, asked.labels)
            epoch = run.progress.stretch.epoch(step)
            run.print(f"epoch {epoch:.3g}: k-NN accuracy {describe_score(results['knn_val'], len(asked), 'val')}")
        if run.is_main:
            results |= draw_pictures(settings, model, run, pick(val_set, SHOWN), step)
        run.progress.log(step, results)
        accelerator.wait_for_everyone()
    return results


def draw_pictures(settings: PretrainSettings, model: Autoencoder, run: Run, dataset: Dataset, step: int) -> dict:
    """A sheet of reconstructions of fixed images under fixed masks, and samples of a family that has them."""
    results = {}
    images, _ = dataset[torch.arange(len(dataset))]
    channels, limits = settings.show_channels, figures.display_limits(images, settings.show_channels)
    shown = model.reconstruct(images.to(run.accelerator.device), generator=torch.Generator().manual_seed(0))
    results["reconstruction_mse"] = float((shown.images - shown.original).square().mean())
    if model.samples:
        drawn = model.sample(64, generator=torch.Generator().manual_seed(0))
        tiles = [Tile(image) for image in figures.viewable(drawn, channels, limits)]
        samples = write_sheet(in_rows(tiles), run.folder / "samples.png", f"samples, step {step}")
        run.progress.log_picture("samples", samples, step)
    note = {"none": "", "visible": " (brightness and contrast of hidden patches guessed from visible ones)"}
    sheet, title = run.folder / "reconstructions.png", f"step {step}{note[shown.statistics]}"
    figures.reconstruction_sheet(shown.columns, sheet, title, channels=channels, limits=limits)
    run.progress.log_picture("reconstructions", sheet, step)
    return results
