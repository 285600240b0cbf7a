"""Files that are either whole or absent: written, locked, read and checked."""

import contextlib
import csv
import difflib
import errno
import hashlib
import inspect
import io
import json
import os
import re
import reprlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeGuard, Union, get_args, get_origin

import torch
from filelock import BaseFileLock, FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .errors import InputError, refusal


def write_atomically(
    path: str | Path, write: Callable[[Path], object], *, name: Callable[[Path], str] | None = None
) -> None:
    """Let `write` fill a file beside `path`, flush it to disk, then rename it over `path`.

    A kill at any moment leaves either the old file or the new one, never a part of one. `name` gives the file another
    name than `path` has, from what was written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        write(beside)
        with open(beside, "r+b") as file:  # Windows flushes no file that is open for reading alone
            os.fsync(file.fileno())
        os.replace(beside, path.with_name(name(beside)) if name else path)
    finally:
        beside.unlink(missing_ok=True)


def remove_partials(folder: Path) -> None:
    """Remove what processes that were killed left half written in a folder that is locked, and below it.

    Folders below that have a lock of their own are left to those who hold it.
    """
    for place, below, names in os.walk(folder):
        below[:] = [name for name in below if not Path(place, name, ".lock").exists()]
        for name in names:
            if re.fullmatch(r"\..+\.partial-\d+", name):
                Path(place, name).unlink(missing_ok=True)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file's content, atomically."""
    write_atomically(path, lambda beside: beside.write_bytes(content))


def write_csv(path: str | Path, columns: Sequence[str], rows: Iterable[Sequence]) -> Path:
    """Write a table as CSV, atomically; None becomes an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())
    return Path(path)


def file_digest(path: str | Path) -> str:
    """The first 16 hexadecimal digits of a file's sha256."""
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()[:16]


def write_json(path: str | Path, content: dict) -> None:
    """Write `content` as indented JSON, atomically."""
    write_bytes(path, (json.dumps(content, indent=2) + "\n").encode())


def read_json(path: str | Path) -> dict:
    """Read a JSON object. Raises InputError, naming the file, if it is missing or is not one."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not valid JSON ({error}): it is damaged, restore it from its source") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a JSON {type(content).__name__}, not an object")
    return content


def require_types(values: dict[str, Any], types: dict[str, Any], *, source: str | Path) -> None:
    """Raises InputError, naming the first, unless these fields of a JSON object have their types.

    A missing one is None.

    >>> require_types({"depth": "deep"}, {"depth": int | None}, source="config.json")
    Traceback (most recent call last):
        ...
    tinymae.errors.InputError: config.json: depth 'deep' is not int | None
    """
    for name, wanted in types.items():
        if not is_of_type(values.get(name), wanted):
            found, expected = reprlib.repr(values.get(name)), inspect.formatannotation(wanted)
            raise InputError(f"{source}: {name} {found} is not {expected}")


def is_of_type(value: Any, wanted: Any) -> bool:
    """Whether a value out of JSON, whose lists may stand for tuples and whose integers for floats, is of a type."""
    parts = get_args(wanted)
    if get_origin(wanted) in (UnionType, Union):  # Python 3.10 makes the second of a hint whose default is None
        return any(is_of_type(value, part) for part in parts)
    if get_origin(wanted) is Literal:
        return value in parts
    if get_origin(wanted) in (list, tuple, Sequence):
        if not isinstance(value, list | tuple):
            return False
        kinds = parts if get_origin(wanted) is tuple and parts[-1] is not ... else parts[:1] * len(value)
        return len(value) == len(kinds) and all(map(is_of_type, value, kinds))
    if isinstance(value, bool):  # which Python takes for an integer
        return wanted is bool
    return isinstance(value, int | float) if wanted is float else isinstance(value, wanted)


def last_part(path: str | Path) -> str:
    """The name of a file or folder, of "." that of the working folder.

    >>> last_part("photos/cats/"), last_part("cifar10"), last_part(".") == Path.cwd().name
    ('cats', 'cifar10', True)
    """
    return Path(os.path.abspath(path)).name


def closest_path(path: str | Path) -> str:
    """In brackets, what beside a path that is not there has almost its name; "" if nothing has."""
    path = Path(path)
    with contextlib.suppress(OSError, ValueError):  # nor may its folder be there, or be a name of one
        if close := difflib.get_close_matches(path.name, os.listdir(path.parent), n=1):
            return f" (did you mean {path.with_name(close[0])}?)"
    return ""


def read_metrics(path: str | Path) -> list[dict]:
    """The lines of a metrics.jsonl; a last line cut short by a kill is left out."""
    rows = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def digest(state: dict[str, Tensor], about: str = "") -> str:
    """sha256 over the names and every byte of some tensors, and before them over what is said `about` them."""
    total = hashlib.sha256(about.encode())
    for name, tensor in sorted(state.items()):
        # Through uint8, as numpy does not know bfloat16; flattened, as a scalar has no last dimension to reinterpret.
        flat = tensor.detach().cpu().contiguous().flatten()
        total.update(name.encode() + flat.view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def write_tensors(state: dict[str, Tensor], path: str | Path) -> None:
    """A safetensors file, written atomically, that carries the digest of its tensors."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    metadata = {"format": "pt", "sha256": digest(state)}
    data = save(state, metadata=metadata)
    # safetensors writes its metadata in random order; sorted, equal tensors make equal files.
    length = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length - 8)
    data = data[:8] + text + data[length:]
    write_bytes(path, data)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises InputError, naming it, if it is missing, truncated or altered."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dictionary)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: the weights folder is incomplete") from None
    except (SafetensorError, OSError) as error:
        raise refusal(error, f"{path} is truncated or damaged ({error}): copy it again from its source") from None
    if "sha256" in metadata and metadata["sha256"] != digest(state):
        raise InputError(f"{path} is damaged (its tensors do not match its checksum): copy it again from its source")
    return state


def lock_folder(folder: Path) -> BaseFileLock:
    """Hold `folder` until the lock is released or the process ends, however it ends; it begins without partial files.

    Raises InputError if somebody else holds it, or if it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", thread_local=False)
        lock.acquire(blocking=False)
        remove_partials(folder)
    except Timeout:
        raise InputError(f"output_dir {folder} is in use by another process: wait for it, or choose another") from None
    except OSError as error:
        raise InputError(f"output_dir {folder} cannot be written to ({error.strerror}): choose another") from None
    return lock


def unwritable(folder: Path, error: OSError, *, resumes: bool = False) -> InputError:
    """What to tell the user when a file of an output folder could not be read or written."""
    return InputError(
        f"output_dir {folder} cannot be written to ({error.strerror or error}): mend that, then repeat the command"
        + ", which resumes" * resumes
    )


def is_about(error: BaseException | None, folder: Path) -> TypeGuard[OSError]:
    """Whether an error is the system's about a file in `folder` or a folder above it, which could not be made, or about
    a disk that is full or broken.
    """
    if not isinstance(error, OSError):
        return False
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
        return True
    names = [name for name in (error.filename, error.filename2) if isinstance(name, str | bytes | os.PathLike)]
    paths, own = [Path(os.path.abspath(os.fsdecode(name))) for name in names], folder.absolute()
    return any(path.is_relative_to(own) or (own.is_relative_to(path) and not path.is_dir()) for path in paths)
