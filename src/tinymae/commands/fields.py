"""Settings as fields of a frozen dataclass: each is a flag, a keyword of the Python call and a key of args.json."""

import hashlib
import inspect
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import update_wrapper
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Generic, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..files import digest, is_of_type

PLAIN = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}  # types, and their words
M = TypeVar("M")
S = TypeVar("S", bound="Settings")
R = TypeVar("R")


@dataclass(frozen=True, repr=False)
class Result(Generic[M]):
    """What a command gives back."""

    model: M  # in evaluation mode
    results: dict  # as in results.json
    folder: Path  # the output folder

    def __repr__(self) -> str:  # one line, while results hold tables of all classes
        of = "" if self.model is None else f" of a {type(self.model).__name__}"
        numbers = [
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self.results.items()
            if isinstance(value, int | float)
        ]
        return f"Result{of} in {self.folder}: {', '.join(numbers) or 'see .results'}"


def setting(default: Any = MISSING, help: str = "", *, group: str = "", **metadata: Any) -> Any:
    """A field with its help text. `group` is its heading in --help: by default the class's.

    Further metadata: `python=True` has no flag, `flag` and `key` name it otherwise, `free=True` does not change what is
    computed and is not recorded, `const` is the value of a flag without one, `positive=True` is at least 1.
    """
    return field(default=default, metadata={"help": help, "group": group, **metadata})


def with_default(base: type, name: str, default: Any) -> Any:
    """A field of `base` with another default."""
    return field(default=default, metadata=base.__dataclass_fields__[name].metadata)  # type: ignore[attr-defined]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all commands share."""

    heading = "run"
    resumes = False  # whether a command that was stopped goes on where it was
    output_dir: str | Path = setting("runs/run", "folder of this run", free=True)

    def __post_init__(self) -> None:
        """Let one value stand for a tuple of it. Raises InputError for a value that is none of a field's choices, or is
        not of its type: the command line knows no others, Python would go on with them.
        """
        hints = get_type_hints(type(self))
        for f in fields(self):
            value, kinds = getattr(self, f.name), alternatives(hints[f.name])
            if isinstance(value, np.generic | range):  # as people compute numbers
                value = value.item() if isinstance(value, np.generic) else tuple(value)
                object.__setattr__(self, f.name, value)
            if value is None or len(kinds) > 1:
                continue
            choices, values = kinds[0], [value]
            if get_origin(choices) is tuple and get_args(choices)[-1] is Ellipsis:
                if isinstance(value, str | Path | int):
                    object.__setattr__(self, f.name, (value,))
                choices, values = get_args(choices)[0], getattr(self, f.name)
                if not isinstance(values, list | tuple):
                    values = [values]  # which is none of them
            elif value is True and "const" in f.metadata:  # a flag without a value
                object.__setattr__(self, f.name, f.metadata["const"])
                continue
            for each in values if get_origin(choices) is Literal else ():
                if each not in get_args(choices):
                    raise InputError(f"{f.name} {each!r} is none of {', '.join(map(str, get_args(choices)))}")
            if choices in PLAIN:
                require_plain(f.name, values, choices)

    def record(self) -> dict:
        """What args.json keeps: the settings that decide what a run computes, as JSON."""
        kept = (f for f in fields(self) if not f.metadata.get("free"))
        return {f.name: describe_value(getattr(self, f.name)) for f in kept}


def require_plain(name: str, values: Sequence[Any], wanted: type) -> None:
    """Raises InputError unless all values are of a plain type; a path may stand for a text."""
    for value in values:
        if not is_of_type(value, str | Path if wanted is str else wanted):
            raise InputError(f"{name} {reprlib.repr(value)} is of type {type(value).__name__}: give {PLAIN[wanted]}")


def alternatives(kind: Any) -> list[Any]:
    """The types that a hint allows, but None."""
    if get_origin(kind) not in (UnionType, Union):
        return [kind]
    return [each for each in get_args(kind) if each is not NoneType]


def describe_value(value: Any) -> Any:
    """A setting as args.json has it: objects from Python by their kind and digest."""
    if isinstance(value, Tensor | np.ndarray):
        array = np.ascontiguousarray(value.cpu().numpy() if isinstance(value, Tensor) else value)
        return f"array {list(array.shape)} of {array.dtype}, sha256 {hashlib.sha256(array.tobytes()).hexdigest()[:16]}"
    if isinstance(value, torch.nn.Module):
        return f"{type(value).__name__}, sha256 {digest(value.state_dict())[:16]}"
    if hasattr(value, "__len__") and not isinstance(value, str | list | tuple):  # a data set of any library
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, list | tuple):
        return [describe_value(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def keywords_of(run: Callable[[S], R], settings: type[S]) -> Callable[..., R]:
    """A command as a Python function: the settings' fields are its keywords, the positional one may come first."""

    def call(*args, **keywords) -> R:
        return run(settings(**signature.bind(*args, **keywords).arguments))

    ordered = sorted(fields(settings), key=lambda f: not f.metadata.get("positional"))
    signature = inspect.Signature([parameter_of(f) for f in ordered])
    update_wrapper(call, run)
    call.__name__ = call.__qualname__ = run.__module__.rsplit(".", 1)[-1]
    call.__signature__ = signature  # type: ignore[attr-defined]
    arguments = "".join(f"    {f.name}: {f.metadata['help']}\n" for f in ordered if f.metadata["help"])
    call.__doc__ = f"{inspect.cleandoc(run.__doc__ or '')}\n\nArgs:\n{arguments}"
    return call


def parameter_of(f: Field) -> inspect.Parameter:
    """A field as a parameter of a function."""
    positional = f.metadata.get("positional")
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD if positional else inspect.Parameter.KEYWORD_ONLY
    default = inspect.Parameter.empty if f.default is MISSING else f.default
    return inspect.Parameter(f.name, kind, default=default, annotation=f.type)
