"""Drop path and patch dropout whose draws are made outside, for the global batch."""

from collections.abc import Sequence

import torch
from timm.layers import DropPath, PatchDropout
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ..randomness import Draws
from ..tensors import constant, take


class SampleDropPath(DropPath):
    """timm's DropPath with its draw made outside, for the global batch: see `draw_drops`. Without one, timm's own."""

    drawn: Tensor | None = None  # (B,), 0 or 1 / keep_prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x  # not timm's, whose number makes each block a case of its own for the compiler
        if self.drawn is None:
            return super().forward(x)
        return x * self.drawn.to(x.dtype).view(-1, *[1] * (x.ndim - 1))


def use_sample_drop_path(model: nn.Module) -> nn.Module:
    """Replace every timm DropPath in `model` by one that `draw_drops` controls. The weights do not change."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is DropPath:
                setattr(module, name, SampleDropPath(child.drop_prob, child.scale_by_keep))
    return model


class SamplePatchDropout(PatchDropout):
    """timm's PatchDropout (Liu et al., arXiv 2208.07220), as `SampleDropPath`."""

    drawn: Tensor | None = None  # (B, number kept), places of the patches that each image keeps

    def __init__(self, prob: float, *, num_patches: int, num_prefix_tokens: int):
        super().__init__(prob, num_prefix_tokens=num_prefix_tokens)
        self.num_patches = num_patches

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.drawn is None:
            return super().forward(x)
        prefix, patches = x.tensor_split([self.num_prefix_tokens], dim=1)
        return torch.cat([prefix, take(patches, self.drawn)], dim=1)

    def draw(self, draws: Draws) -> Tensor:
        """Which patches each image keeps, (B, number kept)."""
        num_kept = max(1, round(self.num_patches * (1 - self.prob)))
        return draws.uniform(self.num_patches).argsort(dim=1)[:, :num_kept]


def use_sample_patch_drop(vit: VisionTransformer, patch_drop: float) -> VisionTransformer:
    """Let a stock timm ViT see all patches in evaluation, and in training leave out `patch_drop` of them, a ratio."""
    if patch_drop:
        vit.patch_drop = SamplePatchDropout(
            patch_drop, num_patches=vit.patch_embed.num_patches, num_prefix_tokens=vit.num_prefix_tokens
        )
    return vit


def set_patch_drop(model: nn.Module, patch_drop: float) -> None:
    """Let a model that leaves out patches in training leave out another ratio of them from now on."""
    for layer in find_drops(model):
        if isinstance(layer, SamplePatchDropout):
            layer.prob = patch_drop


def find_drops(model: nn.Module) -> list[SampleDropPath | SamplePatchDropout]:
    """The layers of a model that `draw_drops` decides for."""
    return [module for module in model.modules() if isinstance(module, SampleDropPath | SamplePatchDropout)]


def draw_drops(layers: Sequence[SampleDropPath | SamplePatchDropout], draws: Draws) -> list[Tensor]:
    """Decide, for one step, which samples skip which residual branch, and which patches of each are left out: for each
    layer what `set_drops` gives it.
    """
    if paths := [layer for layer in layers if isinstance(layer, SampleDropPath)]:
        probs = tuple(1 - layer.drop_prob for layer in paths)
        scales = tuple(p if layer.scale_by_keep and p > 0 else 1.0 for layer, p in zip(paths, probs, strict=True))
        keep_prob, scale = constant((probs, scales), draws.device).unbind(0)
        kept = iter(((draws.uniform(len(paths)) < keep_prob).float() / scale).unbind(1))
    return [next(kept) if isinstance(layer, SampleDropPath) else layer.draw(draws) for layer in layers]


def set_drops(layers: Sequence[SampleDropPath | SamplePatchDropout], drawn: Sequence[Tensor | None]) -> None:
    """Let the layers of a model drop what `draw_drops` decided; those that are given None draw for themselves."""
    for layer, values in zip(layers, drawn, strict=True):
        layer.drawn = values
