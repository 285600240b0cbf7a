"""The linear probe of segmentation: masks read as images are, the fit and the metric against scikit-learn's."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from running import tiny_mae
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import jaccard_score

import tinymae
from tinymae import InputError, MaskedAutoencoder
from tinymae.commands import segmentation as command
from tinymae.data.load import load_splits
from tinymae.data.masks import IGNORED, read_masks
from tinymae.evaluation.segmentation import fit_segmentation, predict_masks, segmentation_metrics
from tinymae.files import read_json
from tinymae.models.conv import ConvAutoencoder

COLOURS = torch.tensor([[10, 20, 30], [200, 40, 60], [70, 220, 90]], dtype=torch.uint8)  # of class 0, 1 and 2


def small_model() -> MaskedAutoencoder:
    return tiny_mae(in_channels=3, patch_size=2)


def save(pixels: np.ndarray, path, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def coloured(tmp_path):
    """Images of blocks of 2 x 2 pixels in the colours of their classes, with masks, in three splits."""
    generator = torch.Generator().manual_seed(0)
    for split, count in {"train": 40, "val": 12, "test": 12}.items():
        for number in range(count):
            blocks = torch.randint(0, 3, (4, 4), generator=generator)
            mask = blocks.repeat_interleave(2, 0).repeat_interleave(2, 1)
            save(COLOURS[mask].numpy(), tmp_path / "images" / split / f"{number}.bmp")
            save(mask.to(torch.uint8).numpy(), tmp_path / "masks" / split / f"{number}.png")
    return {"data": tmp_path / "images", "masks": tmp_path / "masks", "mixed_precision": "no"}


def test_the_metric_is_scikit_learns_of_all_pixels_together():
    generator = torch.Generator().manual_seed(0)
    masks, predictions = torch.randint(0, 4, (2, 150, 6, 5), generator=generator).to(torch.uint8)
    masks[torch.rand(masks.shape, generator=generator) < 0.2] = IGNORED
    counted = masks != IGNORED
    expected = jaccard_score(masks[counted], predictions[counted], average=None)
    found = segmentation_metrics(predictions, masks, num_classes=5)
    assert found["iou"][:4] == pytest.approx(100 * expected, abs=1e-4) and found["iou"][4] is None
    assert found["miou"] == pytest.approx(100 * expected.mean(), abs=1e-4)
    right = (masks == predictions)[counted].double().mean()
    assert found["pixel_accuracy"] == pytest.approx(100 * float(right), abs=1e-4)


def test_where_a_pixel_is_a_patch_the_fit_is_scikit_learns_logistic_regression():
    generator = torch.Generator().manual_seed(0)
    maps = 3 + 2 * torch.randn(100, 5, 4, 3, generator=generator)
    scores = maps[:, :3] + 3 * torch.randn(100, 3, 4, 3, generator=generator)
    masks = scores.argmax(dim=1).to(torch.uint8)
    blank = torch.rand(masks.shape, generator=generator) < 0.3  # these are learned from by neither
    head = fit_segmentation(maps, masks.masked_fill(blank, IGNORED), num_classes=3, weight_decay=0.0, seed=0, steps=500)
    rows, labels = maps.permute(0, 2, 3, 1)[~blank], masks[~blank]
    theirs = LogisticRegression(C=1e6).fit(rows, labels)
    with torch.no_grad():
        ours = head(maps).softmax(dim=1).permute(0, 2, 3, 1)[~blank]
    assert np.abs(ours.numpy() - theirs.predict_proba(rows)).max() < 0.03
    assert torch.equal(predict_masks(head, maps, (4, 3))[~blank], ours.argmax(dim=1).to(torch.uint8))


def test_a_set_that_colours_solve_is_solved_by_raw_pixels_and_by_features(
    coloured, quick_probes, tmp_path, monkeypatch
):
    def with_a_useless_one(*given, fits=command.segmentation_fits, **options):
        heads = [*fits(*given, **options)]
        useless = copy.deepcopy(heads[0][1])
        for parameter in useless.parameters():
            torch.nn.init.zeros_(parameter)
        return [*heads, (9.0, useless)]

    monkeypatch.setattr(command, "segmentation_fits", with_a_useless_one)
    run = tinymae.linear_probe(**coloured, weights=small_model(), controls="all", output_dir=tmp_path / "run")
    results = run.results
    assert results["raw_pixels"]["miou_test"] > 95 and results["miou_test"] > 60
    assert results["raw_pixels"]["num_features"] == 12 and results["num_features"] == 16
    assert results["encoder_unchanged"] and results["num_labels"] == 40 and "miou_val" in results["untrained"]
    tried = results["tried_on_val"]  # of which the best is used
    assert results["miou_val"] == tried[str(results["chosen"])] == max(tried.values()) > 60 > tried["9.0"]

    splits = load_splits(coloured["data"], ["test"], image_size=8, masked=True)
    masks = read_masks(coloured["masks"], splits["test"])
    with torch.no_grad():
        predictions = run.model(splits["test"].images).argmax(dim=1)
    expected = jaccard_score(masks.flatten(), predictions.flatten(), average="macro")
    assert results["miou_test"] == pytest.approx(100 * expected, abs=0.01)
    assert np.asarray(Image.open(tmp_path / "run" / "masks.png")).std() > 10
    assert read_json(tmp_path / "run" / "results.json")["iou_test"] == results["iou_test"]


def test_the_same_command_gives_the_same_and_other_masks_are_refused(coloured, quick_figures, quick_probes, tmp_path):
    probe = coloured | {"weights": small_model(), "output_dir": tmp_path / "run", "no_test": True,
                        "label_fraction": 0.5, "val_labels": 5}  # fmt: skip
    first, second = (tinymae.linear_probe(**probe).results for _ in range(2))
    assert first == second and (first["num_labels"], first["num_val_labels"]) == (20, 5)
    assert "miou_val" in first and "miou_test" not in first
    for path in (coloured["masks"] / "train").iterdir():
        save(2 * np.eye(8, dtype=np.uint8), path)
    with pytest.raises(InputError, match="holds another run .masks_sha256 was"):
        tinymae.linear_probe(**probe)


def test_a_mask_is_resized_and_cropped_as_its_image_is(tmp_path):
    generator = np.random.default_rng(0)
    blocks = generator.integers(0, 2, (6, 9), dtype=np.uint8)
    mask = blocks.repeat(4, axis=0).repeat(4, axis=1)  # 24 x 36 pixels: of 6 x 9 blocks the middle 6 x 6 are kept
    save(255 * mask, tmp_path / "images" / "a" / "grey.png")
    save(255 * mask, tmp_path / "images" / "a" / "palette.jpg", quality=100)
    save(255 * mask, tmp_path / "images" / "a" / "bits.tif")
    save(mask, tmp_path / "masks" / "a" / "grey.png")
    save(mask.astype(bool), tmp_path / "masks" / "a" / "bits.png")
    palette = Image.fromarray(mask)
    palette.putpalette([90, 80, 70, 10, 200, 30])
    palette.save(tmp_path / "masks" / "a" / "palette.png")
    (dataset,) = load_splits(tmp_path / "images", ["all"], image_size=12, channels=1).values()
    masks = read_masks(tmp_path / "masks", dataset)
    assert masks.shape == (3, 12, 12) and 0.2 < masks.float().mean() < 0.8
    middle = torch.from_numpy(mask[::2, ::2][:, 3:15].copy())
    assert all(torch.equal(each, middle) for each in masks)
    # Bicubic resizing rings at edges, yet most pixels are on the right side of grey.
    assert ((dataset.images[:, 0] > 127) == masks.bool()).float().mean() > 0.95


def test_a_resized_mask_has_no_class_that_the_file_lacks(tmp_path):
    """The mean of two classes is another."""
    mask = 2 * np.random.default_rng(0).integers(0, 2, (20, 20), dtype=np.uint8)
    save(mask, tmp_path / "images" / "a.bmp")
    save(mask, tmp_path / "masks" / "a.png")
    (dataset,) = load_splits(tmp_path / "images", ["all"], image_size=12, channels=1).values()
    assert read_masks(tmp_path / "masks", dataset).unique().tolist() == [0, 2]


def test_masks_that_cannot_be_used_are_refused_before_a_folder_is_made(coloured, tmp_path):
    def refused(message, **settings):
        with pytest.raises(InputError, match=message):
            tinymae.linear_probe(**coloured | {"weights": small_model()} | settings, output_dir=tmp_path / "run")

    refused("head mlp, pool avg: leave both out", head="mlp")
    refused(
        "hold a ConvAutoencoder, where only --model mae will do",
        weights=ConvAutoencoder(image_size=8, width=8, latent_dim=4),
    )
    refused("masks folder .*nothing does not exist", masks=tmp_path / "nothing")
    refused("has no image files that masks could stand beside", data=torch.zeros(9, 3, 8, 8, dtype=torch.uint8))
    mask = coloured["masks"] / "val" / "3.png"
    save(np.full((8, 8), 7, dtype=np.uint8), mask)
    refused("val/3.png has class 7, the masks of train have 0 to 2")
    save(np.zeros((8, 8, 3), dtype=np.uint8), mask)
    refused("val/3.png has pixels of type RGB: save the number")
    mask.write_bytes(b"no image")
    refused("val/3.png cannot be read")
    mask.unlink()
    refused("val/3.png does not exist: image val/3.bmp needs one of the same relative path")
    for path in (coloured["masks"] / "train").iterdir():
        save(np.full((8, 8), IGNORED, dtype=np.uint8), path)
    refused("have one class alone in train")
    assert not (tmp_path / "run").exists()
