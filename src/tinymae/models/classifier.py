"""An encoder and a linear head: the one classifier of all families."""

import copy
from collections.abc import Sequence

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from .base import Autoencoder, Encoder
from .vit import ViTEncoder


class Classifier(nn.Module):
    """Images -> logits, by an encoder's features and a linear layer.

    Args:
        encoder: the stock timm ViT of a `MaskedAutoencoder`, or another family's autoencoder.
        head: features -> logits.
        classes: their names, in the order of the logits.
        several: whether an image may have several of the classes, or none.
    """

    def __init__(self, encoder: Encoder, head: nn.Linear, *, classes: Sequence[str], several: bool = False):
        super().__init__()
        self.encoder, self.head, self.classes, self.several = encoder, head, list(classes), several

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
        with torch.autocast(images.device.type, enabled=False):  # half precision would blur a probe's logits
            bias = None if self.head.bias is None else self.head.bias.float()
            return nn.functional.linear(features.float(), self.head.weight.float(), bias)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities (B, classes) of logits: they sum to 1, or with `several` each class has one of its own."""
        return logits.sigmoid() if self.several else logits.softmax(dim=1)


def build_classifier(
    autoencoder: Autoencoder, *, classes: Sequence[str], several: bool = False, pool: str = "avg",
    drop_path: float = 0.0, patch_drop: float = 0.0,
) -> Classifier:  # fmt: skip
    """A classifier that starts at an autoencoder's features, with a head that starts near zero.

    Of a MaskedAutoencoder this is a stock timm ViT; `drop_path` and `patch_drop` are for it alone.

    >>> from tinymae import MaskedAutoencoder
    >>> model = MaskedAutoencoder(image_size=8, patch_size=2, depth=1)
    >>> build_classifier(model, classes=["cat", "dog"])(torch.randn(2, 3, 8, 8)).shape
    torch.Size([2, 2])

    Raises InputError for a `pool` that the family does not have.
    """
    encoder, head = autoencoder.encoder_and_head(len(classes), pool=pool, drop_path=drop_path, patch_drop=patch_drop)
    nn.init.trunc_normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return Classifier(encoder, head, classes=classes, several=several).to(autoencoder.mean.device)


def wrap_vit(
    vit: VisionTransformer, *, pool: str, mean: Sequence[float], std: Sequence[float], classes: Sequence[str],
    several: bool,
) -> Classifier:  # fmt: skip
    """A stock timm classifier, whose head is taken from it, as one of ours; `pool` is what its `global_pool` says."""
    head = vit.head
    vit.reset_classifier(0)
    return Classifier(ViTEncoder(vit, mean=mean, std=std, pool=pool), head, classes=classes, several=several)


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
