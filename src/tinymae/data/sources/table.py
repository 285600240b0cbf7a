"""A table of image paths: CSV, TSV or Parquet."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from ...errors import InputError, first_line, refusal
from ..images import Range
from .arrays import number_labels
from .files import SPLIT_NAMES, FilesSource

TABLES = (".csv", ".tsv", ".parquet")
# What a column may be called, unless it is named by a flag.
PATH_COLUMNS = ("path", "file", "filename", "file_name", "image_path", "image")
LABEL_COLUMNS = ("label", "class", "target", "category")
SPLIT_COLUMNS = ("split", "set", "subset", "partition")
SEPARATOR = ";"  # of the classes of an image that has several


def open_table(
    path: Path, *, shape: tuple[int, int, int], pixel_range: Range | None = None, image_column: str | None = None,
    label_column: str | None = None, split_column: str | None = None,
) -> FilesSource:  # fmt: skip
    """Images whose paths, relative to the table's folder or absolute, stand in a column of a table.

    A row whose label is empty has none. Raises InputError: no such file or column, an empty path, a split of another
    name.
    """
    table = read_table(path)
    column = choose_column(table, path, image_column, PATH_COLUMNS, "image")
    if column is None:
        raise InputError(
            f"table {path} has no column {' or '.join(PATH_COLUMNS[:3])}, only {', '.join(table.column_names)}: "
            "give --image-column"
        )
    paths = strings(table, column, path)
    if not paths:
        raise InputError(f"table {path} has no rows")
    for row, name in enumerate(paths, start=2):  # as an editor counts the lines of a file with a header
        if not (path.parent / name).is_file():
            raise InputError(f"table {path}, line {row}: image {path.parent / name} does not exist")
    source = FilesSource(path.stem, "table", path.parent, paths, shape=shape, pixel_range=pixel_range)
    if label := choose_column(table, path, label_column, LABEL_COLUMNS, "label"):
        source.classes, source.labels = settle_labels(label_values(table.column(label)))
    if split := choose_column(table, path, split_column, SPLIT_COLUMNS, "split"):
        source.splits = read_splits(strings(table, split, path), path, split)
    return source


def read_table(path: Path) -> pa.Table:
    """The whole table. Raises InputError for a file that is none."""
    try:
        if path.suffix.lower() == ".parquet":
            from pyarrow import parquet

            return parquet.read_table(path)
        from pyarrow import csv

        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        return csv.read_csv(path, parse_options=csv.ParseOptions(delimiter=delimiter))
    except (pa.ArrowException, OSError) as error:
        raise refusal(error, f"table {path} cannot be read: {first_line(error)}") from None


def choose_column(table: pa.Table, path: Path, given: str | None, known: Sequence[str], what: str) -> str | None:
    """The column of this name, or the first of the known ones that the table has."""
    if given is not None and given not in table.column_names:
        raise InputError(f"{what}_column {given} is none of table {path}'s columns, {', '.join(table.column_names)}")
    return given or next((name for name in known if name in table.column_names), None)


def strings(table: pa.Table, column: str, path: Path) -> list[str]:
    """A column as strings. Raises InputError for a row without a value."""
    values = table.column(column)
    if values.null_count:
        row = values.is_null().to_numpy().argmax()
        raise InputError(f"table {path}, line {row + 2}: column {column} is empty: fill it in, or leave the row out")
    return values.cast(pa.large_string()).to_pylist()


def label_values(column: pa.ChunkedArray) -> np.ndarray:
    """Labels (N,) as a column has them, numbers from 0 or names; -1 or "" where a cell is empty.

    >>> label_values(pa.chunked_array([[3, None]])), label_values(pa.chunked_array([["cat", None]]))
    (array([ 3, -1]), array(['cat', ''], dtype='<U3'))
    """
    if pa.types.is_integer(column.type):
        return column.fill_null(-1).to_numpy()
    return np.array(column.cast(pa.large_string()).fill_null("").to_pylist())


def settle_labels(labels: np.ndarray) -> tuple[list[str], np.ndarray | None]:
    """The classes, and each row's number (N,); or if a row names several, "cat;dog", which it has: uint8 (N, classes).

    >>> settle_labels(np.array(["dog", "cat; dog", ""]))[1].tolist()
    [[0, 1], [1, 1], [0, 0]]
    """
    if labels.dtype.kind == "U" and any(SEPARATOR in label for label in labels):
        from sklearn.preprocessing import MultiLabelBinarizer

        binarizer = MultiLabelBinarizer()
        named = ([name.strip() for name in label.split(SEPARATOR) if name.strip()] for label in labels)
        several = binarizer.fit_transform(named).astype(np.uint8)
        return binarizer.classes_.tolist(), several
    return number_labels(labels, len(labels))


def read_splits(names: list[str], path: Path, column: str) -> dict[str, np.ndarray]:
    """The rows of each split that a column names."""
    for row, name in enumerate(names, start=2):
        if name.lower() not in SPLIT_NAMES:
            raise InputError(f"table {path}, line {row}: {column} {name!r} is none of train, val and test")
    parts = np.array([SPLIT_NAMES[name.lower()] for name in names])
    return {split: np.flatnonzero(parts == split) for split in ("train", "val", "test") if (parts == split).any()}
