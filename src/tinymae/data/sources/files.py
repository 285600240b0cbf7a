"""Images in files of their own: a folder, several folders, or a table of paths."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from ...errors import InputError, list_some
from ...files import closest_path
from ..images import EXTENSIONS
from ..splits import hash_names, rows_by_split, without_prefix
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
        return hash_names(without_prefix(name, self.prefixes) for name in self.names(rows))

    def digest(self, rows: np.ndarray, labels: bytes) -> str:
        """Of names, sizes in bytes, and labels."""
        names = self.names(rows)
        sizes = np.array([size_of(self.root / name) for name in names], dtype="<i8")
        return hashlib.sha256(super().digest(rows, labels).encode() + sizes.tobytes()).hexdigest()

    def contents(self, rows: np.ndarray) -> list[Content]:
        """See `EncodedSource.contents`."""
        return [(path := self.root / name, str(path)) for name in self.names(rows)]


def size_of(path: Path) -> int:
    """Of a file in bytes, -1 of one that is missing, which a table may name."""
    return os.stat(path).st_size if path.is_file() else -1


# ---- folders


def open_folders(folders: Sequence[Path], reading: Reading) -> FilesSource:
    """Images in one or several folders, with or without class sub-folders, in split sub-folders or not.

    Raises InputError for a folder that is missing, and where none holds images.
    """
    if missing := [folder for folder in folders if not folder.exists()]:
        hint = closest_path(missing[0])
        raise InputError(f"data {missing[0]} does not exist{hint}: several data are folders, or image files")
    if files := [folder for folder in folders if not folder.is_dir()]:
        raise InputError(f"data {files[0]} is no folder, as others are: give folders, or image files")
    root = folders[0] if len(folders) == 1 else Path(os.path.commonpath([folder.resolve() for folder in folders]))
    found: list[str] = []
    left_out: list[str] = []
    empty: list[str] = []
    for folder in folders:
        prefix = "" if folder.resolve() == root.resolve() else folder.resolve().relative_to(root).as_posix() + "/"
        inside, others = list_images(folder)
        empty += [] if inside else [str(folder)]
        found += [prefix + path for path in inside]
        left_out += [prefix + path for path in others]
    if not found:
        raise InputError(f"folder {', '.join(empty)} holds no images ({', '.join(EXTENSIONS)})")
    given, found, left_out = len(found), [*dict.fromkeys(found)], [*dict.fromkeys(left_out)]
    source = FilesSource(root.name or str(root), "folder", root, found, reading)
    source.left_out = left_out
    if given > len(found):
        source.notes.append(f"folders: {given - len(found):,} images are in several of them, and are taken once")
    if empty:
        source.notes.append(f"left out: folders without images: {list_some(empty)}")
    if len(folders) == 1:
        read_layout(source, found)
    else:
        source.kind = "several folders, read without labels"
        source.label_remedy = (
            "several folders are read without labels; give one folder with class sub-folders, or a table with a "
            "column of labels"
        )
    return source


def is_image_file(path: Path) -> bool:
    """Whether there is a file whose name is that of an image."""
    return is_image_name(path.name) and path.is_file()


def is_image_name(name: str) -> bool:
    """Whether a file's name is that of an image."""
    return name.lower().endswith(EXTENSIONS)


def open_images(files: Sequence[Path], reading: Reading) -> FilesSource:
    """Single image files, without labels, by the names that are given: results are joined by these."""
    spelled = {os.path.abspath(file): file.as_posix() for file in reversed(files)}  # the first spelling of each counts
    paths = sorted(spelled.values())
    name = files[0].name if len(files) == 1 else Path(common_folder([os.path.abspath(path) for path in paths])).name
    source = FilesSource(name, "images", Path(), paths, reading)
    by_kind = [[path for path in paths if os.path.isabs(path) == absolute] for absolute in (True, False)]
    source.prefixes = [common_folder(some) for some in by_kind if some]
    if (doubled := len(files) - len(paths)) > 0:
        source.notes.append(f"files: {doubled:,} given more than once")
    return source


def common_folder(paths: Iterable[str]) -> str:
    """The folder that all files are in, as their paths begin: with a slash at its end, or "" for the current one.

    >>> common_folder(["photos/cat/1.png", "photos/cat/2.png", "photos/dog/1.png"]), common_folder(["1.png"])
    ('photos/', '')
    """
    return with_slashes(os.path.join(os.path.commonpath([*{os.path.dirname(path) for path in paths}]), ""))


def with_slashes(path: str) -> str:
    """A path as it is written everywhere: on Windows names of images would decide on other splits than elsewhere."""
    return path.replace(os.sep, "/")


def list_images(folder: Path) -> tuple[list[str], list[str]]:
    """Relative paths of the image files under a folder, sorted, and of what else is there. One pass, no file opened.

    Hidden files and folders are passed over; folders that are links are followed, once each, after all real ones.
    """
    images: list[str] = []
    others: list[str] = []
    visited: set[tuple[int, int]] = set()
    waiting = [("", folder)]
    links: list[tuple[str, Path]] = []
    while waiting or links:
        if not waiting:  # a link to a folder that is read already takes none of its images, whatever came first on disk
            waiting, links = sorted(links, reverse=True), []
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
                    (links if entry.is_symlink() else waiting).append((path + "/", Path(entry.path)))
                elif is_image_name(entry.name) and entry.is_file():
                    images.append(path)
                else:
                    others.append(path)
    return sorted(images), sorted(others)


def read_layout(source: FilesSource, paths: list[str]) -> None:
    """Let a source have the labels, classes and splits of the images in its folder, from where they stand.

    Folders named as splits are splits where all images are in one, and then have classes of their own below. A split
    without class folders has the labels -1; with none anywhere there are no labels. Nor has a folder that is called
    unlabelled, beside the classes or, with images of train, beside the splits. Where the folders cannot be classes
    there are no labels either, which is an error where labels are needed, and a note elsewhere.

    Raises InputError for two folders of one split.
    """
    heads = [path.split("/", 1)[0] if "/" in path else None for path in paths]
    depth = 0
    lower = {head.lower() if head else None for head in heads}
    if lower & {*SPLIT_NAMES} and lower <= {*SPLIT_NAMES, *UNLABELLED_NAMES}:
        splits = rows_by_split(np.array([SPLIT_NAMES.get(str(head).lower(), "train") for head in heads]))
        named = sorted({str(head) for head in heads})
        folders = {split: [head for head in named if SPLIT_NAMES.get(head.lower()) == split] for split in splits}
        if doubled := next((names for names in folders.values() if len(names) > 1), None):
            raise InputError(f"folder {source.root} has {' and '.join(doubled)} for the same split: keep one")
        source.splits, depth = splits, 1
    names = [name_class(path, depth) for path in paths]
    learned = source.splits.get("train", range(len(paths)))  # the rows whose folders name the classes
    classes = sorted({name for row in learned if (name := names[row])})
    if stray := find_stray(source, paths, names, classes):
        wrong, remedy = stray
        source.notes.append(f"labels: none, as {wrong}")
        source.label_remedy = f"{wrong}: {remedy}"
        return
    number = {None: -1, UNLABELLED: -1} | {name: place for place, name in enumerate(classes)}
    if classes:
        source.labels, source.classes = np.array([number[name] for name in names], dtype=np.int64), classes
    if not source.splits and (empty := empty_folders(source.root, classes)):
        source.notes.append(f"left out: class folders without images: {list_some(empty)}")


def name_class(path: str, depth: int) -> str | None:
    """The class of an image from the folder that it is in at a depth; None where there is no folder.

    >>> name_class("train/cat/1.png", 1), name_class("unlabelled/2/3.png", 1) == UNLABELLED, name_class("4.png", 0)
    ('cat', True, None)
    """
    folders = path.split("/")[:-1][: depth + 1]
    if any(folder.lower() in UNLABELLED_NAMES for folder in folders):
        return UNLABELLED
    return folders[depth] if len(folders) > depth else None


def find_stray(
    source: FilesSource, paths: list[str], names: list[str | None], classes: list[str]
) -> tuple[str, str] | None:  # fmt: skip
    """What keeps folders from being classes, and the remedy: images beside them, or a class that train lacks."""
    for rows in source.splits.values() or [np.arange(len(paths))]:
        plain = next((paths[row] for row in rows if names[row] is None), None)
        nested = next((names[row] for row in rows if names[row]), None)
        if plain and nested:
            return f"images ({plain}) lie beside the folder {nested}", "move them away, or into a folder unlabelled/"
    known = {None, UNLABELLED, *classes}
    path = next((path for path, name in zip(paths, names, strict=True) if name not in known), None)
    if path is None:
        return None
    folder = "/".join(path.split("/")[:2])
    known_ones = list_some(classes, 20) or "of which there are none"
    return f"class folder {folder} is none of train's classes, {known_ones}", "move it away, or rename it"


def empty_folders(root: Path, classes: list[str]) -> list[str]:
    """The folders beside those of the classes that hold no images."""
    return [
        folder.name
        for folder in sorted(root.iterdir() if classes else [])
        if folder.is_dir() and not folder.name.startswith(".") and folder.name not in classes
        and folder.name.lower() not in UNLABELLED_NAMES
    ]  # fmt: skip
