"""What the benchmarks share: new processes, a device's clock and name, rates of steps and matrix products, results."""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch
from tqdm import tqdm

from tinymae.files import write_json

T = TypeVar("T")
LEFT_OUT = {"output", "output_dir", "data_dir", "folder"}  # arguments that do not change what is measured


def in_new_processes(function: Callable[..., T], *arguments: Any, count: int = 1) -> list[T]:
    """What a function gives in each of so many new processes, at the same time."""
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
        return [future.result() for future in [pool.submit(function, *arguments) for _ in range(count)]]


def describe_machine(device: torch.device | str) -> dict:
    """What figures were measured on, and with."""
    name = torch.cuda.get_device_name() if torch.device(device).type == "cuda" else platform.processor() or "cpu"
    versions = {"torch": torch.__version__, "timm": timm.__version__}
    return {"device": name, "threads": torch.get_num_threads(), **versions}


def memory_of_process(name: str) -> int:
    """Bytes of this process, as Linux calls them: RssAnon what is its own, VmHWM the most that it ever had in all."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def synchronise(device: torch.device | str) -> None:
    """Wait for what a GPU still has to do."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def matmul_rate(device: torch.device | str, dtype: torch.dtype, size: int) -> float:
    """FLOP/s of the fastest of eight products of two square matrices."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(8):
        synchronise(device)
        began = time.perf_counter()
        a @ b
        synchronise(device)
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds)


def rates_in_turns(
    steps: dict[str, Callable[[], None]], device: torch.device | str, *, rounds: int, repeats: int, images: int
) -> dict[str, dict[str, float]]:
    """Images/s of each step, which takes so many `images`: the median of some rounds, and its extremes.

    In a round each has its turn, with `repeats` steps that are timed together. The first round warms up.
    """
    rates: dict[str, list[float]] = {name: [] for name in steps}
    for _ in tqdm(range(rounds + 1), desc="rounds", leave=False):
        for name, step in steps.items():
            step()  # not timed: caches and freed memory are still the last one's
            synchronise(device)
            began = time.perf_counter()
            for _ in range(repeats):
                step()
            synchronise(device)
            rates[name].append(repeats * images / (time.perf_counter() - began))
    return {
        name: {"images_per_second": statistics.median(found), "lowest": min(found), "highest": max(found)}
        for name, (_, *found) in rates.items()
    }


def write_result(path: str | Path, args: argparse.Namespace, device: torch.device | str, **found: Any) -> dict:
    """Write what was found as JSON, with the arguments and the machine, and give it back."""
    arguments = {name: value for name, value in vars(args).items() if name not in LEFT_OUT}
    for name in ("weights", "checkpoint"):  # where somebody keeps them is nobody's business
        if arguments.get(name):
            arguments[name] = Path(arguments[name]).name
    result = {"arguments": arguments, "machine": describe_machine(device), **found}
    write_json(path, result)
    print(f"wrote {path}")
    return result
