"""What the families that hide patches share."""

from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..tensors import pair, to_device
from .base import Autoencoder, Reconstruction
from .masking import choose_mask, count_hidden, denormalise_patches, hide_lowest, patchify, unpatchify


class PatchMasking(Autoencoder):
    """What the families that hide patches share: the grid, the masks, and how an answer is shown."""

    hides_patches = True

    def reconstruct(
        self, images: Tensor, mask: Tensor | float | None = None, *, generator: torch.Generator | None = None,
        statistics: str = "visible",
    ) -> Reconstruction:  # fmt: skip
        """Hide patches of images and predict them; see `MaskedAutoencoder.reconstruct`."""
        raise NotImplementedError

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
        """A mask, a ratio or None, as users give it for these images -> bool (B, N); see `masking.choose_mask`."""
        return choose_mask(mask, len(images), self.grid_size, mask_ratio=self.mask_ratio, generator=generator)

    def draw(self, draws, *, mask_ratio: float | None = None) -> dict[str, Any]:
        """The masks of a process's part of a step's batch (B, N), on its device, and how many patches each hides.

        Raises InputError for a `mask_ratio`, instead of the model's own, that hides no patch or all of them.
        """
        num_hidden = self.num_hidden if mask_ratio is None else count_hidden(self.num_patches, mask_ratio)
        mask = hide_lowest(draws.choice(self.num_patches), num_hidden)
        return {"mask": to_device(mask, draws.device), "num_hidden": num_hidden}

    def colour(self, predicted: Tensor, patches: Tensor, mask: Tensor, *, statistics: str) -> Tensor:
        """Predicted patches (B, N, P*P*C) in normalised pixels, with the mean and std that the loss left out."""
        if not self.norm_pix_loss:
            return predicted
        return denormalise_patches(predicted, patches, mask, grid_size=self.grid_size, statistics=statistics)

    def show(self, predicted: Tensor, images: Tensor, mask: Tensor, *, statistics: str) -> Reconstruction:
        """Patches (B, N, P*P*C) as the model draws them, beside the normalised images; mask bool (B, N)."""
        hidden = unpatchify(mask[..., None].expand_as(predicted), self.patch_size, self.image_size)
        prediction = self.denormalise(unpatchify(predicted, self.patch_size, self.image_size))
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
