"""The kinds of trouble, and how the cases of each are run one after the other."""

import itertools
import os
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from . import checkpoints, clock, disk, images, kills, memory, weights
from .cases import Case
from .runs import PROCESSES, Runs

RUN_PARTS = {  # of commands in processes
    "kills": kills.attempt, "disk": disk.attempt, "clock": clock.attempt, "memory": memory.attempt,
}  # fmt: skip
FILE_PARTS = {"images": images.prepare, "weights": weights.prepare, "checkpoints": checkpoints.prepare}
PARTS = (*RUN_PARTS, *FILE_PARTS)


def cases(part: str, runs: Runs, seed: int, first: int, until: float) -> Iterator[Case]:
    """The cases of a part, from number `first`, until the clock says so."""
    if part in FILE_PARTS:
        yield from file_cases(part, runs.place, seed, first, until)
        return
    for number in itertools.count(first):
        if time.monotonic() > until:
            return
        yield {"case": number} | RUN_PARTS[part](runs, seed, number)


def file_cases(part: str, place: Path, seed: int, number: int, until: float) -> Iterator[Case]:
    """The cases of a part about files, from a child that may crash or hang; then the next child goes on."""
    for attempt in itertools.count():
        receiving, sending = PROCESSES.Pipe(duplex=False)
        process = PROCESSES.Process(
            target=send_cases, args=(sending, part, place / f"{part}{attempt}", seed, number, until)
        )
        process.start()
        sending.close()
        try:
            while receiving.poll(60):
                case = receiving.recv()
                number = case["case"] + 1
                yield case
        except EOFError:
            process.join()
        hung = process.is_alive()
        process.kill()
        process.join()
        if not hung and process.exitcode == 0:
            return
        yield {"case": number, "what": "?", "lost": "hangs" if hung else f"the process ended with {process.exitcode}"}
        number += 1
        if time.monotonic() > until or attempt > 20:
            return


def send_cases(pipe, part: str, place: Path, seed: int, first: int, until: float) -> None:
    """In a child: a part about files, case by case."""
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff says much
    torch.set_num_threads(1)
    place.mkdir()
    check = FILE_PARTS[part](place, seed)
    for number in itertools.count(first):
        if time.monotonic() > until:
            return
        try:
            pipe.send({"case": number} | check(number))
        except Exception as error:
            pipe.send({"case": number, "what": "?", "lost": f"{error!r}: {traceback.format_exc()[-900:]}"})
