"""Pixels of any size -> the size that a model takes: cropped, or padded."""

from typing import Literal

import torch
from torch import Tensor, nn

from ..tensors import LEVELS
from .unreadable import UnreadableImage

Fit = Literal["crop", "pad"]  # fill the wanted size and cut what is outside, or keep all and fill what is left
LARGEST = 50_000_000  # pixels while resizing: a narrow image grows by far more than its file says


def fitted_size(
    old: tuple[int, int], wanted: tuple[int, int], fit: Fit, name: str
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The size (height, width) to which an image is resized, and a corner (top, left): of the centre crop in it, or of
    it in the padded image.

    >>> fitted_size((10, 20), (8, 8), "crop", "a.png"), fitted_size((10, 20), (8, 8), "pad", "a.png")
    (((8, 16), (0, 4)), ((4, 8), (2, 0)))
    """
    scale = max(wanted[0] / old[0], wanted[1] / old[1])
    size = max(wanted[0], round(old[0] * scale)), max(wanted[1], round(old[1] * scale))
    if size[0] * size[1] > LARGEST:
        raise UnreadableImage(name, f"{old[1]} x {old[0]} pixels are too narrow for {wanted[1]} x {wanted[0]}")
    if fit == "pad":
        scale = min(wanted[0] / old[0], wanted[1] / old[1])
        height, width = (min(most, max(1, round(side * scale))) for most, side in zip(wanted, old, strict=True))
        size = height, width
    return size, (abs(size[0] - wanted[0]) // 2, abs(size[1] - wanted[1]) // 2)


def fit_pixels(pixels: Tensor, wanted: tuple[int, int], fit: Fit, name: str) -> Tensor:
    """Pixels (N, C, H, W) of 8 or 16 bits at the wanted (height, width)."""
    old = pixels.shape[2], pixels.shape[3]
    if old == wanted:
        return pixels
    size, corner = fitted_size(old, wanted, fit, name)
    return place(resize(pixels, size), wanted, corner, None if fit == "crop" else border_colour(pixels))


def place(resized: Tensor, wanted: tuple[int, int], corner: tuple[int, int], colour: Tensor | None) -> Tensor:
    """Resized pixels (N, C, H, W) at the wanted size: cut out at a corner, or put there on a `colour` (N, C)."""
    top, left = corner
    if colour is None:
        return resized[..., top : top + wanted[0], left : left + wanted[1]].contiguous()
    canvas = colour[..., None, None].repeat(1, 1, *wanted)
    canvas[..., top : top + resized.shape[2], left : left + resized.shape[3]] = resized
    return canvas


def border_colour(pixels: Tensor) -> Tensor:
    """The median (N, C) of each channel of the outermost pixels of images (N, C, H, W).

    >>> border_colour(torch.tensor([[7, 7, 7], [7, 0, 9], [7, 9, 9]], dtype=torch.uint8)[None, None])
    tensor([[7]], dtype=torch.uint8)
    """
    sides = pixels[..., 0, :], pixels[..., -1, :], pixels[..., 1:-1, 0], pixels[..., 1:-1, -1]
    return torch.cat(sides, dim=-1).float().median(dim=-1).values.to(pixels.dtype)


def resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixels (N, C, H, W) of 8 or 16 bits, bicubic with antialiasing, a thousand images at a time."""
    result = pixels.new_empty(*pixels.shape[:2], *size)
    for part, out in zip(pixels.split(1000), result.split(1000), strict=True):
        resized = nn.functional.interpolate(part.float(), list(size), mode="bicubic", antialias=True)
        out.copy_(resized.round().clamp(0, LEVELS[pixels.dtype]))
    return result


def describe_fit(old: tuple[int, int], wanted: tuple[int, int], fit: Fit, name: str) -> str:
    """What is done to an image of this size besides resizing, for the user to read; empty if nothing is."""
    if fitted_size(old, wanted, fit, name)[0] == wanted:
        return ""
    return ", resized and centre-cropped" if fit == "crop" else ", resized and padded"
