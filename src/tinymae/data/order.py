"""The order of an epoch: a permutation that is looked up piece by piece, so that its memory does not grow."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..randomness import derive_seed
from .splits import fixed_permutation

LISTED = 4_000_000  # images up to which the whole order is listed: 8 bytes each


def epoch_order(count: int, seed: int) -> "Tensor | ComputedOrder":
    """The order of `count` images in an epoch with this seed: listed, or beyond some millions computed."""
    return fixed_permutation(count, seed) if count <= LISTED else ComputedOrder(count, seed)


class ComputedOrder:
    """A pseudo-random permutation of 0..count-1 without a list of it, each place computed for itself.

    A Feistel network over an even number of bits, which is a permutation of a power of four, walked along its cycles
    until it is within `count` (Black and Rogaway, *Ciphers with Arbitrary Finite Domains*, CT-RSA 2002).

    >>> sorted(ComputedOrder(10, seed=1)[0:10].tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """

    rounds = 6

    def __init__(self, count: int, seed: int):
        self.count = count
        self.half_bits = max(1, -(-(count - 1).bit_length() // 2))
        self.keys: Sequence[int] = [derive_seed(seed, "round", number) for number in range(self.rounds)]

    def __getitem__(self, places: slice, /) -> Tensor:
        start, stop, step = places.indices(self.count)
        values = self.permute(np.arange(start, stop, step, dtype=np.uint64))
        while (outside := values >= self.count).any():
            values[outside] = self.permute(values[outside])
        return torch.from_numpy(values.astype(np.int64))

    def permute(self, values: np.ndarray) -> np.ndarray:
        """The whole domain's permutation of uint64 values (N,)."""
        bits, mask = np.uint64(self.half_bits), np.uint64((1 << self.half_bits) - 1)
        left, right = values >> bits, values & mask
        for key in self.keys:
            mixed = (right ^ np.uint64(key)) * np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(32))) & mask)
        return (left << bits) | right
