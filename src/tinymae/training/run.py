"""A run's output folder, from the arguments to the results."""

import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from filelock import BaseFileLock
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..errors import PAUSED, Diverged, InputError, Stopped, first_line, ran_out_of_memory, refusal
from ..files import is_about, lock_folder, read_json, unwritable, write_bytes, write_json
from ..models.pretrained import Pretrained
from .cards import SCORES, write_card
from .checkpoints import REMEDY, Checkpoints
from .clock import Stopwatch
from .environment import describe_changes, environment
from .inputs import has_begun, holds_run, require_same_run, write_names
from .loop import TrainStep
from .memory import explain_memory, keep_freed_memory
from .numbers import StepNumbers
from .processes import agree, on_main
from .progress import Progress
from .schedule import Stretch
from .signals import StopSignals
from .trackers import each_tracker, log_results, start_trackers

M = TypeVar("M", bound=Pretrained)


class Run:
    """A run's output folder, its checkpoints and its progress. Only the main process writes to it.

    A context manager: however a run ends, its lock, signal handlers, progress bar, trackers and memory are given back.

    Args:
        folder: the output folder.
        accelerator: of the run.
        arguments: what decides what the run computes, as JSON; the folder refuses others later.
        inputs: fingerprints of the data, and the digest of the weights it starts from; likewise.
        datasets: the splits: the names of their files are kept, and those of images that cannot be read.
        overwrite: move what is in the folder aside first.
        log_every: steps between lines of metrics.jsonl.
        log_with: trackers.
        checkpoint_minutes: minutes between checkpoints.
        pause_after_minutes: save and raise Stopped then.
        gradient_checkpointing: whether it is on; None of a command that has none.
        trains: whether what is finished is not made again: see `read_finished`.
        defaults: of the arguments, for the model card to leave out.

    Raises InputError if the folder cannot be this run's, on all processes alike.
    """

    def __init__(
        self, folder: str | Path, accelerator: Accelerator, *, arguments: dict, inputs: dict | None = None,
        datasets: dict | None = None, overwrite: bool = False, log_every: int = 20, log_with: Sequence[str] = (),
        checkpoint_minutes: float = 5.0, pause_after_minutes: float | None = None,
        gradient_checkpointing: bool | None = None, trains: bool = False, defaults: dict | None = None,
    ):  # fmt: skip
        self.folder, self.accelerator, self.is_main = Path(folder), accelerator, accelerator.is_main_process
        # As args.json will give them back: tuples become lists.
        self.arguments, self.inputs = json.loads(json.dumps(arguments)), json.loads(json.dumps(inputs or {}))
        self.datasets, self.overwrite, self.log_with = datasets or {}, overwrite, log_with
        self.checkpoint_minutes, self.pause_after_minutes = checkpoint_minutes, pause_after_minutes
        self.gradient_checkpointing, self.trains, self.defaults = gradient_checkpointing, trains, defaults
        self.clock = Stopwatch()
        self.checkpoints = Checkpoints(self.folder / "checkpoints", self.print)
        self.progress = Progress(self.folder, accelerator, log_every=log_every, minutes=lambda: self.clock.minutes)
        self.signals = StopSignals()
        self.parts: dict = {}
        self.begun = False  # whether the folder held this run before, on the main process
        self.lock: BaseFileLock | None = None
        self.numbers = StepNumbers(most=log_every, together=accelerator.num_processes > 1)
        self.reported: int | None = None  # the last step of this stretch
        self.unlogged: tuple[TrainStep, dict[str, float]] | None = None  # that, where it has no line of metrics
        self.saved: int | None = None  # the last step of a checkpoint
        self.batch: tuple[str, int] | None = None  # the setting that its batch size is of, and that

    def __enter__(self) -> "Run":
        on_main(self.accelerator, self.claim)
        keep_freed_memory()
        if self.is_main and not self.trains and (self.folder / "results.json").exists():
            with contextlib.suppress(InputError):  # damaged: it is written again
                self.print_finished(read_json(self.folder / "results.json"), ", and is made again")
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            self.give_back()
        except OSError as late:  # a tracker that cannot write its last lines
            error = error or late
        if error is not None and ran_out_of_memory(error):
            name, size = self.batch or ("batch_size", self.arguments.get("batch_size"))
            told = explain_memory(size, name=name, gradient_checkpointing=self.gradient_checkpointing)
            raise InputError(told) from error
        if is_about(error, self.folder):
            self.require_folder()
            raise unwritable(self.folder, error, resumes=True) from error
        if kind is None and error is not None:
            raise error

    def give_back(self) -> None:
        """Lock, memory, trackers, progress bar and signals."""
        with contextlib.ExitStack() as rest:  # each is given back even if another fails to be, the last one first
            if self.lock is not None:
                rest.callback(self.lock.release)
            rest.callback(keep_freed_memory, False)
            rest.callback(self.accelerator.free_memory)
            rest.callback(self.progress.close)
            rest.callback(self.signals.let_go)
            self.parts = {}
            self.numbers.sent.clear()

    def claim(self) -> None:
        """Make the folder this run's own. Raises InputError if it cannot be."""
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"output_dir {self.folder} is a file")
        if self.overwrite and has_begun(self.folder):
            move_aside(self.folder)
        self.lock = lock_folder(self.folder)
        try:
            require_same_run(self.folder, self.arguments, self.inputs, self.datasets, defaults=self.defaults)
            self.begun = holds_run(self.folder)
            if not self.begun:
                write_names(self.folder, self.datasets)
                recorded = {"arguments": self.arguments, "inputs": self.inputs, "command": sys.argv, **environment()}
                write_json(self.folder / "args.json", recorded)
            elif not self.trains or not (self.folder / "results.json").exists():
                self.print_changes()
        except BaseException as error:
            self.lock.release()
            if is_about(error, self.folder):
                raise unwritable(self.folder, error, resumes=True) from error
            raise

    def print_changes(self) -> None:
        """Say that the run was begun with other versions or another commit than it goes on with."""
        if changes := describe_changes(read_json(self.folder / "args.json"), environment()):
            self.print(f"begun with {changes}: the result may differ from that of one version alone")

    def print_finished(self, results: dict, what: str) -> None:
        """Say that the run is finished, what came of it and `what` follows."""
        found = {name: results.get(key) for key, name in SCORES.items()}
        scores = [f", {name} {value:.2f} %" for name, value in found.items() if isinstance(value, int | float)]
        self.print(f"{self.folder} is finished{''.join(scores[:1])}{what}")

    def read_finished(self, kind: type[M]) -> tuple[M, dict] | None:
        """The model, of this class, and the results of a training that is finished; None where they are not whole.

        MLflow and W&B are told what they lack. Nothing else is written.
        """
        found = on_main(self.accelerator, partial(self.read_whole, kind))
        if found is not None and (keepers := [name for name in self.log_with if name != "tensorboard"]):
            _, results = found
            self.start_trackers(keepers, step=results["steps"])
            log_results(self.accelerator, results, sorted(self.folder.glob("[!.]*.*")))
            each_tracker(self.accelerator, lambda tracker: tracker.finish())
        return found

    def read_whole(self, kind: type[M]) -> tuple[M, dict] | None:
        """See `read_finished`; for the main process."""
        if not self.begun:
            return None
        try:
            results, model = read_json(self.folder / "results.json"), kind.from_pretrained(self.folder)
        except InputError:  # not there yet, or damaged
            return None
        self.print_finished(results, ": its results stay as they are")
        return model, results

    @property
    def processes(self) -> str:
        """How many processes train on what, for the user to check: launchers may start fewer than asked."""
        count = self.accelerator.num_processes
        return f"{count} process{'es' if count > 1 else ''} on {self.accelerator.device.type}"

    def print(self, text: str) -> None:
        """Print on the main process, above the progress bar if there is one."""
        if self.is_main:
            tqdm.write(text)

    def print_summary(self, model: nn.Module, *, depth: int) -> None:
        """torchinfo's table of the layers."""
        import torchinfo

        self.print(str(torchinfo.summary(model, depth=depth, verbose=0)))

    def list_skipped(self) -> None:
        """Write the images that could not be read to skipped.txt, and say so."""
        met = [name for dataset in self.datasets.values() for name in dataset.skipped]
        skipped = sorted({*gather_object(met)})
        if skipped and self.is_main:
            path = self.folder / "skipped.txt"
            write_bytes(path, ("\n".join(skipped) + "\n").encode())
            self.print(f"left out {len(skipped)} unreadable image{'s'[: len(skipped) != 1]}, listed in {path}")

    # ---- going on

    def load_checkpoint(self) -> dict | None:
        """The last good state of this run, the main process's on all of them, or None."""
        saved = agree(self.checkpoints.load() if self.is_main else None)
        self.progress.forget_after(-1 if saved is None else saved["step"])
        self.clock = Stopwatch(0.0 if saved is None else saved["minutes"])
        self.last_saved = time.monotonic()
        return saved

    def track(self, saved: dict | None, **parts) -> None:
        """State what a checkpoint consists of, and fill it from `saved` if that is given.

        `parts` have a state_dict (model, optimizer, and ema if there is one), or are plain numbers.

        Raises InputError if `saved` does not fit them.
        """
        self.parts = {name: part for name, part in parts.items() if part is not None}
        if self.accelerator.scaler is not None:
            self.parts["scaler"] = self.accelerator.scaler
        if saved is not None:
            try:
                for name, part in self.parts.items():
                    if hasattr(part, "load_state_dict"):
                        part.load_state_dict(saved[name])
            except (KeyError, ValueError, RuntimeError) as error:
                raise refusal(
                    error,
                    f"output_dir {self.folder}: its checkpoint is of another version of tinymae ({first_line(error)}): "
                    "resume it with that one, or give overwrite",
                ) from None

    def save_checkpoint(self, step: int) -> None:
        """Save the parts as they are after `step`."""
        if self.is_main:
            self.require_folder()
            state = {
                name: part.state_dict() if hasattr(part, "state_dict") else part for name, part in self.parts.items()
            }
            self.checkpoints.save(state | {"step": step, "minutes": self.clock.minutes}, step=step)
        self.saved = step
        self.last_saved = time.monotonic()

    def require_folder(self) -> None:
        """Raises InputError if the folder is no longer there, which a checkpoint would make anew and in part."""
        with contextlib.suppress(OSError):  # where this cannot be asked, the trouble is another
            if self.is_main and not (self.folder / "args.json").exists():
                raise InputError(
                    f"output_dir {self.folder} was deleted or moved during the run: put it back, and the same command "
                    "resumes; else it begins anew"
                )

    # ---- the steps

    def start(self, stretch: Stretch, *, step: int, batch: tuple[str, int] | None = None) -> None:
        """Begin a stretch of steps, or go on with it. `batch` is the setting of its batch size, and that; None of what
        is fitted at once.

        From here to the stretch's end a signal is noted, for `report` to save the step that it came in. Elsewhere there
        is nothing to save, and it acts at once.
        """
        self.batch = batch
        if self.progress.bar is None:  # the first stretch
            self.start_trackers(self.log_with, step=step)
        self.progress.start(stretch, step)
        if batch is not None:
            self.signals.catch()
        self.next_agreement, self.last_agreement = step + 1, (step, time.monotonic())

    def start_trackers(self, names: Sequence[str], *, step: int) -> None:
        """Open trackers on the main process for what follows `step`."""
        begin = partial(start_trackers, self.accelerator, names, self.folder, step=step, arguments=self.arguments)
        on_main(self.accelerator, lambda: begin(metrics=self.progress.metrics))

    def report(self, state: TrainStep) -> None:
        """Take note of a step: metrics and the progress bar now and then, a checkpoint when one is due.

        A step's numbers are read when they have arrived from the device, at most `log_every` steps later; before
        anything is saved they are waited for.

        Raises Diverged when the loss or the gradient is no longer finite, Stopped after a signal or at a pause.
        """
        self.send(state)
        self.receive()
        due = time.monotonic() - self.last_saved > 60 * self.checkpoint_minutes
        stop = self.signals.code
        if self.pause_after_minutes is not None and self.clock.session_minutes > self.pause_after_minutes:
            stop = stop or PAUSED
        if self.accelerator.num_processes > 1:
            stop, due = self.agree_at_times(state.step, stop, due)
        if stop or due:
            self.settle()
            if stop:
                self.log_last()
            self.save_checkpoint(state.step)
        if stop:
            raise Stopped(stop, state.step)

    def agree_at_times(self, step: int, stop: int | None, due: bool) -> tuple[int | None, bool]:
        """Whether any process is to stop, and whether the main one is to save, on all processes, about once a second.

        To agree costs a message, so fast steps do without for a while.
        """
        if step < self.next_agreement:
            return None, False
        before, then = self.last_agreement
        seconds = (time.monotonic() - then) / (step - before)
        found = gather_object([(stop, due, max(1, int(1 / max(seconds, 1e-3))))])
        stop = next((code for code, _, _ in found if code is not None), None)
        _, due, wait = found[0]
        self.next_agreement, self.last_agreement = step + wait, (step, time.monotonic())
        return stop, due

    def send(self, state: TrainStep) -> None:
        """Begin to copy a step's numbers to the host, unless that was done."""
        if state.step == self.reported:
            return
        self.reported = state.step
        scalars, logged = {**state.losses, "grad_norm": state.grad_norm}, self.progress.is_logged(state.step)
        self.numbers.send(state, self.mean_over_processes(scalars) if logged else scalars, logged=logged)

    def mean_over_processes(self, scalars: dict[str, Tensor]) -> dict[str, Tensor]:
        """Each scalar's mean over the processes, all of which ask for it."""
        if self.accelerator.num_processes == 1:
            return scalars
        values = self.accelerator.reduce(torch.stack([value.float() for value in scalars.values()]), "mean")
        return dict(zip(scalars, values.unbind(), strict=True))

    def receive(self, *, everything: bool = False) -> None:
        """Read the numbers that have arrived, or wait for all of them. Raises Diverged."""
        for state, numbers, logged in self.numbers.receive(everything=everything):
            self.require_finite(state, numbers)
            if logged:
                self.progress.log_step(state, numbers)
            self.unlogged = None if logged else (state, numbers)

    def log_last(self) -> None:
        """Where steps end there is a line of metrics, whatever the last one's number. For all processes together."""
        if self.unlogged is None:
            return
        state, own = self.unlogged
        means = self.mean_over_processes({
            name: torch.tensor(value, device=self.accelerator.device) for name, value in own.items()
        })  # fmt: skip
        self.progress.log_step(state, {name: value.item() for name, value in means.items()})
        self.unlogged = None

    def settle(self, state: TrainStep | None = None) -> None:
        """Wait until the numbers of all steps, with `state` as the last, have been read. Raises Diverged."""
        if state is not None:
            self.send(state)
        self.receive(everything=True)

    def require_finite(self, state: TrainStep, numbers: dict[str, float]) -> None:
        """Raises Diverged for a loss, or outside fp16's scaler a gradient, that is not finite."""
        loss, norm, scaled = numbers["loss"], numbers["grad_norm"], self.accelerator.scaler is not None
        self.progress.skipped_steps += scaled and not math.isfinite(norm)
        if math.isfinite(loss) and (math.isfinite(norm) or scaled):
            return
        what = f"loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
        raise Diverged(
            f"{what} at step {state.step} (learning rate {state.learning_rate:.2e}); "
            f"last good checkpoint: {self.checkpoints.last}. {REMEDY}"
        )

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Time spent inside does not count in images per second."""
        began = time.monotonic()
        yield
        self.progress.leave_out(time.monotonic() - began)

    def end_stretch(self, step: int) -> None:
        """The schedule has ended after `step`: check it and keep its state.

        Raises InputError if there was no step, Stopped after a signal.
        """
        if not step:
            limit = self.arguments["max_minutes"]
            raise InputError(f"max_minutes {limit:g} was over before the first step: give more")
        self.settle()
        self.log_last()
        if self.reported not in (None, self.saved):
            self.save_checkpoint(step)
        self.reported = None
        # Of a signal after the last step, which any process may have got. One that acted at once, while the processes
        # wait for each other here, would leave the others with a broken connection.
        codes = gather_object([self.signals.code])
        self.signals.let_go()
        if stop := next(filter(None, [*codes, self.signals.code]), None):
            raise Stopped(stop, step)

    def finish(self, results: dict, shown: Sequence[Path]) -> None:
        """Write results.json and say where everything is."""
        self.list_skipped()
        if self.is_main:
            if (self.folder / "model.safetensors").exists():
                shown = [*shown, write_card(self.folder, results=results, defaults=self.defaults)]
            write_json(self.folder / "results.json", results)  # the last: where it is, a study does not run again
            log_results(self.accelerator, results, [self.folder / "args.json", self.folder / "results.json", *shown])
        self.progress.close(complete=True)
        self.print("\nwrote " + "\n      ".join(str(path) for path in [self.folder / "results.json", *shown]))


def move_aside(folder: Path) -> None:
    """Give an existing folder another name, with the time in it. Raises InputError for the working folder."""
    if folder.exists():
        if Path.cwd().is_relative_to(folder.resolve()):
            raise InputError(
                f"output_dir {folder} is the working folder or above it, and cannot be moved: choose another"
            )
        lock_folder(folder).release()  # a run that is still going is not moved away under its feet
        aside = folder.with_name(f"{folder.name}.{datetime.now():%Y%m%d-%H%M%S-%f}")
        folder.rename(aside)
        print(f"moved the old {folder} to {aside}")
