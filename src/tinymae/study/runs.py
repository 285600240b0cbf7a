"""Runs within a study: each in a folder of its own, done once, with settings passed on to it."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ..commands.cli import create_parser, name_of, parse
from ..commands.settings import RunSettings
from ..data.datasets import Dataset, with_label
from ..errors import InputError
from ..files import read_json
from ..interop.load import load
from ..training.inputs import another_run, differences, require_same_run

FIXED = ("data", "seed", "output_dir")  # what a study gives each of its runs
# "WHERE: FLAGS" of a command line, or settings by place, as flags or by name.
Extra = Sequence[str] | Mapping[str, str | Mapping[str, Any]]


def run_once(command: ModuleType, settings: RunSettings, *, part: Path | None = None, **given: Any) -> dict:
    """The results of a command's run with these settings: read if it has ended in its folder, else made, and `given`
    what spares it work. `part` is the folder of all that goes with it.

    Raises InputError if the folder holds another run.
    """
    folder = Path(settings.output_dir)
    require_same(settings, part=part)
    if (folder / "results.json").exists():
        return read_json(folder / "results.json")
    print(f"\n=== {folder}", flush=True)
    return command.run(settings, **given).results


def require_same(settings: RunSettings, *, part: Path | None = None) -> None:
    """Raises InputError if the folder holds another run than one with these settings. `part` as in `run_once`."""
    weights = getattr(settings, "weights", None)
    model = None if weights is None else load(weights)
    inputs = {} if model is None else {"weights": model.fingerprint}
    try:
        recorded = settings.resolve().reading_like(model, say=False).record()
        require_same_run(Path(settings.output_dir), recorded, inputs, partial=True, defaults=settings.defaults())
    except InputError as error:
        raise InputError(f"{error}{anew(part)}") from None


def fingerprints(splits: Mapping[str, Dataset]) -> dict[str, tuple[str, str]]:
    """What runs on some splits record of each: the fingerprint of all its images, and that of the labelled ones."""
    return {name: (split.fingerprint, with_label(split).fingerprint) for name, split in splits.items()}


def require_same_data(part: Path, known: Mapping[str, tuple[str, str]]) -> None:
    """Raises InputError if a run below `part` had other images or labels in a split than its `known` fingerprints."""
    for file in sorted(part.glob("*/args.json")):
        inputs = read_json(file).get("inputs", {})
        other = [name for name, both in known.items() if name in inputs and inputs[name] not in both]
        if other:
            changes = differences({name: inputs[name] for name in other}, {name: known[name][0] for name in other})
            raise InputError(f"{another_run(file.parent, changes.values())}{anew(part)}")


def anew(part: Path | None) -> str:
    """The end of a refusal: how to give up less than everything."""
    return f", which moves everything aside; to make this part alone anew, remove {part}" if part else ""


def parse_extra(extra: Extra, places: dict[str, type[RunSettings]]) -> dict[str, dict[str, Any]]:
    """Settings that go to one place each, later ones over earlier ones. `places` has the settings' class of each.

    Raises InputError for an unknown place or setting, or one that the study gives, before anything is trained.
    """
    found: dict[str, dict[str, Any]] = {place: {} for place in places}
    texts = [extra] if isinstance(extra, str) else extra
    if not isinstance(texts, Mapping) and (odd := [text for text in texts if ":" not in text]):
        raise InputError(f"extra {odd[0]!r} does not begin with a place and a colon")
    given = texts.items() if isinstance(texts, Mapping) else [text.partition(":")[::2] for text in texts]
    for where, settings in given:
        if where not in places:
            raise InputError(f"extra {where!r} is none of {', '.join(sorted(places))}")
        if isinstance(settings, Mapping):
            unknown = sorted(settings.keys() - {*places[where].__dataclass_fields__})
            if unknown:
                raise InputError(f"extra {where!r} has no {', '.join(unknown)}")
            found[where] |= settings
        else:
            try:
                parser = create_parser(places[where], prog=name_of(places[where]), partial=True)
                found[where] |= parse(parser, shlex.split(settings))
            except InputError as error:
                raise InputError(f'extra "{where}: ...": {error}') from None
            except ValueError as error:
                raise InputError(f"extra {settings!r} cannot be split into flags ({error}): check its quotes") from None
        if fixed := [name for name in FIXED if name in found[where]]:
            raise InputError(f"extra {where!r} gives {fixed[0]}, which follows from the command's own: leave it out")
    return found


def require_distinct(name: str, values: Sequence) -> None:
    """Raises InputError if one of an argument's values is given twice, which would pass for two measurements."""
    if len(set(values)) < len(values):
        raise InputError(f"{name} {' '.join(map(str, values))}: one is given twice")
