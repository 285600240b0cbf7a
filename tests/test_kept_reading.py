"""Weights keep how their images were read, and whoever uses them reads others alike."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from running import MODEL, SHORT

import tinymae
from tinymae import InputError, load_dataset

READ = {"pixel_range": (0, 4095), "fit": "pad"}
SIZE = {"image_size": 8, "in_channels": 1}
PLAIN = {"mixed_precision": "no", "seed": 1}


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """A file of labelled images of 12 bits, higher than wide, whose upper and lower ends crop would lose."""
    draws = np.random.default_rng(0)
    labels = np.arange(60) % 2
    values = draws.integers(0, 2000, (60, 12, 8)).astype(np.uint16)
    values[labels == 1, :2] += 2000
    path = tmp_path_factory.mktemp("scans") / "scans.npz"
    np.savez(path, images=values, labels=labels)
    return path


@pytest.fixture(scope="module")
def pretrained(scans, tmp_path_factory):
    settings = SIZE | PLAIN | MODEL | SHORT | {"contrast_epochs": 0, "epochs": 1, "batch_size": 16}
    return tinymae.pretrain(scans, output_dir=tmp_path_factory.mktemp("run"), **settings, **READ)


def test_what_comes_of_pretraining_reads_as_pretraining_did(pretrained, scans, tmp_path, capsys):
    assert json.loads((pretrained.folder / "config.json").read_text())["reading"] == {
        "fit": "pad", "pixel_range": [0, 4095], "depth": "uint16",
    }  # fmt: skip
    probe = tinymae.linear_probe(scans, weights=pretrained.folder, output_dir=tmp_path / "probe", **PLAIN)
    said = "images are read as those that the weights learned from: fit pad, pixel_range 0 4095"
    assert said in capsys.readouterr().out
    asked = tinymae.linear_probe(scans, weights=pretrained.folder, output_dir=tmp_path / "asked", **PLAIN, **READ)
    assert said not in capsys.readouterr().out
    assert probe.results["probe_test"] == asked.results["probe_test"]
    tuned = tinymae.finetune(
        scans, weights=pretrained.folder, output_dir=tmp_path / "tuned", epochs=1, batch_size=16, **PLAIN
    )
    for folder in (probe.folder, tuned.folder):
        classifier = tinymae.load(folder)
        tinymae.predict(scans, weights=folder, output_dir=tmp_path / "predict", overwrite=True, **PLAIN)
        dataset = load_dataset(scans, "all", image_size=8, **READ)
        assert torch.equal(load_dataset(scans, "all", model=classifier).images, dataset.images)
        assert not torch.equal(load_dataset(scans, "all", model=classifier, fit="crop").images, dataset.images)
        with torch.no_grad():
            expected = classifier.probabilities(classifier(dataset.images)).amax(dim=1)
        lines = (tmp_path / "predict" / "predictions.csv").read_text().splitlines()
        column = lines[0].split(",").index("probability")
        found = torch.tensor([float(line.split(",")[column]) for line in lines[1:]])
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_one_image_is_read_as_the_weights_own_were(pretrained, scans, tmp_path):
    dataset = load_dataset(scans, "all", image_size=8, **READ)
    for number, values in enumerate(np.load(scans)["images"][:3]):
        Image.fromarray(values).save(path := tmp_path / f"{number}.png")
        for source in (path, str(path), path.read_bytes(), Image.open(path)):
            assert torch.equal(tinymae.load_image(source, pretrained.model), dataset.images[number])
    (cut := tmp_path / "cut.png").write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match="image of Pillow cannot be read"):
        tinymae.load_image(Image.open(cut), pretrained.model)
    with pytest.raises(tinymae.UnreadableImage) as error:
        tinymae.load_image(b"", pretrained.model)
    assert str(error.value) == "image of bytes cannot be read (it is in no format that Pillow knows): repair it"
    with pytest.raises(InputError, match="source is of type ndarray: give an image file, its bytes or a Pillow image"):
        tinymae.load_image(np.zeros((8, 8)), pretrained.model)


def test_a_flag_that_is_given_wins(pretrained, scans, tmp_path):
    kept = []
    for name, given in {"weights": {}, "given": {"fit": "crop", "pixel_range": (0, 65535)}}.items():
        settings = PLAIN | {"weights": pretrained.model, "formats": ("npz",), "split": ("all",)} | given
        kept.append(tinymae.embed(scans, **settings, output_dir=tmp_path / name).folder)
    own, given = (np.load(folder / "embeddings.npz")["features"] for folder in kept)
    encode = pretrained.model.encode
    for found, read in ((own, READ), (given, {})):
        with torch.no_grad():
            expected = encode(load_dataset(scans, "all", image_size=8, **read).images).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("limit", [4.0, 0.0])
def test_what_load_dataset_gave_is_scaled_already(pretrained, scans, limit, tmp_path):
    dataset = load_dataset(scans, "all", image_size=8, memory_limit_gb=limit, **READ)
    with torch.no_grad():
        expected = pretrained.model.encode(dataset[torch.arange(60)][0]).numpy()
    options = {"formats": ("npz",), "split": ("all",), "weights": pretrained.model, "output_dir": tmp_path}
    run = tinymae.embed(dataset, **options, **PLAIN)
    np.testing.assert_allclose(np.load(run.folder / "embeddings.npz")["features"], expected, atol=1e-5)


def test_images_of_8_bits_are_taken_as_they_are_in_an_array_and_in_files(scans, tmp_path):
    values = (np.load(scans)["images"] // 16).astype(np.uint8)
    for number, image in enumerate(values):
        np.save(tmp_path / f"{number:02}.npy", image)
    for data in (values, tmp_path):
        dataset = load_dataset(data, "all", image_size=(12, 8), channels=1, pixel_range=(0, 4095))
        assert np.array_equal(dataset.images[:, 0].numpy(), values)
    assert "of uint8, which pixel_range is not for" in load_dataset(values, pixel_range=(0, 4095)).description[2]


def test_a_classifier_of_ones_own_loop_keeps_it(pretrained, tmp_path):
    tinymae.build_classifier(pretrained.model, classes=["a", "b"]).save_pretrained(tmp_path)
    assert tinymae.load(tmp_path).reading == pretrained.model.reading


def test_a_folder_of_transformers_keeps_it(pretrained, tmp_path):
    classifier = tinymae.build_classifier(pretrained.model, classes=["a", "b"], pool="cls")
    for name, model in {"autoencoder": pretrained.model, "classifier": classifier}.items():
        tinymae.to_transformers(model, tmp_path / name)
        assert tinymae.load(tmp_path / name).reading == pretrained.model.reading != {}


def test_weights_of_plain_images_say_nothing_of_it(tmp_path):
    model = tinymae.MaskedAutoencoder(**SIZE, patch_size=2, depth=1)
    model.save_pretrained(tmp_path)
    assert "reading" not in json.loads((tmp_path / "config.json").read_text())
    assert tinymae.load(tmp_path).reading == {}


@pytest.mark.parametrize(
    ("reading", "message"),
    [
        ("pad", "config.json: reading 'pad' is not dict"),
        ({"fit": 3}, "config.json: reading: fit 3 is not "),
        ({"pixel_range": [0]}, r"config.json: reading: pixel_range \[0\] is not "),
        ({"pixel_range": [5, 1]}, r"config.json: reading: pixel_range \[5, 1\]: the first must be the lower one"),
    ],
)
def test_a_damaged_note_is_refused(reading, message, tmp_path):
    tinymae.MaskedAutoencoder(**SIZE, patch_size=2, depth=1).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"reading": reading}))
    with pytest.raises(InputError, match=message):
        tinymae.load(tmp_path)
