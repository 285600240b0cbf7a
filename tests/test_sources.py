"""Every kind of data that people have: what is read, how it is split, what is refused by name."""

import itertools
import os
import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch
from pictures import as_set, encode, picture, pixels, write_table
from PIL import Image
from pyarrow import parquet
from running import one_line, save_images

import tinymae
from tinymae import InputError, load_dataset, pretrain
from tinymae.commands.features import JoinedSplits
from tinymae.commands.fields import describe_value
from tinymae.data import load
from tinymae.data.batches import chunks, split_batch, step_batches
from tinymae.data.datasets import StreamedDataset
from tinymae.data.images import read_image
from tinymae.evaluation.figures import thumbnails

SPLITS = ("train", "val", "test")


def load_splits(data, **options) -> dict:
    return {split: load_dataset(data, split, **options) for split in SPLITS}


# ---- folders


def test_an_image_more_moves_no_other(tmp_path):
    for number in range(300):
        picture(tmp_path / ("cat" if number % 2 else "dog") / f"{number}.png", size=(2, 2), seed=number)
    before = {split: set(dataset.names) for split, dataset in load_splits(tmp_path, image_size=2).items()}
    assert set.union(*before.values()) == {f"{'cat' if n % 2 else 'dog'}/{n}.png" for n in range(300)}
    assert 15 < len(before["val"]) < 50 and 15 < len(before["test"]) < 50  # a tenth of 300, give or take
    for number in range(300, 340):
        picture(tmp_path / "cat" / f"{number}.png", size=(2, 2))
    (tmp_path / "cat" / "1.png").unlink()
    after = {split: set(dataset.names) for split, dataset in load_splits(tmp_path, image_size=2).items()}
    for split in SPLITS:
        assert before[split] - {"cat/1.png"} <= after[split]


def test_small_folders_keep_every_class_in_train_and_no_split_empty(tmp_path):
    for name in "abcdefghij":
        picture(tmp_path / name / "only.png")
    for number in range(9):
        picture(tmp_path / "a" / f"{number}.png", seed=number)
    splits = load_splits(tmp_path, image_size=8, val_fraction=0.4, test_fraction=0.4)
    assert set(splits["train"].labels.tolist()) == set(range(10))
    assert all(len(dataset) for dataset in load_splits(tmp_path, image_size=8, val_fraction=1e-6).values())


def test_all_is_every_image(tmp_path):
    for number in range(20):
        picture(tmp_path / f"{number:02}.png", seed=number)
    everything = load_dataset(tmp_path, "all", image_size=12)
    assert everything.names == [f"{number:02}.png" for number in range(20)]
    assert len(load_dataset("digits", "all")) == 1797


def test_split_folders_have_many_spellings(tmp_path):
    for number in range(12):
        picture(tmp_path / ("Training" if number < 6 else "Dev") / "x" / f"{number}.png", seed=number)
        picture(tmp_path / "TEST" / "x" / f"{number}.png", seed=100 + number)
    splits = load_splits(tmp_path, image_size=12)
    assert [len(dataset) for dataset in splits.values()] == [6, 6, 12] and splits["train"].classes == ["x"]
    picture(tmp_path / "val" / "x" / "0.png")
    with pytest.raises(InputError, match="has Dev and val for the same split: keep one"):
        load_dataset(tmp_path)


def test_hidden_files_are_passed_over_and_others_listed(tmp_path):
    for name in ("a.jpeg", "b.GIF", "c.jfif", "deep/er/d.webp"):
        picture(tmp_path / "x" / f"{name}.png")
        os.rename(tmp_path / "x" / f"{name}.png", tmp_path / "x" / name)
    picture(tmp_path / "x" / ".ipynb_checkpoints" / "hidden.png")
    picture(tmp_path / "x" / "._a.png")
    (tmp_path / "x" / "notes.txt").write_text("not an image")
    (tmp_path / "x" / "folder.png").mkdir()
    outside = tmp_path.parent / f"{tmp_path.name}_outside"
    picture(outside / "linked.png")
    (tmp_path / "x" / "link").symlink_to(outside)
    (tmp_path / "x" / "loop").symlink_to(tmp_path)
    dataset = load_dataset(tmp_path, "all", image_size=8)
    assert dataset.names == [f"x/{name}" for name in ("a.jpeg", "b.GIF", "c.jfif", "deep/er/d.webp", "link/linked.png")]
    assert dataset.description[0].endswith("5 images in 1 classes; 1 other files left alone (x/notes.txt)")
    assert "12 x 12 pixels, 3 channels of uint8, used at 8 x 8" in dataset.description[2]


def test_a_name_that_is_not_utf8_is_refused_of_an_image_and_shown_of_another_file(tmp_path):
    picture(tmp_path / "1.png")
    other, image = (tmp_path / os.fsdecode(b"caf\xe9" + suffix) for suffix in (b".txt", b".png"))
    other.write_text("not an image")
    assert load_dataset(tmp_path, "all").description[0].endswith(r"(caf\udce9.txt)")
    picture(image)
    with pytest.raises(InputError, match=r"image 'caf\\udce9\.png' in .* has a name that is not UTF-8: rename it"):
        load_dataset(tmp_path)


def test_several_folders_are_one_set(tmp_path):
    for number in range(6):
        picture(tmp_path / "one" / f"{number}.png", seed=number)
        picture(tmp_path / "two" / "sub" / f"{number}.png", seed=10 + number)
    dataset = load_dataset([tmp_path / "one", tmp_path / "two"], "all", image_size=12)
    assert len(as_set(dataset.images)) == 12 and dataset.names[-1] == "two/sub/5.png" and dataset.labels is None


def test_a_run_says_which_images_came_or_went(tmp_path):
    for number in range(60):
        picture(tmp_path / "data" / f"{number:02}.png", size=(8, 8), seed=number)
    settings = {
        "data": tmp_path / "data", "image_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 1,
        "decoder_dim": 8, "decoder_depth": 1, "epochs": 1, "contrast_epochs": 0, "batch_size": 16, "log_with": (),
        "output_dir": tmp_path / "run",
    }  # fmt: skip
    pretrain(**settings)
    names = load_dataset(tmp_path / "data").names
    (tmp_path / "data" / names[0]).unlink()
    for number in range(60, 70):
        picture(tmp_path / "data" / f"{number}.png", size=(8, 8), seed=number)
    came = sorted(set(load_dataset(tmp_path / "data").names) - set(names))
    with pytest.raises(
        InputError, match=f"{len(came)} of train came: {', '.join(came[:3])}.*1 of train went: {names[0]}"
    ):
        pretrain(**settings)


def test_nothing_is_decoded_before_it_is_asked_for(tmp_path):
    for number in range(30):
        picture(tmp_path / f"{number:02}.png", seed=number)
    (tmp_path / "05.png").write_bytes(b"no image")
    dataset = load_dataset(tmp_path, "all", image_size=8, memory_limit_gb=0)
    assert isinstance(dataset, StreamedDataset) and len(dataset) == 30
    with pytest.raises(InputError, match=r"05\.png cannot be read"):
        list(chunks(dataset, 10))


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


# ---- tables


@pytest.mark.parametrize("name", ["table.csv", "table.tsv", "table.parquet"])
def test_a_table_names_paths_labels_and_splits(tmp_path, name):
    rows = [
        {"path": f"images/{n}.png", "label": "dog" if n % 3 else "cat", "split": ("train", "Valid", "test")[n % 3]}
        for n in range(12)
    ]
    splits = load_splits(write_table(tmp_path, rows, name), image_size=12)
    assert [len(dataset) for dataset in splits.values()] == [4, 4, 4]
    assert splits["train"].classes == ["cat", "dog"] and splits["val"].names == [
        f"images/{n}.png" for n in (1, 4, 7, 10)
    ]
    assert torch.equal(splits["test"].images[0], read_image(tmp_path / "images" / "2.png", (3, 12, 12), depth="uint8"))
    assert splits["test"].labels.tolist() == [1] * 4


def test_columns_may_have_other_names(tmp_path):
    rows = [{"path": f"{n}.png", "who": n % 2, "part": "train" if n else "test"} for n in range(9)]
    path = write_table(tmp_path, rows)
    dataset = load_dataset(path, image_column="path", label_column="who", split_column="part", image_size=8)
    assert dataset.classes == ["0", "1"] and len(dataset) + len(load_dataset(path, "val", split_column="part")) == 8
    assert load_dataset(path).labels is None  # no column has a usual name


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (
            "where,label\n1.png,a\n",
            {},
            "has no column path or file or filename, only where, label: give",
        ),
        ("path,label\n", {}, "has no rows"),
        ("path,label\n1.png,a\nmissing.png,b\n", {}, r"line 3: image .*missing\.png does not exist"),
        ("path,split\n1.png,train\n1.png,holdout\n", {}, "line 3: split 'holdout' is none of train, val and test"),
        ("path\n1.png\n", {"label_column": "kind"}, "label_column kind is none of table .*'s columns, path"),
        ("path,label\n1.png,-2\n1.png,1\n", {}, r"labels are int64: give numbers from 0 or names; -1 or"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(tmp_path, content, options, message):
    picture(tmp_path / "1.png")
    (tmp_path / "table.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        load_dataset(tmp_path / "table.csv", **options)


# ---- arrays


def test_arrays_in_files(tmp_path):
    images, labels = pixels(40, 6, 5, 3), np.arange(40) % 4
    np.save(tmp_path / "plain.npy", images)
    np.savez(tmp_path / "both.npz", images=images, labels=labels)
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "both.h5", "w") as file:
        file["images"], file["labels"] = images, labels
    plain = load_dataset(tmp_path / "plain.npy", "all")
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
        loaded = load_splits(data, image_size=6, memory_limit_gb=limit)
        assert len(loaded["train"].classes) == 3 and loaded["train"].labels.tolist() == labels[:12].tolist()
        assert loaded["val"].labels.tolist() == labels[12:20].tolist()
        assert len(loaded["test"]) == 10 and loaded["test"].labels is None
        with pytest.raises(InputError, match="has no labels in test"):
            load.load_splits(data, SPLITS, labelled=True, memory_limit_gb=limit)


def test_a_split_of_an_array_file_may_have_no_labels(tmp_path):
    images = np.arange(20 * 16, dtype=np.uint8).reshape(20, 4, 4)
    names = np.array(["dog", "cat"] * 6)
    np.savez(tmp_path / "some.npz", val_images=images[:3], train_images=images[3:15], train_labels=names,
             test_images=images[15:])  # fmt: skip
    train = load_dataset(tmp_path / "some.npz", "train")
    assert train.classes == ["cat", "dog"] and train.labels.tolist() == [1, 0] * 6
    assert load_dataset(tmp_path / "some.npz", "test").labels is None


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


@pytest.mark.parametrize("kind", ["npz", "h5", "tensor"])
def test_labels_of_several_columns_are_several_labels_an_image(tmp_path, kind):
    """As ChestMNIST has them."""
    images, labels = pixels(20, 6, 6), np.random.default_rng(0).integers(0, 2, (20, 14))
    data, given = tmp_path / f"chest.{kind}", {}
    if kind == "npz":
        np.savez(
            data, train_images=images[:15], train_labels=labels[:15], test_images=images[15:], test_labels=labels[15:]
        )
    elif kind == "h5":
        with pytest.importorskip("h5py").File(data, "w") as file:
            file["images"], file["labels"] = images, labels
    else:
        data, given = torch.from_numpy(images), {"labels": torch.from_numpy(labels)}
    dataset = load.load_splits(data, ["all"], several=True, **given)["all"]
    assert dataset.labels.dtype == torch.uint8 and dataset.labels.tolist() == labels.tolist()
    assert dataset.classes == [str(number) for number in range(14)]


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
    for split, dataset in load_splits(tmp_path / "pathmnist.npz").items():
        assert torch.equal(dataset.images[:, 0], torch.from_numpy(parts[split])) and set(dataset.labels.tolist()) == {2}


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        (
            "x.npz",
            lambda path: np.savez(path, weights=np.zeros(3)),
            "has neither images nor train_images or x_train, only weights",
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


# ---- torch Datasets, named sets


class Squares(torch.utils.data.Dataset):
    labels: list | None = None

    def __init__(self, kind):
        self.kind = kind

    def __len__(self):
        return 20

    def __getitem__(self, index):
        image = np.full((8, 8, 3), index, dtype=np.uint8)
        return self.kind(image), index % 3


@pytest.mark.parametrize("kind", [Image.fromarray, np.asarray, lambda image: torch.from_numpy(image).permute(2, 0, 1)])
def test_any_torch_dataset_will_do(kind):
    dataset = load_dataset(Squares(kind), "all", image_size=4)
    assert dataset.images.shape == (20, 3, 4, 4) and dataset.images[:, 0, 0, 0].tolist() == list(range(20))
    assert dataset.labels.tolist() == [index % 3 for index in range(20)] and dataset.classes == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        (None, [0, 1, 2, 0]),  # which says nothing of its items
        ([[0], [1], [0], [1]], [0, 1, 0, 1]),
        ([[1, 0], [1, 1], [0, 0], [0, 1]], [[1, 0], [1, 1], [0, 0], [0, 1]]),
    ],
)
def test_what_a_torch_dataset_lists_as_labels_is_taken_for_what_it_is(listed, found):
    data = Squares(np.asarray)
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
    ],
)
def test_items_of_a_torch_dataset_that_cannot_be_used_are_named(item, message):
    class Items(torch.utils.data.Dataset):
        def __len__(self):
            return 20

        def __getitem__(self, index):
            return item(torch.zeros(3, 8, 8, dtype=torch.uint8))

    with pytest.raises(InputError, match=f"data Items .*{message}"):
        load_dataset(Items())


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
    splits = load_splits("gtsrb", data_dir=tmp_path, image_size=12)
    assert [len(dataset) for dataset in splits.values()] == [36, 4, 4]  # 2,000 held out, but a tenth at most
    assert splits["train"].classes == ["0", "1"] and splits["test"].labels.tolist() == [1] * 4
    first = read_image(root / "GTSRB" / "Final_Test" / "Images" / "0.ppm", (3, 12, 12), depth="uint8")
    assert torch.equal(splits["test"].images[0], first)


def test_named_sets_obey_the_memory_limit():
    streamed = load_dataset("digits", image_size=16, memory_limit_gb=0)
    whole = load_dataset("digits", image_size=16)
    assert isinstance(streamed, StreamedDataset)
    some = torch.tensor([5, 900, 2])
    assert torch.equal(streamed[some][0], whole[some][0]) and torch.equal(streamed[some][1], whole[some][1])


# ---- pixels of other depths and channels


def test_sixteen_bits_stay_sixteen_bits(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (20, 8, 8), dtype=np.uint16)
    save_images(tmp_path, values)
    dataset = load_dataset(tmp_path, "all", image_size=8, channels=1)
    assert dataset.images.dtype == torch.uint16 and np.array_equal(dataset.images[:, 0].numpy(), values)
    mean, std = dataset.statistics
    np.testing.assert_allclose([mean[0], std[0]], [(values / 65535).mean(), (values / 65535).std()], atol=1e-6)
    assert np.array_equal(load_dataset(values, "all").images[:, 0].numpy(), values)
    Image.fromarray(np.full((8, 8), 100, dtype=np.uint8)).save(tmp_path / "99.png")
    assert set(load_dataset(tmp_path, "all", image_size=8, channels=1).images[-1].flatten().tolist()) == {100 * 257}


def test_either_byte_order_is_read(tmp_path):
    tifffile, h5py = pytest.importorskip("tifffile"), pytest.importorskip("h5py")
    values = np.random.default_rng(0).integers(0, 4096, (12, 8, 8), dtype=np.uint16)
    swapped = values.astype(">u2")
    for kind in ("tif", "npy"):
        (tmp_path / kind).mkdir()
    for number, image in enumerate(values):
        tifffile.imwrite(tmp_path / "tif" / f"{number:02}.tif", image, byteorder=">")
        np.save(tmp_path / "npy" / f"{number:02}.npy", swapped[number])
    np.savez(tmp_path / "a.npz", images=swapped)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"] = swapped
    shown = f"8 x 8 pixels, 1 channel of uint16 (values up to {values.max():,}: give pixel_range 0 4095 to use the"
    for data in (tmp_path / "tif", tmp_path / "npy", tmp_path / "a.npz", tmp_path / "a.h5", swapped):
        dataset = load_dataset(data, "all", image_size=8, channels=1)
        assert np.array_equal(dataset.images[:, 0].numpy(), values)
        assert shown in dataset.description[2]
    floats = load_dataset(values.astype(">f4"), "all", pixel_range=(0, 65535))
    assert np.array_equal(floats.images[:, 0].numpy(), values)


def test_an_array_of_black_and_white_is_eight_bits_as_its_files_are(tmp_path):
    values = np.random.default_rng(0).random((12, 8, 8)) < 0.5
    for number, image in enumerate(values):
        np.save(tmp_path / f"{number:02}.npy", image)
    files, array = (load_dataset(data, "all", image_size=8, channels=1) for data in (tmp_path, values))
    assert array.images.dtype == torch.uint8 and np.array_equal(array.images[:, 0].numpy(), 255 * values)
    assert torch.equal(files.images, array.images)


def test_sixteen_bits_are_shown_as_eight():
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    assert torch.equal(thumbnails((images.int() * 257).to(torch.uint16), 4), thumbnails(images, 4))


@pytest.mark.parametrize(("place", "met"), [(0, True), (101, False)])  # the first is among the headers looked at
def test_one_deep_image_among_others_is_read_as_they_are(tmp_path, place, met):
    for number in range(200):
        Image.new("L", (4, 4), number).save(tmp_path / f"{number:03}.png")
    Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)).save(tmp_path / f"{place:03}.png")
    dataset = load_dataset(tmp_path, "all", image_size=4, channels=1)
    expected = [round(40_000 / 257) if number == place else number for number in range(200)]
    assert dataset.images.dtype == torch.uint8 and dataset.images[:, 0, 0, 0].tolist() == expected
    assert ("some of 16 bits, converted to 8" in dataset.description[2]) == met


def test_floats_need_their_range(tmp_path):
    values = np.random.default_rng(0).normal(size=(20, 8, 8)).astype(np.float32)
    for number, image in enumerate(values):
        Image.fromarray(image).save(tmp_path / f"{number:02}.tif")
    with pytest.raises(InputError, match=r"has float32 pixels: give pixel_range LOW HIGH, the values of black and w"):
        load_dataset(tmp_path, image_size=8, channels=1)
    dataset = load_dataset(tmp_path, "all", image_size=8, channels=1, pixel_range=(-4, 4))
    np.testing.assert_allclose(dataset.images[:, 0].numpy() / 65535 * 8 - 4, values, atol=8 / 65535)
    same = load_dataset(values, "all", pixel_range=(-4, 4))
    assert torch.equal(same.images, dataset.images)
    with pytest.raises(InputError, match="pixel_range 1 0: the first must be the lower one"):
        load_dataset(values, pixel_range=(1, 0))


def test_png_files_have_one_channel_or_three(tmp_path):
    picture(tmp_path / "1.png", mode="RGBA")
    for skip_unreadable in (False, True):
        with pytest.raises(InputError, match=r"in_channels 4: image .*1\.png is read as 1 \(grey\) or 3 \(RGB\)"):
            load_dataset(tmp_path, "all", channels=4, skip_unreadable=skip_unreadable)


def test_many_channels_from_tiff_and_npy(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    values = np.random.default_rng(0).integers(0, 65536, (12, 5, 8, 8), dtype=np.uint16)
    for number, image in enumerate(values):
        tifffile.imwrite(tmp_path / f"{number:02}.tif", image, photometric="minisblack", planarconfig="separate")
    (tmp_path / "arrays").mkdir()
    for number, image in enumerate(values):
        np.save(tmp_path / "arrays" / f"{number:02}.npy", image.transpose(1, 2, 0))
    arrays = load_dataset(tmp_path / "arrays", "all", image_size=8, channels=5)
    assert np.array_equal(arrays.images.numpy(), values)
    shutil.rmtree(tmp_path / "arrays")
    bands = load_dataset(tmp_path, "all", image_size=8, channels=5)
    assert np.array_equal(bands.images.numpy(), values)
    with pytest.raises(InputError, match=r"\.tif has 5 channels, 6 are wanted: give --in-channels 5 when pretraining"):
        load_dataset(tmp_path, image_size=8, channels=6)


def test_images_of_any_depth_and_channels_go_through_every_command(tmp_path, quick_figures, quick_probes):
    """By the plain commands: what is for colours of 8 bits is left out where there are none."""
    values = np.random.default_rng(0).integers(0, 65536, (60, 5, 8, 8), dtype=np.uint16)
    data = {"data": values, "labels": np.arange(60) % 2, "mixed_precision": "no"}
    sizes = {"image_size": 8, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2, "decoder_dim": 16,
             "decoder_depth": 1, "batch_size": 16, "log_with": ()}  # fmt: skip
    run = tinymae.pretrain(**data, **sizes, epochs=3, output_dir=tmp_path / "run")
    assert run.model.in_channels == 5 and (tmp_path / "run" / "reconstructions.png").exists()
    assert run.results["contrast_color_jitter"] == 0.0 and run.results["contrast_epochs"] == 2
    given = data | {"weights": run.model}
    tuned = tinymae.finetune(**given, epochs=2, log_with=(), output_dir=tmp_path / "tuned")
    assert not tuned.results["trivial_augment"] and tuned.results["random_erasing"] == 0.25
    for command in (tinymae.linear_probe, tinymae.evaluate, tinymae.embed, tinymae.inspect):
        command(**given, output_dir=tmp_path / command.__name__)
    tinymae.predict(**data | {"weights": tuned.model}, output_dir=tmp_path / "predict")
    with pytest.raises(
        InputError, match="color_jitter 0.5 is for grey and RGB images of 8 bits, and data array has 5 ch"
    ):
        tinymae.pretrain(**data, **sizes, color_jitter=0.5, output_dir=tmp_path / "colour")
    with pytest.raises(InputError, match="trivial_augment is for grey and RGB images of 8 bits, and data array has"):
        tinymae.finetune(**given, trivial_augment=True, output_dir=tmp_path / "colour")
    assert not (tmp_path / "colour").exists()


def test_images_of_several_splits_are_read_in_the_order_that_is_asked():
    values = np.random.default_rng(0).integers(0, 65536, (60, 5, 8, 8), dtype=np.uint16)
    parts = load_splits(values, test_fraction=0.1)
    joined = JoinedSplits(parts)
    everything = torch.cat([part.images for part in parts.values()]).int()
    order = torch.tensor([59, 3, 50, 50, 0, 31])
    for asked in (order, order[:1]):
        assert torch.equal(joined[asked].int(), everything[asked])


def test_large_jpegs_are_decoded_small(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
    image.resize((1600, 1200), Image.Resampling.BICUBIC).save(tmp_path / "large.jpg", quality=95)
    small = read_image(tmp_path / "large.jpg", (3, 30, 40), depth="uint8").float()
    exact = np.asarray(Image.open(tmp_path / "large.jpg").resize((40, 30), Image.Resampling.BICUBIC))
    assert (small.permute(1, 2, 0) - torch.tensor(exact).float()).abs().mean() < 2
