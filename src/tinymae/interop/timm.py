"""Weights as timm keeps them."""

from pathlib import Path

from ..errors import InputError
from ..models.classifier import Classifier
from ..models.mae import MaskedAutoencoder
from ..models.vit import write_timm
from .load import Model, load


def export_timm(weights: Model | str | Path, folder: str | Path) -> None:
    """Write an autoencoder's encoder, or a classifier, or that of a weights folder, as a folder of timm.

    `timm.create_model("local-dir:FOLDER", pretrained=True)` builds it: of an encoder it gives what
    `MaskedAutoencoder.encode` gives, of a classifier its logits. Its `pretrained_cfg` has the data's mean and std and
    `label_names`. The weights file alone loads into a plain timm model of the same size:

        timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, num_classes=10,
                          checkpoint_path="FOLDER/model.safetensors")

    For an encoder, `num_classes=0`. Where the patches are averaged, as `encode`, fine-tuning and probing do by default,
    `global_pool="avg", fc_norm=False` belongs here as well; without them, timm takes the class token.

    A `norm_eps` that the model has of its own becomes timm's 1e-6, as no config of timm can say it. That an image may
    have several of the classes is `several_labels` in config.json, which `tinymae.load` reads and timm does not: there,
    take the sigmoid of the logits.

    >>> import tempfile, timm, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export_timm(MaskedAutoencoder(image_size=8, patch_size=2, depth=1), folder)
    ...     timm.create_model(f"local-dir:{folder}", pretrained=True)(torch.rand(2, 3, 8, 8)).shape
    torch.Size([2, 192])

    Raises InputError if there are no such weights, or if they are no ViT's.
    """
    model = load(weights)
    if isinstance(model, Classifier) and model.vit is not None:
        return model.write_weights(folder)
    if not isinstance(model, MaskedAutoencoder):
        raise InputError(
            f"weights hold a {type(model).__name__} that is no ViT, which is all that timm's folders are for"
        )
    write_timm(model.encoder, Path(folder), pool="avg", names={"label_names": []}, **model.statistics)
