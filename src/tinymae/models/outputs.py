"""What autoencoders give: in training, and to whoever looks at what they reconstruct."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class AutoencoderOutput:
    """What a training step sees."""

    loss: Tensor  # scalar, float32
    reconstruction: Tensor  # (B, C, H, W), normalised
    terms: dict[str, Tensor] = field(default_factory=dict)  # scalars worth logging: parts of the loss, code usage


@dataclass(repr=False)
class Reconstruction:
    """What `reconstruct` returns; images are float (B, C, H, W) in [0, 1].

    Of a model that hides nothing, `images` and `prediction` are the same, and so are `original` and `masked`.
    Errors are squared differences of such pixels, averaged. A MaskedAutoencoder's visible patches have one as well, but
    training never asked for it: the model saw the patch and was not asked to copy it.
    """

    original: Tensor  # the images that were given
    images: Tensor  # the answer: visible patches as given, hidden ones as predicted
    prediction: Tensor  # the model's own version of every patch, hidden or not
    masked: Tensor  # what the encoder saw, hidden patches in mid-grey
    mask: Tensor | None = None  # bool (B, N), True = hidden; None of a model without masks
    statistics: str = "none"  # whose mean and std the hidden patches got: "none" needed, "visible" or "target"
    patch_error: Tensor | None = None  # (B, N): mean squared error of `prediction`, of every patch; None without masks

    def __repr__(self) -> str:  # the shapes of its tensors, not their values
        shown = {name: tuple(value.shape) if isinstance(value, Tensor) else value for name, value in vars(self).items()}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    @property
    def error(self) -> Tensor:
        """Mean squared error of each image's hidden patches (B,); of all of it where nothing is hidden."""
        if self.mask is None or self.patch_error is None:
            return (self.prediction - self.original).square().mean(dim=(1, 2, 3))
        counted = self.mask | ~self.mask.any(dim=1, keepdim=True)
        return (self.patch_error * counted).sum(dim=1) / counted.sum(dim=1)

    @property
    def columns(self) -> dict[str, Tensor]:
        """What a sheet of reconstructions shows, by its headings."""
        masked = {} if self.mask is None else {"masked": self.masked}
        return {"original": self.original, **masked, "reconstruction": self.images}
