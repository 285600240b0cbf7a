"""What may be wrong with a data set: near-duplicates, outliers and labels that features disagree with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import GroupKFold
from torch import Tensor, nn

from .neighbours import nearest
from .probes import fit_linear

CANDIDATES = {"features": 5, "details": 3}  # neighbours of each image that are compared with it, by either
GRID = 16  # pixels a side at which they are compared
WINDOWS = (16, 15, 14, 13, 12, 11)  # what of them a crop may have kept
L2 = 1e-2  # of the probe that judges labels
BLUR = 5  # pixels; what is coarser than this is left out


@dataclass
class Pairs:
    """Near-duplicates: image `first` and image `second`, first < second."""

    first: Tensor  # int64 (P,)
    second: Tensor  # int64 (P,)
    correlation: Tensor  # (P,): of their details, once they are aligned


def find_duplicates(features: Tensor, images: Callable[[Tensor], Tensor], *, least_correlation: float) -> Pairs:
    """Pairs of images whose aligned details correlate by at least `least_correlation`.

    Candidates are neighbours by their features, which find crops but not what JPEG does to an image, and neighbours by
    their details as they lie, which find the latter.

    Args:
        features: (N, F), on the device that is to search.
        images: indices (B,) -> uint8 (B, C, H, W).
        least_correlation: what a pair must have.
    """
    parts = torch.arange(len(features)).split(1024)
    details = torch.cat([to_details(images(rows).to(features.device)) for rows in parts])
    flat = standardise_rows(details.flatten(1))
    found = {"features": features, "details": flat}
    index = torch.cat([nearest(rows, rows, k=CANDIDATES[name], same=True)[1] for name, rows in found.items()], dim=1)
    first, second = candidate_pairs(index)
    batches = zip(first.split(1024), second.split(1024), strict=True)
    correlation = torch.cat([aligned_correlation(details[some], details[others]) for some, others in batches])
    kept = correlation >= least_correlation
    return Pairs(first[kept].cpu(), second[kept].cpu(), correlation[kept].cpu())


def candidate_pairs(index: Tensor) -> tuple[Tensor, Tensor]:
    """Each pair of neighbours (N, K) once: first (P,) and second (P,), first < second.

    >>> candidate_pairs(torch.tensor([[1], [0], [0]]))
    (tensor([0, 0]), tensor([1, 2]))
    """
    rows = torch.arange(len(index), device=index.device)[:, None].expand_as(index)
    keys = torch.unique(torch.minimum(rows, index) * len(index) + torch.maximum(rows, index))
    return keys // len(index), keys % len(index)


def to_details(images: Tensor) -> Tensor:
    """Images uint8 (N, C, H, W) as small grey ones without their coarse light and shade, float (N, 16, 16).

    Any two skies brighten upwards: it is edges by which a copy is known.
    """
    grey = images.float().mean(dim=1, keepdim=True)
    small = nn.functional.interpolate(grey, (GRID, GRID), mode="bilinear", antialias=True)
    padded = nn.functional.pad(small, (BLUR // 2,) * 4, mode="replicate")
    return (small - nn.functional.avg_pool2d(padded, BLUR, stride=1))[:, 0]


def aligned_correlation(first: Tensor, second: Tensor) -> Tensor:
    """The correlation (P,) of small images (P, 16, 16), at most 1: the best over shifts, crops and a mirror.

    One of the two is scaled to 11 to 16 pixels and laid over every place of the other. Brightness and contrast do not
    matter to a correlation, and so hardly does a change of colours.

    >>> image = torch.rand(1, 16, 16)
    >>> aligned_correlation(image, 0.5 * image.flip(2) + 0.2).round(decimals=4)
    tensor([1.])
    """
    best = first.new_full((len(first),), -1.0)
    for whole, part in ((first, second), (second, first)):
        both = torch.stack([part, part.flip(2)], dim=1)  # (P, 2, 16, 16)
        for size in WINDOWS:
            scaled = nn.functional.interpolate(both, (size, size), mode="bilinear", antialias=True)
            windows = whole.unfold(1, size, 1).unfold(2, size, 1).flatten(1, 2).flatten(2)  # (P, places, size * size)
            products = standardise_rows(windows) @ standardise_rows(scaled.flatten(2)).transpose(1, 2)
            best = torch.maximum(best, products.amax(dim=(1, 2)))
    return best


def standardise_rows(rows: Tensor) -> Tensor:
    """Rows (..., F) of mean 0 and length 1; a row without contrast becomes 0."""
    centred = rows - rows.mean(dim=-1, keepdim=True)
    length = centred.norm(dim=-1, keepdim=True)
    return torch.where(length > 1e-3 * rows.shape[-1] ** 0.5, centred / length.clamp(min=1e-12), 0.0)


def group_pairs(first: Tensor, second: Tensor, count: int) -> Tensor:
    """The group (N,) of each of `count` images that pairs connect; -1 of an image that is in no pair.

    >>> group_pairs(torch.tensor([0, 1]), torch.tensor([1, 4]), 5).tolist()
    [0, 0, -1, -1, 0]
    """
    pairs = coo_array((torch.ones(len(first)).numpy(), (first.cpu().numpy(), second.cpu().numpy())), (count, count))
    groups = torch.from_numpy(connected_components(pairs, directed=False)[1]).long()
    sizes = groups.bincount()
    numbers = (sizes > 1).cumsum(0) - 1
    return torch.where(sizes[groups] > 1, numbers[groups], -1)


def draw_folds(count: int, groups: Sequence[str], *, folds: int, seed: int) -> list[Tensor]:
    """Which of `count` rows are in each fold, at random; those of one of the `groups` (N,) are in the same."""
    if not groups:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        return [*order.tensor_split(folds)]
    drawn = GroupKFold(folds, shuffle=True, random_state=seed % 2**32).split(range(count), groups=groups)
    return [torch.from_numpy(rows) for _, rows in drawn]


def held_out_probabilities(
    features: Tensor, labels: Tensor, *, num_classes: int, folds: int, seed: int, groups: Sequence[str] = ()
) -> Tensor:
    """Probabilities (N, classes) of each row of features (N, F) by a linear probe that was fitted without its fold, and
    so without any other image of its group, where there are `groups` (N,).
    """
    probabilities = torch.zeros(len(features), num_classes)
    for fold in draw_folds(len(features), groups, folds=folds, seed=seed):
        rest = torch.ones(len(features), dtype=torch.bool)
        rest[fold] = False
        probe = fit_linear(features[rest], labels[rest], num_classes=num_classes, l2=L2)
        with torch.no_grad():
            probabilities[fold] = probe(features[fold]).softmax(dim=1)
    return probabilities


def is_weak(accuracy: float, labels: Tensor) -> bool:
    """Whether a probe of that held-out accuracy, in percent, is too often wrong to judge the labels (N,).

    It is, if it makes more than half of the errors that the most frequent class as constant guess makes: what it doubts
    then is its own errors rather than those of the labels. So it needs more than 50 % of many classes, 75 % of two.

    >>> labels = torch.tensor([0, 1] * 50)
    >>> is_weak(74.0, labels), is_weak(76.0, labels)
    (True, False)
    """
    most_frequent = 100 * float(labels.bincount().max()) / len(labels)
    return accuracy < (100 + most_frequent) / 2


def confident_issues(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Whether each label (N,) is probably wrong, by confident learning (Northcutt et al., arXiv 1911.00068).

    The threshold of a class is the mean held-out probability (N, K) of its own labels. An image counts for the most
    probable of the classes whose threshold it reaches; its label is doubtful if that is another class.

    >>> held_out = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.95, 0.05]])
    >>> confident_issues(held_out, torch.tensor([0, 0, 1, 1, 1])).tolist()
    [False, False, False, False, True]
    """
    count = probabilities.shape[1]
    own = probabilities.gather(1, labels[:, None])[:, 0]
    sizes = labels.bincount(minlength=count)
    thresholds = own.new_zeros(count).scatter_add_(0, labels, own) / sizes.clamp(min=1)
    thresholds = torch.where(sizes > 0, thresholds, torch.inf)
    reached = torch.where(probabilities >= thresholds, probabilities, -torch.inf)
    best, guess = reached.max(dim=1)
    return best.isfinite() & (guess != labels)
