"""Datasets -> uint8 tensors -> batches that depend on (seed, step) alone."""

import contextlib
import io
import os
import random
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

from .files import InputError
from .mae import pair, to_device
from .randomness import derive_seed

SPLITS = ("train", "val", "test")
SPLIT_SEED = 2111  # which images are held out is part of the protocol, not of a run
HELD_OUT = {"cifar10": 2000, "cifar100": 2000, "mnist": 2000}  # images taken from train for validation
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


def load_dataset(
    name_or_folder: str | Path,
    split: str = "train",
    *,
    data_dir: str | Path = "data",
    image_size: int | tuple[int, int] | None = None,
    channels: int = 3,
    memory_limit_gb: float = MEMORY_LIMIT_GB,
    skip_unreadable: bool = False,
) -> Dataset:
    """The train, validation or test pictures of a named dataset or of a folder.

    `cifar10`, `cifar100`, `mnist` come from torchvision (downloaded to `data_dir` on first use), `digits` from
    scikit-learn (8x8, no network). Anything else is a folder of images: class sub-folders, or plain images without
    labels; `train`, `val` and `test` sub-folders, where there are any, are the splits, else 10 % is held out for each
    of val and test. The classes are those of `train`; the other splits may lack some of them. Folder pictures are
    resized to `image_size` (default 32) and centre-cropped, and have `channels` 1 (grey) or 3; they stay in memory up
    to `memory_limit_gb`, and are streamed beyond.

    The test split is the official one. Validation is held out of train by a fixed seed: 2,000 images of the named
    sets, so that CIFAR has 48,000 / 2,000 / 10,000.

    >>> dataset = load_dataset("digits", "test")
    >>> dataset.images.shape, dataset.images.dtype, dataset.labels.shape, dataset.classes[:3]
    (torch.Size([360, 1, 8, 8]), torch.uint8, torch.Size([360]), ['0', '1', '2'])

    Every picture of a folder is read once here. An unreadable one is refused by name, or with `skip_unreadable` left
    out and listed in the dataset's `skipped`.

    Raises InputError: an unknown name or split, a missing or empty folder, an unreadable picture, pictures beside
    class sub-folders, a class that `train` lacks.
    """
    if split not in SPLITS:
        raise InputError(f"split {split!r} is none of {', '.join(SPLITS)}")
    name = str(name_or_folder)
    if name == "digits":
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
    try:
        source = kind(data_dir, train=split != "test")
    except RuntimeError:  # not there yet
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                source = kind(data_dir, train=split != "test", download=True)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"data set {name} is not in data_dir {data_dir} and could not be downloaded ({error}): "
                "give --data-dir a folder that holds it, or try again with a network"
            ) from None
    images = torch.as_tensor(source.data)
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
    labels = torch.as_tensor(source.targets).long()
    if split != "test":
        part = held_out(len(images), {"val": HELD_OUT[name]}, split)
        images, labels = images[part], labels[part]
    return ImageDataset(name, images.contiguous(), labels, list(source.classes))


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


def images_in(folder: Path, pattern: str) -> list[Path]:
    """Image files of a folder that a glob pattern finds, sorted."""
    return sorted(path for path in folder.glob(pattern) if path.suffix.lower() in IMG_EXTENSIONS and path.is_file())


def visible_folders(root: Path) -> list[Path]:
    """Its sub-folders, sorted, without hidden ones."""
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def class_names(root: Path) -> list[str] | None:
    """The names of its class sub-folders, sorted; None if its pictures have no classes."""
    return None if images_in(root, "*") else [folder.name for folder in visible_folders(root)]


def find_images(root: Path, classes: list[str] | None = None) -> tuple[list[Path], Tensor | None, list[str]]:
    """Image files under `root`, sorted, with labels and class names if they are in class sub-folders.

    Labels count the names of `classes`, by default those found. Raises InputError if there are no images, if a class
    sub-folder has none or is none of `classes`, or if there are images beside class sub-folders that have some.
    """
    plain, folders = images_in(root, "*"), visible_folders(root)
    if plain and (full := next((folder for folder in folders if images_in(folder, "**/*")), None)):
        raise InputError(f"folder {root} holds images ({plain[0].name}) beside the folder {full.name}: move one away")
    if plain or not folders:
        if not plain:
            raise InputError(f"folder {root} holds no images ({', '.join(IMG_EXTENSIONS)})")
        return plain, None, []
    classes = classes or [folder.name for folder in folders]
    files, labels = [], []
    for folder in folders:
        if folder.name not in classes:
            raise InputError(f"class folder {folder} is none of train's classes, {', '.join(classes)}: rename it")
        found = images_in(folder, "**/*")
        if not found:
            raise InputError(f"class folder {folder} holds no images ({', '.join(IMG_EXTENSIONS)})")
        files += found
        labels += [classes.index(folder.name)] * len(found)
    return files, torch.tensor(labels), classes


# What Pillow raises for files that are no image, are cut short, lie about their size, or are absurdly large.
UNREADABLE = (
    OSError, SyntaxError, ValueError, TypeError, IndexError, EOFError, OverflowError, MemoryError, struct.error,
    zlib.error, Image.DecompressionBombError,
)  # fmt: skip


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert to "RGB" or "L": 16-bit grey is scaled down, not clipped; transparent parts become white."""
    if image.mode.startswith("I"):
        pixels = np.asarray(image).astype(np.float64)
        image = Image.fromarray((pixels / 257).round().clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def read_image(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """Decode one picture to uint8 (C, H, W): converted to grey or RGB, shorter side resized, centre-cropped.

    Raises InputError, naming the file, if it is no readable image.
    """
    channels, height, width = shape
    try:
        with Image.open(path) as file:
            image = to_mode(ImageOps.exif_transpose(file), {1: "L", 3: "RGB"}[channels])
    except KeyError:
        raise InputError(f"channels {channels} is neither 1 nor 3, which is what a folder of images gives") from None
    except UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"image {path} cannot be read ({reason}): repair it, remove it, or give --skip-unreadable"
        ) from None
    if image.size != (width, height):
        scale = max(height / image.height, width / image.width)
        size = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
        left, top = (size[0] - width) // 2, (size[1] - height) // 2
        image = image.resize(size, Image.Resampling.BICUBIC).crop((left, top, left + width, top + height))
    return torch.from_numpy(np.array(image)).reshape(height, width, channels).permute(2, 0, 1).contiguous()


# ---- splits and subsets, by fixed seeds


def fixed_permutation(count: int, seed: int = SPLIT_SEED) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def held_out(count: int, sizes: dict[str, int], split: str) -> Tensor:
    """Which of `count` items belong to `split`, in file order; train is what the held-out `sizes` leave."""
    order = fixed_permutation(count)
    parts = dict(zip(["train", *sizes], order.split([count - sum(sizes.values()), *sizes.values()]), strict=True))
    return parts[split].sort().values


def few_labels(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Indices of a share of the labels, the same share of each class (at least one), chosen by `seed`."""
    if not 0 < fraction <= 1:
        raise InputError(f"label_fraction {fraction} is outside (0, 1]")
    order = fixed_permutation(len(labels), derive_seed(seed, "few labels")).to(labels.device)
    chosen = []
    for label in labels.unique():
        members = order[labels[order] == label]
        chosen.append(members[: max(1, round(fraction * len(members)))])
    return torch.cat(chosen).sort().values


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


@dataclass
class Batch:
    """One process's share, or a micro-batch of it, of a step's global batch."""

    images: Tensor  # uint8 (B, C, H, W), on the training device
    labels: Tensor | None  # int64 (B,)
    positions: Tensor  # int64 (B,): where these images stand in the global batch


def split_batch(batch_size: int, parts: int) -> list[Tensor]:
    """Cut the positions 0..batch_size-1 of a global batch into equal parts, one for each process and micro-batch.

    Part k takes the k-th run from the front and its mirror image from the back. Mixup pairs position i with its mirror,
    so partners always land in the same part and mixing is the same however many parts there are.
    """
    if batch_size % (2 * parts) and parts > 1:
        raise InputError(
            f"batch_size {batch_size} is not a multiple of 2 x {parts} (processes x gradient_accumulation_steps)"
        )
    half = batch_size // (2 * parts)
    everything = torch.arange(batch_size)
    if parts == 1:
        return [everything]
    mirrored = everything.flip(0)
    return [
        torch.cat([everything[k * half : (k + 1) * half], mirrored[k * half : (k + 1) * half].flip(0)])
        for k in range(parts)
    ]


def require_labels(name: str, **splits: Dataset) -> None:
    """Raises InputError for splits of the data `name` whose pictures have no classes."""
    for split, dataset in splits.items():
        if dataset.labels is None:
            raise InputError(f"data set {name} has no labels in {split}: sort its images into class sub-folders")


def count_steps(dataset: Dataset, batch_size: int) -> int:
    """Steps in an epoch. Raises InputError if the dataset is smaller than one batch."""
    if not 0 < batch_size <= len(dataset):
        raise InputError(f"batch_size {batch_size} is not within 1 and the data set's {len(dataset)} images")
    return len(dataset) // batch_size


def step_indices(count: int, batch_size: int, seed: int, start_step: int = 0) -> Iterator[Tensor]:
    """The global batch of each step from `start_step` on, for ever: epoch e's order is a permutation by (seed, e).

    An epoch has count // batch_size steps; the remainder rests for that epoch.
    """
    steps_per_epoch = count // batch_size
    epoch, position = divmod(start_step, steps_per_epoch)
    while True:
        order = fixed_permutation(count, derive_seed(seed, "order", epoch))
        for start in range(position * batch_size, steps_per_epoch * batch_size, batch_size):
            yield order[start : start + batch_size]
        epoch, position = epoch + 1, 0


def step_batches(
    dataset: Dataset,
    *,
    batch_size: int,
    parts: list[Tensor],
    seed: int,
    device: torch.device | str,
    start_step: int = 0,
    num_workers: int = 2,
) -> Iterator[list[Batch]]:
    """For each step from `start_step` on: this process's micro-batches, one for each of its `parts` of the batch."""
    steps = step_indices(len(dataset), batch_size, seed, start_step)
    wanted = (indices[part] for indices in steps for part in parts)
    if isinstance(dataset, StreamedDataset):
        micro_batches: Iterator[tuple[Tensor, Tensor | None]] = iter(DataLoader(
            dataset,  # type: ignore[arg-type]  # no subclass of torch's, of which DataLoader needs only the indexing
            sampler=wanted, batch_size=None, num_workers=num_workers, pin_memory=str(device) != "cpu",
            prefetch_factor=4 if num_workers else None, worker_init_fn=limit_worker_threads,
        ))  # fmt: skip
    else:
        micro_batches = (dataset[indices] for indices in wanted)
    while True:
        step = []
        for part in parts:
            images, labels = next(micro_batches)
            labels = None if labels is None else to_device(labels, device)
            step.append(Batch(to_device(images, device), labels, part))
        yield step


def limit_worker_threads(worker: int) -> None:
    torch.set_num_threads(1)


def chunks(dataset: Dataset, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The dataset in its own order, `size` pictures at a time: for evaluation.

    >>> [len(images) for images, labels in chunks(load_dataset("digits", "val"), 50)]
    [50, 50, 37]
    """
    for indices in torch.arange(len(dataset)).split(size):
        yield dataset[indices]


def pick(dataset: Dataset, count: int, seed: int = SPLIT_SEED) -> Dataset:
    """At most `count` pictures, always the same ones.

    >>> len(pick(load_dataset("digits", "val"), 10))
    10
    """
    if len(dataset) <= count:
        return dataset
    return dataset.subset(torch.tensor(sorted(random.Random(seed).sample(range(len(dataset)), count))))
