"""However often a run is stopped, paused or killed, and on however many processes: it ends in the same weights."""

import json
import os
import re
import signal
import threading
from pathlib import Path

import pytest
import torch
from conftest import SCRIPTS
from PIL import Image
from running import (
    DIGITS,
    FEW,
    MODEL,
    PRETRAIN,
    QUICK,
    TWO_PHASES,
    flags,
    group_of_two,
    launch,
    metrics,
    same_files,
    start,
)
from safetensors.torch import load_file

import tinymae
from tinymae import InputError, MaskedAutoencoder, files, load_dataset
from tinymae.commands import cli
from tinymae.errors import PAUSED, Stopped
from tinymae.files import write_json
from tinymae.training.inputs import require_same_run
from tinymae.training.run import Run

pytestmark = pytest.mark.usefixtures("quick_figures")


@pytest.fixture(scope="module")
def whole(quick_stages, tmp_path_factory) -> Path:
    """The folder of a short run that nothing interrupts."""
    return tinymae.pretrain(**QUICK, output_dir=tmp_path_factory.mktemp("quick") / "whole").folder


def small_model() -> MaskedAutoencoder:
    torch.manual_seed(0)
    return MaskedAutoencoder(image_size=8, in_channels=1, **{name: QUICK[name] for name in (*MODEL, "mask_ratio")})


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
    settings = settings | ({"weights": small_model()} if command == "finetune" else {})
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
    results = [json.loads((tmp_path / each / "results.json").read_text()) for each in ("whole", "paused")]
    assert results[0] | {"minutes": 0} == results[1] | {"minutes": 0}
    kept = [sorted(path.name for path in (tmp_path / each / "epochs").glob("*")) for each in ("whole", "paused")]
    assert kept[0] == kept[1] == (["0001", "0002", "0003"] if "keep_every" in settings else [])
    assert all(
        same_files(tmp_path / "whole" / "epochs" / each, tmp_path / "paused" / "epochs" / each) for each in kept[0]
    )


def signal_after(monkeypatch, steps: set[int], number: int) -> None:
    """Have runs get a signal in each of these steps, once."""
    report = Run.report

    def signalled(run, state):
        if state.step in steps:
            steps.remove(state.step)
            signal.raise_signal(number)
        report(run, state)

    monkeypatch.setattr(Run, "report", signalled)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_anywhere_ends_in_the_same_bits(number, tmp_path, monkeypatch):
    settings = QUICK | TWO_PHASES
    tinymae.pretrain(**settings, output_dir=tmp_path / "whole")
    signal_after(monkeypatch, {2, 4, 7, 8}, number)  # 4 ends a phase, 8 the run
    for step in (2, 4, 7, 8):
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


# ---- two processes


def assert_same_weights(one: Path, two: Path) -> None:
    single, double = (load_file(folder / "model.safetensors") for folder in (one, two))
    for name, tensor in single.items():
        if not name.endswith("qkv.bias"):  # see test_train: the keys' bias has no gradient but rounding noise
            torch.testing.assert_close(double[name], tensor, atol=1e-5, rtol=0)


def run_two(log: Path, command: list[str], **options) -> tuple[set[int | None], str]:
    """The same command as two processes of one run: (their exit codes, their output)."""
    processes = [start(log, command, **options, **environment) for environment in group_of_two()]
    for process in processes:
        process.join()
    return {process.exitcode for process in processes}, log.read_text()


def test_two_processes_make_the_run_of_one_even_when_killed(tmp_path):
    """Both die amid the second phase, which contrasts the images of both; torchrun resumes, as in the README."""
    settings = DIGITS | {name: QUICK[name] for name in (*MODEL, "mask_ratio", "flip", "log_every")} | TWO_PHASES
    settings |= {"batch_size": 600, "contrast_batch_size": 600, "views": 2, "epochs": 2, "contrast_epochs": 1}
    words = flags(**settings, checkpoint_minutes=0, output_dir=tmp_path / "two")
    codes, output = run_two(tmp_path / "log", ["pretrain", *words], killed=(signal.SIGKILL, 4))
    assert codes == {-signal.SIGKILL} and "2 processes on cpu" in output, output
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, SCRIPTS / "pretrain.py"]
    resumed = launch(*torchrun, *words, ACCELERATE_USE_CPU="1")
    output = resumed.communicate()[0]
    assert resumed.returncode == 0 and "2 processes on cpu" in output, output
    assert re.search("resuming from .*step-000000003-", output), output  # the first of the second phase
    tinymae.pretrain(**settings, output_dir=tmp_path / "one")
    assert_same_weights(tmp_path / "one", tmp_path / "two")
    for name in ("loss", "contrastive_loss"):
        one, two = ([row[name] for row in metrics(tmp_path / each) if name in row] for each in ("one", "two"))
        assert two == pytest.approx(one, rel=1e-4)


def test_two_processes_label_what_one_labels(tmp_path):
    """And so do micro-batches: all see the same images, augmented alike, with the same patches left out."""
    settings = DIGITS | {name: QUICK[name] for name in ("patch_size", "embed_dim", "depth", "num_heads")}
    settings |= {"from_scratch": True, "label_fraction": 0.2, "batch_size": 60, "epochs": 2, "eval_every": 2,
                 "unlabelled": 3, "unlabelled_warmup": 0.25, "unlabelled_threshold": 0.1, "flip": False,
                 "trivial_augment": True, "random_erasing": 0.25, "log_every": 1}  # fmt: skip
    codes, output = run_two(tmp_path / "log", ["finetune", *flags(**settings, output_dir=tmp_path / "two")])
    assert codes == {0} and "2 processes on cpu" in output, output
    tinymae.finetune(**settings, output_dir=tmp_path / "one")
    tinymae.finetune(**settings, gradient_accumulation_steps=2, output_dir=tmp_path / "parts")
    for other in ("two", "parts"):
        assert_same_weights(tmp_path / "one", tmp_path / other)
        for name in ("loss", "unlabelled_loss", "unlabelled_kept", "unlabelled_right"):
            one, two = ([row[name] for row in metrics(tmp_path / each) if name in row] for each in ("one", other))
            assert one and two == pytest.approx(one, rel=1e-4), (name, other)


def test_two_processes_find_each_other_when_the_precision_is_chosen_for_them(tmp_path):
    """The processor is asked what it supports before Accelerate starts the processes' group."""
    settings = {name: QUICK[name] for name in (*MODEL, "mask_ratio")} | {"batch_size": 1000, "epochs": 1}
    settings |= {"data": "digits", "contrast_epochs": 0, "output_dir": tmp_path / "run"}
    codes, output = run_two(tmp_path / "log", ["pretrain", *flags(**settings)])
    assert codes == {0} and "2 processes on cpu" in output, output


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


# ---- other inputs under the same settings


def test_a_run_is_not_continued_from_other_weights_in_the_same_folder(tmp_path):
    start, tune = QUICK | {"epochs": 1, "output_dir": tmp_path / "mae"}, FEW | {"batch_size": 16, "epochs": 1}
    tinymae.pretrain(**start)
    before = json.loads((tmp_path / "mae" / "results.json").read_text())
    tuning = {**tune, "weights": tmp_path / "mae", "output_dir": tmp_path / "tuned"}
    with pytest.raises(Stopped):
        tinymae.finetune(**tuning, pause_after_minutes=0)
    tinymae.pretrain(**start | {"seed": 2}, overwrite=True)
    assert json.loads((tmp_path / "mae" / "results.json").read_text()) != before
    with pytest.raises(InputError, match=r"holds another run \(weights was '\w+', now '\w+'\): choose another folder"):
        tinymae.finetune(**tuning)
    tinymae.finetune(**tuning, overwrite=True)  # moves the old one aside
    tinymae.finetune(**tuning)
    other = small_model()
    tinymae.linear_probe(**FEW, head="mlp", weights=other, output_dir=tmp_path / "probe")
    with torch.no_grad():
        other.encoder.norm.bias += 1
    with pytest.raises(InputError, match="weights was 'MaskedAutoencoder, sha256 .*, now 'MaskedAutoencoder, sha256"):
        tinymae.linear_probe(**FEW, head="mlp", weights=other, output_dir=tmp_path / "probe")


@pytest.mark.parametrize("streamed", [False, True])
def test_a_run_is_not_continued_on_other_images_in_the_same_folder(streamed, tmp_path, monkeypatch):
    if streamed:
        load_splits = tinymae.data.load.load_splits
        monkeypatch.setattr(load_splits, "__kwdefaults__", load_splits.__kwdefaults__ | {"memory_limit_gb": 0})
    (tmp_path / "images").mkdir()
    for number, image in enumerate(load_dataset("digits").images[:40]):
        Image.fromarray(image[0].numpy()).save(tmp_path / "images" / f"{number:02}.png")
    settings = {
        name: QUICK[name] for name in (*MODEL, "mask_ratio", "contrast_epochs", "batch_size", "mixed_precision")
    }
    settings |= {"data": tmp_path / "images", "in_channels": 1, "image_size": 8, "epochs": 1, "num_workers": 0,
                 "output_dir": tmp_path / "run"}  # fmt: skip
    with pytest.raises(Stopped):
        tinymae.pretrain(**settings, pause_after_minutes=0)
    content = {path: path.read_bytes() for path in (tmp_path / "images").iterdir()}
    Image.new("L", (9, 9), 7).save(tmp_path / "images" / "21.png")
    splits = r"(train|val) was '\d+ images, \w+', now '\d+ images, \w+'"
    with pytest.raises(InputError, match=rf"holds another run \({splits}\)"):
        tinymae.pretrain(**settings)
    (tmp_path / "images" / "more.png").write_bytes(content[tmp_path / "images" / "03.png"])
    with pytest.raises(
        InputError, match=r"train was '37 images, \w+', now '38 images, \w+', 1 of train came: more\.png"
    ):
        tinymae.pretrain(**settings)
    (tmp_path / "images" / "more.png").unlink()
    for path, before in content.items():
        path.write_bytes(before)
    assert tinymae.pretrain(**settings).results["steps"] == 2


def write_digits(folder: Path, *, start: int) -> None:
    """Twenty images of digits, from one on."""
    folder.mkdir()
    for number in range(20):
        image = Image.fromarray(load_dataset("digits").images[start + number, 0].numpy())
        image.save(folder / f"{number:02}.png")


def test_a_run_is_the_same_run_however_its_data_and_weights_are_spelled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_digits(tmp_path / "images", start=0)
    write_digits(tmp_path / "others", start=20)
    small_model().write_weights("mae")
    common = {"split": "all", "mixed_precision": "no", "output_dir": tmp_path / "run"}
    found = tinymae.evaluate("images", weights="mae", **common).results
    recorded = (tmp_path / "run" / "args.json").read_text()
    assert json.loads(recorded)["arguments"].items() >= {"data": "images", "weights": "mae"}.items()
    Path("images").rename("moved")
    Path("mae").rename("weights")
    for data, weights in (("moved", tmp_path / "weights"), (tmp_path / "moved", "weights")):
        assert tinymae.evaluate(data, weights=weights, **common).results == found
    assert tinymae.evaluate("moved", weights=small_model(), skip_unreadable=True, **common).results == found
    assert (tmp_path / "run" / "args.json").read_text() == recorded
    with pytest.raises(
        InputError, match=r"another run \(data was 'images', now 'others', all was '20 images, \w+', now"
    ):
        tinymae.evaluate("others", weights="weights", **common)
    (tmp_path / "moved" / "07.png").rename(tmp_path / "moved" / "7.png")
    with pytest.raises(InputError, match=r"data was 'images', now 'moved', .*1 of all came: 7\.png, 1 of all went: 07"):
        tinymae.evaluate("moved", weights="weights", **common)
    (tmp_path / "moved" / "7.png").rename(tmp_path / "moved" / "07.png")
    other = small_model()
    other.mask_token.data += 1
    other.write_weights("weights")
    with pytest.raises(InputError, match=r"weights was 'mae', now 'weights', .*weights was '\w{16}', now '\w{16}'"):
        tinymae.evaluate("moved", weights="weights", **common)


def test_a_path_counts_where_nothing_is_known_of_its_content_or_names_and_sizes_alone(tmp_path):
    arguments, inputs = {"data": "2023", "weights": "owner/name"}, {"train": "2 images, 12ab"}
    write_json(tmp_path / "args.json", {"arguments": arguments, "inputs": inputs})
    write_json(tmp_path / "results.json", {})
    pixels = torch.zeros(20, 1, 8, 8, dtype=torch.uint8)
    in_memory, streamed = ({"train": load_dataset(pixels, memory_limit_gb=limit)} for limit in (4, 0))
    moved = arguments | {"data": "2024"}
    require_same_run(tmp_path, moved, inputs, in_memory)
    for changed, found, datasets in [
        (moved, {}, {}),
        (moved, inputs, streamed),
        (arguments | {"weights": "owner/other"}, inputs, in_memory),
    ]:
        with pytest.raises(
            InputError, match=r"(data was '2023', now '2024'|weights was 'owner/name', now 'owner/other')\)"
        ):
            require_same_run(tmp_path, changed, found, datasets)


def test_pixels_from_python_are_told_apart(tmp_path):
    tinymae.pretrain(**QUICK | {"epochs": 1}, output_dir=tmp_path)
    for name, changed in (("data", 255 - QUICK["data"]), ("labels", QUICK["labels"].flip(0)), ("labels", None)):
        now = "None" if changed is None else "'array"
        with pytest.raises(InputError, match=f"{name} was 'array .*, now {now}"):
            tinymae.pretrain(**QUICK | {"epochs": 1, name: changed}, output_dir=tmp_path)
    same = {"data": QUICK["data"].numpy().copy(), "labels": QUICK["labels"].tolist()}
    assert tinymae.pretrain(**QUICK | {"epochs": 1} | same, output_dir=tmp_path).results["steps"] == 4


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
    assert_same_weights(whole, tmp_path / "parts")


def test_a_run_in_another_thread_is_the_same(whole, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=lambda: tinymae.pretrain(**QUICK, output_dir=tmp_path / "thread"))
    thread.start()
    thread.join()
    assert same_files(whole, tmp_path / "thread") and signal.getsignal(signal.SIGINT) is before
