"""Images without labels beside the labelled ones of fine-tuning: the settings, and which images each step has.

The objective is in `models.pseudo_labels`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from accelerate import Accelerator

from ..data.batches import Batch, join_batches
from ..data.datasets import Dataset, require_channels, with_label
from ..data.load import Images
from ..errors import InputError
from ..randomness import derive_seed
from ..training.run import Run
from .fields import setting
from .learning import TrainingSettings
from .settings import LabelSettings


@dataclass(frozen=True)
class Stage:
    """A part of the training, on the one schedule."""

    until: float  # the progress at which it ends, 0 to 1
    batch_size: int  # images a step, with labels or without, over all processes
    batches: Callable[..., Iterator[list[Batch]]]  # from a `start_step` on
    is_final: bool = False  # whether images are whole now, and little augmented


@dataclass(frozen=True, kw_only=True)
class UnlabelledSettings(TrainingSettings, LabelSettings):
    """What fine-tuning does with images that have no labels."""

    heading = "images without labels"
    further = "unlabelled_data"
    unlabelled: int = setting(
        0, "this many for each labelled image of a step; 0 is off. The moving average of the weights labels them as "
        "cropped and flipped; the model learns these labels from what further augmentation and --patch-drop leave of "
        "them (arXiv 2001.07685, 2208.05688)", least=0,
    )  # fmt: skip
    unlabelled_data: Images | None = setting(
        None, "folder of them (default: all training images, with a label that is not learned from or without)"
    )
    unlabelled_threshold: float = setting(
        0.7, "least probability of a class that counts as a label; label smoothing lowers all of them", least=0, below=1
    )
    unlabelled_weight: float = setting(1.0, "of their loss", least=0)
    unlabelled_warmup: float = setting(
        0.2, "ratio of the training that comes first, on the labelled images alone", least=0, below=1
    )

    def load_unlabelled(self, train_set: Dataset) -> Dataset:
        """The images that are used without labels. Raises InputError for a folder that cannot be."""
        if self.unlabelled_data is None:  # without all labels, it is not known how many the teacher finds
            return train_set if with_label(train_set) is train_set else train_set.without_labels()
        channels, height, width = train_set.image_shape
        sizes = {"image_size": (height, width), "channels": channels}
        dataset = self.load_splits(["all"], further=True, unlabelled=True, **sizes)["all"]
        require_channels(dataset, channels)
        if dataset.depth != train_set.depth:
            raise InputError(
                f"unlabelled_data has {dataset.depth} images, those with labels are {train_set.depth}: give both alike"
            )
        return dataset.without_labels()  # of a folder of its own: they may number other classes

    def describe_unlabelled(self, chosen: dict[str, Dataset]) -> str:
        """How many there are for each labelled image, and how many of them bring something new."""
        more, pool = f"{self.unlabelled} more for each", len(chosen["unlabelled"])
        if self.unlabelled_data is not None:
            return f"{more}, without labels, of {pool:,}"
        if others := pool - len(chosen["train"]):
            return f"{more}, without labels, of all {pool:,}: {others:,} with no label that is learned from"
        return f"{more}, of the labelled images themselves, as none is without a label: --unlabelled-data names others"

    def judge_unlabelled(self, run: Run) -> dict[str, float]:
        """The mean ratio of these images that were learned from, over the last tenth of the steps that are logged."""
        ratios = [row["unlabelled_kept"] for row in run.progress.metrics if "unlabelled_kept" in row]
        if not ratios:  # the time was over before them
            return {}
        last = ratios[-max(1, len(ratios) // 10) :]
        kept = sum(last) / len(last)
        run.print(f"at the end {100 * kept:.3g} % of the images without labels were learned from")
        if not kept:
            run.print(
                f"the teacher was {100 * self.unlabelled_threshold:g} % sure of the class of none: train longer, or "
                "lower unlabelled_threshold"
            )
        return {"unlabelled_kept": kept}

    def plan_stages(self, accelerator: Accelerator, chosen: dict[str, Dataset]) -> tuple[int, list[Stage]]:
        """Steps in an epoch of the labelled images; and the stages: these alone, then with others beside them.

        Raises InputError for batches that cannot be.
        """
        size = self.batch_size
        assert size is not None  # settled
        more = self.unlabelled * size
        steps_per_epoch, batches = self.plan_batches(accelerator, chosen["train"], batch_size=size)
        if not more:
            return steps_per_epoch, [Stage(1.0, size, batches)]
        pool = chosen["unlabelled"]
        if more > len(pool):
            raise InputError(
                f"unlabelled {self.unlabelled} x batch_size {size} is more than the {len(pool)} images without labels: "
                "make one of them smaller"
            )
        own_seed = derive_seed(self.seed, "unlabelled")
        _, others = self.plan_batches(accelerator, pool, batch_size=more, seed=own_seed)

        def joined(*, start_step: int) -> Iterator[list[Batch]]:
            return join_batches(batches(start_step=start_step), others(start_step=start_step), size)

        return steps_per_epoch, [Stage(self.unlabelled_warmup, size, batches), Stage(1.0, size + more, joined)]
