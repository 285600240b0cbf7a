"""Pixels as models compute with them, and floats that nobody made so."""

import torch
from torch import Tensor

from ..errors import InputError
from ..tensors import LEVELS, to_unit

BEYOND = 5  # times the largest normalised value: what no image reaches that was normalised


def normalise(images: Tensor, mean: Tensor, std: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Pixels, uint8 or uint16 -> float32, by the data's mean and std of pixels in [0, 1]; floats pass, as normalised.

    One image is a batch of one. Raises InputError unless `images` is (B, *shape) or of that `shape`, and for other
    integers.
    """
    images = images[None] if images.ndim == 3 else images
    if images.ndim != 4 or tuple(images.shape[1:]) != shape:
        raise InputError(
            f"images have shape {tuple(images.shape)}, this model wants (batch, {', '.join(map(str, shape))})"
        )
    if images.dtype in LEVELS:
        return (to_unit(images) - mean) / std
    if not images.is_floating_point():
        raise InputError(
            f"images are {images.dtype}: give torch.uint8, 0 to 255, torch.uint16, 0 to 65535, or normalised floats"
        )
    return images


def readable(images: Tensor) -> bool:
    """Whether values can be looked at: not inside of `torch.func`'s transforms, nor while a CUDA graph is recorded."""
    if images.is_meta or torch._C._functorch.is_functorch_wrapped_tensor(images):
        return False
    return not (images.is_cuda and torch.cuda.is_current_stream_capturing())


def describe_pixels(images: Tensor, mean: Tensor, std: Tensor) -> str:
    """How the values of float images show that nobody normalised them; "" if they do not.

    Normalised black and white are -mean / std and (1 - mean) / std. What another mean and std made of an image may lie
    beyond, but not far.
    """
    if not images.numel():
        return ""
    low, high = images.min().item(), images.max().item()
    if low >= 0 and high <= 1:
        return "all values of these float images lie in [0, 1]"
    reach = (torch.maximum(mean, 1 - mean) / std).max().item()
    if max(-low, high) > BEYOND * reach:
        return f"these float images have values from {low:.4g} to {high:.4g}, while normalised ones reach {reach:.2g}"
    return ""
