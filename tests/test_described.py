"""What is said of data and results: which splits were held out, and confusion among many classes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tinymae import InputError, load_dataset
from tinymae.commands.results import Result
from tinymae.evaluation import figures


@pytest.mark.parametrize(
    ("folders", "split", "said"),
    [
        (["train", "test"], "train", "val held out of train by a hash of each image's own name"),
        (["train", "val", "test"], "train", "as the data come"),
        (["a", "b"], "train", "val and test held out of train by a hash of each image's own name"),
    ],
)
def test_it_is_said_which_splits_were_held_out(folders, split, said, tmp_path):
    for folder in folders:
        (tmp_path / folder / "c").mkdir(parents=True)
        for number in range(20):
            Image.new("L", (4, 4), number).save(tmp_path / folder / "c" / f"{number}.png")
    dataset = load_dataset(tmp_path, split, image_size=4)
    assert dataset.description[1].endswith(f" ({said})")
    assert load_dataset(tmp_path, "all", image_size=4).description[1] == f"splits: all {20 * len(folders)}"


def test_splits_of_pixels_are_held_out_as_well():
    dataset = load_dataset(torch.zeros(40, 1, 4, 4, dtype=torch.uint8), "train")
    assert dataset.description[1].endswith("(val held out of train by a hash of each image's own name)")


def test_what_is_odd_about_labels_is_said():
    labels = ["Ceratium", "Ceratium ", "CERATIUM", "NA", "Noctiluca"] * 12
    dataset = load_dataset(torch.zeros(60, 1, 4, 4, dtype=torch.uint8), "train", labels=labels)
    assert dataset.classes == ["CERATIUM", "Ceratium", "NA", "Noctiluca"]  # a space at the end is not seen
    assert "classes: CERATIUM and Ceratium differ in case alone: are they one?" in dataset.description
    assert "classes: NA is one of them: if it means that there is no label, leave it empty" in dataset.description
    few = load_dataset(torch.zeros(60, 1, 4, 4, dtype=torch.uint8), "train", labels=["a", "b"] * 9 + [""] * 42)
    split = load_dataset(torch.zeros(60, 1, 4, 4, dtype=torch.uint8), "val", labels=["a", "b"] * 9 + [""] * 42)
    assert f"val {len(split)} ({int((split.labels >= 0).sum())} labelled)" in few.description[1]


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
    table.write_text("path,label\na.png,\nb.png,\n")
    assert load_dataset(table, "all", image_size=4).labels is None
    table.write_bytes("path,label\na.png,x\nb.png,Diatomée\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"table .*table.csv is not UTF-8 \(byte 31\): save it as CSV UTF-8"):
        load_dataset(table, "all", image_size=4)
    table.write_text("path,label\nelsewhere/a.png,x\nb.png,y\n")
    with pytest.raises(
        InputError, match="line 2: image .*elsewhere/a.png does not exist: paths are relative to the table"
    ):
        load_dataset(table, "all", image_size=4)
    assert len(load_dataset(table, "all", image_size=4, skip_unreadable=True)) == 1
    table.write_text("path,label\nelsewhere/a.png,x\n")
    with pytest.raises(InputError, match="line 2: image .* does not exist: paths are relative to the table's folder"):
        load_dataset(table, "all", image_size=4, skip_unreadable=True)


def test_a_row_of_a_confusion_matrix_is_a_true_class_in_percent(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(figures, "save", lambda figure, path: kept.append(figure) or path)
    figures.confusion_matrix(np.array([[3, 1], [0, 5]]), ["cat", "dog"], tmp_path / "figure.png")
    (axis,) = kept[0].axes
    assert axis.images[0].get_array().tolist() == [[75, 25], [0, 100]]
    written = {(int(text.get_position()[1]), int(text.get_position()[0])): text.get_text() for text in axis.texts}
    assert written == {(0, 0): "75", (0, 1): "25", (1, 1): "100"} and axis.get_ylabel() == "true"


def test_a_confusion_matrix_of_many_classes_is_no_larger_than_a_screen_and_has_their_names(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(figures, "save", lambda figure, path: kept.append(figure) or path)
    for count in (10, 100, 300):
        names = [f"class {number}" for number in range(count)]
        figures.confusion_matrix(np.eye(count), names, tmp_path / "figure.png")
        (axis,) = kept[-1].axes
        assert max(kept[-1].get_size_inches()) <= 14
        assert ([label.get_text() for label in axis.get_xticklabels()] == names) == (count < 300)
        counted = [f"{name} (1)" for name in names]
        assert ([label.get_text() for label in axis.get_yticklabels()] == counted) == (count < 300)


def test_a_result_is_one_line_without_its_tables():
    results = {"accuracy": 95.16666, "images": 600, "confusion_matrix": [[600]]}
    shown = repr(Result(torch.nn.Flatten(), results, Path("run")))
    assert shown == "Result of a Flatten in run: accuracy 95.17, images 600"
