"""Checkpoints survive kills, damage and full disks: nothing saved is lost, nothing broken is used."""

import itertools
import os
import pickle
import resource
import shutil
import signal
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from running import in_child, wait

from tinymae import InputError, files
from tinymae.errors import Diverged
from tinymae.files import lock_folder
from tinymae.training.checkpoints import Checkpoints


def checkpoints_in(folder) -> Checkpoints:
    return Checkpoints(folder / "checkpoints", print)


def state_of(step: int) -> dict:
    return {"model": torch.nn.Linear(64, 64).state_dict(), "step": step}


def test_two_checkpoints_are_kept(tmp_path):
    checkpoints = checkpoints_in(tmp_path)
    for step in range(1, 5):
        checkpoints.save(state_of(step), step=step)
    assert [path.name[:14] for path in checkpoints.files] == ["step-000000003", "step-000000004"]
    assert checkpoints.last == checkpoints.files[-1]


def test_a_kill_at_any_moment_of_a_save_leaves_a_loadable_state(tmp_path):
    """40 kills at random calls within saves; after each, the next process goes on from the last whole state."""
    state, calls = state_of(0), []
    sys.setprofile(lambda *_: calls.append(0))
    checkpoints_in(tmp_path / "counted").save(state, step=0)
    sys.setprofile(None)
    progress = 0
    for fatal in np.random.default_rng(0).integers(1, 3 * len(calls), 40).tolist():

        def work(fatal=fatal):
            checkpoints, count = checkpoints_in(tmp_path), itertools.count(1)
            saved = checkpoints.load()
            step = saved["step"] if saved else 0
            sys.setprofile(lambda *_: next(count) == fatal and os.kill(os.getpid(), signal.SIGKILL))
            while True:
                step += 1
                checkpoints.save(state | {"step": step}, step=step)

        assert wait(in_child(work)) == -signal.SIGKILL
        lock_folder(tmp_path).release()  # as the repeated command does, which removes what is half written
        checkpoints = checkpoints_in(tmp_path)
        assert sorted((tmp_path / "checkpoints").glob("*")) == checkpoints.files
        saved = checkpoints.load()
        if saved is not None:
            assert saved["step"] >= progress and torch.equal(saved["model"]["weight"], state["model"]["weight"])
            progress = saved["step"]
    assert progress > 20  # a kill comes one and a half saves after the one before
    files_left = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert 1 <= len(files_left) <= 3  # two are kept; a kill before the tidying leaves one more


def test_a_full_disk_is_reported_and_the_last_checkpoint_survives(tmp_path):
    def work():
        checkpoints = checkpoints_in(tmp_path)
        checkpoints.save(state_of(1), step=1)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))  # files end here, as on a full disk
        with pytest.raises(InputError, match=r"could not be written .*last good one is .*step-000000001.*Make room"):
            checkpoints.save(state_of(2), step=2)

    assert wait(in_child(work)) == 0
    assert checkpoints_in(tmp_path).load()["step"] == 1
    assert [path.name[:14] for path in (tmp_path / "checkpoints").iterdir()] == ["step-000000001"]


def test_memory_that_runs_out_in_a_save_is_not_taken_for_a_full_disk(tmp_path, monkeypatch):
    def fail(*_):
        torch.empty(1 << 60)

    checkpoints = checkpoints_in(tmp_path)
    checkpoints.save(state_of(1), step=1)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fail)
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            checkpoints.save(state_of(2), step=2)
    assert checkpoints.load()["step"] == 1


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, capsys):
    checkpoints, state = checkpoints_in(tmp_path), state_of(2)
    checkpoints.save(state_of(1), step=1)
    checkpoints.save(state, step=2)
    newest = checkpoints.files[-1]
    whole = bytearray(newest.read_bytes())
    weights = whole.find(state["model"]["weight"].numpy().tobytes()[:64])
    assert weights > 0
    for damage in (whole[:-500], whole[: weights + 9] + bytes([whole[weights + 9] ^ 4]) + whole[weights + 10 :], b""):
        newest.write_bytes(damage)
        assert checkpoints.load()["step"] == 1
        assert f"{newest.name} is damaged" in capsys.readouterr().out


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_state_that_is_not_finite_is_not_saved(value, tmp_path):
    checkpoints, state = checkpoints_in(tmp_path), state_of(2)
    optimizer = torch.optim.AdamW([torch.zeros(3, requires_grad=True)])
    optimizer.param_groups[0]["params"][0].sum().backward()
    optimizer.step()
    checkpoints.save(state_of(1), step=1)
    state |= {"optimizer": optimizer.state_dict(), "ema": [torch.ones(3)]}
    state["optimizer"]["state"][0]["exp_avg"][1] = value
    with pytest.raises(Diverged, match=r"exp_avg is not finite at step 2; last good checkpoint: .*step-000000001-"):
        checkpoints.save(state, step=2)
    assert len(checkpoints.files) == 1 and checkpoints.load()["step"] == 1


def test_a_checkpoint_never_runs_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "trapped"),))

    checkpoints = checkpoints_in(tmp_path)
    checkpoints.save(state_of(1), step=1)
    trap = tmp_path / "trap.pt"
    torch.save({"step": 2, "model": Trap()}, trap)
    trap.rename(tmp_path / "checkpoints" / f"step-000000002-{files.file_digest(trap)}.pt")
    with pytest.raises(pickle.UnpicklingError):
        checkpoints.load()
    assert not (tmp_path / "trapped").exists()


def test_a_checkpoint_that_cannot_be_written_says_how_much_room_there_is(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 1931200 vs 1931088")

    monkeypatch.setattr(torch, "save", fail)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3_000_000))
    cause = r"\[enforce .*\] \. unexpected pos 1931200 vs 1931088; 3\.0 MB are free on its disk"
    with pytest.raises(InputError, match=rf"the checkpoint of step 3 could not be written \({cause}\); the last"):
        Checkpoints(tmp_path, print).save({"step": 3}, step=3)
