"""Runs on real digits as MLflow and Weights & Biases hold them, read back from their own stores."""

import json
import os
import shutil
import signal
import struct
import sys
import time
from pathlib import Path

import pytest
from accelerate import Accelerator
from running import FEW, PRETRAIN, QUICK, before_reports, flags, metrics, refused, same_files, signal_in, start
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import tinymae
from tinymae import InputError
from tinymae.errors import Stopped
from tinymae.files import read_json
from tinymae.training import trackers
from tinymae.training.trackers import start_trackers

pytestmark = pytest.mark.usefixtures("quick_figures")


@pytest.fixture(autouse=True)
def nothing_leaves_this_machine(monkeypatch):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def mlflow():
    return pytest.importorskip("mlflow")


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A finished run that TensorBoard and MLflow have followed."""
    pytest.importorskip("mlflow")
    folder = tmp_path_factory.mktemp("runs") / "it's 50% tracked"
    return tinymae.pretrain(**QUICK, log_with=("tensorboard", "mlflow"), output_dir=folder).folder


def mlflow_run(mlflow, folder: Path, store: str | None = None):
    """The only run in a store: (run, its {metric: [(step, value), ...]})."""
    client = mlflow.MlflowClient(store or f"sqlite:///{folder}/mlflow/mlflow.db")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert len(runs) == 1
    (found,) = runs
    history = {key: client.get_metric_history(found.info.run_id, key) for key in found.data.metrics}
    return found, {key: sorted((metric.step, metric.value) for metric in values) for key, values in history.items()}


def written(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The same, as metrics.jsonl has it."""
    values = {}
    for row in metrics(folder):
        for key in row.keys() - {"step", "epoch"}:
            values.setdefault(key, []).append((row["step"], row[key]))
    return values


def test_mlflow_holds_the_arguments_metrics_pictures_and_weights(mlflow, tracked):
    found, history = mlflow_run(mlflow, tracked)
    assert found.info.status == "FINISHED" and found.info.run_name == tracked.name
    arguments = read_json(tracked / "args.json")["arguments"]
    assert found.data.params == {key: str(value) for key, value in arguments.items()}
    expected = written(tracked)
    assert len(expected["loss"]) == 8 and len(expected["knn_val"]) == 2
    settled = {"batch_size": [(8, 16.0)], "base_lr": [(8, pytest.approx(2e-3 * (16 / 512) ** 0.5 * 256 / 16))]}
    assert history == expected | settled | {"epochs": [(8, 2.0)], "steps": [(8, 8.0)]}
    (artifacts,) = (tracked / "mlflow" / "artifacts").glob("*/artifacts")
    names = ["model.safetensors", "config.json", "args.json", "results.json", "metrics.jsonl", "curves.png"]
    for name in [*names, "reconstructions.png"]:
        assert (artifacts / name).read_bytes() == (tracked / name).read_bytes()
    pictures = [artifacts / f"pictures/step-{step:09d}/reconstructions.png" for step in (0, 8)]
    assert pictures[0].read_bytes() != pictures[1].read_bytes() == (tracked / "reconstructions.png").read_bytes()


def test_tensorboard_beside_it_is_what_it_is_alone(tracked):
    events = EventAccumulator(str(tracked / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == written(tracked).keys()
    assert events.Tags()["images"] == ["reconstructions"] and not events.Tags()["tensors"]


def test_tensorboard_keeps_the_steps_before_a_kill_and_forgets_those_after_the_checkpoint(tmp_path, monkeypatch):
    clock = time.time
    for number, (checkpoint, last) in enumerate(((0, 7), (5, 8))):
        monkeypatch.setattr(time, "time", lambda later=number: clock() + 2 * later)  # names of the files tell seconds
        accelerator = Accelerator(cpu=True)
        start_trackers(accelerator, ["tensorboard"], tmp_path, step=checkpoint, arguments={}, metrics=[])
        for step in range(checkpoint + 1, last + 1):
            accelerator.log({"loss": 100.0 * checkpoint + step}, step=step)
        accelerator.end_training()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in events] == [
        *((step, step) for step in range(1, 6)),
        *((step, 500 + step) for step in range(6, 9)),
    ]


def test_fine_tuning_in_the_same_process_has_its_own_store_and_its_score(mlflow, tracked, tmp_path):
    tune = FEW | {"batch_size": 16, "epochs": 1, "flip": False, "log_with": ("mlflow",)}
    results = tinymae.finetune(**tune, weights=tracked, output_dir=tmp_path).results
    assert not (tmp_path / "tensorboard").exists()
    _, history = mlflow_run(mlflow, tmp_path)
    assert history["accuracy_test"] == [(4, results["accuracy_test"])]
    assert history["accuracy_val"] == written(tmp_path)["accuracy_val"]
    (matrix,) = (tmp_path / "mlflow" / "artifacts").glob("*/artifacts/confusion_matrix.png")
    assert matrix.read_bytes() == (tmp_path / "confusion_matrix.png").read_bytes()
    mlflow_run(mlflow, tracked)  # still one


def test_a_killed_run_goes_on_in_the_same_mlflow_run_without_a_step_twice(mlflow, tmp_path):
    settings = {**PRETRAIN, "batch_size": 256, "log_every": 1, "log_with": ("mlflow",), "output_dir": tmp_path / "run"}
    with pytest.raises(Stopped):
        tinymae.pretrain(**settings, pause_after_minutes=0)  # the only checkpoint: step 1
    killed = start(tmp_path / "log", ["pretrain", *flags(**settings)], killed=(signal.SIGKILL, 9))
    killed.join()
    assert killed.exitcode == -signal.SIGKILL, (tmp_path / "log").read_text()
    began, before = mlflow_run(mlflow, tmp_path / "run")
    assert before["loss"][-1][0] >= 7  # metrics.jsonl is a line ahead
    tinymae.pretrain(**settings)
    ended, history = mlflow_run(mlflow, tmp_path / "run")
    assert (began.info.run_id, ended.info.status) == (ended.info.run_id, "FINISHED")
    for key in ("loss", "learning_rate", "grad_norm", "knn_val"):
        assert history[key] == written(tmp_path / "run")[key]
    for values in history.values():
        steps = [step for step, _ in values]
        assert len(steps) == len(set(steps))


def test_a_tracker_that_joins_later_is_told_the_beginning_and_may_be_elsewhere(mlflow, tmp_path, monkeypatch):
    settings = QUICK | {"output_dir": tmp_path / "run"}
    with pytest.raises(Stopped):
        tinymae.pretrain(**settings, pause_after_minutes=0)
    store = f"sqlite:///{tmp_path}/elsewhere.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.chdir(tmp_path)  # where MLflow puts the files of such a store
    tinymae.pretrain(**settings, log_with=("mlflow",))
    _, history = mlflow_run(mlflow, tmp_path, store)
    expected = written(tmp_path / "run")
    assert {key: history[key] for key in expected} == expected and expected["knn_val"][0][0] == 0
    assert not (tmp_path / "run" / "mlflow").exists()


def test_a_tracker_that_fails_on_the_way_costs_nothing_and_is_told_the_rest_later(
    mlflow, tmp_path, monkeypatch, capsys
):
    settings = {**PRETRAIN, "batch_size": 256, "log_every": 1, "log_with": ("mlflow",)}
    whole = tinymae.pretrain(**settings | {"log_with": ()}, output_dir=tmp_path / "whole").folder
    log = trackers.RunInMLflow.log

    def locked(tracker, values, step=None, **kwargs):
        if step == 3:
            raise OSError("database is locked")
        log(tracker, values, step=step, **kwargs)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(trackers.RunInMLflow, "log", locked)
        before_reports(patch, signal_in({6: signal.SIGTERM}))
        with pytest.raises(Stopped):
            tinymae.pretrain(**settings, output_dir=folder)
    assert capsys.readouterr().out.count("log_with mlflow fails (database is locked): the run goes on without it") == 1
    tinymae.pretrain(**settings, output_dir=folder)
    _, history = mlflow_run(mlflow, folder)
    expected = written(folder)
    assert {key: history[key] for key in expected} == expected and len(expected["loss"]) > 6
    assert same_files(whole, folder)


def test_runs_that_begin_at_once_share_a_new_store(mlflow, tmp_path):
    store = f"sqlite:///{tmp_path}/shared.db"
    settings = PRETRAIN | {"log_with": "mlflow"}
    processes = [
        start(tmp_path / "log", ["pretrain", *flags(**settings, output_dir=tmp_path / name)], folder=tmp_path,
              MLFLOW_TRACKING_URI=store)
        for name in "abc"
    ]  # fmt: skip
    for process in processes:
        process.join(timeout=300)
    assert [process.exitcode for process in processes] == [0, 0, 0], (tmp_path / "log").read_text()


def test_a_folder_that_was_moved_keeps_its_files_to_itself(mlflow, tmp_path):
    first, moved = tmp_path / "first", tmp_path / "moved"
    tinymae.pretrain(**QUICK, log_with=("mlflow",), output_dir=first)
    first.rename(moved)
    tinymae.pretrain(**QUICK, log_with=("mlflow",), output_dir=moved)
    assert not first.exists()
    assert len(list((moved / "mlflow" / "artifacts").glob("*/artifacts/model.safetensors"))) == 2


def wandb_records(folder: Path) -> list:
    """What the runs of a folder have recorded, the oldest first.

    A file is a log of LevelDB's kind: blocks of 32 KiB of pieces, each a checksum, a length, and whether its record is
    whole (1) or begins (2), goes on (3) or ends (4) here. The first block opens with seven bytes of W&B's own.
    """
    from wandb.proto import wandb_internal_pb2

    records, data = [], b""
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        content, place = file.read_bytes(), 7
        while place < len(content):
            left = -place % 32768 or 32768
            if left < 7:
                place += left
                continue
            length, kind = struct.unpack_from("<HB", content, place + 4)
            data += content[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):
                records.append(wandb_internal_pb2.Record.FromString(data))
                data = b""
    return records


def test_wandb_offline_holds_metrics_and_pictures_and_keeps_its_run(tmp_path):
    wandb = pytest.importorskip("wandb")
    settings = QUICK | {"log_with": ("wandb",), "output_dir": tmp_path}
    with pytest.raises(Stopped):
        tinymae.pretrain(**settings, pause_after_minutes=0)
    tinymae.pretrain(**settings)
    wandb.teardown()  # its service writes on after the end of a run
    records = wandb_records(tmp_path)
    ids = {record.run.run_id for record in records if record.HasField("run")}
    assert ids == {read_json(tmp_path / "trackers.json")["wandb"]["run"]}
    config = {item.key: item.value_json for r in records if r.HasField("run") for item in r.run.config.update}
    config |= {item.key: item.value_json for r in records if r.HasField("config") for item in r.config.update}
    assert config["mask_ratio"] == "0.5" and config["norm_pix_loss"] == "true"
    losses, pictures = [], {}
    for record in records:
        items = {".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        if "loss" in items:
            losses.append((items["_step"], items["loss"]))
        for name in ("reconstructions", "curves"):
            if items.get(f"{name}._type") == "images/separated":
                pictures.setdefault(name, []).append(items["_step"])
    assert losses == written(tmp_path)["loss"]
    assert pictures == {"reconstructions": [0, 8], "curves": [8]}
    assert len(list(tmp_path.glob("wandb/offline-*/files/media/images/curves_8_*.png"))) == 1


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_tracker_that_is_not_installed_is_refused_at_once(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, name, None)  # as Python remembers a module that it has not found
    line = refused(capsys, "pretrain", **PRETRAIN, log_with=name, output_dir=tmp_path / "run")
    assert f"log_with '{name}' is not installed: pip install {name}" in line
    assert not (tmp_path / "run").exists()


def test_a_store_that_cannot_be_opened_is_one_line(mlflow, tracked, tmp_path):
    shutil.copytree(tracked, tmp_path / "run")
    (tmp_path / "run" / "mlflow" / "mlflow.db").write_bytes(os.urandom(5000))
    with pytest.raises(InputError, match=r"log_with mlflow cannot start \(.*file is not a database") as error:
        tinymae.pretrain(**QUICK, log_with=("mlflow",), output_dir=tmp_path / "run")
    assert "\n" not in str(error.value)
