"""Image files and encoded bytes -> pixels."""

import contextlib
import functools
import io
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..errors import InputError
from .bands import Range, describe_shape, find_kind, map_array, open_tiff, read_array
from .fit import Fit, border_colour, fit_pixels, fitted_size, place
from .unreadable import UNREADABLE, OtherChannels, UnreadableImage, require_safe_size, unreadable

EXTENSIONS = (*IMG_EXTENSIONS, ".gif", ".jfif", ".avif", ".heic", ".heif", ".npy")

Depth = Literal["uint8", "uint16"]  # of pixels as they are kept; floats become uint16 over their stated range


def read_image(
    source: Path | bytes | Image.Image, shape: tuple[int, int, int], *, depth: Depth, pixel_range: Range | None = None,
    fit: Fit = "crop", name: str | None = None,
) -> Tensor:  # fmt: skip
    """Decode an image file, its bytes or an image of Pillow to pixels (C, H, W): the shorter side resized, then
    centre-cropped.

    With `fit` "pad" the longer side is resized, and the rest has the median colour of the image's outermost pixels.

    One channel is grey, three are RGB, any other number is what a multi-band TIFF or an .npy file (H, W, C) or
    (C, H, W) holds. `depth` "uint8" scales 16-bit files down, "uint16" scales 8-bit files up. 32-bit and float files
    need a `pixel_range`. Only the first image of a file with several is read. All but files have to be given a `name`.

    Raises UnreadableImage, naming the file, if it is no readable image, or for a number of channels that the file does
    not have or its format does not give; InputError without a needed `pixel_range`.
    """
    name = name or str(source)
    try:
        if isinstance(source, Image.Image):
            return from_pillow(load_upright(source, shape, fit, name), shape, depth, pixel_range, fit, name)
        if (kind := find_kind(source, shape[0])) is None:
            return from_pillow(decode(source, shape, fit, name), shape, depth, pixel_range, fit, name)
        values = read_array(source, kind, shape[0], pixel_range=pixel_range, name=name)
        return fit_array(to_depth(values, depth, pixel_range, name), shape, fit, name)
    except InputError:
        raise
    except UNREADABLE as error:
        raise unreadable(name, error) from None


def open_pillow(source: Path | bytes) -> Image.Image:
    """An image file or its bytes, not decoded yet."""
    know_heif()
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)


@functools.cache
def know_heif() -> None:
    """Let Pillow read photos of iPhones, if pillow-heif is installed: not on import, which changes nothing."""
    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()


def decode(source: Path | bytes, shape: tuple[int, int, int], fit: Fit, name: str) -> Image.Image:
    """The image upright, at a size not far above `shape` where its format (JPEG) can decode smaller."""
    with open_pillow(source) as file:
        scale = (min if fit == "crop" else max)(file.width / shape[2], file.height / shape[1])
        if scale >= 4:  # decoding at twice the size keeps resizing from what was left out
            file.draft(None, (round(2 * file.width / scale), round(2 * file.height / scale)))
        return load_upright(file, shape, fit, name)


def load_upright(file: Image.Image, shape: tuple[int, int, int], fit: Fit, name: str) -> Image.Image:
    """A copy of what is open, decoded and upright."""
    require_safe_size(file.height, file.width)
    size = file.height, file.width
    fitted_size(size, shape[1:], fit, name)  # a width that it refuses is a MemoryError of Pillow's
    upright = ImageOps.exif_transpose(file)
    upright.load()
    return upright.convert("I;16") if is_deep_pgm(file) else upright


def is_deep_pgm(file: Image.Image) -> bool:
    """Whether an open file has 16 bits, which Pillow takes for 32."""
    return (file.format, file.mode) == ("PPM", "I")


def from_pillow(
    image: Image.Image, shape: tuple[int, int, int], depth: Depth, pixel_range: Range | None, fit: Fit, name: str
) -> Tensor:
    """Grey or RGB pixels (C, H, W). Raises InputError for another number of channels."""
    channels, height, width = shape
    if channels not in (1, 3):
        raise OtherChannels(
            f"in_channels {channels}: image {name} is read as 1 (grey) or 3 (RGB), multi-band TIFF and .npy hold "
            "others: give another number"
        )
    if image.mode.startswith(("I", "F")):  # deeper than 8 bits: one channel
        grey = to_depth(np.asarray(image)[..., None], depth, pixel_range, name)
        return fit_array(grey, (1, height, width), fit, name).repeat(channels, 1, 1)
    image = to_mode(image, {1: "L", 3: "RGB"}[channels])
    if image.size == (width, height):
        pixels = to_tensor(image)
    else:
        size, (top, left) = fitted_size((image.height, image.width), (height, width), fit, name)
        resized = image.resize(size[::-1], Image.Resampling.BICUBIC)
        if fit == "crop":  # before it is copied: of a narrow image it is a fraction
            pixels = to_tensor(resized.crop((left, top, left + width, top + height)))
        else:
            colour = border_colour(to_tensor(image)[None])
            pixels = place(to_tensor(resized)[None], (height, width), (top, left), colour)[0]
    return pixels if depth == "uint8" else (pixels.int() * 257).to(torch.uint16)


def to_tensor(image: Image.Image) -> Tensor:
    """Pixels (C, H, W) of a grey or RGB image."""
    values = np.array(image).reshape(image.height, image.width, -1)
    return torch.from_numpy(values).permute(2, 0, 1).contiguous()


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert to "RGB" or "L"; transparent parts become white."""
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def to_depth(values: np.ndarray, depth: Depth, pixel_range: Range | None, name: str) -> np.ndarray:
    """Values of any type -> uint8 or uint16.

    >>> to_depth(np.array([-1.0, 0.0, 1.0]), "uint16", (-1, 1), "scan.tif")
    array([    0, 32768, 65535], dtype=uint16)

    Raises InputError for floats or more than 16 bits without a range, UnreadableImage for NaN and infinity.
    """
    top = np.iinfo(depth).max
    values = values.astype(values.dtype.newbyteorder("="), copy=False)  # files of other machines have theirs
    if values.dtype == bool:
        values = values.astype(np.uint8) * 255
    if pixel_range is None or values.dtype == np.uint8:  # 8 bits are taken as they are, in files of any kind
        if values.dtype not in (np.uint8, np.uint16):
            raise InputError(
                f"image {name} has {values.dtype} pixels: give pixel_range LOW HIGH, the values of black and white"
            )
        if str(values.dtype) == depth:
            return values
        return (
            values.astype(np.uint16) * np.uint16(257)
            if depth == "uint16"
            else ((values + 128.0) // 257).astype(np.uint8)
        )
    low, high = pixel_range
    scaled = (values.astype(np.float64) - low) / (high - low) * top
    if not np.isfinite(scaled).all():
        raise UnreadableImage(name, "NaN or infinity among its values")
    return scaled.round().clip(0, top).astype(depth)


def remark_on_range(values: np.ndarray, pixel_range: Range | None) -> str:
    """In brackets, what is worth knowing of some images' values: how many a range clips, or that they fill no range.

    >>> remark_on_range(np.array([-1.0, 0.0, 0.5, 2.0]), (0, 1))
    ' (50 % of the values lie outside 0 to 1 and are clipped)'
    >>> remark_on_range(np.array([17, 4001], dtype=np.uint16), None)
    ' (values up to 4,001: give pixel_range 0 4095 to use the whole range)'
    """
    if pixel_range is not None:
        low, high = pixel_range
        outside = 100 * float(((values < low) | (values > high)).mean())
        return f" ({outside:.2g} % of the values lie outside {low:g} to {high:g} and are clipped)" if outside else ""
    largest = int(values.max())
    if values.dtype != np.uint16 or not 0 < largest < 65536 // 4:
        return ""
    top = 2 ** largest.bit_length() - 1
    return f" (values up to {largest:,}: give pixel_range 0 {top} to use the whole range)"


def fit_array(values: np.ndarray, shape: tuple[int, int, int], fit: Fit, name: str) -> Tensor:
    """Pixels (H, W, C) -> (C, H, W) of `shape`, fitted as images are."""
    pixels = torch.from_numpy(np.array(np.moveaxis(values, 2, 0), order="C"))  # Pillow's own may not be written to
    return fit_pixels(pixels[None], shape[1:], fit, name)[0]


def look_at_header(source: Path | bytes, channels: int, name: str) -> tuple[int, int, int, str]:
    """(channels, height, width, type of values) of an image file or its bytes, not decoded where that can be.

    Raises one of UNREADABLE.
    """
    kind = find_kind(source, channels)
    if kind == "npy":
        assert isinstance(source, Path)
        array = map_array(source)
        return *describe_shape(array.shape, channels), str(array.dtype.newbyteorder("="))
    if kind == "tiff":
        with open_tiff(source, channels, name) as (_, part):
            return *describe_shape(part.shape, channels, part.axes), str(part.dtype.newbyteorder("="))
    with open_pillow(source) as file:
        deep = {"I;16": "uint16", "I;16B": "uint16", "I;16L": "uint16", "I": "int32", "F": "float32"}
        values = "uint16" if kind or is_deep_pgm(file) else deep.get(file.mode, "uint8")
        return len(file.getbands()), file.height, file.width, values


def largest_value(source: Path | bytes, shape: tuple[int, int, int], name: str) -> int:
    """Of an image's values as they are stored. Raises one of UNREADABLE."""
    if (kind := find_kind(source, shape[0])) is None:
        return int(np.asarray(decode(source, shape, "crop", name)).max())
    return int(read_array(source, kind, shape[0], name=name).max())
