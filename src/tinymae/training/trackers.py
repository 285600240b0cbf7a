"""Where else a run is shown: TensorBoard, MLflow, Weights & Biases. Accelerate's trackers, and what they leave out."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import MLflowTracker, TensorBoardTracker, WandBTracker
from accelerate.utils import is_mlflow_available, is_tensorboard_available, is_wandb_available
from filelock import FileLock
from PIL import Image
from tqdm.auto import tqdm

from ..errors import InputError, first_line
from ..files import read_json, write_atomically, write_json

INSTALLED = {"tensorboard": is_tensorboard_available, "mlflow": is_mlflow_available, "wandb": is_wandb_available}
PROJECT = "tinymae"


def require_installed(names: Iterable[str]) -> None:
    """Raises InputError for a tracker whose package is missing: Accelerate would leave it out without a word."""
    for name in names:
        if not INSTALLED[name]():
            raise InputError(f"log_with {name!r} is not installed: pip install {name}, or leave it out")


class RunInMLflow(MLflowTracker):
    """An MLflow run, new or continued. It keeps all values of a step, so a step that it has is not logged again, and
    all steps can be told it anew.

    The store is the one of MLFLOW_TRACKING_URI, or else a database in the run's own folder: a store of plain files is
    refused by MLflow 3.
    """

    has_steps = False

    def __init__(self, folder: Path, previous: dict):
        import mlflow

        logging.getLogger("mlflow.store.db").setLevel(logging.WARNING)  # two lines about tables for every new database
        own = folder.resolve() / "mlflow"
        given = os.environ.get("MLFLOW_TRACKING_URI")
        self.store = given or f"sqlite:///{own.as_posix()}/mlflow.db"
        self.logged: dict[str, set[int | None]] = {}
        mlflow.set_tracking_uri(self.store)
        if given:
            tqdm.write(f"opening MLflow's store {given}")
            where = {"experiment_name": PROJECT}
        else:
            # MLflow has set it, and the next run of this process would take it for the user's wish.
            os.environ.pop("MLFLOW_TRACKING_URI", None)
            if not (own / "mlflow.db").exists():  # a kill amid the making of its tables would leave a useless one
                write_atomically(own / "mlflow.db", create_database)
            # MLflow notes the place of files for good. The name makes a folder that was moved get a new experiment,
            # whose files go to the new place.
            where = {"experiment_name": own.as_uri(), "logging_dir": (own / "artifacts").as_uri()}
        known = previous["run"] if previous.get("store") == self.store else None
        if known is not None:
            client = mlflow.MlflowClient()
            for key in client.get_run(known).data.metrics:
                self.logged[key] = {metric.step for metric in client.get_metric_history(known, key)}
        super().__init__(**where, run_id=known, run_name=folder.resolve().name)

    def start(self) -> None:
        with alone(self.store):
            super().start()

    @property
    def address(self) -> dict[str, str]:
        return {"store": self.store, "run": self.tracker.info.run_id}

    def log(self, values: dict, step: int | None = None, **kwargs) -> None:
        values = {key: value for key, value in values.items() if step not in self.logged.get(key, ())}
        if values:
            super().log(values, step=step, **kwargs)
        for key in values:
            self.logged.setdefault(key, set()).add(step)

    def show(self, name: str, path: Path, *, step: int) -> None:
        """Keep a PNG."""
        self.log_artifact(str(path), f"pictures/step-{step:09d}")

    def keep(self, results: dict, files: Iterable[Path]) -> None:
        """The end of a run: figures that no step had, and all files."""
        unknown = {key: value for key, value in numbers_of(results).items() if key not in self.logged}
        self.log(unknown, step=results["steps"])
        for file in files:
            self.log_artifact(str(file))


def alone(store: str) -> AbstractContextManager:
    """Held while a store is opened: runs that begin at once would make the tables of one SQLite file at once."""
    file = store.removeprefix("sqlite:///")
    return FileLock(f"{file}.lock") if file != store else contextlib.nullcontext()


def create_database(path: Path) -> None:
    """An empty store of MLflow."""
    import mlflow

    mlflow.MlflowClient(f"sqlite:///{path.as_posix()}").search_experiments()


class RunInWandB(WandBTracker):
    """A run of Weights & Biases, new or continued. Steps below the last one it ignores by itself."""

    def __init__(self, folder: Path, previous: dict):
        self.has_steps = bool(previous)
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        super().__init__(project, dir=folder, name=folder.resolve().name, id=previous.get("run"), resume="allow")

    @property
    def address(self) -> dict[str, str]:
        return {"run": self.tracker.id}

    def show(self, name: str, path: Path, *, step: int) -> None:
        """Show a PNG."""
        self.log_images({name: read_picture(path)}, step=step)

    def keep(self, results: dict, files: Iterable[Path]) -> None:
        """The end of a run: its figures, and the files that are images."""
        self.tracker.summary.update(numbers_of(results))
        for file in files:
            if file.suffix == ".png":
                self.show(file.stem, file, step=results["steps"])


class RunInTensorBoard(TensorBoardTracker):
    """TensorBoard's events in a run's folder, from after `step` on."""

    def __init__(self, folder: Path, *, step: int):
        super().__init__("tensorboard", folder, purge_step=step + 1 if step else 0)

    def show(self, name: str, path: Path, *, step: int) -> None:
        """Show a PNG."""
        self.log_images({name: read_picture(path)}, step=step, dataformats="NHWC")

    def keep(self, results: dict, files: Iterable[Path]) -> None:
        """The end of a run, of which it has all figures and pictures already."""


def start_trackers(
    accelerator: Accelerator, names: Iterable[str], folder: Path, *, step: int, arguments: dict, metrics: list[dict]
) -> None:
    """Open trackers for a run that goes on after `step`, on the main process.

    MLflow and W&B go on with the run that trackers.json names. One that is new to the folder is told `metrics`, the
    lines of metrics.jsonl so far; MLflow, which may have failed on the way, those that it lacks. Raises InputError if a
    tracker cannot be opened.
    """
    file = folder / "trackers.json"
    addresses = read_json(file) if file.exists() else {}
    create = {
        "tensorboard": lambda _: RunInTensorBoard(folder, step=step),
        "mlflow": lambda previous: RunInMLflow(folder, previous),
        "wandb": lambda previous: RunInWandB(folder, previous),
    }
    try:
        accelerator.log_with = [create[name](addresses.get(name, {})) for name in dict.fromkeys(names)]
        accelerator.init_trackers(PROJECT)
        for tracker in keepers(accelerator):
            tracker.store_init_configuration(arguments)
            for row in [] if tracker.has_steps else metrics:
                values = {key: value for key, value in row.items() if key not in ("step", "epoch")}
                tracker.log(values, step=row["step"])
            addresses[tracker.name] = tracker.address
    except Exception as error:  # whatever the three may raise: no server, no key, a damaged store
        raise InputError(
            f"log_with {' '.join(names)} cannot start ({first_line(error)}): mend it, or leave it out, which changes "
            "no result"
        ) from error
    if addresses:
        write_json(file, addresses)


def keepers(accelerator: Accelerator) -> list[RunInMLflow | RunInWandB]:
    """The trackers that also keep arguments, results and files."""
    return [tracker for tracker in accelerator.trackers if isinstance(tracker, RunInMLflow | RunInWandB)]


def each_tracker(accelerator: Accelerator, do: Callable[[Any], None]) -> None:
    """Do something with each tracker. One that fails is left out from then on: it changes no result."""
    for tracker in list(accelerator.trackers):
        try:
            do(tracker)
        except Exception as error:  # whatever the three may raise: a locked store, a server that is away
            accelerator.trackers.remove(tracker)
            with contextlib.suppress(Exception):  # MLflow would take it for still going
                tracker.finish()
            later = "; the same command, repeated, tells it those that it lacks" * isinstance(tracker, RunInMLflow)
            tqdm.write(
                f"log_with {tracker.name} fails ({first_line(error)}): the run goes on without it; metrics.jsonl has "
                f"all steps{later}"
            )


def log_results(accelerator: Accelerator, results: dict, files: Iterable[Path]) -> None:
    """The end of a run: its figures; to MLflow its files, to W&B those that are images."""
    each_tracker(accelerator, lambda tracker: tracker.keep(results, files))


def numbers_of(results: dict) -> dict[str, float]:
    """The figures among results."""
    return {key: value for key, value in results.items() if isinstance(value, int | float)}


def read_picture(path: Path) -> np.ndarray:
    """uint8 (1, H, W, 3)."""
    return np.asarray(Image.open(path).convert("RGB"))[None]
