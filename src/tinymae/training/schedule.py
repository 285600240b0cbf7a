"""The learning rate as a function of progress, and how progress is counted."""

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a half cosine to zero, over steps or over minutes, whichever ends first.

    Progress runs from 0 to 1. Without `minutes` it is the ratio of steps done, and the run is a function of the step
    alone. With them it is the larger of the ratios of steps and of minutes, so that a run cut to a time still ends at
    learning rate zero.
    """

    peak: float  # highest learning rate
    last_step: int
    warmup: float  # ratio of the progress, 0 to 1
    first_step: int = 0
    minutes: tuple[float, float] | None = None  # of the run, at the beginning and at the end

    def progress(self, step: int, minutes: float = 0.0) -> float:
        """0 at the start to 1 at the end, after `step` steps and so many minutes of the run."""
        done = (step - self.first_step) / (self.last_step - self.first_step)
        if self.minutes is None:
            return done
        begin, end = self.minutes
        return max(done, (minutes - begin) / (end - begin))

    def learning_rate(self, progress: float) -> float:
        """The learning rate at this progress, before any layer's scale."""
        if progress < self.warmup:
            return self.peak * progress / self.warmup
        return self.peak * 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / max(1 - self.warmup, 1e-9)))


@dataclass(frozen=True)
class Stretch:
    """A part of a run with one schedule: all of it, or one phase."""

    schedule: Schedule
    steps_per_epoch: int
    batch_size: int
    first_epoch: float = 0.0
    begin: float = 0.0  # ratio of the run's whole work that is done before it
    end: float = 1.0  # and after it

    def starting(self, first_step: int, first_epoch: float) -> "Stretch":
        """This stretch from another step and epoch on."""
        length = self.schedule.last_step - self.schedule.first_step
        schedule = replace(self.schedule, first_step=first_step, last_step=first_step + length)
        return replace(self, schedule=schedule, first_epoch=first_epoch)

    def epoch(self, step: int) -> float:
        """Epochs of the run after `step` steps."""
        return self.first_epoch + (step - self.schedule.first_step) / self.steps_per_epoch

    def ends_epoch(self, step: int, every: int) -> bool:
        """Whether an epoch whose number is a multiple of `every` ends with this step."""
        whole, rest = divmod(step - self.schedule.first_step, self.steps_per_epoch)
        return not rest and (round(self.first_epoch) + whole) % every == 0
