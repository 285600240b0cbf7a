"""The folder of a run: arguments, metrics, checkpoints, results; and the command line that all scripts share."""

import argparse
import contextlib
import json
import math
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path

import timm
import torch
import torchvision
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env
from torch import nn
from tqdm import tqdm

from .cards import write_card
from .data import Batch, Dataset, count_steps, load_dataset, split_batch, step_batches
from .device import keep_freed_memory, supports_bf16
from .files import InputError, file_digest, lock_folder, read_json, read_metrics, write_atomically, write_json
from .trackers import INSTALLED, log_picture, log_results, require_installed, start_trackers
from .train import Schedule, TrainStep

# Arguments that change where or how fast a run goes, but not what it computes.
FREE_ARGUMENTS = {
    "output_dir", "overwrite", "data_dir", "num_workers", "log_every", "log_with", "checkpoint_minutes",
    "pause_after_minutes", "keep_every",
}  # fmt: skip
KEPT_CHECKPOINTS = 2
WARMUP = 0.05  # share of a training, unless --warmup-epochs says otherwise
POSITIVE = (
    "epochs", "batch_size", "gradient_accumulation_steps", "log_every", "eval_every", "probe_every", "probe_images",
)  # fmt: skip
PAUSED = 75  # the exit code of --pause-after-minutes: sysexits.h's "try again later"


def add_run_arguments(parser: argparse.ArgumentParser, *, output_dir: str) -> None:
    """The flags that every script has."""
    run = parser.add_argument_group("run")
    run.add_argument("--output-dir", default=output_dir, help="folder of this run (default: %(default)s)")
    run.add_argument("--overwrite", action="store_true", help="move what is in --output-dir aside and start anew")
    run.add_argument("--seed", type=int, default=0, help="everything random follows from it (default: %(default)s)")
    run.add_argument(
        "--mixed-precision",
        choices=["auto", "no", "bf16", "fp16"],
        default="auto",
        help="auto: bf16 where the processor has it (default: %(default)s)",
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--skip-unreadable", action="store_true", help="leave out pictures of a folder that do not decode"
    )
    data.add_argument("--data-dir", default="data", help="where named data sets are, or go (default: %(default)s)")


def add_training_arguments(
    parser: argparse.ArgumentParser, *, epochs: int, batch_size: int, base_lr: float, weight_decay: float
) -> None:
    """The flags that pretraining and fine-tuning share, with the recipe's own defaults."""
    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=int, default=epochs, help="(default: %(default)s)")
    training.add_argument("--warmup-epochs", type=float, help="(default: a twentieth of --epochs)")
    training.add_argument(
        "--max-minutes", type=float, help="finish by then: the learning rate follows the clock down to zero"
    )
    training.add_argument(
        "--pause-after-minutes",
        type=float,
        help=f"save and exit with code {PAUSED} then; the same command goes on, and ends in the same weights",
    )
    training.add_argument(
        "--batch-size", type=int, default=batch_size, help="images a step, over all processes (default: %(default)s)"
    )
    training.add_argument(
        "--base-lr",
        type=float,
        default=base_lr,
        help="learning rate = base_lr x batch_size / 256 (default: %(default)s)",
    )
    training.add_argument("--optimizer", choices=["adamw", "muon"], default="adamw", help="(default: %(default)s)")
    training.add_argument("--weight-decay", type=float, default=weight_decay, help="(default: %(default)s)")
    training.add_argument("--clip-grad", type=float, help="largest norm of the gradient (default: no limit)")
    training.add_argument("--gradient-accumulation-steps", type=int, default=1, help="micro-batches a step")
    training.add_argument("--gradient-checkpointing", action="store_true", help="less memory for more computing")
    training.add_argument("--compile", action="store_true", help="torch.compile the model")
    training.add_argument("--num-workers", type=int, default=2, help="processes that decode a streamed folder")
    training.add_argument("--log-every", type=int, default=20, help="steps between lines of metrics.jsonl")
    training.add_argument(
        "--log-with",
        nargs="+",
        choices=list(INSTALLED),
        default=["tensorboard"],
        help="one or several; MLflow's store is in --output-dir, or at MLFLOW_TRACKING_URI (default: tensorboard)",
    )
    training.add_argument("--checkpoint-minutes", type=float, default=5.0, help="minutes between checkpoints")


class Size(argparse.Action):
    """One number, or height and width: an int or a pair."""

    def __call__(self, parser, namespace, values, option_string=None):
        if len(values) > 2:
            parser.error(f"{option_string} takes one number, or height and width")
        setattr(namespace, self.dest, values[0] if len(values) == 1 else tuple(values))


def add_model_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """The flags that say which encoder to build."""
    model = parser.add_argument_group("model")
    model.add_argument("--encoder", default="vit_tiny_patch16_224", help="a timm model (default: vit_tiny_patch16_224)")
    pixels = "pixels, or height and width"
    model.add_argument(
        "--image-size", type=int, nargs="+", action=Size, help=f"{pixels} (default: the data's; folders: 32)"
    )
    model.add_argument("--patch-size", type=int, nargs="+", action=Size, default=4, help=f"{pixels} (default: 4)")
    model.add_argument("--in-channels", type=int, default=3, help="1 (grey) or 3, for a folder of images (default: 3)")
    model.add_argument("--embed-dim", type=int, help="over the named timm model's")
    model.add_argument("--depth", type=int, help="over the named timm model's; of conv_ae, vae, vqvae: halvings")
    model.add_argument("--num-heads", type=int, help="over the named timm model's")
    return model


def run_script(main: Callable[[argparse.Namespace], object], parser: argparse.ArgumentParser) -> None:
    """Parse the command line and call `main`; a user's error is one line on stderr and exit code 2."""
    args = parser.parse_args()
    try:
        main(args)
    except InputError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        print(f"{parser.prog}: {stopped}", file=sys.stderr)
        sys.exit(stopped.exit_code)


class Diverged(InputError):
    """The loss is no longer finite. A search can go on; a single run cannot."""


class Stopped(Exception):
    """The run was told to stop and its state was saved.

    The process exits with 128 + the signal's number after SIGTERM or SIGINT, with PAUSED after --pause-after-minutes.
    """

    def __init__(self, exit_code: int, step: int):
        reason = "paused" if exit_code == PAUSED else f"stopped by {signal.Signals(exit_code - 128).name}"
        super().__init__(f"{reason} after step {step}; the same command resumes")
        self.exit_code = exit_code


def settle_precision(args: argparse.Namespace) -> None:
    """`auto` becomes what the device supports. Raises InputError for a precision that it does not."""
    # The first state made is the one that counts, and only Accelerator itself looks at this variable.
    device = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).device
    if args.mixed_precision == "auto":
        args.mixed_precision = "bf16" if supports_bf16(device) else "no"
    if args.mixed_precision == "fp16" and device.type == "cpu":
        raise InputError("mixed_precision 'fp16' needs a GPU: use bf16 or no")


def create_accelerator(args: argparse.Namespace, **arguments) -> Accelerator:
    """Accelerate with the run's precision, which args.json records as settled."""
    keep_freed_memory()
    settle_precision(args)
    return Accelerator(mixed_precision=args.mixed_precision, **arguments)


def create_training_accelerator(args: argparse.Namespace) -> Accelerator:
    """The same for a script that trains: with gradient accumulation, and every tracker that --log-with names."""
    require_installed(args.log_with)
    for name in POSITIVE:
        if getattr(args, name, 1) < 1:
            raise InputError(f"{name} {getattr(args, name)} is below 1")
    return create_accelerator(args, gradient_accumulation_steps=args.gradient_accumulation_steps)


def dataset_loader(args: argparse.Namespace, **arguments) -> Callable[..., Dataset]:
    """`load_dataset` for the run's data: a function of the split."""
    return partial(load_dataset, args.data, data_dir=args.data_dir, skip_unreadable=args.skip_unreadable, **arguments)


def plan_batches(
    args: argparse.Namespace, accelerator: Accelerator, dataset: Dataset
) -> tuple[int, Callable[..., Iterator[list[Batch]]]]:
    """Steps in an epoch, and a function of `start_step` that gives this process's share of each step's batch.

    Raises InputError if the batch does not fit the dataset, or does not divide among processes and micro-batches.
    """
    parts = split_batch(args.batch_size, accelerator.num_processes * args.gradient_accumulation_steps)
    return count_steps(dataset, args.batch_size), partial(
        step_batches, dataset, batch_size=args.batch_size, seed=args.seed, device=accelerator.device,
        parts=parts[accelerator.process_index :: accelerator.num_processes], num_workers=args.num_workers,
    )  # fmt: skip


def create_schedule(args: argparse.Namespace, *, steps_per_epoch: int, minutes_before: float) -> Schedule:
    """The learning-rate schedule that the training flags describe. Raises InputError for a warm-up that fills it."""
    warmup = WARMUP if args.warmup_epochs is None else args.warmup_epochs / args.epochs
    if not 0 <= warmup < 1:
        raise InputError(f"warmup_epochs {args.warmup_epochs:g} is not within 0 and the {args.epochs} epochs")
    return Schedule(
        peak=args.base_lr * args.batch_size / 256,
        total_steps=args.epochs * steps_per_epoch,
        warmup=warmup,
        max_minutes=args.max_minutes,
        minutes_before=minutes_before,
    )


def recorded_arguments(args: argparse.Namespace) -> dict:
    """What args.json keeps: the arguments that decide what a run computes."""
    arguments = {key: value for key, value in vars(args).items() if key not in FREE_ARGUMENTS}
    return json.loads(json.dumps(arguments))  # as args.json will give them back: tuples become lists


def require_same_arguments(folder: Path, arguments: dict) -> None:
    """Raises InputError, naming what differs, if the folder holds a run with other arguments."""
    if not (folder / "args.json").exists():
        return
    old = read_json(folder / "args.json")["arguments"]
    names = [name for name in {**old, **arguments} if old.get(name) != arguments.get(name)]
    if names:
        was_now = ((name, old.get(name), arguments.get(name)) for name in names)
        changes = ", ".join(f"{name} was {was!r}, now {now!r}" for name, was, now in was_now)
        raise InputError(f"output_dir {folder} holds another run ({changes}): choose another folder, or --overwrite")


def move_aside(folder: Path) -> None:
    """Give an existing folder another name, which tells the time."""
    if folder.exists():
        lock_folder(folder).close()  # a run that is still going is not moved away under its feet
        aside = folder.with_name(f"{folder.name}.{datetime.now():%Y%m%d-%H%M%S}")
        folder.rename(aside)
        print(f"moved the old {folder} to {aside}")


class Run:
    """A run's output folder. Only the main process writes to it."""

    def __init__(self, args: argparse.Namespace, accelerator: Accelerator):
        self.folder, self.accelerator, self.is_main = Path(args.output_dir), accelerator, accelerator.is_main_process
        self.arguments = recorded_arguments(args)
        self.log_every = getattr(args, "log_every", 50)
        self.log_with = getattr(args, "log_with", [])
        self.checkpoint_minutes = getattr(args, "checkpoint_minutes", 5.0)
        self.pause_after_minutes = getattr(args, "pause_after_minutes", None)
        self.started = False
        self.stop_code: int | None = None
        on_main(accelerator, partial(self.claim, args.overwrite))

    def claim(self, overwrite: bool) -> None:
        """Make the folder this run's own. Raises InputError if it cannot be."""
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"output_dir {self.folder} is a file")
        if overwrite:
            move_aside(self.folder)
        self.lock = lock_folder(self.folder)
        require_same_arguments(self.folder, self.arguments)
        if not (self.folder / "args.json").exists():
            write_json(self.folder / "args.json", {"arguments": self.arguments, "command": sys.argv, **environment()})

    @property
    def processes(self) -> str:
        """How many processes train on what, for the user to check: launchers may start fewer than asked."""
        count = self.accelerator.num_processes
        return f"{count} process{'es' if count > 1 else ''} on {self.accelerator.device.type}"

    def print_summary(self, model: nn.Module, *, depth: int) -> None:
        """torchinfo's table of the layers."""
        try:
            import torchinfo
        except ImportError:  # nice to have: no reason not to train
            return
        self.print(str(torchinfo.summary(model, depth=depth, verbose=0)))

    # ---- checkpoints

    @property
    def checkpoints(self) -> list[Path]:
        """Checkpoint files, the newest last."""
        return sorted((self.folder / "checkpoints").glob("step-*.pt"))

    @property
    def last_checkpoint(self) -> Path | str:
        """The newest checkpoint file, for messages."""
        return self.checkpoints[-1] if self.checkpoints else "none yet"

    def resume(self, **parts) -> tuple[int, float]:
        """Remember what a checkpoint consists of, and fill it from the last one: (steps done, minutes spent).

        `parts` are the objects with a state_dict: model, optimizer, and ema if there is one.
        """
        self.parts = {name: part for name, part in parts.items() if part is not None}
        if self.accelerator.scaler is not None:
            self.parts["scaler"] = self.accelerator.scaler
        saved = self.load_checkpoint()
        if saved is None:
            self.forget_metrics_after(-1)  # of an attempt that was killed before its first checkpoint
            return 0, 0.0
        for name, part in self.parts.items():
            part.load_state_dict(saved[name])
        self.forget_metrics_after(saved["step"])
        return saved["step"], saved["minutes"]

    def load_checkpoint(self) -> dict | None:
        """The last good checkpoint, on the CPU, or None. A damaged file is named and the one before it is used.

        A checkpoint's file name ends in its checksum, as torch.load does not notice a flipped bit.
        """
        for path in reversed(self.checkpoints):
            if file_digest(path) != path.stem.rsplit("-", 1)[-1]:
                self.print(f"checkpoint {path} is damaged (its content does not match its name): trying the one before")
                continue
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.print(f"resuming from {path}")
            return state
        return None

    def save_checkpoint(self, step: int) -> None:
        """Write the state after `step` beside the other checkpoints, then drop all but the last two."""
        if self.is_main:
            state = {name: part.state_dict() for name, part in self.parts.items()}
            state |= {"step": step, "minutes": self.schedule.minutes}
            unnamed = self.folder / "checkpoints" / "unnamed.pt"
            try:
                write_atomically(unnamed, lambda beside: torch.save(state, beside))
                os.replace(unnamed, unnamed.with_name(f"step-{step:09d}-{file_digest(unnamed)}.pt"))
            except (OSError, RuntimeError) as error:  # torch's writer reports a full disk as a RuntimeError
                reason = str(error).splitlines()[0]
                raise InputError(
                    f"the checkpoint of step {step} could not be written ({reason}); "
                    f"the last good one is {self.last_checkpoint}. "
                    "Make room on the disk, then repeat the command: it resumes"
                ) from None
            for old in self.checkpoints[:-KEPT_CHECKPOINTS]:
                old.unlink()
        self.last_saved = time.monotonic()

    def forget_metrics_after(self, step: int) -> None:
        """Drop the lines of metrics.jsonl that a resumed run will write again."""
        path = self.folder / "metrics.jsonl"
        if self.is_main and path.exists():
            rows = [row for row in self.metrics if row["step"] <= step]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            write_atomically(path, lambda beside: beside.write_text(text))

    # ---- reporting

    @property
    def metrics(self) -> list[dict]:
        """The lines of metrics.jsonl so far."""
        path = self.folder / "metrics.jsonl"
        return read_metrics(path) if path.exists() else []

    def start(self, schedule: Schedule, *, step: int, steps_per_epoch: int, batch_size: int) -> None:
        """Open the progress bar and the trackers, and catch SIGTERM and SIGINT, for a loop that starts at `step`."""
        start = partial(start_trackers, self.accelerator, self.log_with, self.folder)
        on_main(self.accelerator, lambda: start(step=step, arguments=self.arguments, metrics=self.metrics))
        self.schedule, self.steps_per_epoch, self.batch_size = schedule, steps_per_epoch, batch_size
        self.last_saved = self.last_report = time.monotonic()
        self.last_step = self.first_step = step
        self.checked: TrainStep | None = None
        self.skipped_steps = 0
        self.bar = tqdm(
            total=1.0, initial=min(1.0, schedule.progress(step)), disable=not self.is_main, dynamic_ncols=True,
            bar_format="{percentage:5.1f}%|{bar}| {postfix}",
        )  # fmt: skip
        self.started = True
        self.old_handlers = {
            number: signal.signal(number, self.on_signal) for number in (signal.SIGTERM, signal.SIGINT)
        }

    def on_signal(self, number: int, frame) -> None:
        if self.stop_code is not None:
            sys.exit(128 + number)  # a second one does not wait
        self.stop_code = 128 + number

    def report(self, state: TrainStep) -> None:
        """Take note of a step: metrics and the progress bar now and then, a checkpoint when one is due.

        Raises InputError when the loss is no longer finite, Stopped after a signal.
        """
        self.check_loss(state)
        self.skipped_steps += state.skipped
        if state.step % self.log_every == 0 or state.step == self.first_step + 1:
            self.log_step(state)
        now = time.monotonic()
        due = now - self.last_saved > 60 * self.checkpoint_minutes
        stop = self.stop_code
        if self.pause_after_minutes is not None and now - self.schedule.started > 60 * self.pause_after_minutes:
            stop = stop or PAUSED
        if self.accelerator.num_processes > 1:  # to agree costs a message, so not every step
            stop, due = (None, False) if state.step % self.log_every else agree(self.accelerator, (stop, due))
        if stop or due:
            self.require_finite(state)
            self.save_checkpoint(state.step)
        if stop:
            self.close()
            raise Stopped(stop, state.step)

    def check_loss(self, state: TrainStep) -> None:
        # Reading the step before last keeps one step queued on a GPU, so nothing waits.
        if self.checked is not None:
            self.require_finite(self.checked)
        self.checked = state

    def require_finite(self, state: TrainStep) -> None:
        if not math.isfinite(float(state.loss)):
            raise Diverged(
                f"loss is {float(state.loss)} at step {state.step} (learning rate {state.learning_rate:.2e}); "
                f"last good checkpoint: {self.last_checkpoint}. "
                "Try a lower --base-lr, a longer warm-up or --clip-grad 1"
            )

    def log_step(self, state: TrainStep) -> None:
        losses = {name: float(self.accelerator.reduce(value, "mean")) for name, value in state.losses.items()}
        now = time.monotonic()
        steps, seconds = state.step - self.last_step, now - self.last_report
        rate = steps * self.batch_size / seconds
        self.last_step, self.last_report = state.step, now
        epoch = state.step / self.steps_per_epoch
        self.log(
            state.step,
            losses
            | {
                "learning_rate": state.learning_rate,
                "grad_norm": float(state.grad_norm),
                "images_per_second": rate,
                "minutes": self.schedule.minutes,
            }
            | ({"skipped_steps": self.skipped_steps} if self.accelerator.scaler is not None else {}),
        )
        remaining = (self.schedule.total_steps - state.step) * seconds / steps
        if self.schedule.max_minutes is not None:
            remaining = min(remaining, 60 * (self.schedule.max_minutes - self.schedule.minutes))
        self.bar.n = min(1.0, self.schedule.progress(state.step))
        eta = f"{int(max(remaining, 0)) // 60}:{int(max(remaining, 0)) % 60:02d}"
        self.bar.set_postfix_str(f"epoch {epoch:.2f}, loss {losses['loss']:.4f}, {rate:.0f} images/s, ETA {eta}")

    def log(self, step: int, values: dict[str, float]) -> None:
        """A line of metrics.jsonl, and the same to the trackers."""
        # A gradient that overflowed is no JSON number.
        numbers = {key: float(f"{value:.6g}") if math.isfinite(value) else None for key, value in values.items()}
        if self.is_main:
            row = {"step": step, "epoch": round(step / self.steps_per_epoch, 4), **numbers}
            with open(self.folder / "metrics.jsonl", "a") as file:
                file.write(json.dumps(row) + "\n")
        self.accelerator.log(numbers, step=step)

    def complete(self) -> None:
        """The schedule has ended: check the last loss and keep the last state."""
        if self.checked is not None:
            self.require_finite(self.checked)
            self.save_checkpoint(self.checked.step)

    def list_skipped(self, *datasets) -> None:
        """Write the pictures that were left out to skipped.txt, and say so."""
        skipped = sorted({str(file) for dataset in datasets for file in dataset.skipped})
        if skipped and self.is_main:
            path = self.folder / "skipped.txt"
            write_atomically(path, lambda beside: beside.write_text("\n".join(skipped) + "\n"))
            self.print(f"left out {len(skipped)} unreadable pictures, listed in {path}")

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Time spent inside does not count in images per second."""
        began = time.monotonic()
        yield
        self.last_report += time.monotonic() - began

    def log_picture(self, name: str, path: Path, step: int) -> None:
        """Show a PNG in the trackers."""
        if self.is_main:
            log_picture(self.accelerator, name, path, step=step)

    def finish(self, results: dict, shown: list[Path]) -> None:
        """Write results.json and say where everything is."""
        if self.started:
            self.bar.n = 1.0
            self.bar.refresh()
        if self.is_main:
            write_json(self.folder / "results.json", results)
            if (self.folder / "model.safetensors").exists():
                shown = [*shown, write_card(self.folder)]
            log_results(self.accelerator, results, [self.folder / "args.json", self.folder / "results.json", *shown])
        self.close()
        self.print("\nwrote " + "\n      ".join(str(path) for path in [self.folder / "results.json", *shown]))

    def close(self) -> None:
        """Let go of the progress bar, the trackers, the signals and the folder."""
        if self.started:
            self.bar.close()
            self.accelerator.end_training()
            for number, handler in self.old_handlers.items():
                signal.signal(number, handler)
        if self.is_main:
            self.lock.close()

    def print(self, text: str) -> None:
        self.accelerator.print(text)


def on_main(accelerator: Accelerator, action: Callable[[], None]) -> None:
    """Do it on the main process. Its InputError is raised on all, so that none waits for a run that will not start."""
    problem = None
    if accelerator.is_main_process:
        try:
            action()
        except InputError as error:
            problem = str(error)
    problem = agree(accelerator, problem)
    if problem:
        raise InputError(problem)


def agree(accelerator: Accelerator, value):
    """The main process's value, on every process."""
    if accelerator.num_processes == 1:
        return value
    return broadcast_object_list([value])[0]


def describe_cores() -> str:
    """How many of the CPU's cores the run's threads can keep busy."""
    total = os.cpu_count() or 1
    busy = min(torch.get_num_threads() * PartialState().num_processes, total)
    return f"{busy} of {total} CPU cores" if busy < total else f"{total} CPU cores"


def environment() -> dict:
    """Versions, commit and machine, for args.json."""
    root = Path(__file__).resolve().parent
    try:
        git = ["git", "-C", str(root), "rev-parse", "HEAD"]
        commit = subprocess.run(git, capture_output=True, text=True, timeout=10).stdout.strip() or None
    except OSError:
        commit = None
    return {
        "commit": commit,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "timm": timm.__version__,
        },
        "device": torch.cuda.get_device_name() if PartialState().device.type == "cuda" else describe_cores(),
        "date": datetime.now().isoformat(timespec="seconds"),
    }
