"""Patches and masks: a `mask` is bool (B, N), True = hidden, over the N patches in row-major grid order."""

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ..errors import InputError
from ..tensors import pair


def patchify(images: Tensor, patch_size: int | tuple[int, int]) -> Tensor:
    """Cut images (B, C, H, W) into patches (B, N, P*P*C), row-major; inside a patch the order is row, column, channel.

    >>> patchify(torch.zeros(2, 3, 8, 8), 4).shape
    torch.Size([2, 4, 48])

    Raises InputError if the image's height or width is not a multiple of the patch's.
    """
    height, width = pair(patch_size)
    if images.shape[-2] % height or images.shape[-1] % width:
        raise InputError(f"image_size {tuple(images.shape[-2:])} is not a multiple of patch_size {patch_size}")
    return rearrange(images, "b c (h p) (w q) -> b (h w) (p q c)", p=height, q=width)


def unpatchify(patches: Tensor, patch_size: int | tuple[int, int], image_size: int | tuple[int, int]) -> Tensor:
    """Lay patches (B, N, P*P*C) back into images (B, C, H, W): the inverse of `patchify`.

    >>> images = torch.rand(2, 3, 8, 12)
    >>> torch.equal(unpatchify(patchify(images, 4), 4, (8, 12)), images)
    True
    """
    (height, width), rows = pair(patch_size), pair(image_size)[0] // pair(patch_size)[0]
    return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=rows, p=height, q=width)


def count_hidden(num_patches: int, mask_ratio: float) -> int:
    """How many of `num_patches` a mask of this ratio hides. Raises InputError if that is none or all of them."""
    if not 0 < mask_ratio < 1:
        raise InputError(f"mask_ratio {mask_ratio} is outside (0, 1)")
    num_hidden = round(num_patches * mask_ratio)
    if not 0 < num_hidden < num_patches:
        what = "every patch" if num_hidden else "no patch"
        raise InputError(
            f"mask_ratio {mask_ratio} hides {what} of {num_patches}: use a smaller patch_size or another ratio"
        )
    return num_hidden


def random_mask(
    batch_size: int,
    num_patches: int,
    mask_ratio: float,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Hide exactly round(mask_ratio * N) patches of each image, chosen uniformly: bool (B, N), True = hidden.

    >>> random_mask(2, 16, 0.75).sum(dim=1)
    tensor([12, 12])

    `generator` must live on `device`. Raises InputError if the ratio would hide no patch or all of them.
    """
    chances = torch.rand(batch_size, num_patches, generator=generator, device=device)
    return hide_lowest(chances, count_hidden(num_patches, mask_ratio))


def hide_lowest(chances: Tensor, num_hidden: int) -> Tensor:
    """A mask (B, N) that hides the `num_hidden` patches of each image with the lowest of `chances` (B, N)."""
    if chances.device.type == "cpu":  # a partition takes a tenth of a sort's time, but not when two chances are equal
        highest = np.partition(chances.numpy(), num_hidden - 1, axis=1)[:, num_hidden - 1 : num_hidden]
        mask = chances <= torch.from_numpy(highest)
        if bool((mask.sum(dim=1) == num_hidden).all()):
            return mask
    hidden = chances.argsort(dim=1)[:, :num_hidden]
    return torch.zeros_like(chances, dtype=torch.bool).scatter_(1, hidden, True)


def expand_mask(mask: Tensor, batch_size: int, grid_size: tuple[int, int]) -> Tensor:
    """A user's bool mask (N,), (rows, columns), (B, N) or (B, rows, columns), True = hidden -> (B, N).

    Raises InputError for another shape or dtype.
    """
    rows, columns = grid_size
    num_patches = rows * columns
    shapes = [(num_patches,), grid_size, (batch_size, num_patches), (batch_size, rows, columns)]
    if mask.dtype != torch.bool or tuple(mask.shape) not in shapes:
        raise InputError(
            f"mask is {mask.dtype} of shape {tuple(mask.shape)}; wanted torch.bool (True = hidden) of shape "
            + ", ".join(map(str, shapes[:-1]))
            + f" or {shapes[-1]}"
        )
    return mask.reshape(-1, num_patches).expand(batch_size, -1)


def require_visible(mask: Tensor) -> Tensor:
    """The bool mask (B, N) itself. Raises InputError if it hides all patches of an image."""
    if mask.all(dim=1).any():
        raise InputError(f"mask hides all {mask.shape[1]} patches: leave at least one visible")
    return mask


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and std of all pixels of each patch (B, N, P*P*C): two (B, N, 1). Section 3 of the paper."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (variance + 1e-6).sqrt()


def normalise_patches(patches: Tensor) -> Tensor:
    """Each patch (B, N, P*P*C) by its own mean and std."""
    mean, std = patch_statistics(patches)
    return (patches - mean) / std


def denormalise_patches(
    prediction: Tensor, patches: Tensor, mask: Tensor, *, grid_size: tuple[int, int], statistics: str
) -> Tensor:
    """Give predictions (B, N, P*P*C) a mean and std: their own patch's where that is visible or where
    `statistics="target"`, else interpolated from the visible patches of the same image (weights 1 / distance^4).

    Raises InputError for other `statistics`.
    """
    if statistics not in ("visible", "target"):
        raise InputError(f"statistics {statistics!r} is neither 'visible' nor 'target'")
    known = torch.cat(patch_statistics(patches.float()), dim=2)  # (B, N, 2)
    if statistics == "visible":
        rows, columns = torch.meshgrid(*(torch.arange(n, device=mask.device) for n in grid_size), indexing="ij")
        places = torch.stack([rows.flatten(), columns.flatten()], dim=1).float()  # (N, 2)
        # Squares rather than torch.cdist, which ONNX has no operator for.
        squares = (places[:, None] - places).square().sum(dim=2)  # (N, N)
        closeness = squares.clamp(min=0.25).pow(-2)
        closeness = closeness * ~mask[:, None, :]  # (B, N, N): only visible patches speak
        guessed = closeness @ known / closeness.sum(dim=2, keepdim=True)
        known = torch.where(mask[..., None], guessed, known)
    mean, std = known.split(1, dim=2)
    return prediction * std + mean
