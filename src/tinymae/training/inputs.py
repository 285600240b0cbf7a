"""What a run was started with: whether a folder holds the same run, and if not, what differs."""

import contextlib
import re
import reprlib
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ..data.datasets import ImageDataset
from ..data.splits import SPLITS
from ..errors import InputError, list_some
from ..files import read_json, read_metrics, write_bytes

MOST_NAMES = 200_000  # of files that are kept beside a run, to say which came or went
MOST_SHOWN = 3  # differences in a message
# The inputs whose fingerprints say what an argument led to, however it was spelled.
FOUND_BY = {
    "data": (*SPLITS, "all"), "labels": (*SPLITS, "all"), "unlabelled_data": ("unlabelled",), "weights": ("weights",),
    "masks": ("masks_sha256",), "calibrate": ("calibrate",),
}  # fmt: skip
# What a run may leave that ends before its first step.
EARLY = ("args.json", ".lock", "inputs/*.txt", "tensorboard/events.*", "tensorboard/*/events.*", "metrics.jsonl",
         "reconstructions.png", "samples.png")  # fmt: skip


def has_begun(folder: Path) -> bool:
    """Whether a folder holds anything but what a run leaves that ended before its first step."""
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    if any(not any(fnmatch(name, early) for early in EARLY) for name in files):
        return True
    metrics = folder / "metrics.jsonl"
    return metrics.exists() and any(row.get("step", 1) for row in read_metrics(metrics))


def holds_run(folder: Path) -> bool:
    """Whether a folder holds a run. What ended before its first step is none: the corrected command may have it."""
    return (folder / "args.json").exists() and has_begun(folder)


def require_same_run(
    folder: Path, arguments: dict, inputs: dict, datasets: Mapping[str, Any] | None = None, *, partial: bool = False,
    defaults: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Raises InputError, naming what differs, if the folder holds a run with other arguments or other inputs.

    A path may be another where the same was found there: see `found_alike`. Of `partial` inputs the run's others are
    not compared. Of files in `datasets` it says which came or went. An argument that the run's version did not know has
    the value in `defaults`.
    """
    if not holds_run(folder):
        if any((folder / "checkpoints").glob("step-*.pt")):  # moved while it was written
            raise another_run(folder, ["its checkpoints have no args.json"])
        return
    recorded = read_json(folder / "args.json")
    known = recorded.get("inputs", {})
    was = {name: value for name, value in known.items() if name in inputs or not partial}
    datasets = datasets or {}
    renamed = {split: names for split in datasets if (names := changed_names(folder, split, datasets[split]))}
    # Of images that stay in their files fingerprints know names and sizes alone, which 2023/tile.npy and 2024/tile.npy
    # may have in common.
    streamed = {split for split, dataset in datasets.items() if not isinstance(dataset, ImageDataset)}
    alike = found_alike(was, inputs, but=streamed | renamed.keys())
    unknown = {name: value for name, value in (defaults or {}).items() if name in arguments}
    changed = differences(unknown | recorded["arguments"], arguments, leave_out=alike)
    found = differences(was, inputs) if inputs and known else {}
    if changed or found:
        same = [split for split in found if split in datasets and names_of(folder, split) == {*datasets[split].names}]
        # Digests say nothing where names do, or where an argument that led to them is another.
        told = {*same, *renamed, *(name for argument in changed for name in FOUND_BY.get(argument, ()))}
        changes = [*changed.values(), *(text for name, text in found.items() if name not in told)]
        changes += [f"images of the same names in {', '.join(same)} with other pixels or labels"] * bool(same)
        changes += renamed.values()
        if (more := len(changes) - MOST_SHOWN) > 0:
            changes[MOST_SHOWN:] = [f"and {more} more"]
        raise another_run(folder, changes)


def another_run(folder: Path, changes: Iterable[str]) -> InputError:
    """Of a folder that holds a run with other arguments or inputs: see `differences`."""
    return InputError(
        f"output_dir {folder} holds another run ({', '.join(changes)}): choose another folder, or give overwrite"
    )


def found_alike(was: dict, now: dict, *, but: set[str]) -> set[str]:
    """The arguments under which the same was found as before: the inputs that say so are there, equal, and none of
    `but`.

    >>> was = {"train": "80 images, 12ab", "val": "20 images, 34cd", "weights": "56ef"}
    >>> found_alike(was, {**was, "val": "9 images, 78ab"}, but=set())
    {'weights'}
    """
    found = {argument: {*names} & {*was, *now} for argument, names in FOUND_BY.items()}
    return {
        argument
        for argument, names in found.items()
        if names and not names & but and all(was.get(name) == now.get(name) for name in names)
    }


def differences(old: dict, new: dict, *, leave_out: Collection[str] = ()) -> dict[str, str]:
    """What was and what is, in words, of each name whose value differs."""
    pairs = {name: (old.get(name), new.get(name)) for name in {**old, **new} if name not in leave_out}
    return {
        name: f"{name} was {brief(was)}, now {brief(now)}"
        for name, (was, now) in pairs.items()
        if plain(was) != plain(now)
    }


class Brief(reprlib.Repr):
    """Values as people write them: 2.05, not 2.0500000000000003; of a long digest the first digits."""

    def __init__(self):
        super().__init__()
        self.maxstring = self.maxother = 80

    def repr_float(self, value: float, level: int) -> str:
        return f"{value:.6g}"

    def repr_str(self, value: str, level: int) -> str:
        return super().repr_str(re.sub(r"\b([0-9a-f]{16})[0-9a-f]{16,}\b", r"\1", value), level)


brief = Brief().repr


def plain(value: Any) -> Any:
    """A value without the slash that a shell appends to the name of a folder."""
    if isinstance(value, list):
        return [plain(each) for each in value]
    return value.rstrip("/") if isinstance(value, str) else value


def write_names(folder: Path, datasets: Mapping[str, Any]) -> None:
    """Keep the names of the files of each split, in place of others. The folder may hold what is not ours."""
    for split in (*SPLITS, "all", "unlabelled", "calibrate"):
        names_file(folder, split).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it is not there, or holds something else
        (folder / "inputs").rmdir()
    for split, dataset in datasets.items():
        if dataset.of_files and len(dataset) <= MOST_NAMES:
            write_bytes(names_file(folder, split), "".join(f"{name}\n" for name in dataset.names).encode())


def changed_names(folder: Path, split: str, dataset: Any) -> str:
    """Which files of a split came and went since the run was started, in words."""
    if not (was := names_of(folder, split)):
        return ""
    now = set(dataset.names)
    parts = [("came", sorted(now - was)), ("went", sorted(was - now))]
    return ", ".join(f"{len(names):,} of {split} {what}: {list_some(names, 3)}" for what, names in parts if names)


def names_of(folder: Path | None, split: str) -> set[str]:
    """The files of a split that a run in this folder was started with; none where they were not kept."""
    if folder is None or not (path := names_file(folder, split)).exists():
        return set()
    return set(path.read_text("utf-8").splitlines())


def names_file(folder: Path, split: str) -> Path:
    return folder / "inputs" / f"{split}.txt"
