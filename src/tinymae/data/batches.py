"""Batches that depend on (seed, step) alone."""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..errors import InputError
from ..randomness import derive_seed
from ..tensors import to_device
from .datasets import Dataset, StreamedDataset
from .splits import SPLIT_SEED, fixed_permutation

FEW = 1000  # images that are not worth starting processes for


@dataclass
class Batch:
    """One process's part, or a micro-batch of it, of a step's global batch."""

    images: Tensor  # uint8 or uint16 (B, C, H, W), on the training device
    labels: Tensor | None  # int64 (B,)
    positions: Tensor  # int64 (B,): where these images stand in the global batch


@dataclass
class MixedBatch(Batch):
    """Labelled images, then images that are used without labels: `labels` (L,) are of the first L of B."""

    known: Tensor | None  # int64 (B - L,): the others' labels, to watch and not to learn from


def split_batch(batch_size: int, parts: int) -> list[Tensor]:
    """Cut the positions 0..batch_size-1 of a global batch into equal parts, one for each process and micro-batch.

    Part k takes the k-th run from the front and its mirror image from the back. Mixup pairs position i with its mirror,
    so partners always land in the same part and mixing is the same however many parts there are.
    """
    if batch_size % (2 * parts) and parts > 1:
        raise InputError(
            f"batch_size {batch_size} is not a multiple of 2 x {parts} (processes x gradient_accumulation_steps)"
        )
    if parts == 1:
        return [torch.arange(batch_size)]
    runs = torch.arange(batch_size).split(batch_size // (2 * parts))
    return [torch.cat([runs[k], runs[-1 - k]]) for k in range(parts)]


def count_steps(dataset: Dataset, batch_size: int) -> int:
    """Steps in an epoch. Raises InputError if the dataset is smaller than one batch."""
    if not 0 < batch_size <= len(dataset):
        raise InputError(f"batch_size {batch_size} is not within 1 and the data set's {len(dataset)} images")
    return len(dataset) // batch_size


def step_indices(count: int, batch_size: int, seed: int, start_step: int = 0, first_epoch: int = 0) -> Iterator[Tensor]:
    """The global batch of each step from `start_step` on, for ever: epoch e's order is a permutation by (seed, e).

    An epoch has count // batch_size steps; the remainder rests for that epoch. Step 0 begins epoch `first_epoch`.
    """
    steps_per_epoch = count // batch_size
    epoch, position = divmod(start_step, steps_per_epoch)
    while True:
        order = fixed_permutation(count, derive_seed(seed, "order", first_epoch + epoch))
        for start in range(position * batch_size, steps_per_epoch * batch_size, batch_size):
            yield order[start : start + batch_size]
        epoch, position = epoch + 1, 0


def step_batches(
    dataset: Dataset,
    *,
    batch_size: int,
    parts: list[Tensor],
    seed: int,
    device: torch.device | str,
    start_step: int = 0,
    num_workers: int = 2,
    first_epoch: int = 0,
) -> Iterator[list[Batch]]:
    """For each step from `start_step` on: this process's micro-batches, one for each of its `parts` of the batch."""
    steps = step_indices(len(dataset), batch_size, seed, start_step, first_epoch)
    wanted = (indices[part] for indices in steps for part in parts)
    micro_batches: Iterator[tuple[Tensor, Tensor | None]]
    if isinstance(dataset, StreamedDataset):
        pinned = torch.device(device).type == "cuda"
        micro_batches = read_ahead(dataset, wanted, num_workers=num_workers, pin_memory=pinned)
    else:
        micro_batches = (dataset[indices] for indices in wanted)
    while True:
        step = []
        for part in parts:
            images, labels = next(micro_batches)
            labels = None if labels is None else to_device(labels, device)
            step.append(Batch(to_device(images, device), labels, part))
        yield step


def read_ahead(
    dataset: StreamedDataset, wanted: Iterable[Tensor], *, num_workers: int, pin_memory: bool = False
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Images and labels at each of the `wanted` indices (B,), read by worker processes ahead of time."""
    loader: DataLoader = DataLoader(
        Reader(dataset),  # type: ignore[arg-type]  # no subclass of torch's, of which DataLoader needs only the indexing
        sampler=wanted, batch_size=None, num_workers=num_workers, pin_memory=pin_memory,
        prefetch_factor=4 if num_workers else None,
    )  # fmt: skip
    for found in loader:
        if isinstance(found, Exception):
            raise found
        images, labels, skipped = found
        dataset.note_skipped(skipped)
        yield images, labels


class Reader:
    """A streamed dataset as worker processes read it: they also say which images they could not read.

    Errors that say what to do are given back: raised, they would arrive with a stack, and without what they are.
    """

    def __init__(self, dataset: StreamedDataset):
        self.dataset = dataset

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor | None, list[str]] | Exception:
        try:
            images, labels = self.dataset[indices]
        except InputError as error:
            return InputError(str(error))  # of its base, which can be sent
        except (OSError, MemoryError) as error:
            return error
        return images, labels, list(self.dataset.skipped)


def join_batches(
    labelled: Iterator[list[Batch]], unlabelled: Iterator[list[Batch]], batch_size: int
) -> Iterator[list[Batch]]:
    """For each step, the micro-batches of two streams as MixedBatches; `batch_size` is that of the labelled one."""
    for pair in zip(labelled, unlabelled, strict=True):
        yield [
            MixedBatch(
                torch.cat([some.images, more.images]), some.labels,
                torch.cat([some.positions, batch_size + more.positions]), more.labels,
            )
            for some, more in zip(*pair, strict=True)
        ]  # fmt: skip


def chunks(
    dataset: Dataset, size: int, *, at: Tensor | None = None, num_workers: int = 2
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The images at these indices (N,), or all in the dataset's own order, `size` at a time: for evaluation.

    Streamed images are read by `num_workers` processes, unless they are few.

    >>> from tinymae import load_dataset
    >>> [len(images) for images, labels in chunks(load_dataset("digits", "val"), 50)]
    [50, 50, 37]
    """
    indices = torch.arange(len(dataset)) if at is None else at
    parts = indices.split(size)
    if isinstance(dataset, StreamedDataset) and len(indices) > FEW:
        yield from read_ahead(dataset, parts, num_workers=num_workers)
    else:
        for part in parts:
            yield dataset[part]


def pick(dataset: Dataset, count: int, seed: int = SPLIT_SEED) -> Dataset:
    """At most `count` images, always the same ones.

    >>> from tinymae import load_dataset
    >>> len(pick(load_dataset("digits", "val"), 10))
    10
    """
    if len(dataset) <= count:
        return dataset
    return dataset.subset(torch.tensor(sorted(random.Random(seed).sample(range(len(dataset)), count))))
