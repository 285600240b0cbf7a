"""How much a model computes."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .base import Autoencoder


def training_flops(compute_loss: Callable[[], Tensor]) -> int:
    """FLOPs of one forward and backward pass, a multiplication and an addition being two; gradients are added up."""
    # Seen by the counter, a compiled block would stay uncompiled for good, up to torch 2.11 at least; and a CPU's fused
    # attention is not seen by it at all.
    eager, plain = torch.compiler.set_stance("force_eager"), sdpa_kernel(SDPBackend.MATH)
    with eager, plain, FlopCounterMode(display=False) as counter:
        compute_loss().backward()
    return counter.get_total_flops()


def reconstruction_flops(model: Autoencoder) -> int:
    """Those of an autoencoder's training pass, for each image; its gradients are cleared."""
    # Of two, as a norm over one image's group may have one value.
    images = torch.zeros(2, model.in_channels, *model.image_size, dtype=torch.uint8)
    training = model.training
    model.eval()  # in training a codebook would learn from them
    flops = training_flops(lambda: model.training_losses(images)["loss"])
    model.train(training).zero_grad()
    return flops // len(images)
