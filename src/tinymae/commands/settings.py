"""Settings that several commands share: which data, how they are read, which labels and which encoder."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from typing_extensions import Self

from ..data.datasets import Dataset
from ..data.fit import Fit
from ..data.load import Images, load_splits
from ..data.sources.columns import LABEL_COLUMNS, PATH_COLUMNS, SPLIT_COLUMNS
from ..data.sources.open import COLUMNS, has_columns
from ..data.splits import SPLITS, balanced, few_labels
from ..evaluation.figures import Channels, require_shown
from ..files import last_part
from ..interop.load import Model
from ..training.device import Precision, create_accelerator, settle_precision
from ..training.processes import print_once
from ..training.run import Run
from .fields import Settings, describe_value, setting

Size = int | tuple[int, int]  # one number, or height and width
Pool = Literal["avg", "cls"]  # of a ViT's tokens: the mean of the patches', or the class token


@dataclass(frozen=True, kw_only=True)
class DataSettings(Settings):
    """How data are read."""

    heading = "data"
    data_dir: str | Path = setting("data", "where named data sets are, or go", free=True)
    val_fraction: float | None = setting(
        None, "held out where the data have no validation (default: 0.1, without labels 0.05)"
    )
    test_fraction: float | None = setting(
        None, "held out where the data have no test split (default: 0.1, without labels 0)"
    )
    pixel_range: tuple[float, float] | None = setting(
        None,
        "values of black and white: of float or 32-bit pixels, and of 16-bit ones that use fewer (12 bits: 0 4095; "
        "default: all, or the weights')",
    )
    fit: Fit | None = setting(
        None, "images of another shape: crop what is beyond the size, or pad with the median colour of their edge "
        "(default: crop, or the weights')",
    )  # fmt: skip
    image_column: str | None = setting(None, f"of a table (default: {', '.join(PATH_COLUMNS)})")
    label_column: str | None = setting(None, f"of a table (default: {', '.join(LABEL_COLUMNS)})")
    split_column: str | None = setting(None, f"of a table (default: {', '.join(SPLIT_COLUMNS)})")
    group_column: str | None = setting(
        None, "of a table: images with the same value, as of one patient or film, stay in one split"
    )
    group_pattern: str | None = setting(
        None, "the same by a regular expression in each image's path: what its brackets hold, or all of it"
    )
    skip_unreadable: bool = setting(False, "leave out images that do not decode, or that are missing", free=True)

    @property
    def reading(self) -> dict[str, Any]:
        """Those that are given, as `load_dataset` takes them."""
        own = (f.name for f in fields(DataSettings) if f.name != "output_dir")
        return {name: value for name in own if (value := getattr(self, name)) is not None}

    def reading_like(self, weights: Model | None, *, say: bool = True) -> Self:
        """The same, with `pixel_range` and `fit` as the weights' images were read, where they are not given."""
        known = {} if weights is None else weights.loading
        taken = {name: value for name, value in known.items() if getattr(self, name) is None}
        if taken and say:
            said = ", ".join(f"{name} {' '.join(map(str, np.ravel(value)))}" for name, value in taken.items())
            print_once(f"images are read as those that the weights learned from: {said}")
        return replace(self, **taken)

    def reading_kept(self, dataset: Dataset) -> dict[str, Any]:
        """What weights keep of how a dataset was read: see `Pretrained.reading`."""
        kept = {
            "fit": "pad" if self.fit == "pad" else None, "pixel_range": self.pixel_range and [*self.pixel_range],
            "depth": None if dataset.depth == "uint8" else dataset.depth,
        }  # fmt: skip
        return {name: value for name, value in kept.items() if value is not None}


@dataclass(frozen=True)
class RunSettings(DataSettings):
    """What every command that reads data shares."""

    data: Images = setting(
        "cifar10",
        "a folder of images, or several without labels; image files; a table of paths (.csv, .tsv, .parquet); .npy, "
        ".npz or .h5; Parquet or save_to_disk of Hugging Face, hf:owner/name; or a name: digits, cifar10, mnist, ...",
        group="data", several=True,
    )  # fmt: skip
    _: KW_ONLY
    further = ""  # the name of the setting for other data that are read alike
    labels: Any = setting(None, "of a tensor or array", python=True)
    describe: bool = setting(True, "print what was found in the data", python=True, free=True)
    num_workers: int = setting(
        2, "processes that read and decode images larger than memory, beside each that computes", group="data",
        free=True, least=0,
    )  # fmt: skip
    overwrite: bool = setting(False, "move what is in the output folder aside and start anew", free=True)
    seed: int = setting(0, "everything random follows from it")
    mixed_precision: Precision = setting("auto", "auto: bf16 where the processor has it")

    def resolve(self) -> Self:
        """The same with every value settled. Raises InputError for one that cannot be."""
        return replace(self, mixed_precision=settle_precision(self.mixed_precision))

    def record(self) -> dict:
        """See `Settings.record`."""
        given = self.labels is not None and not isinstance(self.labels, Tensor)
        labels = np.asarray(self.labels) if given else self.labels  # whatever an array can be made of, as it is read
        return super().record() | {"labels": describe_value(labels)}

    @property
    def data_name(self) -> str:
        """The data's name, or its folder's."""
        if isinstance(self.data, str | Path):
            return last_part(self.data)
        if isinstance(self.data, list | tuple):
            return ", ".join([last_part(each) for each in self.data[:3]] + ["..."] * (len(self.data) > 3))
        if isinstance(self.data, Dataset):
            return self.data.name
        return "array" if isinstance(self.data, Tensor | np.ndarray) else type(self.data).__name__

    def load_splits(self, splits: Sequence[str], *, further: bool = False, **options: Any) -> dict[str, Dataset]:
        """Splits by name of the data, or of the `further` ones; see `data.load.load_splits` for the options. Where one
        of the two alone is a table, the columns are its; of two, those without labels may lack columns.
        """
        data: Any = self.data
        labels, reading = self.labels, self.reading
        beside: Any = getattr(self, self.further) if self.further else None
        if further:
            data, beside, labels = beside, data, None
        if has_columns(beside) and not has_columns(data):
            reading |= dict.fromkeys(COLUMNS)
        reading["columns_elsewhere"] = has_columns(beside) and bool(options.get("unlabelled"))
        loaded = load_splits(data, splits, labels=labels, **options, **reading)
        if loaded and self.describe:
            print_once(*next(iter(loaded.values())).description)
        return loaded

    def create_accelerator(self) -> Accelerator:
        """Accelerate, with the run's precision, once it is resolved."""
        return create_accelerator(self.mixed_precision)

    def open_run(
        self, accelerator: Accelerator, *, splits: dict[str, Dataset], weights: Model | None, **further: str
    ) -> Run:
        """The run's folder, for these inputs; `further` ones by their fingerprints."""
        inputs = {}
        if accelerator.is_main_process:  # which alone compares them: a folder's sizes need not be asked for by all
            inputs = {split: dataset.fingerprint for split, dataset in splits.items()} | further
            if weights is not None:
                inputs["weights"] = weights.fingerprint
        return Run(
            self.output_dir, accelerator, arguments=self.record(), inputs=inputs, overwrite=self.overwrite,
            datasets=splits, defaults=self.defaults(), **self.run_options(),
        )  # fmt: skip

    def run_options(self) -> dict:
        """Further arguments of `Run`."""
        return {}


@dataclass(frozen=True, kw_only=True)
class SheetSettings(RunSettings):
    """What every command that draws sheets of images shares."""

    heading = "data"
    show_channels: Channels | None = setting(
        None, "channels that sheets of images show as red, green and blue, from 0 (default: the first three; the first "
        "in grey of one or two)", free=True,
    )  # fmt: skip

    def load_splits(self, splits: Sequence[str], **options: Any) -> dict[str, Dataset]:
        """See `RunSettings.load_splits`. Raises InputError as well if the images lack the channels to be shown."""
        loaded = super().load_splits(splits, **options)
        for dataset in loaded.values():
            require_shown(self.show_channels, dataset.image_shape[0])
        return loaded


@dataclass(frozen=True, kw_only=True)
class LabelSettings(RunSettings):
    """What every command that learns from labels shares."""

    heading = "labels"
    label_fraction: float = setting(1.0, "ratio of each class's labels used", above=0, most=1)
    val_labels: int | None = setting(
        None, "choose on this many labels of validation, the same number of each class (default: all): few show what "
        "choosing on few costs",
    )  # fmt: skip
    no_test: bool = setting(False, "leave the test split out: for choosing on validation")

    @property
    def split_names(self) -> tuple[str, ...]:
        """Train, validation and, unless `no_test`, test."""
        return SPLITS[:2] if self.no_test else SPLITS

    def load_labelled(self, *, image_size: Size | None, channels: int) -> dict[str, Dataset]:
        """The splits; an image may have several labels or none. Raises InputError if a split has no label."""
        return self.load_splits(
            self.split_names, image_size=image_size, channels=channels, labelled=True, several=True,
            no_test=self.no_test,
        )  # fmt: skip

    def choose_labels(self, splits: dict[str, Dataset]) -> dict[str, Dataset]:
        """The splits with those images alone whose labels are used."""
        train, val = splits["train"], splits["val"]
        chosen = {"train": train.subset(few_labels(strata(train), self.label_fraction, self.seed))}
        if self.val_labels is not None:
            chosen["val"] = val.subset(balanced(strata(val), self.val_labels, self.seed))
        return splits | chosen


def strata(dataset: Dataset) -> Tensor:
    """The classes (N,) that a part of the images keeps the ratios of: one for all where an image has not one class."""
    labels = dataset.labels
    return torch.zeros(len(dataset), dtype=torch.long) if labels is None or labels.ndim == 2 else labels


@dataclass(frozen=True, kw_only=True)
class EncoderSettings(Settings):
    """Which encoder to build; None is what the model's constructor takes, or what the weights have."""

    heading = "model"
    encoder: str | None = setting(None, constructor=True)
    image_size: Size | None = setting(
        None, "pixels, or height and width (default: the data's, or the weights'; folders: 32)"
    )
    patch_size: Size | None = setting(None, constructor=True)
    in_channels: int | None = setting(
        None, "of files: 1 (grey), 3, or as many as multi-band TIFF or .npy files have (default: 3, or the weights')"
    )
    embed_dim: int | None = setting(None, constructor=True)
    depth: int | None = setting(None, constructor=True)
    num_heads: int | None = setting(None, constructor=True)

    @property
    def constructor_settings(self) -> dict[str, Any]:
        """Those that are arguments of a family's constructor, as given: None is its default."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.metadata.get("constructor")}
