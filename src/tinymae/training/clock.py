"""How long a run has taken."""

import time
from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast


class Stopwatch:
    """Wall-clock minutes of a run, over all its resumptions.

    Args:
        minutes_before: spent by the runs that this one resumes.
        now: seconds from any start; a test may give a clock of its own.
    """

    def __init__(self, minutes_before: float = 0.0, *, now: Callable[[], float] = time.monotonic):
        self.minutes_before, self.now = minutes_before, now
        self.started = now()

    @property
    def session_minutes(self) -> float:
        """Minutes since this process began."""
        return (self.now() - self.started) / 60

    @property
    def minutes(self) -> float:
        """Minutes in all."""
        return self.minutes_before + self.session_minutes

    def agreed_minutes(self, accelerator: Accelerator) -> float:
        """The same on every process, by the clock of the first."""
        if accelerator.num_processes == 1:
            return self.minutes
        # On the device, as GPUs share nothing that is not on them.
        return float(broadcast(torch.tensor(self.minutes, device=accelerator.device)))
