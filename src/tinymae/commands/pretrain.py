"""Pretrain a masked autoencoder, or one of its relatives, on images without labels."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from typing_extensions import Self

from ..data.augment import color_jitter, padded_crop, random_flip, random_resized_crop
from ..data.batches import Batch, chunks, pick
from ..data.datasets import Dataset, knows_colour, no_colour, with_label
from ..errors import InputError
from ..evaluation import figures
from ..evaluation.metrics import accuracy
from ..evaluation.neighbours import knn_predict
from ..interop.load import Model, load_mae
from ..models.adapt import adapt
from ..models.base import Autoencoder
from ..models.contrast import ContrastiveLearner, ReconstructionLearner
from ..models.flops import reconstruction_flops
from ..models.mae import MaskedAutoencoder
from ..models.masking import count_hidden
from ..models.pca import PrincipalComponents
from ..models.vit import describe
from ..models.weights import FAMILIES, save_autoencoder
from ..randomness import Draws, derive_seed, seeded
from ..tensors import pair
from ..training.device import choose_attention, deterministic_algorithms
from ..training.loop import Schedule, create_optimizer, parameter_groups, train_steps
from ..training.progress import Stretch
from ..training.run import Run
from .families import complete, defaults_of
from .features import map_together
from .settings import (
    EncoderSettings,
    Result,
    SheetSettings,
    TrainingSettings,
    keywords_of,
    peak_rate,
    setting,
    with_default,
)

ARCHITECTURE = ("encoder", "embed_dim", "depth", "num_heads", "decoder_dim", "decoder_depth", "decoder_heads")
CONTRAST_RATIO = 2 / 3  # of the epochs of an MAE
FINAL = 0.2  # ratio of the contrast that is its end, where masks hide less
FINAL_MASK_RATIO = 0.5
JITTER = 0.5  # of the contrast's views
BEGAN = ("first_step", "first_epoch")  # of a phase, in a checkpoint


@dataclass(frozen=True, kw_only=True)
class PretrainSettings(TrainingSettings, SheetSettings, EncoderSettings):
    """Settings of pretraining. The defaults are the recipe of the released weights: see docs/results.md."""

    heading = "model"
    output_dir: str | Path = with_default(TrainingSettings, "output_dir", "runs/pretrain")
    epochs: int = setting(126, "passes over the training images", group="training", positive=True)
    optimizer: Literal["adamw", "muon"] = with_default(TrainingSettings, "optimizer", "muon")

    model: Literal["mae", "conv_ae", "vae", "vqvae", "resnet_unet", "masked_conv", "pca"] = setting(
        "mae", "family of autoencoder"
    )
    weights: str | Path | Model | None = setting(None, "go on from this model; what it has replaces the defaults (mae)")
    decoder_dim: int | None = setting(None, constructor=True)
    decoder_depth: int | None = setting(None, constructor=True)
    decoder_heads: int | None = setting(None, constructor=True)
    mask_ratio: float | None = setting(None, constructor=True)
    norm_pix_loss: bool | None = setting(None, constructor=True)
    latent_dim: int | None = setting(None, constructor=True)
    width: int | None = setting(None, constructor=True)
    beta: float | None = setting(None, constructor=True)
    kl_warmup_steps: int | None = setting(None, constructor=True)
    codebook_size: int | None = setting(None, constructor=True)
    stem_size: int | None = setting(None, constructor=True)
    skips: bool | None = setting(None, constructor=True)
    loss: str | None = setting(None, constructor=True)

    crop: Literal["none", "pad", "resized"] = setting("pad", "random crops", group="augmentation")
    crop_padding: int = setting(4, "pixels, with crop pad", group="augmentation")
    min_scale: float = setting(0.2, "least area, with crop resized", group="augmentation")
    flip: bool = setting(True, "left-right; give --no-flip for digits or text", group="augmentation")
    color_jitter: float = setting(0.0, "strength of SimCLR's colour distortion", group="augmentation")

    contrast_epochs: int | None = setting(
        None, "how many of the epochs, the last ones, contrast views (default: two of three; 0 of other families)",
        group="contrast of views (mae)",
    )  # fmt: skip
    contrast_weight: float = setting(0.5, "of its loss beside the reconstruction's", group="contrast of views (mae)")
    views: int = setting(4, "of each image", group="contrast of views (mae)")
    decoded_views: int = setting(1, "how many of them are reconstructed", group="contrast of views (mae)")
    temperature: float = setting(0.2, "of its softmax", group="contrast of views (mae)")
    contrast_batch_size: int | None = setting(
        None, "images a step then (default: as --batch-size)", group="contrast of views (mae)", positive=True
    )
    contrast_base_lr: float | None = setting(
        None, "base_lr then (default: as --base-lr)", group="contrast of views (mae)"
    )
    contrast_crop: Literal["none", "pad", "resized"] = setting("resized", "crop then", group="contrast of views (mae)")
    contrast_color_jitter: float | None = setting(
        None, f"color_jitter then (default: {JITTER}, of images other than grey or RGB of 8 bits 0)",
        group="contrast of views (mae)",
    )  # fmt: skip
    final_mask_ratio: float | None = setting(
        None, "mask_ratio in the last fifth of the contrast, nearer to whole images, which probes and classifiers see "
        f"(default: {FINAL_MASK_RATIO}, or --mask-ratio where that is less)", group="contrast of views (mae)",
    )  # fmt: skip

    probe_every: int = setting(
        20, "epochs between k-NN accuracies and images; without --max-minutes also at the start", group="watching",
        positive=True,
    )  # fmt: skip
    probe_images: int = setting(10_000, "training images that k-NN compares with", group="watching", positive=True)
    keep_every: int | None = setting(
        None, "epochs between weights kept in epochs/ (default: none)", group="watching", positive=True, free=True
    )

    def resolve(self, start: MaskedAutoencoder | None = None) -> Self:
        """Every value settled; `start` is the model of `weights`.

        Raises InputError for a setting of another family, one that contradicts the weights, or values that do not go
        together.
        """
        if self.weights is not None and self.model != "mae":
            raise InputError(f"weights go with --model mae, not {self.model}")
        settled = super().resolve()
        contrast_epochs = self.contrast_epochs
        if contrast_epochs is None:
            contrast_epochs = round(CONTRAST_RATIO * self.epochs) if self.model == "mae" else 0
        own = self.constructor_settings
        own = complete(self.model, own) if start is None else self.read_architecture(start, own)
        settled = replace(settled, contrast_epochs=contrast_epochs, **own)
        if contrast_epochs and self.final_mask_ratio is None and settled.mask_ratio is not None:
            settled = replace(settled, final_mask_ratio=min(FINAL_MASK_RATIO, settled.mask_ratio))
        settled.check_contrast()
        return replace(settled, warmup_epochs=settled.warmup_of(settled.epochs) * settled.epochs)

    def settle(self) -> Self:
        """See `RunSettings.settle`."""
        return self.resolve(None if self.weights is None else load_mae(self.weights, **self.of_official_file))

    def read_architecture(self, start: MaskedAutoencoder, given: dict) -> dict:
        """The settings that the weights have. Raises InputError for a given one that contradicts them."""
        complete("mae", given)  # refuses those of other families
        has = describe(start.encoder) | {name: value for name, value in start.config.items() if value is not None}
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

    def check_contrast(self) -> None:
        """Raises InputError for settings that do not go with a contrastive loss."""
        for name in ("contrast_weight", "color_jitter", "contrast_color_jitter"):
            if (getattr(self, name) or 0) < 0:
                raise InputError(f"{name} {getattr(self, name)} is negative: give 0 for none, or a positive number")
        if not 0 <= (self.contrast_epochs or 0) <= self.epochs:
            raise InputError(f"contrast_epochs {self.contrast_epochs} is not within 0 and the {self.epochs} epochs")
        if not self.contrast_epochs:
            return
        if self.model != "mae":
            raise InputError(f"contrast_epochs goes with --model mae, not {self.model}: leave it out")
        if self.views < 2:
            raise InputError(f"views {self.views} leaves nothing to contrast: give at least 2, or contrast_epochs 0")
        if self.gradient_accumulation_steps > 1:
            raise InputError(
                f"gradient_accumulation_steps {self.gradient_accumulation_steps} would split the batch whose images "
                "are contrasted: use a smaller contrast_batch_size, more processes or --gradient-checkpointing, or "
                "contrast_epochs 0"
            )

    def plan_phases(self, dataset: Dataset) -> list["Phase"]:
        """Reconstruction, then contrasted views beside it; either may be missing."""
        contrast, batch_size = self.contrast_epochs or 0, self.choose_batch_size(dataset)
        jitter, has_colour = self.contrast_color_jitter, knows_colour(dataset)
        if jitter is None:
            jitter = JITTER if has_colour else 0.0
        for name, strength in (("color_jitter", self.color_jitter), ("contrast_color_jitter", jitter)):
            if strength and not has_colour:
                raise no_colour(f"{name} {strength:g}", dataset)
        first = Phase(
            epochs=self.epochs - contrast, first_epoch=0, prefix="", batch_size=batch_size, base_lr=self.base_lr,
            crop=self.crop, color_jitter=self.color_jitter, views=1,
        )  # fmt: skip
        second = Phase(
            epochs=contrast, first_epoch=self.epochs - contrast, prefix="contrast_",
            batch_size=self.contrast_batch_size or batch_size,
            base_lr=self.base_lr if self.contrast_base_lr is None else self.contrast_base_lr,
            crop=self.contrast_crop, color_jitter=jitter, views=self.views,
        )  # fmt: skip
        return [phase for phase in (first, second) if phase.epochs]


@dataclass(frozen=True)
class Phase:
    """A part of pretraining with an objective, augmentation and schedule of its own."""

    epochs: int
    first_epoch: int
    prefix: str  # of the names of its settings
    batch_size: int
    base_lr: float | None
    crop: str
    color_jitter: float
    views: int  # 1: reconstruction alone

    @property
    def peak(self) -> float:
        """The highest learning rate."""
        return peak_rate(self.base_lr, self.batch_size)

    @property
    def settled(self) -> dict[str, Any]:
        """What settings that may be left open came to."""
        found = {"batch_size": self.batch_size, "base_lr": self.peak * 256 / self.batch_size}
        found |= {"color_jitter": self.color_jitter} if self.prefix else {}
        return {f"{self.prefix}{name}": value for name, value in found.items()}


@dataclass(frozen=True)
class Part:
    """A phase of one run: what is trained, when, and on which batches."""

    phase: Phase
    learner: nn.Module
    stretch: Stretch
    batches: Callable[..., Iterator[list[Batch]]]  # from a `start_step` on


def run(settings: PretrainSettings) -> Result[Autoencoder]:
    """Pretrain an autoencoder on images; `.results` has k-NN's accuracy on validation where there are labels.

    He et al., *Masked Autoencoders Are Scalable Vision Learners*, arXiv 2111.06377; then the contrast of masked views,
    arXiv 2210.16870. Calling it again with the same arguments resumes.

    Raises InputError for settings or data that cannot work, Diverged if a loss is no longer finite, Stopped after
    Ctrl-C or at a pause: the state is saved then.
    """
    accelerator = settings.create_accelerator()
    torch.manual_seed(derive_seed(settings.seed, "weights"))
    start = None if settings.weights is None else load_mae(settings.weights, **settings.of_official_file)
    settings = settings.resolve(start)
    channels = settings.in_channels or 3
    splits = settings.load("train", "val", image_size=settings.image_size, channels=channels)
    if start and splits[0].image_shape[0] != channels:
        raise InputError(
            f"data set {settings.data_name} has {splits[0].image_shape[0]} channels, not {channels}: "
            f"give --in-channels {splits[0].image_shape[0]}, which adapts the weights"
        )
    model = create_model(settings, splits[0], start)
    train_set, val_set = (split.to(accelerator.device) for split in splits)
    # What cannot work is refused before a folder is made for it.
    parts = [] if isinstance(model, PrincipalComponents) else plan_parts(settings, accelerator, model, train_set)
    with settings.open_run(accelerator, splits=dict(zip(("train", "val"), splits, strict=True)), weights=start) as run:
        known = pick(with_label(train_set), settings.probe_images)
        look = partial(look_at, settings, model, run, known, val_set)
        if isinstance(model, PrincipalComponents):
            return fit_components(settings, model, run, train_set, look)
        print_plan(settings, run, model, train_set, parts)
        with deterministic_algorithms(settings.deterministic):
            results = train(settings, model, run, parts, look)
        if run.is_main:
            save_autoencoder(model, run.folder)
            title = f"pretraining on {settings.data_name}"
            figures.pretraining_curves(run.progress.metrics, run.folder / "curves.png", title)
        names = ["model.safetensors", "config.json", "metrics.jsonl", "curves.png", "reconstructions.png"]
        run.finish(results, [run.folder / name for name in names])
    return Result(model.eval(), results, run.folder)


pretrain = keywords_of(run, PretrainSettings)


def train(settings: PretrainSettings, model: Autoencoder, run: Run, parts: list["Part"], look) -> dict:
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
        undecayed = [f"model.{name}" for name in model.undecayed]
        groups = parameter_groups(part.learner, weight_decay=settings.weight_decay, undecayed=undecayed)
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
                    save_autoencoder(model, run.folder / "epochs" / f"{round(stretch.epoch(step)):04d}")
            run.report(state)
        run.end_stretch(step)
        epoch = stretch.epoch(step)
        contrasted = 0.0 if phase.views == 1 else epoch - stretch.first_epoch
        del prepared, optimizer
        accelerator.free_memory()  # a second wrapper of the same weights must not meet the first
    length = {"epochs": epoch} | ({"contrast_epochs": contrasted} if settings.contrast_epochs else {})
    settled = {name: value for part in parts for name, value in part.phase.settled.items()}
    return length | {"steps": step, "minutes": run.clock.minutes} | settled | look(step)


def draw_inputs(
    settings: PretrainSettings, phase: Phase, model: Autoencoder, batch: Batch, draws: Draws, progress: float
) -> dict[str, Any]:
    """What the learner is given of a micro-batch: each view has its own augmentation and its own mask."""
    if phase.views == 1:
        return {"images": augment(settings, phase, batch.images, draws)} | model.draw(draws)
    ratio = {"mask_ratio": settings.final_mask_ratio} if progress >= 1 - FINAL else {}
    views, drawn = zip(
        *((augment(settings, phase, batch.images, draws), model.draw(draws, **ratio)) for _ in range(phase.views)),
        strict=True,
    )
    masks = torch.cat([one["mask"] for one in drawn])
    return {"images": torch.cat(views), "mask": masks, "num_hidden": drawn[0]["num_hidden"]}


def augment(settings: PretrainSettings, phase: Phase, images: Tensor, draws: Draws) -> Tensor:
    """One view of images (B, C, H, W)."""
    if phase.crop == "pad":
        images = padded_crop(images, draws, settings.crop_padding)
    elif phase.crop == "resized":
        images = random_resized_crop(images, draws, scale=(settings.min_scale, 1.0))
    if settings.flip:
        images = random_flip(images, draws)
    if phase.color_jitter:
        images = color_jitter(images, draws, strength=phase.color_jitter)
    return images


def create_model(settings: PretrainSettings, dataset: Dataset, start: MaskedAutoencoder | None) -> Autoencoder:
    """The family's model for images like the data set's; or the one of the weights, adapted to them."""
    mean, std = dataset.statistics
    data: dict[str, Any] = {
        "image_size": dataset.image_shape[1:],
        "in_channels": dataset.image_shape[0],
        "mean": mean,
        "std": std,
    }
    if start:
        task: dict[str, Any] = {name: getattr(settings, name) for name in ("patch_size", "mask_ratio", "norm_pix_loss")}
        return adapt(start, **data, **task).train()
    own = {name: getattr(settings, name) for name in defaults_of(settings.model) if hasattr(settings, name)}
    return FAMILIES[settings.model](**own, **data)


def create_learner(settings: PretrainSettings, model: Autoencoder, phase: Phase) -> nn.Module:
    """What a phase trains: the model under its objective."""
    if phase.views == 1 or not isinstance(model, MaskedAutoencoder):
        return ReconstructionLearner(model)
    return ContrastiveLearner(
        model, weight=settings.contrast_weight, temperature=settings.temperature, num_views=phase.views,
        decoded_views=settings.decoded_views,
    )  # fmt: skip


def plan_parts(
    settings: PretrainSettings, accelerator: Accelerator, model: Autoencoder, train_set: Dataset
) -> list["Part"]:
    """What each phase of the run trains, when, and on which batches.

    A time limit is divided by how much the phases compute: an epoch of V views counts V.

    Raises InputError for what cannot be trained so.
    """
    choose_attention(model, accelerator)
    if settings.final_mask_ratio is not None and isinstance(model, MaskedAutoencoder):
        count_hidden(model.num_patches, settings.final_mask_ratio)
    if settings.gradient_checkpointing:
        model.save_memory()
    phases = settings.plan_phases(train_set)
    works = [phase.epochs * phase.views for phase in phases]
    parts, step, done = [], 0, 0.0
    for phase, work in zip(phases, works, strict=True):
        steps_per_epoch, batches = settings.plan_batches(
            accelerator, train_set, batch_size=phase.batch_size, first_epoch=phase.first_epoch
        )
        begin, end = done, done + work / sum(works)
        limit = settings.max_minutes
        schedule = Schedule(
            peak=phase.peak, first_step=step, last_step=step + phase.epochs * steps_per_epoch,
            warmup=settings.warmup_of(settings.epochs),
            minutes=None if limit is None else (begin * limit, end * limit),
        )  # fmt: skip
        stretch = Stretch(schedule, steps_per_epoch, phase.batch_size, phase.first_epoch, begin, end)
        parts.append(Part(phase, create_learner(settings, model, phase), stretch, batches))
        step, done = schedule.last_step, end
    if settings.compiles(accelerator, is_vit=settings.model == "mae", steps=step):
        model.compile_core()
    return parts


def print_plan(
    settings: PretrainSettings, run: Run, model: Autoencoder, train_set: Dataset, parts: list["Part"]
) -> None:
    """Layers, FLOPs and lengths, for the user to check."""
    if not run.is_main:
        return
    run.print_summary(model, depth=2)
    model.eval()  # a codebook learns from what it sees in training
    run.print(f"{reconstruction_flops(model) / 1e9:.3f} GFLOP an image or view, forward and backward")
    run.print(f"{len(train_set):,} images to learn from, {run.processes}")
    for part in parts:
        views = part.phase.views
        what = "reconstruction" if views == 1 else f"reconstruction and contrast of {views} views"
        if views > 1 and settings.final_mask_ratio != settings.mask_ratio:
            what += f", the last fifth with {settings.final_mask_ratio:.0%} hidden, which takes the most memory"
        steps = f"{part.stretch.steps_per_epoch} steps of {part.phase.batch_size} images"
        limit = part.stretch.schedule.minutes
        within = "" if limit is None else f", or what of them {limit[1] - limit[0]:.3g} minutes allow"
        run.print(f"{part.phase.epochs} epochs of {steps}: {what}{within}")


def fit_components(
    settings: PretrainSettings, model: PrincipalComponents, run: Run, train_set: Dataset, look
) -> Result:
    """PCA has no gradient and no steps: it is fitted at once."""
    run.load_checkpoint()
    run.start(Stretch(Schedule(peak=0.0, last_step=1, warmup=0.0), 1, len(train_set)), step=0)
    model.fit(torch.cat([images.cpu() for images, _ in chunks(train_set, 1000)]))
    results = {"epochs": 1, "steps": 1, "minutes": run.clock.minutes}
    if run.is_main:
        save_autoencoder(model, run.folder)
    model.to(run.accelerator.device)
    results |= look(1)
    run.finish(results, [run.folder / name for name in ("model.safetensors", "config.json", "reconstructions.png")])
    return Result(model.eval(), results, run.folder)


@torch.no_grad()
def look_at(
    settings: PretrainSettings, model: Autoencoder, run: Run, train_set: Dataset, val_set: Dataset, step: int, *,
    pictures: int = 16,
) -> dict:  # fmt: skip
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
            run.print(f"epoch {epoch:.3g}: k-NN accuracy {results['knn_val']:.2f} % on validation")
        if run.is_main:
            results |= draw_pictures(settings, model, run, pick(val_set, pictures), step)
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
        samples = figures.grid(figures.viewable(drawn, channels, limits), run.folder / "samples.png")
        run.progress.log_picture("samples", samples, step)
    note = {"none": "", "visible": " (brightness and contrast of hidden patches guessed from visible ones)"}
    columns = {name: figures.viewable(column, channels, limits) for name, column in shown.columns.items()}
    sheet = figures.reconstruction_sheet(
        columns, run.folder / "reconstructions.png", f"step {step}{note[shown.statistics]}", groups=4
    )
    run.progress.log_picture("reconstructions", sheet, step)
    return results
