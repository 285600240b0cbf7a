"""Allocations that fail."""

import itertools
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from tinymae.training.checkpoints import Checkpoints

from .cases import Case
from .runs import Runs

NAMES = ("pretrain", "finetune", "pretrain", "linear_probe", "finetune", "evaluate", "pretrain", "embed")
TRAINED = ("pretrain", "finetune")
# How torch says it on a CPU and on a GPU, and how Python and C++ do.
ERRORS = (
    lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:125] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 4611686018427387904 bytes. Error code 12 (Cannot allocate memory)"
    ),
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of 8"),
    lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    lambda: MemoryError(),
    lambda: MemoryError("std::bad_alloc"),
)
PLACES = {
    "forward": (torch.nn.functional, "linear", 80), "norm": (torch.nn.functional, "layer_norm", 50),
    "backward": (torch.Tensor, "backward", 12), "update": (torch.optim.AdamW, "step", 12),
    "save": (torch, "save", 9), "finite": (Checkpoints, "save", 9),
}  # fmt: skip  # the function, and about how often a run calls it


def break_memory(place: str, number: int, which: int) -> None:
    """In a child: the n-th call of a function fails for want of memory, as do all after it."""
    owner, name, _ = PLACES[place]
    original, calls = getattr(owner, name), itertools.count(1)

    def call(*arguments, **keywords):
        if next(calls) >= number:
            raise ERRORS[which]()
        return original(*arguments, **keywords)

    setattr(owner, name, call)


def limit_memory(more: int) -> None:
    """In a child: the process gets so many bytes of addresses more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, resource.RLIM_INFINITY))


def attempt(runs: Runs, seed: int, number: int) -> Case:
    """Memory that runs out at some call, or at a limit of the system's; then the same command where there is enough.

    At a call it must be one line that names the batch size, and where there is such a flag --gradient-checkpointing. At
    the limit, libraries may end the process in their own way; what is saved must not suffer.
    """
    generator = np.random.default_rng([seed, 3, number])
    name = NAMES[number % len(NAMES)]
    runs.reference(name)
    disturb: Callable[..., None]
    arguments: tuple
    if generator.random() < 0.3:
        more = int(2 ** generator.uniform(16, 28))
        what, disturb, arguments = f"{name}: {more:,} bytes more", limit_memory, (more,)
    else:
        place = str(generator.choice(list(PLACES) if name in TRAINED else ["forward", "norm"]))
        most = PLACES[place][-1] if name in TRAINED else 8
        fatal, which = int(generator.integers(1, most)), int(generator.integers(len(ERRORS)))
        what, disturb, arguments = f"{name}: {place} {fatal} fails, error {which}", break_memory, (place, fatal, which)
    codes = runs.finish(runs.start(name, runs.fresh(), disturb=disturb, arguments=arguments))
    lines = [line for line in runs.log.read_text(errors="replace").splitlines() if ": error: " in line]
    wanted = ["memory ran out", "batch_size", *["--gradient-checkpointing"] * (name in TRAINED)]
    clear = codes == {2} and len(lines) == 1 and all(word in lines[0] for word in wanted)
    how = "limits" if disturb is limit_memory else "calls"
    outcome = f"{how} with enough" if codes == {0} else f"{how} refused" if clear else f"{how} that ended otherwise"
    unclear = None
    if codes != {0} and not clear and disturb is break_memory:
        unclear = f"ended with {codes}: {runs.log.read_text(errors='replace')[-1500:]}"
    return {"what": what, "counts": {outcome: 1}, "lost": unclear or runs.repeat(name)}
