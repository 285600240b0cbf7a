"""What the families that hide patches share."""

from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..randomness import Draws
from ..tensors import pair, to_device
from .base import Autoencoder
from .masking import (
    count_hidden,
    denormalise_patches,
    expand_mask,
    hide_lowest,
    patchify,
    random_mask,
    require_visible,
    unpatchify,
)
from .outputs import Reconstruction


class PatchMasking(Autoencoder):
    """What the families that hide patches share: the grid, the masks, and how an answer is shown."""

    hides_patches = True

    def predict(self, images: Tensor, mask: Tensor) -> Tensor:
        """All patches (B, N, P*P*C) of normalised images as the model draws them, in float32; mask bool (B, N)."""
        raise NotImplementedError

    @torch.no_grad()
    def reconstruct(
        self,
        images: Tensor,
        mask: Tensor | float | None = None,
        *,
        generator: torch.Generator | None = None,
        statistics: str = "visible",
    ) -> Reconstruction:
        """Hide patches of `images` (uint8 or normalised float, (B, C, H, W) or one (C, H, W)) and paint them in.

        The mask is bool (N,), (rows, columns), (B, N) or (B, rows, columns), True = hidden; or a ratio of the patches
        in [0, 1), chosen at random by `generator`; None is the model's own `mask_ratio`. 0 hides nothing: the encoder
        sees all, and the errors are those of patches that it saw.

        A model trained with norm_pix_loss predicts each patch up to its brightness and contrast. By default both are
        interpolated from the visible patches (weights 1 / distance^4), so nothing hidden is used.
        `statistics="target"` takes the hidden patches' true mean and std instead: prettier, but it leaks the target.
        The result's `statistics` states which was used.

        >>> from tinymae import MaskedAutoencoder
        >>> model = MaskedAutoencoder(image_size=8, patch_size=2, embed_dim=24, depth=2, num_heads=2)
        >>> shown = model.reconstruct(torch.randn(5, 3, 8, 8), 0.5, generator=torch.Generator().manual_seed(0))
        >>> shown.images.shape, shown.patch_error.shape, shown.error.shape
        (torch.Size([5, 3, 8, 8]), torch.Size([5, 16]), torch.Size([5]))

        Raises InputError for an unknown `statistics`, or a mask of another shape or dtype, one that hides all patches
        of an image, or, for a ViT, one that hides more of some images than of others.
        """
        images = self.normalise(images)
        mask = to_device(require_visible(self.choose_mask(mask, images, generator)), images.device)
        predicted = self.predict(images, mask)
        patches = patchify(images, self.patch_size).float()  # (B, N, P*P*C)
        coloured = self.colour(predicted, patches, mask, statistics=statistics)
        hidden = unpatchify(mask[..., None].expand_as(coloured), self.patch_size, self.image_size)
        prediction = self.denormalise(unpatchify(coloured, self.patch_size, self.image_size))
        original = self.denormalise(images)
        return Reconstruction(
            original=original,
            images=torch.where(hidden, prediction, original),
            prediction=prediction,
            masked=torch.where(hidden, torch.full_like(original, 0.5), original),
            mask=mask,
            statistics=statistics if self.norm_pix_loss else "none",
            patch_error=patchify((prediction - original).square(), self.patch_size).mean(dim=2),
        )

    def set_patches(
        self, image_size: int | tuple[int, int], patch_size: int | tuple[int, int], *, mask_ratio: float,
        norm_pix_loss: bool,
    ) -> None:  # fmt: skip
        """The grid of patches, and what of it is hidden and predicted.

        Raises InputError for sizes that do not divide, a mask ratio that hides no patch or all of them, or patches of
        one value that are to be normalised.
        """
        self.patch_size, self.mask_ratio, self.norm_pix_loss = pair(patch_size), mask_ratio, norm_pix_loss
        for size, multiple in zip(self.image_size, self.patch_size, strict=True):
            if multiple < 1 or size < multiple or size % multiple:
                raise InputError(f"image_size {image_size} is not a multiple of patch_size {patch_size}")
        if norm_pix_loss and self.patch_size[0] * self.patch_size[1] * self.in_channels == 1:
            raise InputError("norm_pix_loss needs patches of more than one value: use a larger patch_size")
        self.grid_size = (self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1])
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.num_hidden = count_hidden(self.num_patches, mask_ratio)

    def choose_mask(self, mask: Tensor | float | None, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """A mask as users give it for these images -> bool (B, N): a mask as `expand_mask` takes it, a ratio of the
        patches in [0, 1) to hide at random, or None for the model's own.

        Raises InputError as `expand_mask` does, or for a ratio that hides all patches, or rounds to none but is not 0.
        """
        if isinstance(mask, Tensor):
            return expand_mask(mask, len(images), self.grid_size)
        ratio = self.mask_ratio if mask is None else mask
        if isinstance(ratio, bool) or not isinstance(ratio, int | float):
            kind = type(ratio).__name__
            raise InputError(f"mask is a {kind}: give a bool tensor (True = hidden) or a ratio in [0, 1)")
        if not 0 <= ratio < 1:
            raise InputError(f"mask {ratio} is outside [0, 1): give the ratio of the patches to hide")
        if not isinstance(generator, torch.Generator | None):
            raise InputError(f"generator {generator!r}: give one of torch, as torch.Generator().manual_seed(0)")
        device = None if generator is None else generator.device
        if ratio == 0:
            return torch.zeros(len(images), self.num_patches, dtype=torch.bool, device=device)
        return random_mask(len(images), self.num_patches, ratio, generator, device)

    def draw(self, draws: Draws, *, mask_ratio: float | None = None) -> dict[str, Any]:
        """The masks of a process's part of a step's batch (B, N), on its device, and how many patches each hides.

        Raises InputError for a `mask_ratio`, instead of the model's own, that hides no patch or all of them.
        """
        num_hidden = self.num_hidden if mask_ratio is None else count_hidden(self.num_patches, mask_ratio)
        mask = hide_lowest(draws.uniform_on_cpu(self.num_patches), num_hidden)
        return {"mask": to_device(mask, draws.device), "num_hidden": num_hidden}

    def colour(self, predicted: Tensor, patches: Tensor, mask: Tensor, *, statistics: str) -> Tensor:
        """Predicted patches (B, N, P*P*C) in normalised pixels, with the mean and std that the loss left out."""
        if not self.norm_pix_loss:
            return predicted
        return denormalise_patches(predicted, patches, mask, grid_size=self.grid_size, statistics=statistics)

    def paste(self, predicted: Tensor, patches: Tensor, mask: Tensor) -> Tensor:
        """Normalised images of patches (B, N, P*P*C), the hidden ones as predicted; mask bool (B, N)."""
        coloured = self.colour(predicted, patches, mask, statistics="visible")
        return unpatchify(torch.where(mask[..., None], coloured, patches), self.patch_size, self.image_size)
