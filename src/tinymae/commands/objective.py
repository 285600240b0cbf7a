"""What fine-tuning learns from a micro-batch: images that are augmented and mixed, and the losses on them."""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn

from ..data.augment import padded_crop, random_erasing, trivial_augment
from ..data.batches import Batch, MixedBatch
from ..data.datasets import Dataset
from ..evaluation.probes import label_loss
from ..models.classifier import Classifier
from ..models.pseudo_labels import unlabelled_losses
from ..randomness import Draws
from .recipes import RecipeSettings


def create_mixing(settings: RecipeSettings, model: Classifier) -> Mixup | None:
    """timm's mixup and cutmix, which make soft targets of labels."""
    if not (settings.mixup or settings.cutmix):
        return None
    alphas = settings.mixup or 0.0, settings.cutmix or 0.0
    return Mixup(*alphas, label_smoothing=settings.label_smoothing, num_classes=len(model.classes))


def prepare_inputs(
    settings: RecipeSettings, model: Classifier, mix: Mixup | None, batch: Batch, draws: Draws, _progress: float
) -> dict[str, Tensor]:
    """What a micro-batch's losses need: images augmented and mixed, and their targets; and for those without labels
    what the teacher sees of them, and their classes if these are known.
    """
    assert batch.labels is not None
    shown, targets = shift(settings, batch.images, draws), batch.labels
    images = model.normalise(distort(settings, shown, draws))
    if mix:
        images, targets = mix(images, targets)  # by numpy's state, which the step has seeded
    inputs = {"images": images, "targets": targets}
    if isinstance(batch, MixedBatch):
        inputs["shown"] = shown[len(targets) :]
        inputs |= {} if batch.known is None else {"known": batch.known}
    return inputs


def log_priors(settings: RecipeSettings, dataset: Dataset, device: torch.device) -> Tensor | float:
    """What the losses add to logits: by `logit_adjustment`, the logarithms of the classes' ratios of the images.

    So the model itself need not learn which classes are frequent, and treats all alike (Menon et al., "Long-tail
    learning via logit adjustment", arXiv 2007.07314, equation 10).
    """
    if not settings.logit_adjustment:
        return 0.0
    assert dataset.labels is not None
    counts = dataset.labels.bincount(minlength=len(dataset.classes)).clamp(min=1).to(device)
    return settings.logit_adjustment * (counts / counts.sum()).log()


def create_losses(
    settings: RecipeSettings, prepared: nn.Module, teacher: Classifier, accelerator: Accelerator, *, soft: bool,
    priors: Tensor | float,
) -> Callable[..., dict[str, Tensor]]:  # fmt: skip
    """Losses of one micro-batch: cross-entropy, with targets that may be `soft`, or binary ones of several labels an
    image; and that with the teacher's labels. `priors` are added to all logits: see `log_priors`.
    """
    smoothing = settings.label_smoothing
    criterion: Callable[[Tensor, Tensor], Tensor] = nn.CrossEntropyLoss(label_smoothing=smoothing)

    def binary_losses(logits: Tensor, targets: Tensor) -> Tensor:
        return label_loss(logits, targets * (1 - smoothing) + smoothing / 2)

    if teacher.several:
        criterion = binary_losses
    elif soft:
        criterion = SoftTargetCrossEntropy()

    def compute_losses(
        images: Tensor, targets: Tensor, shown: Tensor | None = None, known: Tensor | None = None
    ) -> dict[str, Tensor]:
        logits = prepared(images).float() + priors
        loss = criterion(logits[: len(targets)], targets)
        if shown is None:
            return {"loss": loss}
        with torch.no_grad(), accelerator.autocast():
            expected = teacher(shown).float() + priors
        found = unlabelled_losses(logits[len(targets) :], expected, known, threshold=settings.unlabelled_threshold)
        total = loss + settings.unlabelled_weight * found["unlabelled_loss"]
        return {"loss": total, "labelled_loss": loss} | found

    return compute_losses


def shift(settings: RecipeSettings, images: Tensor, draws: Draws) -> Tensor:
    """Images (B, C, H, W) as a teacher sees them too."""
    return settings.orient(padded_crop(images, draws, settings.crop_padding), draws)


def distort(settings: RecipeSettings, images: Tensor, draws: Draws) -> Tensor:
    """What of the augmentation can make an image (B, C, H, W) hard to recognise."""
    if settings.trivial_augment:
        images = trivial_augment(images, draws)
    if settings.random_erasing:
        images = random_erasing(images, draws, probability=settings.random_erasing)
    return images
