"""The command line: its help, its flags, what it refuses, and that it does what the functions do."""

import io
import itertools
import json
import math
import multiprocessing
import re
import runpy
import sys
from collections.abc import Sequence
from dataclasses import MISSING, fields
from importlib import import_module
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from conftest import SCRIPTS
from running import FEW, QUICK, TINY, flags, launch, metrics, one_line, refused, tiny_mae

import tinymae
from tinymae import InputError
from tinymae.commands import cli
from tinymae.commands.families import defaults_of, describe_setting
from tinymae.commands.fields import LIMITS, printable, words_of
from tinymae.commands.finetune import FinetuneSettings
from tinymae.commands.pretrain import PretrainSettings
from tinymae.commands.results import Result
from tinymae.errors import PAUSED
from tinymae.files import read_json
from tinymae.models.families import FAMILIES

SETTINGS = {
    command: getattr(import_module(f"tinymae.{module}"), name) for command, (module, name, _) in cli.COMMANDS.items()
}


def test_the_package_can_be_run_as_a_module(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tinymae", "--version"])
    runpy.run_module("tinymae", run_name="__main__")
    assert capsys.readouterr().out == f"tinymae {tinymae.__version__}\n"
    runpy.run_module("tinymae")  # imported, as documentation tools do
    assert not capsys.readouterr().out


def test_the_package_shows_its_public_names_alone():
    assert {*dir(tinymae)} == {*tinymae.__all__, "__version__"}


def test_help_and_version_come_without_the_heavy_imports():
    code = (
        "import sys\n"
        "from tinymae.commands import cli\n"
        "cli.main(['--help']), cli.main(['--version'])\n"
        "print(sorted({'torch', 'numpy', 'timm', 'accelerate', 'sklearn', 'PIL'} & sys.modules.keys()))"
    )
    process = launch("-c", code)
    output = process.communicate()[0]
    assert process.returncode == 0 and output.splitlines()[-2:] == [f"tinymae {tinymae.__version__}", "[]"]
    assert all(re.search(rf"^  {command} +\w", output, re.MULTILINE) for command in cli.COMMANDS)


def test_a_command_that_is_none_is_one_line_and_exit_code_2(capsys):
    assert "command 'train' is none of pretrain, linear-probe, finetune" in refused(capsys, "train")
    assert refused(capsys, "pretain").endswith("export, compare; did you mean pretrain?")


@pytest.mark.parametrize(
    ("given", "meant"),
    [("image_size", "image-size"), ("imagesize", "image-size"), ("outputdir", "output-dir"), ("xyz", None)],
)
def test_a_flag_that_is_none_names_the_closest_one(given, meant, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["pretrain", f"--{given}", "64"])
    question = f"; did you mean --{meant}?" if meant else ""
    line = f"tinymae pretrain: error: unrecognized arguments: --{given} 64{question} (see tinymae pretrain --help)\n"
    assert (stop.value.code, capsys.readouterr().err) == (2, line)


# ---- flags and settings


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_setting_has_a_flag_or_is_for_python_alone_and_all_help_renders(command):
    settings = SETTINGS[command]
    parser = cli.create_parser(settings)
    flagged = {action.dest for action in parser._actions} - {"help"}
    assert flagged == {f.name for f in fields(settings) if not f.metadata.get("python")}
    text = parser.format_help()
    for name in flagged:
        assert f"--{name.replace('_', '-')}" in text


@pytest.mark.parametrize("settings", [PretrainSettings, FinetuneSettings])
def test_settings_of_families_are_explained_by_the_families(settings):
    own = {f.name for f in fields(settings) if f.metadata.get("constructor")}
    known = {name for family in FAMILIES for name in defaults_of(family)}
    assert own == known & {f.name for f in fields(settings)} - {"image_size", "in_channels"}
    for name in own:
        text, _, defaults = describe_setting(name).partition(" (default: ")
        assert len(text) > 5 and all(family in defaults for family in FAMILIES if name in defaults_of(family))


def test_the_families_to_choose_from_are_those_that_there_are():
    assert get_args(get_type_hints(PretrainSettings)["model"]) == tuple(FAMILIES)


def test_flags_become_settings_of_the_right_types():
    given = {"image_size": (8, 12), "patch_size": 2, "flip": False, "skips": True, "base_lr": 0.5, "max_minutes": 1.5,
             "log_with": ("mlflow", "tensorboard"), "overwrite": True, "model": "vae", "data": "photos"}  # fmt: skip
    assert cli.parse(cli.create_parser(PretrainSettings), flags(**given)) == given
    probe = cli.create_parser(SETTINGS["linear-probe"])
    assert cli.parse(probe, ["--weights", "w", "--controls"])["controls"] == "all"
    assert cli.parse(probe, ["--weights", "w", "--controls", "raw_pixels"])["controls"] == "raw_pixels"
    assert "controls" not in cli.parse(probe, ["--weights", "w"])


@pytest.mark.parametrize(
    ("settings", "given", "message"),
    [
        (PretrainSettings, {"optimizer": "AdamW"}, "optimizer 'AdamW' is none of adamw, muon"),
        (PretrainSettings, {"model": "MAE"}, "model 'MAE' is none of mae, conv_ae"),
        (PretrainSettings, {"mixed_precision": False}, "mixed_precision False is none of auto"),
        (PretrainSettings, {"log_with": ("wandb", "aim")}, "log_with 'aim' is none of tensorboard, mlflow, wandb"),
        (SETTINGS["linear-probe"], {"weights": "w", "head": "MLP"}, "head 'MLP' is none of linear, mlp"),
        (SETTINGS["export"], {"weights": "w", "output_dir": "out", "format": "ONNX"}, "format 'ONNX' is none of "),
        (SETTINGS["embed"], {"weights": "w", "split": "tset"}, "split 'tset' is none of "),
    ],
)
def test_from_python_the_choices_are_those_of_the_command_line(settings, given, message):
    with pytest.raises(InputError, match=message):
        settings(**given)


@pytest.mark.parametrize(
    ("settings", "given", "message"),
    [
        (PretrainSettings, {"epochs": "3"}, "epochs '3' is of type str: give a whole number"),
        (PretrainSettings, {"epochs": 3.0}, "epochs 3.0 is of type float: give a whole number"),
        (PretrainSettings, {"epochs": True}, "epochs True is of type bool: give a whole number"),
        (PretrainSettings, {"max_minutes": "1"}, "max_minutes '1' is of type str: give a number"),
        (PretrainSettings, {"flip": 1}, "flip 1 is of type int: give True or False"),
        (PretrainSettings, {"encoder": 3}, "encoder 3 is of type int: give a text"),
        (PretrainSettings, {"weights": 3}, "weights 3 is of type int: give a text, a path, Autoencoder or Classifier"),
        (PretrainSettings, {"weights": torch.compile(tiny_mae())}, "is of type OptimizedModule: give its ._orig_mod"),
        (
            SETTINGS["embed"],
            {"weights": Result(tiny_mae(), {}, Path("run"))},
            "weights .* is of type Result: give its .model",
        ),
        (PretrainSettings, {"image_size": "8"}, "image_size '8' is of type str: give a whole number or 2"),
        (PretrainSettings, {"image_size": 8.0}, "image_size 8.0 is of type float: give a whole number or 2"),
        (PretrainSettings, {"pixel_range": 5}, "pixel_range 5 is of type int: give 2 numbers"),
        (PretrainSettings, {"pixel_range": (0, "a")}, "pixel_range .*'a'.* is of type tuple: give 2 numbers"),
        (PretrainSettings, {"show_channels": 1}, "show_channels 1 is of type int: give 3 whole numbers"),
        (
            SETTINGS["neighbours"],
            {"weights": "w", "query": np.zeros((1, 3), dtype=np.int64)},
            r"query array \[1, 3\] of int64, .* is of type ndarray: give a text",
        ),
        (
            SETTINGS["neighbours"],
            {"weights": "w", "query": [np.zeros(3)]},
            "query array.* is of type ndarray: give a text",
        ),
        (SETTINGS["embed"], {"weights": None}, "weights None: give one"),
        (SETTINGS["embed"], {"weights": "w", "layers": 0}, "layers 0: a number is how many of the last; the first"),
        (PretrainSettings, {"seed": None}, "seed None: leave it out for the default, 0"),
        (PretrainSettings, {"flip": None}, "flip None: leave it out for the default, True"),
        (SETTINGS["embed"], {"weights": "w", "layers": ("1",)}, "layers '1' is of type str: give a whole number"),
    ],
)
def test_from_python_a_value_of_another_type_is_refused_in_one_line(settings, given, message):
    with one_line(message):
        settings(**given)


def test_an_unknown_keyword_names_the_function_and_the_closest_one():
    for wrong, says in [
        ({"epoch": 1}, r"pretrain\(\) got an unexpected keyword argument 'epoch'; did you mean epochs\?"),
        ({"verbose": True}, r"pretrain\(\) got an unexpected keyword argument 'verbose'$"),
    ]:
        with pytest.raises(TypeError, match=says):
            tinymae.pretrain(**wrong)
    with pytest.raises(TypeError, match=r"neighbours\(\) missing a required argument: 'query'"):
        tinymae.neighbours(weights="w")


def test_a_type_checker_knows_what_a_command_takes():
    """mypy, which make lint runs, refuses both calls: it would complain of an `ignore` that nothing needs."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
        tinymae.finetune("photos/", nonsense=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="too many positional arguments"):
        tinymae.finetune("photos/", "runs/mae")  # type: ignore[call-arg]


@pytest.mark.parametrize("switched_off", [torch.no_grad, torch.inference_mode])
def test_training_needs_gradients_whatever_a_notebook_has_switched_off(switched_off, quick_figures, tmp_path):
    with switched_off():
        run = tinymae.pretrain(**QUICK | {"epochs": 1}, output_dir=tmp_path)
        assert not torch.is_grad_enabled()
    assert run.results["steps"] > 0


@pytest.mark.parametrize("command", ["pretrain", "linear_probe", "finetune"])
def test_training_computes_in_float32_whatever_a_script_has_made_the_default(
    command, quick_figures, quick_probes, tmp_path
):
    settings = {
        "pretrain": QUICK | {"contrast_epochs": 1}, "linear_probe": FEW | {"weights": tiny_mae()},
        "finetune": FEW | {"epochs": 1, "weights": tiny_mae()},
    }  # fmt: skip
    torch.set_default_dtype(torch.float64)
    try:
        run = getattr(tinymae, command)(**settings[command], output_dir=tmp_path)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert {parameter.dtype for parameter in run.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("command", SETTINGS)
def test_numbers_have_limits(command):
    chosen = SETTINGS[command]
    needed = {f.name: "runs/mae" for f in fields(chosen) if f.default is MISSING}
    for f, limit in itertools.product(fields(chosen), LIMITS):
        if limit in f.metadata:
            edge = f.metadata[limit]
            beyond = edge + {"least": -1, "most": 1}.get(limit, 0)
            with pytest.raises(InputError, match=f"{f.name} {beyond} is (not )?(above|below) {edge}"):
                chosen(**needed | {f.name: beyond})
            if limit in ("least", "most"):
                assert getattr(chosen(**needed | {f.name: edge}), f.name) in (edge, (edge,))


@pytest.mark.parametrize("name", ["base_lr", "weight_decay", "clip_grad", "mixup", "drop_path", "label_smoothing"])
def test_no_number_of_training_is_negative_or_none(name):
    for value in (-1.0, math.nan):
        with pytest.raises(InputError, match=f"{name} {value:g} is (below|not above) 0"):
            SETTINGS["finetune"](from_scratch=True, **{name: value})


class FsPath:
    """A path of another library."""

    def __init__(self, path: str):
        self.path = path

    def __fspath__(self) -> str:
        return self.path


def test_a_script_that_runs_again_in_a_process_that_reads_images_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)  # as it then is
    with one_line('put its calls below if __name__ == "__main__":, or give num_workers 0'):
        tinymae.embed(FEW["data"], weights=tiny_mae(), output_dir=tmp_path / "embed")
    assert not (tmp_path / "embed").exists()


def test_what_an_output_cannot_encode_ends_no_run(monkeypatch):
    """A log of Windows has the encoding cp1252, unless Python is told another."""
    log = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", log)
    with printable():
        print("\u251c\u2500Linear, caf\u00e9")
    log.seek(0)
    assert log.read() == "??Linear, caf\u00e9\n" and log.errors == "strict"


def test_from_python_a_whole_number_is_a_number_and_a_path_a_text():
    assert PretrainSettings(max_minutes=1, warmup_epochs=np.float64(0.5)).max_minutes == 1
    for size in ((np.int64(8), 16), [np.int64(8), 16], np.array([8, 16])):
        assert PretrainSettings(image_size=size).image_size == (8, 16)
    assert PretrainSettings(output_dir=FsPath("runs")).output_dir == Path("runs")
    assert words_of(Sequence[str]) is None  # of these, values are not asked for
    assert SETTINGS["neighbours"](weights="w", query=[Path("a"), "b"]).query == [Path("a"), "b"]
    assert PretrainSettings(epochs=3, max_minutes=None, flip=False).epochs == 3
    computed = PretrainSettings(epochs=np.int64(3), base_lr=np.float32(0.5), flip=np.True_).record()
    assert json.loads(json.dumps(computed)) | {"epochs": 3, "base_lr": 0.5, "flip": True} == computed
    assert SETTINGS["compare"](minutes=1, seeds=range(3)).seeds == (0, 1, 2)


def test_from_python_one_value_may_stand_for_several_and_true_for_a_flag():
    assert PretrainSettings(log_with="wandb").log_with == ("wandb",)
    assert SETTINGS["embed"](weights="w", split="test", layers=-2).split == ("test",)
    assert SETTINGS["compare"](data="digits", models="mae", seeds=3).seeds == (3,)
    assert SETTINGS["neighbours"](weights="w", query="images/").query == ("images/",)
    assert SETTINGS["linear-probe"](weights="w", controls=True).controls == "all"


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_is_a_function_of_the_same_settings(command):
    function = getattr(tinymae, command.replace("-", "_"))
    assert function.__signature__.parameters.keys() == {f.name for f in fields(SETTINGS[command])}
    assert function.__name__ == command.replace("-", "_") in tinymae.__all__
    assert all(f"\n    {name}: " in function.__doc__ for name in function.__signature__.parameters)


@pytest.mark.parametrize("name", ["pretrain", "linear_probe", "finetune", "evaluate", "export"])
def test_a_script_has_the_commands_help(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
    text = capsys.readouterr().out
    assert not stop.value.code and f"python scripts/{name}.py --" in text and "--output-dir" in text


def test_a_command_line_does_what_the_function_does(quick_figures, tmp_path):
    settings = TINY | {name: QUICK[name] for name in ("flip", "seed", "mixed_precision")}
    settings |= {"data": "digits", "batch_size": 256, "epochs": 1, "contrast_epochs": 0, "log_with": ("tensorboard",)}
    cli.main(["pretrain", *flags(**settings, output_dir=tmp_path / "line")])
    run = tinymae.pretrain(**settings, output_dir=tmp_path / "function")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "line" / name).read_bytes() == (run.folder / name).read_bytes()
    recorded = [read_json(tmp_path / name / "args.json") for name in ("line", "function")]
    assert recorded[0]["arguments"] == recorded[1]["arguments"] and recorded[0]["inputs"] == recorded[1]["inputs"]


def test_a_pause_is_told_by_the_exit_code(quick_figures, tmp_path, capsys):
    settings = TINY | {"data": "digits", "contrast_epochs": 0}
    settings |= {"pause_after_minutes": 0, "output_dir": tmp_path}
    with pytest.raises(SystemExit) as stop:
        cli.main(["pretrain", *flags(**settings)])
    assert stop.value.code == PAUSED
    assert "tinymae pretrain: paused after step 1; the same command resumes" in capsys.readouterr().err
    assert [row["step"] for row in metrics(tmp_path) if "loss" in row] == [1]


# ---- what is refused

BAD = {
    "epochs": ("pretrain", "--epochs 0", "epochs 0 is below 1"),
    "log_every": ("finetune", "--from-scratch --log-every 0", "log_every 0 is below 1"),
    "warm-up": ("pretrain", "--epochs 2 --warmup-epochs 2", "warmup_epochs 2 is not within 0 and the 2 epochs"),
    "an odd batch": ("finetune", "--from-scratch --batch-size 33 --mixup 0.8", "batch_size 33 is odd"),
    "heads": ("pretrain", "--patch-size 2 --num-heads 0", "num_heads 0 is below 1"),
    "temperature": ("pretrain", "--patch-size 2 --temperature 0", "temperature 0 is not above 0"),
    "unknown data": ("pretrain", "--data nothing_here", "data nothing_here does not exist: give a folder"),
    "batch too large": ("pretrain", "--patch-size 2 --batch-size 5000 --contrast-epochs 0",
                        "batch_size 5000 is not within 1 and the data set's 1300 images"),
    "patch size": ("pretrain", "--patch-size 3", "image_size (8, 8) is not a multiple of patch_size 3"),
    "fp16 on a CPU": ("pretrain", "--mixed-precision fp16", "mixed_precision 'fp16' needs a GPU"),
    "another family's flag": ("pretrain", "--model vae --mask-ratio 0.5", "mask_ratio is not a setting of model vae"),
    "mae has one loss": ("pretrain", "--loss l1", "loss is not a setting of model mae, but of conv_ae, vae"),
    "memory": ("pretrain", "--model vae --gradient-checkpointing", "gradient_checkpointing is not available for"),
    "no weights": ("linear-probe", "--weights not/there", "weights folder not/there does not exist"),
    "no start": ("finetune", "", "give --weights DIR"),
    "no weights to look at": ("evaluate", "--weights not/there", "weights folder not/there does not exist"),
    "weights left out": ("evaluate", "", "the following arguments are required: --weights"),
    "no such flag": ("pretrain", "--epoks 3", "unrecognized arguments: --epoks 3; did you mean --epochs? (see tinymae"),
    "no number": ("pretrain", "--epochs many", "argument --epochs: invalid int value: 'many'"),
    "three sizes": ("pretrain", "--image-size 1 2 3", "image_size (1, 2, 3) is of type tuple: give a whole number"),
    "no such family": ("pretrain", "--model gan", "argument --model: invalid choice: 'gan'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(case, tmp_path, capsys):
    command, words, message = BAD[case]
    common = {"data": "digits", "seed": 1, "mixed_precision": "no", "output_dir": tmp_path / "run"}
    assert message in refused(capsys, command, *flags(**common), *words.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["linear-probe", "finetune"])
def test_a_split_without_labels_is_refused_before_training(command, quick_figures, tmp_path, capsys):
    images, labels = QUICK["data"].numpy(), QUICK["labels"].numpy()
    parts = {"train": images[:40], "val": images[40:60], "test": images[60:]}
    arrays = {f"{split}_images": part for split, part in parts.items()}
    np.savez(tmp_path / "data.npz", **arrays, train_labels=labels[:40], val_labels=labels[40:60])
    tiny_mae().save_pretrained(tmp_path / "weights")
    common = {"weights": tmp_path / "weights", "data": tmp_path / "data.npz", "mixed_precision": "no"}
    line = refused(capsys, command, **common, output_dir=tmp_path / "run")
    assert "has no labels in test" in line and not (tmp_path / "run").exists()
    short = {"epochs": 1, "batch_size": 20, "flip": False} if command == "finetune" else {"head": "mlp"}
    cli.main([command, *flags(**common, **short, no_test=True, output_dir=tmp_path / "run")])
    assert (tmp_path / "run" / "results.json").exists()


def test_a_result_is_one_line_without_its_tables():
    results = {"accuracy": 95.16666, "images": 600, "confusion_matrix": [[600]]}
    shown = repr(Result(torch.nn.Flatten(), results, Path("run")))
    assert shown == "Result of a Flatten in run: accuracy 95.17, images 600"
