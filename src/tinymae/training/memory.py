"""How a process treats memory, and what to do where there is too little."""

import contextlib
import ctypes


def keep_freed_memory(keep: bool = True) -> None:
    """Tell glibc to keep large freed blocks for the next step, instead of giving them back to the kernel.

    By default every step's activations are mapped anew and their pages zeroed one fault at a time: on a CPU this takes
    some 15 % of a training step. Peak memory stays as it is. Does nothing where the C library is another one.
    """
    mmap_threshold, trim_threshold = -3, -1  # names of the settings, from malloc.h
    sizes = (1 << 30, 2**31 - 1) if keep else (32 << 20, 64 << 20)  # glibc's defaults grow to the latter
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, sizes[0])
        libc.mallopt(trim_threshold, sizes[1])


def explain_memory(batch_size: int | None, *, gradient_checkpointing: bool | None, name: str = "batch_size") -> str:
    """What to tell the user when an allocation failed. Gradient checkpointing is on, off, or not known here (None);
    `name` is the setting that holds the batch size.
    """
    lines = ["memory ran out", "" if batch_size is None else f" with {name} {batch_size}", ": repeat the command "]
    if gradient_checkpointing is False:
        lines.append("with --gradient-checkpointing, or ")
    lines.append("when there is more, and it resumes")
    if batch_size is not None:
        lines.append(f"; or give a smaller --{name.replace('_', '-')} in another --output-dir")
    return "".join(lines)
