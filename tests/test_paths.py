"""Which images a folder, a table and single files hold, under which names, however they lie on disk."""

import ntpath
import os
import re
from pathlib import Path, PureWindowsPath
from unicodedata import normalize

import numpy as np
import pytest
import torch
from pictures import picture, pixels
from running import tiny_mae

import tinymae
from tinymae import InputError, load_dataset
from tinymae.data.load import load_splits
from tinymae.data.masks import read_masks
from tinymae.data.sources.files import common_folder, list_images
from tinymae.data.sources.table import find_prefixes, normal_path

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


# ---- where the data lie


def write_rows(path, images):
    lines = [f"{image},{'ab'[number % 2]}" for number, image in enumerate(images)]
    path.write_text("\n".join(["path,label", *lines]))
    return path


def cut(data, folder):
    """The images of each split, relative to their folder."""
    loaded = load_splits(data, ["train", "val", "test"])
    return {
        split: [os.path.relpath(folder / name, folder) for name in dataset.names] for split, dataset in loaded.items()
    }


def test_a_table_of_absolute_paths_is_split_alike_wherever_its_images_lie(tmp_path):
    places, tables = [tmp_path / "here" / "photos", tmp_path / "there" / "deep" / "er"], tmp_path / "tables"
    tables.mkdir()
    names = [f"{number % 3}/{number}.png" for number in range(60)]
    for place in places:
        for number, name in enumerate(names):
            picture(place / name, size=(2, 2), seed=number)
    relative = cut(write_rows(places[0] / "relative.csv", names), places[0])
    assert min(map(len, relative.values())) >= 2
    for place in places:
        absolute = [place / name for name in names]
        for folder in (place, tables):  # a table beside its images, and one elsewhere
            table = write_rows(folder / "absolute.csv", absolute)
            assert cut(table, place) == relative
            everything = load_dataset(table, "all")
            said = f"paths: absolute; what follows {place}/ decides on an image's split"
            assert (said in everything.description) == (folder != place)
            assert everything.names[0] == str(absolute[0])
            for streams in (False, True):  # what was loaded is cut alike when it is given as data
                loaded = load_dataset(table, "all", memory_limit_gb=0 if streams else 4)
                assert cut(loaded, place) == relative


def test_a_row_of_a_table_may_be_relative_beside_absolute_ones(tmp_path):
    for number in range(30):
        picture(tmp_path / "photos" / f"{number}.png", size=(2, 2), seed=number)
    names = [f"photos/{number}.png" for number in range(30)]
    mixed = [tmp_path / name if number % 2 else name for number, name in enumerate(names)]
    expected = cut(write_rows(tmp_path / "relative.csv", names), tmp_path)
    assert cut(write_rows(tmp_path / "mixed.csv", mixed), tmp_path) == expected


def test_image_files_keep_the_names_that_they_are_given_by(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        picture(tmp_path / "archive" / f"Teil {number}.png", seed=number)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "today.png").symlink_to(tmp_path / "archive" / "Teil 0.png")
    dataset = load_dataset(["b/today.png", "./a/today.png", tmp_path / "archive" / "Teil 1.png"], "all", image_size=12)
    assert dataset.names == [str(tmp_path / "archive" / "Teil 1.png"), "a/today.png", "b/today.png"]
    assert torch.equal(dataset.images[1], dataset.images[2])  # two names of one file are two images
    assert not any(line.startswith("files: ") for line in dataset.description)
    spellings = ["a/today.png", "a/../a/today.png", str(tmp_path / "a" / "today.png")]
    twice = load_dataset([*spellings, "b/today.png"], "all")  # these are one image
    assert twice.names == ["a/today.png", "b/today.png"]
    assert twice.description[-1] == "files: 2 given more than once"
    assert load_dataset("a/today.png", "all").names == ["a/today.png"]


def test_image_files_are_split_alike_wherever_they_lie(tmp_path, monkeypatch):
    for number in range(40):
        picture(tmp_path / "photos" / f"{number}.png", size=(2, 2), seed=number)
    monkeypatch.chdir(tmp_path)
    files = [f"photos/{number}.png" for number in range(40)]
    found = [
        {Path(name).name for name in load_dataset(given, "val", val_fraction=0.2).names}
        for given in (files, [tmp_path / file for file in files])
    ]
    monkeypatch.chdir(tmp_path / "photos")
    found.append({*load_dataset([Path(file).name for file in files], "val", val_fraction=0.2).names})
    found.append({*load_dataset(".", "val", val_fraction=0.2).names})
    assert 2 < len(found[0]) < 20 and all(each == found[0] for each in found)


def test_masks_are_found_by_what_follows_the_folder_of_the_images(tmp_path):
    for number in range(4):
        picture(tmp_path / "photos" / str(number % 2) / f"{number}.png", seed=number)
        picture(tmp_path / "masks" / str(number % 2) / f"{number}.png", mode="L", seed=number)
    (tmp_path / "tables").mkdir()
    expected = load_dataset(tmp_path / "masks", "all", channels=1, image_size=12).images
    files = sorted(tmp_path.glob("photos/*/*.png"))
    for data in (tmp_path / "photos", files, write_rows(tmp_path / "tables" / "a.csv", files)):
        masks = read_masks(tmp_path / "masks", load_dataset(data, "all", image_size=12))
        assert torch.equal(masks[:, None], expected)


def test_a_table_is_read_with_the_slashes_of_windows_and_in_either_normal_form(tmp_path):
    composed, decomposed = normalize("NFC", "Größe"), normalize("NFD", "Größe")
    for number, name in enumerate([f"c/{composed} 0", f"c/{decomposed} 1", "c/d/2", "c/3"]):
        picture(tmp_path / f"{name}.png", seed=number)
    given = [f"c\\{decomposed} 0.png", f"c/{composed} 1.png", ".\\c\\d\\2.png", "c/3.png"]
    dataset = load_dataset(write_rows(tmp_path / "table.csv", given), "all", image_size=12)
    folder = load_dataset(tmp_path / "c", "all", image_size=12)
    assert sorted(dataset.names) == [f"c/{name}" for name in folder.names]
    said = f"paths: 3 are read with other slashes or in another Unicode normal form (c/{composed} 0.png)"
    assert said in dataset.description
    with pytest.raises(InputError, match=r"line 2: image .*c\\4\.png does not exist"):
        load_dataset(write_rows(tmp_path / "table.csv", ["c\\4.png"]), "all")


def test_on_windows_names_of_images_have_the_slashes_of_everywhere(monkeypatch):
    """What decides on an image's split, and is in tables of results, is one name on all systems."""
    paths = ["C:/photos/cat/1.png", "C:/photos/dog/2.png"]
    with monkeypatch.context() as windows:
        windows.setattr(os, "path", ntpath)
        windows.setattr(os, "sep", "\\")
        found = common_folder(paths), find_prefixes(PureWindowsPath("C:\\photos"), paths), normal_path("./cat/1.png")
    assert found == ("C:/photos/", ["C:/photos/"], "cat/1.png")


@pytest.mark.parametrize("limit", [0, 4])
def test_an_image_of_another_number_of_channels_is_skipped_as_a_damaged_one(tmp_path, limit):
    for number in range(6):
        np.save(tmp_path / f"{number}.npy", pixels(16, 16, 12 if number == 3 else 13))
    options = {"channels": 13, "image_size": 4, "memory_limit_gb": limit}
    asked = r"3\.npy has 12 channels, 13 are wanted: give --in-channels 12 when pretraining, remove it, or give --skip"
    with pytest.raises(InputError, match=asked):
        load_dataset(tmp_path, "all", **options)[:]
    picture(tmp_path / "preview.png")
    dataset = load_dataset(tmp_path, "all", skip_unreadable=True, **options)
    assert dataset[:][0].shape[1:] == (13, 4, 4) and dataset.skipped == ["3.npy", "preview.png"]
    if limit:
        assert dataset.names == [f"{number}.npy" for number in (0, 1, 2, 4, 5)]
        with pytest.raises(InputError, match=r"has no readable image: .*0\.npy has 13 channels, 7 are wanted: give"):
            load_dataset(tmp_path, "all", skip_unreadable=True, **options | {"channels": 7})


def test_rows_without_any_of_several_labels_are_counted(tmp_path):
    for number in range(4):
        picture(tmp_path / f"{number}.png", seed=number)
    (tmp_path / "a.csv").write_text("path,label\n0.png,cat;dog\n1.png,\n2.png,cat\n3.png,\n")
    said = load_splits(tmp_path / "a.csv", ["all"], several=True)["all"].description[0]
    assert said.endswith("4 images in 2 classes, several an image (2 of them have none)")


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
    assert "left out: class folders without images: hall 2, hall 3" in dataset.description


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
    table = tinymae.embed(data, weights=tiny_mae(), formats=(), output_dir=tmp_path / "embed")
    assert table.results["images"] == len(dataset)


def test_two_images_cannot_have_one_mask(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "photos" / "1.png", seed=1)
    picture(tmp_path / "disk" / "1.png", seed=2)
    picture(tmp_path / "masks" / "1.png", mode="L")
    dataset = load_dataset(["photos/1.png", str(tmp_path / "disk" / "1.png")], "all", image_size=8)
    with pytest.raises(InputError, match=r"mask .*1\.png would be that of several images"):
        read_masks(tmp_path / "masks", dataset)


def test_images_of_test_stay_there_when_they_are_labelled(tmp_path):
    for number in range(12):
        picture(tmp_path / "photos" / ("train", "val", "test")[number % 3] / f"{number}.png", seed=number)
    model = tiny_mae(in_channels=3)
    common = {"weights": model, "to_label": 9, "formats": (), "mixed_precision": "no"}
    tinymae.embed(tmp_path / "photos", **common, split=("val", "test"), output_dir=tmp_path / "others")
    lines = (tmp_path / "others" / "to_label.csv").read_text().splitlines()
    assert lines[0] == "path,label,split" and len(lines) == 9
    assert all(path.split("/")[0] == split for path, _, split in (line.split(",") for line in lines[1:]))
    tinymae.embed(tmp_path / "photos", **common, output_dir=tmp_path / "embed")
    lines = (tmp_path / "embed" / "to_label.csv").read_text().splitlines()
    assert lines[0] == "path,label" and len(lines) == 5 and all(line.startswith("train/") for line in lines[1:])
