"""SIGKILL."""

import time

import numpy as np

from .cases import Case
from .runs import Runs


def attempt(runs: Runs, seed: int, number: int) -> Case:
    """SIGKILL at random moments, up to three times, then the same command to its end."""
    generator = np.random.default_rng([seed, 0, number])
    name, count = ("pretrain", "finetune")[(number + number // 4) % 2], 2 if number % 4 == 1 else 1
    runs.reference(name, count)
    runs.fresh()
    moments = generator.uniform(0, runs.seconds[name, count], generator.integers(1, 4)).tolist()
    killed = 0
    for moment in moments:
        processes = runs.start(name, runs.folder, count=count)
        time.sleep(moment)
        victims = [processes, processes[:1], processes[-1:]][generator.integers(3)]
        killed += any(process.is_alive() for process in victims)
        for process in victims:
            process.kill()
        runs.finish(processes)
    what = f"{name}, {count} processes, killed after {', '.join(f'{moment:.2f}' for moment in moments)} s"
    return {"what": what, "kills": killed, "lost": runs.repeat(name, count)}
