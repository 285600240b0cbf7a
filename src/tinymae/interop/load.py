"""One way in for weights of every kind."""

from functools import partial
from pathlib import Path
from typing import get_type_hints

import timm

from ..errors import InputError
from ..files import read_json, require_types
from ..models.base import Autoencoder
from ..models.classifier import Classifier, build_classifier, wrap_vit
from ..models.filling import build_from_file, find_weights, folder_of
from ..models.mae import MaskedAutoencoder
from ..models.vit import TIMM_POOLS, create_vit
from ..models.weights import ARCHITECTURES, CLASSIFIER, SEVERAL
from ..tensors import pair
from .huggingface import classifier_from_transformers, from_transformers
from .official import from_official

Model = Autoencoder | Classifier
# What a classifier's folder may pass to timm: other arguments could name files to unpickle or addresses to fetch.
MODEL_ARGS = {
    "img_size": "image_size", "patch_size": "patch_size", "in_chans": "in_channels", "embed_dim": "embed_dim",
    "depth": "depth", "num_heads": "num_heads",
}  # fmt: skip
CLASSES = list[str | int]  # the type of `label_names`


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
    if architecture == CLASSIFIER:
        return read_family_classifier(folder, config)
    if timm.is_model(architecture):
        return read_vit_classifier(folder, config)
    raise InputError(f"weights {source}: config.json names architecture {architecture!r}, which tinymae does not know")


def read_family_classifier(folder: Path, config: dict) -> Classifier:
    """The classifier of a family whose encoder is no ViT."""
    source = folder / "config.json"
    require_types(config, {"autoencoder": dict, "label_names": CLASSES}, source=source)
    several = says_several(config, source)
    name, classes = config["autoencoder"].get("architecture"), list(map(str, config["label_names"]))
    if str(name) not in ARCHITECTURES or not classes:
        raise InputError(f"{source}: architecture {name!r} with {len(classes)} label_names is no classifier of ours")

    def build() -> Classifier:
        autoencoder = ARCHITECTURES[name].from_config(config["autoencoder"], source=folder)
        return build_classifier(autoencoder, classes=classes, several=several)

    return build_from_file(build, folder / "model.safetensors").eval()


def says_several(config: dict, source: Path) -> bool:
    """Whether images may have several of the classes. Raises InputError for anything else than a truth value."""
    require_types({SEVERAL: False} | config, {SEVERAL: bool}, source=source)
    return config.get(SEVERAL, False)


def read_vit_classifier(folder: Path, config: dict) -> Classifier:
    """The classifier of a folder that `save_classifier` wrote in timm's format."""
    source = folder / "config.json"
    require_types(config, {"model_args": dict, "pretrained_cfg": dict, "label_names": CLASSES}, source=source)
    arguments, preprocessing = config["model_args"], config["pretrained_cfg"]
    hints = get_type_hints(MaskedAutoencoder.__init__)
    types = {theirs: hints[ours] for theirs, ours in MODEL_ARGS.items()} | {"global_pool": str, "fc_norm": bool}
    if unknown := sorted(arguments.keys() - types.keys()):
        raise InputError(f"{source}: model_args has {', '.join(map(repr, unknown))}, which is not ours")
    require_types(arguments, types, source=source)
    require_types(preprocessing, {name: hints[name] for name in ("mean", "std")}, source=source)
    pool = {theirs: ours for ours, theirs in TIMM_POOLS.items()}.get(arguments["global_pool"])
    if pool is None or arguments["fc_norm"]:
        raise InputError(f"{source}: global_pool {arguments['global_pool']!r} or fc_norm is not as in our classifiers")
    classes = list(map(str, config["label_names"]))
    if not classes:
        raise InputError(
            f"weights {folder} hold an encoder written for timm, without a head: give a classifier's folder"
        )
    sizes = {ours: arguments.get(theirs) for theirs, ours in MODEL_ARGS.items()}
    sizes |= {name: pair(sizes[name]) for name in ("image_size", "patch_size")}
    build = partial(
        create_vit, config["architecture"], num_classes=len(classes), global_pool=arguments["global_pool"],
        fc_norm=False, **sizes,
    )  # fmt: skip
    vit = build_from_file(build, folder / "model.safetensors")
    statistics = {name: preprocessing[name] for name in ("mean", "std")}
    return wrap_vit(vit, pool=pool, **statistics, classes=classes, several=says_several(config, source)).eval()


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
