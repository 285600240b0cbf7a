"""Which images belong to which split or subset: by each image's own name, or by fixed seeds."""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..randomness import derive_seed

SPLITS = ("train", "val", "test")
SPLIT_SEED = 2111  # which images are held out is part of the protocol, not of a run
# Held out of data that come without these splits.
FRACTIONS = {"val": {"labelled": 0.1, "unlabelled": 0.05}, "test": {"labelled": 0.1, "unlabelled": 0.0}}


def fixed_permutation(count: int, seed: int = SPLIT_SEED) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def held_out(count: int, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """Which of `count` items belong to each of `sizes`, in file order, and to train, which is what these leave."""
    parts = fixed_permutation(count).split([count - sum(sizes.values()), *sizes.values()])
    return {split: part.sort().values.numpy() for split, part in zip(["train", *sizes], parts, strict=True)}


def rows_by_split(parts: np.ndarray) -> dict[str, np.ndarray]:
    """The rows of each split that there is, where `parts` (N,) names the split of each row."""
    return {split: np.flatnonzero(parts == split) for split in SPLITS if (parts == split).any()}


def few_labels(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Indices of a ratio of the labels, the same ratio of each class (at least one), chosen by `seed`."""
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


# ---- by hash: an image's split follows from its own name, so that adding another image moves no other


def hash_names(names: Iterable[str]) -> np.ndarray:
    """A number in [0, 1) of each name, by SHA-256: float64 (N,).

    >>> hash_names(["cat/1.png", "cat/2.png"]).round(3)
    array([0.769, 0.778])
    """
    prefix = f"{SPLIT_SEED} ".encode()
    digests = b"".join(hashlib.sha256(prefix + name.encode("utf-8", "surrogateescape")).digest()[:8] for name in names)
    return (np.frombuffer(digests, dtype="<u8") >> 11) / 2**53


def without_prefix(name: str, prefixes: Sequence[str]) -> str:
    """A name without the first of the prefixes that it begins with.

    >>> without_prefix("/data/photos/1.png", ["/data/"]), without_prefix("photos/1.png", ["/data/"])
    ('photos/1.png', 'photos/1.png')
    """
    return name.removeprefix(next(filter(name.startswith, prefixes), ""))


def hash_rows(rows: np.ndarray) -> np.ndarray:
    """A number in [0, 1) of each row number, by SplitMix64 (Steele et al., OOPSLA 2014): float64 (N,).

    >>> hash_rows(np.arange(3)).round(3)
    array([0.011, 0.657, 0.379])
    """
    mixed = rows.astype(np.uint64) + np.uint64(derive_seed(SPLIT_SEED, "rows"))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)) / 2**53


def split_by_hash(
    places: np.ndarray, fractions: dict[str, float], labels: np.ndarray | None, *, grouped: bool = False
) -> dict[str, np.ndarray]:
    """Rows of train and of each of `fractions`, in order; `places` (N,) are the rows' hashes in [0, 1).

    A split takes its fraction of [0, 1), so that which one an image is in depends on no other image. Two exceptions
    help small data: a class that train would lack keeps its row with the highest place there, and a split that would be
    empty takes the row with the lowest place that train can spare. Rows without a label, -1, are cut by themselves.
    Rows of the same place, which are of one image or one group, are in the same split, with a label or without.

    >>> split_by_hash(np.array([0.05, 0.5, 0.15, 0.9]), {"val": 0.1}, None)
    {'train': array([1, 2, 3]), 'val': array([0])}
    """
    # Where there are no groups, each kind is in every split. An image with a label in any of its rows is labelled.
    labelled = np.ones(len(places), bool) if labels is None else np.isin(places, places[labels >= 0])
    if labels is not None and not grouped and 0 < labelled.sum() < len(labels):
        kinds = [np.flatnonzero(labelled), np.flatnonzero(~labelled)]
        cuts = [split_by_hash(places[rows], fractions, labels[rows], grouped=True) for rows in kinds]
        return {
            name: np.sort(np.concatenate([rows[cut[name]] for rows, cut in zip(kinds, cuts, strict=True)]))
            for name in cuts[0]
        }
    code = np.zeros(len(places), dtype=np.int8)  # 0 is train
    low = 0.0
    for number, fraction in enumerate(fractions.values(), start=1):
        code[(places >= low) & (places < low + fraction)] = number
        low += fraction
    order = places.argsort(kind="stable")
    if labels is not None:
        for label in np.setdiff1d(labels[labels >= 0], labels[code == 0]):
            members = order[labels[order] == label]
            code[places == places[members[-1]]] = 0
    for number, fraction in enumerate(fractions.values(), start=1):
        if fraction and not (code == number).any():
            kept = code == 0
            of_train = (places == place for place in np.unique(places[kept]))
            spare = (rows for rows in of_train if can_spare(labels, rows, kept & ~rows))
            if (rows := next(spare, None)) is not None:
                code[rows] = number
    return {name: np.flatnonzero(code == number) for number, name in enumerate(["train", *fractions])}


def can_spare(labels: np.ndarray | None, rows: np.ndarray, others: np.ndarray) -> bool:
    """Whether there are `others`, and among them rows of each class that these `rows` have; both are bool (N,)."""
    return bool(others.any() and (labels is None or np.isin(labels[rows & (labels >= 0)], labels[others]).all()))
