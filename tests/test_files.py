"""Files are whole or absent, folders one run's at a time, and an error of the disk is one line with a remedy."""

import errno
import os
import signal

import numpy as np
import pytest
import torch
from running import in_child, launch, run_in, wait

from tinymae import InputError, files
from tinymae.files import is_about, lock_folder, read_tensors, write_atomically, write_tensors

# ---- whole or absent


@pytest.mark.parametrize("stage", ["write", "fsync", "replace"])
def test_a_kill_at_each_stage_keeps_the_old_file(stage, tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, lambda beside: beside.write_text("old"))

    def die(*_):
        os._exit(7)

    def work():
        if stage != "write":
            monkeypatch.setattr(files.os, stage, die)
        write_atomically(path, lambda beside: (beside.write_text("ne"), die() if stage == "write" else None))

    assert wait(in_child(work)) == 7
    assert path.read_text() == "old"


def test_a_file_is_flushed_to_disk_as_windows_wants_it(tmp_path, monkeypatch):
    """There os.fsync refuses what was opened for reading alone."""
    fcntl, flushed = pytest.importorskip("fcntl"), []

    def fsync(number):
        if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flushed.append(number)

    monkeypatch.setattr(files.os, "fsync", fsync)
    write_atomically(tmp_path / "file", lambda beside: beside.write_text("new"))
    assert flushed and (tmp_path / "file").read_text() == "new"


def test_what_killed_writers_left_is_gone_once_the_folder_is_locked(tmp_path):
    left = [tmp_path / ".results.json.partial-7", tmp_path / "checkpoints" / ".step-000000007.pt.partial-71"]
    others = [tmp_path / "model.safetensors", tmp_path / "other" / ".lock", tmp_path / "other" / ".args.json.partial-8"]
    for path in (*left, *others):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    lock_folder(tmp_path).release()
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in others)  # another run's are its own


def test_every_flipped_bit_in_weights_is_found(tmp_path):
    path = tmp_path / "model.safetensors"
    state = {"a": torch.randn(30), "b": torch.randn(4, 5).bfloat16(), "step": torch.tensor(3)}
    write_tensors(state, path)
    assert all(torch.equal(tensor, state[name]) for name, tensor in read_tensors(path).items())
    whole = bytearray(path.read_bytes())
    write_tensors(dict(reversed(state.items())), path)
    assert path.read_bytes() == whole  # equal tensors make equal files
    header = 8 + int.from_bytes(whole[:8], "little")
    for place in np.random.default_rng(0).integers(header, len(whole), 100):
        damaged = whole.copy()
        damaged[place] ^= 1 << int(place) % 8
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="model.safetensors is damaged"):
            read_tensors(path)


WRITE_NAMES = """
import sys
from pathlib import Path
from tinymae.files import read_json, read_metrics
from tinymae.training.inputs import changed_names, write_names

class Names(list):
    of_files, names = True, property(list)

write_names(Path(sys.argv[1]), {"train": Names(["\\u00e9.png"])})
print(ascii(changed_names(Path(sys.argv[1]), "train", Names(["\\u00e8.png"]))))
print(ascii([read_json(sys.argv[2]), *read_metrics(sys.argv[2])]))
"""


def test_names_and_json_are_written_and_read_as_utf_8_whatever_the_locale(tmp_path):
    ascii_alone = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    config = tmp_path / "config.json"
    config.write_text('{"label_names": ["café"]}\n', encoding="utf-8")
    shown = launch("-c", WRITE_NAMES, tmp_path, config, **ascii_alone).communicate()[0]
    assert (tmp_path / "inputs" / "train.txt").read_bytes() == "é.png\n".encode()
    assert r"1 of train came: \xe8.png, 1 of train went: \xe9.png" in shown
    assert shown.count(r"caf\xe9") == 2


def test_a_folder_in_use_is_refused_until_its_process_ends(tmp_path):
    reading, writing = os.pipe()

    def work():
        held = lock_folder(tmp_path)
        os.write(writing, b"!" if held else b"")
        signal.pause()

    pid = in_child(work)
    os.read(reading, 1)
    with pytest.raises(InputError, match="is in use by another process"):
        lock_folder(tmp_path)
    os.kill(pid, signal.SIGKILL)
    wait(pid)
    lock_folder(tmp_path).release()


# ---- errors of the disk


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


def test_what_stands_in_a_files_place_is_named_and_the_folder_given_back(tmp_path):
    (tmp_path / "args.json").mkdir()
    with pytest.raises(InputError, match=r"cannot be written to \(Is a directory\): mend that"), run_in(tmp_path):
        raise AssertionError("unreachable")
    (tmp_path / "args.json").rmdir()
    with run_in(tmp_path):
        pass


def test_an_error_about_another_file_is_raised_as_it_is(tmp_path):
    missing = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/images/cat.png")
    with pytest.raises(FileNotFoundError) as found, run_in(tmp_path):
        raise missing
    assert found.value is missing
