"""Image files that Pillow does not read as they are: TIFF of many bands, colours of more than 8 bits, arrays."""

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin

from ..errors import InputError
from .unreadable import OtherChannels, UnreadableImage, require_safe_size, unreadable

MAX_CHANNELS = 64
Kind = Literal["npy", "tiff", "png", "ppm"]
Range = tuple[float, float]  # which values of float or 32-bit images are black and white

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # how files begin; the last two are of more than 4 GB
PNG = b"\x89PNG\r\n\x1a\n"
PPM = re.compile(rb"P6(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)\s")
LONGEST_HEADER = 1024  # bytes of a PPM, with its comments
DESCRIPTION, PHOTOMETRIC, BITS, SAMPLES, EXTRA, ORIENTATION = 270, 262, 258, 277, 338, 274  # tags of TIFF
BLACK, WHITE, RGB = 1, 0, 2  # values of PHOTOMETRIC: grey whose 0 is black or white, and colours
ALPHA = (1, 2)  # values of EXTRA: the colours are multiplied by it, or not
PREMULTIPLIED = 1
LUMA = np.array([0.299, 0.587, 0.114])  # of RGB, as Pillow weighs them


def find_kind(source: Path | bytes, channels: int) -> Kind | None:
    """How to read an image file or its bytes for so many channels; None if Pillow does.

    Raises one of UNREADABLE.
    """
    if isinstance(source, Path) and source.suffix.lower() == ".npy":
        return "npy"
    with open_bytes(source) as file:
        head = file.read(LONGEST_HEADER)
        if head[:4] in TIFF:
            return "tiff" if channels not in (1, 3) or is_beyond_pillow(read_tags(file)) else None
    if channels not in (1, 3):
        return None
    if head[:8] == PNG and head[24:25] == b"\x10" and head[25:26] != b"\0":  # 16 bits, and not grey alone
        return "png"
    return "ppm" if (match := PPM.match(head)) and int(match[3]) > 255 else None


def open_bytes(source: Path | bytes) -> BinaryIO:
    """A file, or bytes like one."""
    return io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")


def read_array(
    source: Path | bytes, kind: Kind, channels: int, *, pixel_range: Range | None = None, name: str
) -> np.ndarray:  # fmt: skip
    """The values (H, W, channels) of a file that Pillow does not read, not yet scaled.

    Grey becomes RGB where three channels are wanted, and RGB grey where one is; transparent parts become white.

    Raises InputError for a file of another number of channels, or a library that it needs; one of UNREADABLE.
    """
    alpha, premultiplied = None, False
    if kind == "npy":
        assert isinstance(source, Path)
        map_array(source)  # which sees whether the file is as long as it says
        values = channels_to_end(np.load(source, allow_pickle=False), channels)
    elif kind == "tiff":
        values, alpha, premultiplied = read_tiff(source, channels, name)
    elif kind == "png":
        values, alpha = read_deep_png(source, name)
    else:
        values = read_deep_ppm(source)
    if values.ndim != 3 or values.shape[2] > MAX_CHANNELS or not values.size or values.dtype.kind not in "buif":
        raise UnreadableImage(name, f"{values.dtype} of shape {values.shape} are no image")
    found = values.shape[2] + (alpha is not None)
    if found != channels and (channels not in (1, 3) or values.shape[2] not in (1, 3)):
        raise OtherChannels(
            f"image {name} has {found} channel{'s'[: found != 1]}, {channels} {'is' if channels == 1 else 'are'} "
            f"wanted: give --in-channels {found} when pretraining"
        )
    if alpha is not None:
        values = onto_white(values, alpha, pixel_range, premultiplied=premultiplied)
    if values.shape[2] == channels:
        return values
    return values.repeat(3, axis=2) if channels == 3 else like(values, values @ LUMA)[..., None]


def onto_white(
    values: np.ndarray, alpha: np.ndarray, pixel_range: Range | None, *, premultiplied: bool
) -> np.ndarray:  # fmt: skip
    """Values (H, W, C) where an alpha (H, W) in [0, 1] is 1, and white where it is 0."""
    white = 1.0 if values.dtype.kind == "f" else float(np.iinfo(values.dtype).max)
    white, alpha = white if pixel_range is None else pixel_range[1], alpha[..., None]
    return like(values, (values if premultiplied else values * alpha) + white * (1 - alpha))


def like(values: np.ndarray, floats: np.ndarray) -> np.ndarray:
    """Floats as the type of other values, rounded where these are integers."""
    if values.dtype.kind == "f":
        return floats.astype(values.dtype)
    limits = np.iinfo(values.dtype)
    return floats.round().clip(limits.min, limits.max).astype(values.dtype)


def turn_upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, ...) as a file's tag of orientation, 1 to 8, says, in EXIF and TIFF alike.

    >>> turn_upright(np.array([[1, 2, 3], [4, 5, 6]]), 6)  # a quarter clockwise
    array([[4, 1],
           [5, 2],
           [6, 3]])
    """
    values = values.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else values
    values = values[:, ::-1] if orientation in (2, 3, 6, 7) else values
    return values[::-1] if orientation in (3, 4, 7, 8) else values


# ---- the shapes of arrays


def map_array(path: Path) -> np.ndarray:
    """The values of an .npy file where they are. Raises UnreadableImage for what cannot be pixels."""
    mapped = np.load(path, allow_pickle=False, mmap_mode="r")
    if not (isinstance(mapped, np.ndarray) and mapped.size and mapped.dtype.kind in "buif"):
        raise UnreadableImage(str(path), "it holds no array of pixels")
    return mapped


def channels_to_end(values: np.ndarray, channels: int, axes: str = "") -> np.ndarray:
    """(H, W), (H, W, C) or (C, H, W) -> (H, W, C); of other arrays a view of some kind.

    The channels are where `axes` say, if they end or begin with S; else on the side that has as many as are wanted, or
    else has fewer.
    """
    if values.ndim == 2:
        return values[..., None]
    if values.ndim != 3 or axes.endswith("S"):
        return values
    first, last = values.shape[0], values.shape[2]
    is_first = axes.startswith("S") or (last != channels and (first == channels or first < last))
    return np.moveaxis(values, 0, 2) if is_first else values


def describe_shape(shape: tuple[int, ...], channels: int, axes: str = "") -> tuple[int, int, int]:
    """(channels, height, width) of an array of this shape: see `channels_to_end`."""
    height, width, last = (*channels_to_end(np.broadcast_to(0, shape), channels, axes).shape, 1, 1)[:3]
    return last, height, width


# ---- TIFF


def read_tags(file: BinaryIO) -> TiffImagePlugin.ImageFileDirectory_v2:
    """The tags of a TIFF file's first image."""
    file.seek(0)
    head = file.read(8)
    tags = TiffImagePlugin.ImageFileDirectory_v2(head + (file.read(8) if 43 in head[2:4] else b""))
    file.seek(tags.next)
    tags.load(file)
    return tags


def is_beyond_pillow(tags: TiffImagePlugin.ImageFileDirectory_v2) -> bool:
    """Whether a TIFF has bands besides colours and alpha, or colours of more than 8 bits, of which Pillow keeps 8."""
    samples = tags.get(SAMPLES, 1)
    if samples == 1:  # its further images may be bands of the first, which a program says in the description
        return bool(tags.next) and DESCRIPTION in tags
    if tags.get(PHOTOMETRIC) not in (BLACK, WHITE, RGB):  # CMYK, or what JPEG and Lab have
        return max(tags.get(BITS, (1,))) > 8
    colours = 3 if tags.get(PHOTOMETRIC) == RGB else 1
    extra = tags.get(EXTRA, ALPHA[1:] if samples == 4 else ())  # Pillow takes four samples without a word for RGBA
    return max(tags.get(BITS, (1,))) > 8 or samples - any(each in ALPHA for each in extra) != colours


@contextlib.contextmanager
def open_tiff(source: Path | bytes, channels: int, name: str) -> Iterator[tuple[Any, Any]]:
    """A TIFF file opened by tifffile, and what of it is the image: see `find_bands`.

    Raises InputError without a library that it needs, UnreadableImage for whatever goes wrong in it.
    """
    try:
        import tifffile
    except ImportError:
        raise InputError(
            f"image {name} has many channels or more than 8 bits a colour, which need tifffile: pip install tifffile"
        ) from None
    try:
        with open_bytes(source) as file, tifffile.TiffFile(file) as tiff:
            yield tiff, find_bands(tiff, channels)
    except InputError:
        raise
    except Exception as error:  # of many kinds: tifffile checks little
        if "imagecodecs" in str(error):
            remedy = f"image {name} is compressed in a way that needs imagecodecs: pip install imagecodecs"
            raise InputError(remedy) from None
        raise unreadable(name, error) from None


def find_bands(tiff: Any, channels: int) -> Any:
    """What of an open TIFF is the image: its series, whose pages may be bands, or its first page alone.

    Where one or three channels are wanted, pages that the file does not say to be channels are further images.
    """
    series = tiff.series[0]
    fits = series.ndim <= 3 and (channels not in (1, 3) or (set(series.axes) <= set("YXSCQ")))
    return series if fits and describe_shape(series.shape, channels, series.axes)[0] <= MAX_CHANNELS else tiff.pages[0]


def read_tiff(source: Path | bytes, channels: int, name: str) -> tuple[np.ndarray, np.ndarray | None, bool]:
    """Values (H, W, C) of a TIFF, its alpha (H, W) in [0, 1] if it has one besides one or three wanted channels, and
    whether the values are multiplied by it.
    """
    with open_tiff(source, channels, name) as (tiff, part):
        require_safe_size(*describe_shape(part.shape, channels, part.axes)[1:])
        values = channels_to_end(part.asarray(), channels, part.axes)
        tag, extra = tiff.pages[0].tags.get(ORIENTATION), tuple(map(int, tiff.pages[0].extrasamples))
        values = turn_upright(values, 1 if tag is None else tag.value)
    place = next((values.shape[-1] - len(extra) + k for k, each in enumerate(extra) if each in ALPHA), None)
    if place is None or values.shape[-1] == channels or channels not in (1, 3):
        return values, None, False
    alpha = values[..., place] / (1 if values.dtype.kind == "f" else np.iinfo(values.dtype).max)
    if alpha.max() < 1:  # a band that a program took for alpha: tifffile calls the fourth so
        return values, None, False
    return np.delete(values, place, axis=2), alpha, extra[place - values.shape[-1]] == PREMULTIPLIED


# ---- 16 bits a colour


def read_deep_png(source: Path | bytes, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Values (H, W, C) of a PNG of 16 bits, and its alpha (H, W) in [0, 1] if it has one.

    Pillow keeps one of the two bytes of each value: the first if it is told that they begin with the high one, as in
    PNG, and the second if it is told the contrary. Grey with alpha it takes for four bytes a pixel. So all that it
    knows of damaged files holds here. (torchvision's decoder, which gives 16 bits, ends the process in some of them.)
    """
    found = []
    for order in ("B", "L"):
        with open_bytes(source) as file, Image.open(file) as image:
            require_safe_size(image.height, image.width)
            codec, extents, offset, layout = image.tile[0]
            layout = str(layout)
            if (image.mode, layout) not in (("RGB", "RGB;16B"), ("RGBA", "RGBA;16B"), ("RGBA", "LA;16B")):
                raise InputError(
                    f"image {name} has 16 bits a colour, which this Pillow reads otherwise: save it as TIFF"
                )
            told = "RGBA" if layout == "LA;16B" else layout.replace("16B", f"16{order}")
            image.tile = [(codec, extents, offset, told)]  # type: ignore[list-item]  # its own type is not public
            found.append(np.asarray(ImageOps.exif_transpose(image)).astype(np.uint16))
    if layout == "LA;16B":
        found = [found[0][..., 0::2], found[0][..., 1::2]]
    values = found[0] * 256 + found[1]
    return (values, None) if layout == "RGB;16B" else (values[..., :-1], values[..., -1] / 65535)


def read_deep_ppm(source: Path | bytes) -> np.ndarray:
    """Values (H, W, 3) of a PPM of 16 bits, where its largest value is white, as Pillow has it of a PGM."""
    with open_bytes(source) as file:
        content = file.read()
    match = PPM.match(content)
    assert match is not None  # of this kind
    width, height, white = map(int, match.groups())
    require_safe_size(height, width)
    values = np.frombuffer(content, ">u2", 3 * height * width, match.end()).reshape(height, width, 3)
    return (values * (65535 / white)).round().clip(0, 65535).astype(np.uint16)
