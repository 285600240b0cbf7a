"""Whether a classifier's probabilities mean what they say: error, diagram and temperature."""

import math

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

BINS = 15
MOST = 20.0  # as a temperature
FEWEST = 30  # images that a calibration error is said of: of fewer it is mostly the chance of what is in a bin


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature that logits (N, K) are to be divided by, so that their cross-entropy with `labels` is least.

    Guo et al., arXiv 1706.04599. It changes no prediction. Between 1/20 and 20.

    >>> logits = torch.tensor([[4.0, 0.0]] * 4)  # 98 % sure, and right three times of four
    >>> round(4 / fit_temperature(logits, torch.tensor([0, 0, 0, 1])), 3)  # log(3)
    1.099
    """
    logits = logits.double()

    def loss(log_temperature: float) -> float:
        return nn.functional.cross_entropy(logits / math.exp(log_temperature), labels).item()

    bound = math.log(MOST)
    return math.exp(minimize_scalar(loss, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-5}).x)


def reliability(probabilities: Tensor, labels: Tensor) -> dict[str, list[float]]:
    """Of each of 15 equal bins of confidence: how many images, their mean confidence and their accuracy, 0 to 1.

    >>> bins = reliability(torch.tensor([[0.9, 0.1], [0.3, 0.7]]), torch.tensor([0, 0]))
    >>> bins["images"][13], bins["accuracy"][13], bins["images"][10], bins["accuracy"][10]
    (1.0, 1.0, 1.0, 0.0)
    """
    confidence, predicted = probabilities.double().max(dim=1)
    bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    images = torch.zeros(BINS, dtype=torch.double).index_add_(0, bins, torch.ones_like(confidence))
    sums = {"confidence": confidence, "accuracy": (predicted == labels).double()}
    means = {
        name: (torch.zeros_like(images).index_add_(0, bins, values) / images.clamp(min=1)).tolist()
        for name, values in sums.items()
    }
    return {"images": images.tolist(), **means}


def probability_metrics(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Negative log-likelihood (nats), expected calibration error and, of more than five classes, top-5 accuracy (%).

    Probabilities (N, K), labels (N,). The calibration error, in percent, is the mean over images of the difference
    between confidence and accuracy in their one of 15 bins; it and the accuracy are torchmetrics'. Of fewer than 30
    images it is left out.

    >>> metrics = probability_metrics(torch.tensor([[0.7, 0.3], [0.3, 0.7]] * 15), torch.tensor([0, 1] * 15))
    >>> {name: round(value, 3) for name, value in metrics.items()}
    {'nll': 0.357, 'ece': 30.0}
    """
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

    count = probabilities.shape[1]
    nll = nn.functional.nll_loss(probabilities.clamp(min=1e-12).log(), labels)
    results = {"nll": nll.item()}
    if len(labels) >= FEWEST:
        ece = multiclass_calibration_error(probabilities, labels, num_classes=count, n_bins=BINS, norm="l1")
        results["ece"] = 100 * ece.item()
    if count > 5:
        top = multiclass_accuracy(probabilities, labels, num_classes=count, top_k=5, average="micro")
        results["top5"] = 100 * top.item()
    return results
