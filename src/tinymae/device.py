"""What the device of a run can do, and how its process treats memory."""

import contextlib
import ctypes

import torch


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


def supports_bf16(device: torch.device | str) -> bool:
    """Whether bf16 arithmetic is native here, so that mixed precision pays."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # private, so absent from some torch releases
    return torch.device(device).type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in checks)
