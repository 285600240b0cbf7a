"""Small tensor helpers that everything may use."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

LEVELS = {torch.uint8: 255, torch.uint16: 65535}  # the value of white, of the types that pixels have


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of a size given as one number or two."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def to_unit(pixels: Tensor) -> Tensor:
    """Pixels, uint8 or uint16, as floats in [0, 1]."""
    return pixels.float() / LEVELS[pixels.dtype]


def movable(pixels: Tensor) -> Tensor:
    """The same bits, in a type that can be indexed and flipped: with uint16, torch 2.6 cannot."""
    return pixels.view(torch.int16) if pixels.dtype == torch.uint16 else pixels


def pick_pixels(pixels: Tensor, index: Any) -> Tensor:
    """`pixels[index]`, by tensors or lists."""
    return movable(pixels)[index].view(pixels.dtype)


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Copy without waiting: from pinned memory to a GPU, whose queue would otherwise have to run dry first.

    Other devices are waited for: Apple's reads memory late, when it may hold other values (pytorch issue 189690).
    """
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return (tensor.pin_memory() if tensor.device.type == "cpu" else tensor).to(device, non_blocking=True)


@lru_cache(maxsize=256)
def constant(values: tuple, device: torch.device) -> Tensor:
    """A float32 tensor of nested tuples of numbers, made once for each device: do not write to it.

    A new one each time would be a copy from pageable memory, for which a GPU's queue has to run dry.
    """
    with torch.inference_mode(False):  # one that was made there could not be trained with
        return torch.tensor(values, dtype=torch.float32, device=device)


def take(tokens: Tensor, index: Tensor) -> Tensor:
    """Rows `index` (B, K) of each image's `tokens` (B, N, D), or of one table (N, D) shared by all: (B, K, D)."""
    if tokens.ndim == 2:
        return nn.functional.embedding(index, tokens)
    # Selecting rows of one long table copies whole rows; a gather would look up every element.
    offsets = torch.arange(tokens.shape[0], device=index.device)[:, None] * tokens.shape[1]
    return tokens.flatten(0, 1).index_select(0, (index + offsets).flatten()).unflatten(0, index.shape)


def put(tokens: Tensor, index: Tensor) -> Tensor:
    """Inverse of `take` for an `index` (B, N) that is a permutation: row k of `tokens` goes to place index[:, k]."""
    return torch.empty_like(tokens).scatter_(1, index[..., None].expand_as(tokens), tokens)
