"""Accuracy and reconstruction metrics, and functions mapped over a data set."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..bars import hidden
from ..data.batches import chunks
from ..data.datasets import Dataset
from ..errors import InputError
from ..models.losses import SSIM_SIDE, structural_similarity
from ..tensors import to_device

UNBALANCED = 1.2  # times its even share: what the most frequent class has at least, if that is worth saying
RECONSTRUCTION_METRICS = ("mse", "psnr", "ssim")  # the last is left out of images that are too small for it


@torch.no_grad()
def map_dataset(
    function: Callable[[Tensor], Tensor], dataset: Dataset, *, device: torch.device | str, at: Tensor | None = None,
    batch_size: int = 256, num_workers: int = 2, desc: str | None = None,
) -> Tensor:  # fmt: skip
    """`function` of all images (uint8, on `device`), batch by batch, stacked on the CPU in float32.

    `at` (N,) are the indices of those that are wanted; `num_workers` processes read images that are streamed.

    >>> from tinymae import load_dataset
    >>> map_dataset(lambda images: images.flatten(1), load_dataset("digits", "val"), device="cpu").shape
    torch.Size([137, 64])
    """
    total = len(dataset) if at is None else len(at)
    no_bar = hidden(wanted=desc is not None)
    bar = tqdm(total=total, desc=desc, unit="img", unit_scale=True, leave=False, disable=no_bar)
    results = []
    for images, _ in chunks(dataset, batch_size, at=at, num_workers=num_workers):
        results.append(function(to_device(images, device)).float().cpu())
        bar.update(len(images))
    bar.close()
    return torch.cat(results)


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Percentage of predicted classes (N,) that equal the labels (N,).

    >>> accuracy(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 2, 3]))
    75.0
    """
    return 100 * (predictions.cpu() == labels.cpu()).double().mean().item()


def wilson_interval(percent: float, count: int) -> list[float]:
    """The 95 % interval of an accuracy of `percent` among `count` images, in percent.

    Wilson, *Probable inference, the law of succession, and statistical inference* (1927). It says what other images of
    the same kind might have given, not what another training would have.

    >>> [round(bound) for bound in wilson_interval(100 * 9 / 19, 19)]
    [27, 68]
    """
    from scipy.stats import binomtest

    interval = binomtest(round(percent * count / 100), count).proportion_ci(method="wilson")
    return [100 * float(bound) for bound in interval]


def with_intervals(accuracies: dict[str, Any], count: int) -> dict[str, Any]:
    """Accuracies among `count` images, in percent, each with its `wilson_interval` under NAME_interval.

    >>> list(with_intervals({"accuracy_val": 50.0}, 8))
    ['accuracy_val', 'accuracy_val_interval']
    """
    return accuracies | {f"{name}_interval": wilson_interval(percent, count) for name, percent in accuracies.items()}


def describe_score(percent: float, count: int, split: str, *, several: bool = False) -> str:
    """A score as it is printed: an accuracy with its 95 % interval, of few images with fewer digits; of several labels
    an image a mean average precision.

    >>> describe_score(100 * 9 / 19, 19, "test")
    '47.4 % of the 19 test images (95 % interval 27 to 68)'
    >>> describe_score(81.234, 1900, "test", several=True)
    '81.23 % mean average precision on the 1,900 test images'
    """
    images = f"the {count:,} {kind_of(split)}image{'s'[: count != 1]}"
    if several:
        return f"{percent:.2f} % mean average precision on {images}"
    digits = 1 if count < 1000 else 2
    low, high = (f"{bound:.{digits - 1}f}" for bound in wilson_interval(percent, count))
    return f"{percent:.{digits}f} % of {images} (95 % interval {low} to {high})"


def kind_of(split: str) -> str:
    """What stands before "images": a split's name, or nothing of all."""
    return "" if split == "all" else f"{split} "


def describe_absent(labels: Tensor, num_classes: int, split: str) -> str | None:
    """How many classes none of the images has, of labels (N,) or (N, classes); None if each class has one.

    >>> describe_absent(torch.tensor([0, 2, 2]), 4, "test")
    '2 of the 4 classes have no test image, and are not judged'
    """
    counts = labels.bincount(minlength=num_classes) if labels.ndim == 1 else labels.long().sum(dim=0)
    absent = int((counts == 0).sum())
    if not absent:
        return None
    verbs = ("has", "is") if absent == 1 else ("have", "are")
    return f"{absent} of the {num_classes} classes {verbs[0]} no {kind_of(split)}image, and {verbs[1]} not judged"


def describe_constant(labels: Tensor, classes: Sequence[str]) -> str | None:
    """What always guessing the most frequent class would score on labels (N,); None if they are balanced, and of
    several labels an image, (N, classes).

    >>> describe_constant(torch.tensor([0, 0, 0, 1]), ["cat", "dog"])
    'always guessing cat would score 75.0 %'
    """
    if labels.ndim == 2:
        return None
    count, most = labels.bincount().max(dim=0)
    percent = 100 * float(count) / len(labels)
    if percent * len(labels.unique()) <= 100 * UNBALANCED:
        return None
    return f"always guessing {classes[int(most)]} would score {percent:.1f} %"


def several_metrics(scores: Tensor, labels: Tensor) -> dict:
    """Of images that have several labels: average precision and ROC-AUC in percent, by class and in the mean.

    By torchmetrics. `scores` (N, classes) rank the images; labels (N, classes) are 1 of the classes that an image has.
    A class that all images have, or none, has None, and is left out of the means.

    >>> scores = torch.tensor([[0.9, 0.2], [0.4, 0.1], [0.6, 0.7]])
    >>> several_metrics(scores, torch.tensor([[1, 0], [1, 0], [0, 0]]))["auc"]
    [50.0, None]
    """
    from torchmetrics.functional.classification import binary_auroc, binary_average_precision

    labels = labels.cpu().long()
    scores = scores.cpu().double()  # a sigmoid, which torchmetrics takes of logits, ties large floats
    judged = [number for number, ratio in enumerate(labels.double().mean(dim=0).tolist()) if 0 < ratio < 1]
    if not judged:
        raise InputError("every class is that of all of these images, or of none: there is nothing to be judged")
    found: dict = {}
    for name, metric in {"ap": binary_average_precision, "auc": binary_auroc}.items():
        by_class = {number: 100 * metric(scores[:, number], labels[:, number]).item() for number in judged}
        found[f"mean_{name}"] = sum(by_class.values()) / len(judged)
        found[name] = [by_class.get(number) for number in range(labels.shape[1])]
    return found


def reconstruction_metrics(originals: Tensor, reconstructions: Tensor) -> dict[str, Tensor]:
    """MSE, PSNR (dB) and SSIM of each image (B,), of float (B, C, H, W) in [0, 1]; by torchmetrics.

    SSIM is that of `structural_similarity`; images with a side below 3 pixels have none, and it is left out.

    >>> originals = torch.rand(2, 1, 16, 16) / 2
    >>> reconstruction_metrics(originals, originals + 0.1)["psnr"].round()
    tensor([20., 20.])
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    originals, reconstructions = originals.float(), reconstructions.float()
    psnr = peak_signal_noise_ratio(reconstructions, originals, data_range=1.0, dim=(1, 2, 3), reduction="none")
    metrics = {"mse": (reconstructions - originals).square().mean(dim=(1, 2, 3)), "psnr": psnr}
    if min(originals.shape[2:]) >= SSIM_SIDE:
        metrics["ssim"] = structural_similarity(reconstructions, originals)
    return metrics
