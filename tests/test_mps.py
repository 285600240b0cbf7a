"""What Apple's GPU ("mps") cannot do is not asked of it. There is none here: tensors are said to be there."""

import re
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tinymae import load_dataset
from tinymae.data import augment
from tinymae.data.batches import step_batches
from tinymae.evaluation.metrics import map_dataset
from tinymae.randomness import Draws
from tinymae.tensors import to_device
from tinymae.training import environment

MPS = torch.device("mps")


class PretendMPS(TorchFunctionMode):
    """All tensors say that they are on "mps", where those that are moved there stay where they are."""

    def __torch_function__(self, func, _, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.nn.functional.grid_sample and kwargs["padding_mode"] == "border":
            raise RuntimeError("MPS: Unsupported Border padding mode")
        if kwargs.get("device") == MPS:
            kwargs["device"] = "cpu"
        if func == Tensor.device.__get__:
            return MPS
        if func is Tensor.to and args[1:] and args[1] == MPS:
            assert not kwargs.get("non_blocking"), "it may read the memory after this was given to other tensors"
            return args[0]
        return func(*args, **kwargs)


@pytest.fixture
def mps():
    with PretendMPS():
        yield MPS


def test_it_is_waited_for_as_it_may_read_memory_late(mps):
    assert len(to_device(torch.ones(2), mps)) == 2
    dataset = load_dataset("digits", "val")
    (batch,) = next(step_batches(dataset, batch_size=4, parts=[torch.arange(4)], seed=0, device=mps))
    assert len(batch.images) == 4
    assert len(map_dataset(lambda images: images.flatten(1), dataset, device=mps)) == len(dataset)


def test_crops_are_cut_out_without_the_padding_that_it_lacks():
    images, draws = torch.randint(0, 256, (64, 3, 12, 16), dtype=torch.uint8), Draws(0, 0, 64, torch.arange(64), "cpu")
    expected = augment.random_resized_crop(images, draws)
    with PretendMPS():
        found = augment.random_resized_crop(images, Draws(0, 0, 64, torch.arange(64), "cpu"))
    different = (found.int() - expected.int()).abs()
    assert different.max() <= 1 and different.float().mean() < 1e-3  # pixels that lie between two numbers


def test_memory_is_not_pinned_for_it(monkeypatch):
    """DataLoader would warn that there is no such memory."""
    asked = []
    monkeypatch.setattr(
        "tinymae.data.batches.DataLoader", lambda *_, pin_memory, **options: asked.append(pin_memory) or []
    )
    streamed = load_dataset("digits", "val", memory_limit_gb=0)
    for device in (MPS, "cuda"):
        with pytest.raises(RuntimeError, match="StopIteration"):
            next(step_batches(streamed, batch_size=4, parts=[torch.arange(4)], seed=0, device=device))
    assert asked == [False, True]


def test_what_a_run_was_made_on_names_it(monkeypatch):
    monkeypatch.setattr(environment, "PartialState", lambda: SimpleNamespace(device=MPS, num_processes=1))
    assert re.fullmatch(r"mps, beside .* CPU cores", environment.environment()["device"])
