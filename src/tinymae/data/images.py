"""Image files: finding and decoding them."""

import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..errors import InputError


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
LARGEST = 50_000_000  # pixels while resizing: a narrow image grows by far more than its file says


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
        if size[0] * size[1] > LARGEST:
            raise InputError(
                f"image {path} cannot be read ({image.width} x {image.height} pixels are too narrow for "
                f"{width} x {height}): repair it, remove it, or give --skip-unreadable"
            )
        left, top = (size[0] - width) // 2, (size[1] - height) // 2
        image = image.resize(size, Image.Resampling.BICUBIC).crop((left, top, left + width, top + height))
    return torch.from_numpy(np.array(image)).reshape(height, width, channels).permute(2, 0, 1).contiguous()
