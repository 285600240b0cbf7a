"""Labels that a teacher gives to images without any: learning from few labels and many images.

FixMatch (Sohn et al., arXiv 2001.07685) keeps what the model is sure of, by a threshold. As in Semi-ViT (Cai et al.,
arXiv 2208.05688), which is for ViTs and starts at pretrained weights, it is not the model in training that labels, but
the moving average of its weights (Mean Teacher, Tarvainen and Valpola, arXiv 1703.01780).
"""

import torch
from torch import Tensor, nn


def unlabelled_losses(
    student: Tensor, teacher: Tensor, known: Tensor | None = None, *, threshold: float
) -> dict[str, Tensor]:
    """How far the student is from the classes that the teacher is sure of; scalars, each a mean over all B images.

    Args:
        student: logits (B, classes) of strongly augmented images; the only ones with a gradient.
        teacher: logits (B, classes) of the same images, weakly augmented.
        known: the true classes (B,), where there are any: for "unlabelled_right", which nothing learns from.
        threshold: least probability, 0 to 1, of a class that counts as a label.

    Gives "unlabelled_loss", the cross-entropy, 0 for an image whose label does not count; "unlabelled_kept", the ratio
    of images whose label counts; and "unlabelled_right", the ratio of images whose label counts and is the true class.
    So right / kept is the accuracy of the labels that were learned from.

    >>> logits = torch.tensor([[4.0, 0.0], [0.2, 0.0]])
    >>> found = unlabelled_losses(logits, logits, torch.tensor([1, 0]), threshold=0.9)
    >>> {name: round(float(value), 3) for name, value in found.items()}
    {'unlabelled_loss': 0.009, 'unlabelled_kept': 0.5, 'unlabelled_right': 0.0}
    """
    confidence, labels = teacher.detach().softmax(dim=1).max(dim=1)
    kept = confidence >= threshold
    losses = nn.functional.cross_entropy(student, labels, reduction="none")
    found = {"unlabelled_loss": torch.where(kept, losses, 0).mean(), "unlabelled_kept": kept.float().mean()}
    return found if known is None else found | {"unlabelled_right": (kept & (labels == known)).float().mean()}
