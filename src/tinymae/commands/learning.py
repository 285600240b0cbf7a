"""Settings of what is trained by gradient: batches, learning rate, precision, how it is watched and stopped."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

from accelerate import Accelerator
from torch import Tensor
from typing_extensions import Self

from ..data.augment import random_flip, random_rotate90
from ..data.batches import Batch, count_steps, split_batch, step_batches
from ..data.datasets import Dataset
from ..errors import InputError
from ..randomness import Draws
from ..training.device import can_compile, create_accelerator
from ..training.trackers import require_installed
from .fields import Several, setting
from .settings import RunSettings

WARMUP = 0.05  # ratio of a training, unless warmup_epochs says otherwise
PEAK = 2e-3  # learning rate at batch size 512
WORTH_COMPILING = 5_000  # steps: what torch.compile takes at the start comes back within them (docs/gpu.md)
WORTH_MINUTES = 3.0
LONG_ON_CPU = 500_000  # images in all, which are hours of a core


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(RunSettings):
    """What pretraining and fine-tuning share."""

    heading = "training"
    resumes = True
    warmup_epochs: float | None = setting(None, "the learning rate rises in them (default: a twentieth of --epochs)")
    max_minutes: float | None = setting(
        None, "finish by then: the learning rate follows the clock down to zero", above=0
    )
    pause_after_minutes: float | None = setting(
        None,
        "save and exit with code 75 then; the same command goes on, and ends in the same weights",
        free=True,
        least=0,
    )
    batch_size: int | None = setting(
        None, "images a step, over all processes (default: 512; of fewer than 8,192 training images a sixteenth of "
        "them, as a power of two, but at least 64)", least=1,
    )  # fmt: skip
    base_lr: float | None = setting(
        None, "learning rate = base_lr x batch_size / 256 (default: what makes it 2e-3 at batch size 512, and lets it "
        "change with the root of the batch size)", least=0,
    )  # fmt: skip
    optimizer: Literal["adamw", "muon"] = setting("adamw", "muon: for the matrices, and AdamW for the rest")
    weight_decay: float = setting(0.05, "of matrices, decoupled", least=0)
    clip_grad: float | None = setting(None, "largest norm of the gradient (default: no limit)", above=0)
    gradient_accumulation_steps: int = setting(1, "micro-batches a step", least=1)
    gradient_checkpointing: bool = setting(False, "less memory for more computing", free=True)
    compile: bool | None = setting(
        None, "torch.compile the model: half a minute at the start, faster steps on a GPU (default: where steps are "
        f"CUDA graphs, in runs of {WORTH_COMPILING:,} steps and {WORTH_MINUTES:g} minutes or more)"
    )  # fmt: skip
    cuda_graph: bool | None = setting(
        None, "launch each step as one CUDA graph (default: a ViT's, on one GPU)", free=True
    )
    deterministic: bool = setting(False, "meant to give the same bits each time on a GPU as well, where that is slower")
    log_every: int = setting(
        20, "steps between lines of metrics.jsonl and points of the curves", group="watching", free=True, least=1
    )
    log_with: Several[Literal["tensorboard", "mlflow", "wandb"]] = setting(
        ("tensorboard",), "one or several; MLflow's store is in --output-dir, or at MLFLOW_TRACKING_URI",
        group="watching", free=True,
    )  # fmt: skip
    checkpoint_minutes: float = setting(5.0, "minutes between checkpoints", group="watching", free=True, least=0)
    flip: bool = setting(True, "left-right; give --no-flip for digits or text", group="augmentation")
    rotate90: bool = setting(
        False, "turns by 0, 90, 180 or 270 degrees: for square images without an upper side, as from a microscope or a "
        "satellite", group="augmentation",
    )  # fmt: skip

    def resolve(self) -> Self:
        """See `RunSettings.resolve`."""
        require_installed(self.log_with)
        return super().resolve()

    def warmup_of(self, epochs: int) -> float:
        """What ratio of so many epochs is warm-up. Raises InputError for more than all."""
        if self.warmup_epochs is None:
            return WARMUP
        if not 0 <= self.warmup_epochs < epochs:
            raise InputError(f"warmup_epochs {self.warmup_epochs:g} is not within 0 and the {epochs} epochs")
        return self.warmup_epochs / epochs

    def create_accelerator(self) -> Accelerator:
        """Accelerate, with the run's precision, once it is resolved, and gradient accumulation."""
        steps = self.gradient_accumulation_steps
        accelerator = create_accelerator(self.mixed_precision, gradient_accumulation_steps=steps)
        if self.cuda_graph and (missing := self.missing_for_graphs(accelerator)):
            raise InputError(f"cuda_graph needs {' and '.join(missing)}: leave cuda_graph out")
        return accelerator

    def check_shape(self, dataset: Dataset) -> None:
        """Raises InputError for images that cannot be augmented as asked."""
        height, width = dataset.image_shape[1:]
        if self.rotate90 and height != width:
            raise InputError(
                f"rotate90 needs square images, not {height} x {width}: leave it out, or give --image-size"
            )

    def orient(self, images: Tensor, draws: Draws) -> Tensor:
        """Images (B, C, H, W) mirrored and turned at random, as asked."""
        if self.flip:
            images = random_flip(images, draws)
        return random_rotate90(images, draws) if self.rotate90 else images

    def missing_for_graphs(self, accelerator: Accelerator) -> list[str]:
        """What a run would need for its steps to be CUDA graphs, and does not have."""
        obstacles = {
            "a GPU": accelerator.device.type != "cuda",
            "one process": accelerator.num_processes > 1,
            "gradient_accumulation_steps 1": self.gradient_accumulation_steps > 1,
            "mixed_precision bf16 or no": accelerator.scaler is not None,
            "no gradient_checkpointing": self.gradient_checkpointing,
        }
        return [name for name, found in obstacles.items() if found]

    def uses_graphs(self, accelerator: Accelerator, *, is_vit: bool) -> bool:
        """Whether steps are CUDA graphs: as asked, or else where they have been tried."""
        return is_vit and not self.missing_for_graphs(accelerator) if self.cuda_graph is None else self.cuda_graph

    def compiles(self, accelerator: Accelerator, *, is_vit: bool, steps: int) -> bool:
        """Whether a run of so many steps compiles its model: as asked, or else where that was faster in all."""
        if self.compile is not None:
            return self.compile
        long = steps >= WORTH_COMPILING and (self.max_minutes is None or self.max_minutes >= WORTH_MINUTES)
        return long and self.uses_graphs(accelerator, is_vit=is_vit) and can_compile(accelerator.device)

    def run_options(self) -> dict:
        """Further arguments of `Run`."""
        names = ("log_every", "log_with", "checkpoint_minutes", "pause_after_minutes", "gradient_checkpointing")
        return {name: getattr(self, name) for name in names} | {"trains": True}

    def plan_batches(
        self, accelerator: Accelerator, dataset: Dataset, *, batch_size: int, first_epoch: int = 0,
        seed: int | None = None,
    ) -> tuple[int, Callable[..., Iterator[list[Batch]]]]:  # fmt: skip
        """Steps in an epoch, and a function of `start_step` that gives this process's part of each step's batch.

        `seed` is for a second stream of batches; the first has the run's own.

        Raises InputError if the batch does not fit the dataset, or does not divide among processes and micro-batches.
        """
        parts = split_batch(batch_size, accelerator.num_processes * self.gradient_accumulation_steps)
        return count_steps(dataset, batch_size), partial(
            step_batches, dataset, batch_size=batch_size, device=accelerator.device,
            seed=self.seed if seed is None else seed,
            parts=parts[accelerator.process_index :: accelerator.num_processes], num_workers=self.num_workers,
            first_epoch=first_epoch,
        )  # fmt: skip


def peak_rate(base_lr: float | None, batch_size: int) -> float:
    """The highest learning rate: base_lr x batch_size / 256, as papers give it; or without one the rate of the recipes
    at 512, scaled by the root of the batch size, as fits Adam (Malladi et al., arXiv 2205.10287).

    >>> [peak_rate(base_lr, batch_size) for base_lr in (1e-3, None) for batch_size in (512, 128)]
    [0.002, 0.0005, 0.002, 0.001]
    """
    return PEAK * (batch_size / 512) ** 0.5 if base_lr is None else base_lr * batch_size / 256


def batch_for(images: int, *, least: int, most: int = 512) -> int:
    """How many of so many images are in a step: a sixteenth, within limits that are powers of two, as it is itself.

    >>> [batch_for(images, least=64) for images in (50, 400, 5_000, 48_000)]
    [32, 64, 256, 512]
    """
    sixteenth, all_of_them = (2 ** (max(count, 1).bit_length() - 1) for count in (images // 16, images))
    return min(max(sixteenth, least), most, all_of_them)
