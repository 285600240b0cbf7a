"""Images in files of their own: a folder, several folders, or a table of paths."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from ...errors import InputError
from ..images import EXTENSIONS
from ..splits import hash_names, rows_by_split
from .encoded import Content, EncodedSource
from .source import Reading

# What folders of the splits may be called, in any case.
SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
UNLABELLED_NAMES = ("unlabelled", "unlabeled")  # what a folder of images without labels may be called, in any case
UNLABELLED = ""  # their class


class FilesSource(EncodedSource):
    """Image files, decoded when they are read.

    Args:
        root: the folder that paths are relative to.
        paths: of the files; a row's own name is its path.
    """

    def __init__(self, name: str, kind: str, root: Path, paths: Iterable[str], reading: Reading):
        super().__init__(name)
        # One buffer for all paths: a list of strings would take several times as much.
        try:
            self.kind, self.root, self.paths = kind, root, pa.array(paths, pa.large_string())
        except UnicodeEncodeError as error:  # tables of results, lists of files and sheets could not name it either
            raise InputError(f"image {error.object!a} in {root} has a name that is not UTF-8: rename it") from None
        self.settle(reading)

    def __len__(self) -> int:
        return len(self.paths)

    def names(self, rows: np.ndarray) -> Sequence[str]:
        """Paths relative to the folder."""
        return self.paths.take(pa.array(rows)).to_pylist()

    def places(self, rows: np.ndarray) -> np.ndarray:
        """See `Source.places`: by name."""
        return hash_names(self.names(rows))

    def digest(self, rows: np.ndarray) -> str:
        """Of names, sizes in bytes, and labels."""
        names = self.names(rows)
        sizes = np.array([size_of(self.root / name) for name in names], dtype="<i8")
        return hashlib.sha256(super().digest(rows).encode() + sizes.tobytes()).hexdigest()

    def contents(self, rows: np.ndarray) -> list[Content]:
        """See `EncodedSource.contents`."""
        return [(path := self.root / name, str(path)) for name in self.names(rows)]


def size_of(path: Path) -> int:
    """Of a file in bytes, -1 of one that is missing, which a table may name."""
    return os.stat(path).st_size if path.is_file() else -1


# ---- folders


def open_folders(folders: Sequence[Path], reading: Reading) -> FilesSource:
    """Images in one or several folders, with or without class sub-folders, in split sub-folders or not.

    Raises InputError: a missing or empty folder, images beside class folders, a class that train lacks.
    """
    if missing := [folder for folder in folders if not folder.exists()]:
        raise InputError(f"data {missing[0]} does not exist: several data are folders, or image files")
    if files := [folder for folder in folders if not folder.is_dir()]:
        raise InputError(f"data {files[0]} is no folder, as others are: give folders, or image files")
    root = folders[0] if len(folders) == 1 else Path(os.path.commonpath([folder.resolve() for folder in folders]))
    found: list[str] = []
    left_out: list[str] = []
    for folder in folders:
        prefix = "" if len(folders) == 1 else folder.resolve().relative_to(root).as_posix() + "/"
        inside, others = list_images(folder)
        if not inside:
            raise InputError(f"folder {folder} holds no images ({', '.join(EXTENSIONS)})")
        found += [prefix + path for path in inside]
        left_out += [prefix + path for path in others]
    source = FilesSource(root.name or str(root), "folder", root, found, reading)
    source.left_out = left_out
    if len(folders) == 1:
        source.labels, source.classes, source.splits = read_layout(root, found)
    else:
        source.kind = "several folders, read without labels"
        source.label_remedy = (
            "several folders are read without labels; give one folder with class sub-folders, or a table with a "
            "column of labels"
        )
    return source


def is_image_file(path: Path) -> bool:
    """Whether there is a file whose name is that of an image."""
    return path.name.lower().endswith(EXTENSIONS) and path.is_file()


def open_images(files: Sequence[Path], reading: Reading) -> FilesSource:
    """Single image files, without labels."""
    resolved = {file.resolve() for file in files}
    root = Path(os.path.commonpath([file.parent for file in resolved]))
    paths = sorted(file.relative_to(root).as_posix() for file in resolved)
    name = files[0].name if len(files) == 1 else root.name
    return FilesSource(name, "images", root, paths, reading)


def list_images(folder: Path) -> tuple[list[str], list[str]]:
    """Relative paths of the image files under a folder, sorted, and of what else is there. One pass, no file opened.

    Hidden files and folders are passed over; folders that are links are followed, once each.
    """
    images: list[str] = []
    others: list[str] = []
    visited: set[tuple[int, int]] = set()
    waiting = [("", folder)]
    while waiting:
        prefix, place = waiting.pop()
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in visited:
            continue
        visited.add((status.st_dev, status.st_ino))
        with os.scandir(place) as entries:
            for entry in entries:
                path = prefix + entry.name
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    waiting.append((path + "/", Path(entry.path)))
                elif entry.name.lower().endswith(EXTENSIONS) and entry.is_file():
                    images.append(path)
                else:
                    others.append(path)
    return sorted(images), sorted(others)


def read_layout(root: Path, paths: list[str]) -> tuple[np.ndarray | None, list[str], dict[str, np.ndarray]]:
    """(labels, classes, splits) of images in a folder, from where they stand.

    Folders named as splits are splits where all images are in one, and then have classes of their own below. A split
    without class folders has the labels -1; with none anywhere there are no labels. Nor has a folder that is called
    unlabelled, beside the classes or, with images of train, beside the splits.
    """
    heads = [path.split("/", 1)[0] if "/" in path else None for path in paths]
    splits: dict[str, np.ndarray] = {}
    depth = 0
    lower = {head.lower() if head else None for head in heads}
    if lower & {*SPLIT_NAMES} and lower <= {*SPLIT_NAMES, *UNLABELLED_NAMES}:
        splits = rows_by_split(np.array([SPLIT_NAMES.get(str(head).lower(), "train") for head in heads]))
        named = sorted({str(head) for head in heads})
        folders = {split: [head for head in named if SPLIT_NAMES.get(head.lower()) == split] for split in splits}
        if doubled := next((names for names in folders.values() if len(names) > 1), None):
            raise InputError(f"folder {root} has {' and '.join(doubled)} for the same split: keep one")
        depth = 1
    names = [name_class(path, depth) for path in paths]
    for rows in splits.values() or [np.arange(len(paths))]:
        require_one_kind(root, paths, names, rows)
    learned = splits.get("train", range(len(paths)))  # the rows whose folders name the classes
    classes = sorted({name for row in learned if (name := names[row])})
    number: dict[str | None, int] = {None: -1, UNLABELLED: -1}
    number |= {name: place for place, name in enumerate(classes)}
    for path, name in zip(paths, names, strict=True):
        if name not in number:
            raise InputError(
                f"class folder {root / path.split('/')[0] / str(name)} is none of train's classes, "
                f"{', '.join(classes[:20])}: move it away, or rename it"
            )
    if not splits:
        require_images(root, classes)
    labels = np.array([number[name] for name in names], dtype=np.int64)
    return (labels if classes else None), classes, splits


def name_class(path: str, depth: int) -> str | None:
    """The class of an image from the folder that it is in at a depth; None where there is no folder.

    >>> name_class("train/cat/1.png", 1), name_class("unlabelled/2/3.png", 1) == UNLABELLED, name_class("4.png", 0)
    ('cat', True, None)
    """
    folders = path.split("/")[:-1][: depth + 1]
    if any(folder.lower() in UNLABELLED_NAMES for folder in folders):
        return UNLABELLED
    return folders[depth] if len(folders) > depth else None


def require_one_kind(root: Path, paths: list[str], names: list[str | None], rows: np.ndarray) -> None:
    """Raises InputError for images beside class folders."""
    plain = next((paths[row] for row in rows if names[row] is None), None)
    nested = next((names[row] for row in rows if names[row] is not None), None)
    if plain and nested:
        raise InputError(f"folder {root} holds images ({plain}) beside the folder {nested}: move one away")


def require_images(root: Path, classes: list[str]) -> None:
    """Raises InputError for a class folder without images: a slip that would otherwise cost a class."""
    for folder in sorted(root.iterdir()) if classes else []:
        named = folder.name in classes or folder.name.lower() in UNLABELLED_NAMES
        if folder.is_dir() and not folder.name.startswith(".") and not named:
            raise InputError(f"class folder {folder} holds no images ({', '.join(EXTENSIONS)})")
