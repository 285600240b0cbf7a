"""Weights on disk: what an `--weights` folder may hold, and how each kind is read back."""

from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from .architecture import describe
from .autoencoders.base import Autoencoder, normalise
from .autoencoders.conv import ConvAutoencoder, VariationalAutoencoder
from .autoencoders.masked_conv import MaskedConvAutoencoder
from .autoencoders.pca import PrincipalComponents
from .autoencoders.unet import ResNetUNet
from .autoencoders.vqvae import VQAutoencoder
from .data import Dataset
from .files import InputError, digest, load_weights_strictly, read_json, read_tensors, write_json, write_tensors
from .mae import MaskedAutoencoder, create_vit

FAMILIES: dict[str, type[Autoencoder]] = {
    "mae": MaskedAutoencoder, "conv_ae": ConvAutoencoder, "vae": VariationalAutoencoder, "vqvae": VQAutoencoder,
    "resnet_unet": ResNetUNet, "masked_conv": MaskedConvAutoencoder, "pca": PrincipalComponents,
}  # fmt: skip
HEAD = "LinearHead"  # a classifier whose folder holds no more than its last layer: see `save_head`
ARCHITECTURES = {family.__name__: family for family in FAMILIES.values()}  # as config.json names them


def kind_of(folder: str | Path) -> str:
    """ "autoencoder" or "classifier": which of the two a weights folder holds, by its config.json."""
    architecture = read_json(weights_folder(folder) / "config.json").get("architecture")
    if architecture in ARCHITECTURES:
        return "autoencoder"
    if architecture in (EncoderClassifier.__name__, HEAD) or (
        isinstance(architecture, str) and timm.is_model(architecture)
    ):
        return "classifier"
    raise InputError(f"weights {folder}: config.json names architecture {architecture!r}, which tinymae does not know")


def weights_folder(folder: str | Path) -> Path:
    """The folder as a Path. Raises InputError if it is missing or holds no weights."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"weights folder {folder} does not exist")
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise InputError(f"weights folder {folder} has no {name}: is the run finished?")
    return folder


def require_channels(dataset: Dataset, in_channels: int) -> None:
    """Raises InputError unless the dataset's images have the channels that a model wants."""
    if dataset.image_shape[0] != in_channels:
        raise InputError(
            f"data set {dataset.name} has {dataset.image_shape[0]} channels, the weights want {in_channels}"
        )


def save_autoencoder(model: Autoencoder, folder: str | Path) -> None:
    """`model.safetensors` and `config.json`, each written atomically, that `from_pretrained` loads.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_autoencoder(MaskedAutoencoder(image_size=8, patch_size=2, depth=1), folder)
    ...     kind_of(folder), load_autoencoder(folder).num_features
    ('autoencoder', 192)
    """
    folder = Path(folder)
    write_tensors(model.state_dict(), folder / "model.safetensors")
    write_json(folder / "config.json", {"architecture": type(model).__name__, **model.config})


def halve(source: str | Path, folder: str | Path) -> None:
    """Write the weights of one folder into another in float16, which loads as float32, with the same config.json.

    Raises InputError if `source` holds no weights.
    """
    source, folder = weights_folder(source), Path(folder)
    state = read_tensors(source / "model.safetensors")
    halved = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    write_tensors(halved, folder / "model.safetensors")
    write_json(folder / "config.json", read_json(source / "config.json"))


def load_autoencoder(folder: str | Path) -> Autoencoder:
    """The autoencoder of a weights folder, whatever its family, in evaluation mode.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_autoencoder(ConvAutoencoder(image_size=8, width=8, latent_dim=5), folder)
    ...     load_autoencoder(folder).num_features
    5

    Raises InputError if the folder holds a classifier, or is damaged.
    """
    if kind_of(folder) != "autoencoder":
        raise InputError(f"weights {folder} hold a classifier; give the folder of a pretraining run")
    architecture = read_json(Path(folder) / "config.json")["architecture"]
    return ARCHITECTURES[architecture].from_pretrained(folder)


def create_classifier(
    config: dict, *, num_classes: int, pool: str = "avg", drop_path: float = 0.0
) -> VisionTransformer:
    """A stock timm ViT like the encoder of a MaskedAutoencoder with this `config`, with a linear head.

    Its final norm comes before the pooling, as in the features that probes see; timm's `fc_norm` is off.

    >>> model = MaskedAutoencoder(image_size=8, patch_size=2, depth=1)
    >>> create_classifier(model.config, num_classes=10)(torch.rand(2, 3, 8, 8)).shape
    torch.Size([2, 10])
    """
    sizes = {key: config[key] for key in ("in_channels", "embed_dim", "depth", "num_heads")}
    classifier = create_vit(
        config["encoder"], image_size=tuple(config["image_size"]), patch_size=tuple(config["patch_size"]), **sizes,
        num_classes=num_classes, global_pool={"avg": "avg", "cls": "token"}[pool], fc_norm=False,
        drop_path_rate=drop_path,
    )  # fmt: skip
    nn.init.trunc_normal_(classifier.head.weight, std=0.01)
    nn.init.zeros_(classifier.head.bias)
    return classifier


@torch.no_grad()
def fold_probe(head: nn.Linear, probe: nn.Sequential) -> None:
    """Make `head` compute what a linear probe (affine-free BatchNorm, Linear) computes.

    The normalisation is a fixed scale and shift once fitted, so it folds into the linear layer.
    """
    norm: Any  # Modules with any attributes: a Sequential does not know what it holds
    linear: Any
    norm, linear = probe
    scale = (norm.running_var + norm.eps).rsqrt()
    head.weight.copy_(linear.weight * scale)
    head.bias.copy_(linear.bias - linear.weight @ (norm.running_mean * scale))


def fill_encoder(classifier: VisionTransformer, encoder: VisionTransformer) -> None:
    """Copy an encoder's weights into a classifier; only its head stays as it is."""
    missing, unexpected = classifier.load_state_dict(encoder.state_dict(), strict=False)
    if unexpected or set(missing) != {"head.weight", "head.bias"}:
        raise InputError(f"the encoder does not fit the classifier: missing {missing}, unexpected {unexpected}")


def save_classifier(
    classifier: VisionTransformer, folder: str | Path, *, config: dict, pool: str, classes: list[str]
) -> None:
    """A stock timm ViT as timm keeps it on the Hub: `model.safetensors` and a `config.json` that
    `timm.create_model("local-dir:FOLDER")` reads, with the data's mean and std and the names of the classes.
    """
    folder = Path(folder)
    sizes = {key: config[key] for key in ("embed_dim", "depth", "num_heads") if config[key] is not None}
    write_tensors(classifier.state_dict(), folder / "model.safetensors")
    write_json(
        folder / "config.json",
        {
            "architecture": config["encoder"],
            "num_classes": len(classes),
            "num_features": classifier.num_features,
            "label_names": classes,
            "model_args": {
                "img_size": list(config["image_size"]),
                "patch_size": list(config["patch_size"]),
                "in_chans": config["in_channels"],
                "global_pool": {"avg": "avg", "cls": "token"}[pool],
                "fc_norm": False,
                **sizes,
            },
            "pretrained_cfg": {
                "input_size": [config["in_channels"], *config["image_size"]],
                "fixed_input_size": True,
                "interpolation": "bicubic",
                "crop_pct": 1.0,
                "mean": list(config["mean"]),
                "std": list(config["std"]),
                "num_classes": len(classes),
                "first_conv": "patch_embed.proj",
                "classifier": "head",
            },
        },
    )


class Classifier(nn.Module):
    """A stock timm ViT together with what it takes to feed it: the data's mean and std, and the class names."""

    def __init__(self, vit: VisionTransformer, *, mean: list[float], std: list[float], classes: list[str]):
        super().__init__()
        self.vit, self.classes = vit, classes
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels"""
        return self.vit.patch_embed.img_size

    @property
    def in_channels(self) -> int:
        return self.vit.patch_embed.proj.in_channels

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 images (B, C, H, W) -> float, by the data's mean and std; float images pass as they are."""
        return normalise(images, self.mean, self.std, (self.in_channels, *self.image_size))

    @property
    def head(self) -> nn.Linear:
        """The layer that classifies."""
        return self.vit.head

    def compile_core(self) -> None:
        """`torch.compile` the encoder."""
        self.vit.forward_features = torch.compile(self.vit.forward_features)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of uint8 or normalised float images, the last layer in float32.

        Images are (B, C, H, W), or one (C, H, W), which is a batch of one.
        """
        tokens = self.vit.forward_features(self.normalise(images))
        with torch.autocast(images.device.type, enabled=False):  # half precision would blur a probe's logits
            return self.vit.forward_head(tokens.float())

    def save(self, folder: str | Path) -> None:
        """The folder that `save_classifier` writes and `load_classifier` reads."""
        config = describe(self.vit) | {"mean": self.mean.flatten().tolist(), "std": self.std.flatten().tolist()}
        save_classifier(self.vit, folder, config=config, pool=pool_of(self.vit), classes=self.classes)


def pool_of(vit: VisionTransformer) -> str:
    """ "avg" or "cls", as a timm ViT pools its tokens. Raises InputError if it does neither."""
    pools = {"avg": "avg", "token": "cls"}
    if vit.global_pool not in pools:
        raise InputError(f"global_pool {vit.global_pool!r} of the encoder is neither 'token' nor 'avg'")
    return pools[vit.global_pool]


class EncoderClassifier(nn.Module):
    """A linear layer on any autoencoder's features: the classifier of the families whose encoder is no timm ViT.

    What `encode` does not use, such as a decoder, is frozen.
    """

    def __init__(self, autoencoder: Autoencoder, *, classes: list[str]):
        super().__init__()
        self.autoencoder, self.classes = autoencoder, classes
        self.head = nn.Linear(autoencoder.num_features, len(classes))
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        images = torch.zeros(1, self.in_channels, *self.image_size, device=autoencoder.mean.device)
        parameters = list(autoencoder.requires_grad_().parameters())
        features = autoencoder.encode(images)
        used = torch.autograd.grad(features.sum(), parameters, allow_unused=True) if parameters else []
        for parameter, gradient in zip(parameters, used, strict=True):
            parameter.requires_grad_(gradient is not None)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels"""
        return self.autoencoder.image_size

    @property
    def in_channels(self) -> int:
        return self.autoencoder.in_channels

    def compile_core(self) -> None:
        """`torch.compile` the encoder."""
        autoencoder = self.autoencoder
        autoencoder.encode = torch.compile(autoencoder.encode)  # type: ignore[method-assign]  # of this one alone

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 images (B, C, H, W) -> float, by the data's mean and std; float images pass as they are."""
        return self.autoencoder.normalise(images)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of uint8 or normalised float images, the last layer in float32.

        Images are (B, C, H, W), or one (C, H, W), which is a batch of one.
        """
        features = self.autoencoder.encode(images)
        with torch.autocast(images.device.type, enabled=False):
            return self.head(features.float())

    def save(self, folder: str | Path) -> None:
        """`model.safetensors` and `config.json`, each written atomically, that `load_classifier` reads."""
        folder = Path(folder)
        write_tensors(self.state_dict(), folder / "model.safetensors")
        encoder = {"architecture": type(self.autoencoder).__name__, **self.autoencoder.config}
        content = {"architecture": type(self).__name__, "autoencoder": encoder, "label_names": self.classes}
        write_json(folder / "config.json", content)


def require_pool(autoencoder: Autoencoder, pool: str) -> None:
    """Raises InputError for another `pool` than "avg" of a family that has no class token."""
    if pool != "avg" and not isinstance(autoencoder, MaskedAutoencoder):
        raise InputError(f"pool {pool!r} is for --model mae: a {type(autoencoder).__name__} has no class token")


def build_classifier(
    autoencoder: Autoencoder, *, classes: list[str], pool: str = "avg", drop_path: float = 0.0
) -> Classifier | EncoderClassifier:
    """A classifier that starts at an autoencoder's features, with a head that starts near zero.

    Of a MaskedAutoencoder this is a stock timm ViT, with `pool` and `drop_path`; other families have neither.
    Raises InputError for another `pool` than "avg" of such a family.
    """
    require_pool(autoencoder, pool)
    if not isinstance(autoencoder, MaskedAutoencoder):
        return EncoderClassifier(autoencoder, classes=classes)
    config = autoencoder.config
    vit = create_classifier(config, num_classes=len(classes), pool=pool, drop_path=drop_path)
    fill_encoder(vit, autoencoder.encoder)
    return Classifier(vit, mean=config["mean"], std=config["std"], classes=classes).to(autoencoder.mean.device)


def save_head(head: nn.Linear, folder: str | Path, *, autoencoder: str | Path, classes: list[str]) -> None:
    """A linear layer on the features of an autoencoder in a folder beside this one, which is not written again.

    `load_classifier` joins the two, and refuses another autoencoder than this one.
    """
    folder, autoencoder = Path(folder), weights_folder(autoencoder)
    if autoencoder.resolve().parent != folder.resolve().parent:
        raise InputError(f"autoencoder {autoencoder} does not lie beside {folder}: move one of them")
    write_tensors({name: tensor.half() for name, tensor in head.state_dict().items()}, folder / "model.safetensors")
    reference = {"folder": autoencoder.name, "sha256": digest(read_tensors(autoencoder / "model.safetensors"))}
    write_json(folder / "config.json", {"architecture": HEAD, "autoencoder": reference, "label_names": classes})


def load_head(folder: Path, config: dict) -> Classifier | EncoderClassifier:
    """The classifier of `save_head`. Raises InputError if its autoencoder is missing or is another one."""
    reference = config["autoencoder"]
    base = folder.resolve().parent / reference["folder"]
    autoencoder = load_autoencoder(base)
    if digest(read_tensors(base / "model.safetensors")) != reference["sha256"]:
        raise InputError(f"weights {folder} were fitted on another autoencoder than the one now in {base}")
    classifier = build_classifier(autoencoder, classes=config["label_names"])
    load_weights_strictly(classifier.head, folder / "model.safetensors")
    return classifier.eval()


def load_classifier(folder: str | Path) -> Classifier | EncoderClassifier:
    """The classifier of a weights folder, in evaluation mode: a module from images to logits, with `.classes`.

    >>> import tempfile
    >>> autoencoder = MaskedAutoencoder(image_size=8, patch_size=2, embed_dim=24, depth=1, num_heads=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     build_classifier(autoencoder, classes=["cat", "dog"]).save(folder)
    ...     load_classifier(folder)(torch.rand(5, 3, 8, 8)).shape
    torch.Size([5, 2])

    Raises InputError if the folder holds an autoencoder, or is damaged.
    """
    if kind_of(folder) != "classifier":
        raise InputError(f"weights {folder} hold an autoencoder; give the folder of a fine-tuning run")
    folder = weights_folder(folder)
    config = read_json(folder / "config.json")
    if config["architecture"] == HEAD:
        return load_head(folder, config)
    if config["architecture"] == EncoderClassifier.__name__:
        arguments = dict(config["autoencoder"])
        family = ARCHITECTURES[arguments.pop("architecture")]
        classifier = EncoderClassifier(family(**arguments), classes=config["label_names"])
        load_weights_strictly(classifier, folder / "model.safetensors")
        return classifier.eval()
    if not config["num_classes"]:
        raise InputError(
            f"weights {folder} hold an encoder written for timm, without a head: give a classifier's folder"
        )
    vit = timm.create_model(config["architecture"], num_classes=config["num_classes"], **config["model_args"])
    load_weights_strictly(vit, folder / "model.safetensors")
    preprocessing = config["pretrained_cfg"]
    return Classifier(vit, mean=preprocessing["mean"], std=preprocessing["std"], classes=config["label_names"]).eval()


def read_model(source: MaskedAutoencoder | Classifier | str | Path) -> MaskedAutoencoder | Classifier:
    """The model itself, or the one of a weights folder. Raises InputError for other families of autoencoders."""
    if isinstance(source, (MaskedAutoencoder, Classifier)):
        return source
    model = (load_classifier if kind_of(source) == "classifier" else load_autoencoder)(source)
    if not isinstance(model, (MaskedAutoencoder, Classifier)):
        raise InputError(f"weights {source} hold a {type(model).__name__}, not a MaskedAutoencoder or its classifier")
    return model


def export_timm(weights: MaskedAutoencoder | Classifier | str | Path, folder: str | Path) -> None:
    """Write an autoencoder's encoder, or a classifier, or that of a weights folder, as a folder of timm.

    `timm.create_model("local-dir:FOLDER", pretrained=True)` builds it; its `pretrained_cfg` has the data's mean and std
    and `label_names`. The weights file alone loads into a plain timm model of the same size:

        timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, num_classes=10,
                          checkpoint_path="FOLDER/model.safetensors")

    For an encoder, `num_classes=0`: the answer is the class token, as timm's default has it; with
    `global_pool="avg", fc_norm=False` it is what `MaskedAutoencoder.encode` gives. A classifier that averages the
    patches, as fine-tuning and probing make them by default, needs these two arguments here as well.

    A `norm_eps` that the model has of its own becomes timm's 1e-6, as no config of timm can say it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export_timm(MaskedAutoencoder(image_size=8, patch_size=2, depth=1), folder)
    ...     timm.create_model(f"local-dir:{folder}", pretrained=True)(torch.rand(2, 3, 8, 8)).shape
    torch.Size([2, 192])

    Raises InputError if there are no such weights, or for a pooling other than the class token or the average.
    """
    model = read_model(weights)
    if isinstance(model, Classifier):
        return model.save(folder)
    save_classifier(model.encoder, folder, config=model.config, pool=pool_of(model.encoder), classes=[])
