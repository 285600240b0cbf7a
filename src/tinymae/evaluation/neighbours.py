"""Nearest neighbours by cosine, exact, and classification by their vote."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

NEIGHBOURS, TEMPERATURE = 20, 0.07  # of the k-NN classifier
CELLS = 2**25  # similarities in memory at a time: 128 MiB


def nearest(queries: Tensor, bank: Tensor, *, k: int, same: bool = False) -> tuple[Tensor, Tensor]:
    """The `k` rows of `bank` (N, F) most similar to each of `queries` (M, F): cosines and row numbers, both (M, k).

    Exact, on the bank's device, best first. With `same` the queries are the bank, and no row is its own neighbour. A
    bank of fewer rows gives all that it has. The similarities are computed by chunks of queries, in 128 MiB.

    >>> nearest(torch.tensor([[2.0, 0.1]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]]), k=1)[1]
    tensor([[1]])
    """
    cosines, indices = zip(*search(queries, bank, k=k, same=same), strict=True)
    return torch.cat(cosines), torch.cat(indices)


def kth_distance(features: Tensor, *, k: int) -> Tensor:
    """The cosine distance (N,) of each row of features (N, F) to its `k`-th neighbour, or to its last.

    >>> kth_distance(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), k=1)
    tensor([0., 0., 1.])
    """
    return torch.cat([1 - cosines[:, -1] for cosines, _ in search(features, features, k=k, same=True)])


@torch.no_grad()
def search(queries: Tensor, bank: Tensor, *, k: int, same: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """What `nearest` returns, chunk by chunk of the queries."""
    unit = nn.functional.normalize(bank.float(), dim=1)
    k = min(k, len(unit) - same)
    for rows in torch.arange(len(queries)).split(max(16, CELLS // len(unit))):
        with torch.autocast(bank.device.type, enabled=False):  # half precision would blur the cosines
            chunk = unit[rows] if same else nn.functional.normalize(queries[rows].to(unit), dim=1)
            similarity = chunk @ unit.T
            if same:
                similarity[torch.arange(len(rows)), rows] = -torch.inf
        yield similarity.topk(k, dim=1)


def vote(cosines: Tensor, labels: Tensor, *, num_classes: int) -> Tensor:
    """Probabilities (M, classes) by a vote of neighbours with these `cosines` and `labels`, both (M, k).

    Of several labels an image, `labels` are (M, k, classes), 1 of the classes that a neighbour has. Each neighbour's
    weight is exp(cosine / 0.07).

    >>> vote(torch.tensor([[0.5, 0.5, 0.5, 0.5]]), torch.tensor([[0, 1, 1, 1]]), num_classes=2)
    tensor([[0.2500, 0.7500]])
    """
    # Cosines are at most 1; subtracting 1 keeps the exponentials from overflowing and changes no vote.
    weights = ((cosines - 1) / TEMPERATURE).exp()
    if labels.ndim == 3:
        return torch.einsum("mk,mkc->mc", weights, labels.to(weights)) / weights.sum(dim=1, keepdim=True)
    votes = weights.new_zeros(len(cosines), num_classes).scatter_add_(1, labels, weights)
    return votes / votes.sum(dim=1, keepdim=True)


def knn_scores(train_features: Tensor, train_labels: Tensor, features: Tensor, *, num_classes: int) -> Tensor:
    """Probabilities (N, classes) by a vote of the 20 most similar training features, see `vote`.

    Features (N, F). The weighted k-NN of Wu et al., arXiv 1805.01978, with the settings used for DINO.
    """
    cosines, index = nearest(features, train_features, k=NEIGHBOURS)
    return vote(cosines, train_labels[index], num_classes=num_classes)


def knn_predict(train_features: Tensor, train_labels: Tensor, features: Tensor, *, num_classes: int) -> Tensor:
    """Classes (N,) by `knn_scores`.

    >>> known, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
    >>> knn_predict(known, labels, torch.tensor([[0.9, 0.1], [0.1, 0.2]]), num_classes=2)
    tensor([0, 1])
    """
    return knn_scores(train_features, train_labels, features, num_classes=num_classes).argmax(dim=1)
