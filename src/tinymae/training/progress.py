"""The steps of a run as people see them: metrics.jsonl, trackers, and a progress bar or a line now and then."""

import json
import math
import sys
import time
from collections.abc import Callable, KeysView
from pathlib import Path

from accelerate import Accelerator
from tqdm.auto import tqdm

from ..bars import hidden, silenced
from ..files import read_metrics, write_bytes
from .loop import TrainStep
from .schedule import Stretch
from .trackers import each_tracker

SECONDS = 60  # between lines where there is no progress bar


class Progress:
    """What a run reports on its way."""

    def __init__(self, folder: Path, accelerator: Accelerator, *, log_every: int, minutes: Callable[[], float]):
        self.folder, self.accelerator, self.log_every, self.minutes = folder, accelerator, log_every, minutes
        self.is_main, self.bar, self.skipped_steps = accelerator.is_main_process, None, 0
        self.known_step, self.known = -1, list[KeysView[str]]()
        self.line_at = -math.inf

    @property
    def metrics(self) -> list[dict]:
        """The lines of metrics.jsonl so far."""
        path = self.folder / "metrics.jsonl"
        return read_metrics(path) if path.exists() else []

    def forget_after(self, step: int) -> None:
        """Drop the lines of metrics.jsonl that a resumed run will write again, but for what it measures at its end."""
        path = self.folder / "metrics.jsonl"
        if self.is_main and path.exists():
            kept = [row for row in self.metrics if row["step"] <= step]
            self.known = [row.keys() for row in kept if row["step"] == step]
            self.known_step = step
            write_bytes(path, "".join(json.dumps(row) + "\n" for row in kept).encode())

    def start(self, stretch: Stretch, step: int) -> None:
        """Begin, or go on with, a stretch at `step`."""
        self.stretch, self.first_step, self.reported_step = stretch, step, step
        self.reported_at, self.reported_done = time.monotonic(), self.done(step)
        if self.bar is None:
            self.bar = tqdm(
                total=1.0, initial=self.reported_done, disable=hidden(wanted=self.is_main), dynamic_ncols=True,
                bar_format="{percentage:5.1f}%|{bar}| {postfix}",
            )  # fmt: skip

    def done(self, step: int) -> float:
        """Ratio of the run's whole work, 0 to 1."""
        progress = min(1.0, self.stretch.schedule.progress(step, self.minutes()))
        return self.stretch.begin + (self.stretch.end - self.stretch.begin) * max(0.0, progress)

    def is_logged(self, step: int) -> bool:
        """Whether a step gets a line of metrics: some do."""
        return step % self.log_every == 0 or step == self.first_step + 1

    def log_step(self, state: TrainStep, numbers: dict[str, float]) -> None:
        """Losses and the gradient's norm, learning rate, speed and the time that is left."""
        now, done = time.monotonic(), self.done(state.step)
        seconds = now - self.reported_at
        # A clock that stands still, or was put back, says nothing of the speed.
        rate = (state.step - self.reported_step) * self.stretch.batch_size / seconds if seconds > 0 else 0.0
        losses = {name: value for name, value in numbers.items() if name != "grad_norm"}
        values = {
            "learning_rate": state.learning_rate, "grad_norm": numbers["grad_norm"], "images_per_second": rate,
            "minutes": self.minutes(),
        }  # fmt: skip
        if self.accelerator.scaler is not None:
            values["skipped_steps"] = self.skipped_steps
        self.log(state.step, losses | values)
        left = seconds * (1 - done) / max(done - self.reported_done, 1e-12)
        self.reported_step, self.reported_at, self.reported_done = state.step, now, done
        eta = f"{int(left) // 60}:{int(left) % 60:02d}" if left < 1e9 else "?"
        self.show(
            done,
            f"epoch {self.stretch.epoch(state.step):.2f}, {show_losses(losses)}, {rate:.0f} images/s, ETA {eta}",
        )

    def show(self, done: float, text: str) -> None:
        """Move the bar; in a log, which has none, a line now and then."""
        if self.bar is not None and not self.bar.disable:
            self.bar.n = done
            self.bar.set_postfix_str(text)
        elif self.is_main and not silenced() and time.monotonic() - self.line_at > SECONDS:
            self.line_at = time.monotonic()
            tqdm.write(f"{done:6.1%}, {text}", file=sys.stderr)

    def log(self, step: int, values: dict[str, float]) -> None:
        """A line of metrics.jsonl, and the same to the trackers."""
        # A gradient that overflowed is no JSON number.
        numbers = {key: float(f"{value:.6g}") if math.isfinite(value) else None for key, value in values.items()}
        if self.is_main:
            row = {"step": step, "epoch": round(self.stretch.epoch(step), 4), **numbers}
            if step == self.known_step and row.keys() in self.known:  # measured again after a kill at the end
                return
            with open(self.folder / "metrics.jsonl", "a", newline="\n") as file:
                file.write(json.dumps(row) + "\n")
        each_tracker(self.accelerator, lambda tracker: tracker.log(numbers, step=step))

    def log_picture(self, name: str, path: Path, step: int) -> None:
        """Show a PNG in the trackers."""
        each_tracker(self.accelerator, lambda tracker: tracker.show(name, path, step=step))

    def leave_out(self, seconds: float) -> None:
        """Time spent on something else does not count in images per second."""
        self.reported_at += seconds

    def close(self, *, complete: bool = False) -> None:
        """Close the bar, which is full if the run is `complete`, and the trackers."""
        if self.bar is not None:
            if complete:
                self.bar.n = 1.0
                self.bar.refresh()
            self.bar.close()
            self.bar = None
            # Not end_training, which ends the processes' group as well.
            each_tracker(self.accelerator, lambda tracker: tracker.finish())


def show_losses(losses: dict[str, float]) -> str:
    """The loss, or its parts where it has any: their sum jumps where another part begins.

    >>> show_losses({"loss": 0.5}), show_losses({"loss": 3.0, "reconstruction_loss": 0.5, "contrastive_loss": 5.0})
    ('loss 0.5000', 'reconstruction loss 0.5000, contrastive loss 5.0000')
    """
    parts = {name: value for name, value in losses.items() if name.endswith("_loss")} or {"loss": losses["loss"]}
    return ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in parts.items())
