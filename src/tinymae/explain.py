"""Looking into a masked autoencoder: what it finds odd, what its layers hold, where it attends.

The functions take a model and are its methods of the same names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from timm.models.vision_transformer import Attention
from torch import Tensor

from .files import InputError

if TYPE_CHECKING:  # mae.py imports this module
    from .mae import MaskedAutoencoder


def covering_masks(
    num_patches: int, *, num_hidden: int, passes: int, generator: torch.Generator | None = None
) -> Tensor:
    """Masks that together hide every patch: bool (passes, N), True = hidden, `num_hidden` of them in each.

    The patches stand in a random circle, and pass k hides the arc that starts at k / passes of it. So with
    passes x num_hidden = N the hidden patches are a random partition, with passes x (N - num_hidden) = N the visible
    ones are, and a patch is hidden about equally often as any other.

    >>> covering_masks(16, num_hidden=4, passes=4).sum(dim=0).tolist()
    [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]

    Raises InputError if passes x num_hidden is less than N.
    """
    if passes * num_hidden < num_patches:
        raise InputError(
            f"passes {passes} with {num_hidden} of {num_patches} patches hidden in each cannot cover all: "
            f"give at least {-(-num_patches // num_hidden)}"
        )
    device = None if generator is None else generator.device
    circle = torch.randperm(num_patches, generator=generator, device=device)
    starts = torch.arange(passes, device=device) * num_patches // passes
    arcs = (starts[:, None] + torch.arange(num_hidden, device=device)) % num_patches  # (passes, num_hidden)
    return torch.zeros(passes, num_patches, dtype=torch.bool, device=device).scatter_(1, circle[arcs], True)


@torch.no_grad()
def anomaly_map(
    model: MaskedAutoencoder, images: Tensor, *, num_hidden: int, passes: int, generator: torch.Generator | None = None
) -> Tensor:
    """Error (B, H, W) of predicting each patch from visible others; see `MaskedAutoencoder.anomaly_map`."""
    images = model.normalise(images)
    masks = covering_masks(model.num_patches, num_hidden=num_hidden, passes=passes, generator=generator)
    total = torch.zeros(len(images), *model.image_size, device=images.device)
    count = torch.zeros(model.image_size, device=images.device)
    for mask in masks.to(images.device):
        hidden = mask.view(model.grid_size)
        for axis, size in enumerate(model.patch_size):
            hidden = hidden.repeat_interleave(size, dim=axis)  # (H, W) in the end
        seen = model.reconstruct(images, mask, statistics="visible")
        total += (seen.prediction - seen.original).square().mean(dim=1) * hidden
        count += hidden
    return total / count


def encode_layers(
    model: MaskedAutoencoder, images: Tensor, layers: int | Sequence[int], *, norm: bool = True
) -> list[Tensor]:
    """Tokens (B, prefix + N, D) after each of `layers`; see `MaskedAutoencoder.encode_layers`."""
    images, depth = model.normalise(images), len(model.encoder.blocks)
    asked = list(range(-layers, 0)) if isinstance(layers, int) else list(layers)
    if not asked or not all(-depth <= layer < depth for layer in asked):
        raise InputError(f"layers {layers} must name some of this encoder's {depth}: 0 to {depth - 1}, or from the end")
    asked = [layer % depth for layer in asked]
    distinct = sorted(set(asked))
    found = model.encoder.forward_intermediates(
        images, indices=distinct, norm=norm, stop_early=True, output_fmt="NLC", intermediates_only=True,
        return_prefix_tokens=model.num_prefix_tokens > 0,
    )  # fmt: skip
    if model.num_prefix_tokens:
        found = [torch.cat([prefix, patches], dim=1) for patches, prefix in found]
    # timm gives them in the order of depth, however they were asked for.
    return [found[distinct.index(layer)] for layer in asked]


@torch.no_grad()
def attention_maps(model: MaskedAutoencoder, images: Tensor) -> Tensor:
    """Attention weights (B, layers, heads, T, T); see `MaskedAutoencoder.attention_maps`."""
    images = model.normalise(images)
    blocks = model.encoder.blocks
    attentions = [block.attn for block in blocks if type(getattr(block, "attn", None)) is Attention]
    if len(attentions) < len(blocks):
        raise InputError(f"encoder {model.config['encoder']!r} does not attend by timm's plain Attention alone")
    # The fused kernel never shows its weights, so they are computed again from the queries and keys, which pass
    # through q_norm and k_norm in either case: identities, unless the encoder has qk_norm.
    queries: list[Tensor] = []
    keys: list[Tensor] = []
    hooks = [
        getattr(attention, name).register_forward_hook(lambda module, inputs, output, kept=kept: kept.append(output))
        for attention in attentions
        for name, kept in (("q_norm", queries), ("k_norm", keys))
    ]
    try:
        model.encoder.forward_features(images)
    finally:
        for hook in hooks:
            hook.remove()
    maps = [
        (query.float() * attention.scale @ key.float().transpose(-2, -1)).softmax(dim=-1)
        for attention, query, key in zip(attentions, queries, keys, strict=True)
    ]
    return torch.stack(maps, dim=1)
