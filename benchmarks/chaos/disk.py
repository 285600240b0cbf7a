"""Disks that are full, files in the way, folders that vanish."""

import builtins
import errno
import io
import itertools
import os
import shutil
import time
from pathlib import Path

import numpy as np
import torch

from .cases import Case
from .runs import Runs


def break_disk(kind: str, number: int, lasting: bool, folder: Path) -> None:
    """In a child: calls of one kind fail at the n-th, and with `lasting` ever after."""
    calls = itertools.count(1)

    def wrap(owner: object, name: str) -> None:
        original = getattr(owner, name)

        def call(*arguments, **keywords):
            if name == "open":
                mode = keywords.get("mode", arguments[1] if len(arguments) > 1 else "r")
                if not set("wax+") & set(mode) or not str(arguments[0]).startswith(str(folder)):
                    return original(*arguments, **keywords)
            call_number = next(calls)
            if call_number == number or (lasting and call_number > number):
                if name == "save":  # as torch's own writer says it
                    Path(arguments[1]).write_bytes(b"PK")
                    raise RuntimeError("PytorchStreamWriter failed writing file data/1: file write failed")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(*arguments, **keywords)

        setattr(owner, name, call)

    targets: dict[str, list] = {
        "fsync": [(os, "fsync")], "replace": [(os, "replace")], "save": [(torch, "save")],
        "write": [(Path, "write_text"), (Path, "write_bytes")], "open": [(builtins, "open"), (io, "open")],
        "mkdir": [(os, "mkdir")],
    }  # fmt: skip
    for owner, name in targets[kind]:
        wrap(owner, name)


def attempt(runs: Runs, seed: int, number: int) -> Case:
    """Writes that fail, obstacles in a file's place, a folder deleted under the run; then the same command again."""
    generator = np.random.default_rng([seed, 1, number])
    name = ("pretrain", "finetune")[generator.integers(2)]
    runs.reference(name)
    folder = runs.fresh()
    trouble = generator.choice(["call", "call", "call", "obstacle", "deleted"])
    if trouble == "call":
        kind = str(generator.choice(["fsync", "replace", "save", "write", "open", "mkdir"]))
        fatal, lasting = int(generator.integers(1, 40)), bool(generator.integers(2))  # about as many as a run has
        what = f"{name}: {kind} {fatal} fails{' and all later ones' if lasting else ''}"
        arguments = (kind, fatal, lasting, folder)
        codes = runs.finish(runs.start(name, folder, disturb=break_disk, arguments=arguments))
    elif trouble == "obstacle":
        files = "args.json metrics.jsonl model.safetensors config.json results.json curves.png .lock".split()
        place = str(generator.choice([*files, "", "checkpoints", "tensorboard"]))
        what = f"{name}: {'a folder' if place in files else 'a file'} stands where {place or 'its folder'} should"
        folder.parent.mkdir(parents=True, exist_ok=True)
        if place in files:
            (folder / place).mkdir(parents=True)
        else:
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).write_text("in the way")
        codes = runs.finish(runs.start(name, folder))
        obstacle = folder / place
        if obstacle.is_file():
            obstacle.unlink()
        else:
            shutil.rmtree(obstacle, ignore_errors=True)
    else:
        moment = generator.uniform(0, runs.seconds[name, 1])
        what = f"{name}: its folder is deleted after {moment:.2f} s"
        processes = runs.start(name, folder)
        time.sleep(moment)
        shutil.rmtree(folder, ignore_errors=True)
        codes = runs.finish(processes)
    unclear = runs.judge(codes)
    return {"what": what, "ended": sorted(map(str, codes)), "lost": unclear or runs.repeat(name)}
