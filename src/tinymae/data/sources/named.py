"""Data sets with a name: torchvision's, with their official test splits, and scikit-learn's digits."""

import contextlib
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torchvision import datasets

from ...errors import InputError
from ...tensors import pair
from ..splits import fixed_permutation
from .arrays import ArraySource
from .source import Reading, Source
from .torch_dataset import TorchSource, labels_of

Opener = Callable[..., Any]  # of torchvision's constructors


def by_train(kind: Opener, **fixed: Any) -> Callable[[Path, str, bool], Any]:
    """A data set whose constructor asks whether it is for training."""
    return lambda root, split, download: kind(root, train=split == "train", download=download, **fixed)


def by_split(kind: Opener, **names: str) -> Callable[[Path, str, bool], Any]:
    """A data set whose constructor takes the name of a split."""
    return lambda root, split, download: kind(root, split=names.get(split, split), download=download)


# name -> how to open a split, and the splits it has. All but `train` are as published.
NAMED: dict[str, tuple[Callable[[Path, str, bool], Any], tuple[str, ...]]] = {
    "cifar10": (by_train(datasets.CIFAR10), ("train", "test")),
    "cifar100": (by_train(datasets.CIFAR100), ("train", "test")),
    "mnist": (by_train(datasets.MNIST), ("train", "test")),
    "fashion_mnist": (by_train(datasets.FashionMNIST), ("train", "test")),
    "kmnist": (by_train(datasets.KMNIST), ("train", "test")),
    "emnist": (by_train(datasets.EMNIST, split="balanced"), ("train", "test")),
    "svhn": (by_split(datasets.SVHN), ("train", "test")),
    "stl10": (by_split(datasets.STL10), ("train", "test")),
    "stl10_unlabeled": (by_split(datasets.STL10, train="unlabeled"), ("train",)),
    "gtsrb": (by_split(datasets.GTSRB), ("train", "test")),
    "food101": (by_split(datasets.Food101), ("train", "test")),
    "flowers102": (by_split(datasets.Flowers102), ("train", "val", "test")),
    "eurosat": (lambda root, split, download: datasets.EuroSAT(root, download=download), ("train",)),
}
HELD_OUT = 2000  # images that a fixed seed takes from train for validation, at most a tenth of them


def open_named(name: str, reading: Reading) -> Source:
    """The data set of this name, all splits in one source."""
    reading = replace(reading, pixel_range=None)  # of other data beside them: these have all values of 8 bits
    if name == "digits":
        return open_digits(reading)
    opener, splits = NAMED[name]
    opened = {split: open_split(name, opener, Path(reading.data_dir), split) for split in splits}
    source: ArraySource | TorchSource
    if all(getattr(part, "data", None) is not None for part in opened.values()):  # all pixels (N, ...), in memory
        source = ArraySource(name, [np.asarray(part.data) for part in opened.values()], reading)
        labels = [labels_of(part) for part in opened.values()]
        source.labels = None if any(each is None for each in labels) else np.concatenate(labels)  # type: ignore[arg-type]
    else:
        shape = reading.channels, *pair(reading.image_size or 64)
        source = TorchSource(name, list(opened.values()), shape=shape, reading=reading)
    source.kind, source.classes = "named", classes_of(opened["train"], source.labels)
    if len(splits) > 1:
        source.split_by_parts(splits)
        if "val" not in splits:
            source.held_out = {"val": min(HELD_OUT, len(opened["train"]) // 10)}
    return source


def open_split(name: str, opener: Callable[[Path, str, bool], Any], data_dir: Path, split: str) -> Any:
    """A split of torchvision's, downloaded where it is missing, by one process at a time: the others find it there."""
    lock = FileLock(data_dir / f".{name}.lock")
    if Path(lock.lock_file).exists():  # somebody fetches it, or did: until then half an MNIST passes for a whole one
        with contextlib.suppress(OSError), lock:  # into a read-only folder nobody does
            pass
    with contextlib.suppress(RuntimeError):  # not there yet
        return opener(data_dir, split, False)
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with lock, contextlib.redirect_stdout(io.StringIO()):
            return opener(data_dir, split, True)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"data set {name} is not in data_dir {data_dir} and could not be downloaded ({error}): "
            "give --data-dir a folder that holds it, or try again with a network"
        ) from None


def classes_of(part: Any, labels: np.ndarray | None) -> list[str]:
    """Names of the classes, or their numbers."""
    if labels is None:
        return []
    known = getattr(part, "classes", None)
    return list(map(str, known)) if known else [str(number) for number in range(int(labels.max()) + 1)]


def open_digits(reading: Reading) -> ArraySource:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey: 1,300 train, 137 val, 360 test, cut by the fixed seed."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images) * (255 / 16)  # stored as 0..16
    source = ArraySource("digits", [images.round().to(torch.uint8).numpy()], reading)
    source.kind, source.labels = "named", digits.target.astype(np.int64)
    source.classes = [str(digit) for digit in range(10)]
    order = fixed_permutation(len(source))
    parts = zip(("test", "val", "train"), order.split([360, 137, len(source) - 497]), strict=True)
    source.splits = {split: part.numpy() for split, part in parts}
    return source
