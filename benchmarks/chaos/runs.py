"""Commands in processes of their own, and what they must come to."""

import multiprocessing
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from tinymae.commands import cli

# Processes that need not import torch again: they are forked from one that has.
PROCESSES = multiprocessing.get_context("forkserver")
PRELOAD = ["tinymae.commands.pretrain", "tinymae.commands.finetune", "torch.utils.tensorboard", "torchinfo", "tinymae",
           "matplotlib.backends.backend_agg", "sklearn.datasets", "safetensors.torch"]  # fmt: skip
PROCESSES.set_forkserver_preload(PRELOAD)
COMMON = "--data digits --seed 1 --mixed-precision no --no-flip --checkpoint-minutes 0 --log-every 1 --batch-size 256"
COMMANDS = {
    "pretrain": f"pretrain {COMMON} --patch-size 4 --embed-dim 16 --depth 1 --num-heads 2 --decoder-dim 16 "
    "--decoder-depth 1 --mask-ratio 0.5 --epochs 3 --contrast-epochs 2 --views 2 --contrast-batch-size 512 "
    "--contrast-crop pad --optimizer adamw --probe-every 1",
    "finetune": f"finetune {COMMON} --epochs 3 --eval-every 1",
}


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


def warm_up() -> None:
    """Start the server of processes, which takes the time of its imports."""
    process = PROCESSES.Process(target=time.sleep, args=(0,))
    process.start()
    process.join()


class Runs:
    """Commands in processes of their own, and the weights in which they must end."""

    def __init__(self, place: Path):
        self.place, self.folder, self.log = place, place / "run", place / "log"
        self.references: dict[tuple[str, int], Path] = {}
        self.seconds: dict[tuple[str, int], float] = {}

    def start(self, name: str, folder: Path, *, count: int = 1, disturb: Callable | None = None, arguments: tuple = ()):
        """The processes of one run."""
        words = [*COMMANDS[name].split(), "--output-dir", str(folder)]
        if name == "finetune":
            words += ["--weights", str(self.reference("pretrain"))]
        self.log.unlink(missing_ok=True)
        group = [{}] if count == 1 else [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
        if count > 1:  # what torch.distributed.run sets
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = str(probe.getsockname()[1])
            shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            group = [own | shared | {"ACCELERATE_USE_CPU": "1"} for own in group]
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
            folder = self.place / f"reference-{name}-{count}"
            if name == "finetune":
                self.reference("pretrain")
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
        """Why the run's weights are not those of the undisturbed one, or None."""
        paths = [folder / "model.safetensors" for folder in (self.reference(name, count), self.folder)]
        if not paths[1].exists() or paths[0].read_bytes() != paths[1].read_bytes():
            return "other weights than the undisturbed run's"
        if not (self.folder / "results.json").exists():
            return "no results.json"
        one, many = load_file(self.reference(name) / "model.safetensors"), load_file(paths[1])
        # The keys' bias has no gradient but rounding noise.
        far = [key for key in one if "qkv.bias" not in key and (one[key] - many[key]).abs().max() > 1e-5]
        return f"{far} are over 1e-5 from those of one process" if far else None

    def repeat(self, name: str, count: int = 1) -> str | None:
        """The same command without a disturbance: why it does not end in the reference weights, or None."""
        codes = self.finish(self.start(name, self.folder, count=count))
        if codes != {0}:
            return f"the repeated command ended with {codes}: {self.log.read_text()[-1500:]}"
        return self.compare(name, count)

    def judge(self, codes: set[int | None]) -> str | None:
        """Why a disturbed run did not end as it should: well, or with one line that says what is wrong."""
        output = self.log.read_text()
        meant = codes == {2} and output.count(": error: ") == 1  # TensorBoard's thread may print what it met
        return None if codes == {0} or meant else f"ended with {codes}: {output[-1500:]}"
