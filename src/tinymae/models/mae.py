"""The masked autoencoder: hide most patches, encode the rest, predict what was hidden.

He et al., *Masked Autoencoders Are Scalable Vision Learners*, arXiv 2111.06377.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from einops import rearrange
from timm.layers import build_sincos2d_pos_embed
from timm.models import checkpoint_seq
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ..errors import InputError
from ..tensors import put, take, to_device
from .base import Encoder
from .masked import PatchMasking
from .masking import expand_mask, normalise_patches, patchify, require_visible
from .outputs import AutoencoderOutput
from .vit import (
    MAX_DEPTH,
    ViTEncoder,
    compile_blocks,
    create_vit,
    dense_features,
    encode_layers,
    pool_tokens,
    pools_of,
    set_norm_eps,
    set_preprocessing,
)


@dataclass(kw_only=True)
class MAEOutput(AutoencoderOutput):
    """What `MaskedAutoencoder.forward` returns.

    The loss is the mean squared error over hidden patches; the reconstruction has the visible ones as given.
    """

    mask: Tensor  # bool (B, N), True = hidden
    prediction: Tensor  # (B, hidden, P*P*C), of the hidden patches alone, normalised per patch if norm_pix_loss
    features: Tensor  # (B, D): the mean of the visible patches' tokens


class MaskedAutoencoder(PatchMasking, tags=["mae", "timm"]):
    """A masked autoencoder whose encoder is a stock timm `VisionTransformer` (arXiv 2111.06377).

    Args:
        encoder: name of any timm VisionTransformer.
        image_size: pixels, one number or (height, width).
        patch_size: pixels, one number or (height, width); must divide `image_size`.
        in_channels: channels of the images.
        mask_ratio: ratio of patches hidden when no mask is given, in (0, 1).
        embed_dim: width of the encoder's tokens; None: the named timm model's.
        depth: blocks of the encoder; None: the named timm model's.
        num_heads: heads of the encoder's attention; None: the named timm model's.
        decoder_dim: width of the decoder's tokens.
        decoder_depth: blocks of the decoder, which are timm's `Block`.
        decoder_heads: heads of the decoder's attention.
        norm_pix_loss: predict each patch normalised by its own mean and standard deviation (section 4.1 of the paper).
        norm_eps: LayerNorm's epsilon, at most 1e-6. A smaller one keeps transformers' numbers; classifiers, which are
            stock timm models, have 1e-6 instead; None: the named timm model's, and 1e-6 in the decoder.
        mean, std: per channel, of pixels in [0, 1]; uint8 images are normalised by them.

    >>> model = MaskedAutoencoder(image_size=8, patch_size=2, embed_dim=24, depth=2, num_heads=2)
    >>> model(torch.randn(5, 3, 8, 8)).reconstruction.shape
    torch.Size([5, 3, 8, 8])

    Raises:
        InputError: an unknown encoder, sizes that do not divide, a mask ratio that hides no patch or all of them.
    """

    layered = True
    ends = ("encoder.patch_embed.proj.weight", "decoder_pred.weight")

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
        norm_eps: float | None = None,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
    ):
        super().__init__()
        self.set_patches(image_size, patch_size, mask_ratio=mask_ratio, norm_pix_loss=norm_pix_loss)

        self.encoder = create_vit(
            encoder, image_size=self.image_size, patch_size=self.patch_size, in_channels=in_channels,
            embed_dim=embed_dim, depth=depth, num_heads=num_heads,
        )  # fmt: skip
        self.num_features = self.encoder.num_features
        self.num_prefix_tokens = self.encoder.num_prefix_tokens  # the cls token and any registers
        self.pools = pools_of(self.encoder)
        set_preprocessing(self.encoder, mean, std)

        if min(decoder_dim, decoder_heads) < 1 or decoder_dim % 4 or decoder_dim % decoder_heads:
            raise InputError(f"decoder_dim {decoder_dim} is not a multiple of 4 and of decoder_heads {decoder_heads}")
        if not 0 <= decoder_depth <= MAX_DEPTH:
            raise InputError(f"decoder_depth {decoder_depth} is not within 0 and {MAX_DEPTH}")
        self.decoder_sizes = {
            "decoder_dim": decoder_dim, "decoder_depth": decoder_depth, "decoder_heads": decoder_heads
        }  # fmt: skip
        self.decoder_embed = nn.Linear(self.num_features, decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, self.num_prefix_tokens + self.num_patches, decoder_dim))
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.decoder_blocks = nn.Sequential(
            *(Block(decoder_dim, decoder_heads, qkv_bias=True, norm_layer=norm) for _ in range(decoder_depth))
        )
        self.decoder_norm = norm(decoder_dim)
        self.decoder_pred = nn.Linear(decoder_dim, self.patch_size[0] * self.patch_size[1] * in_channels)

        if norm_eps is not None:
            if not 0 < norm_eps <= 1e-6:
                raise InputError(f"norm_eps {norm_eps} is outside (0, 1e-6]")
            set_norm_eps(self, norm_eps)
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

    # ---- the layers

    def split(self, mask: Tensor, device: torch.device, num_hidden: int | None = None) -> tuple[Tensor, Tensor]:
        """Indices of the visible (B, V) and of the hidden patches (B, H), each in row-major order, on `device`.

        The counts must be known to shape the tensors: without `num_hidden`, a mask on a GPU is waited for.
        """
        if num_hidden is None:
            if not len(mask):
                raise InputError("images are an empty batch: give at least one image")
            counts = mask.sum(dim=1)
            num_hidden = int(counts[0])
            if not bool((counts == num_hidden).all()):
                raise InputError(
                    f"mask hides from {int(counts.min())} to {int(counts.max())} patches of an image: "
                    "hide the same number in every image of a batch"
                )
            require_visible(mask)
        order = mask.to(torch.uint8).argsort(dim=1, stable=True)  # False before True: visible patches first
        visible, hidden = to_device(order, device).tensor_split([self.num_patches - num_hidden], dim=1)
        return visible, hidden

    def forward_encoder(self, patches: Tensor, visible: Tensor) -> Tensor:
        """Embed and encode the visible patches (B, V, P*P*C), which stand at `visible` (B, V): (B, prefix + V, D)."""
        vit, prefix = self.encoder, self.num_prefix_tokens
        weight = vit.patch_embed.proj.weight
        # Of one channel there is nothing to reorder, and a gradient that was would make DDP warn of its strides.
        weight = weight.flatten(1) if self.in_channels == 1 else rearrange(weight, "d c p q -> d (p q c)")
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
        return self.run_decoder(tokens)

    def run_decoder(self, tokens: Tensor) -> Tensor:
        """The decoder over tokens that have their positions (B, prefix + M, decoder_dim): (B, M, decoder_dim)."""
        return self.decoder_norm(self.run_blocks(self.decoder_blocks, tokens))[:, self.num_prefix_tokens :]

    def run_blocks(self, blocks: nn.Sequential, tokens: Tensor) -> Tensor:
        """Blocks in turn; after `encoder.set_grad_checkpointing()` their activations are computed again in backward."""
        if self.encoder.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint_seq(blocks, tokens)
        return blocks(tokens)

    def forward_loss(self, prediction: Tensor, patches: Tensor) -> Tensor:
        """Mean squared error in float32 over the hidden patches' pixels; both (B, H, P*P*C)."""
        target = patches.float()
        if self.norm_pix_loss:
            target = normalise_patches(target)
        return (prediction.float() - target).square().mean()

    def forward_masked(
        self, images: Tensor, mask: Tensor, *, decoded: int | None = None, num_hidden: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """From normalised images (B, C, H, W) and masks (B, N) to the loss on the hidden patches, a scalar; what is
        predicted of them (decoded, hidden, P*P*C); and the features (B, D), see `MAEOutput`.

        Only the first `decoded` images are decoded. `num_hidden`: see `split`.
        """
        visible, hidden = self.split(mask, images.device, num_hidden)
        if not hidden.shape[1]:
            raise InputError("mask hides no patch: there is nothing to predict")
        patches = patchify(images, self.patch_size)  # (B, N, P*P*C)
        tokens = self.forward_encoder(take(patches, visible), visible)
        features = pool_tokens(tokens, "avg", self.encoder)
        visible, hidden = visible[:decoded], hidden[:decoded]
        tokens = self.forward_decoder(tokens[:decoded], visible, hidden)[:, visible.shape[1] :]
        prediction = self.decoder_pred(tokens)
        return self.forward_loss(prediction, take(patches[:decoded], hidden)), prediction, features

    # ---- what users call

    def forward(
        self, images: Tensor, mask: Tensor | float | None = None, *, generator: torch.Generator | None = None,
        num_hidden: int | None = None,
    ) -> MAEOutput:  # fmt: skip
        """Hide, encode, predict. Images uint8 or normalised float (B, C, H, W); without a mask, a random one is drawn.

        Whoever knows that a mask (B, N) hides `num_hidden` patches of every image says so: it is not looked at then,
        for which a GPU would have to be waited for.

        With norm_pix_loss a prediction has no brightness or contrast of its own; the reconstruction's are interpolated
        from the visible patches (see `reconstruct`).

        >>> model = MaskedAutoencoder(image_size=8, patch_size=2, embed_dim=24, depth=2, num_heads=2)
        >>> output = model(torch.randn(5, 3, 8, 8))
        >>> output.loss.shape, output.mask.sum(dim=1).tolist()
        (torch.Size([]), [12, 12, 12, 12, 12])

        Raises InputError for a mask of another shape, or one that hides no patch or all of them.
        """
        images = self.normalise(images)
        mask = self.choose_mask(mask, images, generator)
        loss, prediction, features = self.forward_masked(images, mask, num_hidden=num_hidden)
        mask = to_device(mask, images.device)
        with torch.no_grad():
            patches = patchify(images, self.patch_size)
            predicted = patches.masked_scatter(mask[..., None], prediction.to(patches.dtype))
            reconstruction = self.paste(predicted, patches, mask)
        return MAEOutput(loss, reconstruction, mask=mask, prediction=prediction, features=features)

    def training_losses(  # type: ignore[override]
        self, images: Tensor, mask: Tensor | None = None, *, num_hidden: int | None = None
    ) -> dict[str, Tensor]:
        """The loss alone: nothing is painted."""
        images = self.normalise(images)
        mask = self.choose_mask(mask, images, None)
        return {"loss": self.forward_masked(images, mask, num_hidden=num_hidden)[0]}

    def compile_core(self) -> None:
        """`torch.compile` the blocks, in place: a copy of the model is not compiled."""
        compile_blocks(self.encoder.blocks)
        compile_blocks(self.decoder_blocks)

    def save_memory(self) -> None:
        """Compute the blocks' activations again in the backward pass."""
        self.encoder.set_grad_checkpointing()

    def encoder_and_head(
        self, num_classes: int, *, pool: str = "avg", drop_path: float = 0.0, patch_drop: float = 0.0
    ) -> tuple[Encoder, nn.Linear]:
        """A stock timm ViT with these weights, and its head: see `ViTEncoder.encoder_and_head`."""
        wrapped = ViTEncoder(self.encoder, **self.statistics, pool=pool)
        return wrapped.encoder_and_head(num_classes, pool=pool, drop_path=drop_path, patch_drop=patch_drop)

    def encode_tokens(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens after the encoder's final norm: (B, prefix + visible, D), patches in row-major order.

        Without a mask every patch is visible and this is timm's own `forward_features`.

        >>> model = MaskedAutoencoder(image_size=8, patch_size=2, embed_dim=24, depth=2, num_heads=2)
        >>> from tinymae import random_mask
        >>> mask = random_mask(5, model.num_patches, 0.75)
        >>> model.encode_tokens(torch.randn(5, 3, 8, 8), mask).shape  # the cls token and 4 visible patches
        torch.Size([5, 5, 24])

        Raises InputError for images or a mask of another shape, or if images differ in how many patches are hidden.
        """
        images = self.normalise(images)
        if mask is None:
            return self.encoder.forward_features(images)
        visible, _ = self.split(expand_mask(mask, len(images), self.grid_size), images.device)
        return self.forward_encoder(take(patchify(images, self.patch_size), visible), visible)

    def encode(self, images: Tensor, *, pool: str = "avg", layers: int | Sequence[int] = 1) -> Tensor:
        """Features (B, F) of unmasked images: the mean of the patch tokens, or with `pool="cls"` the class token.

        With `layers` as `encode_layers` takes them, the features of those layers side by side, F = D x their number.

        >>> model = MaskedAutoencoder(image_size=8, patch_size=2, embed_dim=24, depth=2, num_heads=2)
        >>> images = torch.randn(5, 3, 8, 8)
        >>> model.encode(images).shape, model.encode(images, pool="cls", layers=[0, 1]).shape
        (torch.Size([5, 24]), torch.Size([5, 48]))

        Raises InputError for images of another shape, an unknown `pool`, or layers that the encoder does not have.
        """
        self.require_pool(pool)
        tokens = self.encode_layers(images, layers)
        return torch.cat([pool_tokens(layer, pool, self.encoder) for layer in tokens], dim=1)

    def encode_layers(self, images: Tensor, layers: int | Sequence[int], *, norm: bool = True) -> list[Tensor]:
        """Tokens of unmasked images after some of the encoder's blocks: for each layer (B, prefix + N, D).

        `layers` are numbers from 0, or from -1 backwards, in any order; an int means the last so many. They are timm's
        `forward_intermediates(indices=layers)`. With `norm` they go through the encoder's final norm, so that the last
        layer is `encode_tokens`; timm's own default is without.

        >>> model = MaskedAutoencoder(image_size=8, patch_size=2, embed_dim=24, depth=2, num_heads=2)
        >>> [tokens.shape for tokens in model.encode_layers(torch.randn(5, 3, 8, 8), [0, -1])]
        [torch.Size([5, 17, 24]), torch.Size([5, 17, 24])]

        Raises InputError for images of another shape, or for layers that the encoder does not have.
        """
        return encode_layers(self.encoder, self.normalise(images), layers, norm=norm)

    def encode_dense(self, images: Tensor, *, layer: int = -1) -> Tensor:
        """A feature map (B, D, rows, columns) of unmasked images, in float32: a feature of each patch, in its place.

        `layer` is a block, from 0 or from -1 backwards. The tokens go through the encoder's final norm, so the mean of
        the last block's map is `encode`.

        >>> model = MaskedAutoencoder(image_size=(8, 12), patch_size=2, embed_dim=24, depth=2, num_heads=2)
        >>> model.encode_dense(torch.randn(5, 3, 8, 12)).shape
        torch.Size([5, 24, 4, 6])

        Raises InputError for images of another shape, or a layer that the encoder does not have.
        """
        return dense_features(self.encoder, self.normalise(images), layer)

    def decode(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Predict every patch, (B, N, P*P*C) in row-major order, from encoded tokens (B, prefix + visible, D).

        >>> model = MaskedAutoencoder(image_size=8, patch_size=2, embed_dim=24, depth=2, num_heads=2)
        >>> from tinymae import random_mask
        >>> mask = random_mask(5, model.num_patches, 0.75)
        >>> model.decode(model.encode_tokens(torch.randn(5, 3, 8, 8), mask), mask).shape
        torch.Size([5, 16, 12])

        Raises InputError for a mask of another shape, or one that does not leave as many patches as there are tokens.
        """
        visible, hidden = self.split(expand_mask(mask, len(tokens), self.grid_size), tokens.device)
        if tokens.shape[1] != self.num_prefix_tokens + visible.shape[1]:
            raise InputError(
                f"tokens has {tokens.shape[1]} tokens an image; this mask leaves "
                f"{self.num_prefix_tokens} + {visible.shape[1]}"
            )
        prediction = self.decoder_pred(self.forward_decoder(tokens, visible, hidden))
        return put(prediction, torch.cat([visible, hidden], dim=1))

    def predict(self, images: Tensor, mask: Tensor) -> Tensor:
        """See `PatchMasking.predict`."""
        return self.decode(self.encode_tokens(images, mask), mask).float()
