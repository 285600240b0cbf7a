"""Linear and MLP probes: classifiers on frozen features."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..bars import hidden
from .metrics import accuracy, several_metrics

M = TypeVar("M", bound=nn.Module)
HIDDEN, DROPOUT, BATCH, MLP_RATE = 256, 0.3, 256, 2e-3  # of the MLP probe
L2_GRID = [10.0**exponent for exponent in (0, -1, -2, -3, -4, -5)]


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of classes (N,); of several labels an image, (N, classes) in [0, 1], the sum of the binary ones.

    The mean over N, of logits (N, classes).
    """
    if labels.ndim == 1:
        return nn.functional.cross_entropy(logits, labels)
    sums = nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits), reduction="sum")
    return sums / len(logits)


def fit_linear(features: Tensor, labels: Tensor, *, num_classes: int, l2: float) -> nn.Sequential:
    """Affine-free BatchNorm, then one linear layer, fitted to the optimum by L-BFGS.

    Minimises the mean `label_loss` + l2 / 2 * ||weight||^2 over all of `features` (N, F): scikit-learn's logistic
    regression with C = 1 / (N * l2) on standardised features, one for each class where an image may have several. The
    problem is convex, so neither a learning rate, nor an order, nor a seed enters.

    >>> features, labels = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]]), torch.tensor([0, 0, 1, 1])
    >>> fit_linear(features, labels, num_classes=2, l2=0.01)(features).argmax(dim=1)
    tensor([0, 0, 1, 1])
    """
    return next(linear_fits(features, labels, num_classes=num_classes, grid=[l2]))[1]


def linear_fits(
    features: Tensor, labels: Tensor, *, num_classes: int, grid: Sequence[float] = L2_GRID
) -> Iterator[tuple[float, nn.Sequential]]:
    """(l2, linear probe) over a grid; see `fit_linear`."""
    norm = standardise(features)
    inputs = norm(features)
    # Frozen features are strongly correlated, which makes the problem stiff. In their principal axes, each scaled by
    # the root of its curvature, it is nearly round, and a few dozen steps do instead of hundreds.
    covariance = (inputs.T @ inputs / len(inputs)).cpu().double()  # small, and not every device has float64
    eigenvalues, axes = torch.linalg.eigh(covariance)
    for l2 in grid:
        linear = solve_logistic(inputs, labels, eigenvalues, axes, num_classes=num_classes, l2=l2)
        yield l2, nn.Sequential(norm, linear).eval()


def standardise(features: Tensor) -> nn.BatchNorm1d | nn.BatchNorm2d:
    """An affine-free BatchNorm, in evaluation mode, that holds the mean and variance of features (N, F), or of maps of
    them (N, F, rows, columns).
    """
    batch_norm = nn.BatchNorm1d if features.ndim == 2 else nn.BatchNorm2d
    norm = batch_norm(features.shape[1], affine=False).to(features.device)
    variance, mean = torch.var_mean(features, dim=[0, *range(2, features.ndim)], correction=0)
    assert norm.running_mean is not None and norm.running_var is not None  # only without track_running_stats
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    return norm.eval()


def solve_logistic(
    inputs: Tensor, labels: Tensor, eigenvalues: Tensor, axes: Tensor, *, num_classes: int, l2: float
) -> nn.Linear:
    """The linear layer that minimises `fit_linear`'s loss, by L-BFGS in scaled principal axes of `inputs` (N, F)."""
    scale = (0.1 * eigenvalues.clamp(min=0) + l2).rsqrt()  # p (1 - p) of ten classes or so is about 0.1
    device = inputs.device
    to_weight = (axes * scale).float().to(device)  # (F, F): from the round coordinates to the layer's weight
    rotated = inputs @ to_weight
    weight = torch.zeros(num_classes, inputs.shape[1], requires_grad=True, device=device)
    bias = torch.zeros(num_classes, requires_grad=True, device=device)
    shrink = l2 * scale.square().float().to(device)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=300, tolerance_grad=1e-5, tolerance_change=1e-8, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = nn.functional.linear(rotated, weight, bias)
        loss = label_loss(logits, labels) + 0.5 * (shrink * weight.square()).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    linear = nn.Linear(inputs.shape[1], num_classes).to(device)
    with torch.no_grad():
        linear.weight.copy_(weight @ to_weight.T)
        linear.bias.copy_(bias)
    return linear


def fit_mlp(
    features: Tensor, labels: Tensor, *, num_classes: int, weight_decay: float, seed: int, epochs: int = 30
) -> nn.Module:
    """Affine-free BatchNorm and one hidden layer with dropout, by AdamW with a cosine schedule."""
    first, last = nn.Linear(features.shape[1], HIDDEN), nn.Linear(HIDDEN, num_classes)
    norm = nn.BatchNorm1d(features.shape[1], affine=False)
    probe = nn.Sequential(norm, first, nn.GELU(), nn.Dropout(DROPOUT), last)
    generator = torch.Generator().manual_seed(seed)
    for layer in (first, last):
        nn.init.trunc_normal_(layer.weight, std=layer.in_features**-0.5, generator=generator)
        nn.init.zeros_(layer.bias)
    probe.to(features.device)
    batch_size = min(BATCH, len(features))
    optimizer = torch.optim.AdamW(probe.parameters(), lr=MLP_RATE, weight_decay=weight_decay)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * (len(features) // batch_size))
    torch.manual_seed(seed)  # dropout
    for _ in range(epochs):
        order = torch.randperm(len(features), generator=generator)
        for batch in order[: len(order) // batch_size * batch_size].to(features.device).split(batch_size):
            optimizer.zero_grad()
            label_loss(probe(features[batch]), labels[batch]).backward()
            optimizer.step()
            scheduler.step()
    return probe.eval()


def choose_probe(
    fits: Iterable[tuple[float, M]], judge: Callable[[M], float], *, tolerance: float = 0.0, desc: str | None = None
) -> tuple[M, float, dict[float, float]]:
    """Of the probes whose score by `judge` is within `tolerance` of the best, the most strongly regularised one; its
    hyper-parameter, the larger the stronger, and the score of each that was tried.

    A difference of one image of validation is no evidence, and the weaker regularisation makes a probe surer of itself.
    `desc` names a progress bar.
    """
    probes: dict[float, M] = {}
    tried: dict[float, float] = {}
    for setting, probe in tqdm(fits, desc=desc, unit="fit", leave=False, disable=hidden(wanted=desc is not None)):
        probes[setting], tried[setting] = probe, judge(probe)
    scores = {setting: -math.inf if math.isnan(score) else score for setting, score in tried.items()}
    least = max(scores.values()) - tolerance - 1e-9  # which rounding of percentages is below
    chosen = max(setting for setting, score in scores.items() if score >= least)
    return probes[chosen], chosen, tried


@torch.no_grad()
def predict_score(probe: nn.Module, features: Tensor, labels: Tensor) -> float:
    """Percentage of features (N, F) that a probe classifies as labelled; of several labels mean average precision."""
    return label_score(probe(features), labels)


def label_score(scores: Tensor, labels: Tensor) -> float:
    """Accuracy of the best scores (N, classes), in percent; of several labels an image mean average precision."""
    if labels.ndim == 1:
        return accuracy(scores.argmax(dim=1), labels)
    return several_metrics(scores, labels)["mean_ap"]


def mlp_fits(features: Tensor, labels: Tensor, *, num_classes: int, seed: int) -> Iterator[tuple[float, nn.Module]]:
    """MLP probes over a grid of weight decay."""
    for weight_decay in (1.0, 0.1, 0.01):
        yield weight_decay, fit_mlp(features, labels, num_classes=num_classes, weight_decay=weight_decay, seed=seed)
