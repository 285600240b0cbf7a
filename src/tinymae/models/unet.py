"""A ResNet encoder with a mirrored decoder, with skip connections between them or without."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
from timm.layers import GroupNorm
from torch import Tensor, nn

from ..errors import InputError
from .base import Autoencoder
from .conv import ConvLayer
from .outputs import AutoencoderOutput
from .timm_models import create_timm


class ResNetUNet(Autoencoder, tags=["u-net"]):
    """A U-Net (Ronneberger et al., arXiv 1505.04597) on a timm ResNet, trained to give back its input.

    Features are the bottleneck, averaged to 2x2: with the default encoder, whose first four feature maps have strides 2
    to 16, these are 256x2x2 = 1,024 numbers. With skip connections the decoder also gets the finer maps, and may leave
    the bottleneck unused.

    Args:
        encoder: a timm ResNet made of convolutions and norms; its BatchNorm gives way to GroupNorm.
        skips: whether the decoder sees the encoder's finer maps.
        others: as for ConvAutoencoder.

    Raises:
        InputError: an encoder that timm does not know or that has no four feature maps, an unknown loss, an image one
            pixel high or wide.
    """

    decoder_parts = ("layers", "to_images")

    def __init__(
        self,
        encoder: str = "resnet18",
        *,
        image_size: int | tuple[int, int] = 32,
        in_channels: int = 3,
        skips: bool = True,
        loss: str = "mse",
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
    ):
        super().__init__()
        self.skips = skips
        # A map of one pixel is not halved again: besides making no sense, torch's bf16 kernel for that reads
        # uninitialised memory on CPUs (seen with 2.15), and now and then a gradient is NaN.
        count = min(4, min(self.image_size).bit_length() - 1)
        if not count:
            raise InputError(f"image_size {image_size} is one pixel wide or high: it cannot be halved")
        self.encoder = create_timm(
            encoder, "as a timm ResNet", in_chans=in_channels, features_only=True, out_indices=tuple(range(count)),
            norm_layer=partial(GroupNorm, num_groups=8),
        )  # fmt: skip
        channels = self.encoder.feature_info.channels()  # of strides 2, 4, 8, 16, as far as the image allows
        self.num_features = channels[-1] * 4
        upward = [*channels[::-1], channels[0]]  # the last one at the image's own size
        across = [*channels[-2::-1], 0] if skips else [0] * len(channels)
        self.layers = nn.ModuleList(
            nn.Sequential(ConvLayer(before + skip, after), ConvLayer(after, after))
            for (before, after), skip in zip(pairwise(upward), across, strict=True)
        )
        self.to_images = nn.Conv2d(channels[0], in_channels, 3, padding=1)

    def encode(self, images: Tensor) -> Tensor:
        """The bottleneck of uint8 or normalised float images (B, C, H, W), averaged to 2x2 and flattened."""
        return nn.functional.adaptive_avg_pool2d(self.encoder(self.normalise(images))[-1], 2).flatten(1)

    def forward(self, images: Tensor) -> AutoencoderOutput:
        """Encode, decode, compare. Images uint8 or normalised float (B, C, H, W)."""
        images = self.normalise(images)
        *finer, x = self.encoder(images)
        for layer, across in zip(self.layers, [*finer[::-1], images], strict=True):
            x = nn.functional.interpolate(x, size=across.shape[2:])
            # The image itself is what is to be found: it is there for its size alone.
            x = layer(torch.cat([x, across], dim=1) if self.skips and across is not images else x)
        reconstruction = self.to_images(x)
        return AutoencoderOutput(self.reconstruction_loss(reconstruction, images), reconstruction)
