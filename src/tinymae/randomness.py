"""All randomness of a run, as a function of (seed, step).

Draws that belong to samples are made for the whole global batch and then sliced, so that one process or many, one
micro-batch or several, see the same augmentation, the same masks and the same drop path.
"""

import contextlib
import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .tensors import to_device


def derive_seed(*keys: int | str) -> int:
    """A 63-bit seed from any keys, well mixed: neighbouring steps share nothing."""
    return int.from_bytes(hashlib.sha256(repr(keys).encode()).digest()[:8], "little") >> 1


def seeded(*keys: int | str) -> torch.Generator:
    """A CPU generator seeded by `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(*keys))


class Draws:
    """The random numbers of one step for the images at `positions` (B,) of a global batch of `batch_size`.

    `generator` (CPU) is for masks, whose indices are made on the CPU; the other draws are made on `device`.
    Two objects with the same seed, step and batch size draw the same sequence, whatever their positions.
    """

    def __init__(self, seed: int, step: int, batch_size: int, positions: Tensor, device: torch.device | str):
        self.step, self.batch_size, self.cpu_positions = step, batch_size, positions
        self.device = torch.device(device)
        self.whole = len(positions) == batch_size and bool((positions == torch.arange(batch_size)).all())
        self.positions = positions if self.whole else to_device(positions, self.device)
        self.generator = seeded(seed, "masks", step)
        self.device_generator = torch.Generator(self.device).manual_seed(derive_seed(seed, "samples", step))
        self.batch_seed = derive_seed(seed, "batch", step)

    def uniform(self, *shape: int) -> Tensor:
        """U(0, 1) of shape (B, *shape)."""
        drawn = torch.rand(self.batch_size, *shape, generator=self.device_generator, device=self.device)
        return drawn if self.whole else drawn[self.positions]

    def normal(self, *shape: int) -> Tensor:
        """N(0, 1) of shape (B, *shape)."""
        drawn = torch.randn(self.batch_size, *shape, generator=self.device_generator, device=self.device)
        return drawn if self.whole else drawn[self.positions]

    def uniform_on_cpu(self, *shape: int) -> Tensor:
        """U(0, 1) of shape (B, *shape), on the CPU: for what decides the shape of what follows."""
        drawn = torch.rand(self.batch_size, *shape, generator=self.generator)
        return drawn if self.whole else drawn[self.cpu_positions]

    def seed_global_state(self) -> None:
        """Seed torch (dropout) and numpy (timm's Mixup, whose one draw counts for the whole batch)."""
        seed = derive_seed(self.batch_seed, int(self.cpu_positions[0]))
        # Not torch.manual_seed, which without a GPU takes a millisecond: it keeps a traceback for each kind of device.
        torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":
            getattr(torch, self.device.type).manual_seed(seed)
        np.random.seed(self.batch_seed % 2**32)


@contextlib.contextmanager
def untouched_randomness() -> Iterator[None]:
    """Whatever is drawn or seeded inside, torch's and numpy's global state is as before afterwards."""
    state = np.random.get_state()
    started = torch.cuda.is_initialized()  # to ask a GPU would start it
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if started else []):
        try:
            yield
        finally:
            np.random.set_state(state)
    if not started and torch.cuda.is_initialized():  # now it has the seed that it would have been started with
        torch.cuda.manual_seed_all(torch.initial_seed())
