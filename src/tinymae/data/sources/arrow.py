"""Images in Arrow tables, memory-mapped by Hugging Face `datasets`: the Hub, Parquet, folders of `save_to_disk`."""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ...errors import InputError, first_line, refusal
from ..splits import hash_rows
from ..unreadable import UnreadableImage
from .columns import LABEL_COLUMNS, choose_column, take_columns
from .encoded import Content, EncodedSource
from .files import SPLIT_NAMES
from .source import PartedSource, Reading

HUB = "hf:"  # hf:owner/name, or hf:owner/name:configuration


class ArrowSource(PartedSource, EncodedSource):
    """Encoded images in a column, decoded when they are read. Nothing of them is kept in memory.

    Args:
        parts: Hugging Face `Dataset`s by the name of their split; "" for one that is not split.
        reading: without columns these are the only one of images, the first of class labels, and the first that names
            splits.
    """

    def __init__(self, name: str, parts: dict[str, Any], reading: Reading):
        from datasets import Image

        super().__init__(name, parts.values())
        self.kind = "Arrow table"
        features = next(iter(parts.values())).features
        reading = reading.of_columns([*features])
        self.column = choose_image_column(name, features, reading.image_column)
        known = [*(column for column in features if class_names(features[column])), *LABEL_COLUMNS]
        label = choose_column([*features], f"data {name}", reading.label_column, known, "label")
        feature = features[self.column]
        if isinstance(feature, dict) and not {"bytes", "path"} & {*feature}:
            raise InputError(
                f"image_column {self.column} has the fields {', '.join(feature)}: flatten() the data set, and give one "
                f"of its columns, such as {self.column}.{next(iter(feature))}"
            )
        try:
            self.parts = [
                part.select_columns([self.column]).cast_column(self.column, Image(decode=False))
                for part in parts.values()
            ]
        except (pa.ArrowException, TypeError, ValueError) as error:
            wrong = f"image_column {self.column} is {feature}: give one of images, their bytes or paths"
            raise refusal(error, wrong) from None
        if not len(self):
            raise InputError(f"data {name} has no rows")
        self.split_names = list(parts)
        if self.split_names != [""]:
            self.split_by_parts(parts)
        self.settle(reading)

        def read(column: str) -> pa.ChunkedArray:  # of all parts, without decoding an image
            columns = [part.select_columns([column]).with_format("arrow")[:].column(column) for part in parts.values()]
            return pa.chunked_array([chunk for each in columns for chunk in each.chunks])

        take_columns(
            self, [*features], read, reading, where=f"data {name}", row=f"data {name}, row", numbers=range(len(self)),
            image=self.column, label=label, labels=read(label) if label else None,
            classes=class_names(features[label]) if label else (),
        )  # fmt: skip

    def names(self, rows: np.ndarray) -> Sequence[str]:
        """The split and the row in it: train/17."""
        return [f"{self.split_names[part] or 'row'}/{row}" for part, row in zip(*self.locate(rows), strict=True)]

    def places(self, rows: np.ndarray) -> np.ndarray:
        """See `Source.places`: by number, which is fast for millions."""
        part, row = self.locate(rows)
        return hash_rows(row + (part.astype(np.int64) << 48))

    def digest(self, rows: np.ndarray, labels: bytes) -> str:
        """Of the tables' own fingerprints and the rows."""
        total = hashlib.sha256("".join(part._fingerprint for part in self.parts).encode())
        total.update(rows.tobytes())
        return total.hexdigest()

    def contents(self, rows: np.ndarray) -> list[Content]:
        """See `EncodedSource.contents`: bytes, or the file that the table names."""
        which, places = self.locate(rows)
        found: list[Content | None] = [None] * len(rows)
        for number in np.unique(which):
            here = np.flatnonzero(which == number)
            for place, stored in zip(here, self.parts[number][places[here].tolist()][self.column], strict=True):
                name = f"{self.name} row {rows[place]}"
                if stored is None or (stored["bytes"] is None and not stored["path"]):
                    raise UnreadableImage(name, "there is none")
                found[place] = (Path(stored["path"]) if stored["bytes"] is None else stored["bytes"]), name
        return found  # type: ignore[return-value]  # none is left None


def choose_image_column(name: str, features: Any, given: str | None) -> str:
    """The column of images. Raises InputError for none, or several."""
    from datasets import Image

    columns = [column for column, feature in features.items() if isinstance(feature, Image)]
    if not columns:  # a Parquet file that another program wrote: bytes, or bytes and a path
        columns = [column for column, feature in features.items() if holds_bytes(feature)]
    if given is not None:
        return str(choose_column([*features], f"data {name}", given, (), "image"))
    if len(columns) != 1:
        found = f"{len(columns)} columns of images" if columns else "no column of images"
        raise InputError(f"data {name} has {found}, only {', '.join(columns or features)}: give image_column")
    return columns[0]


def holds_bytes(feature: Any) -> bool:
    """Whether a column's values are encoded images."""
    if isinstance(feature, dict):
        return "bytes" in feature
    return getattr(feature, "dtype", "") in ("binary", "large_binary")


def class_names(feature: Any) -> Sequence[str]:
    """Of a column of class labels, or of lists of them; none of another one."""
    return getattr(getattr(feature, "feature", feature), "names", None) or ()


def is_loaded(data: Any) -> bool:
    """Whether data are a `Dataset` or `DatasetDict` of Hugging Face: who has one has imported the library."""
    library = sys.modules.get("datasets")
    return isinstance(data, (getattr(library, "Dataset", ()), getattr(library, "DatasetDict", ())))


def open_arrow(data: list[str], reading: Reading) -> ArrowSource:
    """`hf:owner/name` from the Hub or its offline cache, Parquet files, or a folder of `save_to_disk`.

    Raises InputError without the library, or for what it cannot open.
    """
    try:
        import datasets
    except ImportError:
        raise InputError(f"data {data[0]} needs Hugging Face datasets: pip install datasets") from None
    first = data[0]
    # Only what the library says on the way is silenced; its own setting stays as it was.
    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        if first.startswith(HUB):
            name, _, configuration = first.removeprefix(HUB).partition(":")
            loaded = datasets.load_dataset(name, configuration or None)
        elif Path(first).is_dir() and not list(Path(first).glob("*.parquet")):
            loaded = datasets.load_from_disk(first)
        else:
            files = sorted(map(str, Path(first).glob("*.parquet"))) if Path(first).is_dir() else data
            loaded = datasets.load_dataset("parquet", data_files=by_split(files))
    except InputError:
        raise
    except Exception as error:  # of many kinds: the network's, the Hub's, Arrow's
        raise refusal(error, f"data {first} cannot be opened: {first_line(error)}") from None
    finally:
        if not bars:
            datasets.enable_progress_bars()
    name = first.removeprefix(HUB) if first.startswith(HUB) else Path(first).stem
    return ArrowSource(name, split_parts(loaded), reading)


def by_split(files: list[str]) -> dict[str, list[str]] | list[str]:
    """Parquet files by the split that their names begin with, as the Hub names them; or all of them as one."""
    heads = [Path(file).stem.split("-")[0].lower() for file in files]
    if not all(head in SPLIT_NAMES for head in heads):
        return files
    return {split: [f for f, head in zip(files, heads, strict=True) if SPLIT_NAMES[head] == split]
            for split in sorted({SPLIT_NAMES[head] for head in heads})}  # fmt: skip


def split_parts(loaded: Any) -> dict[str, Any]:
    """Datasets by the split's name as it is here; what is not split, or is all "train", as one of no split."""
    if not isinstance(loaded, dict):
        return {"": loaded}
    if list(loaded) == ["train"]:
        return {"": loaded["train"]}
    known = {SPLIT_NAMES[split.lower()]: part for split, part in loaded.items() if split.lower() in SPLIT_NAMES}
    if not known:
        raise InputError(f"data has the splits {', '.join(loaded)}, none of which is train, val or test")
    return known
