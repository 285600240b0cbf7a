"""What every autoencoder is: images in, features and reconstructions out, and a folder on disk."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from torch import Tensor, nn

from ..files import InputError, load_weights_strictly, read_json, write_tensors
from ..losses import LOSSES, parse_loss


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size given as one number or two."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def normalise(images: Tensor, mean: Tensor, std: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """uint8 images -> float, by the data's mean and std of pixels in [0, 1]; float images are taken as normalised.

    One image is a batch of one. Raises InputError unless `images` is (B, *shape) or of that `shape`, and for other
    integers than uint8.
    """
    images = images[None] if images.ndim == 3 else images
    if images.ndim != 4 or tuple(images.shape[1:]) != shape:
        raise InputError(
            f"images have shape {tuple(images.shape)}, this model wants (batch, {', '.join(map(str, shape))})"
        )
    if images.dtype == torch.uint8:
        return (images.float() / 255 - mean) / std
    if not images.is_floating_point():
        raise InputError(f"images are {images.dtype}: give torch.uint8, 0 to 255, or normalised floats")
    return images.to(mean.dtype)


@dataclass
class AutoencoderOutput:
    """What a training step sees."""

    loss: Tensor  # scalar, float32
    reconstruction: Tensor  # (B, C, H, W), normalised
    terms: dict[str, Tensor] = field(default_factory=dict)  # scalars worth logging: parts of the loss, code usage


@dataclass
class Reconstruction:
    """What `reconstruct` returns; pictures are float (B, C, H, W) in [0, 1].

    Of a model that hides nothing, `images` and `prediction` are the same, and so are `original` and `masked`.
    Errors are squared differences of such pixels, averaged. A MaskedAutoencoder's visible patches have one as well, but
    training never asked for it: the model saw the patch and was not told to copy it.
    """

    original: Tensor  # the images that were given
    images: Tensor  # the answer: visible patches as given, hidden ones as predicted
    prediction: Tensor  # the model's own picture of every patch, hidden or not
    masked: Tensor  # what the encoder saw, hidden patches in mid-grey
    mask: Tensor | None = None  # bool (B, N), True = hidden; None of a model without masks
    statistics: str = "none"  # whose mean and deviation the hidden patches got: "none" needed, "visible" or "target"
    patch_error: Tensor | None = None  # (B, N): mean squared error of `prediction`, of every patch; None without masks

    @property
    def error(self) -> Tensor:
        """Mean squared error of each picture's hidden patches (B,); of all of it where nothing is hidden."""
        if self.mask is None or self.patch_error is None:
            return (self.prediction - self.original).square().mean(dim=(1, 2, 3))
        counted = self.mask | ~self.mask.any(dim=1, keepdim=True)
        return (self.patch_error * counted).sum(dim=1) / counted.sum(dim=1)

    @property
    def columns(self) -> dict[str, Tensor]:
        """What a sheet of reconstructions shows, by its headings."""
        masked = {} if self.mask is None else {"masked": self.masked}
        return {"original": self.original, **masked, "reconstruction": self.images}


class Autoencoder(nn.Module, PyTorchModelHubMixin, library_name="tinymae", license="mit"):
    """The part that all families share. A family adds `num_features`, `encode` and `forward`.

    Methods take one image (C, H, W) for a batch of one: what they return keeps B = 1.

    Args:
        config: the constructor's arguments, as they go into config.json: at least `image_size`, `in_channels`, `mean`
            and `std` (per channel, of pixels in [0, 1]; uint8 images are normalised by them).

    Raises:
        InputError: as many means or deviations as neither one nor the channels.
    """

    num_features: int  # the width of `encode`
    source: Path | None = None  # the folder that the weights came from

    def __init__(self, config: dict):
        super().__init__()
        self.image_size, self.in_channels = pair(config["image_size"]), config["in_channels"]
        self.config = config | {
            "image_size": list(self.image_size), "mean": [float(m) for m in config["mean"]],
            "std": [float(s) for s in config["std"]],
        }  # fmt: skip
        self.mean: Tensor
        self.std: Tensor
        for name in ("mean", "std"):
            if len(config[name]) not in (1, self.in_channels):
                raise InputError(f"{name} has {len(config[name])} values for in_channels {self.in_channels}")
            # Not in the weights file: they are part of the config.
            values = torch.tensor(config[name], dtype=torch.float32).view(-1, 1, 1)
            self.register_buffer(name, values, persistent=False)
        self.loss_terms = parse_loss(config.get("loss", "mse"))

    # ---- what users and scripts call

    def encode(self, images: Tensor) -> Tensor:
        """Features (B, num_features) of uint8 or normalised float images (B, C, H, W); deterministic."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> AutoencoderOutput:
        """One training pass over uint8 or normalised float images (B, C, H, W)."""
        raise NotImplementedError

    def draw(self, draws) -> dict[str, Tensor]:
        """What `forward` draws at random, as keyword arguments, made from a step's `Draws`: nothing."""
        return {}

    def after_step(self, accelerator, generator: torch.Generator) -> None:
        """What moves after an optimiser step and is not the optimiser's: nothing."""

    def compile_core(self) -> None:
        """`torch.compile` what is worth it: here, the whole module."""
        self.compile()

    def save_memory(self) -> None:
        """Compute activations again in the backward pass. Raises InputError where that is not provided for."""
        raise InputError(f"gradient_checkpointing is not available for {type(self).__name__}: leave it out")

    @torch.no_grad()
    def reconstruct(self, images: Tensor, *, generator: torch.Generator | None = None) -> Reconstruction:
        """The images (uint8 or normalised float, (B, C, H, W)) and what the model makes of them."""
        return self.compare(images, self(images).reconstruction)

    def compare(self, images: Tensor, reconstruction: Tensor) -> Reconstruction:
        """Images as given beside normalised reconstructions of all of their pixels."""
        original, prediction = self.denormalise(self.normalise(images)), self.denormalise(reconstruction)
        return Reconstruction(original=original, images=prediction, prediction=prediction, masked=original)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 images (B, C, H, W) -> float, by the data's mean and std; float images pass as they are.

        One image (C, H, W) is a batch of one. Raises InputError if the shape is not the model's.

        >>> from tinymae import MaskedAutoencoder
        >>> model = MaskedAutoencoder(image_size=8, depth=1, mean=(0.5,), std=(0.25,))
        >>> model.normalise(torch.full((3, 8, 8), 255, dtype=torch.uint8)).unique()
        tensor([2.])
        """
        return normalise(images, self.mean, self.std, (self.in_channels, *self.image_size))

    def denormalise(self, images: Tensor) -> Tensor:
        """Normalised float images (B, C, H, W) -> pixels in [0, 1], clipped to it.

        >>> from tinymae import MaskedAutoencoder
        >>> model = MaskedAutoencoder(image_size=8, depth=1, mean=(0.5,), std=(0.25,))
        >>> model.denormalise(torch.tensor([-1.0, 0.0, 9.0]).view(1, 1, 1, 3).expand(1, 3, 1, 3)).unique()
        tensor([0.2500, 0.5000, 1.0000])
        """
        return (images.float() * self.std + self.mean).clamp(0, 1)

    def reconstruction_loss(self, prediction: Tensor, images: Tensor) -> Tensor:
        """The sum that the `loss` argument names, of normalised images (B, C, H, W), in float32.

        SSIM is taken of pixels in [0, 1], the others of normalised ones.
        """
        prediction, total = prediction.float(), prediction.new_zeros((), dtype=torch.float32)
        for weight, name in self.loss_terms:
            pictures = (prediction, images)
            if name == "ssim":
                pictures = (prediction * self.std + self.mean, images * self.std + self.mean)
            total = total + weight * LOSSES[name](*pictures)
        return total

    # ---- weights on disk

    def save_pretrained(self, save_directory: str | Path, **kwargs) -> str | None:
        """Write `model.safetensors`, `config.json` and a model card into a folder, as on the Hugging Face Hub.

        The card of the folder that the model was loaded from, with its pictures, goes along; `push_to_hub` likewise.

        >>> import tempfile
        >>> from tinymae import MaskedAutoencoder
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = MaskedAutoencoder(image_size=8, patch_size=2, depth=1).save_pretrained(folder)
        ...     sorted(path.name for path in Path(folder).iterdir())
        ['README.md', 'config.json', 'model.safetensors']
        """
        return super().save_pretrained(
            save_directory, config={"architecture": type(self).__name__, **self.config}, **kwargs
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        """Called by the mixin's `save_pretrained` and `push_to_hub`; unlike the mixin's own it adds a checksum."""
        write_tensors(self.state_dict(), save_directory / "model.safetensors")
        if self.source is not None and self.source.resolve() != save_directory.resolve():
            for file in (*self.source.glob("README.md"), *self.source.glob("*.png")):
                shutil.copy(file, save_directory)

    @classmethod
    def from_pretrained(cls, folder_or_hub_id: str | Path, **kwargs):  # type: ignore[override]  # its name says more
        """The model of a local folder or of the Hugging Face Hub, in evaluation mode.

        >>> import tempfile
        >>> from tinymae import MaskedAutoencoder
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = MaskedAutoencoder(image_size=8, patch_size=2, depth=1).save_pretrained(folder)
        ...     MaskedAutoencoder.from_pretrained(folder).num_features
        192

        Raises InputError if there is none, or if its weights are damaged or of another architecture.
        """
        if (folder := Path(folder_or_hub_id)).is_dir():
            architecture = read_json(folder / "config.json").get("architecture")
            if architecture != cls.__name__:
                raise InputError(f"weights folder {folder} holds a {architecture}, not a {cls.__name__}")
        try:
            return super().from_pretrained(folder_or_hub_id, **kwargs)
        except (HFValidationError, HfHubHTTPError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"weights folder {folder_or_hub_id} does not exist, and the Hugging Face Hub gave nothing ({reason})"
            ) from None

    @classmethod
    def _from_pretrained(cls, *, model_id: str, map_location: str = "cpu", strict: bool = True, **kwargs):
        """Called by the mixin's `from_pretrained`; unlike the mixin's own it refuses anything but an exact match."""
        download = {
            key: kwargs.pop(key) for key in ("revision", "cache_dir", "force_download", "local_files_only", "token")
        }
        for key in ("proxies", "resume_download"):  # huggingface_hub before its release 1 passes them
            kwargs.pop(key, None)
        folder = Path(model_id)
        if folder.is_dir():
            weights = folder / "model.safetensors"
        else:
            weights = hf_hub_download(model_id, "model.safetensors", **download)
        model = cls(**kwargs)
        load_weights_strictly(model, weights)
        model.source = folder if folder.is_dir() else None
        return model.to(map_location).eval()
