"""What the processes of a run do together."""

from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from ..errors import InputError, first_line

T = TypeVar("T")


def on_main(accelerator: Accelerator, action: Callable[[], T]) -> T:
    """Do it on the main process, and give its value to all. If it fails, none waits: the others raise InputError."""
    value, failure = None, None
    if accelerator.is_main_process:
        try:
            value = action()
        except Exception as error:
            failure = error
    value, problem = agree((value, None if failure is None else first_line(failure)))
    if failure is not None:
        raise failure
    if problem is not None:
        raise InputError(problem)
    return cast(T, value)


def agree(value):
    """The main process's value, on every process."""
    return broadcast_object_list([value])[0]


def print_once(*lines: str) -> None:
    """Print lines on the main process alone. A run has a `print` of its own; this is for what comes before it."""
    if PartialState().is_main_process:
        print(*lines, sep="\n", flush=True)


def gather_parts(accelerator: Accelerator, rows: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """The rows (N, F) of all processes on the CPU of each, process r having those of `parts[r]`, in order."""
    if accelerator.num_processes == 1:
        return rows
    longest = max(len(part) for part in parts)  # gathering wants equal shapes
    padded = nn.functional.pad(rows, (0, 0, 0, longest - len(rows))).to(accelerator.device)
    gathered = accelerator.gather(padded).cpu().split(longest)
    return torch.cat([chunk[: len(part)] for chunk, part in zip(gathered, parts, strict=True)])


def leave_group() -> None:
    """Part from the other processes at the end of a program, of which NCCL would otherwise warn."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
