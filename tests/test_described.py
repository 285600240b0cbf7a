"""What is said of data and results: which splits were held out, and confusion among many classes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tinymae import load_dataset
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
        assert ([label.get_text() for label in axis.get_yticklabels()] == names) == (count < 300)


def test_a_result_is_one_line_without_its_tables():
    results = {"accuracy": 95.16666, "images": 600, "confusion_matrix": [[600]]}
    shown = repr(Result(torch.nn.Flatten(), results, Path("run")))
    assert shown == "Result of a Flatten in run: accuracy 95.17, images 600"
