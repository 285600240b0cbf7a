"""Figures: letters of any script, images of any depth, and the losses of pretraining."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import resized
from PIL import Image
from running import tiny_mae

import tinymae
from tinymae.evaluation import figures
from tinymae.evaluation.figures import display_limits, thumbnails, viewable

UNWRITTEN = Path("figure.png")


@pytest.fixture
def drawn(monkeypatch) -> list:
    """The figures that are drawn from now on, in place of their files."""
    figures_drawn: list = []
    monkeypatch.setattr(figures, "save", lambda figure, path: figures_drawn.append(figure) or path)
    return figures_drawn


def test_names_in_scripts_that_no_font_has_draw_without_a_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.confusion_matrix(np.eye(2), ["\ue001 鳥", "кошка"], tmp_path / "matrix.png", "漢字 \ue001")
        rows = [{"epoch": epoch, "loss": 1.0} for epoch in (1, 2)]
        figures.training_curves(rows, {"loss": ["loss"]}, tmp_path / "curves.png", "漢字 \ue001")
    for name in ("matrix", "curves"):
        assert np.asarray(Image.open(tmp_path / f"{name}.png")).std() > 10


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_deep_images_are_seen_alike_however_much_of_their_range_they_fill(channels):
    pixels = torch.randint(0, 256, (4, channels, 16, 16))
    dark, bright = (pixels * 2 + 100).to(torch.uint16), (pixels * 200).to(torch.uint16)
    seen = [viewable(images, limits=display_limits(images)).int() for images in (dark, bright)]
    assert (seen[0] - seen[1]).abs().max() <= 1
    assert np.percentile(seen[0], 2) < 10 and np.percentile(seen[0], 98) > 245


def test_eight_bits_are_seen_as_they_are_and_so_is_an_image_without_contrast():
    for channels in (1, 3):
        assert display_limits(torch.randint(50, 60, (2, channels, 4, 4), dtype=torch.uint8)) == figures.FULL
    assert display_limits(torch.full((2, 1, 4, 4), 700, dtype=torch.uint16)) == figures.FULL


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_bands_of_quite_other_ranges_are_all_seen_and_colours_of_an_image_stay(dtype):
    scale = {torch.uint8: 1, torch.uint16: 257}[dtype]
    bands = torch.randint(0, 21, (4, 13, 16, 16)) + torch.arange(13).view(1, -1, 1, 1) * 18  # no two alike
    bands[:, 5] = 7  # a dead one
    images = (bands * scale).to(dtype)
    for channels in (None, (3, 2, 1), (5, 2, 12)):
        seen = viewable(images, channels, display_limits(images, channels))
        for shown, channel in enumerate(channels or (0, 1, 2)):
            values = seen[:, shown].float()
            assert (values.min(), values.max()) == ((7, 7) if channel == 5 else (0, 255))
    colours = torch.stack([torch.randint(low, 400, (4, 16, 16)) for low in (0, 100, 300)], dim=1).to(torch.uint16)
    seen = viewable(colours, limits=display_limits(colours)).float()
    assert seen[:, 0].mean() + 20 < seen[:, 1].mean() < seen[:, 2].mean() - 20


def test_all_columns_of_a_sheet_are_stretched_as_the_originals(tmp_path, monkeypatch):
    images = (torch.rand(24, 1, 8, 8) * 4095).to(torch.uint16)
    shown = {}

    def sheet(columns, path, title, *, channels, limits):
        shown.update({name: viewable(column, channels, limits) for name, column in columns.items()})

    monkeypatch.setattr(figures, "reconstruction_sheet", sheet)
    model = tiny_mae(mean=[0.03], std=[0.02])
    tinymae.evaluate(images, weights=model, split="all", mixed_precision="no", output_dir=tmp_path)
    assert torch.equal(shown["original"], viewable(images, limits=display_limits(images)))
    assert shown["original"].float().std() > 60  # not black
    pasted = (shown["reconstruction"] == shown["original"]).all(dim=1).float().mean()
    assert pasted >= 1 - model.mask_ratio  # the visible patches


def test_no_legend_covers_a_bar(drawn):
    bins = {"confidence": [0.05, 0.95], "accuracy": [1.0, 1.0], "images": [9, 9]}
    figures.reliability(bins, UNWRITTEN, "title")
    drawn[0].draw_without_rendering()
    axes = drawn[0].axes[0]
    assert axes.get_legend().get_window_extent().y0 >= axes.get_window_extent().y1
    assert axes.title.get_window_extent().y0 >= axes.get_legend().get_window_extent().y1


def test_a_bar_is_as_high_as_the_accuracy_of_its_confidence(drawn):
    bins = {"confidence": [0.0, 0.4, 0.7, 0.9], "accuracy": [0.0, 0.3, 0.8, 0.5], "images": [0.0, 9.0, 5.0, 2.0]}
    figures.reliability(bins, UNWRITTEN)
    upper, lower = drawn[0].axes
    for axis, name in ((upper, "accuracy"), (lower, "images")):
        assert [bar.get_height() for bar in axis.patches] == bins[name]
        assert [bar.get_x() + bar.get_width() / 2 for bar in axis.patches] == pytest.approx(
            [1 / 8, 3 / 8, 5 / 8, 7 / 8]
        )
    assert upper.collections[0].get_offsets().tolist() == [[0.4, 0.3], [0.7, 0.8], [0.9, 0.5]]


def test_the_axis_of_counts_of_images_has_no_halves(drawn):
    figures.reliability({name: [1.0, 1.0] for name in ("confidence", "accuracy", "images")}, UNWRITTEN)
    assert all(tick == round(tick) for tick in drawn[0].axes[1].get_yticks())


def test_one_point_is_no_curve(drawn):
    rows = [{"epoch": 1, "loss": 0.9}, {"epoch": 2, "loss": 0.9 + 1e-9}, {"epoch": 2, "accuracy": 40.0}]
    for panels in ({"loss": ["loss"], "accuracy": ["accuracy"]}, {"accuracy": ["accuracy"]}):
        figures.training_curves(rows, panels, UNWRITTEN, "title")
    first, second = drawn
    assert [axis.get_title() for axis in first.axes] == ["loss"]
    assert all(tick == round(tick) for tick in first.axes[0].get_xticks())
    assert [axis.get_title() for axis in second.axes] == ["too short a run for curves"]


def test_curves_stand_two_in_a_row_and_fit_a_page(tmp_path):
    rows = [{"epoch": epoch, "a": epoch, "b": 1, "c": 2} for epoch in range(3)]
    sizes = {}
    for names in ("a", "ab", "abc"):
        path = figures.training_curves(rows, {name: [name] for name in names}, tmp_path / f"{names}.png", "title")
        sizes[names] = Image.open(path).size
    assert abs(sizes["abc"][0] - sizes["ab"][0]) <= 1 and sizes["ab"][0] <= 1200
    assert sizes["a"][0] < sizes["ab"][0] and sizes["ab"][1] < sizes["abc"][1]


def test_the_reconstruction_loss_has_one_curve_over_both_phases(tmp_path, monkeypatch):
    drawn = {}

    def record(rows, panels, path, title=""):
        drawn.update(
            {name: [(row["epoch"], row[key]) for row in rows if key in row] for name, (key,) in panels.items()}
        )

    monkeypatch.setattr(figures, "training_curves", record)
    first = [{"epoch": 1, "loss": 0.9}, {"epoch": 1, "knn_val": 30.0}, {"epoch": 2, "loss": 0.8}]
    figures.pretraining_curves(first, tmp_path / "curves.png", "title")
    assert drawn["loss"] == [(1, 0.9), (2, 0.8)] and len(drawn) == 3
    drawn.clear()
    second = [{"epoch": 3, "loss": 2.7, "reconstruction_loss": 0.7, "contrastive_loss": 2.0}]
    figures.pretraining_curves(first + second, tmp_path / "curves.png", "title")
    assert drawn["reconstruction loss"] == [(1, 0.9), (2, 0.8), (3, 0.7)] and "loss" not in drawn
    assert drawn["contrastive loss"] == [(3, 2.0)]


def test_a_row_of_a_confusion_matrix_is_a_true_class_in_percent(drawn):
    figures.confusion_matrix(np.array([[3, 1], [0, 5]]), ["cat", "dog"], UNWRITTEN, "title")
    (axis,) = drawn[0].axes
    assert axis.get_title() == "title\neach row in % of its true class"
    assert axis.images[0].get_array().tolist() == [[75, 25], [0, 100]]
    written = {(int(text.get_position()[1]), int(text.get_position()[0])): text.get_text() for text in axis.texts}
    assert written == {(0, 0): "75", (0, 1): "25", (1, 1): "100"} and axis.get_ylabel() == "true"


def test_a_confusion_matrix_of_many_classes_is_no_larger_than_a_screen_and_has_their_names(drawn):
    for count in (10, 100, 300):
        names = [f"class {number}" for number in range(count)]
        figures.confusion_matrix(np.eye(count), names, UNWRITTEN)
        (axis,) = drawn[-1].axes
        assert max(drawn[-1].get_size_inches()) <= 14
        assert ([label.get_text() for label in axis.get_xticklabels()] == names) == (count < 300)
        counted = [f"{name} (1)" for name in names]
        assert ([label.get_text() for label in axis.get_yticklabels()] == counted) == (count < 300)


def test_sixteen_bits_are_shown_as_eight():
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    assert torch.equal(thumbnails((images.int() * 257).to(torch.uint16), 4), thumbnails(images, 4))


@pytest.mark.parametrize("side", [12, 96])
def test_thumbnails_are_smooth_as_those_of_pillow(side):
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    for found, image in zip(thumbnails(images, side).flatten(0, 1), images.flatten(0, 1), strict=True):
        assert np.allclose(found.numpy(), resized(image, side), atol=1)
