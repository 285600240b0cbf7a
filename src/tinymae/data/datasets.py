"""Data sets: one split of a source of images, in memory or read batch by batch."""

import copy
import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..errors import InputError
from ..tensors import to_device
from .augment import has_colour
from .description import describe
from .images import UnreadableImage
from .sources.arrays import ArraySource
from .sources.files import FilesSource
from .sources.open import Reading, open_source
from .sources.source import Source
from .splits import SPLITS, TEST_FRACTION, VAL_FRACTION, held_out, split_by_hash

MEMORY_LIMIT_GB = 4.0  # images that take more than this are read batch by batch
STATISTICS_OF = 2000  # images of a streamed set that mean and standard deviation are of


@dataclass
class ImageDataset:
    """Images in memory, as one tensor."""

    name: str
    images: Tensor  # uint8 or uint16 (N, C, H, W)
    labels: Tensor | None  # int64 (N,), -1 of none; of several an image uint8 (N, classes); None if none has any
    classes: list[str]
    skipped: list[str] = field(default_factory=list)  # unreadable images that were left out
    names: Sequence[str] = ()  # of each image: its path in the folder, or its row
    of_files: bool = False  # whether names are those of files
    description: list[str] = field(default_factory=list)  # what was found, for the user to read

    def __post_init__(self):
        if not len(self.names):
            self.names = [str(row) for row in range(len(self.images))]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)"""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def depth(self) -> str:
        """uint8 or uint16"""
        return str(self.images.dtype).removeprefix("torch.")

    @cached_property
    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel, of pixels in [0, 1]."""
        return channel_statistics(self.images)

    @property
    def fingerprint(self) -> str:
        """How many images, and the digest of their pixels and labels."""
        total = hashlib.sha256(self.images.cpu().numpy().tobytes())
        if self.labels is not None:
            total.update(self.labels.cpu().numpy().tobytes())
        return f"{len(self)} images, {total.hexdigest()[:16]}"

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images and labels at `indices` (B,), on the dataset's device."""
        indices = to_device(indices, self.images.device)
        return self.images[indices], None if self.labels is None else self.labels[indices]

    def subset(self, indices: Tensor) -> "ImageDataset":
        """The dataset of these images only."""
        images, labels = self[indices]
        return replace(self, images=images, labels=labels, names=[self.names[i] for i in indices.tolist()])

    def without_labels(self) -> "ImageDataset":
        """The same images, unlabelled."""
        return replace(self, labels=None)

    def to(self, device: torch.device | str) -> "ImageDataset":
        """The same dataset with its tensors on `device`."""
        return replace(
            self, images=self.images.to(device), labels=None if self.labels is None else self.labels.to(device)
        )


@dataclass
class StreamedDataset:
    """Images where they are stored, read when they are asked for."""

    source: Source
    rows: np.ndarray  # int64 (N,): which of the source's
    skip_unreadable: bool = False
    skipped: list[str] = field(default_factory=list)  # unreadable images that others stood in for, so far
    description: list[str] = field(default_factory=list)  # what was found, for the user to read

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def name(self) -> str:
        """The data's."""
        return self.source.name

    @property
    def classes(self) -> list[str]:
        """Their names, by number."""
        return self.source.classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)"""
        return self.source.image_shape

    @property
    def depth(self) -> str:
        """uint8 or uint16"""
        return self.source.depth

    @property
    def of_files(self) -> bool:
        """Whether names are those of files."""
        return isinstance(self.source, FilesSource)

    @cached_property
    def labels(self) -> Tensor | None:
        """int64 (N,), -1 of an image without; of several an image uint8 (N, classes); None if none has any."""
        labels = None if self.source.labels is None else self.source.labels[self.rows]
        return None if labels is None or (labels < 0).all() else torch.from_numpy(labels)

    @property
    def names(self) -> Sequence[str]:
        """Of each image: its path in the folder, or its row."""
        return self.source.names(self.rows)

    @cached_property
    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel, of pixels in [0, 1], from 2,000 images at most."""
        some = torch.linspace(0, len(self) - 1, min(len(self), STATISTICS_OF)).long()
        return channel_statistics(torch.cat([self[part][0] for part in some.split(256)]))

    @cached_property
    def fingerprint(self) -> str:
        """How many images, and the digest of their names, sizes in bytes and labels."""
        return f"{len(self)} images, {self.source.digest(self.rows)[:16]}"

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        """Read the images at `indices` (B,), with their labels.

        With `skip_unreadable` the next readable image of the same class stands in for one that is not; else
        UnreadableImage names it.
        """
        places = indices.cpu().numpy()
        rows = self.rows[places]
        labels = None if self.labels is None else self.labels[indices]
        try:
            return self.source.read(rows), labels
        except UnreadableImage:
            if not self.skip_unreadable:
                raise
        images = [self.read_or_replace(int(place)) for place in places]
        return torch.stack(images), labels

    def read_or_replace(self, place: int) -> Tensor:
        """The image at a place, or the next one of its class that can be read."""
        label = None if self.labels is None else self.labels[place]
        for step in range(len(self)):
            other = (place + step) % len(self)
            if self.labels is not None and not torch.equal(self.labels[other], self.labels[place]):
                continue
            row = self.rows[other : other + 1]
            try:
                return self.source.read(row)[0]
            except UnreadableImage:
                self.note_skipped(self.source.names(row))
        raise InputError(f"data {self.name} has no readable image" + ("" if label is None else f" of class {label}"))

    def note_skipped(self, names: Iterable[str]) -> None:
        """Add to the list of what could not be read."""
        self.skipped += [name for name in names if name not in self.skipped]

    def subset(self, indices: Tensor) -> "StreamedDataset":
        """The dataset of these images only."""
        return replace(self, rows=self.rows[indices.cpu().numpy()])

    def without_labels(self) -> "StreamedDataset":
        """The same images, unlabelled."""
        source = copy.copy(self.source)
        source.labels = None
        return replace(self, source=source)

    def to(self, device: torch.device | str) -> "StreamedDataset":
        """Itself: images go to the device batch by batch."""
        return self

    def in_memory(self) -> ImageDataset:
        """The same images, read once; with `skip_unreadable` the unreadable ones are left out.

        Raises UnreadableImage for the first one otherwise, InputError if none is left.
        """
        images, bad = self.read_all()
        good = [place for place, image in enumerate(images) if image is not None]
        if not good:
            raise InputError(f"data {self.name} has no readable image")
        kept = self.subset(torch.tensor(good)) if bad else self
        pixels = torch.stack([image for image in images if image is not None])
        return ImageDataset(
            self.name, pixels, kept.labels, self.classes, bad, kept.names, self.of_files, self.description
        )

    def read_all(self) -> tuple[Sequence[Tensor | None], list[str]]:
        """All images, None for an unreadable one, and the names of those."""
        if isinstance(self.source, ArraySource):
            return [
                image for part in np.array_split(self.rows, len(self) // 1000 + 1) for image in self.source.read(part)
            ], []
        parts = np.array_split(self.rows, len(self) // 64 + 1)
        read = self.source.read_good if self.skip_unreadable else lambda rows: (list(self.source.read(rows)), [])
        images: list[Tensor | None] = []
        bad: list[str] = []
        with (
            ThreadPoolExecutor(max_workers=os.cpu_count()) as pool,
            tqdm(total=len(self), desc="reading images", leave=False, disable=len(self) < 5000) as bar,
        ):
            for some, unreadable in pool.map(read, parts):
                images += some
                bad += unreadable
                bar.update(len(some))
        return images, bad


Dataset = ImageDataset | StreamedDataset
Images = str | Path | Sequence[str | Path] | Tensor | np.ndarray | torch.utils.data.Dataset  # what users give as data


def load_dataset(
    data: Any,
    split: str = "train",
    *,
    labels: Tensor | np.ndarray | Sequence | None = None,
    data_dir: str | Path = "data",
    image_size: int | tuple[int, int] | None = None,
    channels: int = 3,
    val_fraction: float | None = None,
    test_fraction: float | None = None,
    pixel_range: tuple[float, float] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    memory_limit_gb: float = MEMORY_LIMIT_GB,
    skip_unreadable: bool = False,
) -> Dataset:
    """The train, validation or test images of some data, or all of them.

    Args:
        data: a name (`digits`, `cifar10`, ... as in `sources.named`; torchvision downloads to `data_dir`); a folder, or
            several, read without labels; image files; a table of paths (.csv, .tsv, .parquet); an array file (.npy,
            .npz, .h5); Parquet files of encoded images or a folder of `save_to_disk`; `hf:owner/name` on the Hugging
            Face Hub; a tensor or array (N, C, H, W), (N, H, W, C) or (N, H, W); or a torch Dataset.
        split: train, val, test or all.
        labels: (N,) of a tensor or array: numbers from 0, or names; -1 or "" is no label. Or (N, classes) of 0 and 1.
        image_size: pixels, or (height, width); images are resized and centre-cropped. Files have 32 by default.
        channels: of files: 1 is grey, 3 is RGB, up to 64 of multi-band TIFF or .npy files.
        val_fraction, test_fraction: held out of train where the data have no such split: 0.1 each, of images without
            labels 0.05 and 0.
        pixel_range: the values of black and white, of float or 32-bit pixels and of 16-bit ones that do not use all
            their values.
        image_column, label_column, split_column: of tables, where they have other names than the usual ones, in any
            case.
        memory_limit_gb: larger data are read batch by batch.
        skip_unreadable: leave damaged images out; read batch by batch, the next one of the class stands in.

    Which split an image belongs to follows from a hash of its own path or row: adding images moves no other. Named
    sets have their official test split, and 2,000 images held out of train by a fixed seed. A folder's sub-folders
    `train`, `val` and `test` are the splits, in any case and spelling (`Training`, `valid`, `dev`); other sub-folders
    are classes. The classes are those of train.

    >>> dataset = load_dataset("digits", "test")
    >>> dataset.images.shape, dataset.images.dtype, dataset.labels.shape, dataset.classes[:3]
    (torch.Size([360, 1, 8, 8]), torch.uint8, torch.Size([360]), ['0', '1', '2'])

    Raises InputError for data that cannot be read, a split without images, or labels that do not fit; UnreadableImage
    for a damaged image.
    """
    return load_splits(
        data, [split], labels=labels, data_dir=data_dir, image_size=image_size, channels=channels,
        val_fraction=val_fraction, test_fraction=test_fraction, pixel_range=pixel_range, image_column=image_column,
        label_column=label_column, split_column=split_column, memory_limit_gb=memory_limit_gb,
        skip_unreadable=skip_unreadable,
    )[split]  # fmt: skip


def load_splits(
    data: Any, splits: Sequence[str], *, labels: Any = None, val_fraction: float | None = None,
    test_fraction: float | None = None, memory_limit_gb: float = MEMORY_LIMIT_GB, skip_unreadable: bool = False,
    labelled: bool = False, several: bool = False, masked: bool = False, present: bool = False, **reading: Any,
) -> dict[str, Dataset]:  # fmt: skip
    """Several splits of one source, which is opened once; see `load_dataset`. `reading` is what `Reading` takes.

    With `present`, splits that have no images are left out. Images that are `masked`, with a mask for each in place of
    a label, are held out like labelled ones. Labels (N, classes), of images that may have several, are left out unless
    `several` are asked for.

    Raises InputError as well, if they must be `labelled`, for a split in which no image has a label, or for images with
    several that were not asked for.
    """
    for split in splits:
        if split not in (*SPLITS, "all"):
            raise InputError(f"split {split!r} is none of {', '.join(SPLITS)} and all")
    source = open_source(data, labels, Reading(skip_unreadable=skip_unreadable, **reading))
    unused = source.labels is not None and source.labels.ndim == 2 and not several
    if unused:
        if labelled:
            raise InputError(
                f"data {source.name} has several labels an image, this command or its weights know one: give others"
            )
        source.labels = None
    if labelled and source.labels is None:
        raise no_labels(source, splits[0])
    everything = np.arange(len(source))
    rows = {"all": everything} if {*splits} == {"all"} else cut(source, val_fraction, test_fraction, masked=masked)
    description = describe(source, rows, unused_labels=unused)
    loaded: dict[str, Dataset] = {}
    for split in splits:
        if present and split != "all" and split not in rows:
            continue
        if not len(chosen := everything if split == "all" else rows.get(split, ())):
            has = ", ".join(f"{len(part):,} {name}" for name, part in rows.items())
            raise InputError(
                f"data {source.name} has no images for {split}, only {has}: give another split, or --{split}-fraction"
            )
        dataset = StreamedDataset(source, np.asarray(chosen), skip_unreadable, description=description)
        size = 2 if source.depth == "uint16" else 1
        if labelled and dataset.labels is None:
            raise no_labels(source, split)
        in_memory = len(dataset) * np.prod(source.image_shape) * size <= memory_limit_gb * 2**30
        loaded[split] = dataset.in_memory() if in_memory else dataset
    return loaded


def cut(
    source: Source, val_fraction: float | None, test_fraction: float | None, *, masked: bool = False
) -> dict[str, np.ndarray]:
    """The rows of each split: those that the data come with, and what is held out of train for the others."""
    given = dict(source.splits)
    kind = "unlabelled" if source.labels is None and not masked else "labelled"
    fractions = {"val": val_fraction, "test": test_fraction}
    for (name, fraction), default in zip(fractions.items(), (VAL_FRACTION, TEST_FRACTION), strict=True):
        if fraction is None:
            fractions[name] = default[kind]
        elif name in given or name in source.held_out:
            raise InputError(
                f"{name}_fraction {fraction:g}: data {source.name} has a {name} split of its own; leave it out"
            )
        elif not 0 <= fraction < 1:
            raise InputError(f"{name}_fraction {fraction:g} is not within 0 and 1")
    train = given.pop("train", None)
    if train is None:
        if given:
            return given
        train = np.arange(len(source))
    if source.held_out:
        parts = {name: held_out(len(train), source.held_out, name).numpy() for name in ("train", *source.held_out)}
    else:
        wanted = {name: fractions[name] or 0.0 for name in ("val", "test") if name not in given}
        if sum(wanted.values()) >= 1:
            raise InputError(f"val_fraction and test_fraction are {sum(wanted.values()):g} together: below 1, please")
        if len(train) < 1 + sum(fraction > 0 for fraction in wanted.values()):
            raise InputError(f"data {source.name} has {len(train)} images, too few for {', '.join(['train', *wanted])}")
        labels = None if source.labels is None or source.labels.ndim == 2 else source.labels[train]
        parts = split_by_hash(source.places(train), wanted, labels)
    return {
        name: part for name, part in ({name: train[part] for name, part in parts.items()} | given).items() if len(part)
    }


def channel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel of pixels (N, C, H, W) scaled to [0, 1], exact by counting.

    >>> channel_statistics(torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2))
    ([0.5], [0.5])
    """
    levels = 256 if images.dtype == torch.uint8 else 65536
    values = torch.arange(levels, dtype=torch.float64) / (levels - 1)
    mean, std = [], []
    for channel in images.transpose(0, 1):
        flat = channel.flatten().cpu()
        ratio = torch.bincount(flat if levels == 256 else flat.int(), minlength=levels) / channel.numel()
        mean.append(float(ratio.double() @ values))
        std.append(max(float(ratio.double() @ (values - mean[-1]).square()) ** 0.5, 1e-6))
    return [round(m, 6) for m in mean], [round(s, 6) for s in std]


def has_several(dataset: Dataset) -> bool:
    """Whether an image may have several labels, or none."""
    return dataset.labels is not None and dataset.labels.ndim == 2


def with_label(dataset: Dataset) -> Dataset:
    """Those of the images that have a label, all if an image may have several; the dataset itself if none lacks one."""
    if dataset.labels is None or dataset.labels.ndim == 2 or (dataset.labels >= 0).all():
        return dataset
    return dataset.subset((dataset.labels >= 0).nonzero()[:, 0])


def knows_colour(dataset: Dataset) -> bool:
    """See `augment.has_colour`."""
    return has_colour(dataset.image_shape[0], dataset.depth)


def no_colour(setting: str, dataset: Dataset) -> InputError:
    return InputError(
        f"{setting} is for grey and RGB images of 8 bits, and data {dataset.name} has {dataset.image_shape[0]} "
        f"channels of {dataset.depth}: leave it out"
    )


def no_labels(source: Source, split: str) -> InputError:
    without = ", or leave test out: --no-test, or --split val of evaluate" if split == "test" else ""
    return InputError(f"data set {source.name} has no labels in {split}: {source.label_remedy}{without}")


def require_channels(dataset: Dataset, in_channels: int) -> None:
    """Raises InputError unless the dataset's images have the channels that a model wants."""
    if dataset.image_shape[0] != in_channels:
        raise InputError(
            f"data set {dataset.name} has {dataset.image_shape[0]} channels, the weights want {in_channels}"
        )
