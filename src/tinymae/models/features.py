"""The features of any model as one function, whatever its family."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from ..errors import InputError
from .base import Encoder
from .classifier import Classifier, encoder_of


def feature_function(
    model: Encoder | Classifier, *, pool: str | None = None, layers: int | Sequence[int] = 1
) -> Callable[..., Tensor]:
    """A model's function images (B, C, H, W) -> features (B, F).

    `pool` None is avg, or what a classifier's head was trained on. `layers` other than the last are a ViT's.

    Raises InputError for a `pool` or `layers` that it does not have.
    """
    encoder = encoder_of(model)
    if pool is not None:
        encoder.require_pool(pool)
    if not encoder.layered:
        if layers != 1 if isinstance(layers, int) else tuple(layers) != (-1,):
            raise InputError(f"layers {layers}: a {type(encoder).__name__} is no ViT, leave it out")
        return encoder.encode
    given: dict[str, Any] = {"layers": layers} | ({} if pool is None else {"pool": pool})
    return partial(encoder.encode, **given)
