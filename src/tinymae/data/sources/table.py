"""A table of image paths: CSV, TSV or Parquet."""

import contextlib
import glob
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pyarrow as pa

from ...errors import InputError, first_line, list_some, refusal
from .columns import LABEL_COLUMNS, PATH_COLUMNS, are_blank, choose_column, strings, take_columns
from .files import FilesSource, common_folder, is_image_file, is_image_name, with_slashes
from .source import Reading, Source

TABLES = (".csv", ".tsv", ".parquet")


def open_table(path: Path, reading: Reading) -> FilesSource:
    """Images whose paths, relative to the table's folder or absolute, stand in a column of a table.

    A row whose label is empty has none, and an empty row is left out. With `skip_unreadable`, a missing file is an
    unreadable image. Raises InputError: no such file or column, an empty path, a split of another name, an image in two
    splits or with two labels.
    """
    whole, where = read_table(path), f"table {path}"
    names = whole.column_names
    reading = reading.of_columns(names)
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{where} has more than one column {list_some(twice)}: rename the others")
    column = choose_column(names, where, reading.image_column, PATH_COLUMNS, "image")
    label = choose_column(names, where, reading.label_column, LABEL_COLUMNS, "label")
    if column is None:
        raise InputError(
            f"{where} has no column {' or '.join(PATH_COLUMNS[:3])}, only {', '.join(names)}: give image_column"
            + ("" if label else ", and label_column if one holds labels")
        )
    table, lines = without_empty_rows(whole)
    paths = [normal_path(path) for path in strings(table.column(column), column, f"{where}, line", lines)]
    if not paths:
        raise InputError(f"{where} has no rows")
    found = [find_file(path.parent, name) for name in paths]
    missing = [row for row, name in enumerate(found) if name is None]
    if missing and (len(missing) == len(paths) or not reading.skip_unreadable):
        raise no_such_image(f"{where}, line {lines[missing[0]]}", path.parent, paths[missing[0]])
    respelled = [name for name, own in zip(found, paths, strict=True) if name not in (own, None)]
    paths = [name or own for name, own in zip(found, paths, strict=True)]
    source = FilesSource(path.stem, "table", path.parent, paths, reading)
    if empty := len(whole) - len(table):
        source.notes.append(f"rows: {empty:,} are empty, and are left out")
    if respelled:
        source.notes.append(
            f"paths: {len(respelled):,} are read with other slashes or in another Unicode normal form ({respelled[0]})"
        )
    source.prefixes = find_prefixes(path.parent, paths)
    if source.prefixes[1:]:
        source.notes.append(f"paths: absolute; what follows {source.prefixes[1]} decides on an image's split")
    values = read_label_cells(source, path, table.column(label), label, lines) if label else None
    take_columns(
        source, names, table.column, reading, where=where, row=f"{where}, line", numbers=lines, image=column,
        label=label, labels=values,
    )  # fmt: skip
    if source.labels is not None:
        require_one_label(paths, source, where, lines)
    require_one_split(paths, source.splits, where)
    return source


def find_file(folder: Path, name: str) -> str | None:
    """The path of a file as it is there: as given, or as Windows and macOS write it; None where there is none."""
    for slashed in (name, name.replace("\\", "/")):
        for spelled in (slashed, normalize("NFC", slashed), normalize("NFD", slashed)):
            if os.path.isfile(folder / spelled):
                return normal_path(spelled)
    return None


def normal_path(path: str) -> str:
    """A path without what can be left out.

    >>> normal_path("./cat//1.png")
    'cat/1.png'
    """
    return with_slashes(os.path.normpath(path))


def find_prefixes(folder: Path, paths: Sequence[str]) -> list[str]:
    """What absolute paths begin with that says where the data lie: the table's folder, or else the one that all are in.

    >>> find_prefixes(Path("/data"), ["photos/1.png", "/disk/cat/1.png", "/disk/dog/1.png", "/data/photos/2.png"])
    ['/data/', '/disk/']
    """
    own = with_slashes(os.path.join(os.path.abspath(folder), ""))
    absolute = [path for path in paths if os.path.isabs(path)]
    elsewhere = [path for path in absolute if not path.startswith(own)]
    return [own] * bool(absolute) + ([common_folder(elsewhere)] if elsewhere else [])


def no_such_image(where: str, folder: Path, name: str) -> InputError:
    """Of an image that a table in a folder names, and that is not there."""
    image, remedy = folder / name, "paths are relative to the table's folder; correct them"
    if re.match(r"[A-Za-z]:[\\/]", name):
        image, remedy = Path(name), "the table has paths of another computer; give paths relative to the table's folder"
    elif there := find_alike(image) or ("/" not in name and find_below(folder, image)):
        remedy = f"{there} does; correct the table's paths"
    return InputError(
        f"{where}: image {image} does not exist: {remedy}, or leave out what is missing by --skip-unreadable"
    )


def find_alike(image: Path) -> str | None:
    """The name of a file beside one that is not there, which differs in case or extension alone."""
    with contextlib.suppress(OSError):  # nor is the folder
        own, names = image.name.casefold(), sorted(os.listdir(image.parent))
        in_case = [name for name in names if name.casefold() == own]
        stems = [name for name in names if is_image_name(name) and Path(name).stem.casefold() == image.stem.casefold()]
        return next(iter(in_case + stems), None)
    return None


def find_below(folder: Path, image: Path) -> str | None:
    """The path of an image file of this name, whatever its extension, in a folder of this one."""
    stem = image.stem if is_image_name(image.name) else image.name
    found = sorted(path for path in folder.glob(f"*/{glob.escape(stem)}.*") if is_image_file(path))
    return found[0].relative_to(folder).as_posix() if found else None


def require_one_label(paths: Sequence[str], source: FilesSource, where: str, lines: np.ndarray) -> None:
    """Raises InputError for an image that has several rows, and other labels in them; a row without is no other."""
    assert source.labels is not None
    first_of: dict[str, int] = {}
    labelled: np.ndarray = source.labels >= 0 if source.labels.ndim == 1 else source.labels.max(axis=1) > 0
    for row in np.flatnonzero(labelled).tolist():
        first = first_of.setdefault(paths[row], row)
        if first != row and (source.labels[first] != source.labels[row]).any():
            raise InputError(
                f"{where}, lines {lines[first]} and {lines[row]}: image {paths[row]} has one label here and another "
                "there: keep one of the rows, or write several labels into one cell, as in cat;dog"
            )
    if doubled := len(paths) - len({*paths}):
        source.notes.append(f"rows: {doubled:,} are of images that have another row")


def require_one_split(paths: Sequence[str], splits: dict[str, np.ndarray], where: str) -> None:
    """Raises InputError for an image that is in two splits."""
    seen: dict[str, str] = {}
    for split, rows in splits.items():
        for row in rows:
            other = seen.setdefault(paths[row], split)
            if other != split:
                raise InputError(f"{where}: image {paths[row]} is in {other} and in {split}: keep one of its rows")


def read_table(path: Path, **conversion: Any) -> pa.Table:
    """The whole table, a CSV file by pyarrow's ConvertOptions. Raises InputError for a file that is none."""
    try:
        if path.suffix.lower() == ".parquet":
            from pyarrow import parquet

            return parquet.read_table(path)
        from pyarrow import csv

        content = path.read_bytes()
        header = re.split(r"[\r\n]", content.decode("utf-8"), maxsplit=1)[0]
        known = "\t,;" if path.suffix.lower() == ".tsv" else ",;\t"  # the first of them that are as frequent
        options = csv.ParseOptions(delimiter=max(known, key=header.count))
        conversions = csv.ConvertOptions(**conversion)
        return csv.read_csv(pa.BufferReader(content), parse_options=options, convert_options=conversions)
    except UnicodeDecodeError as error:
        raise InputError(f"table {path} is not UTF-8 (byte {error.start}): save it as CSV UTF-8") from None
    except (pa.ArrowException, OSError) as error:
        raise refusal(error, f"table {path} cannot be read: {first_line(error)}") from None


def read_label_cells(
    source: Source, path: Path, values: pa.ChunkedArray, column: str, lines: np.ndarray
) -> pa.ChunkedArray:
    """A table's labels, with no value where a CSV file says NA, nan, NULL or the like, which the source notes.

    R and pandas write a missing label so. In quotes it is a name, which `values`, as they were read, do not show.
    """
    if path.suffix.lower() == ".parquet":  # where a missing value is none
        return values
    is_text = pa.types.is_string(values.type)  # what else they may be has no value there
    again = read_table(
        path, include_columns=[column], column_types={column: pa.string()}, strings_can_be_null=is_text,
        quoted_strings_can_be_null=False,
    ).column(column).take(lines - 2)  # fmt: skip
    written, values = (values, again) if is_text else (again, values)
    if (missing := values.is_null().to_numpy() & ~are_blank(written)).any():
        said = list_some(sorted(written.filter(missing).unique().to_pylist()))
        quotes = "; a class of that name needs quotes" * is_text
        source.notes.append(f"labels: {said}, {missing.sum():,} in all, taken for no label{quotes}")
    return values


def without_empty_rows(table: pa.Table) -> tuple[pa.Table, np.ndarray]:
    """The rows with a value in any cell, and the lines that they stand in: spreadsheets write empty rows below them."""
    empty = np.logical_and.reduce([are_blank(values) for values in table.columns])
    lines = np.arange(2, len(table) + 2)
    return (table.filter(pa.array(~empty)), lines[~empty]) if empty.any() else (table, lines)
