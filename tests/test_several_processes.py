"""Features of all processes together, and images that are larger than memory, which other processes decode."""

import os
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from running import DIGITS, FEW, QUICK, flags, group_of_two, same_files, start, start_calls, tiny_mae

import tinymae
from tinymae import InputError, load_dataset
from tinymae.commands import embed as command
from tinymae.commands.features import map_together, whole_batches
from tinymae.data import batches, load
from tinymae.data.sources import files
from tinymae.files import read_json
from tinymae.models.classifier import build_classifier
from tinymae.training.device import create_accelerator

pytestmark = pytest.mark.usefixtures("quick_stages")


def run_two(tmp_path, *words) -> str:
    """A command as two processes of one run, whose second has another folder to write to; what they printed."""
    processes = [
        start(tmp_path / "log", [*map(str, words), "--output-dir", str(tmp_path / folder)], **one)
        for folder, one in zip(("two", "unused"), group_of_two(), strict=True)
    ]
    for process in processes:
        process.join()
    printed = (tmp_path / "log").read_text()
    assert {process.exitcode for process in processes} == {0}, printed
    assert not (tmp_path / "unused").exists()
    return printed


def without_seconds(folder) -> dict:
    return {name: value for name, value in read_json(folder / "results.json").items() if name != "seconds"}


# ---- several processes


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [1, 5, 60, 64, 137])
def test_processes_share_the_batches_of_one(count, processes):
    parts = whole_batches(torch.arange(count), 10, processes)
    assert len(parts) == processes and torch.equal(torch.cat(parts), torch.arange(count))
    shared = [batch.tolist() for part in parts for batch in part.split(10) if len(batch)]
    assert shared == [batch.tolist() for batch in torch.arange(count).split(10)]
    sizes = [len(part.split(10)) if len(part) else 0 for part in parts]
    assert max(sizes) - min(sizes) <= 1


class Gathered(Exception):
    """What a process gives to the others."""


class OneOf:
    """An Accelerator as one of several processes sees it, which the others have told `parts`."""

    device = torch.device("cpu")

    def __init__(self, index: int, count: int, parts=None):
        self.process_index, self.num_processes, self.parts = index, count, parts
        self.is_main_process, self.autocast = index == 0, partial(torch.autocast, "cpu", enabled=False)

    def gather(self, part: torch.Tensor) -> torch.Tensor:
        if self.parts is None:
            raise Gathered(part)
        return torch.cat(self.parts)


@pytest.mark.parametrize("size", [30, 100])  # 5 batches, and 2 of which one of three processes has none
def test_each_process_computes_its_part_and_all_have_the_bits_of_one(size):
    model, dataset, seen = tiny_mae(), load_dataset("digits", "val"), []

    def function(images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return model.encode_dense(images)

    compute = partial(map_together, function, dataset, batch_size=size)
    with torch.no_grad():
        alone = compute(create_accelerator("no"))
        assert alone.shape == (137, 16, 2, 2) and sum(seen) == 137
        seen.clear()
        parts = []
        for index in range(3):
            with pytest.raises(Gathered) as given:
                compute(OneOf(index, 3))
            parts.append(given.value.args[0])
        assert sum(seen) <= 138  # a process without images looks at one, for the width
        for index in range(3):
            assert torch.equal(compute(OneOf(index, 3, parts)), alone)


CASES = {
    "linear-probe": ("mae", {}, {"model.safetensors"}),
    "evaluate": ("classifier", {}, {"per_class.csv", "errors.png"}),
    "evaluate an autoencoder": ("mae", {}, {"reconstructions.png"}),
    "embed": ("mae", {"formats": ("npz",)}, {"embeddings.npz"}),
    "predict": ("classifier", {}, {"predictions.csv"}),
    "neighbours": ("mae", {"query": ("query.png",)}, {"neighbours.csv", "neighbours.png"}),
    "inspect": ("mae", {"k": 5}, {"duplicates.csv", "outliers.csv", "doubtful_labels.csv", "index.html"}),
}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_leave_what_one_leaves(case, tmp_path, monkeypatch):
    """Real ones; each computes a half of the features, and only the first writes."""
    name, (kind, further, files) = case.split()[0], CASES[case]
    monkeypatch.chdir(tmp_path)
    few = load_dataset("digits")
    np.savez("few.npz", images=few.images[:200, 0].numpy(), labels=few.labels[:200].numpy())
    Image.fromarray(few.images[7, 0].numpy()).save("query.png")
    model = tiny_mae()
    build_classifier(model, classes=[*"0123456789"]).eval().write_weights(tmp_path / "classifier")
    model.save_pretrained(tmp_path / "mae")
    settings = DIGITS | {"data": "few.npz", "weights": kind, "batch_size": 8} | further
    run_two(tmp_path, name, *flags(**settings))
    getattr(tinymae, name.replace("-", "_"))(**settings, output_dir=tmp_path / "one")
    one, two = tmp_path / "one", tmp_path / "two"
    assert without_seconds(two) == without_seconds(one)
    assert sorted(path.name for path in two.iterdir()) == sorted(path.name for path in one.iterdir())
    assert same_files(one, two, *files)
    if name == "embed":
        assert pq.read_table(two / "embeddings.parquet").equals(pq.read_table(one / "embeddings.parquet"))


def test_two_processes_train_one_thing_after_the_other(tmp_path):
    """A script of several calls, as in the README: the end of a training is not that of the processes' group."""
    calls = [
        ("pretrain", QUICK | {"epochs": 1, "output_dir": tmp_path / "pretrain"}),
        ("finetune", FEW | {"weights": tmp_path / "pretrain", "epochs": 1, "output_dir": tmp_path / "finetune"}),
        ("evaluate", FEW | {"weights": tmp_path / "finetune", "output_dir": tmp_path / "evaluate"}),
    ]
    processes = [start_calls(tmp_path / "log", calls, **one) for one in group_of_two()]
    for process in processes:
        process.join()
    assert {process.exitcode for process in processes} == {0}, (tmp_path / "log").read_text()
    assert (tmp_path / "evaluate" / "results.json").exists()


# ---- larger than memory


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of images that are streamed, by workers however few they are; who reads one leaves a file."""
    values = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    for number, image in enumerate(values):
        (tmp_path / "images" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "images" / "ab"[number % 2] / f"{number:02}.png")
    (tmp_path / "readers").mkdir()
    read = files.read_image

    def noted(*arguments, **options):
        (tmp_path / "readers" / str(os.getpid())).touch()
        return read(*arguments, **options)

    monkeypatch.setattr(files, "read_image", noted)
    monkeypatch.setattr(batches, "FEW", 0)
    monkeypatch.setitem(load.load_splits.__kwdefaults__, "memory_limit_gb", 0)
    return tmp_path / "images"


def test_an_image_that_a_worker_cannot_read_is_one_line(folder, tmp_path):
    (folder / "a" / "zz.png").write_bytes(b"no image")
    with pytest.raises(InputError) as refused:
        tinymae.embed(folder, weights=tiny_mae(), formats=(), output_dir=tmp_path / "run", mixed_precision="no")
    assert "zz.png cannot be read" in str(refused.value) and "Traceback" not in str(refused.value)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("name", ["embed", "linear_probe"])
def test_workers_decode_what_is_larger_than_memory(name, num_workers, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "PART", 40)
    common = {"weights": tiny_mae(), "batch_size": 7, "mixed_precision": "no"}
    common |= {"embed": {"formats": ()}}.get(name, {})
    function = getattr(tinymae, name)
    function(folder, **common, num_workers=num_workers, output_dir=tmp_path / "streamed")
    readers = {path.name for path in (tmp_path / "readers").iterdir()}
    assert readers and (str(os.getpid()) in readers) == (num_workers == 0)
    monkeypatch.setitem(load.load_splits.__kwdefaults__, "memory_limit_gb", 1)
    function(folder, **common, output_dir=tmp_path / "whole")
    assert without_seconds(tmp_path / "streamed") == without_seconds(tmp_path / "whole")
    if name == "embed":
        tables = [pq.read_table(tmp_path / each / "embeddings.parquet") for each in ("streamed", "whole")]
        assert tables[0].equals(tables[1]) and len(tables[0]) == 60
