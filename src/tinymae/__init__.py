"""tinymae: masked autoencoders for small images, built from timm parts."""

from .autoencoders.base import Reconstruction
from .convert import from_official, to_official
from .data import load_dataset
from .files import InputError
from .huggingface import classifier_from_transformers, from_transformers, to_transformers
from .mae import MAEOutput, MaskedAutoencoder
from .masking import patchify, random_mask, unpatchify
from .resample import adapt
from .weights import export_timm, load_autoencoder, load_classifier

__version__ = "0.1.0"
__all__ = [
    "Features",
    "InputError",
    "MAEOutput",
    "MaskedAutoencoder",
    "Reconstruction",
    "adapt",
    "classifier_from_transformers",
    "export_timm",
    "from_official",
    "from_transformers",
    "load_autoencoder",
    "load_classifier",
    "load_dataset",
    "patchify",
    "random_mask",
    "to_official",
    "to_transformers",
    "unpatchify",
]


def __getattr__(name: str):
    if name == "Features":  # importing scikit-learn takes over a second: only for those who ask
        from .features import Features

        return Features
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
