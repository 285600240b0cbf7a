"""Which reader a user's data need."""

import difflib
import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ...errors import InputError
from ...files import closest_path
from ...tensors import pair
from .arrays import ARRAYS, open_array, open_array_file
from .arrow import HUB, ArrowSource, is_loaded, open_arrow, split_parts
from .files import is_image_file, open_folders, open_images
from .named import NAMED, open_named
from .source import Reading, Source
from .table import TABLES, open_table, read_table
from .torch_dataset import TorchSource

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
COLUMNS = ("image_column", "label_column", "split_column", "group_column")


def open_source(data: Any, labels: Any, reading: Reading) -> Source:
    """The reader of a name, a path, an array, or a data set of torch or Hugging Face.

    A path with a * that is none itself stands for all that it matches. Raises InputError for what is none of these, or
    cannot be read, and for columns of data that have none.
    """
    data = expand(data)
    given = next((name for name in COLUMNS if getattr(reading, name) is not None), None)
    named = all(isinstance(each, str | Path) for each in (data if isinstance(data, list | tuple) else [data]))
    what = data if named else type(data).__name__
    if given and not has_columns(data):
        raise InputError(
            f"{given} {getattr(reading, given)} is of tables, and data {what} has no columns: leave it out"
        )
    if isinstance(data, Tensor | np.ndarray):
        return open_array(data, labels, reading)
    if labels is not None:
        raise InputError(f"labels go with a tensor or an array of images, not with data {what}")
    if isinstance(data, list | tuple) and len(data) == 1:
        return open_source(data[0], labels, reading)
    if isinstance(data, list | tuple) and data and all(isinstance(each, str | Path) for each in data):
        if all(str(each).endswith(".parquet") for each in data):
            return open_arrow(list(map(str, data)), reading)
        paths = list(map(Path, data))
        return open_images(paths, reading) if all(map(is_image_file, paths)) else open_folders(paths, reading)
    if is_loaded(data):
        return ArrowSource(type(data).__name__, split_parts(data.with_format(None)), reading)
    if not isinstance(data, str | Path):
        if isinstance(data, Sequence | Mapping) or not hasattr(data, "__getitem__"):
            open_array(data, None, reading)  # says what to give
        channels, *size = getattr(data, "image_shape", reading.shape)  # a streamed data set of ours has its own
        shape = channels, *pair(reading.image_size or size)
        return TorchSource(type(data).__name__, [data], shape=shape, reading=reading)
    name = str(data)
    if name == "digits" or name in NAMED:
        return open_named(name, reading)
    if is_arrow(name):
        return open_arrow([name], reading)
    path = Path(data)
    if path.suffix.lower() in ARRAYS and path.is_file():
        return open_array_file(path, reading)
    if path.suffix.lower() in TABLES and path.is_file():
        return open_table(path, reading)
    if is_image_file(path):
        return open_images([path], reading)
    if not path.is_dir():
        raise no_such_data(name)
    return open_folders([path], reading)


def expand(data: Any) -> Any:
    """Data with the paths that a pattern such as "photos/*/" matches in its place: a shell leaves a quoted one alone.

    Raises InputError for a pattern that matches nothing.
    """
    if isinstance(data, list | tuple) and any(map(is_pattern, data)):
        return [path for each in data for path in (expand(each) if is_pattern(each) else [each])]
    if not is_pattern(data):
        return data
    if not (found := sorted(glob.glob(str(data), recursive=True))):
        raise InputError(f"data {data} matches no folder and no file: correct it, or give the paths themselves")
    return found


def is_pattern(data: Any) -> bool:
    """Whether data are a path with a *, and none that there is."""
    return isinstance(data, str | Path) and "*" in str(data) and not Path(data).exists()


def no_such_data(name: str) -> InputError:
    """Of a name that is no data set's, and no path to data."""
    if name.lower().endswith(ARCHIVES) and Path(name).is_file():
        return InputError(f"data {name} is an archive: unpack it, and give the folder")
    kinds = f"a folder, image files, a table ({', '.join(TABLES)}), an array file ({', '.join(ARRAYS)})"
    if Path(name).exists():
        return InputError(f"data {name} is of no known kind: give {kinds}")
    close = difflib.get_close_matches(name, ["digits", *NAMED], n=1)
    hint = f" (did you mean {close[0]}?)" if close else closest_path(name)
    return InputError(f"data {name} does not exist{hint}: give {kinds}, {HUB}owner/name, or a name such as cifar10")


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
