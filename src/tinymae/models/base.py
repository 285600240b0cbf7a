"""What every autoencoder is: images in, features and reconstructions out, and a folder on disk."""

import copy
import inspect
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn
from typing_extensions import Self

from ..errors import InputError, first_line, refusal, warn
from ..files import require_types, write_json, write_tensors
from ..randomness import Draws
from ..tensors import pair
from .filling import build_from_file
from .losses import LOSSES, SSIM_SIDE, parse_loss
from .outputs import AutoencoderOutput, Reconstruction
from .pixels import describe_pixels, normalise, readable
from .pretrained import Pretrained

LOOKS = 20  # at batches of floats, to see whether anyone normalised them: each waits for the GPU


class Encoder(nn.Module):
    """Images in, features out: what a classifier stands on.

    Args:
        image_size: pixels, one number or (height, width).
        in_channels: channels of the images.
        mean, std: per channel, or one value for all, of pixels in [0, 1]; uint8 images are normalised by them.

    Raises:
        InputError: sizes below 1, a mean or std with as many values as neither one nor the channels, a std that is 0.
    """

    num_features: int  # the width of `encode`
    looks = {True: LOOKS, False: LOOKS}  # noqa: RUF012  # that are left, in training and in evaluation; never written into
    pools: tuple[str, ...] = ("avg",)  # how its tokens can become features: "cls" needs a class token
    pool = "avg"  # the one of them that `encode` takes by default
    layered = False  # whether it is a ViT: `encode` takes `pool` and `layers`, and `encode_dense` gives a map

    def __init__(
        self, *, image_size: int | Sequence[int], in_channels: int, mean: Sequence[float], std: Sequence[float]
    ):
        super().__init__()
        self.image_size, self.in_channels = pair(image_size), in_channels
        if min(*self.image_size, in_channels) < 1:
            raise InputError(f"image_size {image_size} or in_channels {in_channels} is below 1")
        self.statistics = {"mean": [*map(float, mean)], "std": [*map(float, std)]}  # with all digits, for files
        self.mean: Tensor
        self.std: Tensor
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, in_channels):
                raise InputError(f"{name} has {len(values)} values for in_channels {in_channels}")
            if not all(math.isfinite(value) and (value > 0 or name == "mean") for value in values):
                raise InputError(f"{name} {[*map(float, values)]} is not finite, or a std not above 0")
            # Not in the weights file: they are part of the config.
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def _apply(self, fn, recurse=True):
        """Whatever type the weights get, mean and std stay float32: no `.float()` would bring their digits back."""
        exact = {"mean": self.mean, "std": self.std}
        super()._apply(fn, recurse)
        for name, values in exact.items():
            found = getattr(self, name)
            if found.dtype != values.dtype:
                setattr(self, name, values.to(found.device))
        return self

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights, which normalised images get as well."""
        for parameter in self.parameters():  # not next with a default, which torch 2.6 cannot compile
            return parameter.dtype
        return self.mean.dtype

    def encode(self, images: Tensor) -> Tensor:
        """Features (B, num_features) of uint8 or normalised float images (B, C, H, W); deterministic."""
        raise NotImplementedError

    def encode_dense(self, images: Tensor, *, layer: int = -1) -> Tensor:
        """A feature map (B, D, rows, columns) of a ViT. Raises InputError for other families."""
        raise InputError(f"a {type(self).__name__} is no ViT: it has no dense features")

    def normalise(self, images: Tensor) -> Tensor:
        """Images uint8 or uint16 (B, C, H, W) -> float, by the data's mean and std; float images pass as they are.

        One image (C, H, W) is a batch of one. They come to the model's device. Raises InputError for what is no tensor,
        or if the shape is not the model's.

        >>> from tinymae import MaskedAutoencoder
        >>> model = MaskedAutoencoder(image_size=8, depth=1, mean=(0.5,), std=(0.25,))
        >>> model.normalise(torch.full((3, 8, 8), 255, dtype=torch.uint8)).unique()
        tensor([2.])
        """
        if not isinstance(images, Tensor):
            shape = ", ".join(map(str, (self.in_channels, *self.image_size)))
            raise InputError(
                f"images are of type {type(images).__name__}: give a tensor (batch, {shape}), as torch.from_numpy "
                "makes of an array; tinymae.Features takes arrays and Pillow images, the commands take files"
            )
        compiling = torch.compiler.is_compiling()
        ours = compiling or getattr(images, "of_normalise", False)  # methods call each other with what they normalised
        if images.is_floating_point() and not ours and self.looks[self.training] and readable(images):
            self.looks = self.looks | {self.training: self.looks[self.training] - 1}
            if doubt := describe_pixels(images, self.mean, self.std):
                self.looks = dict.fromkeys(self.looks, 0)
                warn(f"{doubt}, and are taken as normalised already: give uint8 pixels, which the model normalises")
        given = images
        if images.device != self.mean.device:
            images = images.to(self.mean.device)
        found = normalise(images, self.mean, self.std, (self.in_channels, *self.image_size)).to(self.dtype)
        if found is not given and not compiling:
            vars(found)["of_normalise"] = True
        return found

    def denormalise(self, images: Tensor) -> Tensor:
        """Normalised float images (B, C, H, W) -> pixels in [0, 1], clipped to it.

        >>> from tinymae import MaskedAutoencoder
        >>> model = MaskedAutoencoder(image_size=8, depth=1, mean=(0.5,), std=(0.25,))
        >>> model.denormalise(torch.tensor([-1.0, 0.0, 9.0]).view(1, 1, 1, 3).expand(1, 3, 1, 3)).unique()
        tensor([0.2500, 0.5000, 1.0000])
        """
        return (images.float() * self.std + self.mean).clamp(0, 1)

    def encoder_and_head(
        self, num_classes: int, *, pool: str = "avg", drop_path: float = 0.0, patch_drop: float = 0.0
    ) -> tuple["Encoder", nn.Linear]:
        """The two halves of a classifier that starts at these features: a copy of this model, and a new linear layer.
        `drop_path` and `patch_drop` are for ViTs.

        Raises InputError for a `pool` that it does not have.
        """
        raise NotImplementedError

    def compile_core(self) -> None:
        """`torch.compile` the layers, in place: a copy of the model is not compiled."""
        for child in self.children():
            for layer in child if isinstance(child, nn.ModuleList) else [child]:
                layer.compile()

    def save_memory(self) -> None:
        """Compute activations again in the backward pass. Raises InputError where that is not provided for."""
        raise InputError(f"gradient_checkpointing is not available for {type(self).__name__}: leave it out")

    def require_pool(self, pool: str) -> None:
        """Raises InputError for a `pool` that this encoder does not have."""
        if pool not in self.pools:
            known = " or ".join(map(repr, self.pools))
            raise InputError(f"pool {pool!r} is not {known}, which is what a {type(self).__name__} like this has")


class Autoencoder(Encoder, Pretrained):
    """The part that all families share. A family adds `num_features`, `encode` and `forward`.

    Methods take one image (C, H, W) for a batch of one: what they return keeps B = 1. What a family can do beyond the
    common part stands in the attributes of its class.

    Attributes:
        config: the arguments that the constructor was called with, defaults included, as they go into config.json.
    """

    hides_patches = False  # whether `forward` and `reconstruct` take a mask
    samples = False  # whether it has `sample`
    fitted = False  # whether `fit` finds it at once, instead of gradients
    decoder_parts: tuple[str, ...] = ()  # the children that `encode` makes no use of
    ends: tuple[str, ...] = ()  # the weights of its first and its last layer, which Muon leaves to AdamW
    config: dict[str, Any]

    def __new__(cls, *args, **kwargs):
        instance = super().__new__(cls, *args, **kwargs)
        try:
            bound = inspect.signature(cls.__init__).bind(instance, *args, **kwargs)
        except TypeError:  # copies and pickles give no arguments, and bring a config; anyone else hears of it next
            return instance
        bound.apply_defaults()
        arguments = dict(list(bound.arguments.items())[1:])  # without self
        for parameter in bound.signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                arguments |= arguments.pop(parameter.name)
            elif parameter.kind is parameter.VAR_POSITIONAL and (given := arguments.pop(parameter.name)):
                raise InputError(
                    f"{cls.__name__} is given {given[0]!r} without a name, which config.json needs: name it"
                )
        for name in ("image_size", "patch_size"):
            if name in arguments:
                arguments[name] = list(pair(arguments[name]))
        for name in ("mean", "std"):
            if name in arguments:
                arguments[name] = [float(value) for value in arguments[name]]
        instance.config = arguments
        return instance

    def __init__(self):
        names = ("image_size", "in_channels", "mean", "std")
        if missing := [name for name in names if name not in self.config]:
            raise InputError(
                f"the constructor of {type(self).__name__} does not name {', '.join(missing)}: give it these "
                "arguments, with defaults, beside any **kwargs"
            )
        super().__init__(**{name: self.config[name] for name in names})
        self.loss_terms = parse_loss(self.config.get("loss", "mse"))
        if min(self.image_size) < SSIM_SIDE and "ssim" in [name for _, name in self.loss_terms]:
            loss, size = self.config["loss"], self.image_size
            raise InputError(f"loss {loss!r} of image_size {size}: ssim wants {SSIM_SIDE} pixels a side; leave it out")

    # ---- what users and scripts call

    def forward(self, images: Tensor) -> AutoencoderOutput:
        """Loss and reconstruction of uint8 or normalised float images (B, C, H, W)."""
        raise NotImplementedError

    def training_losses(self, images: Tensor, **drawn) -> dict[str, Tensor]:
        """Scalars of one training pass: "loss", to be minimised, and parts of it worth logging. `drawn`: see `draw`."""
        output = self(images, **drawn)
        return {"loss": output.loss, **output.terms}

    def encoder_and_head(
        self, num_classes: int, *, pool: str = "avg", drop_path: float = 0.0, patch_drop: float = 0.0
    ) -> tuple[Encoder, nn.Linear]:
        """See `Encoder.encoder_and_head`; what `encode` makes no use of is frozen in the copy."""
        self.require_pool(pool)
        encoder = copy.deepcopy(self)
        for name in self.decoder_parts:
            getattr(encoder, name).requires_grad_(False)
        return encoder, nn.Linear(self.num_features, num_classes)

    @property
    def end_weights(self) -> list[nn.Parameter]:
        """The weights that `ends` names."""
        return [self.get_parameter(name) for name in self.ends]

    def draw(self, draws: Draws) -> dict[str, Any]:
        """What `forward` draws at random, as keyword arguments, made from a step's `Draws`: nothing."""
        return {}

    def after_step(self, accelerator=None, generator: torch.Generator | None = None) -> None:
        """What moves after an optimiser step and is not the optimiser's: nothing.

        The `accelerator` is that of several processes; the `generator` is torch's own if not given.
        """

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """New images, float (count, C, H, W) in [0, 1], of a family with `samples`. `generator` lives on the CPU."""
        raise InputError(f"a {type(self).__name__} has nothing to sample from")

    @torch.no_grad()
    def reconstruct(self, images: Tensor, *, generator: torch.Generator | None = None) -> Reconstruction:
        """The images (uint8 or normalised float, (B, C, H, W)) and what the model makes of them."""
        return self.compare(images, self(images).reconstruction)

    def compare(self, images: Tensor, reconstruction: Tensor) -> Reconstruction:
        """Images as given beside normalised reconstructions of all of their pixels."""
        original, prediction = self.denormalise(self.normalise(images)), self.denormalise(reconstruction)
        return Reconstruction(original=original, images=prediction, prediction=prediction, masked=original)

    def reconstruction_loss(self, prediction: Tensor, images: Tensor) -> Tensor:
        """The sum that the `loss` argument names, of normalised images (B, C, H, W), in float32.

        SSIM is taken of pixels in [0, 1], the others of normalised ones.
        """
        prediction, images = prediction.float(), images.float()
        total = prediction.new_zeros(())
        for weight, name in self.loss_terms:
            pixels = (prediction, images)
            if name == "ssim":
                pixels = (prediction * self.std + self.mean, images * self.std + self.mean)
            total = total + weight * LOSSES[name](*pixels)
        return total

    # ---- weights on disk

    def write_weights(self, folder: str | Path) -> None:
        """`model.safetensors` and `config.json`, each written atomically."""
        write_tensors(self.state_dict(), Path(folder) / "model.safetensors")
        about = {"architecture": type(self).__name__, **self.config, **self.reading_noted}
        write_json(Path(folder) / "config.json", about)

    @classmethod
    def build_from_folder(cls, folder: Path, config: dict) -> Self:
        """See `Pretrained.build_from_folder`."""
        return build_from_file(lambda: cls.from_config(config, source=folder), folder / "model.safetensors")

    @classmethod
    def from_config(cls, config: dict, *, source: str | Path) -> Self:
        """A new model with a config.json's arguments.

        Raises InputError for any that the family does not have, that is of another type, or that cannot work.
        """
        arguments = {name: value for name, value in config.items() if name != "architecture"}
        known = constructor_arguments(cls)
        if unknown := sorted(arguments.keys() - known.keys()):
            names = ", ".join(map(repr, unknown))
            raise InputError(f"{source}: config.json has {names}, which a {cls.__name__} does not know")
        types = {name: known[name] for name in arguments if known[name] is not None}
        require_types(arguments, types, source=f"{source}: config.json")
        try:
            return cls(**arguments)
        except InputError as error:
            raise InputError(f"{source}: config.json: {error}") from None
        except (RuntimeError, TypeError, ValueError, ArithmeticError) as error:  # sizes no tensor can have
            reason = first_line(error)
            raise refusal(error, f"{source}: config.json does not describe a {cls.__name__} ({reason})") from None


def constructor_arguments(family: type[Autoencoder]) -> dict[str, Any]:
    """The arguments of a family's constructor and their annotations, None without one; those behind its `**kwargs` are
    the constructor's that it extends.
    """
    known: dict[str, Any] = {}
    for extended in family.__mro__:
        constructor = extended.__init__  # type: ignore[misc]  # of a class
        hints = get_type_hints(constructor)
        parameters = list(inspect.signature(constructor).parameters.values())[1:]  # without self
        named = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        known = {name: hints.get(name) for name in named} | known
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    return known
