"""What every reader of images is."""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from torch import Tensor

from ...errors import InputError
from ...tensors import pair
from ..bands import MAX_CHANNELS, Range
from ..fit import Fit
from ..images import Depth
from ..splits import hash_names, hash_rows, without_prefix
from ..unreadable import UnreadableImage

FOLDER_SIZE = 32  # pixels, unless image_size says otherwise


@dataclass(frozen=True)
class Reading:
    """How data are read, as users say it."""

    data_dir: str | Path = "data"
    image_size: int | tuple[int, int] | None = None
    channels: int = 3
    pixel_range: Range | None = None
    fit: Fit = "crop"
    image_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    group_column: str | None = None
    skip_unreadable: bool = False
    columns_elsewhere: bool = False  # whether all but the image column are of other data first, which these may lack

    def __post_init__(self):
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise InputError(f"in_channels {self.channels} is not within 1 and {MAX_CHANNELS}")
        require_size(self.image_size)
        if self.pixel_range is not None:
            low, high = self.pixel_range
            if not low < high:
                raise InputError(f"pixel_range {low:g} {high:g}: the first must be the lower one")
            if math.isinf(low) or math.isinf(high):
                raise InputError(f"pixel_range {low:g} {high:g}: both must be finite, the values of black and white")
        if self.fit not in get_args(Fit):
            raise InputError(f"fit {self.fit!r} is none of {' and '.join(get_args(Fit))}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of images that have no size of their own."""
        return self.channels, *pair(FOLDER_SIZE if self.image_size is None else self.image_size)

    def of_columns(self, columns: Sequence[str]) -> "Reading":
        """The same for data with these columns: without those that they lack, if they may."""
        lower = {column.strip().lower() for column in columns}
        names = ("label_column", "split_column", "group_column") if self.columns_elsewhere else ()
        lacking: dict[str, Any] = {
            name: None for name in names if (getattr(self, name) or "").strip().lower() not in lower
        }
        return replace(self, **lacking)


def require_size(image_size: Any) -> None:
    """Raises InputError unless a size is one number of pixels or two, or None."""
    sides = image_size if isinstance(image_size, tuple | list) else [image_size] * 2
    whole = all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides)
    if image_size is not None and not (whole and len(sides) == 2):
        raise InputError(f"image_size {image_size!r}: give a whole number of pixels from 1, or two, (height, width)")


class Source:
    """All images of one data set, where they are stored. A subclass reads one kind of storage."""

    kind = ""  # of storage, in a word
    image_shape: tuple[int, int, int]  # (channels, height, width) of what `read` gives
    depth: Depth = "uint8"  # of the pixels that `read` gives
    shown = ""  # an image's size and depth as stored, for the user to read
    # int64 (N,), numbers of `classes`, -1 of an image without a label, or None if there are none at all. Where an image
    # may have several classes, uint8 (N, classes): 1 of those that it has.
    labels: np.ndarray | None = None
    # What to do for labels where there are none.
    label_remedy = "sort its images into class sub-folders, or give a table with a column of labels"
    given_names: Sequence[str] = ()  # each row's, where the images have been rows of other data
    groups: Sequence[str] = ()  # each row's, if the data say them: images of one group stay in one split
    prefixes: Sequence[str] = ()  # of names, which say where the data lie: what follows decides on an image's split

    def __init__(self, name: str):
        self.name = name  # of the data set
        self.classes: list[str] = []  # their names
        self.splits: dict[str, np.ndarray] = {}  # rows of those that the data have; others are held out of "train"
        self.held_out: dict[str, int] = {}  # sizes of what a fixed seed takes out of "train", by a published protocol
        self.left_out: list[str] = []  # what was found beside the images, and is not read
        self.notes: list[str] = []  # further lines for the user to read

    def __len__(self) -> int:
        raise NotImplementedError

    def read(self, rows: np.ndarray) -> Tensor:
        """Pixels (B, C, H, W), uint8 or uint16, of these rows. Raises UnreadableImage for a damaged one."""
        raise NotImplementedError

    def names(self, rows: np.ndarray) -> Sequence[str]:
        """Each row's own name: what distinguishes its image from all others."""
        return [self.given_names[row] if self.given_names else str(row) for row in rows.tolist()]

    def places(self, rows: np.ndarray) -> np.ndarray:
        """A number in [0, 1) of each row, which decides on its split: float64 (B,)."""
        if not self.given_names:
            return hash_rows(rows)
        names = [without_prefix(name, self.prefixes) for name in self.names(rows)]
        numbers = [name.removeprefix("row/") for name in names]  # the names of an Arrow table's rows, and of an array's
        return hash_rows(np.array(numbers, dtype=np.int64)) if all(map(str.isdecimal, numbers)) else hash_names(names)

    def digest(self, rows: np.ndarray, labels: bytes) -> str:
        """SHA-256 of what shows whether these rows still are the same images, with the same `labels`."""
        return hashlib.sha256("\n".join(self.names(rows)).encode("utf-8", "surrogateescape") + labels).hexdigest()

    def read_good(self, rows: np.ndarray) -> tuple[list[Tensor | None], list[str]]:
        """The images of these rows, None for an unreadable one, and the names of those."""
        try:
            return list(self.read(rows)), []
        except UnreadableImage:
            if len(rows) == 1:
                return [None], list(self.names(rows))
        found = [self.read_good(row) for row in np.split(rows, len(rows))]
        return [image for images, _ in found for image in images], [name for _, bad in found for name in bad]


def some_rows(count: int, limit: int) -> np.ndarray:
    """At most `limit` of `count` rows, evenly spaced."""
    return np.linspace(0, count - 1, min(count, limit)).round().astype(int)


class PartedSource(Source):
    """Rows of several parts, one after another.

    Args:
        parts: whatever has a length.
    """

    def __init__(self, name: str, parts: Iterable[Any]):
        super().__init__(name)
        self.parts = list(parts)
        self.starts = np.cumsum([0, *(len(part) for part in self.parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which part each row is in, and where there."""
        part = np.searchsorted(self.starts, rows, side="right") - 1
        return part, rows - self.starts[part]

    def split_by_parts(self, names: Iterable[str]) -> None:
        """Each part is the split of this name."""
        bounds = zip(names, self.starts[:-1], self.starts[1:], strict=True)
        self.splits = {name: np.arange(start, stop) for name, start, stop in bounds}
