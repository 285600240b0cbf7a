"""The release, on tiny models of real digits."""

import json

import numpy as np
import pytest
import release
import torch
from publish import halve
from safetensors.torch import load_file

import tinymae
from tinymae import InputError, load_dataset
from tinymae.commands import cli
from tinymae.data.batches import pick
from tinymae.errors import Stopped
from tinymae.models.conv import ConvAutoencoder

MODEL = "--patch-size 4 --embed-dim 32 --depth 1 --num-heads 2 --decoder-dim 16 --decoder-depth 1"
PRETRAIN = "--batch-size 64 --contrast-batch-size 64 --no-flip --crop none --contrast-crop none"
FLAGS = ["--data", "digits", "--epochs", 2, "--contrast-epochs", 1, "--finetune-epochs", 2, "--scratch-epochs", 3,
         "--few-images", 200, "--extra", f"pretrain: {MODEL} {PRETRAIN}",
         "--extra", "finetune: --no-flip --ema-decay 0", "--extra", "10: --layer-decay 0.8",
         "--extra", "unlabelled: --ema-decay 0.9 --unlabelled-threshold 0"]  # fmt: skip


def run(folder, *flags) -> dict:
    words = [*FLAGS, "--output-dir", folder / "runs", "--publish-dir", folder, *flags]
    return release.run(release.ReleaseSettings(**cli.parse(cli.create_parser(release.ReleaseSettings), words)))


def read(path) -> dict:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def released(quick_stages, tmp_path_factory):
    """A release that paused once."""
    folder = tmp_path_factory.mktemp("release")
    with pytest.raises(Stopped):
        run(folder, "--max-minutes", 0)
    return folder, run(folder)


def test_a_halved_folder_holds_float16_is_loaded_as_float32_and_has_the_same_config(tmp_path):
    autoencoder = ConvAutoencoder(image_size=8, width=8, latent_dim=4)
    autoencoder.write_weights(tmp_path / "whole")
    halve(tmp_path / "whole", tmp_path / "half")
    assert {tensor.dtype for tensor in load_file(tmp_path / "half" / "model.safetensors").values()} == {torch.float16}
    loaded = tinymae.load(tmp_path / "half")
    assert loaded.config == autoencoder.config
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, autoencoder.state_dict()[name].half().float())
    with pytest.raises(InputError, match="nothing does not exist"):
        halve(tmp_path / "nothing", tmp_path / "half")


def test_a_setting_that_a_stage_would_refuse_is_refused_before_pretraining(tmp_path):
    with pytest.raises(InputError, match='extra "1: ..."'):
        run(tmp_path, "--extra", "1: --no-such-flag")
    with pytest.raises(InputError, match="trainings unlabelled scratch: a release has a classifier"):
        run(tmp_path, "--trainings", "unlabelled", "scratch")
    assert not (tmp_path / "runs").exists()


def test_every_stage_has_its_own_settings(released):
    folder, summary = released
    assert len(list((folder / "runs").glob("*/results.json"))) == 15  # none is left out
    runs = {labels: folder / "runs" / f"finetune_{labels}" for labels in ("all", "10")}
    found = {labels: read(run / "args.json")["arguments"] for labels, run in runs.items()}
    assert (found["all"]["recipe"], found["10"]["recipe"], found["10"]["trivial_augment"]) == ("strong", "light", True)
    assert (read(runs["all"] / "results.json")["layer_decay"], found["10"]["layer_decay"]) == (0.9, 0.8)
    seen = {start: summary["results"][f"{start}_10"]["steps"] for start in release.STARTS}
    assert seen["finetune"] == seen["scratch"] > seen["unlabelled"] > 0 and "unlabelled_all" not in summary["test"]
    assert summary["pretraining_passes"] == 5  # one epoch of one view, one of four
    assert summary["scratch_epochs"] == 3 < summary["matched_scratch_epochs"]


def test_released_weights_are_halves_scored_from_their_files(released):
    folder, summary = released
    weights, first = folder / "weights", pick(load_dataset("digits", "test"), 1000)
    tensors = load_file(weights / "vit-t-mae" / "model.safetensors").values()
    assert {tensor.dtype for tensor in tensors} == {torch.float16}
    for name in ("vit-t-linear-probe", "vit-t-classifier-pretrained"):
        scores = read(weights / name / "scores.json")
        with torch.no_grad():
            correct = (tinymae.load(weights / name)(first.images).argmax(1) == first.labels).double().mean()
        assert scores["accuracy_of_1000"] == pytest.approx(100 * float(correct), abs=1e-6)
        assert f"{scores['accuracy_test']:.2f}" in (weights / name / "README.md").read_text()
        assert summary["results"][name]["accuracy"] == scores["accuracy_test"]
    stated = read(weights / "vit-t-mae" / "scores.json")
    assert stated["probe_test"] == summary["results"]["probe_all"]["probe_test"]
    assert 0 < stated["hidden_mse_of_1000"] < 1 and 0 < stated["knn_1_percent_of_1000"] <= 100


def test_the_evidence_is_published(released):
    folder, _ = released
    assert (folder / "logs" / "vit-t-scratch" / "metrics.jsonl").exists()
    assert (folder / "logs" / "vit-t-mae" / "metrics.jsonl").exists()
    assert (folder / "assets" / "per_class_digits.csv").exists()
    card = (folder / "weights" / "vit-t-mae" / "README.md").read_text()
    assert "license: mit" in card and "reconstruction, epochs: 1, then contrast of 4 views, epochs: 1" in card


def test_more_seeds_extend_a_release_and_other_weights_are_refused(released):
    folder, summary = released
    weights = folder / "weights" / "vit-t-mae" / "model.safetensors"
    before = weights.read_bytes()
    both = run(folder, "--seeds", 0, 1)
    assert {name: both["results"][name] for name in summary["results"]} == summary["results"]
    tuned = [both["results"][name]["accuracy_test"] for name in ("finetune_1", "finetune_1_seed1")]
    assert both["test"]["finetune_1"] == {"n": 2, "mean": np.mean(tuned), "std": pytest.approx(np.std(tuned, ddof=1))}
    assert both["test"]["scratch_all"]["n"] == 1
    card = (folder / "weights" / "vit-t-mae" / "README.md").read_text()
    assert f"fine-tuned, 1 % of the labels, mean of 2 seeds (std {np.std(tuned, ddof=1):.2f})" in card
    other = folder / "other"
    model = tinymae.load(folder / "runs" / "pretrain")
    torch.nn.init.ones_(model.decoder_pred.bias)
    model.save_pretrained(other)
    with pytest.raises(InputError, match="holds stages of other weights than"):
        run(folder, "--weights", other)
    assert weights.read_bytes() == before
