"""Which images belong to which split or subset, by fixed seeds."""

import torch
from torch import Tensor

from ..errors import InputError
from ..randomness import derive_seed

SPLITS = ("train", "val", "test")


SPLIT_SEED = 2111  # which images are held out is part of the protocol, not of a run


HELD_OUT = {"cifar10": 2000, "cifar100": 2000, "mnist": 2000}  # images taken from train for validation


def fixed_permutation(count: int, seed: int = SPLIT_SEED) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def held_out(count: int, sizes: dict[str, int], split: str) -> Tensor:
    """Which of `count` items belong to `split`, in file order; train is what the held-out `sizes` leave."""
    order = fixed_permutation(count)
    parts = dict(zip(["train", *sizes], order.split([count - sum(sizes.values()), *sizes.values()]), strict=True))
    return parts[split].sort().values


def few_labels(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Indices of a share of the labels, the same share of each class (at least one), chosen by `seed`."""
    if not 0 < fraction <= 1:
        raise InputError(f"label_fraction {fraction} is outside (0, 1]")
    order = fixed_permutation(len(labels), derive_seed(seed, "few labels")).to(labels.device)
    chosen = []
    for label in labels.unique():
        members = order[labels[order] == label]
        chosen.append(members[: max(1, round(fraction * len(members)))])
    return torch.cat(chosen).sort().values


def balanced(labels: Tensor, count: int, seed: int) -> Tensor:
    """Indices of `count` labels, as many of each class as there are, up to one more or less, chosen by `seed`.

    >>> labels = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2])
    >>> labels[balanced(labels, 5, seed=0)]
    tensor([0, 0, 1, 1, 2])

    Raises InputError for more than there are, or fewer than one.
    """
    if not 0 < count <= len(labels):
        raise InputError(f"val_labels {count} is not within 1 and the {len(labels)} validation images")
    order = fixed_permutation(len(labels), derive_seed(seed, "balanced labels")).to(labels.device)
    rank = torch.empty_like(order)  # of each image among those of its class
    for label in labels.unique():
        members = labels[order] == label
        rank[members] = torch.arange(int(members.sum()), device=labels.device)
    return order[rank.argsort(stable=True)[:count]].sort().values
