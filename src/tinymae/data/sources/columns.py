"""The columns of a table, of paths or of images: which one holds what, and the splits and labels out of their cells."""

import contextlib
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from ...errors import InputError
from ..splits import rows_by_split, without_prefix
from .arrays import MOST_CLASSES, number_labels, number_values
from .files import SPLIT_NAMES
from .source import Reading, Source

# What a column may be called, unless it is named by a flag.
PATH_COLUMNS = ("path", "file", "filename", "file_name", "image_path", "image")
LABEL_COLUMNS = ("label", "class", "target", "category", "labels", "classes")
SPLIT_COLUMNS = ("split", "set", "subset", "partition")
SEPARATOR = ";"  # of the classes of an image that has several


def choose_column(
    columns: Sequence[str], where: str, given: str | None, known: Sequence[str], what: str
) -> str | None:  # fmt: skip
    """The column of the given name, or the first of the known ones that there is: exactly so, or else in another case,
    or with spaces around.

    >>> choose_column(["filename", " Label"], "table a.csv", None, ("label", "class"), "label")
    ' Label'
    """
    wanted = known if given is None else [given]
    lower = {column.strip().lower(): column for column in reversed(columns)}
    found = [name for name in wanted if name in columns]
    found += [lower[name.lower()] for name in wanted if name.lower() in lower]
    if given is not None and not found:
        raise InputError(f"{what}_column {given} is none of {where}'s columns, {', '.join(columns)}")
    return found[0] if found else None


def take_columns(
    source: Source, columns: Sequence[str], read: Callable[[str], pa.ChunkedArray], reading: Reading, *, where: str,
    row: str, numbers: Sequence[int] | np.ndarray, image: str, label: str | None, labels: pa.ChunkedArray | None,
    classes: Sequence[str] = (),
) -> None:  # fmt: skip
    """Let a source have the labels, splits and groups of a table's columns, and note which columns are used.

    Args:
        source: without splits, unless the data come with them.
        columns: their names.
        read: a name -> its column.
        where: the table, for messages; `row` and one of `numbers` are a row of it.
        image, label: columns that are chosen already.
        labels: the cells of the latter.
        classes: what numbers among these mean, where that is known.

    Raises InputError for a column that the user has named and that is not there, or does not hold such things.
    """
    label = take_labels(source, labels, label, columns, given=reading.label_column is not None, classes=classes)
    given = reading.split_column
    split = None if source.splits and given is None else choose_column(columns, where, given, SPLIT_COLUMNS, "split")
    if split and source.splits:
        raise InputError(f"split_column {given}: {where} has the splits {', '.join(source.splits)}; leave it out")
    if split and given is None and not names_splits(read(split)):
        source.notes.append(f"columns: {split} names none of train, val and test, and is left alone")
        split = None
    if split:
        source.splits = read_splits(read(split), split, row, numbers)
    if group := choose_column(columns, where, reading.group_column, (), "group"):
        source.groups = read_groups(source, read(group), group, row, numbers)
    source.notes.append(describe_columns(images=image, labels=label, splits=split, groups=group))


def describe_columns(**columns: str | None) -> str:
    """Which columns are used, for the user to read.

    >>> describe_columns(images="filename", labels="Label", splits=None)
    'columns: images from filename, labels from Label'
    """
    return "columns: " + ", ".join(f"{what} from {column}" for what, column in columns.items() if column)


def are_blank(values: pa.ChunkedArray) -> np.ndarray:
    """Which cells of a column are empty, or hold spaces alone: bool (N,)."""
    from pyarrow import compute

    blank = values.is_null()
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        blank = compute.or_kleene(blank, compute.equal(compute.utf8_trim_whitespace(values), ""))
    return blank.to_numpy()


def strings(values: pa.ChunkedArray, column: str, where: str, numbers: Sequence[int] | np.ndarray) -> list[str]:
    """A column as strings. Raises InputError for a row without a value, by its number."""
    if (blank := are_blank(values)).any():
        raise InputError(f"{where} {numbers[int(blank.argmax())]} has no {column}: fill it in, or leave the row out")
    try:
        return values.cast(pa.large_string()).to_pylist()
    except pa.ArrowException:
        wrong = f"column {column} is of type {values.type}"
        raise InputError(f"{where} {numbers[0]}: {wrong}: give one of strings") from None


def read_groups(
    source: Source, values: pa.ChunkedArray, column: str, where: str, numbers: Sequence[int] | np.ndarray
) -> list[str]:
    """The group of each row. One without a value is a group of its own, by its name; that is noted."""
    if not (blank := are_blank(values)).any():
        return strings(values, column, where, numbers)
    source.notes.append(f"groups: {blank.sum():,} rows have none, and each is one of its own")
    given = iter(strings(values.filter(pa.array(~blank)), column, where, np.asarray(numbers)[~blank]))
    names = source.names(np.arange(len(blank)))
    return [
        without_prefix(name, source.prefixes) if none else next(given) for name, none in zip(names, blank, strict=True)
    ]


def names_splits(column: pa.ChunkedArray) -> bool:
    """Whether any value is the name of a split: then the others have to be, too."""
    if not pa.types.is_string(column.type) and not pa.types.is_large_string(column.type):
        return False
    return any((name or "").strip().lower() in SPLIT_NAMES for name in column.unique().to_pylist())


def read_splits(
    values: pa.ChunkedArray, column: str, where: str, numbers: Sequence[int] | np.ndarray
) -> dict[str, np.ndarray]:
    """The rows of each split that a column names. Raises InputError for a row without a value, or of another name."""
    names = [name.strip() for name in strings(values, column, where, numbers)]
    for number, name in zip(numbers, names, strict=True):
        if name.lower() not in SPLIT_NAMES:
            raise InputError(f"{where} {number}: {column} {name!r} is none of train, val and test")
    return rows_by_split(np.array([SPLIT_NAMES[name.lower()] for name in names]))


# ---- labels


def take_labels(
    source: Source, values: pa.ChunkedArray | None, column: str | None, columns: Sequence[str], *, given: bool,
    classes: Sequence[str] = (),
) -> str | None:  # fmt: skip
    """Let a source have the labels of a column, if there is one: numbers of `classes`, where these are known.

    Returns the column, or None if it holds no labels. Raises InputError for such a column if the user has named it.
    """
    others = f"give --label-column, one of its columns {', '.join(columns)}"
    if values is None:
        source.label_remedy = others
        return None
    if can_be_labels(values.type):
        source.classes, source.labels = read_labels(values, classes)
        source.label_remedy = f"fill in its column {column}"
        return column
    wrong = f"column {column} is of type {values.type}, and labels are numbers from 0, names, or lists of them"
    if given:
        raise InputError(f"label_column {column}: {wrong}")
    source.notes.append(f"labels: none, as {wrong}")
    source.label_remedy = f"{wrong}; {others}"
    return None


def can_be_labels(kind: pa.DataType) -> bool:
    """Whether a column of this type may hold labels.

    >>> can_be_labels(pa.list_(pa.string())), can_be_labels(pa.struct([("name", pa.string())]))
    (True, False)
    """
    kind = kind.value_type if holds_lists(kind) else kind
    return not (pa.types.is_nested(kind) or "binary" in str(kind))


def holds_lists(kind: pa.DataType) -> bool:
    """Whether a cell of a column of this type holds a list."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def read_labels(column: pa.ChunkedArray, known: Sequence[str] = ()) -> tuple[list[str], np.ndarray | None]:
    """The classes, and each row's number (N,); or of a column of lists, or if a row names several, "cat;dog", which
    classes it has: uint8 (N, classes). Numbers are those of `known` classes, or else the names of classes.

    >>> read_labels(pa.chunked_array([["dog", "cat; dog", None]]))[1].tolist()
    [[0, 1], [1, 1], [0, 0]]

    Raises InputError for what are no labels, or a number beyond the known classes.
    """
    if holds_lists(column.type):
        classes, labels = read_lists(column.combine_chunks(), known)
    elif (given := label_values(column)).dtype.kind == "U" and any(SEPARATOR in label for label in given):
        named = [[name.strip() for name in label.split(SEPARATOR)] for label in given]
        classes, labels = read_lists(pa.array(named))
    else:
        classes, labels = number_column(given, known)
    if not known or labels is None:
        return classes, labels
    if len(classes) > len(known):
        raise InputError(f"labels go up to {len(classes) - 1}, but there are {len(known)} classes")
    if labels.ndim == 2:
        labels = np.pad(labels, ((0, 0), (0, len(known) - len(classes))))
    return list(known), labels


def label_values(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Labels (N,) as a column has them, numbers from 0 or names; -1 or "" where a cell is empty, or NaN.

    >>> label_values(pa.chunked_array([[3, None]])), label_values(pa.chunked_array([["cat", None]]))
    (array([ 3, -1]), array(['cat', ''], dtype='<U3'))
    """
    if pa.types.is_floating(column.type):
        from pyarrow import compute

        column = column.cast(pa.float64())  # older versions of pyarrow ask no float16 whether it is NaN
        column = compute.if_else(compute.is_nan(column), None, column)
        with contextlib.suppress(pa.ArrowInvalid):  # whole numbers, as pandas has them beside a missing one
            column = column.cast(pa.int64())
    if pa.types.is_integer(column.type):
        try:
            return np.asarray(column.cast(pa.int64()).fill_null(-1))
        except pa.ArrowInvalid:
            raise InputError("labels are numbers of classes, from 0: these are far beyond") from None
    return np.array(column.cast(pa.large_string()).fill_null("").to_pylist(), dtype=np.str_)


def number_column(given: np.ndarray, known: Sequence[str]) -> tuple[list[str], np.ndarray | None]:
    """The classes, and each row's number (N,), of what `label_values` gives. Unless numbers are those of `known`
    classes, each that there is names one, as for scikit-learn: a table has all splits in one column, arrays need not.

    Raises InputError for numbers that are no labels of classes.
    """
    if known or given.dtype.kind == "U" or not len(given) or given.min() < -1:
        return number_labels(given, len(given))
    classes, labels = number_values(given, given >= 0)
    labelled = int((given >= 0).sum())
    if given.max() >= MOST_CLASSES and 2 * len(classes) > labelled:
        raise InputError(
            f"labels are {len(classes):,} different numbers up to {given.max()} for {labelled:,} images, like dates or "
            "account numbers: name another column by --label-column or, if these are classes, put a letter before each"
        )
    return classes, labels


def read_lists(lists: pa.Array, known: Sequence[str] = ()) -> tuple[list[str], np.ndarray | None]:
    """The classes, and which of them each row lists: uint8 (N, classes). See `number_column`."""
    from pyarrow import compute

    flat = label_values(compute.list_flatten(lists))
    if not len(flat):
        return [], None
    classes, numbers = number_column(flat, known)
    if numbers is None:
        return [], None
    named = numbers >= 0
    several = np.zeros((len(lists), len(classes)), dtype=np.uint8)
    several[np.asarray(compute.list_parent_indices(lists))[named], numbers[named]] = 1
    return classes, several
