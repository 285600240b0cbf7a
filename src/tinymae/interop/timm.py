"""Weights as timm keeps them."""

from pathlib import Path

from ..errors import InputError
from ..models.classifier import Classifier
from ..models.mae import MaskedAutoencoder
from ..models.vit import OUR_POOLS
from ..models.weights import save_classifier, write_timm
from .load import Model, load


def export_timm(weights: Model | str | Path, folder: str | Path) -> None:
    """Write an autoencoder's encoder, or a classifier, or that of a weights folder, as a folder of timm.

    `timm.create_model("local-dir:FOLDER", pretrained=True)` builds it; its `pretrained_cfg` has the data's mean and std
    and `label_names`. The weights file alone loads into a plain timm model of the same size:

        timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, num_classes=10,
                          checkpoint_path="FOLDER/model.safetensors")

    For an encoder, `num_classes=0`: the answer is the class token, as timm's default has it; with
    `global_pool="avg", fc_norm=False` it is what `MaskedAutoencoder.encode` gives. A classifier that averages the
    patches, as fine-tuning and probing make them by default, needs these two arguments here as well.

    A `norm_eps` that the model has of its own becomes timm's 1e-6, as no config of timm can say it. That an image may
    have several of the classes is `several_labels` in config.json, which `tinymae.load` reads and timm does not: there,
    take the sigmoid of the logits.

    >>> import tempfile, timm, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export_timm(MaskedAutoencoder(image_size=8, patch_size=2, depth=1), folder)
    ...     timm.create_model(f"local-dir:{folder}", pretrained=True)(torch.rand(2, 3, 8, 8)).shape
    torch.Size([2, 192])

    Raises InputError if there are no such weights, if they are no ViT's, or for a pooling other than the class token or
    the average.
    """
    model = load(weights)
    if isinstance(model, Classifier) and model.vit is not None:
        return save_classifier(model, folder)
    if not isinstance(model, MaskedAutoencoder):
        raise InputError(
            f"weights hold a {type(model).__name__} that is no ViT, which is all that timm's folders are for"
        )
    if model.encoder.global_pool not in OUR_POOLS:
        raise InputError(f"global_pool {model.encoder.global_pool!r} of the encoder is neither 'token' nor 'avg'")
    statistics = {"mean": model.config["mean"], "std": model.config["std"]}
    pool = OUR_POOLS[model.encoder.global_pool]
    write_timm(model.encoder, Path(folder), pool=pool, names={"label_names": []}, **statistics)
