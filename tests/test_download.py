"""Data that is not there yet, wanted by several processes at once. Nothing is fetched: the data set is made up."""

import os
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from running import in_child, wait

from tinymae import InputError, load_dataset
from tinymae.data.sources.named import NAMED


class Slow:
    """A data set of torchvision whose download takes a while and writes into a log what it does.

    As MNIST does, it takes a file that is there for one that is whole.
    """

    classes = ("even", "odd")

    def __init__(self, folder: Path, split: str, download: bool):
        self.file, self.log = folder / "data", folder / "log"
        if download and not self.file.exists():
            self.fetch()
        if not self.file.exists():
            raise RuntimeError("Dataset not found. You can use download=True to download it")
        if self.file.read_text() != "whole":
            raise ValueError("cannot reshape what is half there")
        self.data = np.zeros((2100, 4, 4), dtype=np.uint8)
        self.targets = list(range(2)) * 1050

    def __len__(self) -> int:
        return len(self.data)

    def fetch(self) -> None:
        with open(self.log, "a") as log:
            log.write("begins\n")
            log.flush()
            self.file.write_text("half")
            time.sleep(0.3)
            self.file.write_text("whole")
            log.write("ends\n")


class Unreachable(Slow):
    """One that cannot be fetched."""

    def fetch(self) -> None:
        raise OSError("no route to host")


def test_one_process_fetches_and_the_others_wait(tmp_path, monkeypatch):
    monkeypatch.setitem(NAMED, "mnist", (Slow, ("train", "test")))
    waiting, go = os.pipe()

    def work(number):
        os.close(go)
        os.read(waiting, 1)  # until the parent closes its end
        time.sleep(0.1 * number)  # some come while the first fetches
        assert len(load_dataset("mnist", "test", data_dir=tmp_path / "data")) == 2100

    children = [in_child(partial(work, number)) for number in range(4)]
    os.close(go)
    assert [wait(child) for child in children] == [0] * 4
    assert (tmp_path / "data" / "log").read_text() == "begins\nends\n"
    os.close(waiting)


def test_what_cannot_be_fetched_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(NAMED, "mnist", (Unreachable, ("train", "test")))
    with pytest.raises(InputError, match=r"mnist is not in data_dir .*no route to host.*give --data-dir a folder"):
        load_dataset("mnist", "test", data_dir=tmp_path)
