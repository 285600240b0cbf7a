"""tinymae: masked autoencoders for small images, built from timm parts."""

from .autoencoders.base import Reconstruction
from .data import load_dataset
from .files import InputError
from .mae import MAEOutput, MaskedAutoencoder
from .masking import patchify, random_mask, unpatchify

__version__ = "0.1.0"
__all__ = [
    "InputError",
    "MAEOutput",
    "MaskedAutoencoder",
    "Reconstruction",
    "load_dataset",
    "patchify",
    "random_mask",
    "unpatchify",
]
