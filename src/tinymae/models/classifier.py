"""An encoder and a linear head: the one classifier of all families."""

import copy
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ..errors import InputError, list_some
from ..files import digest, require_types, write_json, write_tensors
from ..tensors import pair
from .base import Autoencoder, Encoder
from .families import ARCHITECTURES
from .filling import build_from_file
from .mae import MaskedAutoencoder
from .pretrained import Pretrained
from .vit import OUR_POOLS, ViTEncoder, create_vit, write_timm

# What a classifier's folder may pass to timm: other arguments could name files to unpickle or addresses to fetch.
MODEL_ARGS = {
    "img_size": "image_size", "patch_size": "patch_size", "in_chans": "in_channels", "embed_dim": "embed_dim",
    "depth": "depth", "num_heads": "num_heads",
}  # fmt: skip
CLASSES = list[str | int]  # the type of `label_names`
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # and separators of lines, and halves of pairs
SEVERAL = "several_labels"  # in config.json: whether an image may have several of the classes


class Classifier(nn.Module, Pretrained):
    """Images -> logits, by an encoder's features and a linear layer.

    Args:
        encoder: what `encode` gives features of; of a `MaskedAutoencoder` its timm ViT, wrapped.
        head: features -> logits.
        classes: their names, in the order of the logits.
        several: whether an image may have several of the classes, or none.

    Raises:
        InputError: an encoder that is none of ours, as a `MaskedAutoencoder.encoder` by itself, or a head of other
            sizes; `build_classifier` makes both of an autoencoder.
    """

    def __init__(self, encoder: Encoder, head: nn.Linear, *, classes: Sequence[str], several: bool = False):
        super().__init__()
        if not isinstance(encoder, Encoder):
            raise InputError(
                f"encoder is a {type(encoder).__name__}: tinymae.build_classifier makes a classifier of an autoencoder"
            )
        if not isinstance(head, nn.Linear):
            raise InputError(f"head is a {type(head).__name__}: give a torch.nn.Linear, of features to logits")
        if (sizes := (head.in_features, head.out_features)) != (encoder.num_features, len(classes)):
            raise InputError(
                f"head has {sizes[0]} inputs and {sizes[1]} outputs, for {encoder.num_features} features and "
                f"{len(classes)} classes"
            )
        self.encoder, self.head, self.classes, self.several = encoder, head, [*map(str, classes)], several

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels"""
        return self.encoder.image_size

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        return self.encoder.in_channels

    @property
    def vit(self) -> VisionTransformer | None:
        """The stock timm classifier, made of these same tensors; None where the encoder is no ViT."""
        if not isinstance(self.encoder, ViTEncoder):
            return None
        vit = copy.copy(self.encoder.vit)
        vit._modules = {**self.encoder.vit._modules, "head": self.head}
        vit.num_classes = self.head.out_features
        return vit

    def normalise(self, images: Tensor) -> Tensor:
        """Images uint8 or uint16 (B, C, H, W) -> float, by the data's mean and std; float images pass as they are."""
        return self.encoder.normalise(images)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of uint8 or normalised float images, the last layer in float32.

        Images are (B, C, H, W), or one (C, H, W), which is a batch of one.
        """
        features = self.encoder.encode(images)
        with torch.autocast(features.device.type, enabled=False):  # half precision would blur a probe's logits
            bias = None if self.head.bias is None else self.head.bias.float()
            return nn.functional.linear(features.float(), self.head.weight.float(), bias)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities (B, classes) of logits: they sum to 1, or with `several` each class has one of its own.

        Raises InputError for logits of another shape, as images have.
        """
        if logits.ndim != 2 or logits.shape[1] != len(self.classes):
            raise InputError(
                f"logits have shape {tuple(logits.shape)}, not (batch, {len(self.classes)}): of images, give "
                "classifier.probabilities(classifier(images))"
            )
        return logits.sigmoid() if self.several else logits.softmax(dim=1)

    # ---- weights on disk

    @property
    def label_names(self) -> dict[str, Any]:
        """What a config.json says of the classes."""
        return {"label_names": self.classes} | ({SEVERAL: True} if self.several else {})

    @property
    def fingerprint(self) -> str:
        """See `Pretrained.fingerprint`; also over what makes predictions of logits, and pixels of files."""
        about = {**self.label_names, "pool": self.encoder.pool, **self.reading_noted}
        statistics = {
            name: getattr(self.encoder, name).expand(self.in_channels, 1, 1) for name in self.encoder.statistics
        }
        return digest(self.state_dict() | statistics, json.dumps(about))

    def write_weights(self, folder: str | Path) -> None:
        """`model.safetensors` and `config.json`, each written atomically; of a ViT this is a folder of timm.

        >>> import tempfile
        >>> model = MaskedAutoencoder(image_size=8, patch_size=2, depth=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     build_classifier(model, classes=["cat", "dog"]).write_weights(folder)
        ...     timm.create_model(f"local-dir:{folder}", pretrained=True)(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 2])
        """
        folder, encoder, about = Path(folder), self.encoder, self.label_names | self.reading_noted
        if isinstance(encoder, ViTEncoder):
            assert self.vit is not None
            write_timm(self.vit, folder, pool=encoder.pool, names=about, **encoder.statistics)
            return
        assert isinstance(encoder, Autoencoder)
        write_tensors(self.state_dict(), folder / "model.safetensors")
        autoencoder = {"architecture": type(encoder).__name__, **encoder.config}
        content = {"architecture": type(self).__name__, "autoencoder": autoencoder, **about}
        write_json(folder / "config.json", content)

    @classmethod
    def wrote(cls, config: dict) -> bool:
        """Whether a config.json is a classifier's."""
        return super().wrote(config) or timm.is_model(str(config.get("architecture")))

    @classmethod
    def build_from_folder(cls, folder: Path, config: dict) -> "Classifier":
        """See `Pretrained.build_from_folder`."""
        source = folder / "config.json"
        of_family = config["architecture"] == cls.__name__
        types = {"autoencoder": dict} if of_family else {"model_args": dict, "pretrained_cfg": dict}
        require_types({SEVERAL: False} | config, types | {"label_names": CLASSES, SEVERAL: bool}, source=source)
        about = {"classes": [*map(str, config["label_names"])], "several": config.get(SEVERAL, False)}
        require_names(about["classes"], source=f"{source}: label_names")
        if not about["classes"]:
            raise InputError(
                f"weights {folder} name no classes, as an encoder written for timm, without a head: give the folder of "
                "a classifier"
            )
        return (read_of_family if of_family else read_of_timm)(folder, config, **about)


def build_classifier(
    model: Autoencoder | Classifier, *, classes: Sequence[str], several: bool = False, pool: str | None = None,
    drop_path: float = 0.0, patch_drop: float = 0.0,
) -> Classifier:  # fmt: skip
    """A classifier that starts at the features of an autoencoder, or of another classifier; its head starts near zero.

    Of a MaskedAutoencoder this is a stock timm ViT; `drop_path` and `patch_drop` are for it alone. `pool` None is avg,
    or the other classifier's own.

    >>> from tinymae import MaskedAutoencoder
    >>> model = MaskedAutoencoder(image_size=8, patch_size=2, depth=1)
    >>> build_classifier(model, classes=["cat", "dog"])(torch.randn(2, 3, 8, 8)).shape
    torch.Size([2, 2])

    Raises InputError for a `pool` that the encoder does not have, and for classes: see `require_names`.
    """
    require_names(classes)
    start = encoder_of(model)
    encoder, head = start.encoder_and_head(
        len(classes), pool=pool or start.pool, drop_path=drop_path, patch_drop=patch_drop
    )
    nn.init.trunc_normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    classifier = Classifier(encoder, head, classes=classes, several=several).to(start.mean.device)
    classifier.reading = model.reading
    return classifier


def require_names(classes: Sequence[str], *, source: str = "classes") -> None:
    """Raises InputError for two classes of one name, or control characters in one, which no table or sheet can have."""
    names = [*map(str, classes)]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{source} has {list_some(twice)} more than once: give each class a name of its own")
    if odd := [name for name in names if CONTROL.search(name)]:
        raise InputError(f"{source} has {odd[0]!r}, with a control character: give that class another name")


def encoder_of(model: Encoder | Classifier) -> Encoder:
    """What gives the features: of an autoencoder itself."""
    return model.encoder if isinstance(model, Classifier) else model


def feature_function(
    model: Encoder | Classifier, *, pool: str | None = None, layers: int | Sequence[int] = 1
) -> Callable[..., Tensor]:
    """A model's function images (B, C, H, W) -> features (B, F).

    `pool` None is avg, or what a classifier's head was trained on. `layers` other than the last are a ViT's.

    Raises InputError for a `pool` or `layers` that it does not have.
    """
    encoder = encoder_of(model)
    if pool is not None:
        encoder.require_pool(pool)
    if not encoder.layered:
        if layers != 1 if isinstance(layers, int) else tuple(layers) != (-1,):
            raise InputError(f"layers {layers}: a {type(encoder).__name__} is no ViT, leave it out")
        return encoder.encode
    given: dict[str, Any] = {"layers": layers} | ({} if pool is None else {"pool": pool})
    return partial(encoder.encode, **given)


def wrap_vit(
    vit: VisionTransformer, *, pool: str, mean: Sequence[float], std: Sequence[float], classes: Sequence[str],
    several: bool,
) -> Classifier:  # fmt: skip
    """A stock timm classifier, whose head is taken from it, as one of ours; `pool` is what its `global_pool` says."""
    head = vit.head
    vit.reset_classifier(0)
    return Classifier(ViTEncoder(vit, mean=mean, std=std, pool=pool), head, classes=classes, several=several)


def read_of_family(folder: Path, config: dict, **about: Any) -> Classifier:
    """The classifier of a folder whose encoder is a family's; `about` its classes."""
    name = str(config["autoencoder"].get("architecture"))
    if name not in ARCHITECTURES:
        raise InputError(f"{folder / 'config.json'}: architecture {name!r} of a classifier is none of tinymae's")

    def build() -> Classifier:
        return build_classifier(ARCHITECTURES[name].from_config(config["autoencoder"], source=folder), **about)

    return build_from_file(build, folder / "model.safetensors")


def read_of_timm(folder: Path, config: dict, **about: Any) -> Classifier:
    """The classifier of a folder in timm's format; `about` its classes."""
    source, arguments, preprocessing = folder / "config.json", config["model_args"], config["pretrained_cfg"]
    hints = get_type_hints(MaskedAutoencoder.__init__)
    types = {theirs: hints[ours] for theirs, ours in MODEL_ARGS.items()} | {"global_pool": str, "fc_norm": bool}
    if unknown := sorted(arguments.keys() - types.keys()):
        raise InputError(f"{source}: model_args has {', '.join(map(repr, unknown))}, which is not ours")
    require_types(arguments, types, source=source)
    require_types(preprocessing, {name: hints[name] for name in ("mean", "std")}, source=source)
    pool = OUR_POOLS.get(arguments["global_pool"])
    if pool is None or arguments["fc_norm"]:
        raise InputError(f"{source}: global_pool {arguments['global_pool']!r} or fc_norm is not as in our classifiers")
    sizes = {ours: arguments.get(theirs) for theirs, ours in MODEL_ARGS.items()}
    sizes |= {name: pair(sizes[name]) for name in ("image_size", "patch_size")}
    build = partial(
        create_vit, config["architecture"], num_classes=len(about["classes"]), global_pool=arguments["global_pool"],
        fc_norm=False, **sizes,
    )  # fmt: skip
    vit = build_from_file(build, folder / "model.safetensors")
    return wrap_vit(vit, pool=pool, mean=preprocessing["mean"], std=preprocessing["std"], **about)


@torch.no_grad()
def fold_probe(head: nn.Linear, probe: nn.Sequential) -> None:
    """Make `head` compute what a linear probe (affine-free BatchNorm, Linear) computes.

    The normalisation is a fixed scale and shift once fitted, so it folds into the linear layer.
    """
    norm, linear = probe
    assert isinstance(norm, nn.BatchNorm1d) and isinstance(linear, nn.Linear)
    assert norm.running_var is not None and norm.running_mean is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    head.weight.copy_(linear.weight * scale)
    head.bias.copy_(linear.bias - linear.weight @ (norm.running_mean * scale))
