from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from tinymae import InputError, load_dataset
from tinymae.commands.settings import LabelSettings
from tinymae.data import datasets
from tinymae.data.batches import count_steps, pick, split_batch, step_batches, step_indices
from tinymae.data.datasets import ImageDataset, StreamedDataset, channel_statistics
from tinymae.data.order import LISTED, ComputedOrder, epoch_order
from tinymae.data.splits import balanced, few_labels, hash_names, hash_rows, held_out, split_by_hash


def as_set(images) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def picture(path, *, size=(12, 12), mode="RGB", seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"RGB": 3, "L": 1, "RGBA": 4}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    Image.fromarray(pixels.squeeze(), mode).save(path)


@pytest.fixture
def classes_folder(tmp_path):
    for number in range(30):
        picture(tmp_path / "pets" / ("cat" if number % 2 else "dog") / f"{number:02}.png", seed=number)
    return tmp_path / "pets"


def test_digits_are_split_once_and_for_all():
    splits = {split: load_dataset("digits", split) for split in ("train", "val", "test")}
    assert [len(split) for split in splits.values()] == [1300, 137, 360]
    assert splits["train"].images.shape == (1300, 1, 8, 8) and splits["train"].images.dtype == torch.uint8
    assert int(splits["train"].images.max()) == 255
    again = load_dataset("digits", "test")
    assert torch.equal(splits["test"].images, again.images) and torch.equal(splits["test"].labels, again.labels)
    train, test = as_set(splits["train"].images), as_set(splits["test"].images)
    assert not train & test


def test_what_is_held_out_of_named_sets_stays_so():
    """Released scores are of these images, which a seed that is part of the protocol has drawn."""
    assert held_out(50_000, {"val": 2000}, "val")[:5].tolist() == [18, 72, 89, 101, 122]


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


def test_split_folders_are_the_splits(tmp_path):
    for number in range(20):
        picture(tmp_path / "train" / "a" / f"{number}.png", seed=number)
    for number in range(5):
        picture(tmp_path / "test" / "a" / f"{number}.png", seed=100 + number)
    train, val, test = (len(load_dataset(tmp_path, split, image_size=8)) for split in ("train", "val", "test"))
    assert train + val == 20 and val >= 1 and test == 5


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


def test_a_folder_too_large_for_memory_streams_the_same_pictures(classes_folder):
    whole = load_dataset(classes_folder, "train", image_size=12)
    streamed = load_dataset(classes_folder, "train", image_size=12, memory_limit_gb=0)
    assert isinstance(whole, ImageDataset) and isinstance(streamed, StreamedDataset)
    arguments = {"batch_size": 8, "parts": split_batch(8, 2), "seed": 3, "device": "cpu", "start_step": 1}
    batches = zip(step_batches(whole, **arguments), step_batches(streamed, **arguments, num_workers=2), strict=False)
    for _, (first, second) in zip(range(5), batches, strict=False):
        for one, other in zip(first, second, strict=True):
            assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (7, 5), (12, 12)])
@pytest.mark.parametrize("mode,channels", [("RGB", 3), ("L", 3), ("RGBA", 3), ("RGB", 1)])
def test_any_picture_becomes_the_asked_shape(tmp_path, size, mode, channels):
    for number in range(3):
        picture(tmp_path / f"{number}.png", size=size, mode=mode, seed=number)
    assert load_dataset(tmp_path, image_size=12, channels=channels).image_shape == (channels, 12, 12)


def test_folders_that_cannot_be_used_are_named(tmp_path, classes_folder):
    with pytest.raises(
        InputError, match=r"data cifar11 does not exist \(did you mean cifar10\?\): give a folder, image files"
    ):
        load_dataset("cifar11")
    with pytest.raises(InputError, match="split 'dev'"):
        load_dataset("digits", "dev")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty holds no images"):
        load_dataset(tmp_path / "empty")
    picture(tmp_path / "one" / "1.png")
    with pytest.raises(InputError, match="too few"):
        load_dataset(tmp_path / "one")
    (classes_folder / "bird").mkdir()
    (classes_folder / "bird" / "broken.png").write_text("no picture")
    with pytest.raises(InputError, match=r"broken\.png cannot be read") as error:
        load_dataset(classes_folder, "train")
        load_dataset(classes_folder, "val")
        load_dataset(classes_folder, "test")
    assert "\n" not in str(error.value)


# ---- pixels from Python


def pixels(*shape) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_an_array_is_cut_as_a_folder_is(kind):
    images, names = pixels(30, 3, 9, 8), np.array(["cat", "dog", "ant"] * 10)
    splits = {split: load_dataset(kind(images), split, labels=names) for split in ("train", "val", "test")}
    parts = split_by_hash(hash_rows(np.arange(30)), {"val": 0.1, "test": 0.1}, None)
    everything = [as_set(split.images) for split in splits.values()]
    assert set.union(*everything) == {image.tobytes() for image in images}
    for name, split in splits.items():
        assert split.classes == ["ant", "cat", "dog"] and split.image_shape == (3, 9, 8)
        part = parts[name]
        assert torch.equal(split.images, torch.from_numpy(images)[part])
        assert [split.classes[label] for label in split.labels] == names[part].tolist()
        assert split.names == [str(row) for row in part]


def test_an_array_may_have_its_channels_last_or_none_or_be_a_view():
    images = pixels(10, 6, 8, 3)
    last, first = (load_dataset(each) for each in (images, images.transpose(0, 3, 1, 2)))
    assert torch.equal(last.images, first.images) and last.image_shape == (3, 6, 8)
    assert load_dataset(images[..., 0]).image_shape == load_dataset(images[..., :1]).image_shape == (1, 6, 8)
    flipped = load_dataset(images[:, ::-1])  # which torch does not take as it is
    assert torch.equal(flipped.images, last.images.flip(2))
    assert load_dataset(images, image_size=(3, 4)).image_shape == (3, 3, 4)


@pytest.mark.parametrize(
    "labels", [[3, 0, 1] * 4, np.array([3, 0, 1] * 4, dtype=np.uint8), torch.tensor([3, 0, 1] * 4)]
)
def test_labels_that_are_numbers_keep_them(labels):
    dataset = load_dataset(pixels(12, 8, 8), "train", labels=labels)
    assert dataset.classes == ["0", "1", "2", "3"] and dataset.labels.dtype == torch.int64
    assert torch.equal(dataset.labels, torch.tensor([3, 0, 1] * 4)[[int(name) for name in dataset.names]])


@pytest.mark.parametrize(
    ("data", "labels", "message"),
    [
        (pixels(10, 8, 8) / 255, None, "data array is float64: give uint8 or uint16 pixels, or pixel_range LOW HIGH"),
        (torch.rand(10, 3, 8, 8), None, "data array is float32: give"),
        (np.array([["a"]]), None, "data is <U1: give"),
        (pixels(10, 8, 8).tolist(), None, "data is list: give a name, a path, a tensor, an array or a torch Dataset"),
        (pixels(10, 8), None, r"data has shape \(10, 8\): give images \(N, C, H, W\)"),
        (pixels(32, 32, 3), None, r"shape \(32, 32, 3\), which looks like one image .*: add an axis, images\[None\]"),
        (pixels(2, 2, 3, 8, 8), None, r"data has shape \(2, 2, 3, 8, 8\): give"),
        (pixels(0, 3, 8, 8), None, r"data has shape \(0, 3, 8, 8\): give"),
        (pixels(2, 3, 8, 8), [0, 0], "data array has 2 images, too few for train, val, test"),
        (pixels(3, 90, 80, 70), None, "neither side of it is 1 to 64 channels"),
        (pixels(10, 8, 8), [0] * 9, r"labels have shape \(9,\) for 10 images: give one label for each"),
        (pixels(10, 8, 8), np.full((10, 2), 2), r"labels have shape \(10, 2\) for 10 images: give one label for"),
        (pixels(10, 8, 8), [0.5] * 10, r"labels are float64: give numbers from 0 or names; -1 or"),
        (pixels(10, 8, 8), [-2] * 10, r"labels are int64: give numbers from 0 or names; -1 or"),
        ("digits", [0] * 1797, "labels go with a tensor or an array of images; data digits has its own"),
    ],
)
def test_arrays_that_cannot_be_used_are_refused(data, labels, message):
    with pytest.raises(InputError, match=message):
        load_dataset(data, labels=labels)


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


# ---- data sets in other hands


INDICES: list[Any] = [
    slice(None, 5), slice(7, 2, -2), slice(3, 1), [4, -1], [], np.array([3, 250], np.uint8), np.arange(1300) < 9
]  # fmt: skip


@pytest.mark.parametrize("limit", [4, 0], ids=["in memory", "streamed"])
def test_a_data_set_is_indexed_as_an_array_is(limit):
    dataset, whole = load_dataset("digits", memory_limit_gb=limit), load_dataset("digits")
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
    assert torch.equal(again.images, given[:][0]) and again.classes == (["cat", "dog"] if labelled else [])
    assert torch.equal(again.labels, given.labels) if labelled else again.labels is None
    assert load_dataset(given, "all", image_size=4).image_shape == (1, 4, 4)


@pytest.mark.parametrize("limit", [4, 0], ids=["in memory", "streamed"])
def test_images_that_are_data_again_stay_in_their_splits(classes_folder, tmp_path, limit):
    encoded = [(classes_folder / "dog" / f"{number:02}.png").read_bytes() for number in range(0, 30, 2)] * 4
    parquet.write_table(pa.table({"image": encoded}), tmp_path / "rows.parquet")
    for data in (classes_folder, pixels(60, 8, 8), tmp_path / "rows.parquet"):
        sizes = {"image_size": 8, "channels": 1, "val_fraction": 0.3, "test_fraction": 0.2}
        whole = load_dataset(data, "all", image_size=8, channels=1, memory_limit_gb=limit)
        for split in ("train", "val", "test"):
            expected = load_dataset(data, split, **sizes)
            again = load_dataset(whole, split, **sizes)
            assert again.names == expected.names and torch.equal(again.images, expected.images)


@pytest.mark.parametrize("limit", [4, 0], ids=["in memory", "streamed"])
@pytest.mark.parametrize("split", ["val", "test"])
def test_images_held_out_of_a_named_set_stay_held_out(split, limit):
    given = load_dataset("digits", split, memory_limit_gb=limit)
    assert load_dataset(given, split).names == given.names
    with pytest.raises(
        InputError, match=rf"digits has no images for train, only {len(given)} {split}: give other data"
    ):
        load_dataset(given, "train")


@pytest.fixture
def films(tmp_path):
    """Forty frames of each of ten films, two classes; a table of them as well."""
    lines = ["path,label,film"]
    for number, pixel in enumerate(pixels(400, 8, 8)):
        film, label = number % 10, "cat" if number % 3 else "dog"
        path = tmp_path / "films" / label / f"film{film}_frame{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixel).save(path)
        lines.append(f"films/{label}/{path.name},{label},{film}")
    (tmp_path / "films.csv").write_text("\n".join(lines))
    return tmp_path


def film_of(name: str) -> str:
    return name.split("film")[-1].split("_")[0]


@pytest.mark.parametrize("kind", ["folder", "column", "hugging face"])
def test_images_of_a_group_stay_in_one_split(films, kind):
    grouped = {"group_pattern": r"film(\d+)_"}
    data, channels = films / "films", {"channels": 1}
    if kind != "folder":
        grouped, data = {"group_column": "film"}, films / "films.csv"
    if kind == "hugging face":
        hub = pytest.importorskip("datasets")
        rows = [line.split(",") for line in data.read_text().splitlines()[1:]]
        names, labels, films_of = zip(*rows, strict=True)
        columns = {"image": [str(films / name) for name in names], "label": labels, "film": films_of}
        data = hub.Dataset.from_dict(columns).cast_column("image", hub.Image())
        found = {split: load_dataset(data, split, **grouped, **channels) for split in ("train", "val", "test")}
        films_in = {split: {films_of[int(name.split("/")[1])] for name in of.names} for split, of in found.items()}
    else:
        found = {split: load_dataset(data, split, **grouped, **channels) for split in ("train", "val", "test")}
        films_in = {split: set(map(film_of, dataset.names)) for split, dataset in found.items()}
    assert sum(map(len, films_in.values())) == 10 and set.union(*films_in.values()) == {*"0123456789"}
    assert sum(map(len, found.values())) == 400 and all(len(dataset) % 40 == 0 for dataset in found.values())
    assert "by a hash of each image's group, one of 10" in "\n".join(found["val"].description)
    plain = load_dataset(data, "val", **channels)
    assert len(plain) % 40  # by themselves the frames are torn apart


@given(
    labels=st.lists(st.tuples(st.integers(0, 8), st.integers(-1, 2)), min_size=12, max_size=40),
    fractions=st.sampled_from([{"val": 0.1}, {"val": 0.3, "test": 0.3}, {"val": 0.0, "test": 0.6}]),
)
def test_no_group_is_torn_and_no_class_is_lost_whatever_the_groups(labels, fractions):
    groups, classes = np.array(labels).T
    places = hash_names(map(str, groups))
    parts = split_by_hash(places, fractions, classes)
    assert sorted(np.concatenate([*parts.values()])) == [*range(len(groups))]
    assert len(set(groups)) == sum(len(set(groups[rows])) for rows in parts.values())
    if len(set(groups)) < len(groups):
        assert {*classes[parts["train"]], -1} == {*classes, -1}


@pytest.mark.parametrize("limit", [4, 0], ids=["in memory", "streamed"])
def test_data_again_keep_their_groups(films, limit):
    reading = {"group_column": "film", "channels": 1, "memory_limit_gb": limit}
    train = load_dataset(films / "films.csv", "train", **reading)
    parts = {split: load_dataset(train, split) for split in ("train", "val", "test")}
    films_in = [set(map(film_of, part.names)) for part in parts.values()]
    assert sum(map(len, films_in)) == len(set.union(*films_in)) == len(set(map(film_of, train.names)))
    some = train.subset([0, 5, 7])
    assert list(some.groups) == [film_of(name) for name in some.names]


def test_a_named_set_has_no_groups(mnist_dir):
    with pytest.raises(InputError, match="group_pattern '1': data mnist has splits of its own; leave it out"):
        load_dataset("mnist", data_dir=mnist_dir, group_pattern="1")


def test_groups_that_cannot_be_are_refused_and_those_that_are_torn_are_said(films):
    for wrong, says in [
        ({"group_pattern": "("}, r"group_pattern '\(' is no regular expression: .*"),
        ({"group_pattern": "reel"}, "group_pattern 'reel' is not found in cat/film.*, the name of an image of films"),
        ({"group_pattern": "film"}, "data films: 1 group of images cannot be cut into train, val and test: .*"),
        ({"group_column": "film"}, "group_column film is of tables, .*"),
    ]:
        with pytest.raises(InputError, match=f"^{says}$"):
            load_dataset(films / "films", **wrong)
    with pytest.raises(InputError, match="group_column reel is none of table .*films.csv's columns, path, label, film"):
        load_dataset(films / "films.csv", group_column="reel")
    with pytest.raises(InputError, match="group_column and group_pattern are two ways to say the same: give one"):
        load_dataset(films / "films.csv", group_column="film", group_pattern="film")
    table = (films / "films.csv").read_text().splitlines()
    split = [
        table[0] + ",split",
        *(f"{line},{'test' if number < 31 else 'train'}" for number, line in enumerate(table[1:])),
    ]
    (films / "own.csv").write_text("\n".join(split))
    description = load_dataset(films / "own.csv", group_column="film", channels=1).description
    assert "groups: 10 of 10 are in more than one split (0, 1, 2, ...)" in description


def test_a_subset_is_of_rows_or_of_a_mask(classes_folder):
    for dataset in (load_dataset("digits"), load_dataset("digits", memory_limit_gb=0)):
        mask = torch.zeros(len(dataset), dtype=torch.bool)
        mask[[2, 7]] = True
        for indices in (mask, [2, 7], torch.tensor([2, 7])):
            some = dataset.subset(indices)
            assert list(some.names) == [dataset.names[2], dataset.names[7]]
            assert torch.equal(some[:][0], dataset[mask][0])
            assert torch.equal(some[:][0], dataset[[2, 7]][0]) and torch.equal(some.labels, dataset.labels[[2, 7]])


def test_a_mask_has_as_many_values_as_there_are_images():
    for dataset in (load_dataset("digits"), load_dataset("digits", memory_limit_gb=0)):
        with pytest.raises(IndexError, match="a mask of 3 images for 1300"):
            dataset[torch.ones(3, dtype=torch.bool)]


def test_a_data_set_is_one_line():
    streamed = load_dataset("digits", memory_limit_gb=0).without_labels()
    assert str(streamed) == "StreamedDataset digits: 1,300 images of 1 x 8 x 8 (uint8), no labels"


# ---- batches


def test_statistics_are_numpys():
    images = torch.randint(0, 256, (50, 3, 7, 5), dtype=torch.uint8)
    mean, std = channel_statistics(images)
    pixels = images.numpy() / 255
    np.testing.assert_allclose(mean, pixels.mean(axis=(0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(std, pixels.std(axis=(0, 2, 3)), atol=1e-6)


def test_statistics_of_what_is_streamed_are_of_images_from_all_over_it(monkeypatch):
    monkeypatch.setattr(datasets, "STATISTICS_OF", 20)
    images = torch.arange(200, dtype=torch.uint8).view(200, 1, 1, 1).expand(200, 1, 2, 2)  # brighter and brighter
    whole, streamed = (load_dataset(images, "all", memory_limit_gb=limit).statistics for limit in (4, 0))
    assert streamed[0] == pytest.approx(whole[0], abs=0.02) and streamed[1] == pytest.approx(whole[1], abs=0.02)


def test_an_epoch_sees_every_image_once_and_epochs_differ():
    steps = step_indices(22, 4, seed=7)
    first, second = ([next(steps) for _ in range(5)] for _ in range(2))
    for epoch in (first, second):
        assert len(torch.cat(epoch).unique()) == 20
    assert not torch.equal(torch.cat(first), torch.cat(second))
    later = step_indices(22, 4, seed=7, first_epoch=1)  # of a later phase of a run
    assert all(torch.equal(step, next(later)) for step in second)


@pytest.mark.parametrize("start", [0, 3, 5, 12])
def test_starting_later_continues_the_same_order(start):
    whole, late = step_indices(22, 4, seed=7), step_indices(22, 4, seed=7, start_step=start)
    for _ in range(start):
        next(whole)
    assert all(torch.equal(next(whole), next(late)) for _ in range(8))


@pytest.mark.parametrize("count", [1, 2, 3, 10, 1000, 65537])
def test_a_computed_order_is_a_permutation(count):
    whole = ComputedOrder(count, 5)[0:count]
    assert whole.sort().values.tolist() == list(range(count))
    pieces = torch.cat([ComputedOrder(count, 5)[start : start + 9999] for start in range(0, count, 9999)])
    assert torch.equal(pieces, whole)


def test_a_computed_order_looks_random_and_follows_its_seed():
    first, second = (ComputedOrder(10**8, seed)[5000:25_000] for seed in (1, 2))
    assert len(first.unique()) == 20_000 and not torch.equal(first, second)
    counts = first.div(10**7, rounding_mode="floor").bincount(minlength=10)
    assert abs(counts - 2000).max() < 200  # ten equal parts: 2,000 +- 42 each
    steps = first.diff().sign().bool()
    assert 0.6 < (first.diff().sign().diff() != 0).double().mean() < 0.73  # two thirds turn in a random order
    assert steps.all()


def test_millions_of_images_need_no_list(monkeypatch):
    assert isinstance(epoch_order(LISTED + 1, 0), ComputedOrder)
    monkeypatch.setattr("tinymae.data.order.LISTED", 21)
    steps, late = step_indices(22, 4, seed=7), step_indices(22, 4, seed=7, start_step=3)
    taken = [next(steps) for _ in range(8)]
    assert len(torch.cat(taken[:5]).unique()) == 20
    assert all(torch.equal(next(late), other) for other in taken[3:])


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_parts_cut_the_batch_and_keep_mirrored_pairs_together(parts):
    positions = split_batch(16, parts)
    assert torch.cat(positions).sort().values.tolist() == list(range(16))
    for part in positions:
        assert (part + part.flip(0)).tolist() == [15] * len(part)


def test_batches_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="batch_size 10 is not a multiple of 2 x 4"):
        split_batch(10, 4)
    with pytest.raises(InputError, match="batch_size 2000 is not within 1 and the data set's 1300 images"):
        count_steps(load_dataset("digits"), 2000)


def test_few_labels_take_the_same_share_of_each_class():
    labels = torch.tensor([0] * 100 + [1] * 50 + [2] * 3)
    chosen = labels[few_labels(labels, 0.1, seed=1)]
    assert chosen.bincount().tolist() == [10, 5, 1]
    assert torch.equal(few_labels(labels, 0.1, 1), few_labels(labels, 0.1, 1))
    assert not torch.equal(few_labels(labels, 0.1, 1), few_labels(labels, 0.1, 2))
    assert len(few_labels(labels, 1.0, 1)) == len(labels)
    with pytest.raises(InputError, match="label_fraction 0"):
        few_labels(labels, 0, 1)


def test_a_command_chooses_labels_by_class_and_seed_and_those_of_validation_by_their_own_setting():
    splits = {name: load_dataset("digits", name) for name in ("train", "val")}
    one, other = (LabelSettings(label_fraction=0.1, seed=seed).choose_labels(splits) for seed in (1, 2))
    assert torch.equal(one["train"].labels.bincount(), (0.1 * splits["train"].labels.bincount()).round().long())
    assert one["train"].names != other["train"].names and one["val"] is splits["val"]
    assert LabelSettings(val_labels=20).choose_labels(splits)["val"].labels.bincount().tolist() == [2] * 10


def test_a_balanced_choice_takes_as_many_of_each_class_as_it_can():
    labels = torch.tensor([0] * 100 + [1] * 50 + [2] * 3)
    for count, expected in [(1, [0, 0, 1]), (9, [3, 3, 3]), (10, [3, 3, 4]), (23, [10, 10, 3]), (153, [100, 50, 3])]:
        chosen = balanced(labels, count, seed=1)
        assert len(chosen.unique()) == count
        assert labels[chosen].bincount(minlength=3).sort().values.tolist() == sorted(expected)
    assert torch.equal(balanced(labels, 9, 1), balanced(labels, 9, 1))
    assert not torch.equal(balanced(labels, 9, 1), balanced(labels, 9, 2))
    for count in (0, 154):
        with pytest.raises(InputError, match=f"val_labels {count} is not within 1 and the 153 validation images"):
            balanced(labels, count, 1)


def test_pick_is_always_the_same():
    dataset = load_dataset("digits")
    assert torch.equal(pick(dataset, 10).images, pick(dataset, 10).images) and len(pick(dataset, 10)) == 10
    assert pick(dataset, 5000) is dataset
