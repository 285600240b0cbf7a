"""All chance of a run, as a function of (seed, step).

Draws that belong to samples are made for the whole global batch and then sliced, so that one process or many, one
micro-batch or several, see the same augmentation, the same masks and the same drop path.
"""

import hashlib

import numpy as np
import torch
from timm.layers import DropPath, PatchDropout
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from .mae import take, to_device


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
        self.positions = to_device(positions, self.device)
        self.generator = seeded(seed, "masks", step)
        self.device_generator = torch.Generator(self.device).manual_seed(derive_seed(seed, "samples", step))
        self.batch_seed = derive_seed(seed, "batch", step)

    def uniform(self, *shape: int) -> Tensor:
        """U(0, 1) of shape (B, *shape)."""
        return torch.rand(self.batch_size, *shape, generator=self.device_generator, device=self.device)[self.positions]

    def normal(self, *shape: int) -> Tensor:
        """N(0, 1) of shape (B, *shape)."""
        return torch.randn(self.batch_size, *shape, generator=self.device_generator, device=self.device)[self.positions]

    def choice(self) -> Tensor:
        """U(0, 1) of shape (B,), on the CPU: for choices that decide the shape of what follows."""
        return torch.rand(self.batch_size, generator=self.generator)[self.cpu_positions]

    def seed_global_state(self) -> None:
        """Seed torch (dropout) and numpy (timm's Mixup, whose one draw counts for the whole batch)."""
        torch.manual_seed(derive_seed(self.batch_seed, int(self.cpu_positions[0])))
        np.random.seed(self.batch_seed % 2**32)


class SampleDropPath(DropPath):
    """timm's DropPath with its draw made outside, for the global batch: see `draw_drops`."""

    keep: Tensor  # (B,), 0 or 1 / keep_prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_prob == 0:
            return x
        return x * self.keep.to(x.dtype).view(-1, *[1] * (x.ndim - 1))


def use_sample_drop_path(model: nn.Module) -> nn.Module:
    """Replace every timm DropPath in `model` by one that `draw_drops` controls. The weights do not change."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is DropPath:
                setattr(module, name, SampleDropPath(child.drop_prob, child.scale_by_keep))
    return model


class SamplePatchDropout(PatchDropout):
    """timm's PatchDropout (Liu et al., arXiv 2208.07220) with its draw made outside: see `draw_drops`."""

    chances: Tensor  # (B, num_patches), U(0, 1): each image keeps its patches of the lowest

    def __init__(self, prob: float, *, num_patches: int, num_prefix_tokens: int):
        super().__init__(prob, num_prefix_tokens=num_prefix_tokens)
        self.num_patches = num_patches

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        prefix, patches = x.tensor_split([self.num_prefix_tokens], dim=1)
        num_kept = max(1, round(self.num_patches * (1 - self.prob)))
        kept = self.chances.argsort(dim=1)[:, :num_kept]
        return torch.cat([prefix, take(patches, kept)], dim=1)


def use_sample_patch_drop(vit: VisionTransformer, patch_drop: float) -> VisionTransformer:
    """Let a stock timm ViT see all patches in evaluation, and in training a share `patch_drop`, 0 to 1, fewer."""
    if patch_drop:
        vit.patch_drop = SamplePatchDropout(
            patch_drop, num_patches=vit.patch_embed.num_patches, num_prefix_tokens=vit.num_prefix_tokens
        )
    return vit


def draw_drops(model: nn.Module, draws: Draws) -> None:
    """Decide, for one step, which samples skip which residual branch, and which patches of each are left out."""
    paths = [module for module in model.modules() if isinstance(module, SampleDropPath)]
    for layer, chance in zip(paths, draws.uniform(len(paths)).unbind(1), strict=True):
        keep_prob = 1 - layer.drop_prob
        keep = (chance < keep_prob).float()
        layer.keep = keep / keep_prob if layer.scale_by_keep and keep_prob > 0 else keep
    for module in model.modules():
        if isinstance(module, SamplePatchDropout):
            module.chances = draws.uniform(module.num_patches)
