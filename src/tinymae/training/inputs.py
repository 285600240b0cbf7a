"""What a run was started with: whether a folder holds the same run, and if not, what differs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import read_json, write_atomically

MOST_NAMES = 200_000  # of files that are kept beside a run, to say which came or went


def require_same_run(
    folder: Path, arguments: dict, inputs: dict | None = None, datasets: Mapping[str, Any] | None = None
) -> None:
    """Raises InputError, naming what differs, if the folder holds a run with other arguments or other inputs.

    `inputs` are compared where both are known; of files in `datasets` it says which came or went.
    """
    if not (folder / "args.json").exists():
        return
    recorded = read_json(folder / "args.json")
    changes = [*differences(recorded["arguments"], arguments)]
    was = recorded.get("inputs", {})
    changes += differences({name: was[name] for name in was if name in (inputs or {})}, inputs or {}) if was else []
    if changes:
        found = (changed_names(folder, split, dataset) for split, dataset in (datasets or {}).items())
        changes += filter(None, found)
        raise InputError(
            f"output_dir {folder} holds another run ({', '.join(changes)}): choose another folder, or --overwrite"
        )


def differences(old: dict, new: dict) -> list[str]:
    """What was and what is, for each name whose value differs."""
    names = [name for name in {**old, **new} if plain(old.get(name)) != plain(new.get(name))]
    return [f"{name} was {old.get(name)!r}, now {new.get(name)!r}" for name in names]


def plain(value: Any) -> Any:
    """A value without the slash that a shell appends to the name of a folder."""
    if isinstance(value, list):
        return [plain(each) for each in value]
    return value.rstrip("/") if isinstance(value, str) else value


def write_names(folder: Path, datasets: Mapping[str, Any]) -> None:
    """Keep the names of the files of each split."""
    for split, dataset in datasets.items():
        if dataset.of_files and len(dataset) <= MOST_NAMES:
            text = "".join(f"{name}\n" for name in dataset.names)
            (folder / "inputs").mkdir(exist_ok=True)
            write_atomically(names_file(folder, split), lambda beside, text=text: beside.write_text(text))  # type: ignore


def changed_names(folder: Path, split: str, dataset: Any) -> str:
    """Which files of a split came and went since the run was started, in words."""
    if not names_file(folder, split).exists():
        return ""
    was, now = set(names_file(folder, split).read_text().splitlines()), set(dataset.names)
    parts = [("came", now - was), ("went", was - now)]
    return ", ".join(f"{len(names):,} of {split} {what}: {some_of(names)}" for what, names in parts if names)


def names_file(folder: Path, split: str) -> Path:
    return folder / "inputs" / f"{split}.txt"


def some_of(names: set[str]) -> str:
    """The first three, in order."""
    return ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
