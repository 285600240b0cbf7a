"""k-nearest-neighbour classification of frozen features."""

import torch
from torch import Tensor, nn


def knn_predict(
    train_features: Tensor, train_labels: Tensor, features: Tensor, *, num_classes: int, k: int = 20,
    temperature: float = 0.07,
) -> Tensor:  # fmt: skip
    """Classes (N,) by a vote of the `k` most similar training features, weighted by exp(cosine / temperature).

    Features (N, F). The weighted k-NN of Wu et al., arXiv 1805.01978, with the settings used for DINO.

    >>> known, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
    >>> knn_predict(known, labels, torch.tensor([[0.9, 0.1], [0.1, 0.2]]), num_classes=2)
    tensor([0, 1])
    """
    bank = nn.functional.normalize(train_features.float(), dim=1).T.contiguous()
    one_hot = nn.functional.one_hot(train_labels, num_classes).float()
    predictions = []
    with torch.autocast(bank.device.type, enabled=False):  # half precision would blur the cosines
        for chunk in nn.functional.normalize(features.float(), dim=1).split(1000):
            similarity, neighbours = (chunk @ bank).topk(min(k, bank.shape[1]), dim=1)
            # Cosines are at most 1; subtracting 1 keeps the exponentials from overflowing and changes no vote.
            votes = ((similarity - 1) / temperature).exp()[..., None] * one_hot[neighbours]
            predictions.append(votes.sum(dim=1).argmax(dim=1))
    return torch.cat(predictions)
