"""A vector-quantised autoencoder: each place of a small map holds one of a few hundred codes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..tensors import to_device
from .base import Autoencoder
from .conv import ConvDecoder, ConvEncoder, channels_at, halvings
from .outputs import AutoencoderOutput


class VectorQuantizer(nn.Module):
    """A codebook, learned as moving averages (van den Oord et al., arXiv 1711.00937, appendix A.1).

    Codes that fall out of use start anew beside the most used ones, which so share their load (the splitting of Linde,
    Buzo and Gray, 1980). Nothing but sums over the batch and a seeded draw enters an update, so any number of processes
    and of micro-batches learns the same codes. `update` applies what the passes with `learn` have seen since the last.
    """

    def __init__(self, codebook_size: int, code_dim: int, positions: int, *, decay: float = 0.99):
        super().__init__()
        self.decay = decay
        self.codes: Tensor
        self.counts: Tensor
        self.sums: Tensor
        self.place_counts: Tensor
        self.register_buffer("codes", torch.randn(codebook_size, code_dim))
        self.register_buffer("counts", torch.ones(codebook_size))  # moving average of how often each code is used
        self.register_buffer("sums", self.codes.clone())  # and of the sum of the vectors it stood for
        self.register_buffer("place_counts", torch.ones(positions, codebook_size))  # where, for `sample`
        self.seen: Tensor | None = None  # no buffer: DistributedDataParallel would overwrite it

    def forward(self, vectors: Tensor, *, learn: bool = False) -> tuple[Tensor, Tensor]:
        """Vectors (B, N, D) -> the nearest codes (B, N, D) and their indices (B, N), in float32.

        The codes' gradient goes straight on to the vectors.
        """
        with torch.autocast(vectors.device.type, enabled=False):
            given, vectors, codes = vectors.float(), vectors.detach().float(), self.codes.float()
            # Of matrices, as torch 2.6 cannot take other products apart for ONNX here, if a batch may have any size.
            distances = codes.square().sum(dim=1) - 2 * vectors.flatten(0, 1) @ codes.T  # (B * N, K), less |vector|^2
            indices = distances.argmin(dim=1).view(vectors.shape[:2])
            if learn:
                # A product with one-hot rows, since scattered additions have no fixed order on a GPU.
                chosen = nn.functional.one_hot(indices, len(self.codes)).float()  # (B, N, K)
                sums = chosen.flatten(0, 1).T @ vectors.flatten(0, 1)
                self.see(torch.cat([chosen.sum(dim=0), sums.T]))  # (N + D, K)
            return given + (codes[indices] - vectors), indices

    def see(self, sums: Tensor) -> None:
        """Add to what the next update applies; in place, as a CUDA graph repeats what was done to memory alone."""
        if self.seen is None or self.seen.device != sums.device:  # it does not move with the model
            self.seen = torch.zeros_like(sums)
        self.seen.add_(sums)

    @torch.no_grad()
    def update(self, accelerator=None, generator: torch.Generator | None = None) -> None:
        """Move the averages and the codes by what was seen since the last update, on all of an accelerator's processes
        alike.
        """
        if self.seen is None:
            return
        seen = self.seen.clone()
        if accelerator is not None:
            seen = accelerator.reduce(seen, "sum")
        seen = seen.to(self.codes.dtype)
        self.seen.zero_()
        places, sums = seen.split([len(self.place_counts), self.codes.shape[1]])  # (N, K), (D, K)
        self.place_counts.lerp_(places, 1 - self.decay)
        self.counts.lerp_(places.sum(dim=0), 1 - self.decay)
        self.sums.lerp_(sums.T, 1 - self.decay)

        self.restart_dead(to_device(torch.randn(self.codes.shape, generator=generator), self.codes.device))
        self.codes.copy_(self.sums / self.counts.clamp(min=1e-8)[:, None])

    def restart_dead(self, jitter: Tensor) -> None:
        """The k-th code that is out of use takes half the load of the k-th most used one, beside which it starts.

        Every shape is fixed, whatever their number: a GPU would have to be waited for to know it.
        """
        dead = self.counts < 0.05 * self.counts.mean()
        by_use = self.counts.argsort(descending=True, stable=True)
        number = (dead.cumsum(dim=0) - 1).clamp(min=0)  # (K,): how many dead codes come before a dead one
        partner, jitter = by_use[number], jitter[number]
        halved = torch.zeros_like(dead).scatter_(0, by_use, torch.arange(len(dead), device=dead.device) < dead.sum())
        counts = torch.where(halved, self.counts / 2, self.counts)
        sums = torch.where(halved[:, None], self.sums / 2, self.sums)
        self.counts.copy_(torch.where(dead, counts[partner], counts))
        started = sums[partner] + 0.01 * self.counts[partner, None] * self.codes.std() * jitter
        self.sums.copy_(torch.where(dead[:, None], started, sums))


class VQAutoencoder(Autoencoder, tags=["vq-vae"]):
    """A VQ-VAE (arXiv 1711.00937). Its latents are a map of codes; the features are those codes, flattened.

    Args:
        depth: how often the image is halved before quantisation.
        width: channels after the first halving, a multiple of 8; they double with each halving, up to 256.
        latent_dim: numbers in a code.
        codebook_size: how many codes there are.
        commitment: weight of the encoder's distance to its codes.
        others: as for ConvAutoencoder.

    Raises:
        InputError: a depth that the image size does not allow, a width that is no multiple of 8, fewer than 2 codes, an
            unknown loss.
    """

    samples = True
    decoder_parts = ("from_latents", "decoder")

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] = 32,
        in_channels: int = 3,
        depth: int | None = 2,
        width: int = 64,
        latent_dim: int = 32,
        codebook_size: int = 512,
        commitment: float = 0.25,
        loss: str = "mse",
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
    ):
        super().__init__()
        if latent_dim < 1:
            raise InputError(f"latent_dim {latent_dim} is below 1")
        if codebook_size < 2:
            raise InputError(f"codebook_size {codebook_size} is below 2")
        self.commitment = commitment
        sizes = halvings(self.image_size, depth)
        channels = channels_at(width, len(sizes) - 1)
        self.map_size = sizes[-1]
        positions = self.map_size[0] * self.map_size[1]
        self.num_features = latent_dim * positions
        self.encoder = ConvEncoder(in_channels, channels)
        self.to_latents = nn.Conv2d(channels[-1], latent_dim, 1)
        self.quantizer = VectorQuantizer(codebook_size, latent_dim, positions)
        self.from_latents = nn.Conv2d(latent_dim, channels[-1], 1)
        self.decoder = ConvDecoder(in_channels, channels, sizes)

    def encode_vectors(self, images: Tensor) -> Tensor:
        """The vectors to be quantised, (B, N, latent_dim), N places of the map in row-major order."""
        return self.to_latents(self.encoder(self.normalise(images))).flatten(2).transpose(1, 2)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, N, latent_dim) -> normalised images (B, C, H, W)."""
        codes = codes.to(self.dtype).transpose(1, 2)
        return self.decoder(self.from_latents(codes.unflatten(2, self.map_size)))

    def encode(self, images: Tensor) -> Tensor:
        """The codes of uint8 or normalised float images (B, C, H, W), flattened to (B, N * latent_dim)."""
        return self.quantizer(self.encode_vectors(images))[0].flatten(1)

    def forward(self, images: Tensor) -> AutoencoderOutput:
        """One training pass: gradients jump from the codes straight to the encoder's vectors."""
        images = self.normalise(images)
        vectors = self.encode_vectors(images).float()
        codes, indices = self.quantizer(vectors, learn=self.training and torch.is_grad_enabled())
        reconstruction = self.decode(codes)
        error = self.reconstruction_loss(reconstruction, images)
        distance = nn.functional.mse_loss(vectors, codes.detach())
        used = nn.functional.one_hot(indices, len(self.quantizer.codes)).float().mean(dim=(0, 1))
        perplexity = torch.special.entr(used).sum().exp()  # as many codes as are in use, if all are used alike
        terms = {"reconstruction_loss": error, "commitment": distance, "perplexity": perplexity}
        return AutoencoderOutput(error + self.commitment * distance, reconstruction, terms)

    def after_step(self, accelerator=None, generator: torch.Generator | None = None) -> None:
        """Move the codebook; see `VectorQuantizer.update`."""
        self.quantizer.update(accelerator, generator)

    @torch.no_grad()
    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """New images, float (count, C, H, W) in [0, 1]: at each place a code as frequent as in training.

        Places are drawn independently, no prior over maps having been learned, so samples have texture and no form.
        """
        drawn = torch.multinomial(self.quantizer.place_counts.cpu(), count, replacement=True, generator=generator)
        return self.denormalise(self.decode(self.quantizer.codes[drawn.T.to(self.mean.device)]))
