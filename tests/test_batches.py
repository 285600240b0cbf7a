"""The order in which images come, and how a batch is cut into parts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinymae import InputError, load_dataset
from tinymae.data.batches import count_steps, split_batch, step_indices


def test_an_epoch_sees_every_image_once_and_epochs_differ():
    steps = step_indices(22, 4, seed=7)
    first, second = ([next(steps) for _ in range(5)] for _ in range(2))
    for epoch in (first, second):
        assert len(torch.cat(epoch).unique()) == 20
    assert not torch.equal(torch.cat(first), torch.cat(second))
    later = step_indices(22, 4, seed=7, first_epoch=1)  # of a later phase of a run
    assert all(torch.equal(step, next(later)) for step in second)


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 200), batch=st.integers(1, 50), seed=st.integers(0, 9), start=st.integers(0, 30))
def test_any_data_set_is_seen_whole_and_resumed_anywhere(count, batch, seed, start):
    batch = min(batch, count)
    steps, late = step_indices(count, batch, seed), step_indices(count, batch, seed, start)
    drawn = [next(steps) for _ in range(start + count // batch + 1)]
    epoch = torch.cat(drawn[: count // batch])
    assert len(epoch.unique()) == len(epoch) == count // batch * batch
    assert all(torch.equal(next(late), step) for step in drawn[start:])


@settings(max_examples=60, deadline=None)
@given(half=st.integers(1, 40), parts=st.integers(1, 6))
def test_any_split_of_a_batch_is_a_partition_that_keeps_mirrored_pairs_together(half, parts):
    size = 2 * half * parts
    pieces = split_batch(size, parts)
    assert sorted(torch.cat(pieces).tolist()) == list(range(size))
    assert len({len(piece) for piece in pieces}) == 1
    assert all(((piece + piece.flip(0)) == size - 1).all() for piece in pieces)


def test_batches_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="batch_size 10 is not a multiple of 2 x 4"):
        split_batch(10, 4)
    with pytest.raises(InputError, match="batch_size 2000 is not within 1 and the data set's 1300 images"):
        count_steps(load_dataset("digits"), 2000)
