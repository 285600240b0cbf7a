"""Folders of images: their classes, splits and names."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import as_set, every_split, picture, pixels
from PIL import Image
from running import one_line

from tinymae import InputError, load_dataset
from tinymae.data.images import read_image


def test_class_folders_give_labels_and_disjoint_splits(classes_folder):
    splits = {split: load_dataset(classes_folder, split, image_size=12) for split in ("train", "val", "test")}
    assert all(len(split) >= 1 for split in splits.values()) and len(splits["train"]) > 20
    assert splits["train"].classes == ["cat", "dog"]
    everything = [as_set(split.images) for split in splits.values()]
    assert len(set.union(*everything)) == 30
    first = Image.open(classes_folder / "cat" / "01.png")
    found = [label for split in splits.values() for image, label in zip(split.images, split.labels, strict=True)
             if np.array_equal(image.permute(1, 2, 0).numpy(), np.array(first))]  # fmt: skip
    assert found == [0]


def test_split_folders_have_many_spellings(tmp_path):
    for number in range(12):
        picture(tmp_path / ("Training" if number < 6 else "Dev") / "x" / f"{number}.png", seed=number)
        picture(tmp_path / "TEST" / "x" / f"{number}.png", seed=100 + number)
    splits = every_split(tmp_path, image_size=12)
    assert [len(dataset) for dataset in splits.values()] == [6, 6, 12] and splits["train"].classes == ["x"]
    picture(tmp_path / "val" / "x" / "0.png")
    with pytest.raises(InputError, match="has Dev and val for the same split: keep one"):
        load_dataset(tmp_path)


def test_every_split_numbers_the_classes_of_train(tmp_path):
    for name in "abc":
        for number in range(6):
            picture(tmp_path / "train" / name / f"{number}.png", seed=number)
            if name != "a":
                picture(tmp_path / "test" / name / f"{number}.png", seed=number)
    test = load_dataset(tmp_path, "test", image_size=8)
    assert test.classes == ["a", "b", "c"] and test.labels.tolist() == [1] * 6 + [2] * 6


def test_splits_without_train_are_no_classes(tmp_path):
    for part in ("val", "test"):
        for number in range(4):
            picture(tmp_path / part / "a" / f"{number}.png", seed=number)
    test = load_dataset(tmp_path, "test", image_size=8)
    assert test.classes == ["a"] and len(test) == 4
    with pytest.raises(InputError, match="has no images for train, only 4 val, 4 test"):
        load_dataset(tmp_path, "train", image_size=8)
    for number in range(4):  # beside another folder they are classes
        picture(tmp_path / "exam" / f"{number}.png", seed=number)
    assert load_dataset(tmp_path, "train", image_size=8).classes == ["exam", "test", "val"]


def test_plain_images_have_no_labels(tmp_path):
    for number in range(10):
        picture(tmp_path / f"{number}.png", seed=number)
    train, val = (load_dataset(tmp_path, split, image_size=(6, 8)) for split in ("train", "val"))
    assert train.labels is None and train.image_shape == (3, 6, 8) and len(train) + len(val) == 10
    with pytest.raises(InputError, match="no images for test, only 9 train, 1 val: give another split, or a larger"):
        load_dataset(tmp_path, "test")
    assert len(load_dataset(tmp_path, "test", test_fraction=0.5)) > 1


def test_several_folders_are_one_set(tmp_path):
    for number in range(6):
        picture(tmp_path / "one" / f"{number}.png", seed=number)
        picture(tmp_path / "two" / "sub" / f"{number}.png", seed=10 + number)
    dataset = load_dataset([tmp_path / "one", tmp_path / "two"], "all", image_size=12)
    assert len(as_set(dataset.images)) == 12 and dataset.names[-1] == "two/sub/5.png" and dataset.labels is None


@pytest.mark.parametrize("others", [["cats"], ["."], ["cats", "dogs", "."]])
def test_an_image_that_is_in_several_folders_is_taken_once(tmp_path, others):
    for number in range(4):
        for folder in ("cats", "dogs"):
            picture(tmp_path / folder / f"{number}.png")
    dataset = load_dataset([tmp_path, *(tmp_path / other for other in others)], "all", image_size=8)
    assert sorted(dataset.names) == [f"{folder}/{number}.png" for folder in ("cats", "dogs") for number in range(4)]
    doubled = sum({"cats": 4, "dogs": 4, ".": 8}[other] for other in others)
    assert f"folders: {doubled} images are in several of them, and are taken once" in dataset.description


def test_a_pattern_is_all_that_it_matches_as_from_a_shell(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(["photos/b/1.png", "photos/a/1.png", "photos/a/2.png", "other/1.png", "cat*/1.png"]):
        picture(tmp_path / name, seed=number)
    for pattern, same in [
        ("photos/*/", ["photos/a/", "photos/b/"]),
        ("photos/*/1.png", ["photos/a/1.png", "photos/b/1.png"]),
        ("photos/**/2.png", "photos/a/2.png"),
        (["photos/*", "other"], ["photos/a", "photos/b", "other"]),
        (Path("oth*"), "other"),
    ]:
        assert load_dataset(pattern, "all").names == load_dataset(same, "all").names
    assert load_dataset("cat*", "all").names == ["1.png"]  # which is a folder's own name
    with pytest.raises(InputError, match=r"data photos/\*\.jpg matches no folder and no file"):
        load_dataset(["photos/*.jpg", "other"])


def test_single_image_files_are_data(tmp_path):
    for number, name in enumerate(["a/1.png", "b/c/2.png", "3.npy"]):
        picture(tmp_path / f"{name}.png", seed=number)
        (tmp_path / f"{name}.png").rename(tmp_path / name)
    np.save(tmp_path / "3.npy", pixels(12, 12, 3))
    one = load_dataset(tmp_path / "a" / "1.png", "all", image_size=12)
    pixels_of_it = read_image(tmp_path / "a" / "1.png", (3, 12, 12), depth="uint8")
    assert one.names == [str(tmp_path / "a" / "1.png")] and torch.equal(one.images[0], pixels_of_it)
    files = [tmp_path / name for name in ("b/c/2.png", "a/1.png", "3.npy")]
    three = load_dataset(files, "all", image_size=12)
    assert three.labels is None and three.names == sorted(map(str, files))
    assert torch.equal(three.images[1], one.images[0])
    with pytest.raises(InputError, match=r"data .*4\.png does not exist"):
        load_dataset([*files, tmp_path / "4.png"])
    with pytest.raises(InputError, match=r"data .*1\.png is no folder, as others are: give folders, or image files"):
        load_dataset([tmp_path / "b", files[1]])
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(InputError, match=r"data .*notes\.txt is of no known kind: give a folder, image files, a table"):
        load_dataset(tmp_path / "notes.txt")


def test_hidden_files_are_passed_over_and_others_listed(tmp_path):
    for name in ("a.jpeg", "b.GIF", "c.jfif", "deep/er/d.webp"):
        picture(tmp_path / "x" / f"{name}.png")
        os.rename(tmp_path / "x" / f"{name}.png", tmp_path / "x" / name)
    picture(tmp_path / "x" / ".ipynb_checkpoints" / "hidden.png")
    picture(tmp_path / "x" / "._a.png")
    for name in ("a-notes.txt", "scan1.dcm", "scan2.DCM"):
        (tmp_path / "x" / name).write_text("not an image")
    (tmp_path / "x" / "folder.png").mkdir()
    outside = tmp_path.parent / f"{tmp_path.name}_outside"
    picture(outside / "linked.png")
    (tmp_path / "x" / "link").symlink_to(outside)
    (tmp_path / "x" / "loop").symlink_to(tmp_path)
    dataset = load_dataset(tmp_path, "all", image_size=8)
    assert dataset.names == [f"x/{name}" for name in ("a.jpeg", "b.GIF", "c.jfif", "deep/er/d.webp", "link/linked.png")]
    assert dataset.description[0].endswith("5 images in 1 classes; 3 other files left alone (2 .dcm, 1 .txt)")
    assert "12 x 12 pixels, 3 channels of uint8, used at 8 x 8" in dataset.description[2]


def test_a_name_that_is_not_utf8_is_refused_of_an_image_and_shown_of_another_file(tmp_path):
    picture(tmp_path / "1.png")
    other, image = (tmp_path / os.fsdecode(b"caf\xe9" + suffix) for suffix in (b".t\xe9xt", b".png"))
    other.write_text("not an image")
    assert load_dataset(tmp_path, "all").description[0].endswith(r"(1 .t\udce9xt)")
    picture(image)
    with pytest.raises(InputError, match=r"image 'caf\\udce9\.png' in .* has a name that is not UTF-8: rename it"):
        load_dataset(tmp_path)


def test_folders_that_cannot_be_used_are_named(tmp_path, classes_folder):
    with one_line(r"data cifar11 does not exist \(did you mean cifar10\?\): give a folder, image files"):
        load_dataset("cifar11")
    for given in ("photo", "photo/", ["photo", str(classes_folder)]):  # in one line, which lists no named sets
        (tmp_path / "photos").mkdir(exist_ok=True)
        given = [str(tmp_path / given[0]), given[1]] if isinstance(given, list) else f"{tmp_path}/{given}"
        with pytest.raises(InputError, match=r"photo/? does not exist \(did you mean .*/photos\?\): (?!.*kmnist)"):
            load_dataset(given)
    (tmp_path / "photos.zip").touch()
    with pytest.raises(InputError, match=r"photos\.zip is an archive: unpack it, and give the folder"):
        load_dataset(tmp_path / "photos.zip")
    with pytest.raises(InputError, match="split 'dev'"):
        load_dataset("digits", "dev")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty holds no images"):
        load_dataset(tmp_path / "empty")
    (classes_folder / "bird").mkdir()
    picture(tmp_path / "one" / "1.png")
    with pytest.raises(InputError, match="too few"):
        load_dataset(tmp_path / "one")
    (classes_folder / "bird" / "broken.png").write_text("no picture")
    with one_line(r"broken\.png cannot be read"):
        load_dataset(classes_folder, "train")
        load_dataset(classes_folder, "val")
        load_dataset(classes_folder, "test")
