"""Which reader a user's data need."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ...errors import InputError
from ...tensors import pair
from ..bands import MAX_CHANNELS, Range
from .arrays import ARRAYS, open_array, open_array_file
from .arrow import HUB, ArrowSource, is_loaded, open_arrow, split_parts
from .files import is_image_file, open_folders, open_images
from .named import NAMED, open_named
from .source import Source
from .table import TABLES, open_table, read_table
from .torch_dataset import TorchSource

COLUMNS = ("image_column", "label_column", "split_column", "group_column")
FOLDER_SIZE = 32  # pixels, unless image_size says otherwise


@dataclass(frozen=True)
class Reading:
    """How data are read, as users say it."""

    data_dir: str | Path = "data"
    image_size: int | tuple[int, int] | None = None
    channels: int = 3
    pixel_range: Range | None = None
    image_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    group_column: str | None = None
    skip_unreadable: bool = False

    def __post_init__(self):
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise InputError(f"in_channels {self.channels} is not within 1 and {MAX_CHANNELS}")
        if self.pixel_range is not None and not self.pixel_range[0] < self.pixel_range[1]:
            low, high = self.pixel_range
            raise InputError(f"pixel_range {low:g} {high:g}: the first must be the lower one")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of images that have no size of their own."""
        return self.channels, *pair(FOLDER_SIZE if self.image_size is None else self.image_size)

    @property
    def columns(self) -> dict[str, Any]:
        """What readers of tables want to know."""
        return {
            "shape": self.shape, "pixel_range": self.pixel_range, "image_column": self.image_column,
            "label_column": self.label_column, "split_column": self.split_column, "group_column": self.group_column,
        }  # fmt: skip


def open_source(data: Any, labels: Any, reading: Reading) -> Source:
    """The reader of a name, a path, an array, or a data set of torch or Hugging Face.

    Raises InputError for what is none of them, or cannot be read, and for columns of data that have none.
    """
    given = next((name for name in COLUMNS if getattr(reading, name) is not None), None)
    what = data if isinstance(data, str | Path | list | tuple) else type(data).__name__
    if given and not has_columns(data):
        raise InputError(
            f"{given} {getattr(reading, given)} is of tables, and data {what} has no columns: leave it out"
        )
    sized: dict[str, Any] = {"image_size": reading.image_size, "pixel_range": reading.pixel_range}
    if isinstance(data, Tensor | np.ndarray):
        return open_array(data, labels, **sized)
    if labels is not None:
        raise InputError(f"labels go with a tensor or an array of images; data {what} has its own")
    if isinstance(data, list | tuple) and len(data) == 1:
        return open_source(data[0], labels, reading)
    shaped: dict[str, Any] = {"shape": reading.shape, "pixel_range": reading.pixel_range}
    if isinstance(data, list | tuple) and data and all(isinstance(each, str | Path) for each in data):
        if all(str(each).endswith(".parquet") for each in data):
            return open_arrow(list(map(str, data)), **reading.columns)
        paths = list(map(Path, data))
        return open_images(paths, **shaped) if all(map(is_image_file, paths)) else open_folders(paths, **shaped)
    if is_loaded(data):
        return ArrowSource(type(data).__name__, split_parts(data.with_format(None)), **reading.columns)
    if not isinstance(data, str | Path):
        if isinstance(data, Sequence) or not hasattr(data, "__getitem__"):
            open_array(data, None)  # says what to give
        channels, *size = getattr(data, "image_shape", reading.shape)  # a streamed data set of ours has its own
        return TorchSource(
            type(data).__name__, [data], image_size=reading.image_size or tuple(size), channels=channels,
            pixel_range=reading.pixel_range,
        )  # fmt: skip
    name = str(data)
    if name == "digits" or name in NAMED:
        return open_named(name, Path(reading.data_dir), channels=reading.channels, **sized)
    if is_arrow(name):
        return open_arrow([name], **reading.columns)
    path = Path(data)
    if path.suffix.lower() in ARRAYS and path.is_file():
        return open_array_file(path, **sized)
    if path.suffix.lower() in TABLES and path.is_file():
        return open_table(path, skip_unreadable=reading.skip_unreadable, **reading.columns)
    if is_image_file(path):
        return open_images([path], **shaped)
    if not path.is_dir():
        raise no_such_data(name)
    return open_folders([path], **shaped)


def no_such_data(name: str) -> InputError:
    """Of a name that is no data set's, and no path to data."""
    known = ["digits", *NAMED]
    close = difflib.get_close_matches(name, known, n=1)
    wrong = "is of no known kind" if Path(name).exists() else "does not exist"
    return InputError(
        f"data {name} {wrong}{f' (did you mean {close[0]}?)' if close else ''}: give a folder, image files, a table "
        f"({', '.join(TABLES)}), an array file ({', '.join(ARRAYS)}), {HUB}owner/name, or one of {', '.join(known)}"
    )


def has_columns(data: Any) -> bool:
    """Whether data are a table, of paths or of images."""
    if isinstance(data, list | tuple):
        return bool(data) and all(map(has_columns, data))
    if is_loaded(data):
        return True
    return isinstance(data, str | Path) and (Path(data).suffix.lower() in TABLES or is_arrow(str(data)))


def is_arrow(name: str) -> bool:
    """Whether a name means encoded images in Arrow or Parquet."""
    path = Path(name)
    if name.startswith(HUB):
        return True
    if path.is_dir():
        markers = ("state.json", "dataset_dict.json")
        return any((path / marker).is_file() for marker in markers) or any(path.glob("*.parquet"))
    if path.suffix.lower() != ".parquet" or not path.is_file():
        return False
    kinds = [str(field.type) for field in read_schema(path)]
    return any("binary" in kind for kind in kinds)


def read_schema(path: Path) -> Any:
    """The columns of a Parquet file, without its rows. Raises InputError for a file that is none."""
    from pyarrow import ArrowException, parquet

    try:
        return parquet.read_schema(path)
    except (ArrowException, OSError):
        return read_table(path).schema  # which says what is wrong
