"""Exported graphs give torch's numbers, in ONNX Runtime and as torch.export programs, for batches of any size."""

import errno
import math
import os
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from running import one_line, refused

import tinymae
from tinymae import InputError, MaskedAutoencoder, unpatchify
from tinymae.commands.export import ExportSettings, calibration_batches
from tinymae.files import read_json
from tinymae.interop.graphs import (
    ClassifierGraph,
    EncoderGraph,
    ViTInpaintingGraph,
    export_onnx,
    export_torch,
    reconstruction_graph,
)
from tinymae.interop.load import load_classifier
from tinymae.interop.page import fetch_runtime, read_samples, write_page
from tinymae.models.classifier import build_classifier
from tinymae.models.conv import ConvAutoencoder
from tinymae.models.families import FAMILIES

onnx = pytest.importorskip("onnx", reason="pip install onnx onnxscript onnxruntime")
pytest.importorskip("onnxscript", reason="pip install onnx onnxscript onnxruntime")
onnxruntime = pytest.importorskip("onnxruntime", reason="pip install onnx onnxscript onnxruntime")

pytestmark = pytest.mark.usefixtures("one_registry")

SIZES = {"embed_dim": 24, "depth": 1, "num_heads": 2, "decoder_dim": 16, "decoder_depth": 1}
MODELS = {
    "square, RGB": {"image_size": 8, "patch_size": 2, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.2, 0.3)},
    "wide, grey": {"image_size": (8, 12), "patch_size": (2, 4), "in_channels": 1, "mean": (0.3,), "std": (0.2,)},
    "registers, no class token, raw pixels": {
        "encoder": "vit_betwixt_patch16_reg4_gap_256", "image_size": (12, 8), "patch_size": 4, "norm_pix_loss": False,
    },
}  # fmt: skip
CLASSES = ["cat", "dog", "owl"]
TOLERANCE = {"atol": 1e-4, "rtol": 0}


def create(name: str) -> MaskedAutoencoder:
    model = MaskedAutoencoder(**SIZES | MODELS[name]).eval()
    with torch.no_grad():
        for block in model.encoder.blocks:
            block.attn.qkv.weight.mul_(3)  # a fresh model attends so evenly that a missing mask would hardly show
    return model


def random_images(model, batch_size: int) -> torch.Tensor:
    return torch.randint(0, 256, (batch_size, model.in_channels, *model.image_size), dtype=torch.uint8)


def by_onnx_runtime(graph, folder):
    """The exported graph as a function of named tensors."""
    export_onnx(graph, folder / "graph.onnx")
    return run_onnx(folder / "graph.onnx", graph.output)


def run_onnx(file, name: str):
    """A file with one output of this name, as a function of named tensors."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == [name]
    return lambda **inputs: torch.from_numpy(session.run(None, {k: v.numpy() for k, v in inputs.items()})[0])


def by_torch_export(graph, folder):
    """The same as a program of torch.export."""
    export_torch(graph, folder / "graph.pt2")
    program = torch.export.load(folder / "graph.pt2").module()
    return lambda **inputs: program(**inputs)


@pytest.mark.parametrize(
    ("name", "runner"), [("wide, grey", by_onnx_runtime), ("registers, no class token, raw pixels", by_torch_export)]
)
def test_reconstruction_is_torchs_for_masks_of_every_size(name, runner, tmp_path):
    model = create(name)
    reconstruct = runner(ViTInpaintingGraph(model), tmp_path)
    for batch_size in (1, 5):
        images = random_images(model, batch_size)
        hidden = torch.linspace(model.num_patches - 1, 0, batch_size).round()  # all but one, ..., none
        mask = torch.rand(batch_size, model.num_patches).argsort(dim=1) < hidden[:, None]
        # One by one: torch gathers the visible patches, so a batch of it needs equal counts.
        expected = [model.reconstruct(images[i : i + 1], mask[i : i + 1]).images for i in range(batch_size)]
        found = reconstruct(images=images, mask=mask)
        torch.testing.assert_close(found, torch.cat(expected), **TOLERANCE)
        values = math.prod(model.patch_size) * model.in_channels
        covered = unpatchify(mask[..., None].expand(-1, -1, values), model.patch_size, model.image_size)
        other = torch.where(covered, 255 - images, images)
        assert covered.any() and torch.equal(reconstruct(images=other, mask=mask), found)


# The classifier below is ONNX's graph of uint8 images.
@pytest.mark.parametrize(
    ("name", "normalised", "runner"), [("square, RGB", False, by_torch_export), ("wide, grey", True, by_onnx_runtime)]
)
def test_features_are_torchs(name, normalised, runner, tmp_path):
    """Also of weights in half precision, which are exported in float32."""
    halved = create(name).half()
    encode = runner(EncoderGraph(halved, normalised=normalised), tmp_path)
    model = halved.float()
    for batch_size in (1, 5):
        images = random_images(model, batch_size)
        given = model.normalise(images) if normalised else images
        torch.testing.assert_close(encode(images=given), model.encode(images), **TOLERANCE)


OTHERS = {
    "conv_ae": {"image_size": (8, 12), "width": 8, "depth": 1, "in_channels": 1},
    "vae": {"image_size": 8, "width": 8, "latent_dim": 5},
    "vqvae": {"image_size": 8, "width": 8, "depth": 1, "codebook_size": 16},
    "resnet_unet": {"image_size": 16, "encoder": "test_resnet"},
    "masked_conv": {"image_size": 20, "encoder": "test_convnext2", "decoder_dim": 8, "mean": (0.3,), "std": (0.2,)},
    "pca": {"image_size": 8, "latent_dim": 9},
}


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "mae"])
def test_other_families_give_torchs_features_and_reconstructions(family, tmp_path):
    torch.manual_seed(0)
    model = FAMILIES[family](**OTHERS[family]).eval()
    images = random_images(model, 5)
    if family != "masked_conv":  # whose encoder is in its reconstruction
        encode = by_onnx_runtime(EncoderGraph(model), tmp_path)
        torch.testing.assert_close(encode(images=images), model.encode(images), **TOLERANCE)
    reconstruct = by_onnx_runtime(reconstruction_graph(model), tmp_path)
    mask = {"mask": torch.rand(5, int(model.num_patches)) < 0.5} if family == "masked_conv" else {}
    expected = model.reconstruct(images, **mask).images
    torch.testing.assert_close(reconstruct(images=images, **mask), expected, **TOLERANCE)


def require_probabilities(classify, classifier) -> None:
    for batch_size in (1, 5):
        images = random_images(classifier, batch_size)
        probabilities = classify(images=images)
        torch.testing.assert_close(probabilities, classifier(images).softmax(dim=1), **TOLERANCE)
        assert probabilities.std(dim=1).min() > 0.01


# By ONNX Runtime: the command's file, below.
def test_probabilities_are_torchs(tmp_path):
    model = MaskedAutoencoder(**SIZES | MODELS["square, RGB"])
    classifier = build_classifier(model, classes=CLASSES, pool="cls").eval()
    torch.nn.init.normal_(classifier.head.weight)
    require_probabilities(by_torch_export(ClassifierGraph(classifier), tmp_path), classifier)


def test_exporting_leaves_the_model_as_it_was(tmp_path):
    model = MaskedAutoencoder(**SIZES | MODELS["square, RGB"]).train()
    before = [getattr(module, "fused_attn", None) for module in model.modules()]
    export_torch(EncoderGraph(model), tmp_path / "encoder.pt2")
    assert [getattr(module, "fused_attn", None) for module in model.modules()] == before
    assert model.training and all(parameter.requires_grad for parameter in model.encoder.blocks.parameters())


@pytest.fixture
def folders(tmp_path):
    """An autoencoder and a classifier, as runs leave them."""
    torch.manual_seed(1)
    model = MaskedAutoencoder(**SIZES | MODELS["square, RGB"]).eval()
    model.write_weights(tmp_path / "mae")
    classifier = build_classifier(model, classes=CLASSES)
    torch.nn.init.normal_(classifier.head.weight)
    classifier.write_weights(tmp_path / "classifier")
    return tmp_path / "mae", tmp_path / "classifier"


def test_the_command_writes_graphs_that_stand_alone(folders, tmp_path):
    mae, classifier = folders
    run = tinymae.export(mae, format="torch", output_dir=tmp_path / "pt2")
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "mine.txt").touch()  # which is there already, and nothing that was written
    files = tinymae.export(classifier, format="onnx", output_dir=tmp_path / "onnx").results["bytes"]
    assert files.keys() == {"classifier.onnx", "config.json"}
    written = {path.name: path.stat().st_size for path in (tmp_path / "pt2").iterdir()}
    assert written.keys() == {"encoder.pt2", "reconstruction.pt2", "config.json"}
    assert run.results == {"bytes": written} and isinstance(run.model, MaskedAutoencoder)
    graph = onnx.load(tmp_path / "onnx" / "classifier.onnx")
    assert {each.domain: each.version for each in graph.opset_import}[""] >= 17
    assert graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    require_probabilities(
        run_onnx(tmp_path / "onnx" / "classifier.onnx", "probabilities"), load_classifier(classifier).eval()
    )
    configs = [read_json(tmp_path / name / "config.json") for name in ("onnx", "pt2")]
    assert configs[0]["label_names"] == CLASSES
    for config in configs:  # what a program needs that makes images ready by itself
        assert config["image_size"] == [8, 8]
        assert config["mean"] == pytest.approx(MODELS["square, RGB"]["mean"])
        assert config["std"] == pytest.approx(MODELS["square, RGB"]["std"])
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    features = torch.export.load(tmp_path / "pt2" / "encoder.pt2").module()(images=images)
    torch.testing.assert_close(features, tinymae.load(mae).encode(images), **TOLERANCE)


def test_int8_is_smaller_and_near_the_floats(tmp_path):
    torch.manual_seed(0)
    model = MaskedAutoencoder(image_size=8, patch_size=2, in_channels=1, embed_dim=96, depth=1, num_heads=2).eval()
    classifier = build_classifier(model, classes=CLASSES)
    torch.nn.init.normal_(classifier.head.weight, std=0.5)
    digits = tinymae.load_dataset("digits", "test").images
    for number, given in enumerate([model, classifier.eval()]):
        folder = tmp_path / str(number)
        sizes = tinymae.export(given, format="onnx", int8="digits", output_dir=folder).results["bytes"]
        name = "encoder" if given is model else "classifier"
        assert sizes[f"{name}.int8.onnx"] < 0.5 * sizes[f"{name}.onnx"] and "reconstruction.int8.onnx" not in sizes
        floats, integers = (
            onnxruntime.InferenceSession(folder / file, providers=["CPUExecutionProvider"]).run(
                None, {"images": digits.numpy()}
            )[0]
            for file in (f"{name}.onnx", f"{name}.int8.onnx")
        )
        assert 0 < np.abs(floats - integers).mean() < 0.15 * floats.std()
    with pytest.raises(InputError, match="int8 digits is for --format onnx"):
        tinymae.export(model, format="torch", int8="digits", output_dir=tmp_path / "torch")
    assert not (tmp_path / "torch").exists()


def test_weights_of_16_bits_are_exported_for_16_bits(tmp_path):
    model = create("wide, grey")
    classifier = build_classifier(model, classes=CLASSES).eval()
    model.reading = classifier.reading = {"depth": "uint16"}
    values = np.random.default_rng(0).integers(0, 65536, (20, 8, 12), dtype=np.uint16)
    np.save(tmp_path / "scans.npy", values)
    for name, source in {"encoder": model, "classifier": classifier}.items():
        source.save_pretrained(tmp_path / name)
        tinymae.export(
            tmp_path / name, format="onnx", int8=tmp_path / "scans.npy", output_dir=tmp_path / f"{name} onnx"
        )
        with torch.no_grad():
            given = torch.from_numpy(values)[:, None]
            expected = model.encode(given) if name == "encoder" else classifier.probabilities(classifier(given))
        session = onnxruntime.InferenceSession(tmp_path / f"{name} onnx" / f"{name}.onnx")
        (found,) = session.run(None, {"images": given.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), expected, **TOLERANCE)


def test_int8_of_images_of_another_depth_is_refused_unless_they_are_normalised(folders, tmp_path):
    images = np.random.default_rng(0).integers(0, 60_000, (20, 8, 8, 3), dtype=np.uint16)
    np.save(tmp_path / "deep.npy", images)
    settings = {"format": "onnx", "int8": tmp_path / "deep.npy", "output_dir": tmp_path / "out"}
    for weights in folders:
        with pytest.raises(InputError, match="deep.npy has uint16 images, those of the weights are uint8: give such$"):
            tinymae.export(weights, **settings)
    assert not (tmp_path / "out").exists()
    given = ExportSettings(weights=folders[0], **settings, normalised=True)
    (batch,) = calibration_batches(given, tinymae.load(folders[0]))
    assert batch["images"].dtype == np.float32


def test_what_a_graph_takes_is_printed(folders, tmp_path, capsys):
    for normalised, kind in ((False, "uint8"), (True, "float32")):
        tinymae.export(folders[0], format="torch", normalised=normalised, output_dir=tmp_path / kind)
        lines = {Path(line.split("  ")[0]).name: line for line in capsys.readouterr().out.splitlines()}
        assert lines["encoder.pt2"].endswith(f"MB, takes images {kind} (B, 3, 8, 8)")
        assert lines["reconstruction.pt2"].endswith("MB, takes images uint8 (B, 3, 8, 8), mask bool (B, 16)")
        assert lines["config.json"].endswith("MB")


@pytest.mark.parametrize("form", ["timm", "onnx", "torch", "web"])
def test_a_folder_that_cannot_be_written_to_is_one_line(form, folders, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tinymae.interop.page.fetch_runtime", full)
    monkeypatch.setattr(os, "replace", full)
    with one_line(r"output_dir .*out cannot be written to \(No space left on device\): mend that"):
        tinymae.export(folders[0], format=form, samples=sample_folder(tmp_path), output_dir=tmp_path / "out")
    monkeypatch.undo()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/out cannot be written to \(Not a directory\)"):
        tinymae.export(folders[0], format="timm", output_dir=tmp_path / "file" / "out")


def sample_folder(tmp_path) -> Path:
    """With one black image."""
    (tmp_path / "samples").mkdir(exist_ok=True)
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(tmp_path / "samples" / "black.png")
    return tmp_path / "samples"


def test_what_cannot_be_exported_is_refused_in_one_line(folders, tmp_path, monkeypatch, capsys):
    mae, classifier = folders
    ConvAutoencoder(image_size=8, width=8, latent_dim=4).write_weights(tmp_path / "conv")
    (tmp_path / "file").touch()
    onnx, web = ({"format": form, "output_dir": tmp_path / "out"} for form in ("onnx", "web"))
    for settings, message in [
        (onnx | {"weights": tmp_path / "none"}, "none does not exist"),
        (web | {"weights": classifier}, "hold a classifier"),
        (onnx | {"weights": tmp_path / "conv", "pool": "cls"}, "pool 'cls' is not 'avg', which is what a ConvAutoenc"),
        (onnx | {"weights": mae, "classifier": classifier}, "is for --format web"),
        (onnx | {"weights": mae, "output_dir": tmp_path / "file"}, "is a file"),
        ({"weights": mae, "output_dir": tmp_path / "out"}, "required: --format"),
    ]:
        assert message in refused(capsys, "export", **settings)
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # as if it were not installed
    line = refused(capsys, "export", **onnx, weights=mae)
    assert "needs the package onnxscript: pip install onnx onnxscript" in line
    assert not (tmp_path / "out").exists()


def test_a_page_needs_npm_or_the_archive(folders, tmp_path, monkeypatch, capsys):
    page = {"weights": folders[0], "format": "web", "samples": sample_folder(tmp_path), "output_dir": tmp_path / "page"}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "needs npm once" in refused(capsys, "export", **page)
    (tmp_path / "cache" / "tinymae").mkdir(parents=True)
    (tmp_path / "cache" / "tinymae" / "onnxruntime-web-1.30.0.tgz").write_bytes(b"not it")
    assert "is damaged or another" in refused(capsys, "export", **page)
    assert not (tmp_path / "page").exists()


def test_npm_is_started_by_the_name_that_it_has(tmp_path, monkeypatch):
    """On Windows that is npm.cmd, which cannot be started as npm."""
    started, failed = [], SimpleNamespace(returncode=1, stderr="no network")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("tinymae.interop.page.shutil.which", lambda name: f"/node/{name}.cmd")
    monkeypatch.setattr("tinymae.interop.page.subprocess.run", lambda command, **_: started.append(command) or failed)
    with pytest.raises(InputError, match=r"npm could not fetch onnxruntime-web .*\(no network\)"):
        fetch_runtime()
    assert started[0][0] == "/node/npm.cmd"


def test_a_page_refuses_what_it_cannot_show(folders, tmp_path):
    classifier = load_classifier(folders[1])
    sizes = {"image_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2}
    with pytest.raises(InputError, match=r"classifier takes images of \(3, 8, 8\), the weights take \(3, 16, 16\)"):
        write_page(MaskedAutoencoder(**sizes), tmp_path / "page", samples=[], classifier=classifier)
    for write in (partial(write_page, folder=tmp_path / "page", samples=[]),
                  partial(tinymae.export, format="web", output_dir=tmp_path / "page")):  # fmt: skip
        with pytest.raises(InputError, match="weights want 2 channels, but a page shows images of 1 .grey. or 3"):
            write(MaskedAutoencoder(**sizes, in_channels=2))
    with pytest.raises(InputError, match="samples folder .* does not exist"):
        read_samples(tmp_path / "none", MaskedAutoencoder(**sizes))
