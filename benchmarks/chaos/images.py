"""Image files that are damaged, hostile or no images."""

import signal
import struct
import time
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tinymae import InputError
from tinymae.data.images import read_image

from .cases import Case, flip_bits


class TooSlow(BaseException):
    """Not an Exception, which the library might take for a file's fault."""


def save_originals(folder: Path) -> list[Path]:
    """Whole images of all formats and modes."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 18, 3), dtype=np.uint8)
    rgb = Image.fromarray(pixels)
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    clear = rgb.convert("RGBA")
    clear.putalpha(rgb.convert("L"))
    frames = [Image.fromarray(np.roll(pixels, shift, 0)) for shift in range(3)]
    several = {"save_all": True, "append_images": frames[1:]}
    plain = {mode: rgb.convert(mode) for mode in ("RGB", "L", "P", "1", "CMYK", "F")}
    kinds = plain | {"I;16": deep, "RGBA": clear, "LA": clear.convert("LA")}
    for suffix, modes in {"png": "RGB L P 1 I;16 RGBA LA", "jpg": "RGB L CMYK", "bmp": "RGB L P 1", "gif": "L P 1",
                          "tif": "RGB L P 1 CMYK F I;16 RGBA", "webp": "RGB RGBA", "ppm": "RGB", "pgm": "L I;16",
                          "tga": "RGB L P RGBA"}.items():  # fmt: skip
        for mode in modes.split():
            kinds[mode].save(folder / f"{mode.replace(';', '')}.{suffix}")
    for compression in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits"):
        rgb.save(folder / f"{compression}.tif", compression=compression)
    for suffix in ("gif", "tif", "webp", "png"):
        frames[0].save(folder / f"frames.{suffix}", **several)
    rgb.convert("P").save(folder / "transparent.png", transparency=3)
    rgb.convert("P").save(folder / "transparent.gif", transparency=3)
    rgb.save(folder / "progressive.jpg", progressive=True)
    rgb.save(folder / "rle.tga", compression="tga_rle")
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb.save(folder / "turned.jpg", exif=exif)
    return sorted(folder.iterdir())


def mutate_image(content: bytes, way: str, generator: np.random.Generator) -> bytes:
    at = int(generator.integers(len(content)))
    if way == "truncated":
        return content[:at]
    if way == "flipped":
        return flip_bits(content, generator, within=(None, 64)[generator.integers(2)])
    if way == "lying":
        values = [0, 1, 255, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 30_000]
        field = struct.pack(f"{'<>'[generator.integers(2)]}I", values[generator.integers(len(values))])
        at, size = int(generator.integers(min(80, len(content)))), (1, 2, 4)[generator.integers(3)]
        changed = content[:at] + (field[:size] if generator.integers(2) else field[-size:]) + content[at + size :]
        if changed[12:16] == b"IHDR":  # else its checksum would tell
            changed = changed[:29] + struct.pack(">I", zlib.crc32(changed[12:29])) + changed[33:]
        return changed
    if way == "spliced":
        length = int(generator.integers(1, 40))
        return content[:at] + content[at : at + length] * int(generator.integers(0, 4)) + content[at + length :]
    return b"" if way == "empty" else content[: int(generator.integers(2, 16))] + generator.bytes(300)


def prepare(place: Path, seed: int) -> Callable[[int], Case]:
    """read_image gives pixels or an InputError that names the file, soon."""
    originals = save_originals(place)
    signal.signal(signal.SIGPROF, lambda *_: (_ for _ in ()).throw(TooSlow()))
    ways = ["untouched", "truncated", "flipped", "lying", "spliced", "empty", "noise", "folder", "link", "renamed"]
    rates = [0.02, 0.2, 0.26, 0.26, 0.16, 0.01, 0.05, 0.01, 0.01, 0.02]

    def check(number: int) -> Case:
        generator = np.random.default_rng([seed, 3, number])
        original, way = originals[generator.integers(len(originals))], str(generator.choice(ways, p=rates))
        path, what, lost = place / f"mutant{number}{original.suffix}", f"{original.name} {way}", None
        if way == "folder":
            path.mkdir()
        elif way == "link":
            path.symlink_to(place / "nothing")
        elif way in ("untouched", "renamed"):
            path = path.with_suffix(path.suffix if way == "untouched" else ".jpg")
            path.write_bytes(original.read_bytes())
        else:
            path.write_bytes(mutate_image(original.read_bytes(), way, generator))
        began, channels = time.process_time(), int(generator.choice([1, 3]))
        try:
            signal.setitimer(signal.ITIMER_PROF, 5)  # of computing: the machine may be busy
            # What black and white are in floats, only the user knows.
            pixel_range = (0, 255) if original.name == "F.tif" else None
            pixels = read_image(path, (channels, 16, 12), depth="uint8", pixel_range=pixel_range)
            if pixels.dtype != torch.uint8 or pixels.shape != (channels, 16, 12):
                lost = f"gave {pixels.dtype} {tuple(pixels.shape)}"
        except InputError as error:
            if str(path) not in str(error) or way in ("untouched", "renamed"):
                lost = f"said {error}"
        except (Exception, TooSlow) as error:
            lost = f"raised {error!r}: {traceback.format_exc()[-600:]}"
        signal.setitimer(signal.ITIMER_PROF, 0)
        if time.process_time() - began > 5:
            lost = lost or f"took {time.process_time() - began:.1f} s"
        path.rmdir() if way == "folder" else path.unlink()
        return {"what": what, "lost": lost}

    return check
