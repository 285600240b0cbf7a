"""Which images a folder, a table and single files hold, under which names, however they lie on disk."""

import os
import re

import pytest
from test_data import picture
from test_unlabelled import small_model

import tinymae
from tinymae import InputError, load_dataset
from tinymae.data.load import load_splits
from tinymae.data.sources.files import list_images

# ---- links


@pytest.mark.parametrize("link", ["defekt/zum_vergleich", "aaa", "zzz"])
def test_a_link_to_a_class_folder_takes_none_of_its_images(tmp_path, link):
    for number in range(4):
        picture(tmp_path / ("ok" if number % 2 else "defekt") / f"{number}.png", seed=number)
    (tmp_path / link).symlink_to(tmp_path / "ok")
    dataset = load_dataset(tmp_path, "all", image_size=12)
    assert dataset.names == ["defekt/0.png", "defekt/2.png", "ok/1.png", "ok/3.png"]
    assert dataset.classes == ["defekt", "ok"]


@pytest.mark.parametrize("turned", [False, True])
def test_what_links_lead_to_does_not_depend_on_the_order_of_the_file_system(tmp_path, monkeypatch, turned):
    picture(tmp_path / "data" / "x" / "0.png")
    picture(tmp_path / "outside" / "deep" / "1.png")
    for name in ("b", "a", "x/c"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "outside" / ("deep" if name == "b" else ""))
    scan = os.scandir

    class Scan:
        def __init__(self, place):
            self.entries = sorted(scan(place), key=lambda entry: entry.name, reverse=turned)

        def __enter__(self):
            return self.entries

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(os, "scandir", Scan)
    assert list_images(tmp_path / "data") == (["a/deep/1.png", "x/0.png"], [])


# ---- trees that are no class folders


def halls(folder):
    """Images in two halls."""
    for number in range(12):
        picture(folder / f"hall {number % 2}" / f"{number:02}.png", size=(8, 8), seed=number)
    return folder


def test_a_class_folder_without_images_is_left_out_and_said(tmp_path):
    for name in ("hall 2", "hall 3", ".hidden", "Unlabelled"):
        (halls(tmp_path) / name).mkdir()
    dataset = load_splits(tmp_path, ["train"], labelled=True)["train"]
    assert dataset.classes == ["hall 0", "hall 1"]
    assert dataset.description[-1] == "left out: class folders without images: hall 2, hall 3"


def test_a_given_folder_without_images_is_left_out_unless_none_has_any(tmp_path):
    (halls(tmp_path) / "hall 2").mkdir()
    dataset = load_dataset(sorted(tmp_path.iterdir()), "all")
    assert len(dataset) == 12 and dataset.names[0] == "hall 0/00.png"
    assert dataset.description[-1] == f"left out: folders without images: {tmp_path / 'hall 2'}"
    with pytest.raises(InputError, match=r"folder .*hall 2 holds no images \(\.jpg"):
        load_dataset(tmp_path / "hall 2")


@pytest.mark.parametrize(
    ("stray", "wrong", "remedy"),
    [
        ("z.png", "images (z.png) lie beside the folder hall 0", "move them away, or into a folder unlabelled/"),
        ("test/z.png", "images (test/z.png) lie beside the folder hall 1", "move them away, or into"),
        ("test/a/z.png", "class folder test/a is none of train's classes, hall 0, hall 1", "move it away, or rename"),
    ],
)
def test_folders_that_cannot_be_classes_are_an_error_where_labels_are_needed_alone(tmp_path, stray, wrong, remedy):
    data = tmp_path / "data"
    halls(data / "train" if "/" in stray else data)
    if stray == "test/z.png":
        picture(data / "test" / "hall 1" / "0.png")
    picture(data / stray, size=(8, 8))
    with pytest.raises(InputError, match=re.escape(f"data set data has no labels in train: {wrong}: {remedy}")):
        load_splits(data, ["train"], labelled=True)
    dataset = load_dataset(data, "all")
    assert stray in dataset.names and dataset.labels is None and dataset.classes == []
    assert dataset.description[-1] == f"labels: none, as {wrong}"
    table = tinymae.embed(data, weights=small_model(), formats=(), output_dir=tmp_path / "embed")
    assert table.results["images"] == len(dataset)
