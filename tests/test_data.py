"""Data sets: what they hold, how they are indexed, and what is said of them."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from pictures import as_set, describe, picture, pixels

from tinymae import InputError, load_dataset
from tinymae.commands.settings import RunSettings
from tinymae.data.batches import pick
from tinymae.data.datasets import ImageDataset, StreamedDataset, channel_statistics
from tinymae.data.load import load_splits


def test_digits_are_split_once_and_for_all():
    splits = {split: load_dataset("digits", split) for split in ("train", "val", "test")}
    assert [len(split) for split in splits.values()] == [1300, 137, 360]
    assert splits["train"].images.shape == (1300, 1, 8, 8) and splits["train"].images.dtype == torch.uint8
    assert int(splits["train"].images.max()) == 255
    again = load_dataset("digits", "test")
    assert torch.equal(splits["test"].images, again.images) and torch.equal(splits["test"].labels, again.labels)
    train, test = as_set(splits["train"].images), as_set(splits["test"].images)
    assert not train & test


def test_cifar10_is_48000_2000_10000_and_test_is_official(cifar10_dir):
    from torchvision.datasets import CIFAR10

    splits = {split: load_dataset("cifar10", split, data_dir=cifar10_dir) for split in ("train", "val", "test")}
    assert [len(split) for split in splits.values()] == [48_000, 2_000, 10_000]
    official = CIFAR10(cifar10_dir, train=False)
    assert np.array_equal(splits["test"].images.permute(0, 2, 3, 1).numpy(), official.data)
    assert splits["test"].labels.tolist() == official.targets and splits["test"].classes == official.classes
    both = CIFAR10(cifar10_dir, train=True).data.transpose(0, 3, 1, 2)
    assert as_set(splits["train"].images) | as_set(splits["val"].images) == {i.tobytes() for i in both}


def test_mnist_is_grey_28(mnist_dir):
    dataset = load_dataset("mnist", "test", data_dir=mnist_dir)
    assert dataset.images.shape == (10_000, 1, 28, 28) and len(dataset.classes) == 10


def test_named_data_are_resized_on_request():
    assert load_dataset("digits", "val", image_size=(16, 12)).images.shape == (137, 1, 16, 12)


def test_pick_is_always_the_same():
    dataset = load_dataset("digits")
    assert torch.equal(pick(dataset, 10).images, pick(dataset, 10).images) and len(pick(dataset, 10)) == 10
    assert pick(dataset, 5000) is dataset


# ---- data sets in other hands


INDICES: list[Any] = [
    slice(None, 5), slice(7, 2, -2), slice(3, 1), [4, -1], [], np.array([3, 250], np.uint8), np.arange(1300) < 9
]  # fmt: skip


@pytest.mark.parametrize("limit", [4, 0], ids=["in memory", "streamed"])
def test_a_data_set_is_indexed_as_an_array_is(limit):
    dataset, whole = (load_dataset("digits", image_size=16, memory_limit_gb=given) for given in (limit, 4))
    assert isinstance(dataset, ImageDataset if limit else StreamedDataset)  # named sets obey the limit, too
    for index in INDICES:
        rows = np.arange(1300)[np.asarray(index, int) if isinstance(index, list) else index].copy()
        images, labels = dataset[index]
        assert torch.equal(images, whole.images[rows]) and torch.equal(labels, whole.labels[rows])
    for place in (3, -2, np.int64(5), torch.tensor(6)):
        image, label = dataset[place]
        assert torch.equal(image, whole.images[place]) and label == whole.labels[place]
    assert len(list(iter(dataset.subset(torch.arange(7))))) == 7
    with pytest.raises(IndexError):
        dataset[1300]


def test_a_subset_is_of_rows_or_of_a_mask(classes_folder):
    for dataset in (load_dataset("digits"), load_dataset("digits", memory_limit_gb=0)):
        mask = torch.zeros(len(dataset), dtype=torch.bool)
        mask[[2, 7]] = True
        for indices in (mask, [2, 7], torch.tensor([2, 7])):
            some = dataset.subset(indices)
            assert list(some.names) == [dataset.names[2], dataset.names[7]]
            assert torch.equal(some[:][0], dataset[mask][0])
            assert torch.equal(some[:][0], dataset[[2, 7]][0]) and torch.equal(some.labels, dataset.labels[[2, 7]])


@pytest.mark.parametrize("limit", [4, 0], ids=["in memory", "streamed"])
def test_no_rows_are_a_batch_of_none(classes_folder, limit):
    dataset = load_dataset(classes_folder, "all", image_size=8, memory_limit_gb=limit)
    images, labels = dataset[[]]
    assert images.shape == (0, 3, 8, 8) and images.dtype == torch.uint8 and labels.shape == (0,)


@pytest.mark.parametrize("data", ["digits", pixels(4, 8, 8)], ids=["by name", "an array"])
@pytest.mark.parametrize("size", [0, -4, 8.0, True, "8", (8,), (8, 0), (8, 8, 8)])
def test_a_size_is_one_number_of_pixels_or_two(data, size):
    with pytest.raises(InputError, match=rf"^image_size {re.escape(repr(size))}: give a whole number of pixels from 1"):
        load_dataset(data, "all", image_size=size)


def test_a_mask_has_as_many_values_as_there_are_images():
    for dataset in (load_dataset("digits"), load_dataset("digits", memory_limit_gb=0)):
        with pytest.raises(IndexError, match="a mask of 3 images for 1300"):
            dataset[torch.ones(3, dtype=torch.bool)]


def test_torchs_loader_takes_a_data_set_with_labels_or_without():
    dataset = load_dataset("digits")
    for each, expected in ((dataset, dataset.labels), (dataset.without_labels(), torch.full((1300,), -1))):
        batches = [*torch.utils.data.DataLoader(each, batch_size=500)]
        assert torch.equal(torch.cat([images for images, _ in batches]), dataset.images)
        assert torch.equal(torch.cat([labels for _, labels in batches]), expected)


@pytest.mark.parametrize("limit", [4, 0], ids=["in memory", "streamed"])
@pytest.mark.parametrize("labelled", [True, False])
def test_a_data_set_is_data_again_with_its_size_and_classes(classes_folder, limit, labelled):
    given = load_dataset(classes_folder, "all", image_size=(12, 8), channels=1, memory_limit_gb=limit)
    given = given if labelled else given.without_labels()
    again = load_dataset(given, "all")
    assert type(again) is type(given) and torch.equal(again[:][0], given[:][0])
    assert again.classes == (["cat", "dog"] if labelled else [])
    assert torch.equal(again.labels, given.labels) if labelled else again.labels is None
    assert load_dataset(given, "all", image_size=4).image_shape == (1, 4, 4)


# ---- what is said of them


def test_statistics_are_numpys():
    images = torch.randint(0, 256, (50, 3, 7, 5), dtype=torch.uint8)
    mean, std = channel_statistics(images)
    pixels = images.numpy() / 255
    np.testing.assert_allclose(mean, pixels.mean(axis=(0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(std, pixels.std(axis=(0, 2, 3)), atol=1e-6)


def test_the_fingerprint_knows_every_pixel_and_label(classes_folder):
    images, labels = pixels(10, 8, 8), [0, 1] * 5
    train = load_dataset(images, labels=labels)
    before = train.fingerprint
    assert (
        before.startswith(f"{len(train)} images, ") and load_dataset(images.copy(), labels=labels).fingerprint == before
    )
    assert load_dataset(images, labels=labels[::-1]).fingerprint != before
    images[int(train.names[0]), 0, 0] ^= 1
    assert load_dataset(images, labels=labels).fingerprint != before
    for limit in (4.0, 0.0):
        before = load_dataset(classes_folder, image_size=12, memory_limit_gb=limit).fingerprint
        assert load_dataset(classes_folder, image_size=12, memory_limit_gb=limit).fingerprint == before
        for path in classes_folder.glob("*/*.png"):
            picture(path, size=(13, 12) if limit else (14, 12), seed=50)
        assert load_dataset(classes_folder, image_size=12, memory_limit_gb=limit).fingerprint != before


def test_a_data_set_is_one_line():
    streamed = load_dataset("digits", memory_limit_gb=0).without_labels()
    assert str(streamed) == "StreamedDataset digits: 1,300 images of 1 x 8 x 8 (uint8), no labels"


def test_a_data_set_of_ours_is_called_as_its_data_are():
    assert RunSettings(data=load_dataset("digits")).data_name == "digits"


def test_odd_classes_are_announced():
    images = pixels(40, 4, 4)
    assert "\nclasses: 1 of 4 without any image (0)" in describe(images, labels=np.arange(40) % 3 + 1)
    values = [f"{0.01 * n:.2f}" for n in range(40)]
    assert describe(images, labels=values).endswith("40 for 40 labelled images: are these labels classes, or numbers?")
    several = load_splits(images, ["all"], labels=np.eye(40, 3, dtype=int), several=True)["all"]
    assert several.description[-2:] == [
        "classes: 0 (1), 1 (1), 2 (1)", "classes: fewer than 5 images of 0, 1, 2: too few to be learned or judged well",
    ]  # fmt: skip
    assert describe(images, labels=np.arange(40) % 4).endswith("\nclasses: 0 (10), 1 (10), 2 (10), 3 (10)")


def test_images_of_each_class_are_counted_and_names_that_may_be_misspelled_are_told():
    labels = ["bee"] * 60 + ["worm"] * 3 + ["beetle"] * 40 + ["beetel"] * 5
    printed = describe(pixels(108, 4, 4), labels=labels)
    assert "\nclasses: bee (60), beetle (40), beetel (5), worm (3)\n" in printed
    assert "\nclasses: beetel and beetle are spelled nearly the same: are they one?\n" in printed
    assert printed.endswith("\nclasses: fewer than 5 images of worm: too few to be learned or judged well")
    many = describe(pixels(sum(range(5, 25)), 4, 4), labels=[f"cat{n}" for n in range(5, 25) for _ in range(n)])
    assert many.endswith("\nclasses: " + ", ".join(f"cat{n} ({n})" for n in range(24, 13, -1)) + ", ..., cat5 (5)")


def test_images_of_rare_classes_are_counted_in_each_split():
    labels = np.array(["common"] * 200 + ["rare"] * 36 + ["rarer"] * 7)
    images = pixels(len(labels), 4, 4)
    splits = load_splits(images, ["train", "val", "test"], labels=labels)
    of = {
        name: [int((split.labels == label).sum()) for split in splits.values()]
        for label, name in enumerate(splits["train"].classes)
    }
    shown = [f"{name} (train {of[name][0]}, val {of[name][1]}, test {of[name][2]})" for name in ("rarer", "rare")]
    assert splits["train"].description[-1] == "classes: fewer than 50 images of " + ", ".join(shown)
    assert "fewer than 50" not in describe(images, labels=labels)  # which are in no split


def test_what_is_odd_about_labels_is_said():
    labels = ["Ceratium", "Ceratium ", "CERATIUM", "NA", "Noctiluca"] * 12
    dataset = load_dataset(torch.zeros(60, 1, 4, 4, dtype=torch.uint8), "train", labels=labels)
    assert dataset.classes == ["CERATIUM", "Ceratium", "NA", "Noctiluca"]  # a space at the end is not seen
    assert "classes: CERATIUM and Ceratium differ in case alone: are they one?" in dataset.description
    assert "classes: NA is one of them: if it means that there is no label, leave it empty" in dataset.description
    few = load_dataset(torch.zeros(60, 1, 4, 4, dtype=torch.uint8), "train", labels=["a", "b"] * 9 + [""] * 42)
    split = load_dataset(torch.zeros(60, 1, 4, 4, dtype=torch.uint8), "val", labels=["a", "b"] * 9 + [""] * 42)
    assert f"val {len(split)} ({int((split.labels >= 0).sum())} labelled)" in few.description[1]
