"""What the device of a run can do, and how its process treats memory."""

import contextlib
import ctypes
import functools
import os
import platform
import subprocess
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal, TypeVar, cast

import timm
import torch
import torchvision
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import GradientAccumulationPlugin, broadcast_object_list, parse_flag_from_env
from torch import Tensor, nn

from ..errors import InputError, first_line
from ..models.vit import set_fused_attention

T = TypeVar("T")
Precision = Literal["auto", "no", "bf16", "fp16"]
PATIENCE = timedelta(hours=3)  # of processes with each other: NCCL's ten minutes may be less than the first one's work


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


def settle_precision(mixed_precision: Precision) -> Precision:
    """`auto` becomes what the device supports. Raises InputError for a precision that it does not."""
    # The first state made is the one that counts, and only Accelerator itself looks at this variable.
    device = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=PATIENCE).device
    if mixed_precision == "auto":
        return "bf16" if supports_bf16(device) else "no"
    if mixed_precision == "fp16" and device.type == "cpu":
        raise InputError("mixed_precision 'fp16' needs a GPU: use bf16 or no")
    return mixed_precision


def create_accelerator(mixed_precision: str, *, gradient_accumulation_steps: int = 1) -> Accelerator:
    """Accelerate with a settled precision, whatever an earlier run of this process used."""
    AcceleratorState._reset_state()  # what outlives a run is the processes' group alone
    GradientState._reset_state()
    # As a plugin, since an environment variable would override the plain argument.
    plugin = GradientAccumulationPlugin(num_steps=gradient_accumulation_steps)
    return Accelerator(mixed_precision=mixed_precision, gradient_accumulation_plugin=plugin)


def leave_group() -> None:
    """Part from the other processes at the end of a program, of which NCCL would otherwise warn."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def choose_attention(model: nn.Module, accelerator: Accelerator) -> None:
    """Take the faster way to compute attention."""
    set_fused_attention(model, fused_is_faster(accelerator.device, accelerator.mixed_precision))


def fused_is_faster(device: torch.device, precision: str) -> bool:
    """Whether attention is faster as one kernel: but in bf16 on a CPU, where its backward pass is slow."""
    return not (device.type == "cpu" and precision == "bf16")


@functools.cache
def can_compile(device: torch.device) -> bool:
    """Whether torch.compile works here: it needs Triton on a GPU, and a C compiler."""
    try:
        torch.compile(torch.sin)(torch.zeros(2, device=device))
    except Exception:
        return False
    return True


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


def gather_parts(accelerator: Accelerator, rows: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """The rows (N, F) of all processes on the CPU of each, process r having those of `parts[r]`, in order."""
    if accelerator.num_processes == 1:
        return rows
    longest = max(len(part) for part in parts)  # gathering wants equal shapes
    padded = nn.functional.pad(rows, (0, 0, 0, longest - len(rows))).to(accelerator.device)
    gathered = accelerator.gather(padded).cpu().split(longest)
    return torch.cat([chunk[: len(part)] for chunk, part in zip(gathered, parts, strict=True)])


@contextlib.contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """While entered, and if `enabled`, torch takes only algorithms that give the same bits each time.

    On a GPU attention's and convolutions' backward passes are others by default; on a CPU nothing changes.
    """
    if not enabled:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which cuBLAS reads when it is first used
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


def describe_cores() -> str:
    """How many of the CPU's cores the run's threads can keep busy."""
    total = os.cpu_count() or 1
    busy = min(torch.get_num_threads() * PartialState().num_processes, total)
    return f"{busy} of {total} CPU cores" if busy < total else f"{total} CPU cores"


def environment() -> dict:
    """Versions, commit and machine, for args.json."""
    return {
        "commit": commit_of(Path(__file__).resolve().parents[3]),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "timm": timm.__version__,
        },
        "device": torch.cuda.get_device_name() if PartialState().device.type == "cuda" else describe_cores(),
        "date": datetime.now().isoformat(timespec="seconds"),
    }


def commit_of(root: Path) -> str | None:
    """The commit of a checkout of tinymae; None where it was installed, whatever repository may enclose it there."""
    if not ((root / ".git").exists() and (root / "src" / "tinymae").is_dir()):
        return None
    try:
        git = ["git", "-C", str(root), "rev-parse", "HEAD"]
        return subprocess.run(git, capture_output=True, text=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None
