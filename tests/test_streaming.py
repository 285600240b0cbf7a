"""Images that are larger than memory: decoded when they are asked for, by workers."""

import os
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pictures import picture
from PIL import Image
from running import tiny_mae, without_seconds

import tinymae
from tinymae import InputError, load_dataset
from tinymae.commands import embed as command
from tinymae.data import batches, datasets, load
from tinymae.data.batches import chunks, split_batch, step_batches
from tinymae.data.datasets import ImageDataset, StreamedDataset
from tinymae.data.sources import encoded


def test_nothing_is_decoded_before_it_is_asked_for(tmp_path):
    for number in range(30):
        picture(tmp_path / f"{number:02}.png", seed=number)
    (tmp_path / "05.png").write_bytes(b"no image")
    dataset = load_dataset(tmp_path, "all", image_size=8, memory_limit_gb=0)
    assert isinstance(dataset, StreamedDataset) and len(dataset) == 30
    with pytest.raises(InputError, match=r"05\.png cannot be read"):
        list(chunks(dataset, 10))


def test_a_folder_too_large_for_memory_streams_the_same_pictures(classes_folder):
    whole = load_dataset(classes_folder, "train", image_size=12)
    streamed = load_dataset(classes_folder, "train", image_size=12, memory_limit_gb=0)
    assert isinstance(whole, ImageDataset) and isinstance(streamed, StreamedDataset)
    arguments = {"batch_size": 8, "parts": split_batch(8, 2), "seed": 3, "device": "cpu", "start_step": 1}
    batches = zip(step_batches(whole, **arguments), step_batches(streamed, **arguments, num_workers=2), strict=False)
    for _, (first, second) in zip(range(5), batches, strict=False):
        for one, other in zip(first, second, strict=True):
            assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


def test_statistics_of_what_is_streamed_are_of_images_from_all_over_it(monkeypatch):
    monkeypatch.setattr(datasets, "STATISTICS_OF", 20)
    images = torch.arange(200, dtype=torch.uint8).view(200, 1, 1, 1).expand(200, 1, 2, 2)  # brighter and brighter
    whole, streamed = (load_dataset(images, "all", memory_limit_gb=limit).statistics for limit in (4, 0))
    assert streamed[0] == pytest.approx(whole[0], abs=0.02) and streamed[1] == pytest.approx(whole[1], abs=0.02)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_unreadable_image_is_stood_in_for_by_the_next_of_its_class(tmp_path, num_workers):
    for number in range(8):
        picture(tmp_path / "ab"[number % 2] / f"{number}.png", seed=number)
    (tmp_path / "a" / "2.png").write_bytes(b"no image")
    dataset = load_dataset(tmp_path, "all", image_size=12, memory_limit_gb=0, skip_unreadable=True)
    place = dataset.names.index("a/2.png")
    batches = step_batches(
        dataset, batch_size=8, parts=split_batch(8, 1), seed=0, device="cpu", num_workers=num_workers
    )
    batch = next(batches)[0]
    assert batch.labels.sort().values.tolist() == [0] * 4 + [1] * 4
    images, labels = dataset[torch.tensor([place, place + 1])]
    assert torch.equal(images[0], images[1]) and labels.tolist() == [0, 0]
    assert dataset.skipped == ["a/2.png"]
    by_mask, labels = dataset[torch.arange(8) >= place]  # by a mask as by rows, if one of them is unreadable
    assert torch.equal(by_mask, dataset[torch.arange(place, 8)][0]) and len(labels) == 8 - place
    shutil.copy(tmp_path / "a" / "2.png", tmp_path / "b" / "x.png")
    left_out = load_dataset(tmp_path, "all", image_size=12, skip_unreadable=True)
    assert len(left_out) == 7 and left_out.skipped == ["a/2.png", "b/x.png"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of images that are streamed, by workers however few they are; who reads one leaves a file."""
    values = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    for number, image in enumerate(values):
        (tmp_path / "images" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "images" / "ab"[number % 2] / f"{number:02}.png")
    (tmp_path / "readers").mkdir()
    read = encoded.read_image

    def noted(*arguments, **options):
        (tmp_path / "readers" / str(os.getpid())).touch()
        return read(*arguments, **options)

    monkeypatch.setattr(encoded, "read_image", noted)
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
def test_workers_decode_what_is_larger_than_memory(
    name, num_workers, folder, quick_figures, quick_probes, tmp_path, monkeypatch
):
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
