import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from tinymae import load_dataset
from tinymae.evaluation.metrics import accuracy, map_dataset, reconstruction_metrics, wilson_interval
from tinymae.evaluation.neighbours import knn_predict
from tinymae.evaluation.probes import L2_GRID, choose_probe, fit_mlp, linear_fits, predict_score


@pytest.fixture(scope="module")
def pixels():
    splits = [load_dataset("digits", split) for split in ("train", "val", "test")]
    return [(split.images.flatten(1) / 255, split.labels) for split in splits]


def test_knn_votes_as_scikit_learns_weighted_neighbours(pixels):
    (features, labels), _, (test, _) = pixels
    theirs = KNeighborsClassifier(20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    expected = theirs.fit(features, labels).predict(test)
    assert np.array_equal(knn_predict(features, labels, test, num_classes=10).numpy(), expected)


def test_the_probe_is_chosen_on_validation(pixels):
    (features, labels), (val, val_labels), _ = pixels
    probe, l2, tried = choose_probe(
        linear_fits(features, labels, num_classes=10), lambda probe: predict_score(probe, val, val_labels)
    )
    assert tried[l2] == max(tried.values()) and len(tried) == len(L2_GRID)
    assert predict_score(probe, val, val_labels) == tried[l2]


def test_mlp_learns_and_repeats_itself(pixels):
    (features, labels), _, (test, test_labels) = pixels
    fit = {"num_classes": 10, "weight_decay": 0.1, "seed": 3, "epochs": 5}
    probe = fit_mlp(features, labels, **fit)
    assert predict_score(probe, test, test_labels) > 90
    again = fit_mlp(features, labels, **fit)
    assert torch.equal(probe(test), again(test))


def test_weight_decay_makes_the_weights_of_an_mlp_smaller():
    data = {"features": torch.randn(200, 8), "labels": torch.arange(200) % 3, "num_classes": 3, "seed": 0, "epochs": 20}
    without, much = (fit_mlp(**data, weight_decay=decay)[1].weight.norm() for decay in (0.0, 10.0))
    assert much < 0.9 * without


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


def test_scores_are_those_of_full_precision_under_autocast(pixels):
    (features, labels), _, (test, _) = pixels
    noisy = test + 0.02 * torch.randn(test.shape, generator=torch.Generator().manual_seed(0))
    images, noisy = test.view(-1, 1, 8, 8), noisy.view(-1, 1, 8, 8)

    def scores():
        classes = knn_predict(features, labels, test, num_classes=10)
        return classes.tolist(), {name: of.tolist() for name, of in reconstruction_metrics(images, noisy).items()}

    with torch.autocast("cpu", torch.bfloat16):
        half = scores()
    assert half == scores()


def test_accuracy_is_in_percent():
    assert accuracy(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 5])) == 75


@pytest.mark.parametrize(("right", "count"), [(0, 5), (9, 19), (19, 19), (9000, 10000)])
def test_the_interval_of_an_accuracy_is_wilsons(right, count):
    """Its bounds are the true ratios p at which the found one lies 1.96 standard deviations away."""
    bounds = [bound / 100 for bound in wilson_interval(100 * right / count, count)]
    for p in bounds:
        distance = abs(right / count - p)
        assert distance == pytest.approx(1.959964 * (p * (1 - p) / count) ** 0.5, abs=1e-6)
    assert bounds[0] <= right / count <= bounds[1] and bounds[0] < bounds[1]
