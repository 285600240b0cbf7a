"""The families of autoencoders by name, and what is done with a folder of weights whatever it holds."""

from pathlib import Path

from ..files import read_json, read_tensors, write_json, write_tensors
from .base import Autoencoder
from .conv import ConvAutoencoder, VariationalAutoencoder
from .filling import find_weights
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


def halve(source: str | Path, folder: str | Path) -> None:
    """Write the weights of one folder into another in float16, which loads as float32, with the same config.json.

    Raises InputError if `source` holds no weights.
    """
    source, folder = find_weights(source), Path(folder)
    state = read_tensors(source / "model.safetensors")
    halved = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    write_tensors(halved, folder / "model.safetensors")
    write_json(folder / "config.json", read_json(source / "config.json"))
