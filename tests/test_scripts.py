"""The scripts as people use them, on real digits (and real CIFAR-10 where it is at hand)."""

import gc
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import evaluate
import finetune
import linear_probe
import numpy as np
import pretrain
import pytest
import release
import torch
from conftest import SCRIPTS
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tinymae import InputError, MaskedAutoencoder, files, load_dataset
from tinymae.commands.cli import run_script
from tinymae.interop.load import load_classifier
from tinymae.interop.timm import export_timm
from tinymae.training.progress import PAUSED, Stopped

DIGITS = ["--data", "digits", "--seed", "1", "--mixed-precision", "no"]
MODEL = [
    "--patch-size",
    "2",
    "--embed-dim",
    "32",
    "--depth",
    "2",
    "--num-heads",
    "2",
    "--decoder-dim",
    "16",
    "--decoder-depth",
    "1",
]
SHORT = ["--batch-size", "64", "--epochs", "2", "--warmup-epochs", "0.5", "--no-flip", "--log-every", "5"]


def run(script, *arguments):
    return script.main(script.parse().parse_args([str(argument) for argument in arguments]))


def refused(script, monkeypatch, capsys, *arguments) -> str:
    """The one line on stderr of a command that must exit with code 2."""
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        run_script(script.main, script.parse())
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if ": error: " in line]
    assert len(lines) == 1
    return lines[0]


def launch(*command, start_new_session: bool = False, **environment) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=start_new_session,
    )


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "pretrain"
    run(pretrain, *DIGITS, *MODEL, *SHORT, "--output-dir", folder)
    return folder


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_pretraining_leaves_what_it_promises(pretrained):
    rows = metrics(pretrained)
    assert {"loss", "learning_rate", "grad_norm", "images_per_second", "minutes", "step", "epoch"} <= rows[1].keys()
    assert rows[0]["knn_val"] > 10 and rows[-1]["step"] == 40
    arguments = json.loads((pretrained / "args.json").read_text())
    assert arguments["arguments"]["epochs"] == 2 and arguments["versions"]["torch"] == torch.__version__
    assert list((pretrained / "tensorboard").glob("events.*"))
    assert json.loads((pretrained / "results.json").read_text())["steps"] == 40
    for name in ("curves.png", "reconstructions.png"):
        assert np.asarray(Image.open(pretrained / name)).std() > 10
    model = MaskedAutoencoder.from_pretrained(pretrained)
    assert model.encode(load_dataset("digits", "test").images[:5]).shape == (5, 32)


def test_a_runs_card_tells_what_it_recorded_and_travels_to_the_hub_with_the_weights(pretrained, tmp_path):
    card = (pretrained / "README.md").read_text()
    results = json.loads((pretrained / "results.json").read_text())
    assert f"| k-NN, validation | {results['knn_val']:.2f} |" in card and "Settings: " in card and "epochs 2" in card
    digest = hashlib.sha256((pretrained / "model.safetensors").read_bytes()).hexdigest()
    assert digest in card and "license" not in card and "(reconstructions.png)" in card
    MaskedAutoencoder.from_pretrained(pretrained).save_pretrained(tmp_path)  # what push_to_hub uploads
    assert (tmp_path / "README.md").read_text() == card and (tmp_path / "reconstructions.png").exists()
    assert (tmp_path / "model.safetensors").read_bytes() == (pretrained / "model.safetensors").read_bytes()


def test_tensorboard_holds_the_curves_and_pictures(pretrained):
    events = EventAccumulator(str(pretrained / "tensorboard")).Reload()
    assert {"loss", "learning_rate", "grad_norm", "images_per_second", "knn_val"} <= set(events.Tags()["scalars"])
    assert events.Tags()["images"] == ["reconstructions"]
    assert events.Scalars("loss")[-1].step == 40


def test_a_finished_run_is_not_trained_again(pretrained):
    before = (pretrained / "model.safetensors").read_bytes()
    results = run(pretrain, *DIGITS, *MODEL, *SHORT, "--output-dir", pretrained)
    assert results["steps"] == 40 and (pretrained / "model.safetensors").read_bytes() == before


def test_other_arguments_in_the_same_folder_are_refused(pretrained, monkeypatch, capsys):
    line = refused(pretrain, monkeypatch, capsys, *DIGITS, *MODEL, *SHORT, "--output-dir", pretrained, "--epochs", 3)
    assert "epochs was 2, now 3" in line and "--overwrite" in line


def test_overwrite_moves_the_old_run_aside(pretrained, tmp_path):
    folder = tmp_path / "run"
    run(linear_probe, "--weights", pretrained, *DIGITS, "--output-dir", folder)
    run(linear_probe, "--weights", pretrained, *DIGITS, "--output-dir", folder, "--pool", "cls", "--overwrite")
    aside = [path for path in tmp_path.iterdir() if path != folder]
    assert len(aside) == 1 and (aside[0] / "results.json").exists()


@pytest.mark.parametrize("script", ["pretrain", "finetune"])
def test_a_stopped_run_resumes_to_the_same_bits(script, pretrained, tmp_path):
    chance = ["--drop-path", "0.2", "--patch-drop", "0.25", "--crop-padding", "1"]
    extra = MODEL if script == "pretrain" else ["--weights", pretrained, *chance]
    command = [SCRIPTS / f"{script}.py", *DIGITS, *SHORT, *extra, "--epochs", 6, "--checkpoint-minutes", 0]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    both = [launch(*command, "--output-dir", folder) for folder in (whole, stopped)]
    while not list((stopped / "checkpoints").glob("step-*5-*.pt")):
        assert both[1].poll() is None, both[1].stdout.read()
        time.sleep(0.01)
    both[1].send_signal(signal.SIGTERM)
    output = both[1].communicate()[0]
    assert both[1].returncode == 128 + signal.SIGTERM, output
    assert "the same command resumes" in output and not (stopped / "model.safetensors").exists()
    damaged = max((stopped / "checkpoints").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-200])  # the newest is broken: the one before it must do
    again = launch(*command, "--output-dir", stopped)
    output = again.communicate()[0]
    assert again.returncode == 0 and "is damaged" in output and "resuming from" in output
    assert both[0].wait() == 0
    assert (whole / "model.safetensors").read_bytes() == (stopped / "model.safetensors").read_bytes()
    keys = ("step", "loss", "learning_rate")
    rows = [[tuple(row[k] for k in keys) for row in metrics(f) if "loss" in row] for f in (whole, stopped)]
    shared = set(rows[0]) & set(rows[1])
    assert len(shared) == len(rows[0])  # the resumed run may log one more line, after its first step


def assert_same_weights(one: Path, two: Path) -> None:
    single, double = (load_file(folder / "model.safetensors") for folder in (one, two))
    for name, tensor in single.items():
        if not name.endswith("qkv.bias"):  # see test_train: the keys' bias has no gradient but rounding noise
            torch.testing.assert_close(double[name], tensor, atol=1e-5, rtol=0)


def test_two_processes_make_the_same_run_even_when_killed(tmp_path):
    """Two processes are killed after they saved, and the run resumes on two: as the run of one process."""
    command = [SCRIPTS / "pretrain.py", *DIGITS, *MODEL, *SHORT, "--checkpoint-minutes", 0]
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_port", 29555]
    one = launch(*command, "--output-dir", tmp_path / "one")
    two = [*torchrun, *command, "--output-dir", tmp_path / "two"]
    killed = launch(*two, ACCELERATE_USE_CPU="1", start_new_session=True)
    while not list((tmp_path / "two" / "checkpoints").glob("step-*")):
        assert killed.poll() is None, killed.stdout.read()
        time.sleep(0.005)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    resumed = launch(*two, ACCELERATE_USE_CPU="1")
    outputs = [process.communicate()[0] for process in (one, resumed)]
    assert (one.returncode, resumed.returncode) == (0, 0), outputs
    assert "1 process" in outputs[0] and "2 processes" in outputs[1] and "resuming from" in outputs[1]
    assert_same_weights(tmp_path / "one", tmp_path / "two")


FOUR_VIEWS = ["--contrast-weight", 0.5, "--color-jitter", 0.5, "--views", 4, "--decoded-views", 1]


def test_two_processes_contrast_the_same_views_as_one(tmp_path):
    command = [SCRIPTS / "pretrain.py", *DIGITS, *MODEL, *SHORT, *FOUR_VIEWS]
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_port", 29556]
    one = launch(*command, "--output-dir", tmp_path / "one")
    two = launch(*torchrun, *command, "--output-dir", tmp_path / "two", ACCELERATE_USE_CPU="1")
    outputs = [process.communicate()[0] for process in (one, two)]
    assert (one.returncode, two.returncode) == (0, 0), outputs
    assert_same_weights(tmp_path / "one", tmp_path / "two")
    losses = [[row["contrastive_loss"] for row in metrics(tmp_path / name) if "loss" in row] for name in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4) and losses[0][-1] < losses[0][0]


def test_two_processes_find_each_other_when_the_precision_is_chosen_for_them(tmp_path):
    """As in the README. The processor is asked what it supports before Accelerate starts the processes' group."""
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_port", 29557]
    command = [SCRIPTS / "pretrain.py", "--data", "digits", *MODEL, *SHORT, "--epochs", 1, "--output-dir", tmp_path]
    process = launch(*torchrun, *command, ACCELERATE_USE_CPU="1")
    output = process.communicate()[0]
    assert process.returncode == 0 and "2 processes" in output, output


def test_contrast_refuses_what_it_cannot_do(tmp_path, monkeypatch, capsys):
    common = [*DIGITS, "--patch-size", 2, "--output-dir", tmp_path / "run", "--contrast-weight"]
    line = refused(pretrain, monkeypatch, capsys, *common, 0.1, "--gradient-accumulation-steps", 2)
    assert "gradient_accumulation_steps 2" in line and "contrast_weight" in line
    line = refused(pretrain, monkeypatch, capsys, *common, -1)
    assert "contrast_weight -1.0 is negative" in line
    for family in ("conv_ae", "pca"):
        line = refused(pretrain, monkeypatch, capsys, *DIGITS, "--contrast-weight", 1, "--model", family)
        assert "contrast_weight goes with --model mae" in line


@pytest.mark.parametrize(
    "flags",
    [
        ["--gradient-accumulation-steps", 2],
        ["--contrast-weight", 0.5, "--color-jitter", 0.5],
        [*FOUR_VIEWS, "--keep-every", 1],
    ],
)
def test_a_paused_run_goes_on_to_the_same_bits(tmp_path, flags):
    arguments = [*DIGITS, *MODEL, *SHORT, "--optimizer", "muon", *flags]
    run(pretrain, *arguments, "--output-dir", tmp_path / "whole")
    pauses = 0
    while not (tmp_path / "paused" / "results.json").exists():
        try:
            run(pretrain, *arguments, "--output-dir", tmp_path / "paused", "--pause-after-minutes", 0.005)
        except Stopped as stopped:
            assert stopped.exit_code == PAUSED and "the same command resumes" in str(stopped)
            pauses += 1
    assert pauses > 1
    whole, paused = (tmp_path / name / "model.safetensors" for name in ("whole", "paused"))
    assert whole.read_bytes() == paused.read_bytes()
    kept = tmp_path / "whole" / "epochs" / "0002" / "model.safetensors"
    assert not kept.exists() if "--keep-every" not in flags else kept.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("number", range(5))
def test_a_kill_among_the_last_files_is_mended_by_repeating_the_command(number, pretrained, tmp_path, monkeypatch):
    """The process dies just before the last file but `number` is put in its place."""

    class Killed(BaseException):
        pass

    arguments = [*DIGITS, *MODEL, *SHORT, "--output-dir", tmp_path]
    put = os.replace
    names = ["model.safetensors", "config.json", "curves.png", "reconstructions.png", "results.json"]

    def die(source, target):
        if Path(target).name == names[number] and (number != 3 or checkpoints()):
            raise Killed
        put(source, target)

    def checkpoints() -> bool:
        return bool(list(tmp_path.glob("checkpoints/step-000000040-*")))

    monkeypatch.setattr(files.os, "replace", die)
    with pytest.raises(Killed):
        run(pretrain, *arguments)
    monkeypatch.undo()
    for signal_number in (signal.SIGTERM, signal.SIGINT):  # what else a process takes along when it dies
        signal.signal(signal_number, signal.default_int_handler)
    gc.collect()  # with the run goes its lock
    run(pretrain, *arguments)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / name).read_bytes() == (pretrained / name).read_bytes()
    assert all((tmp_path / name).exists() for name in names)


def test_a_probe_reports_and_leaves_a_classifier(pretrained, tmp_path):
    results = run(linear_probe, "--weights", pretrained, *DIGITS, "--output-dir", tmp_path, "--controls")
    assert results["encoder_unchanged"] and results["num_features"] == 32
    assert results["raw_pixels"]["probe_test"] > 90 > results["untrained"]["knn_test"]
    test = load_dataset("digits", "test")
    with torch.no_grad():
        predictions = load_classifier(tmp_path)(test.images).argmax(1)
    assert 100 * (predictions == test.labels).double().mean() == pytest.approx(results["probe_test"], abs=0.3)
    assert (tmp_path / "confusion_matrix.png").exists()


FAMILIES = {
    "conv_ae": ["--width", 16, "--latent-dim", 32, "--loss", "ssim+l1"],
    "vae": ["--width", 16, "--latent-dim", 32, "--beta", 0.1, "--kl-warmup-steps", 10],
    "vqvae": ["--width", 16, "--latent-dim", 8, "--codebook-size", 64, "--epochs", 2],
    "resnet_unet": ["--encoder", "resnet10t", "--no-skips"],
    "masked_conv": ["--patch-size", 2, "--decoder-dim", 16],
    "pca": ["--latent-dim", 32],
}


@pytest.mark.parametrize("model", FAMILIES)
def test_every_family_goes_through_the_same_scripts(model, tmp_path):
    weights = tmp_path / "run"
    data = [*DIGITS, "--seed", 3]
    once = [*SHORT, "--epochs", 1, "--base-lr", "4e-3"]
    results = run(pretrain, *data, *once, "--model", model, *FAMILIES[model], "--output-dir", weights)
    assert results["knn_val"] > 25 and np.asarray(Image.open(weights / "reconstructions.png")).std() > 10
    last = metrics(weights)[-2] if model != "pca" else {}
    for term in {"vae": ["kl", "reconstruction_loss"], "vqvae": ["perplexity", "commitment"]}.get(model, []):
        assert last[term] > 0
    probe = run(linear_probe, "--weights", weights, *data, "--output-dir", tmp_path / "probe")
    assert probe["probe_test"] > 25 and probe["encoder_unchanged"]  # after one epoch; chance is 10
    scores = run(evaluate, "--weights", tmp_path / "probe", *data, "--output-dir", tmp_path / "evaluate")
    assert scores["accuracy"] == pytest.approx(probe["probe_test"], abs=0.3)
    scores = run(evaluate, "--weights", weights, *data, "--output-dir", tmp_path / "reconstruct")
    assert ("masked" in scores) == (model == "masked_conv") and scores["full"]["mse"] < 0.3
    if model != "pca":  # linear: its fine-tuning is softmax regression
        tuned = run(finetune, "--weights", weights, *data, *once, "--label-fraction", 0.1, "--mixup", 0, "--cutmix", 0,
                    "--ema-decay", 0, "--no-trivial-augment", "--output-dir", tmp_path / "finetune")  # fmt: skip
        assert tuned["steps"] == 2 and load_classifier(tmp_path / "finetune").classes == load_dataset("digits").classes


def test_a_release_is_made_from_measured_figures_and_goes_on_where_it_paused(tmp_path):
    light = "--no-flip --ema-decay 0 --mixup 0 --cutmix 0"
    flags = ["--data", "digits", "--pretrain-epochs", 1, "--contrast-epochs", 1, "--finetune-epochs", 2,
             "--few-images", 200, "--extra", "contrast: --batch-size 64 --no-flip --crop none",
             "--output-dir", tmp_path / "runs", "--publish-dir", tmp_path,
             "--extra", " ".join(["pretrain:", *MODEL, "--batch-size 64 --no-flip --crop none"]),
             "--extra", f"finetune: {light}", "--extra", "10: --layer-decay 0.8"]  # fmt: skip
    with pytest.raises(SystemExit):  # not after pretraining
        run(release, *flags, "--extra", "1: --no-such-flag")
    assert not (tmp_path / "runs").exists()
    with pytest.raises(Stopped):
        run(release, *flags, "--max-minutes", 0)
    summary = run(release, *flags)
    assert len(list((tmp_path / "runs").glob("*/results.json"))) == 14  # none is left out
    decays = {}
    for labels in ("all", "10"):
        recorded = json.loads((tmp_path / "runs" / f"finetune_{labels}" / "args.json").read_text())["arguments"]
        decays[labels] = recorded["layer_decay"]
    assert decays == {"all": 0.75, "10": 0.8}
    assert summary["pretraining_passes"] == 3  # one epoch of one view, one of two
    weights = tmp_path / "weights"
    assert {tensor.dtype for tensor in load_file(weights / "vit-t-mae" / "model.safetensors").values()} == {
        torch.float16
    }
    test = load_dataset("digits", "test")
    for name in ("vit-t-linear-probe", "vit-t-classifier-pretrained"):
        scores = json.loads((weights / name / "scores.json").read_text())
        with torch.no_grad():
            correct = (load_classifier(weights / name)(test.images).argmax(1) == test.labels).double().mean()
        assert scores["accuracy_first_1000"] == pytest.approx(100 * float(correct), abs=1e-6)
        assert f"{scores['accuracy_test']:.2f}" in (weights / name / "README.md").read_text()
        assert summary["results"][name]["accuracy"] == scores["accuracy_test"]
    stated = json.loads((weights / "vit-t-mae" / "scores.json").read_text())
    assert stated["probe_test"] == summary["results"]["probe_all"]["probe_test"]
    assert 0 < stated["hidden_mse_first_1000"] < 1 and 0 < stated["knn_4_percent_first_1000"] <= 100
    assert (tmp_path / "logs" / "vit-t-scratch" / "metrics.jsonl").exists()
    assert (tmp_path / "logs" / "vit-t-mae-part-1" / "metrics.jsonl").exists()
    card = (weights / "vit-t-mae" / "README.md").read_text()
    assert "license: mit" in card and "1. reconstruction: 1 epochs" in card and "2. contrasted views: 1 epochs" in card
    assert (tmp_path / "assets" / "per_class_digits.csv").exists()
    before = (weights / "vit-t-mae" / "model.safetensors").read_bytes()
    both = run(release, *flags, "--seeds", 0, 1)
    assert {name: both["results"][name] for name in summary["results"]} == summary["results"]
    tuned = [both["results"][name]["accuracy_test"] for name in ("finetune_1", "finetune_1_seed1")]
    assert both["test"]["finetune_1"] == {"n": 2, "mean": np.mean(tuned), "std": pytest.approx(np.std(tuned, ddof=1))}
    assert both["test"]["scratch_all"]["n"] == 1
    card = (weights / "vit-t-mae" / "README.md").read_text()
    assert f"fine-tuned, 1 % of the labels, mean of 2 seeds (deviation {np.std(tuned, ddof=1):.2f})" in card
    assert (weights / "vit-t-mae" / "model.safetensors").read_bytes() == before
    with pytest.raises(InputError, match="holds stages of other weights than"):
        run(release, *flags, "--weights", tmp_path / "runs" / "pretrain")
    assert (weights / "vit-t-mae" / "model.safetensors").read_bytes() == before


def test_few_labels_and_the_mlp_head(pretrained, tmp_path):
    flags = ["--label-fraction", "0.1", "--head", "mlp", "--pool", "cls"]
    results = run(linear_probe, "--weights", pretrained, *DIGITS, *flags, "--output-dir", tmp_path)
    assert 120 <= results["num_labels"] <= 140 and results["probe_test"] > 20
    assert (tmp_path / "head.safetensors").exists()


@pytest.mark.parametrize("scratch", [False, True])
def test_fine_tuning_gives_a_stock_timm_classifier(scratch, pretrained, tmp_path):
    start = ["--from-scratch", *MODEL[:-4]] if scratch else ["--weights", pretrained]
    results = run(finetune, *start, *DIGITS, *SHORT, "--epochs", 12, "--base-lr", "1e-2", "--ema-decay", "0.9",
                  "--mixup", 0, "--cutmix", 0, "--no-trivial-augment", "--crop-padding", 0,
                  "--output-dir", tmp_path / "run")  # fmt: skip
    assert results["accuracy_test"] > 60
    scores = run(evaluate, "--weights", tmp_path / "run", *DIGITS, "--output-dir", tmp_path / "evaluate")
    assert scores["accuracy"] == pytest.approx(results["accuracy_test"])
    assert scores["report"]["accuracy"] == pytest.approx(scores["accuracy"] / 100)
    assert np.sum(scores["confusion_matrix"]) == 360
    assert len((tmp_path / "evaluate" / "per_class.csv").read_text().splitlines()) == 11


def test_every_kind_of_augmentation_and_accumulation_trains(pretrained, tmp_path):
    flags = [
        "--random-erasing",
        "0.5",
        "--gradient-accumulation-steps",
        "2",
        "--gradient-checkpointing",
        "--clip-grad",
        "1",
    ]
    results = run(finetune, "--weights", pretrained, *DIGITS, *SHORT, *flags, "--output-dir", tmp_path)
    assert results["steps"] == 40


def test_an_autoencoder_is_evaluated(pretrained, tmp_path):
    scores = run(evaluate, "--weights", pretrained, *DIGITS, "--output-dir", tmp_path / "a")
    assert scores["masked"]["mse_hidden"] == pytest.approx(scores["masked"]["mse"] / 0.75)
    told = run(evaluate, "--weights", pretrained, *DIGITS, "--statistics", "target", "--output-dir", tmp_path / "b")
    assert told["statistics"] == "target" and told["masked"]["psnr"] > scores["masked"]["psnr"]


def test_an_unlabelled_folder_can_be_pretrained_on(tmp_path):
    images = load_dataset("digits").images[:90]
    for number, image in enumerate(images):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(image[0].numpy()).resize((20, 12)).save(tmp_path / "images" / f"{number}.png")
    flags = "--in-channels 1 --image-size 8 12 --batch-size 32 --epochs 1".split()
    results = run(
        pretrain, *DIGITS[2:], *MODEL, *flags, "--data", tmp_path / "images", "--output-dir", tmp_path / "run"
    )
    assert results["steps"] == 2 and "knn_val" not in results
    model = MaskedAutoencoder.from_pretrained(tmp_path / "run")
    assert model.image_size == (8, 12) and model.in_channels == 1


def test_a_time_limit_ends_a_run_with_the_learning_rate_at_zero(tmp_path):
    results = run(pretrain, *DIGITS, *MODEL, *SHORT, "--epochs", 100_000, "--warmup-epochs", 10_000,
                  "--max-minutes", "0.05", "--output-dir", tmp_path)  # fmt: skip
    assert results["minutes"] < 0.2 and results["steps"] > 3
    rates = [row["learning_rate"] for row in metrics(tmp_path) if "learning_rate" in row]
    assert rates[-1] < 0.5 * max(rates)


def test_a_loss_that_explodes_stops_the_run_and_saves_nothing(tmp_path, monkeypatch, capsys):
    line = refused(pretrain, monkeypatch, capsys, *DIGITS, *MODEL, *SHORT, "--epochs", 30, "--base-lr", "1e30",
                   "--warmup-epochs", 0.1, "--output-dir", tmp_path)  # fmt: skip
    assert "loss is nan at step" in line or "loss is inf at step" in line
    assert not (tmp_path / "model.safetensors").exists()


def test_a_compiled_model_is_saved_as_it_was_scored(pretrained, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: lambda *arguments: function(*arguments))
    results = run(finetune, "--weights", pretrained, *DIGITS, *SHORT, "--base-lr", "1e-2", "--ema-decay", 0.9,
                  "--compile", "--output-dir", tmp_path)  # fmt: skip
    test = load_dataset("digits", "test")
    with torch.no_grad():
        correct = (load_classifier(tmp_path)(test.images).argmax(1) == test.labels).double().mean()
    assert 100 * float(correct) == pytest.approx(results["accuracy_test"])


def save_digits(folder, splits, *, labelled=True):
    for split in splits:
        digits = load_dataset("digits", split)
        for number, (image, label) in enumerate(zip(digits.images[:60], digits.labels.tolist(), strict=False)):
            file = folder / split / (str(label) if labelled else "") / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).save(file)


@pytest.mark.parametrize("script", [linear_probe, finetune])
def test_a_split_without_labels_is_refused_before_training(script, pretrained, tmp_path, monkeypatch, capsys):
    save_digits(tmp_path / "data", ["train", "val"])
    save_digits(tmp_path / "data", ["test"], labelled=False)
    flags = ["--weights", pretrained, "--data", tmp_path / "data", "--mixed-precision", "no"]
    line = refused(script, monkeypatch, capsys, *flags, "--output-dir", tmp_path / "run")
    assert "has no labels in test" in line and not (tmp_path / "run").exists()
    short = ["--epochs", 1, "--batch-size", 20, "--no-flip"] if script is finetune else []
    assert run(script, *flags, *short, "--no-test", "--output-dir", tmp_path / "run")


BAD = {
    "epochs": (pretrain, "--epochs 0", "epochs 0 is below 1"),
    "log_every": (finetune, "--from-scratch --log-every 0", "log_every 0 is below 1"),
    "an odd batch": (finetune, "--from-scratch --batch-size 33", "batch_size 33 is odd"),
    "heads": (pretrain, "--patch-size 2 --num-heads 0", "encoder 'vit_tiny_patch16_224' cannot be built"),
    "unknown data": (pretrain, "--data nothing_here", "nothing_here is neither one of digits"),
    "batch too large": (
        pretrain,
        "--batch-size 5000",
        "batch_size 5000 is not within 1 and the data set's 1300 images",
    ),
    "patch size": (pretrain, "--patch-size 3", "image_size (8, 8) is not a multiple of patch_size 3"),
    "mask ratio": (pretrain, "--patch-size 2 --mask-ratio 1.5", "mask_ratio 1.5 is outside (0, 1)"),
    "mask hides all": (pretrain, "--patch-size 4 --mask-ratio 0.95", "hides every patch of 4"),
    "fp16 on a CPU": (pretrain, "--mixed-precision fp16", "mixed_precision 'fp16' needs a GPU"),
    "no such encoder": (pretrain, "--encoder vit_gigantic", "encoder 'vit_gigantic' is not a timm model"),
    "another family's flag": (pretrain, "--model vae --mask-ratio 0.5", "mask_ratio is not a setting of model vae"),
    "mae has one loss": (pretrain, "--loss l1", "loss is not a setting of model mae, but of conv_ae, vae"),
    "unknown loss": (pretrain, "--model conv_ae --loss huber", "loss 'huber' is not a sum of"),
    "memory": (pretrain, "--model vae --gradient-checkpointing", "gradient_checkpointing is not available for"),
    "no weights": (linear_probe, "--weights not/there", "weights folder not/there does not exist"),
    "no start": (finetune, "", "give --weights DIR"),
    "no patch left": (finetune, "--from-scratch --patch-drop 1", "patch_drop 1.0 is outside [0, 1)"),
    "no weights to look at": (evaluate, "--weights not/there", "weights folder not/there does not exist"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(case, tmp_path, monkeypatch, capsys):
    script, flags, message = BAD[case]
    line = refused(script, monkeypatch, capsys, *DIGITS, "--output-dir", tmp_path / "run", *flags.split())
    assert message in line
    assert not (tmp_path / "run").exists()


def test_weights_of_another_family_are_refused(tmp_path, monkeypatch, capsys):
    small = ["--width", 8, "--latent-dim", 8, "--epochs", 1]
    run(pretrain, *DIGITS, *SHORT, "--model", "vae", *small, "--output-dir", tmp_path / "vae")
    capsys.readouterr()
    flags = ["--weights", tmp_path / "vae", "--output-dir", tmp_path / "x"]
    line = refused(pretrain, monkeypatch, capsys, *DIGITS, *SHORT, *flags)
    assert "VariationalAutoencoder, not a MaskedAutoencoder" in line
    with pytest.raises(InputError, match="not a MaskedAutoencoder or its classifier"):
        export_timm(tmp_path / "vae", tmp_path / "timm")


def test_weights_that_do_not_fit_are_refused(pretrained, tmp_path, monkeypatch, capsys):
    probe = tmp_path / "probe"
    run(linear_probe, "--weights", pretrained, *DIGITS, "--output-dir", probe)
    capsys.readouterr()
    line = refused(linear_probe, monkeypatch, capsys, "--weights", probe, *DIGITS, "--output-dir", tmp_path / "x")
    assert "hold a classifier" in line
    for label in range(3):
        for number in range(5):
            (tmp_path / "three" / str(label)).mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 10 * number).save(tmp_path / "three" / str(label) / f"{number}.png")
    line = refused(evaluate, monkeypatch, capsys, "--weights", probe, *DIGITS, "--data", tmp_path / "three",
                   "--output-dir", tmp_path / "x")  # fmt: skip
    assert "tell 10 classes apart" in line and "has 3" in line


def test_cifar10_trains_with_the_recipe(data_dir, tmp_path):
    small = [
        "--depth",
        "2",
        "--embed-dim",
        "48",
        "--batch-size",
        "256",
        "--epochs",
        "1",
        "--max-minutes",
        "0.15",
        "--probe-images",
        "500",
    ]
    results = run(pretrain, "--data", "cifar10", "--data-dir", data_dir, *small, "--output-dir", tmp_path)
    assert 10 < results["knn_val"] < 60 and MaskedAutoencoder.from_pretrained(tmp_path).image_size == (32, 32)
