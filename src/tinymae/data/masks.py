"""Masks beside images: the class of every pixel, in a PNG file for each image."""

from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..bars import map_threads
from ..errors import InputError, first_line, refusal
from .datasets import Dataset
from .fit import Fit, fitted_size, place
from .splits import without_prefix
from .unreadable import UNREADABLE

IGNORED = 255  # of a pixel without a class: neither learned from nor judged by


def read_masks(
    folder: str | Path, dataset: Dataset, *, classes: int | None = None, fit: Fit = "crop"
) -> Tensor:  # fmt: skip
    """The masks uint8 (N, H, W) of a data set's images, of their size; `IGNORED` is a pixel without a class.

    The image `cats/1.jpg` has the mask `FOLDER/cats/1.png`: grey or palette values are the numbers of classes, from 0.
    A mask is resized to the nearest pixel, and cropped as its image was, or padded with `IGNORED` where that was.

    Raises InputError: images that are no files, a mask that is missing or damaged, has more than one channel, or has a
    class beyond the number of `classes`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"masks folder {folder} does not exist")
    if not dataset.of_files:
        raise InputError(f"masks {folder}: data {dataset.name} has no image files that masks could stand beside")
    paths = [mask_path(folder, without_prefix(name, dataset.prefixes)) for name in dataset.names]
    if len({*paths}) < len(paths):
        twice = next(path for path, count in Counter(paths).items() if count > 1)
        raise InputError(f"mask {twice} would be that of several images: give images that lie in one folder")
    size = dataset.image_shape[1:]
    read = partial(read_mask, size=size, fit=fit)
    masks = torch.stack(map_threads(read, paths, desc="reading masks", wanted=len(paths) >= 5000))
    if classes is not None:
        unknown = ((masks >= classes) & (masks != IGNORED)).flatten(1).any(dim=1).nonzero()
        if len(unknown):
            row = int(unknown[0])
            worst = int(masks[row][masks[row] != IGNORED].max())
            raise InputError(f"mask {paths[row]} has class {worst}, the masks of train have 0 to {classes - 1}")
    return masks


def mask_path(folder: Path, name: str) -> Path:
    """The file of an image's mask. Raises InputError if there is none."""
    path = folder / Path(name).with_suffix(".png")
    if Path(name).is_absolute() or not path.is_file():
        raise InputError(f"mask {path} does not exist: image {name} needs one of the same relative path in {folder}")
    return path


def read_mask(path: Path, size: tuple[int, int], fit: Fit) -> Tensor:
    """One mask uint8 (H, W), fitted to `size`."""
    try:
        with Image.open(path) as file:
            mode, values = file.mode, np.array(file)  # of a palette its indices, not its colours
    except UNREADABLE as error:
        raise refusal(error, f"mask {path} cannot be read ({first_line(error)})") from None
    if mode not in ("1", "L", "P"):
        raise InputError(f"mask {path} has pixels of type {mode}: save the number of each pixel's class as 8-bit grey")
    mask = Image.fromarray(values.astype(np.uint8))
    resized, corner = fitted_size((mask.height, mask.width), size, fit, str(path))
    numbers = torch.from_numpy(np.array(mask.resize(resized[::-1], Image.Resampling.NEAREST)))
    beyond = None if fit == "crop" else torch.full((1, 1), IGNORED, dtype=torch.uint8)
    return place(numbers[None, None], size, corner, beyond)[0, 0]
