"""Small runs, and commands as people type them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinymae import load_dataset
from tinymae.commands import cli

DIGITS = {"data": "digits", "seed": 1, "mixed_precision": "no"}
MODEL = {"patch_size": 2, "embed_dim": 32, "depth": 2, "num_heads": 2, "decoder_dim": 16, "decoder_depth": 1}
SHORT = {"batch_size": 64, "epochs": 2, "warmup_epochs": 0.5, "flip": False, "log_every": 5}
PRETRAIN = DIGITS | MODEL | SHORT | {"contrast_epochs": 0}

# Pixels from Python, so few that an epoch has four steps.
FEW = {"data": load_dataset("digits").images[:80], "labels": load_dataset("digits").labels[:80],
       "seed": 1, "mixed_precision": "no"}  # fmt: skip
QUICK = FEW | {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "decoder_dim": 16, "decoder_depth": 1,
               "mask_ratio": 0.5, "batch_size": 16, "epochs": 2, "flip": False, "log_every": 1,
               "contrast_epochs": 0}  # fmt: skip
TWO_PHASES = {"epochs": 3, "contrast_epochs": 2, "views": 3, "contrast_batch_size": 32, "contrast_base_lr": 1e-3,
              "contrast_crop": "pad", "optimizer": "adamw"}  # fmt: skip  # Muon would turn the projector's 1024 x 1024


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


def launch(*command, start_new_session: bool = False, **environment) -> subprocess.Popen:
    """Python in a process of its own, on one core."""
    return subprocess.Popen(
        [sys.executable, *map(str, command)], env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=start_new_session,
    )  # fmt: skip


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def same_files(one: Path, two: Path, *names: str) -> bool:
    """Whether two runs left the same bytes."""
    return all((one / name).read_bytes() == (two / name).read_bytes() for name in names or ("model.safetensors",))
