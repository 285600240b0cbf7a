"""Weights on disk: the folders that runs write. `interop.load` reads them."""

from pathlib import Path
from typing import Any

from timm.models.vision_transformer import VisionTransformer

from ..files import read_json, read_tensors, write_json, write_tensors
from .base import Autoencoder
from .classifier import Classifier
from .conv import ConvAutoencoder, VariationalAutoencoder
from .filling import find_weights
from .mae import MaskedAutoencoder
from .masked_conv import MaskedConvAutoencoder
from .pca import PrincipalComponents
from .unet import ResNetUNet
from .vit import TIMM_POOLS, ViTEncoder, describe
from .vqvae import VQAutoencoder

FAMILIES: dict[str, type[Autoencoder]] = {
    "mae": MaskedAutoencoder, "conv_ae": ConvAutoencoder, "vae": VariationalAutoencoder, "vqvae": VQAutoencoder,
    "resnet_unet": ResNetUNet, "masked_conv": MaskedConvAutoencoder, "pca": PrincipalComponents,
}  # fmt: skip
ARCHITECTURES = {family.__name__: family for family in FAMILIES.values()}  # as config.json names them
SEVERAL = "several_labels"  # in config.json: whether an image may have several of the classes
CLASSIFIER = "Classifier"  # the architecture of a classifier that is no ViT


def save_autoencoder(model: Autoencoder, folder: str | Path) -> None:
    """`model.safetensors` and `config.json`, each written atomically, that `from_pretrained` loads.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_autoencoder(MaskedAutoencoder(image_size=8, patch_size=2, depth=1), folder)
    ...     MaskedAutoencoder.from_pretrained(folder).num_features
    192
    """
    folder = Path(folder)
    write_tensors(model.state_dict(), folder / "model.safetensors")
    write_json(folder / "config.json", {"architecture": type(model).__name__, **model.config})


def save_classifier(classifier: Classifier, folder: str | Path) -> None:
    """`model.safetensors` and `config.json`, each written atomically, that `tinymae.load` reads.

    Of a ViT this is a folder of timm: see `write_timm`.

    >>> import tempfile, timm, torch
    >>> from tinymae.models.classifier import build_classifier
    >>> model = MaskedAutoencoder(image_size=8, patch_size=2, depth=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_classifier(build_classifier(model, classes=["cat", "dog"]), folder)
    ...     timm.create_model(f"local-dir:{folder}", pretrained=True)(torch.rand(2, 3, 8, 8)).shape
    torch.Size([2, 2])
    """
    folder, encoder = Path(folder), classifier.encoder
    if isinstance(encoder, ViTEncoder):
        assert classifier.vit is not None
        statistics = {"mean": encoder.mean.flatten().tolist(), "std": encoder.std.flatten().tolist()}
        write_timm(classifier.vit, folder, pool=encoder.pool, names=names_of(classifier), **statistics)
        return
    assert isinstance(encoder, Autoencoder)
    write_tensors(classifier.state_dict(), folder / "model.safetensors")
    autoencoder = {"architecture": type(encoder).__name__, **encoder.config}
    content = {"architecture": CLASSIFIER, "autoencoder": autoencoder, **names_of(classifier)}
    write_json(folder / "config.json", content)


def names_of(classifier: Classifier) -> dict[str, Any]:
    """What a config.json says of a classifier's classes."""
    return {"label_names": classifier.classes} | ({SEVERAL: True} if classifier.several else {})


def write_timm(
    vit: VisionTransformer, folder: Path, *, pool: str, names: dict[str, Any], mean: list[float], std: list[float]
) -> None:
    """A stock timm ViT as timm keeps it on the Hub: `model.safetensors` and a `config.json` that
    `timm.create_model("local-dir:FOLDER")` reads, with the data's mean and std and what `names_of` says of the classes.
    """
    num_classes = len(names["label_names"])
    sizes = describe(vit)
    write_tensors(vit.state_dict(), folder / "model.safetensors")
    write_json(
        folder / "config.json",
        {
            "architecture": sizes["encoder"],
            "num_classes": num_classes,
            "num_features": vit.num_features,
            **names,
            "model_args": {
                "img_size": list(sizes["image_size"]),
                "patch_size": list(sizes["patch_size"]),
                "in_chans": sizes["in_channels"],
                "global_pool": TIMM_POOLS[pool],
                "fc_norm": False,
                **{key: sizes[key] for key in ("embed_dim", "depth", "num_heads")},
            },
            "pretrained_cfg": {
                "input_size": [sizes["in_channels"], *sizes["image_size"]],
                "fixed_input_size": True,
                "interpolation": "bicubic",
                "crop_pct": 1.0,
                "mean": mean,
                "std": std,
                "num_classes": num_classes,
                "first_conv": "patch_embed.proj",
                "classifier": "head",
            },
        },
    )


def halve(source: str | Path, folder: str | Path) -> None:
    """Write the weights of one folder into another in float16, which loads as float32, with the same config.json.

    Raises InputError if `source` holds no weights.
    """
    source, folder = find_weights(source), Path(folder)
    state = read_tensors(source / "model.safetensors")
    halved = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    write_tensors(halved, folder / "model.safetensors")
    write_json(folder / "config.json", read_json(source / "config.json"))
