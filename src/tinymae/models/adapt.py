"""A pretrained autoencoder for other images: another size, other patches, other channels."""

from collections.abc import Sequence

import torch
from timm.layers import resample_patch_embed
from torch import Tensor, nn

from ..errors import InputError
from .base import constructor_arguments
from .mae import MaskedAutoencoder


def adapt(
    model: MaskedAutoencoder,
    *,
    image_size: int | tuple[int, int] | None = None,
    patch_size: int | tuple[int, int] | None = None,
    in_channels: int | None = None,
    mask_ratio: float | None = None,
    norm_pix_loss: bool | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> MaskedAutoencoder:
    """A copy of `model` with other constructor arguments; what is None stays as it is. Nothing is initialised anew.

    It is of the same class, so a subclass with a loss of its own keeps it. Whatever else than arguments, weights and
    `reading` the `model` was given is not copied.

    Of the weights, only these change, and only where their size does:

    - Position embeddings of encoder and decoder are resampled over the grid of patches (bicubic, as
      timm's `resample_abs_pos_embed`, whose older releases keep them where only the shape of the grid changes).
    - The patch projection is resampled so that a resized patch gives nearly the same token (timm's
      `resample_patch_embed`; Beyer et al., *FlexiViT*, arXiv 2212.08013). Its channels follow timm's rule: summed to
      make one, else repeated in turn and scaled so that equal channels give the token they gave before.
    - `decoder_pred` predicts the patch it predicted before, resized (bicubic); its channels are averaged to make
      one, else repeated in turn.

    Where `in_channels` changes and no `mean` and `std` are given, the averages of the old ones serve all channels.

    >>> model = MaskedAutoencoder(image_size=8, patch_size=2, depth=1)
    >>> adapt(model, image_size=(12, 16), in_channels=1).encode(torch.randn(2, 1, 12, 16)).shape
    torch.Size([2, 192])

    Raises InputError for another model, for arguments that a MaskedAutoencoder refuses, or for one that the constructor
    of a subclass does not have.
    """
    if not isinstance(model, MaskedAutoencoder):
        raise InputError(f"model is a {type(model).__name__}: give a MaskedAutoencoder, and fine-tune the adapted one")
    changes = {
        "image_size": image_size, "patch_size": patch_size, "in_channels": in_channels, "mask_ratio": mask_ratio,
        "norm_pix_loss": norm_pix_loss, "mean": mean, "std": std,
    }  # fmt: skip
    changes = {name: value for name, value in changes.items() if value is not None}
    if unknown := sorted(changes.keys() - constructor_arguments(type(model)).keys()):
        raise InputError(
            f"the constructor of {type(model).__name__} has no argument {unknown[0]}: add it, or leave it out"
        )
    config = model.config | changes
    if config["in_channels"] != model.in_channels:
        for name in ("mean", "std"):
            if name not in changes:
                config[name] = (sum(model.config[name]) / len(model.config[name]),)
    adapted = type(model)(**config)

    state = model.state_dict()
    if model.encoder.pos_embed is not None:
        prefix = model.encoder.pos_embed.shape[1] - model.num_patches
        state["encoder.pos_embed"] = resample_positions(model, adapted, state["encoder.pos_embed"], prefix)
    state["decoder_pos_embed"] = resample_positions(model, adapted, state["decoder_pos_embed"], model.num_prefix_tokens)
    kernel = adapt_projection(state["encoder.patch_embed.proj.weight"], adapted.in_channels)
    state["encoder.patch_embed.proj.weight"] = resample_patch_embed(kernel, list(adapted.patch_size))
    for name in ("decoder_pred.weight", "decoder_pred.bias"):
        state[name] = resample_prediction(model, adapted, state[name])
    adapted.load_state_dict(state, strict=True)
    adapted.reading = dict(model.reading)
    return adapted.to(model.mask_token.device).train(model.training)


def resample_positions(old: MaskedAutoencoder, new: MaskedAutoencoder, positions: Tensor, prefix: int) -> Tensor:
    """Position embeddings (1, prefix + N, D) from the old model's grid to the new one's."""
    if old.grid_size == new.grid_size:
        return positions
    grid = positions[:, prefix:].unflatten(1, old.grid_size).movedim(-1, 1)
    grid = nn.functional.interpolate(grid, new.grid_size, mode="bicubic", antialias=True)
    return torch.cat([positions[:, :prefix], grid.flatten(2).mT], dim=1)


def adapt_projection(kernel: Tensor, in_channels: int) -> Tensor:
    """A patch projection (D, C, P, P) for another number of channels.

    This is the rule of timm's `adapt_input_conv`, which older releases have for three channels only.
    """
    channels = kernel.shape[1]
    if in_channels == channels:
        return kernel
    if in_channels == 1:
        return kernel.sum(dim=1, keepdim=True)
    return kernel[:, torch.arange(in_channels) % channels] * (channels / in_channels)


def resample_prediction(old: MaskedAutoencoder, new: MaskedAutoencoder, rows: Tensor) -> Tensor:
    """The weight (P*P*C, D) or bias (P*P*C,) of `decoder_pred`, for the new patches: each column is a patch."""
    if (old.patch_size, old.in_channels) == (new.patch_size, new.in_channels):
        return rows
    patches = rows.reshape(*old.patch_size, old.in_channels, -1).permute(3, 2, 0, 1)  # (D, C, P, P)
    if new.in_channels == 1:
        patches = patches.mean(dim=1, keepdim=True)
    else:
        patches = patches[:, torch.arange(new.in_channels) % old.in_channels]
    if new.patch_size != old.patch_size:
        patches = nn.functional.interpolate(patches, new.patch_size, mode="bicubic", antialias=True)
    return patches.permute(2, 3, 1, 0).reshape(-1, *rows.shape[1:])
