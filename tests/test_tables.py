"""Tables that name images: their columns, delimiters and rows."""

import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from pictures import describe, every_split, picture, pixels, write_table
from PIL import Image
from pyarrow import parquet
from running import one_line

from tinymae import InputError, load_dataset
from tinymae.commands.settings import RunSettings
from tinymae.commands.unlabelled import UnlabelledSettings
from tinymae.data.images import read_image
from tinymae.data.load import load_splits
from tinymae.data.sources.columns import read_labels


@pytest.mark.parametrize("name", ["table.csv", "table.tsv", "table.parquet"])
def test_a_table_names_paths_labels_and_splits(tmp_path, name):
    rows = [
        {"path": f"images/{n}.png", "label": "dog" if n % 3 else "cat", "split": ("train", "Valid", "test")[n % 3]}
        for n in range(12)
    ]
    splits = every_split(write_table(tmp_path, rows, name), image_size=12)
    assert [len(dataset) for dataset in splits.values()] == [4, 4, 4]
    assert splits["train"].classes == ["cat", "dog"] and splits["val"].names == [
        f"images/{n}.png" for n in (1, 4, 7, 10)
    ]
    assert torch.equal(splits["test"].images[0], read_image(tmp_path / "images" / "2.png", (3, 12, 12), depth="uint8"))
    assert splits["test"].labels.tolist() == [1] * 4


def test_the_delimiter_is_that_of_the_header(tmp_path):
    picture(tmp_path / "1, 2.png")
    for name, delimiter in [("a.csv", ";"), ("b.csv", "\t"), ("c.tsv", "\t"), ("d.tsv", ";"), ("e.csv", ",")]:
        path = "1, 2.png" if delimiter != "," else '"1, 2.png"'
        (tmp_path / name).write_text(f"\ufeffpath{delimiter}class{delimiter}split\n{path}{delimiter}cat{delimiter}test")
        dataset = load_dataset(tmp_path / name, "test")
        assert dataset.names == ["1, 2.png"] and dataset.classes == ["cat"]


# ---- columns


def test_columns_may_have_other_names(tmp_path):
    rows = [{"path": f"{n}.png", "who": n % 2, "part": "train" if n else "test"} for n in range(9)]
    path = write_table(tmp_path, rows)
    dataset = load_dataset(path, image_column="path", label_column="who", split_column="part", image_size=8)
    assert dataset.classes == ["0", "1"] and len(dataset) + len(load_dataset(path, "val", split_column="part")) == 8
    assert load_dataset(path).labels is None  # no column has a usual name


def test_spaces_after_commas_change_nothing(tmp_path):
    for number in range(6):
        picture(tmp_path / f"{number}.png")
    lines = [f"{number}.png, {'ab'[number % 2]}, {'train' if number else 'test'}" for number in range(6)]
    (tmp_path / "a.csv").write_text("\n".join(["path, label, split", *lines]))
    (tmp_path / "b.csv").write_text((tmp_path / "a.csv").read_text().replace(" ", ""))
    spaced, plain = (load_dataset(tmp_path / name, "test") for name in ("a.csv", "b.csv"))
    assert spaced.names == plain.names == ["0.png"]
    assert spaced.classes == plain.classes == ["a", "b"] and spaced.labels.tolist() == plain.labels.tolist() == [0]


def test_columns_are_known_in_any_case_and_said(tmp_path):
    rows = [{"path": f"{n}.png", "Label": "ab"[n % 2], "SPLIT": "train" if n < 8 else "test"} for n in range(10)]
    table = write_table(tmp_path, rows)
    test = load_dataset(table, "test", image_size=8)
    assert test.names == ["8.png", "9.png"] and test.labels.tolist() == [0, 1]
    assert test.description[3] == "columns: images from path, labels from Label, splits from SPLIT"
    both = write_table(tmp_path, [row | {"label": "c"} for row in rows], "both.csv")
    assert load_dataset(both, "test", image_size=8).classes == ["c"]  # exactly so before another case
    assert load_dataset(both, "test", image_size=8, label_column="LABEL").classes == ["a", "b"]


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


@pytest.mark.parametrize("kind", [pa.uint8(), pa.int64(), pa.float16(), pa.float64()])
def test_a_column_of_numbers_may_have_an_empty_cell_whatever_their_type(tmp_path, kind):
    paths = [f"{number}.png" for number in range(4)]
    for path in paths:
        picture(tmp_path / path)
    values = np.array([0, np.nan, 1, 1], np.float16) if kind == pa.float16() else [0, None, 1, 1]
    parquet.write_table(pa.table({"path": paths, "label": pa.array(values, kind)}), tmp_path / "t.parquet")
    assert load_dataset(tmp_path / "t.parquet", "all", image_size=8).labels.tolist() == [0, -1, 1, 1]


@pytest.mark.parametrize("name", ["table.csv", "table.parquet"])
def test_the_numbers_that_a_column_has_are_the_classes_whatever_they_are(tmp_path, name):
    values = np.array([330, 20240131, 5, -1, 330, 5, 205, 20240131, 5, 330])
    rows = [
        {"path": f"{n}.png", "label": int(label), "split": "train" if n else "val"} for n, label in enumerate(values)
    ]
    table = write_table(tmp_path, rows, name)
    names, numbers = np.unique(values[values >= 0], return_inverse=True)
    dataset = load_dataset(table, "all", image_size=8)
    assert dataset.classes == [str(number) for number in names] == ["5", "205", "330", "20240131"]
    assert dataset.labels[values >= 0].tolist() == numbers.tolist() and dataset.labels[3] == -1
    assert load_dataset(table, "val", image_size=8).classes == dataset.classes  # those of all splits
    classes, labels = read_labels(pa.chunked_array([[[330, 5], [5], [-1], [205]]]))
    assert classes == ["5", "205", "330"] and labels.tolist() == [[1, 0, 1], [1, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert read_labels(pa.chunked_array([[2, 0]]), known="abc")[1].tolist() == [2, 0]  # of which they are numbers


@pytest.mark.parametrize("word", ["NA", "nan", "NULL", "n/a", ""])
@pytest.mark.parametrize("values", [["dog", None, "cat"], [1, None, 0], [1.0, -1.0, 0.0]])
@pytest.mark.parametrize("name", ["table.csv", "table.tsv"])
def test_a_missing_label_is_none_however_pandas_or_r_writes_it(tmp_path, word, values, name):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"path": [f"{n}.png" for n in range(6)], "label": values * 2})
    for path in table["path"]:
        picture(tmp_path / path)
    table.to_csv(tmp_path / name, na_rep=word, index=False, sep="\t" if name.endswith("tsv") else ",")
    known = pandas.read_csv(tmp_path / name, sep=None, engine="python")["label"].replace(-1, None)
    dataset = load_dataset(tmp_path / name, "all", image_size=8)
    assert dataset.labels.tolist() == pandas.factorize(known, sort=True)[0].tolist() and len(dataset.classes) == 2
    said = f"labels: {word}, 2 in all, taken for no label"
    if isinstance(values[0], str):
        said += "; a class of that name needs quotes"
    assert (said in dataset.description) == (word != "" and None in values)


def test_what_means_no_label_may_be_a_class_in_quotes_a_path_or_a_group(tmp_path):
    rows = ["1.png,cat,NA", "NA,NA,a", '3.png,"NA",a', "4.png,dog,a"]
    for number, row in enumerate(rows):
        picture(tmp_path / "picture.png", seed=number)
        (tmp_path / "picture.png").rename(tmp_path / row.split(",")[0])
    (tmp_path / "t.csv").write_text("\n".join(["path,label,film", *rows]))
    dataset = load_dataset(tmp_path / "t.csv", "all", image_size=8, group_column="film")
    assert dataset.classes == ["NA", "cat", "dog"] and dataset.labels.tolist() == [1, -1, 0, 2]
    assert dataset.names[1] == "NA" and list(dataset.groups) == ["NA", "a", "a", "a"]
    same = load_dataset(tmp_path / "t.csv", "all", image_size=8, label_column="film", group_column="film")
    assert same.labels.tolist() == [-1, 0, 0, 0] and same.groups == dataset.groups


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


def test_data_without_labels_say_where_they_might_be(tmp_path):
    table = write_table(tmp_path, [{"path": f"{n}.png", "kind": "a", "age": n} for n in range(10)])
    with pytest.raises(InputError, match="no labels in train: give --label-column, one of its columns path, kind, age"):
        load_splits(table, ["train"], labelled=True)
    for number in range(4):
        picture(tmp_path / "one" / "a" / f"{number}.png")
        picture(tmp_path / "two" / "b" / f"{number}.png")
    folders = [tmp_path / "one", tmp_path / "two"]
    assert "(several folders, read without labels): 8 images, no labels" in describe(folders)
    with one_line("no labels in train: several folders are read without labels; give one folder"):
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
    table = write_table(tmp_path, [{"path": f"{n}.png"} for n in range(3)], "more.csv")
    assert replace(settings, unlabelled_data=table).load_unlabelled(train).names == ["0.png", "1.png", "2.png"]
    with pytest.raises(InputError, match="label_column kind is none of table"):
        replace(settings, data=table, unlabelled_data=None).load_splits(["all"], image_size=8, channels=3)
    with pytest.raises(InputError, match="has no columns"):
        RunSettings(data=tmp_path / "photos", label_column="kind").load_splits(["all"], image_size=8, channels=3)


# ---- rows


def test_a_missing_file_is_an_unreadable_image(tmp_path):
    rows = [{"path": f"{n}.png", "label": "ab"[n % 2]} for n in range(8)]
    table = write_table(tmp_path, rows)
    (tmp_path / "3.png").unlink()
    with one_line(r"line 5: image .*3\.png does not exist: paths are relative to .* --skip-unread"):
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


def test_an_image_in_several_rows_of_a_table_has_one_label(tmp_path):
    for name in "abc":
        Image.new("L", (4, 4)).save(tmp_path / f"{name}.png")
    table = tmp_path / "table.csv"
    table.write_text("path,label\na.png,x\nb.png,y\nc.png,x\n./a.png,x\n")
    assert "rows: 1 are of images that have another row" in load_dataset(table, "all", image_size=4).description
    table.write_text("path,label\na.png,x\nb.png,y\n./a.png,y\n")
    with pytest.raises(InputError, match="lines 2 and 4: image a.png has one label here and another there: keep one"):
        load_dataset(table, "all", image_size=4)
    table.write_text("path,label\na.png,x\nb.png,y\n./a.png,\n")  # one of the rows has no label
    assert len(load_dataset(table, "all", image_size=4)) == 3
    table.write_text("path,label\na.png,\na.png,x\nb.png,x\na.png,y\n")  # a row without one comes first
    with pytest.raises(InputError, match="lines 3 and 5: image a.png has one label here and another there"):
        load_dataset(table, "all", image_size=4)
    table.write_text("path,label\na.png,\nb.png,\n")
    assert load_dataset(table, "all", image_size=4).labels is None


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_empty_rows_are_left_out_and_said_and_lines_stay_those_of_the_file(tmp_path, suffix):
    """As Excel writes them."""
    for number in range(3):
        picture(tmp_path / f"{number}.png")

    def write(*rows):
        path = tmp_path / f"table.{suffix}"
        if suffix == "csv":
            path.write_text("\n".join(["path;label;age", *(";".join(str(cell or "") for cell in row) for row in rows)]))
        else:
            columns = zip(*rows, strict=True)
            parquet.write_table(pa.table(dict(zip(("path", "label", "age"), map(list, columns), strict=True))), path)
        return path

    empty = [("", None, None), (" ", "", None)]
    rows = [("0.png", "cat", 3), *empty, ("1.png", "dog", None), ("2.png", "cat", 5)]
    dataset = load_dataset(write(*rows, *empty), "all", image_size=8)
    assert dataset.names == ["0.png", "1.png", "2.png"] and dataset.labels.tolist() == [0, 1, 0]
    assert "rows: 4 are empty, and are left out" in dataset.description
    for row, message in [
        (("", "cat", None), "line 7 has no path: fill it in, or leave the row out"),
        (("9.png", "cat", 1), r"line 7: image .*9\.png does not exist"),
        (("0.png", "dog", 1), "lines 2 and 7: image 0.png has one label here and another there"),
    ]:
        with pytest.raises(InputError, match=message):
            load_dataset(write(*rows, row), "all", image_size=8)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        (
            r"C:\photos\1.png",
            r": image C:\photos\1.png does not exist: the table has paths of another computer; give paths rel",
        ),
        ("D:/photos/1.png", "the table has paths of another computer"),
        ("Scan.PNG", "Scan.PNG does not exist: scan.png does; correct the table's paths"),
        ("scan.jpg", "scan.jpg does not exist: scan.png does; correct the table's paths"),
        ("scan", "scan does not exist: scan.png does; correct the table's paths"),
        ("a[1]", "a[1] does not exist: inner/a[1].png does; correct the table's paths"),
        ("old/a[1].tif", "a[1].tif does not exist: paths are relative to the table's folder"),
        ("notes.png", "notes.png does not exist: paths are relative to the table's folder"),
    ],
)
def test_what_may_be_meant_by_a_missing_file_is_said(tmp_path, name, remedy):
    picture(tmp_path / "scan.png")
    picture(tmp_path / "inner" / "a[1].png")
    (tmp_path / "notes.txt").touch()
    (tmp_path / "table.csv").write_text(f"path\n{name}\n")
    with pytest.raises(InputError, match=re.escape(remedy)):
        load_dataset(tmp_path / "table.csv", "all")


def test_a_table_of_another_encoding_is_refused(tmp_path):
    (tmp_path / "table.csv").write_bytes("path,label\na.png,x\nb.png,Diatomée\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"table .*table.csv is not UTF-8 \(byte 31\): save it as CSV UTF-8"):
        load_dataset(tmp_path / "table.csv", "all", image_size=4)


def test_where_no_image_of_a_table_exists_skipping_them_is_no_help_and_the_reason_is_said(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("path,label\nelsewhere/a.png,x\n")
    with pytest.raises(InputError, match="line 2: image .* does not exist: paths are relative to the table's folder"):
        load_dataset(table, "all", image_size=4, skip_unreadable=True)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("where,label\n1.png,a\n", {}, "has no column path or file or filename, only where, label: give image_column$"),
        (
            "where,kind\n1.png,a\n",
            {},
            "has no column path or file or filename, only where, kind: give image_column, and label_column if one",
        ),
        (
            "path,label\n1.png,0\n1.png,20240131\n",
            {},
            "labels are 2 different numbers up to 20240131 for 2 images, like dates or account numbers: name",
        ),
        ("path,label\n", {}, "has no rows"),
        ("path,label,label\n1.png,a,b\n", {}, "has more than one column label: rename the others"),
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
