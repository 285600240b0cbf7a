"""A run gives back what it took, however it ends; and nothing that is not finite is saved."""

import gc
import itertools
import json
import pickle
import signal
import threading
import weakref
from functools import partial

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from running import FEW, MODEL, QUICK, TWO_PHASES, flags, metrics, same_files

import tinymae
from tinymae import InputError, MaskedAutoencoder
from tinymae.commands import cli, embed, evaluate, export, finetune, inspect, linear_probe, pretrain
from tinymae.errors import Diverged, Stopped
from tinymae.files import lock_folder
from tinymae.models.contrast import ContrastiveLearner, ReconstructionLearner
from tinymae.models.pca import PrincipalComponents
from tinymae.training import run as run_module
from tinymae.training.checkpoints import Checkpoints
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
def whole(quick_stages, tmp_path_factory):
    """The folder of a run with SAVING in which all is finite."""
    return tinymae.pretrain(**SAVING, output_dir=tmp_path_factory.mktemp("saving") / "whole").folder


@pytest.mark.parametrize("step", [3, 4, 7, 12])
def test_a_gradient_that_is_not_finite_stops_the_run_before_anything_is_saved(step, whole, tmp_path, monkeypatch):
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
    assert same_files(tmp_path / "run", whole)


def test_a_gradient_that_is_not_finite_is_found_without_a_checkpoint_due(tmp_path, monkeypatch):
    plant(monkeypatch, 8, spoil_gradient)  # the last step
    with pytest.raises(Diverged, match="the gradient's norm is nan at step 8 .* last good checkpoint: none yet"):
        tinymae.pretrain(**QUICK, output_dir=tmp_path)
    assert not (tmp_path / "model.safetensors").exists() and not list(tmp_path.glob("checkpoints/*"))


def test_a_loss_that_explodes_stops_the_run_and_saves_nothing(tmp_path):
    explosive = {"epochs": 30, "base_lr": 1e30, "warmup_epochs": 0.1, "optimizer": "adamw"}
    with pytest.raises(Diverged, match=r"(loss|norm) is (nan|inf) at step \d+ \(learning rate .*Try a lower --base-lr"):
        tinymae.pretrain(**QUICK | explosive, output_dir=tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


def test_fine_tuning_that_diverges_saves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(finetune, "create_losses", spoilt(finetune.create_losses))
    tune = FEW | {"batch_size": 16, "epochs": 2, "flip": False, "eval_every": 1, "checkpoint_minutes": 0}
    with pytest.raises(Diverged, match="the gradient's norm is nan at step 4"):
        tinymae.finetune(**tune, weights=small_model(), output_dir=tmp_path)
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


def small_model() -> MaskedAutoencoder:
    return MaskedAutoencoder(image_size=8, in_channels=1, **{name: QUICK[name] for name in (*MODEL, "mask_ratio")})


# ---- what is given back


def ends(how: str, monkeypatch, tmp_path) -> None:
    """A pretraining that ends in one of the ways a run can end."""
    if how == "diverged":
        plant(monkeypatch, 3, spoil_loss)
    elif how == "stopped":
        plant(monkeypatch, 3, lambda _: signal.raise_signal(signal.SIGINT))
    elif how == "interrupted twice":
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
def test_however_a_run_ends_the_process_is_as_before_and_can_start_the_next(how, tmp_path, monkeypatch):
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
    tinymae.pretrain(**QUICK, output_dir=tmp_path / "whole")
    assert same_files(tmp_path / "run", tmp_path / "whole")


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
def test_ctrl_c_while_a_finished_training_is_written_loses_nothing(place, name, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(place, name, lambda *_, **__: signal.raise_signal(signal.SIGINT))
        tinymae.pretrain(**QUICK, output_dir=tmp_path / "run")
    assert not (tmp_path / "run" / "results.json").exists()
    tinymae.pretrain(**QUICK, output_dir=tmp_path / "run")
    tinymae.pretrain(**QUICK, output_dir=tmp_path / "whole")
    assert same_files(tmp_path / "run", tmp_path / "whole")


def test_ctrl_c_stops_what_has_no_steps_at_once(tmp_path, monkeypatch):
    """The components of a PCA are fitted by one call."""
    monkeypatch.setattr(PrincipalComponents, "fit", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        tinymae.pretrain(**FEW, model="pca", latent_dim=4, output_dir=tmp_path)
    lock_folder(tmp_path).release()


STEPLESS = {
    "embed": (embed, "map_images", "resumes"),
    "linear-probe": (linear_probe, "split_features", "starts again"),
    "evaluate": (evaluate, "map_together", "starts again"),
    "inspect": (inspect, "map_images", "starts again"),
    "export": (export, "export_timm", "starts again"),
}


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("command", STEPLESS)
def test_a_signal_stops_a_command_without_steps_in_one_line(command, number, tmp_path, monkeypatch, capsys):
    small_model().save_pretrained(tmp_path / "weights")
    settings = {"weights": tmp_path / "weights", "output_dir": tmp_path / "run"}
    settings |= {"format": "timm"} if command == "export" else {"data": "digits", "mixed_precision": "no"}
    module, function, remedy = STEPLESS[command]
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
    accelerator, kept = Accelerator(cpu=True), []
    monkeypatch.setattr(run_module, "keep_freed_memory", lambda keep=True: kept.append(keep))
    run = Run(tmp_path, accelerator, arguments={})
    with pytest.raises(ConnectionError), run:
        monkeypatch.setattr(run.progress, "close", lambda **_: (_ for _ in ()).throw(ConnectionError()))
        run.start(Stretch(Schedule(peak=0.0, last_step=1, warmup=0.0), 1, 4), step=0, batch=("batch_size", 4))
        assert signal.getsignal(signal.SIGINT) == run.signals.note
    assert kept == [True, False]
    lock_folder(tmp_path).release()


def test_a_folder_is_one_runs_at_a_time(tmp_path):
    accelerator = Accelerator(cpu=True)
    with Run(tmp_path, accelerator, arguments={"a": 1}), pytest.raises(InputError, match="in use by another process"):
        Run(tmp_path, accelerator, arguments={"a": 1}).__enter__()
    assert json.loads((tmp_path / "args.json").read_text())["arguments"] == {"a": 1}


def test_a_folder_that_cannot_be_the_runs_is_left_as_it_was(tmp_path):
    accelerator = Accelerator(cpu=True)
    with Run(tmp_path / "run", accelerator, arguments={"sizes": (1, 2)}, inputs={"train": "10 images, ab"}) as run:
        run.finish({}, [])
    content = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    for arguments, inputs, message in [
        ({"sizes": (1, 3)}, {"train": "10 images, ab"}, r"sizes was \[1, 2\], now \[1, 3\]"),
        ({"sizes": (1, 2), "more": 1}, {"train": "10 images, ab"}, "more was None, now 1"),
        ({"sizes": (1, 2)}, {"train": "11 images, cd"}, "train was '10 images, ab', now '11 images, cd'"),
    ]:
        with pytest.raises(InputError, match=message):
            Run(tmp_path / "run", accelerator, arguments=arguments, inputs=inputs).__enter__()
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == content
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is a file"):
        Run(tmp_path / "file", accelerator, arguments={}).__enter__()
    with Run(tmp_path / "run", accelerator, arguments={"sizes": (1, 2)}):  # nothing is known of its inputs
        pass


LEFT = {"args.json", ".lock", "metrics.jsonl", "tensorboard/events.out", "reconstructions.png", "inputs/train.txt"}


def leave(folder, names, step: int = 0) -> None:
    """What a run with a wrong seed left in its folder."""
    for path in (folder / name for name in names):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text({"args.json": '{"arguments": {"seed": 1}}', "metrics.jsonl": f'{{"step": {step}}}', ".lock": ""}
                        .get(path.name, "1.png"))  # fmt: skip


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_that_took_no_step_leaves_its_folder_to_the_corrected_command(overwrite, tmp_path):
    leave(tmp_path / "run", LEFT)
    with Run(tmp_path / "run", Accelerator(cpu=True), arguments={"seed": 2}, overwrite=overwrite):
        pass
    assert json.loads((tmp_path / "run" / "args.json").read_text())["arguments"] == {"seed": 2}
    assert not (tmp_path / "run" / "inputs").exists()  # of the other run
    assert [*tmp_path.iterdir()] == [tmp_path / "run"]


@pytest.mark.parametrize(
    "name", ["checkpoints/step-000000001-0.pt", "parts/000000.parquet", "results.json", "model.safetensors", "notes"]
)
def test_a_run_that_left_anything_is_not_taken_over(name, tmp_path):
    leave(tmp_path, LEFT | {name})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="seed was 1, now 2"):
        Run(tmp_path, Accelerator(cpu=True), arguments={"seed": 2}).claim()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_folders_are_moved_aside_however_soon_after_each_other(tmp_path):
    folder = tmp_path / "run"
    for content in ("a", "b", "c"):
        folder.mkdir()
        (folder / "results.json").write_text(content)
        run_module.move_aside(folder)
    assert sorted(file.read_text() for file in tmp_path.glob("*/results.json")) == ["a", "b", "c"]


def test_a_run_that_took_a_step_is_not_taken_over(tmp_path):
    leave(tmp_path, LEFT, step=1)
    with pytest.raises(InputError, match="seed was 1, now 2"):
        Run(tmp_path, Accelerator(cpu=True), arguments={"seed": 2}).claim()


def test_a_folder_whose_run_is_about_to_begin_is_not_taken_over(tmp_path):
    with (
        Run(tmp_path, Accelerator(cpu=True), arguments={"seed": 1}),
        pytest.raises(InputError, match="in use by another process"),
    ):
        Run(tmp_path, Accelerator(cpu=True), arguments={"seed": 2}).claim()
    assert json.loads((tmp_path / "args.json").read_text())["arguments"] == {"seed": 1}


def test_a_message_of_many_differences_is_short_and_has_numbers_as_people_write_them(tmp_path):
    digests = "0123456789abcdef" * 4, "f" * 64
    olds, news = ({"warmup_epochs": 0.05 * n, "weights": digest} | {f"flag{k}": k * n for k in range(1, 5)}
                  for n, digest in ((41, digests[0]), (42, digests[1])))  # fmt: skip
    with Run(tmp_path, Accelerator(cpu=True), arguments=olds) as run:
        run.finish({}, [])
    with pytest.raises(InputError) as refused:
        Run(tmp_path, Accelerator(cpu=True), arguments=news).claim()
    assert (
        "(warmup_epochs was 2.05, now 2.1, weights was '0123456789abcdef', now 'ffffffffffffffff', flag1 was 41, "
        "now 42, and 3 more)" in str(refused.value)
    )


def test_a_repeated_command_says_that_it_is_finished(tmp_path, capsys):
    for results in ({"accuracy_test": 91.234, "knn_val": 50.0}, {"images": 3}):
        folder = tmp_path / str(len(results))
        for _ in range(2):
            assert "is finished" not in capsys.readouterr().out
            with Run(folder, Accelerator(cpu=True), arguments={}) as run:
                run.finish(results, [])
        score = ", accuracy, test 91.23 %" * ("accuracy_test" in results)
        assert f"{folder} is finished{score}: its results stay as they are\n" in capsys.readouterr().out


def test_memory_that_runs_out_is_one_line_with_a_remedy_and_the_remedy_resumes(tmp_path, monkeypatch):
    draw_inputs = pretrain.draw_inputs

    def fail(settings, phase, model, batch, draws, progress):
        if draws.step == 3 and not settings.gradient_checkpointing:
            torch.empty(1 << 60)  # what a CPU without the memory says
        return draw_inputs(settings, phase, model, batch, draws, progress)

    monkeypatch.setattr(pretrain, "draw_inputs", fail)
    with pytest.raises(
        InputError, match="memory ran out with batch_size 16: repeat .* --gradient-checkpointing"
    ) as error:
        tinymae.pretrain(**QUICK, output_dir=tmp_path, checkpoint_minutes=0)
    assert "\n" not in str(error.value)
    assert tinymae.pretrain(**QUICK, output_dir=tmp_path, gradient_checkpointing=True).results["steps"] == 8


def test_the_batch_size_to_make_smaller_is_that_of_the_phase(tmp_path, monkeypatch, quick_figures):
    draw_inputs = pretrain.draw_inputs

    def fail(settings, phase, *others):
        if phase.views > 1:
            torch.empty(1 << 60)
        return draw_inputs(settings, phase, *others)

    monkeypatch.setattr(pretrain, "draw_inputs", fail)
    settings = QUICK | TWO_PHASES | {"batch_size": None, "contrast_batch_size": None}
    with pytest.raises(InputError, match=r"with contrast_batch_size 64: .* a smaller --contrast-batch-size in"):
        tinymae.pretrain(**settings, output_dir=tmp_path)


@pytest.mark.parametrize("wanted", [True, False])
def test_deterministic_algorithms_are_chosen_while_a_run_trains(wanted, tmp_path, monkeypatch):
    seen, report = [], Run.report

    def look(run, state):
        seen.append(torch.are_deterministic_algorithms_enabled())
        report(run, state)

    monkeypatch.setattr(Run, "report", look)
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
    with pytest.raises(InputError, match="its checkpoint is of another version .* or give --overwrite") as refused:
        tinymae.pretrain(**settings)
    assert "\n" not in str(refused.value)
    tinymae.pretrain(**settings, overwrite=True)


def test_a_folder_is_the_same_with_and_without_a_slash_at_its_end(tmp_path):
    for data in ("photos/", "photos", ["photos", "more/"], ["photos/", "more"]):
        folder = tmp_path / ("several" if isinstance(data, list) else "one")
        with Run(folder, Accelerator(cpu=True), arguments={"data": data}) as run:
            run.finish({}, [])
    with pytest.raises(InputError, match="data was 'photos/', now 'photos2'"):
        Run(tmp_path / "one", Accelerator(cpu=True), arguments={"data": "photos2"}).claim()


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


def test_a_last_step_is_saved_once(tmp_path, monkeypatch):
    saved, save = [], Checkpoints.save

    def noted(self, state, *, step):
        saved.append(step)
        save(self, state, step=step)

    monkeypatch.setattr(Checkpoints, "save", noted)
    tinymae.pretrain(**QUICK, checkpoint_minutes=0, output_dir=tmp_path)
    assert saved == list(range(1, 9))


def test_what_is_not_a_runs_own_stays_in_its_folder(tmp_path):
    """Images in a folder inputs/, where a run keeps the names of its files; tables of other programs."""
    images = tmp_path / "inputs" / "cats"
    images.mkdir(parents=True)
    for number in range(24):
        Image.fromarray(np.full((8, 8), number, dtype=np.uint8)).save(images / f"{number}.png")
    (tmp_path / "inputs" / "list.txt").write_text("mine")
    (tmp_path / "metrics.jsonl").write_text('{"loss": 1}\n')
    (tmp_path / "projector").mkdir()
    (tmp_path / "projector" / "slides.txt").write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    model = MaskedAutoencoder(image_size=8, patch_size=4, in_channels=3, embed_dim=16, depth=1, num_heads=2).eval()
    tinymae.embed(tmp_path / "inputs", weights=model, mixed_precision="no", formats=["projector"], output_dir=tmp_path)
    assert all(path.read_bytes() == content for path, content in before.items())
    assert (tmp_path / "inputs" / "train.txt").exists() and (tmp_path / "embeddings.parquet").exists()


def test_results_of_another_program_are_no_finished_run(tmp_path):
    (tmp_path / "results.json").write_text('{"accuracy_test": {"mean": 5}}')
    with Run(tmp_path, Accelerator(cpu=True), arguments={}) as run:
        run.finish({"images": 1}, [])
