"""What the device of a run can do: precision, attention, compilation, determinism."""

import contextlib
import functools
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Literal

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import GradientAccumulationPlugin, parse_flag_from_env
from torch import nn

from ..errors import InputError
from ..models.vit import set_fused_attention

Precision = Literal["auto", "no", "bf16", "fp16"]
PATIENCE = timedelta(hours=3)  # of processes with each other: NCCL's ten minutes may be less than the first one's work


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
