"""Scripts that run other scripts: each stage in a folder of its own, done once, with flags passed on to it."""

import argparse
import shlex
from pathlib import Path
from types import ModuleType

from ..errors import InputError
from ..files import read_json
from ..training.device import settle_precision
from ..training.run import recorded_arguments, require_same_arguments


def run_stage(script: ModuleType, folder: str | Path, *flags) -> dict:
    """The results of a script's run with these flags in `folder`: read if it has ended there, else made.

    `script` is an imported script with `parse` and `main`. Raises InputError if the folder holds another run.
    """
    args = script.parse().parse_args([*map(str, flags), "--output-dir", str(folder)])
    settle_precision(args)
    if hasattr(script, "complete_arguments"):  # the flags that a run records are not yet all there
        script.complete_arguments(args)
    folder = Path(folder)
    require_same_arguments(folder, recorded_arguments(args))
    if (folder / "results.json").exists():
        return read_json(folder / "results.json")
    print(f"\n=== {folder}", flush=True)
    return script.main(args)


def check_extra(args: argparse.Namespace, places: dict[str, ModuleType]) -> None:
    """Refuse, before anything is trained, an --extra that its script would refuse hours later.

    `places` names the script of each place. Raises InputError for an --extra that does not begin with a place and a
    colon; flags that the script does not know end the process, as argparse does.
    """
    for extra in args.extra:
        where, colon, flags = extra.partition(":")
        if not colon or where not in places:
            raise InputError(f"extra {extra!r} does not begin with one of {', '.join(sorted(places))}, and a colon")
        parser = places[where].parse()
        parser.prog, parser.usage = f'--extra "{where}: ..."', f"flags of {places[where].__name__}.py"
        try:
            words = shlex.split(flags)
        except ValueError as error:
            raise InputError(f"extra {extra!r} cannot be split into flags ({error}): check its quotes") from None
        parser.parse_args(words)


def require_distinct(name: str, values: list) -> None:
    """Raises InputError if one of an argument's values is given twice, which would pass for two measurements."""
    if len(set(values)) < len(values):
        raise InputError(f"{name} {' '.join(map(str, values))}: one is given twice")


def extra_flags(args: argparse.Namespace, *places: str) -> list[str]:
    """What --extra "WHERE: FLAGS" gives to these places, in their order."""
    pairs = [extra.split(":", 1) for extra in args.extra]
    return [word for place in places for where, flags in pairs if where == place for word in shlex.split(flags)]
