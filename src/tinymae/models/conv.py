"""Convolutional autoencoders: a plain one and a variational one."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..randomness import Draws
from .base import Autoencoder
from .outputs import AutoencoderOutput


def halvings(image_size: tuple[int, int], depth: int | None) -> list[tuple[int, int]]:
    """(height, width) of an image and of its `depth` successive halvings, rounded up.

    Without a depth, as many as leave a shorter side of at least 2. Raises InputError where one pixel would be halved.
    """
    sizes = [image_size]
    while len(sizes) <= depth if depth is not None else min(sizes[-1]) > 2:
        height, width = sizes[-1]
        if min(height, width) < 2:
            raise InputError(f"depth {depth} halves image_size {image_size} below one pixel: at most {len(sizes) - 1}")
        sizes.append((-(-height // 2), -(-width // 2)))
    if len(sizes) < 2 and depth is None:
        raise InputError(f"image_size {image_size} is halved only where depth says so: give depth 1, or larger images")
    if len(sizes) < 2:
        raise InputError(f"depth {depth} leaves image_size {image_size} as it is: use at least 1")
    return sizes


def channels_at(width: int, depth: int) -> list[int]:
    """Channels after each of `depth` halvings: `width`, doubled from one to the next, up to 256.

    Raises InputError unless `width` is a multiple of 8, for the groups of GroupNorm.
    """
    if width < 8 or width % 8:
        raise InputError(f"width {width} is not a multiple of 8")
    return [min(width * 2**level, max(256, width)) for level in range(depth)]


class ConvLayer(nn.Sequential):
    """3x3 convolution, GroupNorm, GELU. No batch statistics: a batch may be split over processes as one likes."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1):
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
            nn.GroupNorm(8, out_channels),
            nn.GELU(),
        )


class ConvEncoder(nn.Sequential):
    """Images (B, C, H, W) -> (B, channels[-1], h, w): at each halving a strided layer and another one."""

    def __init__(self, in_channels: int, channels: list[int]):
        layers = []
        for before, after in pairwise([in_channels, *channels]):
            layers += [ConvLayer(before, after, stride=2), ConvLayer(after, after)]
        super().__init__(*layers)


class ConvDecoder(nn.Module):
    """(B, channels[-1], h, w) -> images (B, C, H, W): up through the sizes, by nearest neighbours and convolutions."""

    def __init__(self, out_channels: int, channels: list[int], sizes: list[tuple[int, int]]):
        super().__init__()
        self.sizes = sizes[-2::-1]  # from the second smallest up to the image's
        upward = channels[::-1]
        layers = [
            nn.Sequential(ConvLayer(before, after), ConvLayer(after, after)) for before, after in pairwise(upward)
        ]
        self.layers = nn.ModuleList([*layers, ConvLayer(channels[0], channels[0])])
        self.to_images = nn.Conv2d(channels[0], out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for size, layer in zip(self.sizes, self.layers, strict=True):
            x = layer(nn.functional.interpolate(x, size=size))
        return self.to_images(x)


class ConvAutoencoder(Autoencoder, tags=["autoencoder"]):
    """A convolutional autoencoder without skip connections.

    Args:
        image_size: pixels, one number or (height, width).
        in_channels: channels of the images.
        depth: how often the image is halved; None: until the shorter side is 2 pixels.
        width: channels after the first halving, a multiple of 8; they double with each halving, up to 256.
        latent_dim: numbers in the latent vector; None: the encoder's map, such as 256x2x2.
        loss: mse, l1, log_cosh, ssim, or a sum such as 0.8*ssim+0.2*l1.
        mean, std: per channel, of pixels in [0, 1].

    Raises:
        InputError: a depth that the image size does not allow, a width that is no multiple of 8, an unknown loss.
    """

    decoder_parts = ("from_latents", "decoder")
    heads = 1  # numbers that the encoder gives for each of the latent's

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] = 32,
        in_channels: int = 3,
        depth: int | None = None,
        width: int = 64,
        latent_dim: int | None = None,
        loss: str = "mse",
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
    ):
        super().__init__()
        sizes = halvings(self.image_size, depth)
        channels = channels_at(width, len(sizes) - 1)
        self.map_shape = (channels[-1], *sizes[-1])
        self.encoder = ConvEncoder(in_channels, channels)
        self.decoder = ConvDecoder(in_channels, channels, sizes)
        flat = math.prod(self.map_shape)
        if latent_dim is not None and latent_dim < 1:
            raise InputError(f"latent_dim {latent_dim} is below 1")
        self.num_features = latent_dim or flat
        self.to_latents = nn.Linear(flat, self.heads * latent_dim) if latent_dim else nn.Identity()
        self.from_latents = nn.Linear(latent_dim, flat) if latent_dim else nn.Identity()

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, num_features) -> normalised images (B, C, H, W)."""
        return self.decoder(self.from_latents(latents.to(self.dtype)).unflatten(1, self.map_shape))

    def encode(self, images: Tensor) -> Tensor:
        """The latents (B, num_features) of uint8 or normalised float images (B, C, H, W)."""
        return self.to_latents(self.encoder(self.normalise(images)).flatten(1))

    def forward(self, images: Tensor) -> AutoencoderOutput:
        """Encode, decode, compare. Images uint8 or normalised float (B, C, H, W)."""
        images = self.normalise(images)
        reconstruction = self.decode(self.encode(images))
        return AutoencoderOutput(self.reconstruction_loss(reconstruction, images), reconstruction)


class VariationalAutoencoder(ConvAutoencoder, tags=["vae"]):
    """A Gaussian VAE: Kingma and Welling, arXiv 1312.6114; with beta, Higgins et al., 2017. Features are the means.

    The loss is reconstruction + beta * KL / values of an image, the KL divergence being that of the latents' Gaussian
    from the standard one, summed over its dimensions. With `mse` and beta 1 this is the negative evidence lower bound
    per value, for a Gaussian decoder of variance 1/2 on normalised pixels.

    Args:
        latent_dim: numbers in the latent vector.
        beta: weight of the KL divergence, at least 0.
        kl_warmup_steps: optimiser steps over which beta rises linearly from 0.
        others: as for ConvAutoencoder.

    Raises:
        InputError: as ConvAutoencoder; a negative beta, no latent_dim.
    """

    samples = True
    heads = 2  # a mean and a log variance

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] = 32,
        in_channels: int = 3,
        depth: int | None = None,
        width: int = 64,
        latent_dim: int = 128,
        beta: float = 1.0,
        kl_warmup_steps: int = 0,
        loss: str = "mse",
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
    ):
        if beta < 0:
            raise InputError(f"beta {beta} is negative")
        if latent_dim is None:
            raise InputError("latent_dim None: the latents of a VariationalAutoencoder are a vector; give its length")
        super().__init__(
            image_size=image_size, in_channels=in_channels, depth=depth, width=width, latent_dim=latent_dim, loss=loss,
            mean=mean, std=std,
        )  # fmt: skip
        self.beta, self.kl_warmup_steps = beta, kl_warmup_steps

    def encode_distribution(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latents, each (B, latent_dim), in float32."""
        mean, log_variance = self.to_latents(self.encoder(self.normalise(images)).flatten(1)).float().chunk(2, dim=1)
        return mean, log_variance.clamp(-20, 20)

    def encode(self, images: Tensor) -> Tensor:
        """The means of the latents (B, latent_dim)."""
        return self.encode_distribution(images)[0]

    def draw(self, draws: Draws) -> dict[str, Any]:
        """The noise of the reparameterisation trick, and beta during its warm-up."""
        reached = min(1.0, draws.step / self.kl_warmup_steps) if self.kl_warmup_steps else 1.0
        beta = torch.full((), self.beta * reached, device=draws.device)
        return {"noise": draws.normal(self.num_features), "beta": beta}

    def forward(self, images: Tensor, noise: Tensor | None = None, beta: Tensor | None = None) -> AutoencoderOutput:
        """One training pass; `noise` (B, latent_dim), standard normal, is drawn from torch's state if not given."""
        images = self.normalise(images)
        mean, log_variance = self.encode_distribution(images)
        noise = torch.randn_like(mean) if noise is None else noise
        reconstruction = self.decode(mean + (0.5 * log_variance).exp() * noise)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1).mean()
        error = self.reconstruction_loss(reconstruction, images)
        loss = error + (self.beta if beta is None else beta) * divergence / images[0].numel()
        return AutoencoderOutput(loss, reconstruction, {"reconstruction_loss": error, "kl": divergence})

    @torch.no_grad()
    def reconstruct(self, images: Tensor, *, generator: torch.Generator | None = None):
        """The images and their reconstructions from the means: nothing is drawn. See `Autoencoder.reconstruct`."""
        return self.compare(images, self.decode(self.encode(images)))

    @torch.no_grad()
    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """New images from the prior: float (count, C, H, W) in [0, 1]. `generator` lives on the CPU."""
        latents = torch.randn(count, self.num_features, generator=generator).to(self.mean.device)
        return self.denormalise(self.decode(latents))
