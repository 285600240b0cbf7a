import json

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from tinymae import InputError, MaskedAutoencoder, evaluate
from tinymae.weights import (
    Classifier,
    build_classifier,
    create_classifier,
    fill_encoder,
    fold_probe,
    halve,
    kind_of,
    load_autoencoder,
    load_classifier,
    save_autoencoder,
    save_classifier,
    save_head,
)

SIZES = {"image_size": 8, "patch_size": 2, "embed_dim": 24, "depth": 2, "num_heads": 2}
CLASSES = ["a", "b", "c"]


@pytest.fixture
def autoencoder():
    return MaskedAutoencoder(**SIZES, mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3)).eval()


@pytest.mark.parametrize("pool", ["avg", "cls"])
def test_a_new_classifier_sees_the_features_that_probes_see(autoencoder, pool):
    vit = create_classifier(autoencoder.config, num_classes=3, pool=pool).eval()
    fill_encoder(vit, autoencoder.encoder)
    images = torch.randn(4, 3, 8, 8)
    features = vit.forward_head(vit.forward_features(images), pre_logits=True)
    torch.testing.assert_close(features, autoencoder.encode(images, pool=pool), atol=1e-6, rtol=0)


@pytest.mark.parametrize("pool", ["avg", "cls"])
def test_a_folded_probe_gives_the_probes_logits(autoencoder, pool):
    images, labels = torch.randint(0, 256, (60, 3, 8, 8), dtype=torch.uint8), torch.arange(60) % 3
    with torch.no_grad():
        features = autoencoder.encode(images, pool=pool)
    probe = evaluate.fit_linear(features, labels, num_classes=3, l2=0.01)
    vit = create_classifier(autoencoder.config, num_classes=3, pool=pool).eval()
    fill_encoder(vit, autoencoder.encoder)
    fold_probe(vit.head, probe)
    classifier = Classifier(vit, mean=autoencoder.config["mean"], std=autoencoder.config["std"], classes=CLASSES)
    torch.testing.assert_close(classifier(images), probe(features), atol=1e-3, rtol=1e-4)


def test_a_classifier_is_loaded_strictly_by_us_and_by_timm(autoencoder, tmp_path):
    vit = create_classifier(autoencoder.config, num_classes=3, pool="avg", drop_path=0.2).eval()
    save_classifier(vit, tmp_path, config=autoencoder.config, pool="avg", classes=CLASSES)
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    ours = load_classifier(tmp_path)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    expected = vit(autoencoder.normalise(images))
    assert torch.equal(ours(images), expected) and ours.classes == CLASSES
    torch.testing.assert_close(ours(images[0]), expected[:1])  # one image is a batch of one
    assert torch.equal(theirs(autoencoder.normalise(images)), expected)
    assert theirs.pretrained_cfg["mean"] == (0.4, 0.5, 0.6) or list(theirs.pretrained_cfg["mean"]) == [0.4, 0.5, 0.6]


def test_the_two_kinds_of_folder_are_told_apart(autoencoder, tmp_path):
    save_autoencoder(autoencoder, tmp_path / "mae")
    vit = create_classifier(autoencoder.config, num_classes=3)
    save_classifier(vit, tmp_path / "classifier", config=autoencoder.config, pool="avg", classes=CLASSES)
    assert kind_of(tmp_path / "mae") == "autoencoder" and kind_of(tmp_path / "classifier") == "classifier"
    with pytest.raises(InputError, match="hold a classifier"):
        load_autoencoder(tmp_path / "classifier")
    with pytest.raises(InputError, match="hold an autoencoder"):
        load_classifier(tmp_path / "mae")
    with pytest.raises(InputError, match="nothing does not exist"):
        kind_of(tmp_path / "nothing")
    (tmp_path / "mae" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no model\.safetensors"):
        load_autoencoder(tmp_path / "mae")
    (tmp_path / "classifier" / "config.json").write_text(json.dumps({"architecture": "unheard_of"}))
    with pytest.raises(InputError, match="unheard_of"):
        kind_of(tmp_path / "classifier")


def test_saving_leaves_no_part_behind_when_it_fails(autoencoder, tmp_path):
    save_autoencoder(autoencoder, tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()

    class Bad(nn.Module):
        def state_dict(self):
            return {"x": torch.zeros(2).to_sparse()}

    with pytest.raises((RuntimeError, ValueError, NotImplementedError)):
        save_autoencoder(Bad(), tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_half_precision_files_load_as_float32(autoencoder, tmp_path):
    save_autoencoder(autoencoder, tmp_path)
    from safetensors.torch import load_file, save_file

    file = tmp_path / "model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file)
    loaded = load_autoencoder(tmp_path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(loaded.encode(images), autoencoder.encode(images), atol=0.02, rtol=0)


def test_a_head_alone_finds_its_autoencoder_and_no_other(autoencoder, tmp_path):
    save_autoencoder(autoencoder, tmp_path / "whole")
    halve(tmp_path / "whole", tmp_path / "mae")
    classifier = build_classifier(load_autoencoder(tmp_path / "mae"), classes=CLASSES).eval()
    save_head(classifier.head, tmp_path / "head", autoencoder=tmp_path / "mae", classes=CLASSES)
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    torch.testing.assert_close(load_classifier(tmp_path / "head")(images), classifier(images), atol=1e-3, rtol=1e-3)
    assert (tmp_path / "head" / "model.safetensors").stat().st_size < 5000
    halved = load_file(tmp_path / "mae" / "model.safetensors")
    assert {tensor.dtype for tensor in halved.values()} == {torch.float16}
    with torch.no_grad():
        autoencoder.encoder.norm.bias += 1
    save_autoencoder(autoencoder, tmp_path / "mae")
    with pytest.raises(InputError, match="were fitted on another autoencoder"):
        load_classifier(tmp_path / "head")
