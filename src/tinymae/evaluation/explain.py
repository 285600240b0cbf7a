"""Looking into a masked autoencoder: what it finds odd, and where it attends."""

import torch
from timm.models.vision_transformer import Attention
from torch import Tensor

from ..errors import InputError
from ..models.classifier import Classifier
from ..models.mae import MaskedAutoencoder
from ..models.masking import count_hidden
from ..models.vit import ViTEncoder


def covering_masks(num_patches: int, *, num_hidden: int, passes: int, generator: torch.Generator | None) -> Tensor:
    """Masks that together hide every patch: bool (passes, N), True = hidden, `num_hidden` of them in each.

    The patches stand in a random circle, and pass k hides the arc that starts at k / passes of it. So with
    passes x num_hidden = N the hidden patches are a random partition, with passes x (N - num_hidden) = N the visible
    ones are, and a patch is hidden about equally often as any other.

    >>> covering_masks(16, num_hidden=4, passes=4, generator=None).sum(dim=0).tolist()
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
    model: MaskedAutoencoder, images: Tensor, *, passes: int = 8, mask_ratio: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    """How badly each pixel (B, H, W) is predicted by patches other than its own: a squared error in [0, 1].

    Each of the `passes` hides other patches, at the ratio `mask_ratio` (None: the model's); together they hide all,
    the same ones in every image; a pixel's error is its mean over channels and over the passes that hid it. Images are
    uint8 or normalised float, (B, C, H, W) or one (C, H, W). Train with `norm_pix_loss=False` for this: else brightness
    and contrast are guessed from visible patches, and much of the error is that guess's.

    >>> model = MaskedAutoencoder(image_size=8, patch_size=2, embed_dim=24, depth=2, num_heads=2)
    >>> anomaly_map(model, torch.randn(5, 3, 8, 8), passes=4).shape
    torch.Size([5, 8, 8])

    Raises InputError for a model that hides no patches, if passes x hidden patches cannot cover all, or for images of
    another shape.
    """
    if not getattr(model, "hides_patches", False):
        raise InputError(f"model is a {type(model).__name__}, which hides no patches: give a MaskedAutoencoder")
    num_hidden = model.num_hidden if mask_ratio is None else count_hidden(model.num_patches, mask_ratio)
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


@torch.no_grad()
def attention_maps(model: MaskedAutoencoder | Classifier | ViTEncoder, images: Tensor) -> Tensor:
    """Who attends to whom in unmasked images: float (B, layers, heads, T, T), every row summing to 1.

    Row t holds what token t takes from each of the T = prefix + N tokens, of which the cls token and any registers come
    first. Memory grows with T squared: give few images at a time. `model` may be a classifier that is a ViT.

    >>> model = MaskedAutoencoder(image_size=8, patch_size=2, embed_dim=24, depth=2, num_heads=2)
    >>> maps = attention_maps(model, torch.randn(5, 3, 8, 8))
    >>> maps.shape, maps[:, -1, :, 0, 1:].shape  # all; and from the cls token to the patches, in the last layer
    (torch.Size([5, 2, 2, 17, 17]), torch.Size([5, 2, 16]))

    Raises InputError for images of another shape, for what is no ViT, or one whose blocks do not attend in timm's plain
    way.
    """
    vit = model.encoder if isinstance(model, MaskedAutoencoder) else getattr(model, "vit", None)
    if vit is None:
        raise InputError(
            f"model is a {type(model).__name__} without a ViT: give a MaskedAutoencoder, or a classifier of one"
        )
    images = model.normalise(images)
    attentions = [block.attn for block in vit.blocks if type(getattr(block, "attn", None)) is Attention]
    if len(attentions) < len(vit.blocks):
        raise InputError(
            f"encoder {vit.pretrained_cfg['architecture']!r} does not attend by timm's plain Attention alone"
        )
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
        vit.forward_features(images)
    finally:
        for hook in hooks:
            hook.remove()
    maps = [
        (query.float() * attention.scale @ key.float().transpose(-2, -1)).softmax(dim=-1)
        for attention, query, key in zip(attentions, queries, keys, strict=True)
    ]
    return torch.stack(maps, dim=1)
