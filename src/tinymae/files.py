"""Files that are either whole or absent, and errors that tell the user what to do."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn


class InputError(ValueError):
    """Something the user gave cannot work. The message is one line: the argument, its value and the remedy.

    Scripts print it and exit with code 2, without a traceback.
    """


def write_atomically(path: str | Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file beside `path`, flush it to disk, then rename it over `path`.

    A kill at any moment leaves either the old file or the new one, never a part of one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        write(beside)
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: str | Path, content: dict) -> None:
    """Write `content` as indented JSON, atomically."""
    write_atomically(path, lambda beside: beside.write_text(json.dumps(content, indent=2) + "\n"))


def read_json(path: str | Path) -> dict:
    """Read a JSON object. Raises InputError, naming the file, if it is missing or is not one."""
    try:
        content = json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not valid JSON ({error}): it is damaged, restore it from its source") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a JSON {type(content).__name__}, not an object")
    return content


def load_weights_strictly(model: nn.Module, path: str | Path) -> None:
    """Fill every parameter and buffer of `model` from a safetensors file, in the model's own dtype.

    Raises InputError, naming the file, if it is missing, truncated, or does not match the model name by name and
    shape by shape. The model is untouched when it raises.
    """
    try:
        state = load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: the weights folder is incomplete") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is truncated or damaged ({error}): copy it again from its source") from None
    expected = model.state_dict()
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or unexpected:
        raise InputError(
            f"{path} holds another architecture than its config.json says: "
            f"missing {missing[:3]}, unexpected {unexpected[:3]} ({len(missing)} and {len(unexpected)} in all)"
        )
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise InputError(
                f"{path} holds {name} of shape {tuple(tensor.shape)} where its config.json says "
                f"{tuple(expected[name].shape)}"
            )
    model.load_state_dict(state, strict=True)
