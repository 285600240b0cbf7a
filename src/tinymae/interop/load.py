"""One way in for weights of every kind."""

import os
from pathlib import Path

from ..errors import InputError
from ..files import read_json
from ..models.base import Autoencoder
from ..models.classifier import Classifier
from ..models.families import ARCHITECTURES
from ..models.filling import find_weights, folder_of
from ..models.mae import MaskedAutoencoder
from .huggingface import classifier_from_transformers, from_transformers
from .official import from_official

Model = Autoencoder | Classifier


def load(
    source: str | Path | Model, *, num_heads: int | None = None, decoder_dim: int | None = None,
    decoder_depth: int | None = None, decoder_heads: int | None = None,
) -> Model:  # fmt: skip
    """The model that `source` holds, in evaluation mode: an autoencoder of any family, or a classifier.

    `source` is the folder of a run or of released weights, a Hugging Face Hub id, a folder of transformers (ViTMAE or a
    ViT classifier), or an official MAE checkpoint (a file); a model is given back as it is. The keywords are for an
    official file, which may not say them: see `from_official`.

    A folder is safe to load whoever wrote it: safetensors and JSON alone are read, keys of config.json are checked
    against a list, and nothing is fetched but the Hub id that was asked for.

    >>> import tempfile
    >>> model = MaskedAutoencoder(image_size=8, patch_size=2, embed_dim=24, depth=1, num_heads=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = model.save_pretrained(folder)
    ...     type(load(folder)).__name__
    'MaskedAutoencoder'

    Raises InputError if there is nothing, if it is damaged, or if it holds something else.
    """
    if isinstance(source, Autoencoder | Classifier):
        return source
    if not isinstance(source, str | os.PathLike):
        wanted = part_with_model(source) or "a folder, a file, a Hub id or a model"
        raise InputError(f"weights are of type {type(source).__name__}: give {wanted}")
    path = folder_of(source)
    if path.is_file() and path.suffix != ".json":
        return from_official(
            source, num_heads=num_heads, decoder_dim=decoder_dim, decoder_depth=decoder_depth,
            decoder_heads=decoder_heads,
        )  # fmt: skip
    folder = find_weights(source)
    config = read_json(folder / "config.json")
    if "model_type" in config:
        return (classifier_from_transformers if config["model_type"] == "vit" else from_transformers)(folder)
    architecture = str(config.get("architecture"))
    if architecture in ARCHITECTURES:
        return ARCHITECTURES[architecture].from_folder(folder, config)
    if Classifier.wrote(config):
        return Classifier.from_folder(folder, config)
    raise InputError(
        f"weights {source}: config.json names architecture {architecture!r}, which tinymae does not know: if that is a "
        f"class of yours, {architecture}.from_pretrained reads it; give the model in place of the folder"
    )


def part_with_model(value: object) -> str:
    """In words where the model is in what holds one: what torch.compile or a parallel wrapper gave, or a command's
    result; "" for anything else.
    """
    names = ("_orig_mod", "module", "model")  # the first also has the attributes of its model
    return next((f"its .{name}" for name in names if isinstance(getattr(value, name, None), Model)), "")


def load_autoencoder(source: str | Path | Model) -> Autoencoder:
    """`load`, for what needs an autoencoder. Raises InputError for a classifier."""
    return require_autoencoder(load(source), source)


def require_autoencoder(model: Model, source: str | Path | Model) -> Autoencoder:
    """The model itself. Raises InputError, naming where it came from, for a classifier."""
    if not isinstance(model, Autoencoder):
        raise InputError(f"weights {describe_source(source)} hold a classifier; give the folder of a pretraining run")
    return model


def load_mae(
    source: str | Path | Model, *, num_heads: int | None = None, decoder_dim: int | None = None,
    decoder_depth: int | None = None, decoder_heads: int | None = None,
) -> MaskedAutoencoder:  # fmt: skip
    """`load`, for what needs a masked ViT. Raises InputError for other families and classifiers."""
    model = load(
        source, num_heads=num_heads, decoder_dim=decoder_dim, decoder_depth=decoder_depth, decoder_heads=decoder_heads
    )
    model = require_autoencoder(model, source)
    if not isinstance(model, MaskedAutoencoder):
        raise InputError(
            f"weights {describe_source(source)} hold a {type(model).__name__}, where only --model mae will do"
        )
    return model


def load_classifier(source: str | Path | Model) -> Classifier:
    """`load`, for what needs a classifier. Raises InputError for an autoencoder."""
    model = load(source)
    if not isinstance(model, Classifier):
        raise InputError(f"weights {describe_source(source)} hold an autoencoder; give the folder of a fine-tuning run")
    return model


def describe_source(source: str | Path | Model) -> str:
    """A folder or file as given, or a model's type."""
    return str(source) if isinstance(source, str | Path) else f"({type(source).__name__})"
