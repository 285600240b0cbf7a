"""Reconstruction losses: mse, l1, log_cosh, ssim, and weighted sums of them.

Each takes a prediction and a target, float (B, C, H, W), and gives a scalar that is 0 where they are equal.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import InputError

SSIM_SIDE = 3  # pixels of the smallest image that has an SSIM: edges are mirrored by 2, which takes one more


def log_cosh(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean of log(cosh(error)): half the square of small errors, the absolute value of large ones less log 2."""
    error = (prediction - target).abs()
    return (error + nn.functional.softplus(-2 * error) - math.log(2)).mean()  # cosh itself would overflow


def ssim(prediction: Tensor, target: Tensor) -> Tensor:
    """1 - structural similarity of images whose pixels lie in [0, 1]."""
    return 1 - structural_similarity(prediction, target).mean()


def structural_similarity(prediction: Tensor, target: Tensor) -> Tensor:
    """SSIM (Wang et al., 2004) of each image (B,), of pixels in [0, 1], by torchmetrics, in float32.

    The usual Gaussian window (standard deviation 1.5, 11 pixels wide); 5 pixels where a side is shorter than 16. No
    side may be shorter than `SSIM_SIDE`.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure  # a second to import

    sigma = 1.5 if min(target.shape[2:]) >= 16 else 0.5
    with torch.autocast(target.device.type, enabled=False):  # variances are differences of nearly equal numbers
        return structural_similarity_index_measure(
            prediction.float(), target.float(), data_range=1.0, sigma=sigma, reduction="none"
        )


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": nn.functional.mse_loss, "l1": nn.functional.l1_loss, "log_cosh": log_cosh, "ssim": ssim
}  # fmt: skip


def parse_loss(text: str) -> list[tuple[float, str]]:
    """The weighted sum that e.g. `mse`, `ssim+l1` or `0.8*ssim+0.2*l1` stands for: (weight, name) of each term.

    Raises InputError for an unknown name or a weight that is not a positive number.

    >>> parse_loss("0.8*ssim+l1")
    [(0.8, 'ssim'), (1.0, 'l1')]
    """
    terms = []
    for term in text.split("+"):
        weight, _, name = term.strip().rpartition("*")
        try:
            factor = float(weight) if weight else 1.0
        except ValueError:
            factor = 0.0
        if name.strip() not in LOSSES or not 0 < factor < math.inf:
            raise InputError(
                f"loss {text!r} is not a sum of {', '.join(LOSSES)}, each with a weight, as in 0.8*ssim+l1"
            )
        terms.append((factor, name.strip()))
    return terms
