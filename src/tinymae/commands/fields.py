"""Settings as fields of a frozen dataclass: each is a flag, a keyword of the Python call and a key of args.json."""

import contextlib
import hashlib
import inspect
import io
import multiprocessing
import operator
import os
import reprlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import update_wrapper
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

from ..data.sources.arrays import to_array
from ..errors import InputError, did_you_mean
from ..files import digest, is_of_type
from ..interop.load import part_with_model
from ..randomness import untouched_randomness
from .families import describe_setting

WORDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", Path: "a path"}  # of types
LIMITS = {
    "least": (operator.ge, "below"), "above": (operator.gt, "not above"),
    "most": (operator.le, "above"), "below": (operator.lt, "not below"),
}  # fmt: skip
P = ParamSpec("P")
S = TypeVar("S", bound="Settings")
R = TypeVar("R")
T = TypeVar("T")

if TYPE_CHECKING:

    class Several(Generic[T]):
        """A setting that is a tuple, and may be given as a list or as one of its values: see `checked`."""

        def __get__(self, settings: Any, owner: Any = None) -> tuple[T, ...]: ...

        def __set__(self, settings: Any, value: T | Sequence[T]) -> None: ...

else:
    Several = tuple[T, ...]


def setting(default: Any = MISSING, help: str = "", *, group: str = "", **metadata: Any) -> Any:
    """A field with its help text. `group` is its heading in --help: by default the class's.

    Further metadata: `python=True` has no flag, `free=True` does not change what is computed and is not recorded,
    `const` is the value of a flag without one, and a number has limits: `least`, `above`, `most`, `below`.
    """
    return field(default=default, metadata={"help": help, "group": group, **metadata})


def with_default(base: type, name: str, default: Any) -> Any:
    """A field of `base` with another default."""
    return field(default=default, metadata=base.__dataclass_fields__[name].metadata)  # type: ignore[attr-defined]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all commands share."""

    resumes = False  # whether a command that was stopped goes on where it was
    output_dir: str | Path = setting("runs/run", "folder of this run", free=True)

    def __post_init__(self) -> None:
        """Raises InputError for a value that its field does not take: see `checked`."""
        hints = get_type_hints(type(self))
        for f in fields(self):
            value = getattr(self, f.name)
            if value is None and hints[f.name] is not Any and NoneType not in get_args(hints[f.name]):
                remedy = "give one" if f.default is MISSING else f"leave it out for the default, {f.default}"
                raise InputError(f"{f.name} None: {remedy}")
            object.__setattr__(self, f.name, checked(f, value, alternatives(hints[f.name])))

    def record(self) -> dict:
        """What args.json keeps: the settings that decide what a run computes, as JSON."""
        kept = (f for f in fields(self) if not f.metadata.get("free"))
        return {f.name: describe_value(getattr(self, f.name)) for f in kept}

    @classmethod
    def defaults(cls) -> dict:
        """The defaults of what `record` keeps, as args.json has them."""
        return {f.name: describe_value(f.default) for f in fields(cls) if f.default is not MISSING}


def checked(f: Field, value: Any, kinds: list[Any]) -> Any:
    """A value as its field holds it: one may stand for a tuple of it.

    Raises InputError for one that is none of the field's choices, not of its types or beyond its limits: the command
    line knows no others, Python would go on with them.
    """
    holds_arrays = Any in kinds or np.ndarray in kinds  # images or labels, which are left as they are
    value = value if holds_arrays else as_python(value)
    if value is None:
        return None
    if value is True and "const" in f.metadata:  # a flag without a value
        return f.metadata["const"]
    values: Sequence[Any] = [value]
    if get_origin(kinds[0]) is tuple and get_args(kinds[0])[-1] is Ellipsis and len(kinds) == 1:
        value = (value,) if isinstance(value, str | Path | int | float) else value
        kinds, values = [get_args(kinds[0])[0]], value if isinstance(value, list | tuple) else [value]
    for each in values:
        require_kind(f.name, each, kinds)
        require_within(f, each)
    return value


def as_python(value: Any) -> Any:
    """Numbers of numpy, arrays of them, ranges and paths of other kinds as Python has them: so people compute them."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike) and not isinstance(value, Path):
        return Path(value)
    row = isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "iu"
    numbers = isinstance(value, range) or row
    if numbers or (isinstance(value, list | tuple) and any(isinstance(each, np.generic) for each in value)):
        return tuple(map(as_python, value))
    return value


def require_kind(name: str, value: Any, kinds: list[Any]) -> None:
    """Raises InputError unless a value is one of the choices, or of one of the types; a path may stand for a text."""
    if get_origin(kinds[0]) is Literal:
        if value not in get_args(kinds[0]):
            raise InputError(f"{name} {value!r} is none of {', '.join(map(str, get_args(kinds[0])))}")
        return
    words = [words_of(kind) for kind in kinds]
    if all(words) and not any(is_of_type(value, str | Path if kind is str else kind) for kind in kinds):
        last = words.pop()
        allowed = f"{', '.join(map(str, words))} or {last}" if words else last
        shown = describe_value(value) if isinstance(value, Tensor | np.ndarray) else reprlib.repr(value)
        part = part_with_model(value) if name == "weights" else ""
        raise InputError(f"{name} {shown} is of type {type(value).__name__}: give {part or allowed}")


def words_of(kind: Any) -> str | None:
    """A type as users know it; None of one that values are not asked for."""
    if kind in WORDS:
        return WORDS[kind]
    if get_origin(kind) is tuple and (words := words_of(get_args(kind)[0])):
        return f"{len(get_args(kind))} {words.removeprefix('a ')}s"
    if get_origin(kind) is not None or kind is Any:  # in Python 3.10 Sequence[str] passes for a class
        return None
    return kind.__name__ if isinstance(kind, type) else None


def require_within(f: Field, value: Any) -> None:
    """Raises InputError for a number beyond a limit of its field."""
    for name, (holds, words) in LIMITS.items():
        if name in f.metadata and not holds(value, f.metadata[name]):
            raise InputError(f"{f.name} {value:g} is {words} {f.metadata[name]}")


def alternatives(kind: Any) -> list[Any]:
    """The types that a hint allows, but None."""
    if get_origin(kind) not in (UnionType, Union):
        return [kind]
    return [each for each in get_args(kind) if each is not NoneType]


def describe_value(value: Any) -> Any:
    """A setting as args.json has it: objects from Python by their kind and digest."""
    if isinstance(value, Tensor | np.ndarray):
        array = np.ascontiguousarray(to_array(value, "an array") if isinstance(value, Tensor) else value)
        if array.dtype.hasobject:  # names, of which the array holds addresses
            array = array.astype(str)
        flat = array.reshape(-1).view(np.uint8).data  # no copy: it may be mapped from a file larger than memory
        return f"array {list(array.shape)} of {array.dtype}, sha256 {hashlib.sha256(flat).hexdigest()[:16]}"
    if isinstance(value, torch.nn.Module):
        return f"{type(value).__name__}, sha256 {digest(value.state_dict())[:16]}"
    if isinstance(value, list | tuple):
        return [describe_value(each) for each in value]
    if hasattr(value, "__len__") and type(value) not in (str, dict):  # a data set of any library
        return f"{type(value).__name__} of {len(value)}"
    return str(value) if isinstance(value, Path) else value


@contextlib.contextmanager
def usual_torch() -> Iterator[None]:
    """With gradients and float32, which training needs: a notebook may have switched off the former, or made float64
    the default.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(before)


def require_main() -> None:
    """Raises InputError in a process that was started to read images: it runs the user's script again, before it does,
    on macOS, Windows and, from Python 3.14 on, Linux.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # as multiprocessing itself asks
        raise InputError(
            "processes that read images run this script again as they start: put its calls below "
            'if __name__ == "__main__":, or give num_workers 0'
        )


@contextlib.contextmanager
def printable() -> Iterator[None]:
    """What the output's encoding lacks is printed as "?", instead of ending a run: a log on Windows, cp1252, has no
    lines to draw a table with, nor all letters that names of files may have.
    """
    output = sys.stdout
    if not isinstance(output, io.TextIOWrapper):  # a notebook's, which has all
        yield
        return
    before = output.errors
    output.reconfigure(errors="replace")
    try:
        yield
    finally:
        output.reconfigure(errors=before)


def keywords_of(run: Callable[[S], R], settings: Callable[P, S]) -> Callable[P, R]:
    """A command as a Python function, which takes what the class of its settings takes, also to a type checker."""
    # The class is passed as a function: that is how type checkers learn its parameters.
    signature = inspect.signature(settings).replace(return_annotation=inspect.Signature.empty)
    name = run.__module__.rsplit(".", 1)[-1]

    def call(*args: P.args, **keywords: P.kwargs) -> R:
        try:
            signature.bind(*args, **keywords)
        except TypeError as error:
            unknown = [word for word in keywords if word not in signature.parameters]
            raise TypeError(f"{name}() {error}{did_you_mean(unknown, signature.parameters)}") from None
        require_main()
        with untouched_randomness(), usual_torch(), printable():
            return run(settings(*args, **keywords))

    update_wrapper(call, run)
    call.__name__ = call.__qualname__ = name
    call.__signature__ = signature  # type: ignore[attr-defined]
    helps = {
        f.name: describe_setting(f.name) if f.metadata.get("constructor") else f.metadata["help"]
        for f in fields(settings)  # type: ignore[arg-type]
    }
    arguments = "".join(f"    {word}: {helps[word]}\n" for word in signature.parameters if helps[word])
    call.__doc__ = f"{inspect.cleandoc(run.__doc__ or '')}\n\nArgs:\n{arguments}"
    return call
