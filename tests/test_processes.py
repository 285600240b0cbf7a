"""What the processes of one run agree on and share, as each of them sees it; test_resume starts real ones."""

import contextlib
import itertools
import time

import pytest
import torch
from accelerate import Accelerator

from tinymae import MaskedAutoencoder, load_dataset
from tinymae.commands.features import map_together
from tinymae.training import run as runs
from tinymae.training.run import Run


def run_in(folder) -> Run:
    return Run(folder, Accelerator(cpu=True), arguments={})


@pytest.mark.parametrize("seconds", [0.004, 0.3, 1.7, 40.0])
def test_processes_agree_on_stopping_within_two_seconds_or_a_step(seconds, tmp_path, monkeypatch):
    """A launcher that sends SIGTERM kills 30 s later, however slow the steps are."""
    now, agreed = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(runs, "agree", lambda value: agreed.append(now[0]) or value)
    run = run_in(tmp_path)
    run.next_agreement, run.last_agreement = 1, (0, 0.0)
    for step in range(1, 1001):
        now[0] += seconds
        run.agree_at_times(step, None, False)
    gaps = [later - earlier for earlier, later in itertools.pairwise(agreed)]
    assert max(gaps) <= max(2.0, seconds + 1e-6) and len(agreed) > 1
    assert min(gaps) > 0.5  # each costs a message


@pytest.mark.parametrize("main_has", [None, {"step": 3, "minutes": 0.5}])
def test_all_processes_go_on_from_what_the_main_one_has(main_has, tmp_path, monkeypatch):
    """Their disks may hold other files: whoever looked at its own would wait for the others for ever."""
    own = run_in(tmp_path)
    own.checkpoints.save({"model": torch.nn.Linear(2, 2).state_dict(), "step": 9, "minutes": 1.0}, step=9)
    told = []
    monkeypatch.setattr(runs, "agree", lambda value: told.append(value) or main_has)
    other = run_in(tmp_path)
    other.is_main = False
    assert other.load_checkpoint() == main_has and told == [None]
    monkeypatch.setattr(runs, "agree", lambda value: value)
    assert own.load_checkpoint()["step"] == 9


class Gathered(Exception):
    """What a process gives to the others."""


class OneOf:
    """An Accelerator as one of several processes sees it, which the others have told `parts`."""

    device, is_main_process, autocast = torch.device("cpu"), False, contextlib.nullcontext

    def __init__(self, index: int, count: int, parts=None):
        self.process_index, self.num_processes, self.parts = index, count, parts

    def gather(self, part: torch.Tensor) -> torch.Tensor:
        if self.parts is None:
            raise Gathered(part)
        return torch.cat(self.parts)


def test_features_are_computed_by_all_processes_each_its_part():
    """Where one computed them alone, the others' wait would outlast their patience."""
    model = MaskedAutoencoder(image_size=8, patch_size=4, in_channels=1, embed_dim=16, depth=1, num_heads=2)
    dataset = load_dataset("digits", "val")  # 137 images, which 3 does not divide
    encoded, encode = [], model.encode

    def counted(images, **options):
        encoded.append(len(images))
        return encode(images, **options)

    model.encode = counted
    parts = []
    for index in range(3):
        with pytest.raises(Gathered) as given:
            map_together(model.encode, dataset, OneOf(index, 3), batch_size=46)
        parts.append(given.value.args[0])
    assert encoded == [46, 46, 45]
    alone = map_together(model.encode, dataset, Accelerator(cpu=True), batch_size=46)
    for index in range(3):
        assert torch.equal(map_together(model.encode, dataset, OneOf(index, 3, parts), batch_size=46), alone)
