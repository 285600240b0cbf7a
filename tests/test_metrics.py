"""Scores of predictions and reconstructions."""

import pytest
import torch
from pictures import digits_as_rows

from tinymae import load_dataset
from tinymae.evaluation.metrics import describe_score, map_dataset, reconstruction_metrics, wilson_interval
from tinymae.evaluation.neighbours import knn_predict


def test_map_dataset_keeps_the_order():
    dataset = load_dataset("digits", "val")
    mapped = map_dataset(lambda images: images.flatten(1).sum(1), dataset, device="cpu", batch_size=50)
    assert torch.equal(mapped, dataset.images.flatten(1).sum(1).float())


def test_reconstruction_metrics():
    original = torch.rand(4, 3, 16, 16) * 0.8
    perfect = reconstruction_metrics(original, original.clone())
    assert perfect["mse"].tolist() == [0] * 4 and perfect["ssim"].tolist() == pytest.approx([1] * 4)
    shifted = reconstruction_metrics(original, original + 0.1)
    assert shifted["mse"].tolist() == pytest.approx([0.01] * 4, rel=1e-4)
    assert shifted["psnr"].tolist() == pytest.approx([20] * 4, rel=1e-4)
    assert (reconstruction_metrics(torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8))["ssim"] < 0.9).all()
    mixed = reconstruction_metrics(original, torch.cat([original[:2], original[2:] + 0.1]))
    for name, values in mixed.items():  # each image has its own
        assert torch.equal(values, torch.cat([perfect[name][:2], shifted[name][2:]]))


@pytest.mark.parametrize("size", [(1, 1), (2, 8), (8, 2)])
def test_images_too_small_for_ssim_have_the_other_metrics(size):
    original = torch.rand(4, 3, *size) * 0.8
    found = reconstruction_metrics(original, original + 0.1)
    assert found.keys() == {"mse", "psnr"} and found["psnr"].tolist() == pytest.approx([20] * 4, rel=1e-3)


def test_scores_are_those_of_full_precision_under_autocast():
    (features, labels), _, (test, _) = digits_as_rows()
    noisy = test + 0.02 * torch.randn(test.shape, generator=torch.Generator().manual_seed(0))
    images, noisy = test.view(-1, 1, 8, 8), noisy.view(-1, 1, 8, 8)

    def scores():
        classes = knn_predict(features, labels, test, num_classes=10)
        return classes.tolist(), {name: of.tolist() for name, of in reconstruction_metrics(images, noisy).items()}

    with torch.autocast("cpu", torch.bfloat16):
        half = scores()
    assert half == scores()


def test_one_image_is_called_one():
    assert describe_score(100, 1, "test").startswith("100.0 % of the 1 test image (")


@pytest.mark.parametrize(("right", "count"), [(0, 5), (9, 19), (19, 19), (9000, 10000)])
def test_the_interval_of_an_accuracy_is_wilsons(right, count):
    """Its bounds are the true ratios p at which the found one lies 1.96 standard deviations away."""
    bounds = [bound / 100 for bound in wilson_interval(100 * right / count, count)]
    for p in bounds:
        distance = abs(right / count - p)
        assert distance == pytest.approx(1.959964 * (p * (1 - p) / count) ** 0.5, abs=1e-6)
    assert bounds[0] <= right / count <= bounds[1] and bounds[0] < bounds[1]
    assert {type(bound) for bound in bounds} == {float}  # not numpy's, which print as np.float64(...)
