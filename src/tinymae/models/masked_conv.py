"""Masked image modelling for a convolutional encoder: hide patches, keep them empty on the way up, predict them."""

import itertools
from collections.abc import Sequence

import torch
from timm.layers.grn import GlobalResponseNorm
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn

from ..errors import InputError
from ..tensors import to_device
from .conv import ConvLayer
from .masked import PatchMasking
from .masking import normalise_patches, patchify, require_visible
from .outputs import AutoencoderOutput
from .timm_models import create_timm


class VisibleResponseNorm(GlobalResponseNorm):
    """ConvNeXt V2's global response norm, over the places that are visible: so it is with sparse convolutions."""

    shown: Tensor | None = None  # float (B, 1, h, w), 1 = visible; None: all are

    def forward(self, x: Tensor) -> Tensor:
        if self.shown is not None:
            x = x * (self.shown if self.channel_dim == 1 else self.shown.permute(0, 2, 3, 1))
        return super().forward(x)


class MaskedConvAutoencoder(PatchMasking, tags=["masked-image-modelling"]):
    """A masked autoencoder on a timm ConvNeXt, in the spirit of SparK and ConvNeXt V2 (arXiv 2301.03580, 2301.00808).

    A convolution cannot skip hidden patches as a transformer does: its window would carry visible pixels into them and
    their emptiness out. So hidden places are set to zero in the image and again after every layer that could fill them,
    which gives what sparse convolutions would. Where a place of a coarse map covers several patches, it counts as
    visible if any of them is. The decoder joins the maps of all stages, with a learned token in their hidden places.
    Features are the encoder's pooled output for the unmasked image.

    Args:
        encoder: any timm ConvNeXt or ConvNeXt V2.
        patch_size: pixels of what is hidden together, one number or (height, width); must divide `image_size`.
        stem_size: stride of the encoder's first layer (timm's `patch_size`), 1, 2 or 4.
        mask_ratio: ratio of patches hidden when no mask is given, in (0, 1).
        decoder_dim: channels of the decoder, a multiple of 8.
        norm_pix_loss: predict each patch normalised by its own mean and std; goes with loss "mse" alone.
        others: as for ConvAutoencoder.

    Raises:
        InputError: an encoder that is no ConvNeXt, sizes that do not divide or are below its last stride, a mask ratio
            that hides no patch or all of them, norm_pix_loss with another loss.
    """

    decoder_parts = ("across", "tokens", "layers", "to_pixels")

    def __init__(
        self,
        encoder: str = "convnext_atto",
        *,
        image_size: int | tuple[int, int] = 32,
        patch_size: int | tuple[int, int] = 4,
        stem_size: int = 1,
        in_channels: int = 3,
        mask_ratio: float = 0.6,
        decoder_dim: int = 64,
        norm_pix_loss: bool = True,
        loss: str = "mse",
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
    ):
        super().__init__()
        self.set_patches(image_size, patch_size, mask_ratio=mask_ratio, norm_pix_loss=norm_pix_loss)
        if stem_size not in (1, 2, 4):
            raise InputError(f"stem_size {stem_size} is not 1, 2 or 4")
        if norm_pix_loss and loss != "mse":
            raise InputError(f"loss {loss!r} does not go with norm_pix_loss: switch that off, or use mse")
        if decoder_dim < 8 or decoder_dim % 8:
            raise InputError(f"decoder_dim {decoder_dim} is not a multiple of 8")

        self.encoder = create_timm(
            encoder, "as a timm ConvNeXt", in_chans=in_channels, num_classes=0, patch_size=stem_size
        )
        if not isinstance(self.encoder, ConvNeXt):
            raise InputError(f"encoder {encoder!r} is a {type(self.encoder).__name__}, not a timm ConvNeXt")
        self.response_norms = [
            [module for module in stage.modules() if type(module) is GlobalResponseNorm]
            for stage in self.encoder.stages
        ]
        for norm in itertools.chain(*self.response_norms):
            norm.__class__ = VisibleResponseNorm
        self.encoder.head.requires_grad_(False)  # its norm is for `encode`, which pretraining does without
        self.num_features = self.encoder.num_features
        channels = [info["num_chs"] for info in self.encoder.feature_info]
        self.stride = self.encoder.feature_info[0]["reduction"]  # of the finest map
        if any(side % self.stride for side in self.image_size):
            raise InputError(f"image_size {image_size} is not a multiple of {self.stride}: use a smaller stem_size")
        if min(self.image_size) < (coarsest := self.encoder.feature_info[-1]["reduction"]):
            raise InputError(f"image_size {image_size} is below {coarsest}, the last stride: use a smaller stem_size")
        self.across = nn.ModuleList(nn.Conv2d(count, decoder_dim, 1) for count in channels)
        self.tokens = nn.ParameterList(nn.Parameter(0.02 * torch.randn(decoder_dim, 1, 1)) for _ in channels)
        self.layers = nn.ModuleList(ConvLayer(decoder_dim, decoder_dim) for _ in channels)
        self.to_pixels = nn.Conv2d(decoder_dim, in_channels * self.stride**2, 1)

    # ---- the layers

    def shown_places(self, mask: Tensor, size: Sequence[int]) -> Tensor:
        """Which places of a map of this size show something: (B, 1, *size) in the weights' type, 1 = visible."""
        visible = (~mask).float().unflatten(1, self.grid_size)[:, None]
        # What is above 0 is that of a maximum, which ONNX does not have for sizes that do not divide.
        return (nn.functional.adaptive_avg_pool2d(visible, (size[0], size[1])) > 0).to(self.dtype)

    def forward_encoder(self, images: Tensor, mask: Tensor) -> list[Tensor]:
        """Each stage's map (B, channels, h, w) of images whose hidden patches are, and stay, zero."""

        def emptied(x: Tensor) -> Tensor:
            return x * self.shown_places(mask, x.shape[2:])

        x, maps = emptied(self.encoder.stem(emptied(images))), []
        for stage, norms in zip(self.encoder.stages, self.response_norms, strict=True):
            for layer in stage.downsample.children():  # a norm, whose bias fills empty places, and a convolution
                x = emptied(layer(x))
            shown = self.shown_places(mask, x.shape[2:])  # the blocks of a stage keep its size
            for norm in norms:
                norm.shown = shown
            for block in stage.blocks:
                x = block(x) * shown
            for norm in norms:
                norm.shown = None
            maps.append(x)
        return maps

    def forward_decoder(self, maps: list[Tensor], mask: Tensor) -> Tensor:
        """Normalised images (B, C, H, W), or patches' normalised pixels, from the maps of all stages."""
        x = None
        for across, token, layer, found in list(zip(self.across, self.tokens, self.layers, maps, strict=True))[::-1]:
            filled = torch.where(self.shown_places(mask, found.shape[2:]) > 0, across(found), token)
            x = filled if x is None else filled + nn.functional.interpolate(x, size=found.shape[2:])
            x = x + layer(x)
        return nn.functional.pixel_shuffle(self.to_pixels(x), self.stride)

    # ---- what users and scripts call

    def encode(self, images: Tensor) -> Tensor:
        """Pooled and normalised features (B, F) of unmasked images, as timm's `encoder(images)` gives them."""
        return self.encoder(self.normalise(images))

    def forward(
        self, images: Tensor, mask: Tensor | None = None, *, generator: torch.Generator | None = None,
        num_hidden: int | None = None,
    ) -> AutoencoderOutput:  # fmt: skip
        """One training pass. Images uint8 or normalised float (B, C, H, W); without a mask, a random one is drawn.

        Whoever knows that a mask (B, N) hides `num_hidden` patches of every image says so: it is not looked at then,
        for which a GPU would have to be waited for.

        Raises InputError for a mask of another shape or dtype, or one that hides no patch or all of them.
        """
        images = self.normalise(images)
        mask = self.choose_mask(mask, images, generator)
        if num_hidden is None and not require_visible(mask).any():
            raise InputError("mask hides no patch: there is nothing to predict")
        mask = to_device(mask, images.device)
        patches, predicted = patchify(images.float(), self.patch_size), self.predict(images, mask)
        pasted = self.paste(predicted, patches, mask)
        if not self.norm_pix_loss:  # over all pixels the visible ones add nothing: the mean is over the hidden
            return AutoencoderOutput(self.reconstruction_loss(pasted, images) / mask.float().mean(), pasted)
        error = (predicted - normalise_patches(patches)).square().mean(dim=2)  # (B, N)
        return AutoencoderOutput((error * mask).sum() / mask.sum(), pasted.detach())

    def predict(self, images: Tensor, mask: Tensor) -> Tensor:
        """See `PatchMasking.predict`."""
        return patchify(self.forward_decoder(self.forward_encoder(images, mask), mask).float(), self.patch_size)
