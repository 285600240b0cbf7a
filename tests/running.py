"""Small models and runs, and commands as people type them."""

import contextlib
import csv
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import draw_tiles, search_shortly
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import tinymae
from tinymae import InputError, MaskedAutoencoder, load_dataset
from tinymae.commands import cli
from tinymae.evaluation.sheets import Tile
from tinymae.files import read_json, write_bytes
from tinymae.training.clock import Stopwatch
from tinymae.training.run import Run

# Processes of their own that need not import torch again: they are forked from one that has.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.warm"])  # of the working folder, the only place where it looks

DIGITS = {"data": "digits", "seed": 1, "mixed_precision": "no"}
MODEL = {"patch_size": 2, "embed_dim": 32, "depth": 2, "num_heads": 2, "decoder_dim": 16, "decoder_depth": 1}
SHORT = {"batch_size": 64, "epochs": 2, "warmup_epochs": 0.5, "flip": False, "log_every": 5}
PRETRAIN = DIGITS | MODEL | SHORT | {"contrast_epochs": 0}

# The smallest of all: four patches of an image of 8 x 8 pixels.
ENCODER = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
TINY = ENCODER | {"decoder_dim": 16, "decoder_depth": 1, "mask_ratio": 0.5}

# Families of images of 16 x 16 pixels, none with more weights than it needs.
SMALLEST: dict[str, dict] = {
    "mae": {"embed_dim": 24, "depth": 1, "num_heads": 2, "decoder_dim": 16, "decoder_depth": 1},
    "conv_ae": {"width": 8, "latent_dim": 8},
    "vae": {"width": 8, "latent_dim": 8},
    "vqvae": {"width": 8, "codebook_size": 16},
    "resnet_unet": {"encoder": "test_resnet"},
    "masked_conv": {"encoder": "test_convnext2", "decoder_dim": 8},
    "pca": {"latent_dim": 8},
}

# Pixels from Python, so few that an epoch has four steps.
FEW = {"data": load_dataset("digits").images[:80], "labels": load_dataset("digits").labels[:80],
       "seed": 1, "mixed_precision": "no"}  # fmt: skip
QUICK = FEW | TINY | {"batch_size": 16, "epochs": 2, "flip": False, "log_every": 1, "contrast_epochs": 0}
TWO_PHASES = {"epochs": 3, "contrast_epochs": 2, "views": 3, "contrast_batch_size": 32, "contrast_base_lr": 1e-3,
              "contrast_crop": "pad", "optimizer": "adamw"}  # fmt: skip  # Muon would turn the projector's 1024 x 1024


def tiny_mae(**changes) -> MaskedAutoencoder:
    """A model of grey images of 8 x 8 pixels, with the same weights each time, in evaluation mode."""
    torch.manual_seed(0)
    return MaskedAutoencoder(**{"image_size": 8, "in_channels": 1} | TINY | changes).eval()


def off_the_start(module):
    """Move every parameter off its start, so that no zero bias, token or position hides a mistake."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return module


def save_images(folder: Path, images) -> list[Path]:
    """Images, uint8 or uint16 (N, H, W) or (N, 1, H, W), as the files 00.png, 01.png and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(np.asarray(images)):
        Image.fromarray(image.squeeze()).save(folder / f"{number:02}.png")
    return sorted(folder.glob("*.png"))


def remember_training(folder: Path, **names: list[str]) -> None:
    """Let weights in a folder be of a run that was started with files of these names, by split."""
    shutil.rmtree(folder / "inputs", ignore_errors=True)
    for split, of_split in names.items():
        write_bytes(folder / "inputs" / f"{split}.txt", "".join(f"{name}\n" for name in of_split).encode())


def run_in(folder: Path, **options) -> Run:
    """A run on the CPU, of no arguments unless they are given."""
    return Run(folder, Accelerator(cpu=True), **{"arguments": {}} | options)


def edit_json(file: Path, changes: dict) -> None:
    """Change values of a JSON object."""
    file.write_text(json.dumps(read_json(file) | changes))


def rows_of(table: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with open(table, newline="") as file:
        return list(csv.DictReader(file))


@contextlib.contextmanager
def one_line(message: str):
    """What is to be refused, with a message of one line that this pattern is found in."""
    with pytest.raises(InputError, match=message) as error:
        yield error
    assert "\n" not in str(error.value)


def flags(**settings) -> list[str]:
    """Settings as a command line has them."""
    words = []
    for name, value in settings.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            words += [flag, *map(str, value if isinstance(value, tuple | list) else [value])]
    return words


def refused(capsys, command: str, *words, **settings) -> str:
    """The one line on stderr of a command that must exit with code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main([command, *map(str, words), *flags(**settings)])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert ": error: " in line
    return line


def launch(*command, **environment) -> subprocess.Popen:
    """Python in a process of its own, on one core."""
    return subprocess.Popen(
        [sys.executable, *map(str, command)], env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def start(
    log: Path, command: list[str], *, killed: tuple[int, int] | None = None, folder: Path | None = None,
    **environment: str,
) -> BaseProcess:  # fmt: skip
    """The command line in a process of its own, whose output goes to `log`, in the working folder `folder`; its figures
    are bare tiles, and its probes search shortly.

    With `killed`, a signal and a step, the process sends itself the signal in that step.
    """
    process = PROCESSES.Process(
        target=work, args=(log, command, killed, folder or Path.cwd(), environment, torch.get_num_threads())
    )
    process.start()
    return process


def group_of_two(**environment: str) -> list[dict[str, str]]:
    """What a launcher tells each of two processes of one run, of one thread each as here: a sum has its order."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "1",
              "OMP_NUM_THREADS": "1"}  # fmt: skip
    return [common | {"RANK": rank, "LOCAL_RANK": rank} | environment for rank in "01"]


def start_calls(log: Path, calls: list[tuple[str, dict]], **environment: str) -> BaseProcess:
    """Commands as Python functions, one after the other in a process of its own."""
    process = PROCESSES.Process(target=call_in_turn, args=(log, calls, environment, torch.get_num_threads()))
    process.start()
    return process


def call_in_turn(log: Path, calls: list[tuple[str, dict]], environment: dict, threads: int) -> None:
    """What `start_calls` has its process do."""
    set_up(log, environment, threads)
    for name, settings in calls:
        getattr(tinymae, name)(**settings)


def work(
    log: Path, command: list[str], killed: tuple[int, int] | None, folder: Path, environment: dict, threads: int
) -> None:
    """What `start` has its process do."""
    os.chdir(folder)
    set_up(log, environment, threads)
    if killed is not None:
        number, step = killed
        before_reports(pytest.MonkeyPatch(), signal_in({step: number}))
    cli.main(command)


def set_up(log: Path, environment: dict, threads: int) -> None:
    """What a process prints goes to `log`; its figures are bare tiles, and its probes search shortly. It has as many
    threads as the tests: others would wait for those that the process it was forked from had.
    """
    torch.set_num_threads(threads)
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    quick = pytest.MonkeyPatch()  # as the fixture quick_stages
    draw_tiles(quick)
    search_shortly(quick)


def before_reports(patch: pytest.MonkeyPatch, act) -> None:
    """Have runs do something before they report a step, given the run and the state of training."""
    report = Run.report

    def acted(run, state):
        act(run, state)
        report(run, state)

    patch.setattr(Run, "report", acted)


def signal_in(steps: dict[int, int]):
    """Something to do before reports: to get a signal in each of these steps, once."""
    left = dict(steps)
    return lambda run, state: signal.raise_signal(left.pop(state.step)) if state.step in left else None


class Ticking:
    """A clock that each look moves on by so many seconds."""

    def __init__(self, seconds: float):
        self.seconds, self.now = seconds, 0.0

    def __call__(self) -> float:
        self.now += self.seconds
        return self.now


def tick(patch: pytest.MonkeyPatch, seconds: float = 1.0) -> None:
    """Let runs take so many seconds between two looks at their clock, however fast the machine is."""
    patch.setattr("tinymae.training.run.Stopwatch", lambda *before: Stopwatch(*before, now=Ticking(seconds)))


def note_sheets(patch: pytest.MonkeyPatch, command: ModuleType) -> dict[str, list[Tile]]:
    """The tiles of each sheet that a command writes from now on, by the name of its file."""
    sheets, write = {}, command.write_sheet

    def noted(rows, path: Path, title: str) -> Path:
        sheets[path.name] = [tile for row in rows for tile in row]
        return write(rows, path, title)

    patch.setattr(command, "write_sheet", noted)
    return sheets


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def same_files(one: Path, two: Path, *names: str) -> bool:
    """Whether two runs left the same bytes."""
    return all((one / name).read_bytes() == (two / name).read_bytes() for name in names or ("model.safetensors",))


def assert_close_weights(one: Path, two: Path) -> None:
    """Two runs ended in the same weights, up to the order of sums."""
    single, double = (load_file(folder / "model.safetensors") for folder in (one, two))
    for name, tensor in single.items():
        if not name.endswith("qkv.bias"):  # as in test_train: the keys' bias has no gradient but rounding noise
            torch.testing.assert_close(double[name], tensor, atol=1e-5, rtol=0)


def in_child(work) -> int:
    """Run `work` in a forked process; returns its process id."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(f"child: {error!r}", file=sys.stderr)
            os._exit(1)
    return pid


def wait(pid: int) -> int:
    """The exit code of a process, or the signal that ended it, below zero."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def without_seconds(folder: Path) -> dict:
    """The results of a run, but for how long it took."""
    return {name: value for name, value in read_json(folder / "results.json").items() if name != "seconds"}


def assert_same_weights(first: nn.Module, second: nn.Module) -> None:
    """Two models have the same bits."""
    ours, theirs = first.state_dict(), second.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
