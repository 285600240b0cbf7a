"""The masked autoencoder: hide most patches, encode the rest, predict what was hidden.

He et al., *Masked Autoencoders Are Scalable Vision Learners*, arXiv 2111.06377. A `mask` is bool (B, N) with
True = hidden, over the N patches in row-major grid order.
"""

from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import timm
import torch
from einops import rearrange
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from timm.layers import build_sincos2d_pos_embed
from timm.models import checkpoint_seq
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from .files import InputError, load_weights_strictly, read_json


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size given as one number or two."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def patchify(images: Tensor, patch_size: int | tuple[int, int]) -> Tensor:
    """Cut images (B, C, H, W) into patches (B, N, P*P*C), row-major; inside a patch the order is row, column, channel.

    Raises InputError if the image's height or width is not a multiple of the patch's.
    """
    height, width = pair(patch_size)
    if images.shape[-2] % height or images.shape[-1] % width:
        raise InputError(f"image_size {tuple(images.shape[-2:])} is not a multiple of patch_size {patch_size}")
    return rearrange(images, "b c (h p) (w q) -> b (h w) (p q c)", p=height, q=width)


def unpatchify(patches: Tensor, patch_size: int | tuple[int, int], image_size: int | tuple[int, int]) -> Tensor:
    """Lay patches (B, N, P*P*C) back into images (B, C, H, W): the inverse of `patchify`."""
    (height, width), rows = pair(patch_size), pair(image_size)[0] // pair(patch_size)[0]
    return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=rows, p=height, q=width)


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Copy without waiting: from pinned memory to a GPU, whose queue would otherwise have to run dry first."""
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def normalise(images: Tensor, mean: Tensor, std: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """uint8 images -> float, by the data's mean and std of pixels in [0, 1]; float images are taken as normalised.

    Raises InputError unless `images` is (B, *shape).
    """
    if images.ndim != 4 or tuple(images.shape[1:]) != shape:
        raise InputError(
            f"images have shape {tuple(images.shape)}, this model wants (batch, {', '.join(map(str, shape))})"
        )
    return (images.float() / 255 - mean) / std if images.dtype == torch.uint8 else images


def count_hidden(num_patches: int, mask_ratio: float) -> int:
    """How many of `num_patches` a mask of this ratio hides. Raises InputError if that is none or all of them."""
    if not 0 < mask_ratio < 1:
        raise InputError(f"mask_ratio {mask_ratio} is outside (0, 1)")
    num_hidden = round(num_patches * mask_ratio)
    if not 0 < num_hidden < num_patches:
        what = "every patch" if num_hidden else "no patch"
        raise InputError(
            f"mask_ratio {mask_ratio} hides {what} of {num_patches}: use a smaller patch_size or another ratio"
        )
    return num_hidden


def random_mask(
    batch_size: int,
    num_patches: int,
    mask_ratio: float,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Hide exactly round(mask_ratio * N) patches of each image, chosen uniformly: bool (B, N), True = hidden.

    `generator` must live on `device`. Raises InputError if the ratio would hide no patch or all of them.
    """
    num_hidden = count_hidden(num_patches, mask_ratio)
    order = torch.rand(batch_size, num_patches, generator=generator, device=device).argsort(dim=1)
    mask = torch.zeros(batch_size, num_patches, dtype=torch.bool, device=device)
    return mask.scatter_(1, order[:, :num_hidden], True)


def take(tokens: Tensor, index: Tensor) -> Tensor:
    """Rows `index` (B, K) of each image's `tokens` (B, N, D), or of one table (N, D) shared by all: (B, K, D)."""
    if tokens.ndim == 2:
        return nn.functional.embedding(index, tokens)
    # Selecting rows of one long table copies whole rows; a gather would look up every element.
    offsets = torch.arange(tokens.shape[0], device=index.device)[:, None] * tokens.shape[1]
    return tokens.flatten(0, 1).index_select(0, (index + offsets).flatten()).unflatten(0, index.shape)


def put(tokens: Tensor, index: Tensor) -> Tensor:
    """Inverse of `take` for an `index` (B, N) that is a permutation: row k of `tokens` goes to place index[:, k]."""
    return torch.empty_like(tokens).scatter_(1, index[..., None].expand_as(tokens), tokens)


@dataclass
class MAEOutput:
    """What a training step sees: the loss, and what it takes to look at the reconstruction if somebody asks."""

    loss: Tensor  # scalar, float32: mean squared error over hidden patches
    mask: Tensor  # bool (B, N), True = hidden
    prediction: Tensor  # (B, hidden, P*P*C), of the hidden patches alone, normalised per patch if norm_pix_loss
    hidden: Tensor  # (B, hidden): which patches those are
    images: Tensor  # (B, C, H, W), normalised
    model: "MaskedAutoencoder"

    @cached_property
    def reconstruction(self) -> Tensor:
        """Images (B, C, H, W), normalised: visible patches as given, hidden ones as predicted.

        With norm_pix_loss a prediction has no brightness or contrast of its own; both are interpolated from the
        visible patches (see `MaskedAutoencoder.reconstruct`).
        """
        patches = patchify(self.images, self.model.patch_size)  # (B, N, P*P*C)
        index = self.hidden[..., None].expand_as(self.prediction)
        predicted = patches.scatter(1, index, self.prediction.detach().to(patches.dtype))
        if self.model.norm_pix_loss:
            predicted = self.model.denormalise_patches(predicted, patches, self.mask, statistics="visible")
        pasted = torch.where(self.mask[..., None], predicted, patches)
        return unpatchify(pasted, self.model.patch_size, self.model.image_size)


@dataclass
class Reconstruction:
    """What `MaskedAutoencoder.reconstruct` returns; pictures are float (B, C, H, W) in [0, 1]."""

    original: Tensor  # the images that were given
    images: Tensor  # the answer: visible patches as given, hidden ones as predicted
    prediction: Tensor  # the model's own picture of every patch, hidden or not
    masked: Tensor  # what the encoder saw, hidden patches in mid-grey
    mask: Tensor  # bool (B, N), True = hidden
    statistics: str  # whose mean and deviation the hidden patches got: "none" needed, "visible" or "target"

    @property
    def columns(self) -> dict[str, Tensor]:
        """What a sheet of reconstructions shows, by its headings."""
        return {"original": self.original, "masked": self.masked, "reconstruction": self.images}


class MaskedAutoencoder(nn.Module, PyTorchModelHubMixin, library_name="tinymae", license="mit", tags=["mae", "timm"]):
    """A masked autoencoder whose encoder is a stock timm `VisionTransformer` (arXiv 2111.06377).

    Args:
        encoder: name of any timm VisionTransformer.
        image_size: pixels, one number or (height, width).
        patch_size: pixels, one number or (height, width); must divide `image_size`.
        in_channels: channels of the images.
        mask_ratio: share of patches hidden when no mask is given, in (0, 1).
        embed_dim, depth, num_heads: change the encoder's size; None leaves it as the named timm model has it.
        decoder_dim, decoder_depth, decoder_heads: the decoder's transformer (timm `Block`s).
        norm_pix_loss: predict each patch normalised by its own mean and deviation (section 4.1 of the paper).
        mean, std: per channel, of pixels in [0, 1]; uint8 images are normalised by them.

    Raises:
        InputError: an unknown encoder, sizes that do not divide, a mask ratio that hides no patch or all of them.
    """

    def __init__(
        self,
        encoder: str = "vit_tiny_patch16_224",
        *,
        image_size: int | tuple[int, int] = 32,
        patch_size: int | tuple[int, int] = 4,
        in_channels: int = 3,
        mask_ratio: float = 0.75,
        embed_dim: int | None = None,
        depth: int | None = None,
        num_heads: int | None = None,
        decoder_dim: int = 128,
        decoder_depth: int = 2,
        decoder_heads: int = 4,
        norm_pix_loss: bool = True,
        mean: tuple[float, ...] = (0.5,),
        std: tuple[float, ...] = (0.5,),
    ):
        super().__init__()
        self.image_size, self.patch_size, self.in_channels = pair(image_size), pair(patch_size), in_channels
        self.mask_ratio, self.norm_pix_loss = mask_ratio, norm_pix_loss
        self.config = {
            "encoder": encoder, "image_size": list(self.image_size), "patch_size": list(self.patch_size),
            "in_channels": in_channels, "mask_ratio": mask_ratio, "embed_dim": embed_dim, "depth": depth,
            "num_heads": num_heads, "decoder_dim": decoder_dim, "decoder_depth": decoder_depth,
            "decoder_heads": decoder_heads, "norm_pix_loss": norm_pix_loss, "mean": [float(m) for m in mean],
            "std": [float(s) for s in std],
        }  # fmt: skip
        for size, multiple in zip(self.image_size, self.patch_size, strict=True):
            if multiple < 1 or size < multiple or size % multiple:
                raise InputError(f"image_size {image_size} is not a multiple of patch_size {patch_size}")
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, in_channels):
                raise InputError(f"{name} has {len(values)} values for in_channels {in_channels}")
        if norm_pix_loss and self.patch_size[0] * self.patch_size[1] * in_channels == 1:
            raise InputError("norm_pix_loss needs patches of more than one value: use a larger patch_size")
        self.grid_size = (self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1])
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.num_hidden = count_hidden(self.num_patches, mask_ratio)

        self.encoder = create_vit(
            encoder, image_size=self.image_size, patch_size=self.patch_size, in_channels=in_channels,
            embed_dim=embed_dim, depth=depth, num_heads=num_heads,
        )  # fmt: skip
        self.num_features = self.encoder.num_features
        self.num_prefix_tokens = self.encoder.num_prefix_tokens  # the cls token and any registers

        if decoder_dim % 4 or decoder_dim % decoder_heads:
            raise InputError(f"decoder_dim {decoder_dim} is not a multiple of 4 and of decoder_heads {decoder_heads}")
        self.decoder_embed = nn.Linear(self.num_features, decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, self.num_prefix_tokens + self.num_patches, decoder_dim))
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.decoder_blocks = nn.Sequential(
            *(Block(decoder_dim, decoder_heads, qkv_bias=True, norm_layer=norm) for _ in range(decoder_depth))
        )
        self.decoder_norm = norm(decoder_dim)
        self.decoder_pred = nn.Linear(decoder_dim, self.patch_size[0] * self.patch_size[1] * in_channels)

        # Not in the weights file: they are part of the config.
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Appendix A of the paper: Xavier-uniform matrices, normal tokens, 2-D sine-cosine positions."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        projection = self.encoder.patch_embed.proj  # a convolution by name, a linear map of each patch by nature
        nn.init.xavier_uniform_(projection.weight.view(projection.weight.shape[0], -1))
        for token in (self.encoder.cls_token, self.encoder.reg_token, self.mask_token):
            if token is not None:
                nn.init.normal_(token, std=0.02)
        for positions in (self.encoder.pos_embed, self.decoder_pos_embed):
            if positions is not None:
                positions.zero_()
                positions[0, -self.num_patches :] = build_sincos2d_pos_embed(self.grid_size, positions.shape[-1])

    # ---- images and masks as users give them -> as the layers want them

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 images (B, C, H, W) -> float, by the data's mean and std; float images pass as they are.

        Raises InputError if the shape is not the model's.
        """
        return normalise(images, self.mean, self.std, (self.in_channels, *self.image_size))

    def denormalise(self, images: Tensor) -> Tensor:
        """Normalised float images (B, C, H, W) -> pixels in [0, 1], clipped to it."""
        return (images.float() * self.std + self.mean).clamp(0, 1)

    def expand_mask(self, mask: Tensor, batch_size: int) -> Tensor:
        """A user's bool mask (N,), (rows, columns), (B, N) or (B, rows, columns), True = hidden -> (B, N).

        Raises InputError for another shape or dtype, or if some image keeps no visible patch, or if images differ in
        how many patches are hidden (their tokens would not stack).
        """
        rows, columns = self.grid_size
        shapes = [(self.num_patches,), self.grid_size, (batch_size, self.num_patches), (batch_size, rows, columns)]
        if mask.dtype != torch.bool or tuple(mask.shape) not in shapes:
            raise InputError(
                f"mask is {mask.dtype} of shape {tuple(mask.shape)}; wanted torch.bool (True = hidden) of shape "
                + ", ".join(map(str, shapes[:-1]))
                + f" or {shapes[-1]}"
            )
        return mask.reshape(-1, self.num_patches).expand(batch_size, -1)

    def split(self, mask: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Indices of the visible (B, V) and of the hidden patches (B, H), each in row-major order, on `device`.

        The counts must be known to shape the tensors, so a mask on a GPU costs a synchronisation; one on the CPU
        does not.
        """
        counts = mask.sum(dim=1)
        num_hidden = int(counts[0])
        if not bool((counts == num_hidden).all()):
            raise InputError(
                f"mask hides from {int(counts.min())} to {int(counts.max())} patches of an image: "
                "hide the same number in every image of a batch"
            )
        if num_hidden == self.num_patches:
            raise InputError(f"mask hides all {self.num_patches} patches: leave at least one visible")
        order = mask.to(torch.uint8).argsort(dim=1, stable=True)  # False before True: visible patches first
        return to_device(order, device).tensor_split([self.num_patches - num_hidden], dim=1)

    # ---- the layers

    def forward_encoder(self, patches: Tensor, visible: Tensor) -> Tensor:
        """Embed and encode the visible patches (B, V, P*P*C), which stand at `visible` (B, V): (B, prefix + V, D)."""
        vit, prefix = self.encoder, self.num_prefix_tokens
        weight = rearrange(vit.patch_embed.proj.weight, "d c p q -> d (p q c)")
        tokens = vit.patch_embed.norm(nn.functional.linear(patches, weight, vit.patch_embed.proj.bias))  # (B, V, D)
        if vit.pos_embed is not None:
            tokens = tokens + take(vit.pos_embed[0, -self.num_patches :], visible)
        if prefix:
            first = torch.cat([token for token in (vit.cls_token, vit.reg_token) if token is not None], dim=1)
            if vit.pos_embed is not None and not vit.no_embed_class:
                first = first + vit.pos_embed[:, :prefix]
            tokens = torch.cat([first.expand(len(tokens), -1, -1).to(tokens.dtype), tokens], dim=1)
        tokens = vit.norm_pre(vit.pos_drop(tokens))
        return vit.norm(self.run_blocks(vit.blocks, tokens))

    def forward_decoder(self, tokens: Tensor, visible: Tensor, hidden: Tensor) -> Tensor:
        """Run the decoder over encoded tokens (B, prefix + V, D) and mask tokens: (B, V + H, decoder_dim).

        The order is visible patches, then hidden ones. A transformer does not care for order, only for positions, so
        nothing is shuffled back into the grid.
        """
        prefix, positions = self.num_prefix_tokens, self.decoder_pos_embed[0]
        tokens = self.decoder_embed(tokens)
        visible_tokens = tokens[:, prefix:] + take(positions[prefix:], visible)
        hidden_tokens = self.mask_token + take(positions[prefix:], hidden)
        tokens = torch.cat(
            [tokens[:, :prefix] + positions[:prefix], visible_tokens, hidden_tokens.to(tokens.dtype)], dim=1
        )
        return self.decoder_norm(self.run_blocks(self.decoder_blocks, tokens))[:, prefix:]

    def run_blocks(self, blocks: nn.Sequential, tokens: Tensor) -> Tensor:
        """Blocks in turn; after `encoder.set_grad_checkpointing()` their activations are computed again in backward."""
        if self.encoder.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint_seq(blocks, tokens)
        return blocks(tokens)

    def forward_loss(self, prediction: Tensor, patches: Tensor) -> Tensor:
        """Mean squared error in float32 over the hidden patches' pixels; both (B, H, P*P*C)."""
        target = patches.float()
        if self.norm_pix_loss:
            mean, deviation = patch_statistics(target)
            target = (target - mean) / deviation
        return (prediction.float() - target).square().mean()

    def forward_core(self, patches: Tensor, target: Tensor, visible: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """From visible patches (B, V, P*P*C) to the loss on the hidden ones: what is worth compiling."""
        tokens = self.forward_encoder(patches, visible)
        tokens = self.forward_decoder(tokens, visible, hidden)[:, visible.shape[1] :]
        prediction = self.decoder_pred(tokens)  # (B, H, P*P*C)
        return self.forward_loss(prediction, target), prediction

    # ---- what users call

    def forward(
        self, images: Tensor, mask: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> MAEOutput:
        """One training pass. Images uint8 or normalised float (B, C, H, W); without a mask, a random one is drawn.

        Raises InputError for a mask of another shape, or one that hides no patch or all of them.
        """
        images = self.normalise(images)
        if mask is None:
            mask = random_mask(len(images), self.num_patches, self.mask_ratio, generator)
        mask = self.expand_mask(mask, len(images))
        visible, hidden = self.split(mask, images.device)
        if not hidden.shape[1]:
            raise InputError("mask hides no patch: there is nothing to predict")
        patches = patchify(images, self.patch_size)  # (B, N, P*P*C)
        loss, prediction = self.forward_core(take(patches, visible), take(patches, hidden), visible, hidden)
        mask = to_device(mask, images.device)
        return MAEOutput(loss=loss, mask=mask, prediction=prediction, hidden=hidden, images=images, model=self)

    def encode_tokens(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens after the encoder's final norm: (B, prefix + visible, D), patches in row-major order.

        Without a mask every patch is visible and this is timm's own `forward_features`.
        """
        images = self.normalise(images)
        if mask is None:
            return self.encoder.forward_features(images)
        visible, _ = self.split(self.expand_mask(mask, len(images)), images.device)
        return self.forward_encoder(take(patchify(images, self.patch_size), visible), visible)

    def encode(self, images: Tensor, *, pool: str = "avg") -> Tensor:
        """Features (B, F) of unmasked images: the mean of the patch tokens, or with `pool="cls"` the class token."""
        return pool_tokens(self.encode_tokens(images), pool, self.num_prefix_tokens)

    def decode(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Predict every patch, (B, N, P*P*C) in row-major order, from encoded tokens (B, prefix + visible, D)."""
        visible, hidden = self.split(self.expand_mask(mask, len(tokens)), tokens.device)
        if tokens.shape[1] != self.num_prefix_tokens + visible.shape[1]:
            raise InputError(
                f"tokens has {tokens.shape[1]} tokens an image; this mask leaves "
                f"{self.num_prefix_tokens} + {visible.shape[1]}"
            )
        prediction = self.decoder_pred(self.forward_decoder(tokens, visible, hidden))
        return put(prediction, torch.cat([visible, hidden], dim=1))

    @torch.no_grad()
    def reconstruct(
        self,
        images: Tensor,
        mask: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        statistics: str = "visible",
    ) -> Reconstruction:
        """Hide patches of `images` (uint8 or normalised float, (B, C, H, W)) and paint them in.

        A model trained with norm_pix_loss predicts each patch up to its brightness and contrast. By default both are
        interpolated from the visible patches (weights 1 / distance^4), so nothing hidden is used.
        `statistics="target"` takes the hidden patches' true mean and deviation instead: prettier, but it leaks the
        target. The result's `statistics` says which was used.

        Raises InputError for an unknown `statistics` or a mask of another shape, dtype or count.
        """
        if statistics not in ("visible", "target"):
            raise InputError(f"statistics {statistics!r} is neither 'visible' nor 'target'")
        images = self.normalise(images)
        if mask is None:
            mask = random_mask(len(images), self.num_patches, self.mask_ratio, generator)
        mask = self.expand_mask(mask, len(images))
        predicted = self.decode(self.encode_tokens(images, mask), mask).float()
        mask = mask.to(images.device)
        patches = patchify(images, self.patch_size).float()  # (B, N, P*P*C)
        if self.norm_pix_loss:
            predicted = self.denormalise_patches(predicted, patches, mask, statistics=statistics)
        picture = partial(unpatchify, patch_size=self.patch_size, image_size=self.image_size)
        prediction, hidden = self.denormalise(picture(predicted)), picture(mask[..., None].expand_as(patches))
        original = self.denormalise(images)
        return Reconstruction(
            original=original,
            images=torch.where(hidden, prediction, original),
            prediction=prediction,
            masked=torch.where(hidden, torch.full_like(original, 0.5), original),
            mask=mask,
            statistics=statistics if self.norm_pix_loss else "none",
        )

    def denormalise_patches(self, prediction: Tensor, patches: Tensor, mask: Tensor, *, statistics: str) -> Tensor:
        """Give predictions (B, N, P*P*C) a mean and deviation: their own patch's where that is visible or where
        `statistics="target"`, else interpolated from the visible patches of the same image.
        """
        known = torch.cat(patch_statistics(patches.float()), dim=2)  # (B, N, 2)
        if statistics == "visible":
            rows, columns = torch.meshgrid(
                *(torch.arange(n, device=mask.device) for n in self.grid_size), indexing="ij"
            )
            places = torch.stack([rows.flatten(), columns.flatten()], dim=1).float()  # (N, 2)
            # Squares rather than torch.cdist, which ONNX has no operator for.
            squares = (places[:, None] - places).square().sum(dim=2)  # (N, N)
            closeness = squares.clamp(min=0.25).pow(-2)
            closeness = closeness * ~mask[:, None, :]  # (B, N, N): only visible patches speak
            guessed = closeness @ known / closeness.sum(dim=2, keepdim=True)
            known = torch.where(mask[..., None], guessed, known)
        mean, deviation = known.split(1, dim=2)
        return prediction * deviation + mean

    # ---- weights on disk

    def save_pretrained(self, save_directory: str | Path, **kwargs) -> str | None:
        """Write `model.safetensors`, `config.json` and a model card into a folder, as on the Hugging Face Hub."""
        return super().save_pretrained(
            save_directory, config={"architecture": type(self).__name__, **self.config}, **kwargs
        )

    @classmethod
    def from_pretrained(cls, folder_or_hub_id: str | Path, **kwargs) -> "MaskedAutoencoder":
        """The model of a local folder or of the Hugging Face Hub, in evaluation mode.

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
        folder = Path(model_id)
        if folder.is_dir():
            weights = folder / "model.safetensors"
        else:
            weights = hf_hub_download(model_id, "model.safetensors", **download)
        model = cls(**kwargs)
        load_weights_strictly(model, weights)
        return model.to(map_location).eval()


def create_vit(
    name: str,
    *,
    image_size: tuple[int, int],
    patch_size: tuple[int, int],
    in_channels: int,
    embed_dim: int | None = None,
    depth: int | None = None,
    num_heads: int | None = None,
    num_classes: int = 0,
    **timm_arguments,
) -> VisionTransformer:
    """A stock timm VisionTransformer of the given sizes, randomly initialised.

    Raises InputError if timm does not know the name, if it is no plain VisionTransformer, or if the sizes do not fit.
    """
    sizes = {"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads}
    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name.split('_')[0]}*tiny*")[:3])
        raise InputError(f"encoder {name!r} is not a timm model" + (f"; there are {close}" if close else ""))
    try:
        vit = timm.create_model(
            name, img_size=image_size, patch_size=patch_size, in_chans=in_channels, num_classes=num_classes,
            **{key: value for key, value in sizes.items() if value is not None}, **timm_arguments,
        )  # fmt: skip
    except (TypeError, AssertionError, ValueError) as error:
        raise InputError(f"encoder {name!r} cannot be built with {sizes}: {error}") from None
    if not isinstance(vit, VisionTransformer):
        raise InputError(f"encoder {name!r} is a {type(vit).__name__}, not a timm VisionTransformer")
    if vit.embed_dim % 4:
        raise InputError(f"embed_dim {vit.embed_dim} is not a multiple of 4, which 2-D sine-cosine positions need")
    return vit


def pool_tokens(tokens: Tensor, pool: str, num_prefix_tokens: int) -> Tensor:
    """Tokens (B, prefix + N, D) -> features (B, D): `avg` over the patches or the `cls` token.

    Raises InputError for another name, or `cls` on a model without one.
    """
    if pool == "avg":
        return tokens[:, num_prefix_tokens:].mean(dim=1)
    if pool == "cls" and num_prefix_tokens:
        return tokens[:, 0]
    raise InputError(
        f"pool {pool!r} is not 'avg'" + (" or 'cls'" if num_prefix_tokens else ": this encoder has no cls token")
    )


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of all pixels of each patch (B, N, P*P*C): two (B, N, 1). Section 3 of the paper."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (variance + 1e-6).sqrt()
