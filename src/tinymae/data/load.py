"""Data to data sets: the splits of whatever users give, in memory where they fit."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .datasets import Dataset, ImageDataset, StreamedDataset
from .description import describe
from .fit import Fit
from .sources.open import open_source
from .sources.source import Reading, Source
from .splits import FRACTIONS, SPLITS, hash_names, held_out, split_by_hash

MEMORY_LIMIT_GB = 4.0  # images that take more than this are read batch by batch
Images = str | Path | Sequence[str | Path] | Tensor | np.ndarray | torch.utils.data.Dataset  # what users give as data


class ReadsImages(Protocol):
    """What a model says of the images that it takes."""

    @property
    def image_size(self) -> tuple[int, int]: ...
    @property
    def in_channels(self) -> int: ...
    @property
    def loading(self) -> dict[str, Any]: ...


def load_dataset(
    data: Any,
    split: str = "train",
    *,
    labels: Tensor | np.ndarray | Sequence | None = None,
    model: ReadsImages | None = None,
    data_dir: str | Path = "data",
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    val_fraction: float | None = None,
    test_fraction: float | None = None,
    pixel_range: tuple[float, float] | None = None,
    fit: Fit | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    group_column: str | None = None,
    group_pattern: str | None = None,
    memory_limit_gb: float = MEMORY_LIMIT_GB,
    skip_unreadable: bool = False,
) -> Dataset:
    """The train, validation or test images of some data, or all of them.

    Args:
        data: a name (`digits`, `cifar10`, ... as in `sources.named`; torchvision downloads to `data_dir`); a folder, or
            several, read without labels; image files; patterns of these, as "photos/*/"; a table of paths (.csv, .tsv,
            .parquet); an array file (.npy, .npz, .h5); Parquet files of encoded images or a folder of `save_to_disk`;
            `hf:owner/name` on the Hugging Face Hub; a tensor or array (N, C, H, W), (N, H, W, C) or (N, H, W); a torch
            Dataset; a `Dataset` or `DatasetDict` of Hugging Face; or a data set that this gave, of which val and test
            stay what they are.
        split: train, val, test or all.
        labels: (N,) of a tensor or array: numbers from 0, or names; -1 or "" is no label. Or (N, classes) of 0 and 1.
        model: an autoencoder or classifier, for which images are read as the commands read them: `image_size`,
            `channels`, `pixel_range` and `fit` are its own where they are not given.
        image_size: pixels, or (height, width); images are resized and centre-cropped, or see `fit`. Files have 32 by
            default.
        channels: of files: 1 is grey, 3 (the default) is RGB, up to 64 of multi-band TIFF or .npy files.
        val_fraction, test_fraction: held out of train where the data have no such split: 0.1 each, of images without
            labels 0.05 and 0.
        pixel_range: the values of black and white, of float or 32-bit pixels and of 16-bit ones that do not use all
            their values.
        fit: "crop" (the default), the shorter side is resized to the wanted size and the longer one centre-cropped;
            "pad", the longer side is resized, and the rest has the median colour of the image's outermost pixels.
        image_column, label_column, split_column: of tables, where they have other names than the usual ones, in any
            case.
        group_column: of a table: images with the same value there, as of one patient or film, stay in one split.
        group_pattern: the same by a regular expression, found in each image's path: its brackets, or all of it.
        memory_limit_gb: larger data are read batch by batch, and stay so where they are given again.
        skip_unreadable: leave damaged images out; read batch by batch, the next one of the class stands in.

    Which split an image belongs to follows from a hash of its own path or row: adding images moves no other. Paths
    begin in the folder; those in several folders, and absolute ones outside their table's folder, where these part,
    which another folder may change. Named sets have their official test split, and 2,000 images held out of train by a
    fixed seed. A folder's sub-folders `train`, `val` and `test` are the splits, in any case and spelling (`Training`,
    `valid`, `dev`); other sub-folders are classes. The classes are those of train.

    >>> dataset = load_dataset("digits", "test")
    >>> dataset.images.shape, dataset.images.dtype, dataset.labels.shape, dataset.classes[:3]
    (torch.Size([360, 1, 8, 8]), torch.uint8, torch.Size([360]), ['0', '1', '2'])

    Raises InputError for data that cannot be read, a split without images, or labels that do not fit; UnreadableImage
    for a damaged image.
    """
    reading: dict[str, Any] = {"image_size": image_size, "channels": channels, "pixel_range": pixel_range, "fit": fit}
    of_model: dict[str, Any] = {"channels": 3}
    if model is not None:
        of_model = {"image_size": model.image_size, "channels": model.in_channels} | model.loading
    reading = of_model | {name: value for name, value in reading.items() if value is not None}
    return load_splits(
        data, [split], labels=labels, data_dir=data_dir, val_fraction=val_fraction, test_fraction=test_fraction,
        image_column=image_column, label_column=label_column, split_column=split_column, group_column=group_column,
        group_pattern=group_pattern, memory_limit_gb=memory_limit_gb, skip_unreadable=skip_unreadable, several=True,
        **reading,
    )[split]  # fmt: skip


def load_splits(
    data: Any, splits: Sequence[str], *, labels: Any = None, val_fraction: float | None = None,
    test_fraction: float | None = None, group_pattern: str | None = None,
    memory_limit_gb: float = MEMORY_LIMIT_GB, skip_unreadable: bool = False,
    labelled: bool = False, unlabelled: bool = False, several: bool = False, masked: bool = False,
    present: bool = False, grouped: bool = False, no_test: bool = False, **reading: Any,
) -> dict[str, Dataset]:  # fmt: skip
    """Several splits of one source, which is opened once; see `load_dataset`. `reading` is what `Reading` takes.

    With `present`, splits that have no images are left out. With `no_test`, of data that come with a validation split,
    as folds do, no test is held out unless by its fraction. The groups of a pattern are looked for in all images as
    well, which are not cut, if they are to be `grouped`. Images that are `masked`, with a mask for each in place of
    a label, are held out like labelled ones. Labels are left out if `unlabelled` images are asked for, and those of
    images that may have several, (N, classes), unless `several` are.

    Raises InputError as well, if they must be `labelled`, for a split in which no image has a label, or for images with
    several that were not asked for.
    """
    for split in splits:
        if split not in (*SPLITS, "all"):
            raise InputError(f"split {split!r} is none of {', '.join(SPLITS)} and all")
    # What cannot be right is refused where it would not be used, too: with all splits, or for data that have their own.
    for name, fraction in (("val", val_fraction), ("test", test_fraction)):
        if fraction is not None and not 0 <= fraction < 1:
            raise InputError(f"{name}_fraction {fraction:g} is not within 0 and 1")
    if group_pattern is not None and reading.get("group_column") is not None:
        raise InputError("group_column and group_pattern are two ways to say the same: give one")
    pattern = None if group_pattern is None else compile_pattern(group_pattern)
    source = open_given(data, labels, Reading(skip_unreadable=skip_unreadable, **reading))
    of_several = source.labels is not None and source.labels.ndim == 2 and not several  # which were not asked for
    if labelled and of_several:
        raise InputError(
            f"data {source.name} has several labels an image, this command or its weights know one: give others"
        )
    if labelled and source.labels is None:
        raise no_labels(source, splits[0])
    if no_test and test_fraction is None and "val" in source.splits and "test" not in source.splits:
        test_fraction = 0.0
    unused = source.labels is not None and (unlabelled or of_several)
    whole = {*splits} == {"all"}
    if pattern is not None and (grouped or not whole):
        source.groups = match_groups(source, pattern)
    rows = {"all": np.arange(len(source))} if whole else cut(source, val_fraction, test_fraction, masked=masked)
    if unused:  # now that the images are cut as they are where the labels are used
        source.labels = None
    description = describe(source, rows, unused_labels=unused)
    loaded: dict[str, Dataset] = {}
    for split in splits:
        chosen = np.arange(len(source)) if split == "all" else rows.get(split, np.arange(0))
        if present and not len(chosen):
            continue
        if not len(chosen):
            raise no_images(source, split, rows, {"val": val_fraction, "test": test_fraction}.get(split))
        known = None if source.labels is None else source.labels[chosen]
        numbers = None if known is None or (known < 0).all() else torch.from_numpy(known)
        if labelled and numbers is None:
            raise no_labels(source, split)
        dataset = StreamedDataset(
            source, chosen, numbers, source.classes, skip_unreadable, description=description, split=split
        )
        size = len(dataset) * np.prod(source.image_shape) * np.dtype(source.depth).itemsize
        streamed = size > memory_limit_gb * 2**30 or isinstance(data, StreamedDataset)
        loaded[split] = dataset if streamed else dataset.in_memory()
    return loaded


def open_given(data: Any, labels: Any, reading: Reading) -> Source:
    """The reader of the data. A data set of ours is data again: it is cut by the names that its images have, so that
    those of one split stay in it, and val and test are not cut at all.
    """
    if isinstance(data, Dataset):
        reading = replace(reading, pixel_range=None)  # its pixels are scaled already
    in_memory = isinstance(data, ImageDataset) and labels is None
    source = open_source(*((data.images, data.labels) if in_memory else (data, labels)), reading)
    if isinstance(data, Dataset):
        source.name, source.given_names, source.groups = data.name, list(data.names), data.groups
        source.prefixes = data.prefixes
        source.classes = data.classes if source.labels is not None else []
        if data.split in ("val", "test"):
            source.splits = {data.split: np.arange(len(source))}
    return source


def cut(
    source: Source, val_fraction: float | None, test_fraction: float | None, *, masked: bool = False
) -> dict[str, np.ndarray]:
    """The rows of each split: those that the data come with, and what is held out of train for the others."""
    given = dict(source.splits)
    kind = "unlabelled" if source.labels is None and not masked else "labelled"
    fractions = {name: defaults[kind] for name, defaults in FRACTIONS.items() if name not in given}
    for name, fraction in (("val", val_fraction), ("test", test_fraction)):
        if fraction is None:
            continue
        if name in given or name in source.held_out:
            raise InputError(
                f"{name}_fraction {fraction:g}: data {source.name} has a {name} split of its own; leave it out"
            )
        fractions[name] = fraction
    train = given.pop("train", None)
    if train is None:
        if given:
            return given
        train = np.arange(len(source))
    if source.held_out:
        parts = held_out(len(train), source.held_out)
    else:
        if (total := sum(fractions.values())) >= 1:
            raise InputError(f"val_fraction and test_fraction are {total:g} together: below 1, please")
        if len(train) < 1 + sum(fraction > 0 for fraction in fractions.values()):
            splits = ", ".join(["train", *fractions])
            raise InputError(f"data {source.name} has {len(train)} images, too few for {splits}")
        labels = None if source.labels is None or source.labels.ndim == 2 else source.labels[train]
        wanted = [name for name, fraction in fractions.items() if fraction]
        parts = split_by_hash(places_of(source, train, wanted), fractions, labels, grouped=bool(source.groups))
    return {
        name: part for name, part in ({name: train[part] for name, part in parts.items()} | given).items() if len(part)
    }


def compile_pattern(pattern: str) -> re.Pattern:
    """A regular expression. Raises InputError for what is none."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise InputError(f"group_pattern {pattern!r} is no regular expression: {error}") from None


def match_groups(source: Source, pattern: re.Pattern) -> list[str]:
    """The group of each image, by an expression found in its name. Raises InputError where it is not found."""
    wrong = f"group_pattern {pattern.pattern!r}"
    if source.held_out:
        raise InputError(f"{wrong}: data {source.name} has splits of its own; leave it out")
    groups = []
    for name in source.names(np.arange(len(source))):
        if (found := pattern.search(name)) is None:
            raise InputError(f"{wrong} is not found in {name}, the name of an image of {source.name}")
        groups.append("/".join(part or "" for part in found.groups()) or found.group())
    return groups


def places_of(source: Source, rows: np.ndarray, wanted: list[str]) -> np.ndarray:
    """A number in [0, 1) of each row, which decides on its split: of its own name, or of its group's.

    Raises InputError for fewer groups than train and the `wanted` splits need.
    """
    if not source.groups:
        return source.places(rows)
    groups = [source.groups[row] for row in rows]
    if (count := len({*groups})) <= len(wanted):
        raise InputError(
            f"data {source.name}: {count} group{'s'[: count != 1]} of images cannot be cut into train, "
            f"{' and '.join(wanted)}: give another column or pattern, or splits of your own"
        )
    return hash_names(groups)


def no_images(source: Source, split: str, rows: dict[str, np.ndarray], fraction: float | None) -> InputError:
    """Of a split without images, though a `fraction` may have been wanted for it."""
    has = ", ".join(f"{len(part):,} {name}" for name, part in rows.items())
    if "train" not in rows:
        remedy = "give other data" if split == "train" else f"give another split{without(split)}"
    elif source.classes and fraction != 0:  # see `split_by_hash`
        unit, other = ("group", "another group column or pattern") if source.groups else ("image", "more images")
        remedy = f"each {unit} left in train is the only one of a class: give {other}, or splits of your own"
    else:
        remedy = f"give another split, or a larger --{split}-fraction{without(split)}"
    return InputError(f"data {source.name} has no images for {split}, only {has}: {remedy}")


def no_labels(source: Source, split: str) -> InputError:
    return InputError(f"data set {source.name} has no labels in {split}: {source.label_remedy}{without(split)}")


def without(split: str) -> str:
    """The remedy that is left where a split cannot be had."""
    return ", or leave test out: --no-test, or --split val of evaluate" if split == "test" else ""
