"""Pixels in arrays: tensors and arrays from Python, .npy, .npz and HDF5 files."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import InputError, first_line, refusal
from ...tensors import pair
from ..bands import MAX_CHANNELS
from ..fit import describe_fit, fit_pixels
from ..images import remark_on_range, to_depth
from ..unreadable import UnreadableImage
from .source import PartedSource, Reading, some_rows

ARRAYS = (".npy", ".npz", ".h5", ".hdf5")
IMAGE_KEYS = ("images", "image", "x", "data", "pixels")
LABEL_KEYS = ("labels", "label", "y", "targets", "target")
LOOKED_AT = 1000  # images whose values the description is of, and fewer
LOOKED_AT_BYTES = 2**26  # where they are large
MOST_CLASSES = 2**16  # unless there are more images: of a date among labels, all numbers below would be classes


class ArraySource(PartedSource):
    """Rows of one array of pixels, or of several one after another.

    Args:
        parts: arrays (N, C, H, W), (N, H, W, C) or (N, H, W), in memory, memory-mapped or of h5py: all alike.
    """

    label_remedy = "give labels with the images: labels= in Python, an array of labels in an .npz or HDF5 file"

    def __init__(self, name: str, parts: Sequence[Any], reading: Reading):
        first, dtype = parts[0], parts[0].dtype.newbyteorder("=")
        if dtype.kind not in "buif":
            raise InputError(f"data {name} is {dtype}: give pixels, which are uint8, uint16 or floats")
        self.channels_last = is_channels_last(first.shape)
        channels, height, width = first_shape(first.shape, self.channels_last)
        super().__init__(name, parts)
        self.kind, self.fit = "array", reading.fit
        self.pixel_range = None if dtype == np.uint8 else reading.pixel_range
        self.size = (height, width) if reading.image_size is None else pair(reading.image_size)
        self.image_shape = (channels, *self.size)
        self.depth = "uint8" if dtype in (np.uint8, np.bool_) else "uint16"
        self.shown = f"{width} x {height} pixels, {channels} channel{'s'[: channels != 1]} of {dtype}"
        self.shown += ", which pixel_range is not for" * (self.pixel_range != reading.pixel_range)
        for part in parts:
            if part.shape[1:] != first.shape[1:] or part.dtype != first.dtype:
                raise InputError(
                    f"data {name} has parts {part.dtype} {tuple(part.shape)} and {first.dtype} {tuple(first.shape)}: "
                    "give them one size and type"
                )
        if dtype not in (np.uint8, np.uint16, np.bool_) and self.pixel_range is None:
            raise InputError(
                f"data {name} is {dtype}: give uint8 or uint16 pixels, or pixel_range LOW HIGH, the values of "
                "black and white"
            )
        if self.pixel_range is not None or dtype == np.uint16:
            fitting = LOOKED_AT_BYTES // (int(np.prod(first.shape[1:])) * dtype.itemsize)
            looked_at = some_rows(len(self), max(1, min(LOOKED_AT, fitting)))
            self.shown += remark_on_range(self.stored(looked_at).astype(dtype, copy=False), self.pixel_range)
        self.shown += describe_fit((height, width), self.size, self.fit, name)

    def stored(self, rows: np.ndarray) -> np.ndarray:
        """The values of these rows as the arrays have them."""
        values = np.empty((len(rows), *self.parts[0].shape[1:]), self.parts[0].dtype)
        which, places = self.locate(rows)
        for number in np.unique(which):
            here = which == number
            wanted, back = np.unique(places[here], return_inverse=True)  # sorted, as h5py wants
            values[here] = self.parts[number][wanted][back]
        return values

    def read(self, rows: np.ndarray) -> Tensor:
        """See `Source.read`."""
        values = self.stored(rows)
        if values.ndim == 3:
            values = values[:, None]
        elif self.channels_last:
            values = np.moveaxis(values, 3, 1)
        try:
            scaled = to_depth(values, self.depth, self.pixel_range, self.name)
        except UnreadableImage:
            first = rows[~np.isfinite(values).reshape(len(values), -1).all(axis=1)][0]
            raise InputError(f"data {self.name}, row {first}: NaN or infinity among its values: replace them") from None
        return fit_pixels(torch.from_numpy(np.ascontiguousarray(scaled)), self.size, self.fit, self.name)

    def digest(self, rows: np.ndarray, labels: bytes) -> str:
        """Of all values and labels, as they are stored: resizing them to know them would take as long as an epoch."""
        total = hashlib.sha256()
        for some in np.array_split(rows, max(1, len(rows) // 1000)):
            total.update(self.stored(some).tobytes())
        total.update(labels)
        return total.hexdigest()


def is_channels_last(shape: tuple[int, ...]) -> bool:
    """Whether images of this shape (N, ...) have their channels last: 1 or 3 of them, or the fewer ones."""
    if len(shape) != 4:
        return False
    first, last = (count in (1, 3) for count in (shape[1], shape[3]))
    return shape[3] < shape[1] if first == last else last


def first_shape(shape: tuple[int, ...], channels_last: bool) -> tuple[int, int, int]:
    """(C, H, W) of an array (N, ...) of images. Raises InputError for one that has no such shape."""
    if len(shape) not in (3, 4) or not all(shape):
        raise InputError(f"data has shape {tuple(shape)}: give images (N, C, H, W), (N, H, W, C) or (N, H, W)")
    if len(shape) == 3 and shape[2] in (1, 3, 4) and shape[2] < min(shape[:2]):
        raise InputError(
            f"data has shape {tuple(shape)}, which looks like one image (H, W, C): add an axis, images[None]; or, if "
            "they are grey images (N, H, W), images[:, None]"
        )
    if len(shape) == 3:
        return (1, *shape[1:])
    channels, height, width = (shape[3], *shape[1:3]) if channels_last else shape[1:]
    if channels > MAX_CHANNELS:
        raise InputError(f"data has shape {tuple(shape)}: neither side of it is 1 to {MAX_CHANNELS} channels")
    return channels, height, width


def open_array(images: Any, labels: Any, reading: Reading) -> ArraySource:
    """A tensor or array from Python, with labels that are numbers or names."""
    if not isinstance(images, Tensor | np.ndarray):
        join = " (numpy.stack makes one of a list of images)" * isinstance(images, list | tuple)
        raise InputError(
            f"data is {type(images).__name__}: give a name, a path, a tensor, an array{join} or a torch Dataset"
        )
    pixels = to_array(images, "data array") if isinstance(images, Tensor) else images
    source = ArraySource("array", [pixels], reading)
    source.classes, source.labels = number_labels(labels, len(pixels))
    return source


def to_array(values: Tensor, name: str) -> np.ndarray:
    """A tensor's values. Raises InputError for a type that arrays do not have."""
    values = values.detach().cpu()
    try:
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    except (TypeError, RuntimeError):  # sparse, quantised, or of 8-bit floats
        raise InputError(f"{name} is {values.dtype}, {values.layout}: give a dense tensor of pixels") from None


def open_array_file(path: Path, reading: Reading) -> ArraySource:
    """An .npy file of images, or an .npz or HDF5 file of `images` and `labels`, or of `train_images`,
    `train_labels`, `val_images` and so on, as MedMNIST names them, or `x_train`, `y_train`, as Keras does.

    Raises InputError for a file without them, or that is damaged.
    """
    try:
        if path.suffix.lower() == ".npy":
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
            arrays: dict[str, Any] = {"images": FileArray(path, None, mapped.shape, mapped.dtype)}
        elif path.suffix.lower() == ".npz":
            arrays = dict(np.load(path, allow_pickle=False))
        else:
            arrays = open_hdf5(path)
    except (OSError, ValueError, EOFError) as error:
        raise refusal(error, f"data {path} cannot be read: {first_line(error)}") from None
    pairs = {split: find_pair(arrays, split) for split in ("", "train", "val", "test")}
    found = {split: pair for split, pair in pairs.items() if pair[0] is not None}
    if not found:
        raise InputError(
            f"data {path} has neither images nor train_images or x_train, only {', '.join(sorted(arrays))}"
        )
    if "" in found and len(found) > 1:
        raise InputError(f"data {path} has images of no split beside those of {', '.join([*found][1:])}: leave one out")
    source = ArraySource(path.stem, [images for images, _ in found.values()], reading)
    source.classes, source.labels = join_labels(path, list(found.values()))
    if "" not in found:
        source.split_by_parts(found)
    return source


def join_labels(path: Path, parts: list[tuple[Any, Any]]) -> tuple[list[str], np.ndarray | None]:
    """The classes, and the labels of all parts' images, -1 in a part without: see `number_labels`."""
    known = [np.asarray(labels) for _, labels in parts if labels is not None]
    if not known:
        return [], None
    if len({labels.shape[1:] for labels in known}) > 1:
        raise InputError(
            f"data {path} has labels of shapes {', '.join(str(labels.shape) for labels in known)}: give one kind"
        )
    classes, numbers = number_labels(
        np.concatenate(known), sum(len(images) for images, labels in parts if labels is not None)
    )
    if numbers is None or len(known) == len(parts):
        return classes, numbers
    if numbers.ndim == 2:
        raise InputError(f"data {path} has rows of labels for some of its splits alone: give all, or none")
    has_label = np.concatenate([np.full(len(images), labels is not None) for images, labels in parts])
    joined = np.full(len(has_label), -1)
    joined[has_label] = numbers
    return classes, joined


def open_hdf5(path: Path) -> dict[str, Any]:
    """The arrays of an HDF5 file, by name, not read yet."""
    try:
        import h5py
    except ImportError:
        raise InputError(f"data {path} needs h5py: pip install h5py") from None
    file = h5py.File(path, "r")
    return {
        name: FileArray(path, name, item.shape, item.dtype) for name, item in file.items() if hasattr(item, "dtype")
    }


class FileArray:
    """An array of an .npy or HDF5 file, opened by each process for itself.

    h5py's handles do not outlive a fork, and a memory map would be copied whole to a process that is none.

    Args:
        name: of the array in an HDF5 file; None of an .npy file.
    """

    def __init__(self, path: Path, name: str | None, shape: tuple[int, ...], dtype: np.dtype):
        self.path, self.name, self.shape, self.dtype = path, name, shape, dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        if self.name is None:
            return np.load(self.path, mmap_mode="r")[rows]
        import h5py

        with h5py.File(self.path, "r") as file:
            return file[self.name][rows]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self[np.arange(len(self))]


def find_pair(arrays: dict[str, Any], split: str) -> tuple[Any, Any]:
    """Images and labels of a split, None for what is missing."""
    patterns = [f"{split}_{{}}", f"{{}}_{split}"] if split else ["{}"]  # train_images, images_train; images
    images, labels = (
        next((arrays[name] for key in keys for p in patterns if (name := p.format(key)) in arrays), None)
        for keys in (IMAGE_KEYS, LABEL_KEYS)
    )
    return images, labels


def number_labels(labels: Any, count: int) -> tuple[list[str], np.ndarray | None]:
    """The names of the classes, and labels as `Source.labels` has them; classes that are numbers from 0 keep them. A
    number of -1 or a blank name is no label. Of several an image, the columns of a table of pandas name the classes.

    Raises InputError for labels that are neither one number or name of each image, nor 0 and 1 for each class.
    """
    if labels is None:
        return [], None
    try:
        given = to_array(labels, "labels") if isinstance(labels, Tensor) else np.asarray(labels)
    except ValueError:  # rows of unequal lengths
        raise InputError("labels have rows of unequal lengths: give rows of 0 and 1, one for each class") from None
    if given.dtype == bool:
        given = given.astype(np.uint8)
    if given.shape == (count, 1):
        given = given[:, 0]
    if given.ndim == 1 and given.dtype.kind in "OS":  # as pandas and HDF5 have names; any None or NaN is refused below
        words = [each.decode(errors="backslashreplace") if isinstance(each, bytes) else each for each in given.tolist()]
        given = np.array(words) if all(isinstance(word, str) for word in words) else given
    if given.ndim == 2 and len(given) == count and np.isin(given, (0, 1)).all():
        columns = getattr(labels, "columns", range(given.shape[1]))  # pandas names them
        return [*map(str, columns)], given.astype(np.uint8)
    if given.shape != (count,):
        raise InputError(
            f"labels have shape {given.shape} for {count} images: give one label for each image, or rows of 0 and 1"
        )
    if np.issubdtype(given.dtype, np.integer) and given.min() >= -1:
        require_few_classes(int(given.max()) + 1, count, "labels")
        classes = [str(number) for number in range(int(given.max()) + 1)]
        return classes, given.astype(np.int64) if classes else None  # all -1: none has a label
    if np.issubdtype(given.dtype, np.str_):
        given = np.char.strip(given)
        return number_values(given, given != "")
    raise InputError(f'labels are {given.dtype}: give numbers from 0 or names; -1 or "" is no label')


def number_values(values: np.ndarray, has_label: np.ndarray) -> tuple[list[str], np.ndarray | None]:
    """The distinct values of those rows that have a label, in order, as names; and each row's number, -1 without.

    >>> number_values(np.array([205, 9, -1, 9]), np.array([True, True, False, True]))
    (['9', '205'], array([ 1,  0, -1,  0]))
    """
    names, numbers = np.unique(values[has_label], return_inverse=True)
    labels = np.full(len(values), -1)
    labels[has_label] = numbers
    return [str(name) for name in names], labels if len(names) else None


def require_few_classes(classes: int, count: int, name: str) -> None:
    """Raises InputError for numbers of labels, called `name`, that are none of classes: each has a name and a column of
    results, up to the largest.
    """
    if classes > max(MOST_CLASSES, count):
        raise InputError(
            f"{name} go up to {classes - 1} for {count:,} images: number the classes from 0, or give names, which are "
            "strings"
        )
