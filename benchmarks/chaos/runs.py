"""Commands in processes of their own, and what they must come to."""

import csv
import json
import multiprocessing
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from tinymae.commands import cli

# Processes that need not import torch again: they are forked from one that has.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["benchmarks.chaos.warm"])
COMMON = "--seed 1 --mixed-precision no"
TRAINING = f"{COMMON} --no-flip --checkpoint-minutes 0 --log-every 1 --batch-size 24"
MODEL = "--patch-size 4 --embed-dim 16 --depth 1 --num-heads 2 --decoder-dim 16 --decoder-depth 1 --mask-ratio 0.5"
COMMANDS = {
    "pretrain": f"pretrain {TRAINING} {MODEL} --epochs 3 --contrast-epochs 2 --views 2 --contrast-batch-size 48 "
    "--contrast-crop pad --optimizer adamw --probe-every 2",
    "finetune": f"finetune {TRAINING} --epochs 3 --eval-every 1",
    "linear_probe": f"linear-probe {COMMON}",
    "evaluate": f"evaluate {COMMON} --split all",
    "reconstruct": f"evaluate {COMMON}",
    "embed": f"embed {COMMON}",
}
WEIGHTS = {
    "finetune": "pretrain", "linear_probe": "pretrain", "evaluate": "finetune", "reconstruct": "pretrain",
    "embed": "pretrain",
}  # fmt: skip
COMPARE = [
    *"compare --models mae --epochs 1 --mixed-precision no".split(),
    "--extra", f"mae: {MODEL} --batch-size 24", "--extra", "finetune: --batch-size 24",
]  # fmt: skip
TIMES = ("seconds", "minutes", "images_per_second", "folder")  # what no two runs have in common


def work(log: Path, words: list[str], environment: dict[str, str], disturb: Callable | None, arguments: tuple) -> None:
    """A command as its process runs it, after `disturb` has patched that process."""
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    torch.set_num_threads(1)
    if disturb:
        disturb(*arguments)
    cli.main(words)


def contents(folder: Path) -> dict[str, object]:
    """Every file of a run that two undisturbed runs have in common, without the times in it."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or path.name in (".lock", "args.json", "report.html") or path.name.startswith("events.out"):
            continue
        if path.match("checkpoints/step-*.pt"):
            continue
        if path.name == "results.json":
            found[name] = without_times(json.loads(path.read_text()))
        elif path.name == "metrics.jsonl":
            found[name] = [without_times(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.name == "comparison.csv":
            found[name] = [without_times(row) for row in csv.DictReader(path.read_text().splitlines())]
        elif path.name == "comparison.md":
            found[name] = without_minutes(path.read_text())
        elif path.name == "README.md":
            lines = path.read_text().replace(str(folder), "").splitlines()
            found[name] = " ".join(" ".join(line for line in lines if not line.startswith("Cost: ")).split())
        else:
            found[name] = path.read_bytes()
    return found


def without_times(content: dict) -> dict:
    """A JSON object without the values that are times."""
    return {key: value for key, value in content.items() if key not in TIMES}


def without_minutes(text: str) -> list[list[str]]:
    """The rows of a table of Markdown without its column of minutes."""
    rows = [line.split(" | ") for line in text.splitlines()]
    (place,) = {row.index("minutes") for row in rows if "minutes" in row}
    return [row[:place] + row[place + 1 :] for row in rows]


def warm_up() -> None:
    """Start the server of processes, which takes the time of its imports."""
    process = PROCESSES.Process(target=time.sleep, args=(0,))
    process.start()
    process.join()


class Runs:
    """Commands in processes of their own, and the files in which they must end."""

    def __init__(self, place: Path):
        self.place, self.folder, self.log = place, place / "run", place / "log"
        self.data = place / "few.npz"
        digits = load_digits()
        np.savez(self.data, images=(15 * digits.images[:96]).astype(np.uint8), labels=digits.target[:96])
        self.references: dict[tuple[str, int], Path] = {}
        self.seconds: dict[tuple[str, int], float] = {}

    def start(self, name: str, folder: Path, *, count: int = 1, disturb: Callable | None = None, arguments: tuple = ()):
        """The processes of one run."""
        words = COMPARE if name == "compare" else COMMANDS[name].split()
        words = [*words, "--data", str(self.data), "--output-dir", str(folder)]
        if name in WEIGHTS:
            words += ["--weights", str(self.reference(WEIGHTS[name]))]
        self.log.unlink(missing_ok=True)
        group = [{}] if count == 1 else [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
        if count > 1:  # what torch.distributed.run sets
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = str(probe.getsockname()[1])
            shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            shared |= {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}  # Accelerate's threads follow the cores
            group = [own | shared for own in group]
        processes = [PROCESSES.Process(target=work, args=(self.log, words, own, disturb, arguments)) for own in group]
        for process in processes:
            process.start()
        return processes

    def finish(self, processes, *, patience: float = 180) -> set[int | None]:
        """Their exit codes. Once one has failed, the others are killed soon, as torch.distributed.run does."""
        until = time.monotonic() + patience
        while any(process.is_alive() for process in processes) and time.monotonic() < until:
            if any(process.exitcode for process in processes):
                until = min(until, time.monotonic() + 3)
            time.sleep(0.01)
        codes = {process.exitcode for process in processes}  # None: still going
        for process in processes:
            process.kill()
            process.join()
        return codes

    def reference(self, name: str, count: int = 1) -> Path:
        """The folder of an undisturbed run."""
        if (name, count) not in self.references:
            folder = self.place / f"reference-{name}-{count}" / "run"  # a card has the folder's name
            if name in WEIGHTS:
                self.reference(WEIGHTS[name])
            began = time.monotonic()
            if self.finish(self.start(name, folder, count=count)) != {0}:
                raise RuntimeError(f"the undisturbed {name} failed:\n{self.log.read_text()[-3000:]}")
            self.seconds[name, count], self.references[name, count] = time.monotonic() - began, folder
        return self.references[name, count]

    def fresh(self) -> Path:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.unlink(missing_ok=True)
        return self.folder

    def compare(self, name: str, count: int = 1) -> str | None:
        """How the run's files differ from those of the undisturbed one, or None."""
        wanted, found = contents(self.reference(name, count)), contents(self.folder)
        if missing := sorted(wanted.keys() - found.keys()):
            return f"no {', '.join(missing)}"
        if more := sorted(found.keys() - wanted.keys()):
            return f"{', '.join(more)} are left over"
        if other := sorted(path for path in wanted if wanted[path] != found[path]):
            return f"{', '.join(other)} differ from those of the undisturbed run"
        if count == 1 or "model.safetensors" not in wanted:
            return None
        one, many = (load_file(folder / "model.safetensors") for folder in (self.reference(name), self.folder))
        # The keys' bias has no gradient but rounding noise.
        far = [key for key in one if "qkv.bias" not in key and (one[key] - many[key]).abs().max() > 1e-5]
        return f"{far} are over 1e-5 from those of one process" if far else None

    def repeat(self, name: str, count: int = 1) -> str | None:
        """The same command without a disturbance: why it does not end in the reference's files, or None."""
        codes = self.finish(self.start(name, self.folder, count=count))
        if codes != {0}:
            return f"the repeated command ended with {codes}: {self.log.read_text()[-1500:]}"
        return self.compare(name, count)

    def judge(self, codes: set[int | None]) -> str | None:
        """Why a disturbed run did not end as it should: well, or with one line that says what is wrong."""
        output = self.log.read_text()
        meant = codes == {2} and output.count(": error: ") == 1  # TensorBoard's thread may print what it met
        return None if codes == {0} or meant else f"ended with {codes}: {output[-1500:]}"
