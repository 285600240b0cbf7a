"""However often a run is stopped, paused or killed, and on however many processes: it ends in the same weights."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest
from running import (
    FEW,
    PRETRAIN,
    QUICK,
    TWO_PHASES,
    assert_close_weights,
    before_reports,
    flags,
    metrics,
    same_files,
    signal_in,
    start,
    tiny_mae,
)

import tinymae
from tinymae import files
from tinymae.commands import cli
from tinymae.errors import PAUSED, Stopped
from tinymae.files import read_json

pytestmark = pytest.mark.usefixtures("quick_figures")


def values(folder: Path) -> list[dict]:
    """metrics.jsonl without what the clock says, in the order of steps."""
    rows = metrics(folder)
    assert len({json.dumps(row) for row in rows}) == len(rows)
    timeless = [{key: row[key] for key in row if key not in ("images_per_second", "minutes")} for row in rows]
    return sorted(timeless, key=lambda row: (row["step"], "loss" in row))


RUNS = {
    "one phase": ("pretrain", QUICK | {"batch_size": 32, "gradient_accumulation_steps": 2, "probe_every": 1}),
    "two phases": ("pretrain", QUICK | TWO_PHASES | {"batch_size": 32, "probe_every": 1, "keep_every": 1}),
    "contrast alone, muon": ("pretrain", QUICK | TWO_PHASES | {"epochs": 1, "contrast_epochs": 1, "optimizer": "muon"}),
    "a codebook": ("pretrain", FEW | {"model": "vqvae", "width": 8, "latent_dim": 4, "codebook_size": 16, "flip": False,
                                      "batch_size": 32, "epochs": 2, "log_every": 1}),
    "fine-tuning": ("finetune", FEW | {"batch_size": 32, "epochs": 2, "flip": False, "log_every": 1, "eval_every": 1,
                                       "drop_path": 0.2, "patch_drop": 0.25, "crop_padding": 1, "mixup": 0.8,
                                       "random_erasing": 0.5, "trivial_augment": True, "final_epochs": 1}),
    "fine-tuning with images without labels": ("finetune", FEW | {
        "batch_size": 16, "epochs": 2, "flip": False, "log_every": 1, "eval_every": 1, "label_fraction": 0.5,
        "val_labels": 4, "drop_path": 0.2, "patch_drop": 0.25, "crop_padding": 1, "trivial_augment": True,
        "gradient_accumulation_steps": 2, "unlabelled": 3, "unlabelled_warmup": 0.4, "unlabelled_threshold": 0.1}),
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_pauses_after_every_step_ends_in_the_same_bits(name, tmp_path):
    """Whole epochs and the end of a phase are among these steps."""
    command, settings = RUNS[name]
    settings = settings | ({"weights": tiny_mae(depth=2)} if command == "finetune" else {})
    command = getattr(tinymae, command)
    whole = command(**settings, output_dir=tmp_path / "whole")
    pauses = 0
    while not (tmp_path / "paused" / "results.json").exists():
        try:
            command(**settings, output_dir=tmp_path / "paused", pause_after_minutes=0)
        except Stopped as stopped:
            pauses += 1
            assert (
                stopped.exit_code == PAUSED and str(stopped) == f"paused after step {pauses}; the same command resumes"
            )
            assert not (tmp_path / "paused" / "model.safetensors").exists()
    assert pauses == whole.results["steps"]
    assert same_files(tmp_path / "whole", tmp_path / "paused")
    assert values(tmp_path / "whole") == values(tmp_path / "paused")
    results = [read_json(tmp_path / each / "results.json") for each in ("whole", "paused")]
    assert results[0] | {"minutes": 0} == results[1] | {"minutes": 0}
    kept = [sorted(path.name for path in (tmp_path / each / "epochs").glob("*")) for each in ("whole", "paused")]
    assert kept[0] == kept[1] == (["0001", "0002", "0003"] if "keep_every" in settings else [])
    assert all(
        same_files(tmp_path / "whole" / "epochs" / each, tmp_path / "paused" / "epochs" / each) for each in kept[0]
    )


def test_a_run_that_is_stopped_anywhere_ends_in_the_same_bits(tmp_path, monkeypatch):
    settings = QUICK | TWO_PHASES
    tinymae.pretrain(**settings, output_dir=tmp_path / "whole")
    signals = {2: signal.SIGTERM, 4: signal.SIGINT, 7: signal.SIGINT, 8: signal.SIGTERM}  # 4 ends a phase, 8 the run
    before_reports(monkeypatch, signal_in(signals))
    for step, number in signals.items():
        with pytest.raises(Stopped, match=f"stopped by {number.name} after step {step}; the same") as stopped:
            tinymae.pretrain(**settings, output_dir=tmp_path / "stopped")
        assert stopped.value.exit_code == 128 + number
    tinymae.pretrain(**settings, output_dir=tmp_path / "stopped")
    assert same_files(tmp_path / "whole", tmp_path / "stopped")
    assert values(tmp_path / "whole") == values(tmp_path / "stopped")


def test_a_process_that_gets_sigterm_saves_and_its_command_resumes_past_a_damaged_checkpoint(tmp_path, capsys):
    settings = {**PRETRAIN, "batch_size": 256, "checkpoint_minutes": 0}
    command = ["pretrain", *flags(**settings, output_dir=tmp_path / "run")]
    process = start(tmp_path / "log", command, killed=(signal.SIGTERM, 6))
    process.join()
    output = (tmp_path / "log").read_text()
    assert process.exitcode == 128 + signal.SIGTERM, output
    assert "stopped by SIGTERM after step 6; the same command resumes" in output
    assert not (tmp_path / "run" / "model.safetensors").exists()
    damaged = max((tmp_path / "run" / "checkpoints").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-200])  # the newest is broken: the one before it must do
    cli.main(command)
    output = capsys.readouterr().out
    assert "is damaged" in output and "resuming from" in output and "step-000000005-" in output
    tinymae.pretrain(**settings, output_dir=tmp_path / "whole")
    assert same_files(tmp_path / "whole", tmp_path / "run")


# ---- the last files


@pytest.mark.parametrize("number", range(5))
def test_a_kill_among_the_last_files_is_mended_by_repeating_the_command(number, whole, tmp_path, monkeypatch):
    """The run dies just before the last file but `number` is put in its place."""

    class Killed(BaseException):
        pass

    put, names = os.replace, ["model.safetensors", "config.json", "curves.png", "reconstructions.png", "results.json"]

    def die(source, target):
        ended = list(tmp_path.glob("killed/checkpoints/step-000000008-*"))
        if Path(target).name == names[number] and ended:
            raise Killed
        put(source, target)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(files.os, "replace", die)
        tinymae.pretrain(**QUICK, output_dir=tmp_path / "killed")
    assert not (tmp_path / "killed" / "results.json").exists()
    tinymae.pretrain(**QUICK, output_dir=tmp_path / "killed")
    assert same_files(whole, tmp_path / "killed", "model.safetensors", "config.json")
    assert all((tmp_path / "killed" / name).exists() for name in names)


# ---- what is around a run does not change it


def test_accelerates_environment_does_not_override_the_settings(whole, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    tinymae.pretrain(**QUICK, output_dir=tmp_path / "environment")
    assert same_files(whole, tmp_path / "environment")


def test_an_earlier_run_of_the_process_does_not_change_a_later_one(whole, tmp_path):
    for name, settings in {"bf16": {"mixed_precision": "bf16"}, "parts": {"gradient_accumulation_steps": 4}}.items():
        tinymae.pretrain(**QUICK | settings, output_dir=tmp_path / name)
    tinymae.pretrain(**QUICK, output_dir=tmp_path / "again")
    assert same_files(whole, tmp_path / "again")
    assert not same_files(whole, tmp_path / "bf16")
    assert_close_weights(whole, tmp_path / "parts")


def test_a_run_in_another_thread_is_the_same(whole, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=lambda: tinymae.pretrain(**QUICK, output_dir=tmp_path / "thread"))
    thread.start()
    thread.join()
    assert same_files(whole, tmp_path / "thread") and signal.getsignal(signal.SIGINT) is before
