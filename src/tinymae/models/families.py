"""The families of autoencoders by name."""

from typing import TYPE_CHECKING, Literal

from .base import Autoencoder
from .conv import ConvAutoencoder, VariationalAutoencoder
from .mae import MaskedAutoencoder
from .masked_conv import MaskedConvAutoencoder
from .pca import PrincipalComponents
from .unet import ResNetUNet
from .vqvae import VQAutoencoder

FAMILIES: dict[str, type[Autoencoder]] = {
    "mae": MaskedAutoencoder, "conv_ae": ConvAutoencoder, "vae": VariationalAutoencoder, "vqvae": VQAutoencoder,
    "resnet_unet": ResNetUNet, "masked_conv": MaskedConvAutoencoder, "pca": PrincipalComponents,
}  # fmt: skip
ARCHITECTURES = {family.__name__: family for family in FAMILIES.values()}  # as config.json names them
if TYPE_CHECKING:
    Family = str
else:  # settings that name a family offer these, without a second list of them
    Family = Literal[tuple(FAMILIES)]
