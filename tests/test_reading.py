"""What is made of data that are not quite as expected: read, announced, or refused by name; never passed over."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from test_data import picture, pixels
from test_sources import encode, hub, write_table  # noqa: F401

from tinymae import InputError, load_dataset
from tinymae.commands.settings import RunSettings
from tinymae.commands.unlabelled import UnlabelledSettings
from tinymae.data.images import read_image
from tinymae.data.load import load_splits

# ---- columns


def describe(data, **options) -> str:
    return "\n".join(load_dataset(data, "all", **options).description)


def test_columns_are_known_in_any_case_and_said(tmp_path):
    rows = [{"path": f"{n}.png", "Label": "ab"[n % 2], "SPLIT": "train" if n < 8 else "test"} for n in range(10)]
    table = write_table(tmp_path, rows)
    test = load_dataset(table, "test", image_size=8)
    assert test.names == ["8.png", "9.png"] and test.labels.tolist() == [0, 1]
    assert test.description[3] == "columns: images from path, labels from Label, splits from SPLIT"
    both = write_table(tmp_path, [row | {"label": "c"} for row in rows], "both.csv")
    assert load_dataset(both, "test", image_size=8).classes == ["c"]  # exactly so before another case
    assert load_dataset(both, "test", image_size=8, label_column="LABEL").classes == ["a", "b"]


@pytest.mark.parametrize("kind", [pa.uint8(), pa.int64()])
def test_a_column_of_numbers_may_have_an_empty_cell_whatever_their_type(tmp_path, kind):
    paths = [f"{number}.png" for number in range(4)]
    for path in paths:
        picture(tmp_path / path)
    parquet.write_table(pa.table({"path": paths, "label": pa.array([0, None, 1, 1], kind)}), tmp_path / "t.parquet")
    assert load_dataset(tmp_path / "t.parquet", "all", image_size=8).labels.tolist() == [0, -1, 1, 1]


def test_data_without_labels_say_where_they_might_be(tmp_path):
    table = write_table(tmp_path, [{"path": f"{n}.png", "kind": "a", "age": n} for n in range(10)])
    with pytest.raises(InputError, match="no labels in train: give --label-column, one of its columns path, kind, age"):
        load_splits(table, ["train"], labelled=True)
    for number in range(4):
        picture(tmp_path / "one" / "a" / f"{number}.png")
        picture(tmp_path / "two" / "b" / f"{number}.png")
    folders = [tmp_path / "one", tmp_path / "two"]
    assert "(several folders, read without labels): 8 images, no labels" in describe(folders)
    with pytest.raises(
        InputError, match="no labels in train: several folders are read without labels; give one folder"
    ):
        load_splits(folders, ["train"], labelled=True)


@pytest.mark.parametrize("column", ["image_column", "label_column", "split_column"])
def test_columns_of_data_without_any_are_refused(tmp_path, column):
    picture(tmp_path / "1.png")
    for data, name in [("digits", "digits"), (tmp_path, str(tmp_path)), (pixels(9, 4, 4), "ndarray")]:
        with pytest.raises(InputError, match=f"{column} kind is of tables, and data {name} has no columns"):
            load_dataset(data, "all", **{column: "kind"})


def test_columns_of_one_of_two_data_are_left_out_for_the_other(tmp_path):
    picture(tmp_path / "photos" / "1.png")
    table = write_table(tmp_path, [{"path": f"{n}.png", "kind": "a"} for n in range(4)])
    settings = UnlabelledSettings(data=table, label_column="kind", unlabelled_data=tmp_path / "photos")
    train = settings.load_splits(["all"], image_size=8, channels=3)["all"]
    more = settings.load_unlabelled(train)
    assert train.classes == ["a"] and more.names == ["1.png"]
    with pytest.raises(InputError, match="has no columns"):
        RunSettings(data=tmp_path / "photos", label_column="kind").load_splits(["all"], image_size=8, channels=3)


def test_splits_of_an_arrow_table_may_stand_in_a_column(tmp_path, hub):  # noqa: F811
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
    with pytest.raises(InputError, match="others, row 2: column split is empty"):
        load_dataset(tmp_path / "others", split_column="split")
    hub.DatasetDict(train=stored, test=stored).save_to_disk(tmp_path / "split")
    with pytest.raises(InputError, match="split_column part: data split has the splits train, test; leave it out"):
        load_dataset(tmp_path / "split", split_column="part")


def test_the_delimiter_is_that_of_the_header(tmp_path):
    picture(tmp_path / "1, 2.png")
    for name, delimiter in [("a.csv", ";"), ("b.csv", "\t"), ("c.tsv", "\t"), ("d.tsv", ";"), ("e.csv", ",")]:
        path = "1, 2.png" if delimiter != "," else '"1, 2.png"'
        (tmp_path / name).write_text(f"\ufeffpath{delimiter}class{delimiter}split\n{path}{delimiter}cat{delimiter}test")
        dataset = load_dataset(tmp_path / name, "test")
        assert dataset.names == ["1, 2.png"] and dataset.classes == ["cat"]


def test_a_missing_file_is_an_unreadable_image(tmp_path):
    rows = [{"path": f"{n}.png", "label": "ab"[n % 2]} for n in range(8)]
    table = write_table(tmp_path, rows)
    (tmp_path / "3.png").unlink()
    with pytest.raises(InputError, match=r"line 5: image .*3\.png does not exist: .* --skip-unreadable"):
        load_dataset(table, "all")
    whole = load_dataset(table, "all", image_size=8, skip_unreadable=True)
    assert whole.skipped == ["3.png"] and whole.names == [f"{n}.png" for n in range(8) if n != 3]
    streamed = load_dataset(table, "all", image_size=8, skip_unreadable=True, memory_limit_gb=0)
    images, labels = streamed[torch.arange(8)]
    assert torch.equal(images[3], images[5]) and labels.tolist() == [0, 1] * 4 and streamed.skipped == ["3.png"]
    before = streamed.fingerprint
    picture(tmp_path / "3.png")
    assert load_dataset(table, "all", image_size=8, memory_limit_gb=0).fingerprint != before


def test_an_image_in_two_splits_is_refused(tmp_path):
    rows = [{"path": f"{n}.png", "split": "train" if n < 3 else "test"} for n in range(5)]
    table = write_table(tmp_path, [*rows, {"path": "./1.png", "split": "test"}])
    with pytest.raises(InputError, match=r"image 1\.png is in train and in test: keep one of its rows"):
        load_dataset(table)
    assert len(load_dataset(write_table(tmp_path, [*rows, rows[0]]), "all")) == 6  # twice in one split


# ---- labels

LISTS = [["cat", "dog"], ["dog"], [], None, ["dog", None, "ant"]]
HAS = [[0, 1, 1], [0, 0, 1], [0, 0, 0], [0, 0, 0], [1, 0, 1]]  # ant, cat, dog


def test_lists_of_labels_are_several_labels_an_image(tmp_path, hub):  # noqa: F811
    names = [[name for name in row or () if name] for row in LISTS]
    words = write_table(tmp_path, [{"path": f"{n}.png", "label": ";".join(row)} for n, row in enumerate(names)])
    lists = write_table(tmp_path, [{"path": f"{n}.png", "labels": row} for n, row in enumerate(LISTS)], "a.parquet")
    for table in (words, lists):
        dataset = load_splits(table, ["all"], several=True)["all"]
        assert dataset.labels.tolist() == HAS and dataset.classes == ["ant", "cat", "dog"]
    numbers = [[["dog", "cat", "ant", "emu"].index(name) for name in row] for row in names]
    images = [{"bytes": encode(image), "path": None} for image in pixels(5, 6, 6, 3)]
    kinds = hub.Sequence(hub.ClassLabel(names=["dog", "cat", "ant", "emu"]))
    stored = hub.Dataset.from_dict(
        {"image": images, "tags": numbers}, features=hub.Features({"image": hub.Image(), "tags": kinds})
    )
    stored.save_to_disk(tmp_path / "one")
    hub.DatasetDict(train=stored.select([1, 2]), test=stored.select([4, 0])).save_to_disk(tmp_path / "two")
    one, two = (load_splits(tmp_path / name, ["all"], several=True)["all"] for name in ("one", "two"))
    assert one.classes == ["dog", "cat", "ant", "emu"]
    assert one.labels.tolist() == [[*reversed(row), 0] for row in HAS]
    assert two.labels.tolist() == one.labels[[1, 2, 4, 0]].tolist()


def test_several_labels_that_are_not_used_are_announced(tmp_path):
    table = write_table(tmp_path, [{"path": f"{n}.png", "label": "a;b"} for n in range(4)])
    assert "4 images, several labels an image, which are not used here" in describe(table)


def test_a_column_that_cannot_be_labels_matters_where_labels_do(tmp_path):
    rows = [{"path": f"{n}.png", "label": {"x": 1, "y": 2}} for n in range(10)]
    table = write_table(tmp_path, rows, "boxes.parquet")
    dataset = load_dataset(table, "all")
    wrong = "column label is of type struct<x: int64, y: int64>, and labels are numbers from 0, names, or lists of them"
    assert dataset.labels is None and dataset.description[3:] == [
        f"labels: none, as {wrong}",
        "columns: images from path",
    ]
    with pytest.raises(InputError, match=f"label_column label: {wrong}"):
        load_dataset(table, "all", label_column="label")
    with pytest.raises(InputError, match=f"no labels in train: {wrong}; give --label-column, one of"):
        load_splits(table, ["train"], labelled=True)


def test_odd_classes_are_announced():
    images = pixels(40, 4, 4)
    assert describe(images, labels=np.arange(40) % 3 + 1).endswith("classes: 1 of 4 without any image (0)")
    values = [f"{0.01 * n:.2f}" for n in range(40)]
    assert describe(images, labels=values).endswith("40 for 40 labelled images: are these labels classes, or numbers?")
    several = load_splits(images, ["all"], labels=np.eye(40, 3, dtype=int), several=True)["all"]
    assert "classes: " not in "\n".join(several.description)
    assert "classes: " not in describe(images, labels=np.arange(40) % 4)


# ---- files, arrays


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


def test_arrays_may_be_named_as_keras_does(tmp_path):
    train, test = pixels(30, 4, 4), pixels(6, 4, 4)[::-1]
    np.savez(tmp_path / "a.npz", x_train=train, y_train=np.arange(30) % 2, x_test=test, y_test=np.arange(6) % 2)
    dataset = load_dataset(tmp_path / "a.npz", "test")
    assert np.array_equal(dataset.images[:, 0].numpy(), test) and dataset.labels.tolist() == [0, 1] * 3


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 16)])
def test_an_array_is_resized_and_cropped_as_files_of_its_rows_are(tmp_path, shape):
    values = pixels(5, *shape, 3)
    for number, image in enumerate(values):
        np.save(tmp_path / f"{number}.npy", image)
    files, array = (load_dataset(data, "all", image_size=8) for data in (tmp_path, values))
    assert torch.equal(files.images, array.images)
    for dataset in (files, array):
        assert (", resized and centre-cropped, used at 8 x 8" in dataset.description[2]) == (shape != (16, 16))


# ---- values


def test_values_outside_the_range_are_counted():
    values = np.linspace(0, 1, 1000, dtype=np.float32).reshape(10, 10, 10)
    assert "(25 % of the values lie outside 0 to 0.75 and are clipped)" in describe(values, pixel_range=(0, 0.75))
    assert "clipped" not in describe(values, pixel_range=(0, 1))


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_refused(tmp_path, wrong):
    values = np.zeros((20, 4, 4), dtype=np.float32)
    values[[7, 9], 1, 2] = wrong
    for limit in (0, 4):
        with pytest.raises(InputError, match="data array, row 7: NaN or infinity among its values"):
            load_dataset(values, "all", pixel_range=(0, 1), memory_limit_gb=limit)[torch.arange(20)]
    for number, image in enumerate(values):
        Image.fromarray(image).save(tmp_path / f"{number:02}.tif")
    options = {"pixel_range": (0, 1), "channels": 1, "image_size": 4}
    with pytest.raises(InputError, match=r"07\.tif cannot be read \(NaN or infinity among its values\)"):
        load_dataset(tmp_path, "all", **options)
    assert load_dataset(tmp_path, "all", **options, skip_unreadable=True).skipped == ["07.tif", "09.tif"]


def test_twelve_bits_in_sixteen_may_be_spread_over_their_range(tmp_path):
    values = np.random.default_rng(0).integers(0, 4096, (20, 8, 8), dtype=np.uint16)
    values[0, 0, 0] = 4095
    for number, image in enumerate(values):
        Image.fromarray(image).save(tmp_path / f"{number:02}.png")
    for data in (values, tmp_path):
        options = {"image_size": 8, "channels": 1}
        plain = load_dataset(data, "all", **options)
        assert "(values up to 4,095: give pixel_range 0 4095 to use the whole range)" in plain.description[2]
        spread = load_dataset(data, "all", **options, pixel_range=(0, 4095))
        assert "values" not in spread.description[2]
        assert np.array_equal(spread.images[:, 0].numpy(), np.round(values / 4095 * 65535).astype(np.uint16))
    assert "values" not in describe(values * 5)


def test_a_table_of_lists_is_written_by_parquet_as_by_pandas(tmp_path):
    picture(tmp_path / "1.png")
    table = pa.table({"path": ["1.png"], "label": pa.array([["b", "a"]], pa.large_list(pa.large_string()))})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert load_splits(tmp_path / "a.parquet", ["all"], several=True)["all"].labels.tolist() == [[1, 1]]


def test_a_usual_column_that_names_no_split_is_left_alone(tmp_path):
    rows = [{"path": f"{n}.png", "Set": f"fold{n % 3}"} for n in range(12)]
    table = write_table(tmp_path, rows)
    dataset = load_dataset(table, "train", image_size=8)
    assert "columns: Set names none of train, val and test, and is left alone" in dataset.description
    with pytest.raises(InputError, match="Set 'fold0' is none of train, val and test"):
        load_dataset(table, image_size=8, split_column="Set")
    rows[5]["Set"], rows[6]["Set"] = "train", "trian"  # one that names some has to name all
    with pytest.raises(InputError, match="Set 'fold0' is none of train, val and test"):
        load_dataset(write_table(tmp_path, rows), image_size=8)


def test_a_data_set_of_ours_is_called_as_its_data_are():
    assert RunSettings(data=load_dataset("digits")).data_name == "digits"
