"""The released weights still do what their README states, on a fixed part of CIFAR-10's test images."""

from pathlib import Path

import pytest
import torch

from tinymae import load, load_dataset, random_mask
from tinymae.data.batches import pick
from tinymae.data.splits import few_labels
from tinymae.evaluation.metrics import accuracy, map_dataset
from tinymae.evaluation.neighbours import knn_predict
from tinymae.files import read_json
from tinymae.interop.load import load_mae
from tinymae.models.vit import choose_attention

FOLDER = Path(__file__).parent.parent / "weights" / "vit-t-mae"


def test_vit_t_mae_scores_as_stated(cifar10_dir):
    """Error over hidden pixels, and k-NN by 1 % of the training labels, as when released."""
    model = load_mae(FOLDER)
    choose_attention(model, "cpu")
    test = pick(load_dataset("cifar10", "test", data_dir=cifar10_dir), 200)
    train = load_dataset("cifar10", "train", data_dir=cifar10_dir)
    train = train.subset(few_labels(train.labels, 0.01, seed=0))
    with torch.no_grad():
        mask = random_mask(200, 64, 0.75, torch.Generator().manual_seed(0))
        shown = model.reconstruct(test.images, mask)
        features = [map_dataset(model.encode, split, device="cpu") for split in (train, test)]
    hidden_error = (shown.images - test.images / 255).square().mean().item() / 0.75
    classes = knn_predict(features[0], train.labels, features[1], num_classes=10)
    stated = read_json(FOLDER / "scores.json")
    assert hidden_error == pytest.approx(stated["hidden_mse_first_200"], rel=0.05)
    assert accuracy(classes, test.labels) == pytest.approx(stated["knn_1_percent_first_200"], abs=1.5)


@pytest.mark.parametrize("name", ["vit-t-linear-probe", "vit-t-classifier-pretrained"])
def test_a_released_classifier_scores_as_stated(name, cifar10_dir):
    classifier = load(FOLDER.parent / name)
    choose_attention(classifier, "cpu")
    test = pick(load_dataset("cifar10", "test", data_dir=cifar10_dir), 200)
    classes = map_dataset(classifier, test, device="cpu").argmax(dim=1)
    stated = read_json(FOLDER.parent / name / "scores.json")["accuracy_first_200"]
    assert accuracy(classes, test.labels) == pytest.approx(stated, abs=0.5)  # one image
