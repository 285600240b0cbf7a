"""How much a model computes."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def training_flops(compute_loss: Callable[[], Tensor]) -> int:
    """FLOPs of one forward and backward pass, a multiplication and an addition being two; gradients are added up."""
    # Seen by the counter, a compiled block would stay uncompiled for good, up to torch 2.11 at least; and a CPU's fused
    # attention is not seen by it at all.
    eager, plain = torch.compiler.set_stance("force_eager"), sdpa_kernel(SDPBackend.MATH)
    with eager, plain, FlopCounterMode(display=False) as counter:
        compute_loss().backward()
    return counter.get_total_flops()
