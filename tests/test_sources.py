"""Images as arrays, in Arrow and as torch Datasets: what is read, and what is refused by name."""

import itertools
import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch
from pictures import SPLITS, Items, as_set, describe, encode, every_split, picture, pixels, write_table
from PIL import Image
from pyarrow import parquet
from running import one_line, save_images

from tinymae import InputError, load_dataset
from tinymae.commands.fields import describe_value
from tinymae.data import load
from tinymae.data.batches import split_batch, step_batches
from tinymae.data.images import read_image
from tinymae.data.splits import hash_rows, split_by_hash

# ---- pixels from Python


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


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 16)])
def test_an_array_is_resized_and_cropped_as_files_of_its_rows_are(tmp_path, shape):
    values = pixels(5, *shape, 3)
    for number, image in enumerate(values):
        np.save(tmp_path / f"{number}.npy", image)
    files, array = (load_dataset(data, "all", image_size=8) for data in (tmp_path, values))
    assert torch.equal(files.images, array.images)
    for dataset in (files, array):
        assert (", resized and centre-cropped, used at 8 x 8" in dataset.description[2]) == (shape != (16, 16))


@pytest.mark.parametrize(
    "labels", [[3, 0, 1] * 4, np.array([3, 0, 1] * 4, dtype=np.uint8), torch.tensor([3, 0, 1] * 4)]
)
def test_labels_that_are_numbers_keep_them(labels):
    dataset = load_dataset(pixels(12, 8, 8), "train", labels=labels)
    assert dataset.classes == ["0", "1", "2", "3"] and dataset.labels.dtype == torch.int64
    assert torch.equal(dataset.labels, torch.tensor([3, 0, 1] * 4)[[int(name) for name in dataset.names]])


def test_labels_may_be_truth_values_of_one_class_or_of_several():
    both = np.array([[True, False, True], [False, False, True]] * 6)
    one = load_dataset(pixels(12, 8, 8), "all", labels=both[:, 0])
    assert one.labels.tolist() == [1, 0] * 6 and one.classes == ["0", "1"]
    several = load_dataset(pixels(12, 8, 8), "all", labels=both)
    assert several.labels.tolist() == both.astype(int).tolist() and several.classes == ["0", "1", "2"]
    table = pytest.importorskip("pandas").DataFrame(both, columns=["cat", "dog", "fox"])
    named = load_dataset(pixels(12, 8, 8), "all", labels=table)
    assert torch.equal(named.labels, several.labels) and named.classes == ["cat", "dog", "fox"]


@pytest.mark.parametrize(
    ("data", "labels", "message"),
    [
        (pixels(10, 8, 8) / 255, None, "data array is float64: give uint8 or uint16 pixels, or pixel_range LOW HIGH"),
        (torch.rand(10, 3, 8, 8), None, "data array is float32: give"),
        (np.array([["a"]]), None, "data array is <U1: give pixels"),
        (torch.zeros(10, 8, 8, dtype=torch.complex64), None, "data array is complex64: give pixels"),
        (
            torch.zeros(10, 8, 8).to_sparse(),
            None,
            r"data array is torch.float32, torch.sparse_coo: give a dense tensor",
        ),
        (
            {"images": pixels(10, 8, 8)},
            None,
            "data is dict: give a name, a path, a tensor, an array or a torch Dataset",
        ),
        (pixels(2, 8, 8), [0, 20240131], "labels go up to 20240131 for 2 images: number the classes from 0, or give"),
        (pixels(10, 8, 8).tolist(), None, "data is list: give a name, .* an array .numpy.stack makes one of a list"),
        (pixels(10, 8), None, r"data has shape \(10, 8\): give images \(N, C, H, W\)"),
        (pixels(32, 32, 3), None, r"shape \(32, 32, 3\), which looks like one image .*: add an axis, images\[None\]"),
        (np.array(3), None, r"data has shape \(\): give images"),
        (pixels(2, 2, 3, 8, 8), None, r"data has shape \(2, 2, 3, 8, 8\): give"),
        (pixels(0, 3, 8, 8), None, r"data has shape \(0, 3, 8, 8\): give"),
        (pixels(2, 3, 8, 8), [0, 0], "data array has 2 images, too few for train, val, test"),
        (pixels(3, 90, 80, 70), None, "neither side of it is 1 to 64 channels"),
        (pixels(10, 8, 8), [0] * 9, r"labels have shape \(9,\) for 10 images: give one label for each"),
        (pixels(10, 8, 8), np.full((10, 2), 2), r"labels have shape \(10, 2\) for 10 images: give one label for"),
        (pixels(10, 8, 8), [0.5] * 10, r"labels are float64: give numbers from 0 or names; -1 or"),
        (pixels(10, 8, 8), [-2] * 10, r"labels are int64: give numbers from 0 or names; -1 or"),
        (pixels(10, 8, 8), [[0], [1, 2]] * 5, "labels have rows of unequal lengths: give rows of 0 and 1"),
        ("digits", [0] * 1797, "labels go with a tensor or an array of images, not with data digits"),
        ([pixels(8, 8)] * 2, [0, 1], "labels go with a tensor or an array of images, not with data list"),
    ],
)
def test_arrays_that_cannot_be_used_are_refused(data, labels, message):
    with pytest.raises(InputError, match=message):
        load_dataset(data, labels=labels)


def test_tensors_of_any_type_of_pixels_will_do():
    numbers = torch.arange(10.0)[:, None, None, None].expand(10, 1, 4, 4) / 16
    expected = load_dataset(numbers, "all", pixel_range=(0, 1)).images
    for tensor in (numbers.bfloat16(), numbers.half(), numbers.clone().requires_grad_()):
        assert torch.equal(load_dataset(tensor, "all", pixel_range=(0, 1)).images, expected)


# ---- files of arrays


def test_arrays_in_files(tmp_path):
    images, labels = pixels(40, 6, 5, 3), np.arange(40) % 4
    np.save(tmp_path / "plain.npy", images)
    np.savez(tmp_path / "both.npz", images=images, labels=labels)
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "both.h5", "w") as file:
        file["images"], file["labels"] = images, labels
    plain = load_dataset(tmp_path / "plain.npy", "all")
    streamed = load_dataset(tmp_path / "plain.npy", "all", memory_limit_gb=0)
    assert images.tobytes()[:500] not in pickle.dumps(streamed)  # as worker processes get it
    assert torch.equal(streamed[:][0], plain.images)
    assert plain.labels is None and torch.equal(plain.images, torch.from_numpy(images).permute(0, 3, 1, 2))
    for name in ("both.npz", "both.h5"):
        dataset = load_dataset(tmp_path / name, "all")
        assert torch.equal(dataset.images, plain.images) and dataset.labels.tolist() == labels.tolist()
        streamed = load_dataset(tmp_path / name, "train", memory_limit_gb=0)
        chosen = torch.tensor([7, 3, 3])
        assert torch.equal(streamed[chosen][0], load_dataset(tmp_path / name, "train")[chosen][0])


def test_hidden_labels_of_a_split_leave_the_others(tmp_path, hub):
    """-1 of all test images, in a file of arrays, a table and an Arrow table."""
    images, labels = pixels(30, 6, 6, 3), np.arange(30) % 3
    labels[20:] = -1
    parts = {"train": slice(12), "val": slice(12, 20), "test": slice(20, 30)}
    arrays = {f"{split}_images": images[rows] for split, rows in parts.items()}
    np.savez(tmp_path / "a.npz", **arrays, **{f"{split}_labels": labels[rows] for split, rows in parts.items()})
    splits = [split for split, rows in parts.items() for _ in range(30)[rows]]
    table = write_table(
        tmp_path, [{"path": f"{n}.png", "label": int(labels[n]), "split": splits[n]} for n in range(30)]
    )
    features = hub.Features({"image": hub.Image(), "label": hub.ClassLabel(names=list("xyz"))})
    column = [{"bytes": encode(image), "path": None} for image in images]
    hub.DatasetDict({
        split: hub.Dataset.from_dict({"image": column[rows], "label": labels[rows]}, features=features)
        for split, rows in parts.items()
    }).save_to_disk(tmp_path / "saved")  # fmt: skip
    for data, limit in itertools.product([tmp_path / "a.npz", table, tmp_path / "saved"], [0, 4]):
        loaded = every_split(data, image_size=6, memory_limit_gb=limit)
        assert len(loaded["train"].classes) == 3 and loaded["train"].labels.tolist() == labels[:12].tolist()
        assert loaded["val"].labels.tolist() == labels[12:20].tolist()
        assert len(loaded["test"]) == 10 and loaded["test"].labels is None
        with pytest.raises(InputError, match="has no labels in test"):
            load.load_splits(data, SPLITS, labelled=True, memory_limit_gb=limit)


def test_names_are_labels_as_pandas_and_hdf5_have_them(tmp_path):
    images, names = pixels(12, 4, 4), ["dog", "cat", ""] * 4
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["train_images"], file["train_labels"] = images[:9], names[:9]
        file["test_images"], file["test_labels"] = images[9:], names[9:]
    assert load_dataset(tmp_path / "a.h5", "test").labels.tolist() == [1, 0, -1]
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["images"], file["labels"] = images, [[name] for name in names]
    given = (np.array(names, dtype=object), np.array(names, dtype="S"))
    for data, options in ((tmp_path / "b.h5", {}), *((images, {"labels": labels}) for labels in given)):
        dataset = load_dataset(data, "all", **options)
        assert dataset.classes == ["cat", "dog"] and dataset.labels.tolist() == [1, 0, -1] * 4
    for missing in (None, float("nan"), 3):
        with pytest.raises(InputError, match='labels are object: give numbers from 0 or names; -1 or "" is no label'):
            load_dataset(images, labels=np.array([missing, *names[1:]], dtype=object))


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (
            np.full((15, 2), 2),
            np.full((5, 2), 1),
            r"labels have shape \(20, 2\) for 20 images: give one label for each",
        ),
        (np.zeros((15, 2)), np.zeros((5, 3)), r"chest\.npz has labels of shapes \(15, 2\), \(5, 3\): give one kind"),
        (np.zeros((15, 6, 6)), np.zeros((5, 6, 6)), r"labels have shape \(20, 6, 6\) for 20 images"),
    ],
)
def test_other_labels_in_array_files_are_refused(tmp_path, train, test, message):
    images = {"train_images": pixels(15, 6, 6), "test_images": pixels(5, 6, 6)}
    np.savez(tmp_path / "chest.npz", **images, train_labels=train, test_labels=test)
    with pytest.raises(InputError, match=message):
        load_dataset(tmp_path / "chest.npz")


def test_medmnist_names_its_splits(tmp_path):
    parts = {split: pixels(count, 4, 4) for split, count in (("train", 20), ("val", 5), ("test", 6))}
    arrays = {f"{split}_images": part for split, part in parts.items()}
    arrays |= {f"{split}_labels": np.full((len(part), 1), 2) for split, part in parts.items()}
    np.savez(tmp_path / "pathmnist.npz", **arrays)
    for split, dataset in every_split(tmp_path / "pathmnist.npz").items():
        assert torch.equal(dataset.images[:, 0], torch.from_numpy(parts[split])) and set(dataset.labels.tolist()) == {2}


def test_arrays_may_be_named_as_keras_does(tmp_path):
    train, test = pixels(30, 4, 4), pixels(6, 4, 4)[::-1]
    np.savez(tmp_path / "a.npz", x_train=train, y_train=np.arange(30) % 2, x_test=test, y_test=np.arange(6) % 2)
    dataset = load_dataset(tmp_path / "a.npz", "test")
    assert np.array_equal(dataset.images[:, 0].numpy(), test) and dataset.labels.tolist() == [0, 1] * 3


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        (
            "x.npz",
            lambda path: np.savez(path, weights=np.zeros(3)),
            "has neither images nor train_images or x_train, only weights",
        ),
        (
            "x.npz",
            lambda path: np.savez(path, images=pixels(9, 4, 4), test_images=pixels(3, 4, 4)),
            "x.npz has images of no split beside those of test: leave one out",
        ),
        ("x.npy", lambda path: path.write_bytes(b"none"), r"x\.npy cannot be read"),
        (
            "x.npy",
            lambda path: np.save(path, np.array([{}], dtype=object), allow_pickle=True),
            r"x\.npy cannot be read",
        ),
        ("x.h5", lambda path: path.write_bytes(b"none"), r"x\.h5 cannot be read"),
    ],
)
def test_array_files_that_cannot_be_used_are_refused(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(InputError, match=message):
        load_dataset(tmp_path / name)


# ---- Arrow


def test_parquet_and_save_to_disk_give_the_images_they_were_made_of(tmp_path, hub):
    images, labels = pixels(40, 6, 6, 3), [n % 4 for n in range(40)]
    column = [{"bytes": encode(image), "path": None} for image in images]
    features = hub.Features({"image": hub.Image(), "label": hub.ClassLabel(names=list("wxyz"))})
    stored = hub.Dataset.from_dict({"image": column, "label": labels}, features=features)
    stored.to_parquet(tmp_path / "images.parquet")
    stored.save_to_disk(tmp_path / "saved")
    hub.DatasetDict(train=stored, test=stored.select(range(8))).save_to_disk(tmp_path / "split")
    expected = torch.from_numpy(images).permute(0, 3, 1, 2)
    for place in ("images.parquet", "saved"):
        dataset = load_dataset(tmp_path / place, "all", image_size=6)
        assert torch.equal(dataset.images, expected) and dataset.labels.tolist() == labels
        assert dataset.classes == list("wxyz") and dataset.names[7] == "row/7"
        streamed = load_dataset(tmp_path / place, image_size=6, memory_limit_gb=0)
        batches = step_batches(streamed, batch_size=8, parts=split_batch(8, 1), seed=0, device="cpu", num_workers=2)
        batch = next(batches)[0]
        places = [next(iter((expected == image).all((1, 2, 3)).nonzero()[0])) for image in batch.images]
        assert batch.labels.tolist() == [labels[int(place)] for place in places]
    assert len(load_dataset(tmp_path / "split", "test")) == 8
    train, val = (load_dataset(tmp_path / "split", split) for split in ("train", "val"))
    assert len(train) + len(val) == 40 and not set(train.names) & set(val.names)


def test_parquet_of_another_program_is_read_by_its_bytes(tmp_path, hub):
    images = pixels(5, 6, 6, 3)
    table = pa.table({"payload": [encode(image) for image in images], "class": ["a", "b", "a", "b", "a"]})
    parquet.write_table(table, tmp_path / "mine.parquet")
    dataset = load_dataset(tmp_path / "mine.parquet", "all", image_size=6)
    assert torch.equal(dataset.images, torch.from_numpy(images).permute(0, 3, 1, 2)) and dataset.classes == ["a", "b"]


def test_splits_of_an_arrow_table_may_stand_in_a_column(tmp_path, hub):
    images = [{"bytes": encode(image), "path": None} for image in pixels(12, 6, 6, 3)]
    parts = ["train", "Test", "valid"] * 4
    features = {"image": hub.Image(), "split": hub.Value("string"), "part": hub.Value("string")}
    for name, split in [("named", parts), ("others", ["left", "right", None] * 4)]:
        stored = hub.Dataset.from_dict(
            {"image": images, "split": split, "part": parts}, features=hub.Features(features)
        )
        stored.save_to_disk(tmp_path / name)
    expected = [f"row/{row}" for row in range(1, 12, 3)]
    assert load_dataset(tmp_path / "named", "test", image_size=6).names == expected
    assert load_dataset(tmp_path / "others", "test", image_size=6, split_column="part").names == expected
    assert describe(tmp_path / "others").endswith("columns: images from image")
    with pytest.raises(InputError, match="data others, row 2 has no split: fill it in"):
        load_dataset(tmp_path / "others", split_column="split")
    hub.DatasetDict(train=stored, test=stored).save_to_disk(tmp_path / "split")
    with pytest.raises(InputError, match="split_column part: data split has the splits train, test; leave it out"):
        load_dataset(tmp_path / "split", split_column="part")


def test_arrow_data_that_cannot_be_opened_are_one_line(tmp_path, hub):
    with one_line("data hf:nobody/nothing cannot be opened: "):
        load_dataset("hf:nobody/nothing")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no PAR1")
    with pytest.raises(InputError, match=r"broken\.parquet cannot be read"):
        load_dataset(tmp_path / "broken.parquet")
    hub.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(tmp_path / "texts")
    with pytest.raises(InputError, match=r"texts has no column of images, only text: give image_column"):
        load_dataset(tmp_path / "texts")


def test_objects_of_hugging_face_are_read_as_from_disk(hub):
    images, labels = pixels(40, 6, 6, 3), [n % 4 for n in range(40)]
    column = [{"bytes": encode(image), "path": None} for image in images]
    features = hub.Features({"scan": hub.Image(), "map": hub.Image(), "label": hub.ClassLabel(names=list("wxyz"))})
    stored = hub.Dataset.from_dict({"scan": column, "map": column[::-1], "label": labels}, features=features)
    expected = torch.from_numpy(images).permute(0, 3, 1, 2)
    for given in (stored.with_format("torch"), stored.select(range(39, -1, -1)).select(range(39, -1, -1))):
        dataset = load_dataset(given, "all", image_size=6, image_column="scan")
        assert torch.equal(dataset.images, expected) and dataset.labels.tolist() == labels
        assert dataset.classes == list("wxyz")
    both = hub.DatasetDict(train=stored, test=stored.select(range(8)))
    assert len(load_dataset(both, "test", image_column="map")) == 8
    with pytest.raises(InputError, match="data Dataset has 2 columns of images, only scan, map: give image_column"):
        load_dataset(stored)
    assert [describe_value(each) for each in (stored, both)] == ["Dataset of 40", "DatasetDict of 2"]  # in args.json


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (3, r"is Value\(.*int64.*\): give one of images, their bytes or paths"),
        ([Image.new("L", (8, 8))], "is .*: give one of images"),
        (
            {"scan": b"", "age": 3},
            r"has the fields \w+, \w+: flatten\(\) the data set, and give .* such as kind\.(scan|age)",
        ),
    ],
)
def test_columns_of_hugging_face_that_are_no_images_are_refused(hub, column, message):
    stored = hub.Dataset.from_dict({"kind": [column] * 4})
    with pytest.raises(InputError, match=f"image_column kind {message}"):
        load_dataset(stored, "all", image_column="kind")


# ---- torch Datasets, and sets of torchvision


def squares(kind) -> Items:
    """Twenty items: an image of one colour, as `kind` makes it of an array, and a label."""
    return Items((kind(np.full((8, 8, 3), index, dtype=np.uint8)), index % 3) for index in range(20))


@pytest.mark.parametrize("kind", [Image.fromarray, np.asarray, lambda image: torch.from_numpy(image).permute(2, 0, 1)])
def test_any_torch_dataset_will_do(kind):
    dataset = load_dataset(squares(kind), "all", image_size=4)
    assert dataset.images.shape == (20, 3, 4, 4) and dataset.images[:, 0, 0, 0].tolist() == list(range(20))
    assert dataset.labels.tolist() == [index % 3 for index in range(20)] and dataset.classes == ["0", "1", "2"]


def test_items_of_a_torch_dataset_may_be_what_a_network_gave():
    def scaled(image):
        return torch.from_numpy(image).permute(2, 0, 1) / 16

    expected = load_dataset(squares(scaled), "all", image_size=4, pixel_range=(0, 2)).images
    for kind in (lambda image: scaled(image).requires_grad_(), lambda image: scaled(image).bfloat16()):
        dataset = load_dataset(squares(kind), "all", image_size=4, pixel_range=(0, 2))
        assert torch.equal(dataset.images, expected)
    with pytest.raises(InputError, match="image Items item 0 is complex64: give pixels"):
        load_dataset(squares(lambda image: scaled(image) * 1j), "all", image_size=4, pixel_range=(0, 2))


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        (None, ["a", "b"], "has labels of 3 classes, and 2 in its attribute `classes`: give it a name for each"),
        ([[1, 0], [1, 1]] * 10, ["a"], "has labels of 2 classes, and 1 in its attribute"),
        ([[1, 0], [1, 1]] * 10, ["a", "b", "c"], "has labels of 2 classes, and 3 in its attribute"),
        ([0, 2**40] * 10, ["a", "b"], "labels go up to 1099511627776 for 20 images: number the classes from 0"),
    ],
)
def test_classes_of_a_torch_dataset_are_those_of_its_labels(labels, classes, message):
    data = squares(np.asarray)
    data.labels, data.classes = labels, classes
    with pytest.raises(InputError, match=f"data Items.* {message}"):
        load_dataset(data, "all")


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        (None, [0, 1, 2, 0]),  # which says nothing of its items
        ([[0], [1], [0], [1]], [0, 1, 0, 1]),
        ([[1, 0], [1, 1], [0, 0], [0, 1]], [[1, 0], [1, 1], [0, 0], [0, 1]]),
    ],
)
def test_what_a_torch_dataset_lists_as_labels_is_taken_for_what_it_is(listed, found):
    data = squares(np.asarray)
    data.labels = listed and listed * 5
    dataset = load.load_splits(data, ["all"], several=True)["all"]
    assert dataset.labels[:4].tolist() == found
    assert dataset.classes == list(map(str, range(3 if listed is None else 2)))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (lambda image: {"image": image, "label": 1}, r"items with the keys image, label: .* return \(image, label\)"),
        (lambda image: (image, "cat"), "item 0 has the label 'cat': give numbers from 0, -1 for none"),
        (lambda image: (image, None), "item 0 has the label None: give numbers from 0"),
        (lambda image: (image, [0, 1]), r"item 0 has the label \[0, 1\]: for several an image, .* attribute `targets`"),
        (lambda image: image[:1], r"item 0 has shape \(1, 8, 8\), not 3 channels: give in_channels 1 when pretraining"),
        (
            lambda image: image[None],
            r"item . has shape \(1, 3, 8, 8\), not 3 channels: give \(C, H, W\) or \(H, W, C\)",
        ),
    ],
)
def test_items_of_a_torch_dataset_that_cannot_be_used_are_named(item, message):
    with pytest.raises(InputError, match=f"(data|image) Items .*{message}"):
        load_dataset(Items([item(torch.zeros(3, 8, 8, dtype=torch.uint8))] * 20))


@pytest.mark.parametrize("shape", [(3, 8, 12), (8, 12, 3)])
def test_items_that_are_arrays_keep_their_size_unless_another_is_given(shape):
    items = Items((torch.zeros(shape, dtype=torch.uint8), index % 2) for index in range(20))
    items._samples = "ours"  # type: ignore[attr-defined]  # torchvision has a list of paths and labels by this name
    dataset = load_dataset(items, "all")
    assert dataset.image_shape == (3, 8, 12) and dataset.labels.tolist() == [0, 1] * 10
    assert load_dataset(items, "all", image_size=6).image_shape == (3, 6, 6)


def test_items_that_are_pillow_images_keep_their_sixteen_bits():
    items = Items(Image.fromarray(np.full((8, 8), 1000 + index, dtype=np.uint16)) for index in range(20))
    dataset = load_dataset(items, "all", channels=1, image_size=8)
    assert dataset.images[:, 0, 0, 0].tolist() == list(range(1000, 1020))


def test_a_set_of_torchvisions_is_read_through_its_files(tmp_path):
    """GTSRB as it lies on disk: PPM files in numbered folders, and a table of the test labels."""
    root = tmp_path / "gtsrb"
    for number in range(40):
        picture(root / "GTSRB" / "Training" / f"{number % 2:05}" / f"{number}.ppm", seed=number)
    for number in range(4):
        picture(root / "GTSRB" / "Final_Test" / "Images" / f"{number}.ppm", seed=100 + number)
    lines = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"] + [
        f"{n}.ppm;12;12;0;0;9;9;1" for n in range(4)
    ]
    (root / "GT-final_test.csv").write_text("\n".join(lines))
    splits = every_split("gtsrb", data_dir=tmp_path, image_size=12)
    assert [len(dataset) for dataset in splits.values()] == [36, 4, 4]  # 2,000 held out, but a tenth at most
    assert splits["train"].classes == ["0", "1"] and splits["test"].labels.tolist() == [1] * 4
    first = read_image(root / "GTSRB" / "Final_Test" / "Images" / "0.ppm", (3, 12, 12), depth="uint8")
    assert torch.equal(splits["test"].images[0], first)


def test_an_arrow_table_keeps_the_depth_that_its_images_have(tmp_path, hub):
    values = np.random.default_rng(0).integers(0, 4096, (6, 8, 8)).astype(np.uint16)
    files = save_images(tmp_path / "scans", values)
    rows = {"image": [{"bytes": file.read_bytes(), "path": None} for file in files]}
    table = hub.Dataset.from_dict(rows, features=hub.Features({"image": hub.Image()}))
    table.to_parquet(tmp_path / "scans.parquet")
    dataset = load_dataset(tmp_path / "scans.parquet", "all", channels=1, image_size=8)
    assert dataset.depth == "uint16" and (dataset.images.numpy()[:, 0] == values).all()
    assert "8 x 8 pixels, 1 channel of uint16 (values up to 4,0" in dataset.description[2]
    spread = load_dataset(tmp_path / "scans.parquet", "all", channels=1, image_size=8, pixel_range=(0, 4095))
    assert spread.images.int().max() > 65000
