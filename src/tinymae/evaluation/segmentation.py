"""Segmentation on frozen feature maps: a 1x1 convolution, upsampled, and its mean intersection over union."""

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor, nn

from ..data.batches import step_indices
from ..data.masks import IGNORED
from ..models.base import Encoder
from ..models.masking import patchify
from ..tensors import to_unit
from .probes import standardise

BATCH = 64  # maps in a step, and in a forward pass
LEARNING_RATE = 3e-2


class Segmenter(nn.Module):
    """Images -> the logits of each pixel's class: an encoder's feature map, a 1x1 convolution, bilinear upsampling.

    Args:
        encoder: a ViT's.
        head: a map (B, D, rows, columns) -> logits (B, classes, rows, columns).
        classes: their names, in the order of the logits.
    """

    def __init__(self, encoder: Encoder, head: nn.Module, *, classes: list[str]):
        super().__init__()
        self.encoder, self.head, self.classes = encoder, head, classes

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes, H, W) of uint8 or normalised float images (B, C, H, W)."""
        return upsample(self.head(self.encoder.encode_dense(images)), self.encoder.image_size)


def upsample(logits: Tensor, size: tuple[int, ...]) -> Tensor:
    """Logits (B, classes, rows, columns) at (height, width) pixels."""
    return nn.functional.interpolate(logits, list(size), mode="bilinear")


def patch_pixels(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Pixels (B, C, H, W) as a map of what each patch's own values are, in [0, 1]: (B, P*P*C, rows, columns).

    >>> patch_pixels(torch.zeros(2, 3, 8, 12, dtype=torch.uint8), (4, 4)).shape
    torch.Size([2, 48, 2, 3])
    """
    return patchify(to_unit(images), patch_size).transpose(1, 2).unflatten(2, (images.shape[2] // patch_size[0], -1))


def fit_segmentation(
    maps: Tensor, masks: Tensor, *, num_classes: int, weight_decay: float, seed: int, steps: int = 1000
) -> nn.Sequential:
    """Affine-free BatchNorm and a 1x1 convolution, fitted by AdamW with a cosine schedule.

    Minimises the cross-entropy of the upsampled logits, over the pixels of masks (N, H, W) that have a class. `maps`
    are (N, D, rows, columns), on the device of the masks.
    """
    convolution = nn.Conv2d(maps.shape[1], num_classes, 1)
    for parameter in convolution.parameters():
        nn.init.zeros_(parameter)  # the problem is convex: where to start hardly matters
    head = nn.Sequential(standardise(maps), convolution).to(maps.device).eval()
    optimizer = torch.optim.AdamW(convolution.parameters(), lr=LEARNING_RATE, weight_decay=weight_decay)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for batch in islice(step_indices(len(maps), min(BATCH, len(maps)), seed), steps):
        batch = batch.to(maps.device)
        targets = masks[batch].long()
        logits = upsample(head(maps[batch]), targets.shape[1:])
        optimizer.zero_grad()
        # A sum over its own count: a mean over no pixel at all would be NaN.
        loss = nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
        (loss / (targets != IGNORED).sum().clamp(min=1)).backward()
        optimizer.step()
        scheduler.step()
    return head


def segmentation_fits(
    maps: Tensor, masks: Tensor, *, num_classes: int, seed: int
) -> Iterator[tuple[float, nn.Sequential]]:
    """(weight decay, head) over a grid; see `fit_segmentation`."""
    for weight_decay in (1.0, 0.1, 0.01):
        yield weight_decay, fit_segmentation(maps, masks, num_classes=num_classes, weight_decay=weight_decay, seed=seed)


@torch.no_grad()
def predict_masks(head: nn.Module, maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """The class of each pixel, uint8 (N, H, W), of maps (N, D, rows, columns)."""
    return torch.cat([upsample(head(part), size).argmax(dim=1).to(torch.uint8) for part in maps.split(BATCH)])


def segmentation_metrics(predictions: Tensor, masks: Tensor, *, num_classes: int) -> dict:
    """Intersection over union in percent, mean and by class, and the accuracy of the pixels; by torchmetrics.

    Predictions and masks are uint8 (N, H, W). Pixels of all images count together; those that are `IGNORED` do not
    count. A class that is neither in the masks nor predicted has None, and is left out of the mean.

    >>> masks = torch.tensor([[[0, 0], [1, 255]]], dtype=torch.uint8)
    >>> segmentation_metrics(torch.tensor([[[0, 1], [1, 1]]], dtype=torch.uint8), masks, num_classes=3)["iou"]
    [50.0, 50.0, None]
    """
    from torchmetrics import MetricCollection
    from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

    options = {"num_classes": num_classes, "ignore_index": IGNORED}
    metrics = MetricCollection({
        "miou": MulticlassJaccardIndex(average="macro", **options),
        "iou": MulticlassJaccardIndex(average="none", **options),
        "pixel_accuracy": MulticlassAccuracy(average="micro", **options),
    }).to(masks.device)  # fmt: skip
    for rows in torch.arange(len(masks), device=masks.device).split(BATCH):
        metrics.update(predictions[rows].long(), masks[rows].long())
    counted = masks != IGNORED
    met = {*masks[counted].unique().tolist(), *predictions[counted].unique().tolist()}
    found = {name: 100 * value for name, value in metrics.compute().items()}
    by_class = [value if number in met else None for number, value in enumerate(found["iou"].tolist())]
    return {"miou": found["miou"].item(), "iou": by_class, "pixel_accuracy": found["pixel_accuracy"].item()}
