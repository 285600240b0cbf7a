"""The released weights still do what their README states, on a fixed part of CIFAR-10's test images."""

from pathlib import Path

import pytest
import torch
from conftest import find_data
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from tinymae import MaskedAutoencoder, load_dataset, random_mask
from tinymae.data.batches import pick
from tinymae.data.datasets import Dataset
from tinymae.data.splits import few_labels
from tinymae.evaluation.metrics import accuracy, map_dataset
from tinymae.evaluation.neighbours import knn_predict
from tinymae.files import read_json, read_tensors
from tinymae.interop.load import load_classifier, load_mae
from tinymae.models.classifier import Classifier
from tinymae.models.vit import ViTEncoder

FOLDER = Path(__file__).parent.parent / "weights"
BATCH = 64  # more would have the kernel map and clear memory for each batch


@pytest.fixture(autouse=True, scope="module")
def without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def data_dir() -> str:
    return find_data("CIFAR-10", "cifar-10-batches-py")


@pytest.fixture(scope="module")
def test(data_dir) -> Dataset:
    return pick(load_dataset("cifar10", "test", data_dir=data_dir), 1000)


@pytest.fixture(scope="module")
def mae() -> MaskedAutoencoder:
    model = load_mae(FOLDER / "vit-t-mae")
    return model


@pytest.fixture(scope="module")
def features(mae, test) -> Tensor:
    """Of the test images, which take the longest: the linear probe's are the same."""
    return map_dataset(mae.encode, test, device="cpu", batch_size=BATCH)


def open_classifier(name: str) -> tuple[Classifier, float]:
    """A released classifier and its stated accuracy on the test images."""
    classifier = load_classifier(FOLDER / name)
    return classifier, read_json(FOLDER / name / "scores.json")["accuracy_of_1000"]


def test_vit_t_mae_scores_as_stated(mae, test, features, data_dir):
    """Error over hidden pixels, and k-NN by 1 % of the training labels, as when released."""
    train = load_dataset("cifar10", "train", data_dir=data_dir)
    train = train.subset(few_labels(train.labels, 0.01, seed=0))
    mask = random_mask(1000, 64, 0.75, torch.Generator().manual_seed(0))
    shown = mae.reconstruct(test.images, mask)
    known = map_dataset(mae.encode, train, device="cpu", batch_size=BATCH)
    classes = knn_predict(known, train.labels, features, num_classes=10)
    hidden_error = (shown.images - test.images / 255).square().mean().item() / 0.75
    stated = read_json(FOLDER / "vit-t-mae" / "scores.json")
    assert hidden_error == pytest.approx(stated["hidden_mse_of_1000"], rel=0.05)
    assert accuracy(classes, test.labels) == pytest.approx(stated["knn_1_percent_of_1000"], abs=1.5)


def test_the_linear_probe_is_that_encoder_and_a_head_that_scores_as_stated(mae, test, features):
    probe, stated = open_classifier("vit-t-linear-probe")
    assert isinstance(probe.encoder, ViTEncoder)
    probed, encoder = probe.encoder.vit.state_dict(), mae.encoder.state_dict()
    assert probed.keys() == encoder.keys() and all(torch.equal(probed[name], encoder[name]) for name in encoder)
    torch.testing.assert_close(probe(test.images[:32]), probe.head(features[:32]), atol=1e-3, rtol=0)
    assert accuracy(probe.head(features).argmax(dim=1), test.labels) == pytest.approx(stated, abs=0.2)


def test_the_classifier_scores_as_stated(test):
    classifier, stated = open_classifier("vit-t-classifier-pretrained")
    classes = map_dataset(classifier, test, device="cpu", batch_size=BATCH).argmax(dim=1)
    assert accuracy(classes, test.labels) == pytest.approx(stated, abs=0.2)


def test_released_weights_carry_their_checksum():
    for path in (Path(__file__).parent.parent / "weights").glob("*/model.safetensors"):
        with safe_open(path, "pt") as file:
            assert "sha256" in file.metadata()  # which reading compares
        assert read_tensors(path).keys() == load_file(path).keys()
