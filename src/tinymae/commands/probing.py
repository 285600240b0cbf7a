"""What probes of frozen encoders share, whatever they score: their settings, and the controls."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from typing_extensions import Self

from ..errors import InputError
from ..files import digest
from ..models.base import Autoencoder
from ..randomness import derive_seed
from .features import WeightsSettings, place
from .fields import setting, with_default
from .settings import LabelSettings, Pool

A = TypeVar("A", bound=Autoencoder)


@dataclass(frozen=True, kw_only=True)
class LinearProbeSettings(LabelSettings, WeightsSettings):
    """Settings of probing."""

    heading = "probe"
    output_dir: str | Path = with_default(LabelSettings, "output_dir", "runs/linear_probe")
    pool: Pool = setting("avg", "the mean of the patch tokens, or the class token")
    head: Literal["linear", "mlp"] = setting("linear", "what is trained on the features")
    masks: str | Path | None = setting(
        None, "segmentation: a 1x1 convolution on the patches of a ViT, learned from this folder of PNG masks with the "
        "images' relative names; pixels are classes from 0, 255 is none", group="data",
    )  # fmt: skip
    controls: Literal["all", "untrained", "raw_pixels"] | None = setting(
        None, "score an untrained encoder and raw pixels as well, or one of them", const="all"
    )

    def resolve(self) -> Self:
        """See `RunSettings.resolve`."""
        if self.masks is not None and (self.head, self.pool) != ("linear", "avg"):
            raise InputError(f"head {self.head}, pool {self.pool}: leave both out with masks")
        return super().resolve()


def score_with_controls(
    settings: LinearProbeSettings, model: A, accelerator: Accelerator,
    score: Callable[[str, A | None], tuple[dict, nn.Module, Tensor]],
) -> tuple[dict, nn.Module, Tensor]:  # fmt: skip
    """What `score` gives for the frozen model: scores, a head and its predictions. Among the scores are those of the
    controls, by name. It takes a name and an encoder; None stands for the raw pixels.
    """
    before = digest(model.state_dict())
    results, head, predictions = score("pretrained", model)
    if digest(model.state_dict()) != before:
        raise RuntimeError("the encoder changed while it was probed")  # a bug of ours, never the user's doing
    results |= {"encoder_sha256": before, "encoder_unchanged": True}
    if settings.controls in ("all", "raw_pixels"):
        results["raw_pixels"], *_ = score("raw_pixels", None)
    if settings.controls in ("all", "untrained"):
        results["untrained"], *_ = score("untrained", untrained_twin(model, accelerator, seed=settings.seed))
    return results, head, predictions


def untrained_twin(model: A, accelerator: Accelerator, *, seed: int) -> A:
    """The same model with random weights, on the same device: a control."""
    torch.manual_seed(derive_seed(seed, "weights"))
    return place(type(model)(**model.config), accelerator)
