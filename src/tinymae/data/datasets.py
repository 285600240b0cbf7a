"""Datasets -> uint8 tensors -> batches that depend on (seed, step) alone."""

import contextlib
import hashlib
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torchvision import datasets
from tqdm.auto import tqdm

from ..errors import InputError
from ..tensors import pair, to_device
from .images import class_names, find_images, read_image, visible_folders
from .splits import HELD_OUT, SPLITS, fixed_permutation, held_out

MEMORY_LIMIT_GB = 4.0  # folders that decode to more than this are streamed


@dataclass
class ImageDataset:
    """Pictures in memory, as one tensor."""

    name: str
    images: Tensor  # uint8 (N, C, H, W)
    labels: Tensor | None  # int64 (N,), or None if unlabelled
    classes: list[str]
    skipped: list[Path] = field(default_factory=list)  # unreadable files that were left out

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)"""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @cached_property
    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel, of pixels in [0, 1]."""
        return channel_statistics(self.images)

    @property
    def fingerprint(self) -> str:
        """How many images, and the digest of their pixels and labels."""
        total = hashlib.sha256(self.images.cpu().numpy().tobytes())
        if self.labels is not None:
            total.update(self.labels.cpu().numpy().tobytes())
        return f"{len(self)} images, {total.hexdigest()[:16]}"

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images and labels at `indices` (B,), on the dataset's device."""
        indices = to_device(indices, self.images.device)
        return self.images[indices], None if self.labels is None else self.labels[indices]

    def subset(self, indices: Tensor) -> "ImageDataset":
        """The dataset of these pictures only."""
        images, labels = self[indices]
        return replace(self, images=images, labels=labels)

    def to(self, device: torch.device | str) -> "ImageDataset":
        """The same dataset with its tensors on `device`."""
        return replace(
            self, images=self.images.to(device), labels=None if self.labels is None else self.labels.to(device)
        )


@dataclass
class StreamedDataset:
    """Pictures in files, decoded when they are asked for."""

    name: str
    files: list[Path]
    labels: Tensor | None  # int64 (N,), or None if unlabelled
    classes: list[str]
    image_shape: tuple[int, int, int]  # (channels, height, width)
    skipped: list[Path] = field(default_factory=list)  # unreadable files that were left out

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel, of pixels in [0, 1], from 2,000 pictures at most."""
        some = torch.linspace(0, len(self) - 1, min(len(self), 2000)).long()
        return channel_statistics(self[some][0])

    @property
    def fingerprint(self) -> str:
        """How many images, and the digest of their names, sizes in bytes and labels."""
        root = Path(os.path.commonpath(self.files)) if len(self) > 1 else self.files[0].parent
        names = [f"{file.relative_to(root).as_posix()} {file.stat().st_size}\n" for file in self.files]
        total = hashlib.sha256("".join(names).encode())
        if self.labels is not None:
            total.update(self.labels.numpy().tobytes())
        return f"{len(self)} images, {total.hexdigest()[:16]}"

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        """Decode the pictures at `indices` (B,) into uint8 (B, C, H, W), with their labels."""
        images = torch.stack([read_image(self.files[i], self.image_shape) for i in indices.tolist()])
        return images, None if self.labels is None else self.labels[indices]

    def subset(self, indices: Tensor) -> "StreamedDataset":
        """The dataset of these pictures only."""
        labels = None if self.labels is None else self.labels[indices]
        return replace(self, files=[self.files[i] for i in indices.tolist()], labels=labels)

    def to(self, device: torch.device | str) -> "StreamedDataset":
        """Itself: pictures go to the device batch by batch."""
        return self


Dataset = ImageDataset | StreamedDataset
Images = str | Path | Tensor | np.ndarray  # what users give as data: a name, a folder, or pixels


def load_dataset(
    data: Images,
    split: str = "train",
    *,
    labels: Tensor | np.ndarray | Sequence | None = None,
    data_dir: str | Path = "data",
    image_size: int | tuple[int, int] | None = None,
    channels: int = 3,
    memory_limit_gb: float = MEMORY_LIMIT_GB,
    skip_unreadable: bool = False,
) -> Dataset:
    """The train, validation or test images of a named dataset, of a folder, or of a tensor or array.

    `cifar10`, `cifar100`, `mnist` come from torchvision (downloaded to `data_dir` on first use), `digits` from
    scikit-learn (8x8, no network). Anything else is a folder of images: class sub-folders, or plain images without
    labels; `train`, `val` and `test` sub-folders, where there are any, are the splits, else 10 % is held out for each
    of val and test. The classes are those of `train`; the other splits may lack some of them. Folder pictures are
    resized to `image_size` (default 32) and centre-cropped, and have `channels` 1 (grey) or 3; they stay in memory up
    to `memory_limit_gb`, and are streamed beyond.

    A uint8 tensor or array (N, C, H, W), (N, H, W, C) or, of grey images, (N, H, W) is cut into splits as a folder is;
    `labels` (N,) may be numbers or names.

    The test split is the official one. Validation is held out of train by a fixed seed: 2,000 images of the named
    sets, so that CIFAR has 48,000 / 2,000 / 10,000.

    >>> dataset = load_dataset("digits", "test")
    >>> dataset.images.shape, dataset.images.dtype, dataset.labels.shape, dataset.classes[:3]
    (torch.Size([360, 1, 8, 8]), torch.uint8, torch.Size([360]), ['0', '1', '2'])

    Every picture of a folder is read once here. An unreadable one is refused by name, or with `skip_unreadable` left
    out and listed in the dataset's `skipped`.

    Raises InputError: an unknown name or split, a missing or empty folder, an unreadable picture, pictures beside
    class sub-folders, a class that `train` lacks, an array of another shape or dtype, labels of another length.
    """
    if split not in SPLITS:
        raise InputError(f"split {split!r} is none of {', '.join(SPLITS)}")
    name = str(data) if isinstance(data, str | Path) else ""
    if not isinstance(data, str | Path):
        dataset = load_array(data, labels, split)
    elif labels is not None:
        raise InputError(f"labels go with a tensor or an array of images; data {name} has its own")
    elif name == "digits":
        dataset = load_digits(split)
    elif name in HELD_OUT:
        dataset = load_torchvision(name, split, Path(data_dir))
    else:
        shape = (channels, *pair(32 if image_size is None else image_size))
        return load_folder(Path(name), split, shape, memory_limit_gb, skip_unreadable)
    if image_size is not None and dataset.image_shape[1:] != pair(image_size):
        size = list(pair(image_size))
        resized = torch.nn.functional.interpolate(dataset.images.float(), size, mode="bicubic", antialias=True)
        dataset = replace(dataset, images=resized.round().clamp(0, 255).to(torch.uint8))
    return dataset


def load_array(images: Tensor | np.ndarray, labels, split: str) -> ImageDataset:
    """Pixels from Python, with a tenth held out for each of validation and test."""
    dtype = str(getattr(images, "dtype", type(images).__name__)).removeprefix("torch.")
    if dtype != "uint8":
        raise InputError(f"data is {dtype}: give a tensor or an array of uint8 pixels, 0 to 255")
    pixels = images if isinstance(images, Tensor) else torch.from_numpy(np.ascontiguousarray(images))
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    if pixels.ndim != 4 or not pixels.numel():
        raise InputError(f"data has shape {tuple(images.shape)}: give images (N, C, H, W), (N, H, W, C) or (N, H, W)")
    if pixels.shape[3] in (1, 3) and pixels.shape[1] not in (1, 3):
        pixels = pixels.permute(0, 3, 1, 2)
    if len(pixels) < 3:
        raise InputError(f"data has {len(pixels)} images, too few for train, val and test")
    classes, numbers = number_labels(labels, len(pixels))
    tenth = max(1, len(pixels) // 10)
    part = held_out(len(pixels), {"val": tenth, "test": tenth}, split)
    return ImageDataset("array", pixels[part].contiguous(), None if numbers is None else numbers[part], classes)


def number_labels(labels, count: int) -> tuple[list[str], Tensor | None]:
    """The names of the classes, and labels as their numbers; classes that are numbers from 0 keep them."""
    if labels is None:
        return [], None
    given = np.asarray(labels)
    if given.shape != (count,):
        raise InputError(f"labels have shape {given.shape} for {count} images: give one label for each image")
    if np.issubdtype(given.dtype, np.integer) and given.min() >= 0:
        return [str(number) for number in range(int(given.max()) + 1)], torch.from_numpy(given.astype(np.int64))
    if np.issubdtype(given.dtype, np.str_):
        names, numbers = np.unique(given, return_inverse=True)
        return [str(name) for name in names], torch.from_numpy(numbers.astype(np.int64))
    raise InputError(f"labels are {given.dtype}: give numbers from 0, or names")


def load_digits(split: str) -> ImageDataset:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey: 1,300 train, 137 val, 360 test, cut by the fixed seed."""
    from sklearn.datasets import load_digits as load

    digits = load()
    images = torch.from_numpy(digits.images)[:, None] * (255 / 16)  # stored as 0..16
    order = fixed_permutation(len(images))
    part = dict(zip(("test", "val", "train"), order.split([360, 137, len(images) - 497]), strict=True))[split]
    labels = torch.from_numpy(digits.target).long()
    return ImageDataset("digits", images.round().to(torch.uint8)[part], labels[part], [str(d) for d in range(10)])


def load_torchvision(name: str, split: str, data_dir: Path) -> ImageDataset:
    """CIFAR-10, CIFAR-100 or MNIST with the official test split."""
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100, "mnist": datasets.MNIST}[name]
    train = split != "test"
    try:
        source = kind(data_dir, train=train)
    except RuntimeError:  # not there yet
        source = download(kind, name, data_dir, train=train)
    images = torch.as_tensor(source.data)
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
    labels = torch.as_tensor(source.targets).long()
    if split != "test":
        part = held_out(len(images), {"val": HELD_OUT[name]}, split)
        images, labels = images[part], labels[part]
    return ImageDataset(name, images.contiguous(), labels, list(source.classes))


def download(kind, name: str, data_dir: Path, *, train: bool):
    """Fetch a data set of torchvision's, one process at a time: the others find it there."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(data_dir / f".{name}.lock"), contextlib.redirect_stdout(io.StringIO()):
            return kind(data_dir, train=train, download=True)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"data set {name} is not in data_dir {data_dir} and could not be downloaded ({error}): "
            "give --data-dir a folder that holds it, or try again with a network"
        ) from None


def load_folder(
    folder: Path, split: str, shape: tuple[int, int, int], memory_limit_gb: float, skip_unreadable: bool
) -> Dataset:
    """A folder of images, in class sub-folders or not, cut into splits or not."""
    if not folder.is_dir():
        known = ", ".join(["digits", *HELD_OUT])
        raise InputError(f"data set {folder} is neither one of {known} nor a folder that exists")
    given = {part: folder / part for part in SPLITS if (folder / part).is_dir()}
    if "train" not in given:
        if given and {path.name for path in visible_folders(folder)} > given.keys():
            given = {}  # they are classes, whose names chance to be those of splits
        elif given and split not in given:
            raise InputError(f"folder {folder} has {', '.join(given)} but no train, from which {split} would come")
    root = given.get(split) or given.get("train") or folder
    classes_of_train = class_names(given["train"]) if "train" in given and root != given["train"] else None
    files, labels, classes = find_images(root, classes_of_train)
    if split in given and split != "train":
        part = torch.arange(len(files))
    else:  # val and test come out of train unless they have folders of their own
        tenth = max(1, len(files) // 10)
        if len(files) < 3:
            raise InputError(f"folder {folder} has {len(files)} images, too few for train, val and test")
        part = held_out(len(files), {held: tenth for held in ("val", "test") if held not in given}, split)
    files, labels = [files[i] for i in part.tolist()], None if labels is None else labels[part]
    dataset = StreamedDataset(folder.name, files, labels, classes, shape)
    streamed = len(files) * np.prod(shape) > memory_limit_gb * 2**30
    images, skipped = read_all(dataset, keep=not streamed, skip_unreadable=skip_unreadable)
    if skipped:
        good = [i for i, file in enumerate(files) if file not in skipped]
        if not good:
            raise InputError(f"folder {folder} has no readable image for {split}")
        dataset = dataset.subset(torch.tensor(good))
    if streamed:
        return replace(dataset, skipped=sorted(skipped))
    return ImageDataset(folder.name, torch.stack(images), dataset.labels, classes, sorted(skipped))


def read_all(dataset: "StreamedDataset", *, keep: bool, skip_unreadable: bool) -> tuple[list[Tensor], set[Path]]:
    """Decode every picture once, before training relies on it: (pictures if `keep`, the unreadable files).

    Raises InputError for the first unreadable one, unless `skip_unreadable`.
    """

    def read(file: Path) -> Tensor | InputError | None:
        try:
            image = read_image(file, dataset.image_shape)
        except InputError as error:
            return error
        return image if keep else None

    images, skipped = [], set()
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        results = pool.map(read, dataset.files)
        bar = tqdm(results, desc="reading pictures", total=len(dataset), leave=False, disable=len(dataset) < 5000)
        for file, result in zip(dataset.files, bar, strict=True):
            if isinstance(result, InputError):
                if not skip_unreadable:
                    pool.shutdown(cancel_futures=True)
                    raise result
                skipped.add(file)
            elif keep:
                images.append(result)
    return images, skipped


# ---- splits and subsets, by fixed seeds


def channel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and deviation per channel of uint8 images (N, C, H, W), of pixels in [0, 1], exact by counting.

    >>> channel_statistics(torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2))
    ([0.5], [0.5])
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in images.transpose(0, 1):
        share = torch.bincount(channel.flatten().cpu(), minlength=256) / channel.numel()
        mean.append(float(share.double() @ values))
        std.append(max(float(share.double() @ (values - mean[-1]).square()) ** 0.5, 1e-6))
    return [round(m, 6) for m in mean], [round(s, 6) for s in std]


# ---- batches


def require_labels(name: str, **splits: Dataset) -> None:
    """Raises InputError for splits of the data `name` whose pictures have no classes."""
    for split, dataset in splits.items():
        if dataset.labels is None:
            raise InputError(f"data set {name} has no labels in {split}: sort its images into class sub-folders")


def require_channels(dataset: Dataset, in_channels: int) -> None:
    """Raises InputError unless the dataset's images have the channels that a model wants."""
    if dataset.image_shape[0] != in_channels:
        raise InputError(
            f"data set {dataset.name} has {dataset.image_shape[0]} channels, the weights want {in_channels}"
        )
