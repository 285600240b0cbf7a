"""The phases of pretraining: the objective, augmentation and schedule of each."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from typing_extensions import Self

from ..data.augment import color_jitter, padded_crop, random_resized_crop
from ..data.batches import Batch
from ..data.datasets import Dataset, has_colour, no_colour
from ..errors import InputError
from ..models.base import Autoencoder
from ..models.contrast import ContrastiveLearner, ReconstructionLearner
from ..models.families import Family
from ..models.mae import MaskedAutoencoder
from ..models.masking import count_hidden
from ..randomness import Draws
from ..training.device import choose_attention
from ..training.schedule import Schedule, Stretch
from .fields import setting
from .learning import TrainingSettings, batch_for, peak_rate

CONTRAST_RATIO = 2 / 3  # of the epochs of an MAE
FINAL = 0.2  # ratio of the contrast that is its end, where masks hide less
FINAL_MASK_RATIO = 0.5
JITTER = 0.5  # of the contrast's views


@dataclass(frozen=True, kw_only=True)
class PhaseSettings(TrainingSettings):
    """Settings of the phases: how long each is, and what it sees."""

    heading = "model"
    model: Family = setting("mae", "family of autoencoder")
    epochs: int = setting(126, "passes over the training images", group="training", least=1)
    mask_ratio: float | None = setting(None, constructor=True)

    crop: Literal["none", "pad", "resized"] = setting("pad", "random crops", group="augmentation")
    crop_padding: int = setting(4, "pixels, with crop pad", group="augmentation", least=0)
    min_scale: float = setting(0.2, "least area, with crop resized", group="augmentation", above=0, most=1)
    color_jitter: float = setting(0.0, "strength of SimCLR's colour distortion", group="augmentation", least=0)

    contrast_epochs: int | None = setting(
        None, "how many of the epochs, the last ones, contrast views (default: two of three; 0 of other families)",
        group="contrast of views (mae)",
    )  # fmt: skip
    contrast_weight: float = setting(
        0.5, "of its loss beside the reconstruction's", group="contrast of views (mae)", least=0
    )
    views: int = setting(4, "of each image", group="contrast of views (mae)")
    decoded_views: int = setting(1, "how many of them are reconstructed", group="contrast of views (mae)")
    temperature: float = setting(0.2, "of its softmax", group="contrast of views (mae)", above=0)
    contrast_batch_size: int | None = setting(
        None, "images a step then (default: as --batch-size)", group="contrast of views (mae)", least=1
    )
    contrast_base_lr: float | None = setting(
        None, "base_lr then (default: as --base-lr)", group="contrast of views (mae)", least=0
    )
    contrast_crop: Literal["none", "pad", "resized"] = setting("resized", "crop then", group="contrast of views (mae)")
    contrast_color_jitter: float | None = setting(
        None, f"color_jitter then (default: {JITTER}, of images other than grey or RGB of 8 bits 0)",
        group="contrast of views (mae)", least=0,
    )  # fmt: skip
    final_mask_ratio: float | None = setting(
        None, "mask_ratio in the last fifth of the contrast, nearer to whole images, which probes and classifiers see "
        f"(default: {FINAL_MASK_RATIO}, or --mask-ratio where that is less)", group="contrast of views (mae)",
    )  # fmt: skip

    def settle_contrast(self) -> Self:
        """How long views are contrasted, and how much is hidden at the end. See `check_contrast` for what it raises."""
        epochs, final = self.contrast_epochs, self.final_mask_ratio
        if epochs is None:
            epochs = round(CONTRAST_RATIO * self.epochs) if self.model == "mae" else 0
        if epochs and final is None and self.mask_ratio is not None:
            final = min(FINAL_MASK_RATIO, self.mask_ratio)
        settled = replace(self, contrast_epochs=epochs, final_mask_ratio=final)
        settled.check_contrast()
        return settled

    def check_contrast(self) -> None:
        """Raises InputError for settings that do not go with a contrastive loss."""
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
        self.check_shape(dataset)
        contrast, batch_size = self.contrast_epochs or 0, self.batch_size or batch_for(len(dataset), least=64)
        jitter, coloured = self.contrast_color_jitter, has_colour(dataset)
        if jitter is None:
            jitter = JITTER if coloured else 0.0
        for name, strength in (("color_jitter", self.color_jitter), ("contrast_color_jitter", jitter)):
            if strength and not coloured:
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


def draw_inputs(
    settings: PhaseSettings, phase: Phase, model: Autoencoder, batch: Batch, draws: Draws, progress: float
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


def augment(settings: PhaseSettings, phase: Phase, images: Tensor, draws: Draws) -> Tensor:
    """One view of images (B, C, H, W)."""
    if phase.crop == "pad":
        images = padded_crop(images, draws, settings.crop_padding)
    elif phase.crop == "resized":
        images = random_resized_crop(images, draws, scale=(settings.min_scale, 1.0))
    images = settings.orient(images, draws)
    if phase.color_jitter:
        images = color_jitter(images, draws, strength=phase.color_jitter)
    return images


def create_learner(settings: PhaseSettings, model: Autoencoder, phase: Phase) -> nn.Module:
    """What a phase trains: the model under its objective."""
    if phase.views == 1 or not isinstance(model, MaskedAutoencoder):
        return ReconstructionLearner(model)
    return ContrastiveLearner(
        model, weight=settings.contrast_weight, temperature=settings.temperature, num_views=phase.views,
        decoded_views=settings.decoded_views,
    )  # fmt: skip


def plan_parts(settings: PhaseSettings, accelerator: Accelerator, model: Autoencoder, train_set: Dataset) -> list[Part]:
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
