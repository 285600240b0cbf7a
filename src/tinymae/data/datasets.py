"""Data sets: one split of a source of images, in memory or read batch by batch."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from ..bars import map_threads
from ..errors import InputError
from ..tensors import LEVELS, pick_pixels, to_device
from .images import Depth
from .sources.arrays import ArraySource
from .sources.files import FilesSource
from .sources.source import Source
from .unreadable import UnreadableImage

STATISTICS_OF = 2000  # images of a streamed set that mean and standard deviation are of


class Indexed(torch.utils.data.Dataset):
    """What the two kinds of data sets share: they are map-style torch Datasets that also give batches."""

    name: str
    image_shape: tuple[int, int, int]  # (channels, height, width)
    depth: Depth  # of the pixels
    labels: Tensor | None  # int64 (N,), -1 of none; of several an image uint8 (N, classes); None if none has any
    classes: list[str]
    of_files: bool  # whether names are those of files
    prefixes: Sequence[str]  # of names: see `Source`
    lists_labels = True  # `labels` are those of all images, or None: an image's own may be -1

    def __len__(self) -> int:
        raise NotImplementedError

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images and labels at `indices`, int64 (B,)."""
        raise NotImplementedError

    def __repr__(self) -> str:
        """In one line.

        >>> from tinymae import load_dataset
        >>> load_dataset("digits")
        ImageDataset digits: 1,300 images of 1 x 8 x 8 (uint8), 10 classes
        """
        classes = "no labels" if self.labels is None else f"{len(self.classes):,} classes"
        shape = " x ".join(map(str, self.image_shape))
        return f"{type(self).__name__} {self.name}: {len(self):,} images of {shape} ({self.depth}), {classes}"

    def without_labels(self) -> Self:
        """The same images, unlabelled."""
        return replace(self, labels=None)  # type: ignore[type-var]  # both are dataclasses

    def __getitem__(self, index: Any) -> tuple[Tensor, Tensor | None]:
        """Images (B, C, H, W) and labels (B,), or None if there are none, at a tensor, array, list or slice of rows.

        A number gives one image (C, H, W) and its label, -1 where it has none: a DataLoader knows no None.

        >>> from tinymae import load_dataset
        >>> dataset = load_dataset("digits", "test")
        >>> [images.shape[0] for images, labels in torch.utils.data.DataLoader(dataset, batch_size=200)]
        [200, 160]
        """
        if isinstance(index, slice):
            index = np.arange(*index.indices(len(self)))
        if np.ndim(index) == 0:
            place = range(len(self))[index]  # beyond the end an IndexError, which ends an iteration
            images, labels = self.batch(torch.tensor([place]))
            return images[0], torch.tensor(-1) if labels is None else labels[0]
        rows = torch.as_tensor(index)
        if rows.dtype == torch.bool and len(rows) != len(self):
            raise IndexError(f"a mask of {len(rows)} images for {len(self)}")
        return self.batch(rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows.long())

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        """What a DataLoader collates to a batch, read together."""
        images, labels = self[indices]
        return [*zip(images, torch.full((len(images),), -1) if labels is None else labels, strict=True)]


@dataclass(repr=False)
class ImageDataset(Indexed):
    """Images in memory, as one tensor."""

    name: str
    images: Tensor  # uint8 or uint16 (N, C, H, W)
    labels: Tensor | None
    classes: list[str]
    skipped: list[str] = field(default_factory=list)  # unreadable images that were left out
    names: Sequence[str] = ()  # of each image: its path in the folder, or its row
    of_files: bool = False
    description: list[str] = field(default_factory=list)  # what was found, for the user to read
    split: str = "all"  # of the data that they were cut from
    groups: Sequence[str] = ()  # of each image, if it has one
    prefixes: Sequence[str] = ()

    def __post_init__(self):
        channels, height, width = self.images.shape[1:]
        self.image_shape = channels, height, width
        self.depth = "uint8" if self.images.dtype == torch.uint8 else "uint16"
        if not len(self.names):
            self.names = [str(row) for row in range(len(self.images))]

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel, of pixels in [0, 1]."""
        return channel_statistics(self.images)

    @property
    def fingerprint(self) -> str:
        """How many images, and the digest of their pixels, labels and classes."""
        total = hashlib.sha256(self.images.cpu().numpy().reshape(-1).view(np.uint8).data)
        total.update(label_bytes(self.labels, self.classes))
        return f"{len(self)} images, {total.hexdigest()[:16]}"

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images and labels at `indices`, on the dataset's device."""
        indices = to_device(indices, self.images.device)
        return pick_pixels(self.images, indices), None if self.labels is None else self.labels[indices]

    def subset(self, indices: Tensor) -> "ImageDataset":
        """The dataset of these images only, by rows or a bool mask."""
        rows = torch.arange(len(self))[torch.as_tensor(indices).cpu()]
        images, labels = self.batch(rows)
        names, groups = ([each[row] for row in rows.tolist()] if each else () for each in (self.names, self.groups))
        return replace(self, images=images, labels=labels, names=names, groups=groups)

    def to(self, device: torch.device | str) -> "ImageDataset":
        """The same dataset with its tensors on `device`."""
        return replace(
            self, images=self.images.to(device), labels=None if self.labels is None else self.labels.to(device)
        )


@dataclass(repr=False)
class StreamedDataset(Indexed):
    """Images where they are stored, read when they are asked for."""

    source: Source
    rows: np.ndarray  # int64 (N,): which of the source's
    labels: Tensor | None
    classes: list[str]
    skip_unreadable: bool = False
    skipped: list[str] = field(default_factory=list)  # unreadable images that others stood in for, so far
    description: list[str] = field(default_factory=list)  # what was found, for the user to read
    split: str = "all"  # of the data that they were cut from

    def __post_init__(self):
        self.name, self.prefixes = self.source.name, self.source.prefixes
        self.image_shape, self.depth = self.source.image_shape, self.source.depth
        self.of_files = isinstance(self.source, FilesSource)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def names(self) -> Sequence[str]:
        """Of each image: its path in the folder, or its row."""
        return self.source.names(self.rows)

    @property
    def groups(self) -> Sequence[str]:
        """Of each image, if it has one."""
        return [self.source.groups[row] for row in self.rows] if self.source.groups else ()

    @cached_property
    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel, of pixels in [0, 1], from 2,000 images at most."""
        some = torch.linspace(0, len(self) - 1, min(len(self), STATISTICS_OF)).long()
        return channel_statistics(torch.cat([self[part][0] for part in some.split(256)]))

    @cached_property
    def fingerprint(self) -> str:
        """How many images, and the digest of their names, sizes in bytes and labels."""
        labels, known = self.labels, self.source.labels
        if labels is None and known is not None and (known[self.rows] < 0).all():  # which other images of the data have
            labels = torch.from_numpy(known[self.rows])
        return f"{len(self)} images, {self.source.digest(self.rows, label_bytes(labels, self.classes))[:16]}"

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        """Read the images at `indices`, with their labels.

        With `skip_unreadable` the next readable image of the same class stands in for one that is not; else
        UnreadableImage names it.
        """
        places = indices.cpu().numpy()
        rows = self.rows[places]
        labels = None if self.labels is None else self.labels[indices.cpu()]
        if not len(rows):  # which not every source can stack
            return torch.empty(0, *self.image_shape, dtype=getattr(torch, self.depth)), labels
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

    def find_readable(self) -> Tensor:
        """Which images can be read, bool (N,): all are read once to see it. The others are noted as skipped."""

        def look(rows: np.ndarray) -> tuple[list[bool], list[str]]:  # without keeping the images
            images, bad = self.source.read_good(rows)
            return [image is not None for image in images], bad

        readable, bad = self.map_rows(look, desc="looking for unreadable images")
        self.note_skipped(bad)
        if not any(readable):
            raise InputError(f"data {self.name} has no readable image")
        return torch.tensor(readable)

    def map_rows(
        self, read: Callable[[np.ndarray], tuple[list, list[str]]], *, desc: str, wanted: bool = True
    ) -> tuple[list, list[str]]:
        """What `read` gives of all rows, some at a time, by several threads: two lists of each part, joined."""
        found = map_threads(read, np.array_split(self.rows, len(self) // 64 + 1), desc=desc, wanted=wanted)
        return [each for some, _ in found for each in some], [name for _, names in found for name in names]

    def note_skipped(self, names: Iterable[str]) -> None:
        """Add to the list of what could not be read."""
        self.skipped += [name for name in names if name not in self.skipped]

    def subset(self, indices: Tensor) -> "StreamedDataset":
        """The dataset of these images only, by rows or a bool mask."""
        rows = torch.as_tensor(indices).cpu()
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, rows=self.rows[rows.numpy()], labels=labels)

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
            try:
                self.source.read(self.rows[:1])
            except UnreadableImage as error:  # all may have other channels than are wanted: then it says what to give
                raise InputError(f"data {self.name} has no readable image: {error}") from None
        kept = self.subset(torch.tensor(good)) if bad else self
        pixels = torch.empty(len(good), *self.image_shape, dtype=getattr(torch, self.depth))
        for place, row in enumerate(good):  # torch.stack would have all of them in memory twice
            image, images[row] = images[row], None
            assert image is not None and image.shape == self.image_shape
            pixels[place] = image
        return ImageDataset(
            self.name, pixels, kept.labels, self.classes, bad, names=kept.names, of_files=self.of_files,
            description=self.description, split=self.split, groups=kept.groups, prefixes=self.prefixes,
        )  # fmt: skip

    def read_all(self) -> tuple[list[Tensor | None], list[str]]:
        """All images, None for an unreadable one, and the names of those."""
        if isinstance(self.source, ArraySource):
            return [
                image for part in np.array_split(self.rows, len(self) // 1000 + 1) for image in self.source.read(part)
            ], []
        read = self.source.read_good if self.skip_unreadable else lambda rows: (list(self.source.read(rows)), [])
        return self.map_rows(read, desc="reading images", wanted=len(self) >= 5000)


Dataset = ImageDataset | StreamedDataset


def channel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel of pixels (N, C, H, W) scaled to [0, 1], exact by counting.

    >>> channel_statistics(torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2))
    ([0.5], [0.5])
    """
    levels = LEVELS[images.dtype] + 1
    values = torch.arange(levels, dtype=torch.float64) / (levels - 1)
    mean, std = [], []
    for channel in images.transpose(0, 1):
        flat = channel.flatten().cpu()
        ratio = torch.bincount(flat if levels == 256 else flat.int(), minlength=levels) / channel.numel()
        mean.append(float(ratio.double() @ values))
        std.append(max(float(ratio.double() @ (values - mean[-1]).square()) ** 0.5, 1e-6))
    return [round(m, 6) for m in mean], [round(s, 6) for s in std]


def label_bytes(labels: Tensor | None, classes: Sequence[str]) -> bytes:
    """What a fingerprint knows of labels: their numbers, and what these mean."""
    if labels is None:
        return b""
    return labels.cpu().numpy().tobytes() + "\n".join(classes).encode("utf-8", "surrogateescape")


def has_several(dataset: Dataset) -> bool:
    """Whether an image may have several labels, or none."""
    return dataset.labels is not None and dataset.labels.ndim == 2


def with_label(dataset: Dataset) -> Dataset:
    """Those of the images that have a label, all if an image may have several; the dataset itself if none lacks one."""
    if dataset.labels is None or dataset.labels.ndim == 2 or (dataset.labels >= 0).all():
        return dataset
    return dataset.subset((dataset.labels >= 0).nonzero()[:, 0])


def with_classes(dataset: Dataset, classes: list[str]) -> Dataset:
    """The same images, with their labels numbered as in `classes`; a class that is not among these is no label."""
    assert dataset.labels is not None
    labels, numbers = dataset.labels.cpu(), [classes.index(name) if name in classes else -1 for name in dataset.classes]
    if labels.ndim == 1:
        renumbered = torch.tensor([*numbers, -1])[labels]  # and -1 stays
    else:
        renumbered = labels.new_zeros(len(labels), len(classes))
        for old, new in enumerate(numbers):
            if new >= 0:
                renumbered[:, new] = labels[:, old]
    return replace(dataset, labels=renumbered.to(dataset.labels.device), classes=classes)


def has_colour(dataset: Dataset) -> bool:
    """Whether operations on colours are defined for images: grey or RGB ones of 8 bits."""
    return dataset.image_shape[0] in (1, 3) and dataset.depth == "uint8"


def no_colour(setting: str, dataset: Dataset) -> InputError:
    return InputError(
        f"{setting} is for grey and RGB images of 8 bits, and data {dataset.name} has {dataset.image_shape[0]} "
        f"channels of {dataset.depth}: leave it out"
    )


def require_channels(dataset: Dataset, in_channels: int) -> None:
    """Raises InputError unless the dataset's images have the channels that a model wants."""
    if dataset.image_shape[0] != in_channels:
        raise InputError(
            f"data set {dataset.name} has {dataset.image_shape[0]} channels, the weights want {in_channels}"
        )
