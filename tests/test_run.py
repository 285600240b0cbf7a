"""A run gives back what it took, however it ends; and nothing that is not finite is saved."""

import gc
import itertools
import json
import pickle
import re
import shutil
import signal
import subprocess
import threading
import time
import weakref
from functools import partial
from types import SimpleNamespace

import numpy as np
import PIL
import pytest
import torch
from accelerate import Accelerator
from running import (
    FEW,
    QUICK,
    TWO_PHASES,
    Ticking,
    assert_same_weights,
    before_reports,
    edit_json,
    flags,
    metrics,
    one_line,
    run_in,
    same_files,
    tick,
    tiny_mae,
)

import tinymae
from tinymae import InputError, MaskedAutoencoder
from tinymae.commands import cli, embed, evaluate, export, finetune, inspect, linear_probe, pretrain
from tinymae.errors import Diverged, Stopped
from tinymae.files import lock_folder, read_json
from tinymae.models.contrast import ContrastiveLearner, ReconstructionLearner
from tinymae.models.pca import PrincipalComponents
from tinymae.training import progress, signals
from tinymae.training import run as run_module
from tinymae.training.checkpoints import Checkpoints
from tinymae.training.environment import commit_of
from tinymae.training.run import Run
from tinymae.training.schedule import Schedule, Stretch

pytestmark = pytest.mark.usefixtures("quick_figures")
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers_are_as_before():
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell's children ignore it
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == before
    signal.signal(signal.SIGINT, inherited)


def plant(monkeypatch, step: int, act) -> None:
    """Have pretraining do something to the loss of this step, before its backward pass."""
    draw_inputs, now = pretrain.draw_inputs, []

    def noted(*arguments):
        now[:] = [arguments[-2].step]
        return draw_inputs(*arguments)

    monkeypatch.setattr(pretrain, "draw_inputs", noted)
    for learner in (ReconstructionLearner, ContrastiveLearner):

        def planted(self, *arguments, forward=learner.forward, **keywords):
            losses = forward(self, *arguments, **keywords)
            if now == [step - 1]:
                act(losses)
            return losses

        monkeypatch.setattr(learner, "forward", planted)


def spoil_gradient(losses) -> None:
    """The loss stays as it is; its gradient is no number."""
    losses["loss"].register_hook(lambda gradient: gradient * torch.nan)


def spoil_loss(losses) -> None:
    losses["loss"] = losses["loss"] * torch.inf


# ---- what is not finite


SAVING = QUICK | TWO_PHASES | {"epochs": 5, "contrast_epochs": 4, "probe_every": 1, "keep_every": 1}
SAVING |= {"checkpoint_minutes": 0}


@pytest.fixture(scope="module")
def saved(quick_stages, tmp_path_factory):
    """The folder of a run with SAVING in which all is finite."""
    return tinymae.pretrain(**SAVING, output_dir=tmp_path_factory.mktemp("saving") / "run").folder


@pytest.mark.parametrize("step", [3, 4, 7, 12])
def test_a_gradient_that_is_not_finite_stops_the_run_before_anything_is_saved(step, saved, tmp_path, monkeypatch):
    """In a step with a checkpoint due: amid a phase, at the end of a phase, where weights are kept, at the end."""
    with monkeypatch.context() as patch:
        plant(patch, step, spoil_gradient)
        with pytest.raises(
            Diverged, match=rf"the gradient's norm is nan at step {step} .*step-0+{step - 1}-.*--base-lr"
        ):
            tinymae.pretrain(**SAVING, output_dir=tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert not (tmp_path / "run" / "results.json").exists()
    for path in [*(tmp_path / "run").glob("epochs/*")]:
        assert all(tensor.isfinite().all() for tensor in tinymae.load(path).state_dict().values())
    tinymae.pretrain(**SAVING, output_dir=tmp_path / "run")  # goes on from the step before
    assert same_files(tmp_path / "run", saved)


def test_a_gradient_that_is_not_finite_is_found_without_a_checkpoint_due(tmp_path, monkeypatch):
    plant(monkeypatch, 8, spoil_gradient)  # the last step
    with pytest.raises(Diverged, match="the gradient's norm is nan at step 8 .* last good checkpoint: none yet"):
        tinymae.pretrain(**QUICK, output_dir=tmp_path)
    assert not (tmp_path / "model.safetensors").exists() and not list(tmp_path.glob("checkpoints/*"))


def test_fine_tuning_that_diverges_saves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(finetune, "create_losses", spoilt(finetune.create_losses))
    tune = FEW | {"batch_size": 16, "epochs": 2, "flip": False, "eval_every": 1, "checkpoint_minutes": 0}
    with pytest.raises(Diverged, match="the gradient's norm is nan at step 4"):
        tinymae.finetune(**tune, weights=tiny_mae(), output_dir=tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    assert not [row for row in metrics(tmp_path) if "accuracy_val" in row]


def spoilt(create):
    """Losses whose gradient is no number in step 4."""

    def create_spoilt(*arguments, **keywords):
        compute, steps = create(*arguments, **keywords), itertools.count()

        def compute_losses(**inputs):
            losses = compute(**inputs)
            if next(steps) == 3:
                spoil_gradient(losses)
            return losses

        return compute_losses

    return create_spoilt


# ---- what is said on the way


def lines_of(steps: int, capsys, monkeypatch, tmp_path, *, seconds: float = 0.0) -> list[str]:
    """What progress says on stderr of so many steps, which take so many seconds each, where there is no terminal."""
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=Ticking(seconds)))
    schedule = Schedule(peak=1.0, last_step=steps, warmup=0.0)
    told = progress.Progress(tmp_path, Accelerator(cpu=True), log_every=1, minutes=lambda: 0.0)
    told.start(Stretch(schedule, 1, 8), 0)
    for step in range(1, steps + 1):
        told.log_step(SimpleNamespace(step=step, learning_rate=1.0), {"loss": 0.5, "grad_norm": 1.0})
    told.close(complete=True)
    return capsys.readouterr().err.splitlines()


def test_a_log_gets_a_line_a_minute_and_no_bar(capsys, monkeypatch, tmp_path):
    lines = lines_of(60, capsys, monkeypatch, tmp_path, seconds=5.0)
    assert 4 <= len(lines) <= 15 and all(re.match(r" *\d+\.\d%, epoch \d+.*, ETA \d+:\d\d$", line) for line in lines)


def test_a_line_says_what_is_done_how_fast_and_how_long_the_rest_takes(capsys, monkeypatch, tmp_path):
    """Of the second half of a run: 100 steps of 30 images, each of 5.01 seconds, but for a pause of a minute."""
    now = [1000.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    told = progress.Progress(tmp_path, Accelerator(cpu=True), log_every=1, minutes=lambda: 0.0)
    schedule = Schedule(peak=1.0, first_step=40, last_step=140, warmup=0.0)
    told.start(Stretch(schedule, 10, 30, first_epoch=4, begin=0.5), 40)
    for step in range(41, 91):
        now[0] += 5.01
        if step == 90:
            now[0] += 60.0
            told.leave_out(60.0)
        told.log_step(SimpleNamespace(step=step, learning_rate=1.0), {"loss": 0.5, "grad_norm": 1.0})
    told.close()
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == " 75.0%, epoch 9.00, loss 0.5000, 6 images/s, ETA 4:10"
    assert [row["images_per_second"] for row in metrics(tmp_path)] == pytest.approx([30 / 5.01] * 50, rel=1e-4)


def test_tqdms_own_switch_silences_progress(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    assert lines_of(60, capsys, monkeypatch, tmp_path, seconds=5.0) == []


def test_a_run_that_goes_on_with_another_version_says_so(tmp_path, capsys):
    settings = QUICK | {"output_dir": tmp_path / "run"}
    with pytest.raises(Stopped):
        tinymae.pretrain(**settings, pause_after_minutes=0)
    recorded = tmp_path / "run" / "args.json"
    edit_json(recorded, {"versions": read_json(recorded)["versions"] | {"torch": "2.0.1"}})
    tinymae.pretrain(**settings)
    said = f"begun with torch 2.0.1, now {torch.__version__}: "
    assert capsys.readouterr().out.count(said) == 1
    tinymae.pretrain(**settings)  # finished
    assert said not in capsys.readouterr().out


def test_results_that_are_made_again_by_another_version_say_so(tmp_path, capsys):
    settings = {"data": FEW["data"][:8], "weights": tiny_mae(), "split": ("all",), "output_dir": tmp_path / "run"}
    tinymae.embed(**settings)
    recorded = read_json(tmp_path / "run" / "args.json")
    edit_json(tmp_path / "run" / "args.json", {"versions": recorded["versions"] | {"pillow": "9.0.1"}})
    tinymae.embed(**settings)
    assert f"begun with pillow 9.0.1, now {PIL.__version__}: " in capsys.readouterr().out
    assert len(recorded["versions"]) == 10 and len(recorded["processor"]) > 2


def test_a_run_records_that_the_code_differs_from_the_commit(tmp_path):
    def git(*words):
        identity = ["-c", "user.name=me", "-c", "user.email=me@here"]
        return subprocess.run(
            ["git", "-C", tmp_path, *identity, *words], check=True, capture_output=True, text=True
        ).stdout

    (code := tmp_path / "src" / "tinymae" / "code.py").parent.mkdir(parents=True)
    code.write_text("x = 1")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    git("tag", "v1")
    commit = git("rev-parse", "HEAD").strip()
    assert commit_of(tmp_path) == commit
    code.write_text("x = 2")
    assert commit_of(tmp_path) == f"{commit}-dirty"
    assert commit_of(tmp_path / "src") is None


def test_a_signal_that_comes_twice_at_once_is_one(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    with signals.interrupting():
        noted = signals.StopSignals()
        noted.catch()
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
        assert noted.code == 128 + signal.SIGTERM
        now[0] += 1.5
        with pytest.raises(signals.Interrupted):
            signal.raise_signal(signal.SIGTERM)


# ---- what is given back


def ends(how: str, monkeypatch, tmp_path) -> None:
    """A pretraining that ends in one of the ways a run can end."""
    if how == "diverged":
        plant(monkeypatch, 3, spoil_loss)
    elif how == "stopped":
        plant(monkeypatch, 3, lambda _: signal.raise_signal(signal.SIGINT))
    elif how == "interrupted twice":
        monkeypatch.setattr(signals, "SAME", -1.0)
        plant(monkeypatch, 3, lambda _: [signal.raise_signal(signal.SIGINT) for _ in range(2)])
    elif how == "an error":
        plant(monkeypatch, 3, lambda losses: losses["nothing"])
    expected = {"diverged": Diverged, "stopped": Stopped, "interrupted twice": KeyboardInterrupt, "an error": KeyError}
    try:
        tinymae.pretrain(**QUICK, output_dir=tmp_path / "run")
    except BaseException as error:
        assert type(error) is expected[how]
    else:
        assert how == "finished"


@pytest.mark.parametrize("how", ["finished", "diverged", "stopped", "interrupted twice", "an error"])
def test_however_a_run_ends_the_process_is_as_before_and_can_start_the_next(how, whole, tmp_path, monkeypatch):
    models, writers = [], threading.active_count()
    create = pretrain.create_model

    def watch(*arguments):
        model = create(*arguments)
        models.append(weakref.ref(model))
        return model

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "create_model", watch)
        ends(how, patch, tmp_path)
    gc.collect()
    assert len(models) == 1 and models[0]() is None, "something of ours still holds the model"
    assert threading.active_count() <= writers, "a tracker still writes"
    lock_folder(tmp_path / "run").release()
    tinymae.pretrain(**QUICK, output_dir=tmp_path / "run")
    assert same_files(tmp_path / "run", whole)


def test_ctrl_c_saves_the_step_it_came_in(tmp_path, monkeypatch):
    plant(monkeypatch, 3, lambda _: signal.raise_signal(signal.SIGINT))
    with pytest.raises(Stopped, match="stopped by SIGINT after step 3; the same command resumes") as stopped:
        tinymae.pretrain(**QUICK, output_dir=tmp_path)
    assert stopped.value.exit_code == 130 and not isinstance(stopped.value, Exception)  # no loop over runs goes on
    assert [path.name[:14] for path in (tmp_path / "checkpoints").iterdir()] == ["step-000000003"]
    again = pickle.loads(pickle.dumps(stopped.value))  # as pools of processes send it
    assert str(again) == str(stopped.value) and again.exit_code == 130


def test_a_stop_at_the_last_step_costs_no_line_of_metrics(tmp_path, monkeypatch):
    settings = QUICK | {"epochs": 1, "log_every": 3, "log_with": ()}
    with monkeypatch.context() as patched:
        plant(patched, 4, lambda _: signal.raise_signal(signal.SIGINT))
        with pytest.raises(Stopped, match="after step 4"):
            tinymae.pretrain(**settings, output_dir=tmp_path)
    run = tinymae.pretrain(**settings, output_dir=tmp_path)
    assert [row["step"] for row in metrics(run.folder) if "loss" in row] == [1, 3, 4]


@pytest.mark.parametrize(("epochs", "logged"), [(2, [1, 3, 6, 8]), (3, [1, 3, 6, 9, 12])])
def test_the_last_step_has_a_line_of_metrics_whatever_its_number(epochs, logged, tmp_path):
    for _ in range(2):  # repeated after it finished, nothing is written twice
        run = tinymae.pretrain(**QUICK | {"epochs": epochs, "log_every": 3, "log_with": ()}, output_dir=tmp_path)
        assert [row["step"] for row in metrics(run.folder) if "loss" in row] == logged


def files_in(folder) -> dict:
    """The bytes of each file, and when it was written."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


@pytest.mark.parametrize("command", ["pretrain", "pca", "finetune"])
def test_a_finished_training_that_is_repeated_gives_what_is_there_and_writes_nothing(command, tmp_path):
    tune = FEW | {"weights": tiny_mae(), "epochs": 1, "batch_size": 16}
    settings = {"pretrain": QUICK, "pca": FEW | {"model": "pca", "latent_dim": 4}, "finetune": tune}[command]
    train = partial(tinymae.finetune if command == "finetune" else tinymae.pretrain, **settings, output_dir=tmp_path)
    first, before = train(), files_in(tmp_path)
    again = train()
    assert files_in(tmp_path) == before
    assert again.results == json.loads(json.dumps(first.results)) and not again.model.training
    assert_same_weights(again.model, first.model)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"damaged")
    assert_same_weights(train().model, first.model)
    assert weights.read_bytes() == before[weights][0]


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_the_callers_randomness_is_left_as_it_was(command, tmp_path):
    settings = {"pretrain": QUICK, "finetune": FEW | {"from_scratch": True, "epochs": 1, "patch_size": 4, "depth": 1}}
    drawn = []
    for interrupted in (False, True):
        torch.manual_seed(1)
        np.random.seed(1)
        if interrupted:
            getattr(tinymae, command)(**settings[command], output_dir=tmp_path)
        drawn.append((float(torch.rand(())), np.random.rand()))
    assert drawn[0] == drawn[1]


def test_ctrl_c_after_the_last_step_keeps_it_and_stops(tmp_path, monkeypatch):
    end = Run.end_stretch

    def interrupted(run, step):
        signal.raise_signal(signal.SIGINT)
        end(run, step)

    monkeypatch.setattr(Run, "end_stretch", interrupted)
    with pytest.raises(Stopped, match="stopped by SIGINT after step 8"):
        tinymae.pretrain(**QUICK, output_dir=tmp_path)
    assert [path.name[:14] for path in (tmp_path / "checkpoints").iterdir()] == ["step-000000008"]


@pytest.mark.parametrize(("place", "name"), [(MaskedAutoencoder, "write_weights"), (run_module, "write_card")])
def test_ctrl_c_while_a_finished_training_is_written_loses_nothing(place, name, whole, tmp_path, monkeypatch):
    """A study that finds results.json does not run again, so nothing may come after it."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(place, name, lambda *_, **__: signal.raise_signal(signal.SIGINT))
        tinymae.pretrain(**QUICK, output_dir=tmp_path / "run")
    assert not (tmp_path / "run" / "results.json").exists()
    tinymae.pretrain(**QUICK, output_dir=tmp_path / "run")
    assert same_files(tmp_path / "run", whole) and (tmp_path / "run" / "README.md").exists()


def test_ctrl_c_stops_what_has_no_steps_at_once(tmp_path, monkeypatch):
    """The components of a PCA are fitted by one call."""
    monkeypatch.setattr(PrincipalComponents, "fit", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        tinymae.pretrain(**FEW, model="pca", latent_dim=4, output_dir=tmp_path)
    lock_folder(tmp_path).release()


STEPLESS = {
    "embed": (embed, "map_images", "resumes", signal.SIGINT),
    "linear-probe": (linear_probe, "split_features", "starts again", signal.SIGTERM),
    "evaluate": (evaluate, "map_together", "starts again", signal.SIGINT),
    "inspect": (inspect, "map_images", "starts again", signal.SIGTERM),
    "export": (export, "export_timm", "starts again", signal.SIGTERM),
}


@pytest.mark.parametrize("command", STEPLESS)
def test_a_signal_stops_a_command_without_steps_in_one_line(command, tmp_path, monkeypatch, capsys):
    tiny_mae().save_pretrained(tmp_path / "weights")
    settings = {"weights": tmp_path / "weights", "output_dir": tmp_path / "run"}
    settings |= {"format": "timm"} if command == "export" else {"data": "digits", "mixed_precision": "no"}
    module, function, remedy, number = STEPLESS[command]
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(module, function, lambda *_, **__: signal.raise_signal(number))
        cli.main([command, *flags(**settings)])
    assert stop.value.code == 128 + number
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == f"tinymae {command}: stopped by {number.name}; the same command {remedy}"
    lock_folder(tmp_path / "run").release()


def test_a_signal_before_there_is_a_run_is_one_line(tmp_path, monkeypatch, capsys):
    """While modules are imported, and later."""
    for place in ("import_module", "create_parser"):
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
            patch.setattr(cli, place, lambda *_, **__: signal.raise_signal(signal.SIGTERM))
            cli.main(["embed"])
        assert stop.value.code == 128 + signal.SIGTERM
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("tinymae embed: stopped by SIGTERM")


def test_everything_is_given_back_even_if_a_tracker_fails_to_end(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(run_module, "keep_freed_memory", lambda keep=True: kept.append(keep))
    run = run_in(tmp_path)
    with pytest.raises(ConnectionError), run:
        monkeypatch.setattr(run.progress, "close", lambda **_: (_ for _ in ()).throw(ConnectionError()))
        run.start(Stretch(Schedule(peak=0.0, last_step=1, warmup=0.0), 1, 4), step=0, batch=("batch_size", 4))
        assert signal.getsignal(signal.SIGINT) == run.signals.note
    assert kept == [True, False]
    lock_folder(tmp_path).release()


@pytest.mark.parametrize("wanted", [True, False])
def test_deterministic_algorithms_are_chosen_while_a_run_trains(wanted, tmp_path, monkeypatch):
    seen = []
    before_reports(monkeypatch, lambda *_: seen.append(torch.are_deterministic_algorithms_enabled()))
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # so that it is as before afterwards
    tinymae.pretrain(**QUICK | {"epochs": 1}, deterministic=wanted, output_dir=tmp_path)
    assert seen == [wanted] * 4 and not torch.are_deterministic_algorithms_enabled()


def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line(tmp_path, monkeypatch):
    """As one of a version whose optimiser had other groups."""
    settings = QUICK | {"optimizer": "muon", "output_dir": tmp_path / "run"}
    create = pretrain.create_optimizer
    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "create_optimizer", lambda *given, ends, **options: create(*given, **options))
        with pytest.raises(Stopped):
            tinymae.pretrain(**settings, pause_after_minutes=0)
    with one_line("its checkpoint is of another version .* or give overwrite"):
        tinymae.pretrain(**settings)
    tinymae.pretrain(**settings, overwrite=True)


@pytest.mark.parametrize("command", [tinymae.pretrain, partial(tinymae.finetune, from_scratch=True)])
def test_a_time_limit_that_leaves_no_step_gives_no_weights(command, tmp_path):
    """Untrained ones would pass for trained ones."""
    given = {name: value for name, value in QUICK.items() if name != "contrast_epochs" and "decoder" not in name}
    del given["mask_ratio"]
    with pytest.raises(InputError, match="max_minutes 1e-09 was over before the first step: give more"):
        command(**given, max_minutes=1e-9, output_dir=tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    given["epochs"] = 1
    assert command(**given, output_dir=tmp_path).results["steps"] == 4  # in the same folder


def noted_saves(monkeypatch) -> list[int]:
    """The steps of the checkpoints that are saved from now on."""
    saved, save = [], Checkpoints.save

    def noted(self, state, *, step):
        saved.append(step)
        save(self, state, step=step)

    monkeypatch.setattr(Checkpoints, "save", noted)
    return saved


def test_a_checkpoint_comes_when_its_minutes_are_over(tmp_path, monkeypatch):
    """By a clock that each step moves on by a minute."""
    saved, minutes = noted_saves(monkeypatch), []
    before_reports(monkeypatch, lambda *_: minutes.append(60.0))
    monkeypatch.setattr(run_module, "time", SimpleNamespace(monotonic=lambda: sum(minutes)))
    tinymae.pretrain(**QUICK, checkpoint_minutes=2.5, output_dir=tmp_path)
    assert saved == [3, 6, 8]  # and after the last step


def test_each_session_takes_the_minutes_before_its_pause(tmp_path, monkeypatch):
    tick(monkeypatch)
    saved = noted_saves(monkeypatch)
    for _ in range(2):
        with pytest.raises(Stopped):
            tinymae.pretrain(**QUICK | {"epochs": 9}, pause_after_minutes=0.2, log_with=(), output_dir=tmp_path)
    first, second = saved
    assert first > 1 and second >= 2 * first - 1  # a look at the clock is a second


@pytest.mark.parametrize("meets", [{"checkpoint_minutes": 0, "log_every": 1000}, {"log_every": 1}])
def test_a_folder_that_vanishes_under_a_run_is_named_and_not_made_anew_in_part(meets, whole, tmp_path, monkeypatch):
    """Whether a checkpoint or a line of metrics meets it first."""
    settings = QUICK | meets | {"output_dir": tmp_path / "run"}
    with monkeypatch.context() as patch, one_line("run was deleted or moved during the run: put it back, and"):
        before_reports(patch, lambda run, state: shutil.rmtree(run.folder) if state.step == 3 else None)
        tinymae.pretrain(**settings)
    assert not (tmp_path / "run").exists()
    tinymae.pretrain(**settings)
    assert same_files(tmp_path / "run", whole)


def test_a_last_step_is_saved_once(tmp_path, monkeypatch):
    saved = noted_saves(monkeypatch)
    tinymae.pretrain(**QUICK, checkpoint_minutes=0, output_dir=tmp_path)
    assert saved == list(range(1, 9))


def test_metrics_cut_short_by_a_kill_are_mended_on_resuming(tmp_path):
    rows = [{"step": step, "epoch": 0.1, "loss": 1.0} for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "lo')
    with run_in(tmp_path) as run:
        run.track(None, model=torch.nn.Linear(64, 64))
        run.save_checkpoint(2)
        assert run.load_checkpoint()["step"] == 2 and run.progress.metrics == rows[:2]
    assert (tmp_path / "metrics.jsonl").read_text().endswith("}\n")


def test_metrics_of_an_attempt_without_a_checkpoint_are_not_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "epoch": 0.1, "loss": 1.0}\n{"step": 2, "lo')
    with run_in(tmp_path) as run:
        assert run.load_checkpoint() is None and run.progress.metrics == []


@pytest.mark.parametrize("jump", [0.0, -86400.0])
def test_a_clock_that_stands_still_or_is_put_back_does_not_end_a_run(jump, quick_figures, tmp_path, monkeypatch):
    now, real = [], time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now[-1] + jump if now else real())
    before_reports(monkeypatch, lambda run, state: now.append(real()) if state.step == 2 else None)
    run = tinymae.pretrain(**QUICK, output_dir=tmp_path)
    rates = [row["images_per_second"] for row in metrics(tmp_path) if "images_per_second" in row]
    assert run.results["steps"] == len(rates) == 8 and min(rates) == 0 < max(rates)
