"""tinymae: masked autoencoders for small images, built from timm parts."""

from .data import load_dataset
from .files import InputError
from .mae import MAEOutput, MaskedAutoencoder, Reconstruction, patchify, random_mask, unpatchify

__version__ = "0.1.0"
__all__ = [
    "Features",
    "InputError",
    "MAEOutput",
    "MaskedAutoencoder",
    "Reconstruction",
    "load_dataset",
    "patchify",
    "random_mask",
    "unpatchify",
]


def __getattr__(name: str):
    if name == "Features":  # importing scikit-learn takes over a second: only for those who ask
        from .features import Features

        return Features
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
