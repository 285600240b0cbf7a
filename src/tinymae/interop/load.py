"""One way in for weights of every kind."""

from pathlib import Path

import timm

from ..errors import InputError
from ..files import load_weights_strictly, read_json
from ..models.base import Autoencoder, find_weights
from ..models.classifier import Classifier, build_classifier
from ..models.mae import MaskedAutoencoder
from ..models.vit import TIMM_POOLS, ViTEncoder, create_vit
from ..models.weights import ARCHITECTURES, CLASSIFIER
from .huggingface import read_transformers
from .official import from_official

Model = Autoencoder | Classifier
# What a classifier's folder may tell timm: other arguments could name files to unpickle or addresses to fetch.
MODEL_ARGS = {
    "img_size": "image_size", "patch_size": "patch_size", "in_chans": "in_channels", "embed_dim": "embed_dim",
    "depth": "depth", "num_heads": "num_heads",
}  # fmt: skip


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
    heads = {"num_heads": num_heads, "decoder_heads": decoder_heads}
    if Path(source).is_file():
        return from_official(source, decoder_dim=decoder_dim, decoder_depth=decoder_depth, **heads)
    folder = find_weights(source)
    config = read_json(folder / "config.json")
    if "model_type" in config:
        return read_transformers(folder, config)
    architecture = config.get("architecture")
    if architecture in ARCHITECTURES:
        return ARCHITECTURES[architecture].from_folder(folder, config)
    if architecture == CLASSIFIER:
        return read_family_classifier(folder, config)
    if isinstance(architecture, str) and timm.is_model(architecture):
        return read_vit_classifier(folder, config)
    raise InputError(f"weights {source}: config.json names architecture {architecture!r}, which tinymae does not know")


def read_family_classifier(folder: Path, config: dict) -> Classifier:
    """The classifier of a family whose encoder is no ViT."""
    try:
        arguments = dict(config["autoencoder"])
        family, classes = ARCHITECTURES[arguments["architecture"]], [str(name) for name in config["label_names"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder}: config.json does not describe a classifier ({error})") from None
    classifier = build_classifier(family.from_config(arguments, source=folder), classes=classes)
    load_weights_strictly(classifier, folder / "model.safetensors")
    return classifier.eval()


def read_vit_classifier(folder: Path, config: dict) -> Classifier:
    """The classifier of a folder that `save_classifier` wrote in timm's format."""
    try:
        arguments, preprocessing = dict(config["model_args"]), config["pretrained_cfg"]
        classes = [str(name) for name in config["label_names"]]
        pool = {theirs: ours for ours, theirs in TIMM_POOLS.items()}[arguments.pop("global_pool")]
        statistics = {name: [float(value) for value in preprocessing[name]] for name in ("mean", "std")}
        if arguments.pop("fc_norm") or (unknown := sorted(arguments.keys() - MODEL_ARGS.keys())):
            raise InputError(f"{folder}: model_args of config.json has {', '.join(unknown) or 'fc_norm'}: not ours")
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder}: config.json does not describe a classifier ({error!r})") from None
    if not classes:
        raise InputError(
            f"weights {folder} hold an encoder written for timm, without a head: give a classifier's folder"
        )
    sizes = {MODEL_ARGS[name]: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()}
    try:
        vit = create_vit(
            config["architecture"], num_classes=len(classes), global_pool=TIMM_POOLS[pool], fc_norm=False, **sizes
        )
    except TypeError as error:
        raise InputError(f"{folder}: config.json does not describe a ViT ({error})") from None
    load_weights_strictly(vit, folder / "model.safetensors")
    head = vit.head
    vit.reset_classifier(0)
    return Classifier(ViTEncoder(vit, pool=pool, **statistics), head, classes=classes).eval()


def load_autoencoder(source: str | Path | Model, **official) -> Autoencoder:
    """`load`, for what needs an autoencoder. Raises InputError for a classifier."""
    model = load(source, **official)
    if not isinstance(model, Autoencoder):
        raise InputError(f"weights {describe_source(source)} hold a classifier; give the folder of a pretraining run")
    return model


def load_mae(source: str | Path | Model, **official) -> MaskedAutoencoder:
    """`load`, for what needs a masked ViT. Raises InputError for other families and classifiers."""
    model = load_autoencoder(source, **official)
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
