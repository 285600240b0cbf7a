"""Clocks that jump or stand still."""

import time

import numpy as np

from tinymae.training.clock import Stopwatch
from tinymae.training.run import Run

from .cases import Case
from .runs import Runs

DAY = 86400.0


def bend_clock(jumps: dict[int, float | None]) -> None:
    """In a child: time.monotonic jumps by so many seconds in these steps, or stands still from there (None)."""
    real, report, offset = time.monotonic, Run.report, [0.0]
    still: list[float] = []

    def now() -> float:
        return still[0] if still else real() + offset[0]

    def jumping(run, state):
        jump = jumps.get(state.step, 0.0)
        still[:] = still or [now()] if jump is None else []
        offset[0] += jump or 0.0
        report(run, state)

    time.monotonic, Run.report = now, jumping
    Stopwatch.__init__.__kwdefaults__["now"] = now


def attempt(runs: Runs, seed: int, number: int) -> Case:
    """Jumps of the clock by a day, to and fro, or a clock that stands still for some steps."""
    generator = np.random.default_rng([seed, 2, number])
    name = ("pretrain", "finetune")[number % 2]
    runs.reference(name)
    steps = generator.integers(1, 10, generator.integers(1, 6)).tolist()
    jumps = {step: (DAY, -DAY, None)[generator.integers(3)] for step in steps}
    codes = runs.finish(runs.start(name, runs.fresh(), disturb=bend_clock, arguments=(jumps,)))
    lost = runs.compare(name) if codes == {0} else f"ended with {codes}: {runs.log.read_text()[-1500:]}"
    return {"what": f"{name}, jumps after steps {jumps}", "lost": lost}
