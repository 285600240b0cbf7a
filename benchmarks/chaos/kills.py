"""SIGKILL."""

import time

import numpy as np

from .cases import Case
from .runs import Runs

# The commands in turn, and on how many processes.
TURNS = (
    ("pretrain", 1), ("linear_probe", 2), ("finetune", 1), ("evaluate", 2), ("compare", 1), ("reconstruct", 2),
    ("pretrain", 2), ("embed", 1), ("linear_probe", 1), ("finetune", 2), ("evaluate", 1), ("embed", 2),
    ("reconstruct", 1),
)  # fmt: skip
KILLS = (4, 12)  # at least and at most, after which the command is left alone
PART = {"compare": 4}  # of many runs: a kill comes in a quarter of the time that all of them take


def attempt(runs: Runs, seed: int, number: int) -> Case:
    """SIGKILL at random moments, up to twelve times, then the same command to its end."""
    generator = np.random.default_rng([seed, 0, number])
    name, count = TURNS[number % len(TURNS)]
    runs.reference(name, count)
    runs.fresh()
    longest = runs.seconds[name, count] / PART.get(name, 1)
    moments = generator.uniform(0, longest, generator.integers(*KILLS, endpoint=True)).tolist()
    killed = 0
    for moment in moments:
        processes = runs.start(name, runs.folder, count=count)
        until = time.monotonic() + moment
        while time.monotonic() < until and any(process.is_alive() for process in processes):
            time.sleep(0.001)
        victims = [processes, processes[:1], processes[-1:]][generator.integers(3)]
        killed += any(process.is_alive() for process in victims)
        for process in victims:
            process.kill()
        runs.finish(processes)
    what = f"{name}, {count} processes, killed after {', '.join(f'{moment:.2f}' for moment in moments)} s"
    kind = f"kills of {name}" + " on two processes" * (count == 2)
    return {"what": what, "counts": {"kills": killed, kind: killed}, "lost": runs.repeat(name, count)}
