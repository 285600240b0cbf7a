"""Disks and clocks that misbehave: what is about a run's folder is one line with a remedy."""

import errno
import os
import shutil
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from running import FEW, QUICK, metrics

import tinymae
from tinymae import InputError, MaskedAutoencoder
from tinymae.files import is_about, lock_folder
from tinymae.training import run as training_run
from tinymae.training.checkpoints import Checkpoints
from tinymae.training.run import Run


def run_in(folder) -> Run:
    return Run(folder, Accelerator(cpu=True), arguments={"seed": 1})


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_disk_that_is_full_or_broken_is_about_any_folder(number, tmp_path):
    assert is_about(OSError(number, os.strerror(number)), tmp_path)


def test_an_error_is_about_the_folder_whose_file_it_names(tmp_path, monkeypatch):
    folder, other = tmp_path / "run", str(tmp_path / "runs" / "file")
    inside = str(folder / "checkpoints" / "step.pt")
    assert is_about(PermissionError(errno.EACCES, "denied", inside), folder)
    assert is_about(PermissionError(errno.EACCES, "denied", inside.encode()), folder)
    assert is_about(OSError(errno.EXDEV, "rename", other, None, inside), folder)  # the second name of a renaming
    assert is_about(NotADirectoryError(errno.ENOTDIR, "in the way", str(folder)), folder)
    assert is_about(
        FileNotFoundError(errno.ENOENT, "cannot be made", str(tmp_path / "runs")), tmp_path / "runs" / "one"
    )
    assert not is_about(PermissionError(errno.EACCES, "cannot be listed", str(tmp_path)), folder)  # it is there
    monkeypatch.chdir(tmp_path)
    assert is_about(PermissionError(errno.EACCES, "denied", "run/args.json"), folder)
    assert is_about(PermissionError(errno.EACCES, "denied", inside), folder.relative_to(tmp_path))


def test_other_errors_are_not(tmp_path):
    for error in (
        None, ValueError(str(tmp_path)), OSError(str(tmp_path)), ConnectionResetError(errno.ECONNRESET, "reset"),
        FileNotFoundError(errno.ENOENT, "no such file", str(tmp_path.parent / "images" / "cat.png")),
        PermissionError(errno.EACCES, "denied", 7),  # a descriptor has no name
        PermissionError(errno.EACCES, "denied", f"{tmp_path}-2/args.json"),
    ):  # fmt: skip
        assert not is_about(error, tmp_path), error


def test_a_full_disk_under_a_run_is_one_line_that_says_how_to_go_on(tmp_path):
    with pytest.raises(InputError) as stop, run_in(tmp_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/somewhere/else")
    assert str(stop.value) == (
        f"output_dir {tmp_path} cannot be written to (No space left on device): mend that, then repeat the command, "
        "which resumes"
    )
    lock_folder(tmp_path).release()  # it was given back


def test_a_checkpoint_that_has_no_room_says_so_and_how_much_it_needs(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 1931200 vs 1931088")

    monkeypatch.setattr(torch, "save", fail)
    state = {"model": {"weight": torch.zeros(1_000_000)}, "step": 3}
    for free, cause in [
        (3_000_000, rf"no space left on the disk of {tmp_path}, it needs 4\.0 MB"),
        (5_000_000, r"\[enforce fail at inline_container\.cc:672\] \. unexpected pos 1931200 vs 1931088"),
    ]:
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        with pytest.raises(InputError, match=rf"the checkpoint of step 3 could not be written \({cause}\); the last"):
            Checkpoints(tmp_path, print).save(state, step=3)


def test_what_stands_in_a_files_place_is_named_and_the_folder_given_back(tmp_path):
    (tmp_path / "args.json").mkdir()
    with pytest.raises(InputError, match=r"cannot be written to \(Is a directory\): mend that"), run_in(tmp_path):
        raise AssertionError("unreachable")
    (tmp_path / "args.json").rmdir()
    with run_in(tmp_path):
        pass


@pytest.mark.parametrize("jump", [0.0, -86400.0])
def test_a_clock_that_stands_still_or_is_put_back_does_not_end_a_run(jump, quick_figures, tmp_path, monkeypatch):
    now, real = [], time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now[-1] + jump if now else real())
    report = Run.report

    def stopped(run, state):
        if state.step == 2:
            now.append(real())
        report(run, state)

    monkeypatch.setattr(Run, "report", stopped)
    run = tinymae.pretrain(**QUICK, output_dir=tmp_path)
    rates = [row["images_per_second"] for row in metrics(tmp_path) if "images_per_second" in row]
    assert run.results["steps"] == len(rates) == 8 and min(rates) == 0 < max(rates)


def test_an_error_about_another_file_is_raised_as_it_is(tmp_path):
    missing = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/images/cat.png")
    with pytest.raises(FileNotFoundError) as found, run_in(tmp_path):
        raise missing
    assert found.value is missing


def test_what_killed_writers_left_is_gone_once_the_folder_is_locked(tmp_path):
    left = [tmp_path / ".results.json.partial-7", tmp_path / "checkpoints" / ".step-000000007.pt.partial-71"]
    others = [tmp_path / "model.safetensors", tmp_path / "other" / ".lock", tmp_path / "other" / ".args.json.partial-8"]
    for path in (*left, *others):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    lock_folder(tmp_path).release()
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in others)  # another run's are its own


@pytest.mark.parametrize("renamed", [False, True])
def test_a_save_that_is_killed_leaves_a_whole_checkpoint_or_nothing(renamed, tmp_path):
    """SIGKILL just before a file gets another name, or just after it."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", print)
    if not (process := os.fork()):
        replace = os.replace

        def die(source, target):
            if renamed:
                replace(source, target)
            os.kill(os.getpid(), signal.SIGKILL)

        try:
            pytest.MonkeyPatch().setattr(os, "replace", die)
            checkpoints.save({"step": 3}, step=3)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    lock_folder(tmp_path).release()  # as the repeated command does
    assert checkpoints.load() == ({"step": 3} if renamed else None)
    assert [*(tmp_path / "checkpoints").iterdir()] == checkpoints.files


def test_a_killed_embed_leaves_nothing_that_stops_the_next(tmp_path):
    """Amid a part of the table, and after the table but before its parts were removed."""
    parts = tmp_path / "parts"
    encoder = MaskedAutoencoder(image_size=8, patch_size=4, in_channels=1, embed_dim=16, depth=1, num_heads=2)
    for left in (".000000.parquet.partial-7", "000000.parquet"):
        parts.mkdir()
        (parts / left).touch()
        if left == "000000.parquet":
            assert (tmp_path / "embeddings.parquet").exists()
        tinymae.embed(**FEW, weights=encoder, output_dir=tmp_path, formats=())
        assert not parts.exists()


def test_results_are_written_last(quick_figures, tmp_path, monkeypatch):
    """A study that finds them does not run again, so nothing may come after them."""

    def killed(folder, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(training_run, "write_card", killed)
    with pytest.raises(KeyboardInterrupt):
        tinymae.pretrain(**QUICK, output_dir=tmp_path)
    assert (tmp_path / "model.safetensors").exists() and not (tmp_path / "results.json").exists()
    monkeypatch.undo()
    tinymae.pretrain(**QUICK, output_dir=tmp_path)
    assert (tmp_path / "results.json").exists() and (tmp_path / "README.md").exists()


def test_a_finished_run_that_is_repeated_measures_its_end_once(quick_figures, tmp_path):
    def measured():
        return [(row["step"], [*row]) for row in metrics(tmp_path)]

    tinymae.pretrain(**QUICK, output_dir=tmp_path, probe_every=1)
    first = measured()
    tinymae.pretrain(**QUICK, output_dir=tmp_path, probe_every=1)
    assert measured() == first and sum("knn_val" in keys for _, keys in first) == 3
