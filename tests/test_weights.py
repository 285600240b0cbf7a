"""Weights on disk: classifiers, every kind of folder and file, and the Hub."""

import copy
import json
import pickle
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from running import FEW, one_line, save_images, tiny_mae
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import tinymae
from tinymae import Classifier, InputError, MaskedAutoencoder
from tinymae.evaluation.probes import fit_linear, standardise
from tinymae.interop.load import load_autoencoder, load_classifier, load_mae
from tinymae.models.classifier import build_classifier, fold_probe
from tinymae.models.conv import ConvAutoencoder
from tinymae.models.pretrained import UNREACHABLE
from tinymae.models.vqvae import VQAutoencoder

SIZES = {"image_size": 8, "patch_size": 2, "embed_dim": 24, "depth": 2, "num_heads": 2}
CLASSES = ["a", "b", "c"]


@pytest.fixture
def autoencoder():
    return MaskedAutoencoder(**SIZES, mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3)).eval()


@pytest.fixture
def images():
    return torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)


@pytest.mark.parametrize("pool", ["avg", "cls"])
def test_a_new_classifier_sees_the_features_that_probes_see(autoencoder, images, pool):
    classifier = build_classifier(autoencoder, classes=CLASSES, pool=pool).eval()
    expected = autoencoder.encode(images, pool=pool)
    features = classifier.vit.forward_head(classifier.vit.forward_features(classifier.normalise(images)), True)
    for found in (classifier.encoder.encode(images), features):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(classifier(images), classifier.head(expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize("pool", ["avg", "cls"])
def test_the_vit_of_a_classifier_is_timms_own_and_made_of_its_tensors(autoencoder, images, pool):
    classifier = build_classifier(autoencoder, classes=CLASSES, pool=pool, drop_path=0.1, patch_drop=0.2).eval()
    vit = classifier.vit
    assert vit is not None
    assert type(vit) is VisionTransformer and vit.num_classes == 3 and not vit.training
    theirs = {parameter.data_ptr() for parameter in vit.parameters()}
    assert theirs == {parameter.data_ptr() for parameter in classifier.parameters()}
    assert torch.equal(vit(classifier.normalise(images)), classifier(images))
    before = {name: tensor.clone() for name, tensor in autoencoder.state_dict().items()}
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in autoencoder.state_dict().items())  # it has copies


@pytest.mark.parametrize("pool", ["avg", "cls"])
def test_a_folded_probe_gives_the_probes_logits(autoencoder, pool):
    images, labels = torch.randint(0, 256, (60, 3, 8, 8), dtype=torch.uint8), torch.arange(60) % 3
    with torch.no_grad():
        features = autoencoder.encode(images, pool=pool)
    probe = fit_linear(features, labels, num_classes=3, l2=0.01)
    classifier = build_classifier(autoencoder, classes=CLASSES, pool=pool).eval()
    fold_probe(classifier.head, probe)
    torch.testing.assert_close(classifier(images), probe(features), atol=1e-3, rtol=1e-4)


def test_a_feature_that_hardly_varies_is_folded_as_the_others():
    """Where it does not vary at all, BatchNorm's epsilon stands for its variance."""
    features = 3 + torch.randn(50, 4) * torch.tensor([1.0, 0.1, 1e-3, 0.0])
    probe, head = nn.Sequential(standardise(features), nn.Linear(4, 2)), nn.Linear(4, 2)
    fold_probe(head, probe)
    torch.testing.assert_close(head(features), probe(features), atol=1e-3, rtol=0)


def test_the_encoder_by_itself_gives_what_encode_gives(autoencoder, images):
    torch.testing.assert_close(autoencoder.encoder(autoencoder.normalise(images)), autoencoder.encode(images))


def test_a_classifier_of_what_does_not_fit_is_refused(autoencoder):
    with pytest.raises(InputError, match="encoder is a VisionTransformer: tinymae.build_classifier makes"):
        Classifier(autoencoder.encoder, nn.Linear(24, 3), classes=CLASSES)
    with pytest.raises(InputError, match="head has 24 inputs and 2 outputs, for 24 features and 3 classes"):
        Classifier(autoencoder, nn.Linear(24, 2), classes=CLASSES)


@pytest.mark.parametrize("family", ["mae", "conv_ae"])
def test_a_classifier_goes_to_the_hub_and_comes_back_with_its_card(autoencoder, images, family, tmp_path, monkeypatch):
    model = autoencoder if family == "mae" else ConvAutoencoder(image_size=8, width=8, latent_dim=5).eval()
    build_classifier(model, classes=CLASSES, several=True).save_pretrained(tmp_path / "run")
    (tmp_path / "run" / "README.md").write_text("# A card")
    (tmp_path / "run" / "curves.png").write_bytes(b"picture")
    classifier = tinymae.load(tmp_path / "run")
    sent = {}

    def upload(self, *, folder_path, **_):
        sent.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})

    monkeypatch.setattr(
        "huggingface_hub.HfApi.create_repo", lambda self, repo_id, **_: SimpleNamespace(repo_id=repo_id)
    )
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload)
    classifier.push_to_hub("somebody/classifier")
    assert sent == {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    again = Classifier.from_pretrained(tmp_path / "run")
    assert again.classes == CLASSES and again.several and not again.training
    assert torch.equal(again(images), classifier(images))
    assert torch.equal(copy.deepcopy(again)(images), pickle.loads(pickle.dumps(again))(images))
    with pytest.raises(InputError, match="holds a .*, not a VQAutoencoder"):
        VQAutoencoder.from_pretrained(tmp_path / "run")


def test_weights_without_a_card_are_given_no_licence(autoencoder, tmp_path):
    autoencoder.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "library_name: tinymae" in card and not re.search("licen[cs]e", card, re.IGNORECASE)


@pytest.mark.parametrize("error", [UNREACHABLE("unreachable"), OSError("no token\nis there")])
def test_a_hub_that_cannot_be_reached_is_one_line(error, autoencoder, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", fail)
    with pytest.raises(InputError, match=r"^somebody/mae was not uploaded, .* \((unreachable|no token)\): check the"):
        autoencoder.push_to_hub("somebody/mae")


@pytest.mark.parametrize("source", ["runs/mea", "runs/vit", "./runs/mea", "mea", "runs/a/b"])
def test_the_hub_is_not_asked_for_a_mistyped_path(source, autoencoder, tmp_path, monkeypatch):
    """A stranger may have weights of that name there."""

    def unreachable(name, **_):
        assert name == "timm/vit"
        raise OSError("no network")

    monkeypatch.setattr("tinymae.models.filling.snapshot_download", unreachable)
    autoencoder.save_pretrained(tmp_path / "runs" / "mae")
    monkeypatch.chdir(tmp_path if "/" in source else tmp_path / "runs")
    near = "" if source in ("runs/vit", "runs/a/b") else f" (did you mean {Path(source).with_name('mae')}?)"
    why = "; the Hugging Face Hub is not asked, as runs is a folder here" if source in ("runs/mea", "runs/vit") else ""
    with pytest.raises(InputError, match=f"^weights folder {source} does not exist{re.escape(near + why)}$"):
        tinymae.load(source)
    with one_line(r"^weights folder timm/vit does not exist, and the Hugging Face Hub gave nothing"):
        tinymae.load("timm/vit")


def test_every_kind_of_source_is_read_by_the_same_function(autoencoder, images, tmp_path):
    autoencoder.write_weights(tmp_path / "run")
    autoencoder.save_pretrained(tmp_path / "hub")
    tinymae.to_transformers(autoencoder, tmp_path / "transformers")
    tinymae.to_official(autoencoder, tmp_path / "mae.pth")
    for source in ("run", "hub", "transformers", "mae.pth"):
        for form in (tmp_path / source, str(tmp_path / source)):
            model = tinymae.load(form)
            assert isinstance(model, MaskedAutoencoder) and not model.training
            pixels = autoencoder.normalise(images)  # the official file does not say its mean and std
            torch.testing.assert_close(model.encode(pixels), autoencoder.encode(images), atol=1e-5, rtol=0)
    classifier = build_classifier(autoencoder, classes=CLASSES, pool="cls").eval()
    classifier.write_weights(tmp_path / "timm")
    tinymae.to_transformers(classifier, tmp_path / "transformers classifier")
    for source in ("timm", "transformers classifier"):
        model = tinymae.load(tmp_path / source)
        assert isinstance(model, Classifier) and model.classes == CLASSES
        torch.testing.assert_close(model(images), classifier(images), atol=1e-5, rtol=0)
    for model in (autoencoder, classifier):
        assert tinymae.load(model) is model


GIVEN = {
    "pretrain": {"epochs": 1, "contrast_epochs": 0, "batch_size": 16}, "finetune": {"epochs": 1, "batch_size": 16},
    "embed": {"formats": ()}, "linear_probe": {}, "evaluate": {"split": "val"}, "inspect": {}, "predict": {},
    "neighbours": {},
}  # fmt: skip


@pytest.mark.parametrize("command", GIVEN)
def test_a_model_that_is_given_to_a_command_stays_as_it_was(command, quick_figures, quick_probes, tmp_path):
    """In half precision too, which is computed with in float32."""
    mae = tiny_mae()
    model = (build_classifier(mae, classes=CLASSES) if command == "predict" else mae).half().train()
    before = copy.deepcopy(model).state_dict()
    given = FEW | {"mixed_precision": "bf16"}
    if command == "neighbours":
        given["query"] = save_images(tmp_path / "queries", FEW["data"][:2])
    run = getattr(tinymae, command)(**GIVEN[command] | given, weights=model, output_dir=tmp_path / "run")
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {parameter.dtype for parameter in run.model.parameters()} == {torch.float32} and not run.model.training


@pytest.mark.parametrize("family", ["mae", "conv_ae"])
def test_a_file_of_a_weights_folder_stands_for_the_folder(autoencoder, images, family, tmp_path):
    model = autoencoder if family == "mae" else ConvAutoencoder(image_size=8, width=8, latent_dim=5).eval()
    model.write_weights(tmp_path)
    for name in ("model.safetensors", "config.json"):
        for read in (tinymae.load, type(model).from_pretrained):
            assert torch.equal(read(tmp_path / name).encode(images), model.encode(images))


def test_another_file_is_no_folder_and_one_line_asks_for_it(autoencoder, tmp_path):
    autoencoder.write_weights(tmp_path)
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "alone").mkdir()
    shutil.copy(tmp_path / "model.safetensors", tmp_path / "alone")
    for path, says in [
        (tmp_path / "results.json", "results.json is a file: give a folder"),
        (tmp_path / "alone" / "model.safetensors", "no official checkpoint: give tinymae.load the folder"),
    ]:
        with one_line(says):
            tinymae.load(path)


def test_an_official_checkpoint_may_be_a_safetensors_file(autoencoder, tmp_path):
    save_file(
        {name.removeprefix("encoder."): of for name, of in autoencoder.state_dict().items()}, tmp_path / "a.safetensors"
    )
    weights = tinymae.load(
        tmp_path / "a.safetensors", num_heads=2, decoder_heads=autoencoder.config["decoder_heads"]
    ).state_dict()
    assert all(torch.equal(weights[name], of) for name, of in autoencoder.state_dict().items())


def test_the_two_kinds_of_folder_are_told_apart(autoencoder, tmp_path):
    autoencoder.write_weights(tmp_path / "mae")
    ConvAutoencoder(image_size=8, width=8, latent_dim=5).write_weights(tmp_path / "conv")
    classifier = build_classifier(autoencoder, classes=CLASSES)
    classifier.write_weights(tmp_path / "classifier")
    assert type(load_mae(tmp_path / "mae")) is type(load_autoencoder(tmp_path / "mae")) is MaskedAutoencoder
    assert type(load_autoencoder(tmp_path / "conv")) is ConvAutoencoder
    assert type(load_classifier(tmp_path / "classifier")) is Classifier
    for source in (tmp_path / "classifier", classifier):
        for load in (load_autoencoder, load_mae):
            with pytest.raises(InputError, match="hold a classifier"):
                load(source)
    with pytest.raises(InputError, match="hold a ConvAutoencoder, where only --model mae will do"):
        load_mae(tmp_path / "conv")
    for source in (tmp_path / "mae", autoencoder):
        with pytest.raises(InputError, match="hold an autoencoder"):
            load_classifier(source)
    with pytest.raises(InputError, match="nothing does not exist"):
        tinymae.load(tmp_path / "nothing")
    (tmp_path / "mae" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no model\.safetensors"):
        tinymae.load(tmp_path / "mae")
    (tmp_path / "classifier" / "config.json").write_text(json.dumps({"architecture": "unheard_of"}))
    with pytest.raises(InputError, match="unheard_of"):
        tinymae.load(tmp_path / "classifier")


def test_saving_leaves_no_part_behind_when_it_fails(autoencoder, tmp_path):
    autoencoder.write_weights(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()

    class Bad(ConvAutoencoder):
        def state_dict(self, *args, **keywords):
            return {"x": torch.zeros(2).to_sparse()}

    with pytest.raises((RuntimeError, ValueError, NotImplementedError)):
        Bad(image_size=8, width=8, latent_dim=5).write_weights(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
