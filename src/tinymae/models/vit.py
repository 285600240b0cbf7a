"""timm's VisionTransformer: built to size, described, pooled, and its attention path chosen."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ..errors import InputError
from ..files import write_json, write_tensors
from .base import Encoder
from .drops import use_sample_drop_path, use_sample_patch_drop
from .timm_models import create_timm

TIMM_POOLS = {"avg": "avg", "cls": "token"}  # our names of poolings, and timm's
OUR_POOLS = {theirs: ours for ours, theirs in TIMM_POOLS.items()}
MAX_DEPTH = 200  # blocks: no config.json can make the constructor build for minutes


class ViTEncoder(Encoder):
    """A stock timm ViT in front of a head: images -> pooled features, in float32.

    Args:
        vit: without a head of its own.
        mean, std: per channel, of pixels in [0, 1].
        pool: "avg" or "cls".
    """

    layered = True

    def __init__(self, vit: VisionTransformer, *, mean: Sequence[float], std: Sequence[float], pool: str):
        sizes = describe(vit)
        super().__init__(image_size=sizes["image_size"], in_channels=sizes["in_channels"], mean=mean, std=std)
        self.vit, self.pool, self.num_features = vit, pool, vit.num_features
        self.pools = pools_of(vit)
        set_preprocessing(vit, mean, std)

    def encode(self, images: Tensor, *, pool: str | None = None, layers: int | Sequence[int] = 1) -> Tensor:
        """Features (B, F) of uint8 or normalised float images (B, C, H, W); see `MaskedAutoencoder.encode`.

        `pool` None is the one that the head was trained on.
        """
        pool = pool or self.pool
        self.require_pool(pool)
        images = self.normalise(images)
        # Training needs timm's own forward pass, which drops patches and computes activations again.
        tokens = [self.vit.forward_features(images)] if layers == 1 else encode_layers(self.vit, images, layers)
        return torch.cat([pool_tokens(layer.float(), pool, self.vit) for layer in tokens], dim=1)

    def encode_dense(self, images: Tensor, *, layer: int = -1) -> Tensor:
        """A feature map (B, D, rows, columns), see `MaskedAutoencoder.encode_dense`."""
        return dense_features(self.vit, self.normalise(images), layer)

    def encoder_and_head(
        self, num_classes: int, *, pool: str = "avg", drop_path: float = 0.0, patch_drop: float = 0.0
    ) -> tuple["ViTEncoder", nn.Linear]:
        """A stock timm ViT with these weights, and its head: see `Encoder.encoder_and_head`.

        Its final norm comes before the pooling, as in the features that probes see; timm's `fc_norm` is off.

        Args:
            num_classes: outputs of the head.
            pool: "avg" or "cls".
            drop_path: probability that a training image skips a residual branch of the last block; 0 in the first.
            patch_drop: ratio of the patches that training does not see.
        """
        self.require_pool(pool)
        sizes = describe(self.vit)
        vit = create_vit(
            sizes.pop("encoder"), **sizes, num_classes=num_classes, global_pool=TIMM_POOLS[pool], fc_norm=False,
            drop_path_rate=drop_path,
        )  # fmt: skip
        head = vit.head
        vit.reset_classifier(0)
        vit.load_state_dict(self.vit.state_dict(), strict=True)
        use_sample_drop_path(vit)
        use_sample_patch_drop(vit, patch_drop)
        return ViTEncoder(vit, **self.statistics, pool=pool), head

    def compile_core(self) -> None:
        """`torch.compile` the blocks, in place."""
        compile_blocks(self.vit.blocks)

    def save_memory(self) -> None:
        """Compute the blocks' activations again in the backward pass."""
        self.vit.set_grad_checkpointing()


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
    for key, value in {"in_channels": in_channels, **sizes}.items():
        if value is not None and value < 1:
            raise InputError(f"{key} {value} is below 1")
    if depth is not None and depth > MAX_DEPTH:
        raise InputError(f"depth {depth} is above {MAX_DEPTH}")
    # As `encode` does by default; the norm comes before the pooling, which has no weights.
    timm_arguments = {"global_pool": "avg", "fc_norm": False, "pool_include_prefix": False} | timm_arguments
    timm_arguments |= {key: value for key, value in sizes.items() if value is not None}
    vit = create_timm(
        name, f"with {sizes}", img_size=image_size, patch_size=patch_size, in_chans=in_channels,
        num_classes=num_classes, **timm_arguments,
    )  # fmt: skip
    if type(vit) is not VisionTransformer:  # a distilled one has a second class token, which it adds by itself
        raise InputError(f"encoder {name!r} is a {type(vit).__name__}, not a timm VisionTransformer")
    if not isinstance(vit.patch_embed, PatchEmbed):
        raise InputError(f"encoder {name!r} has a {type(vit.patch_embed).__name__}, not one convolution, for patches")
    if vit.embed_dim % 4:
        raise InputError(f"embed_dim {vit.embed_dim} is not a multiple of 4, which 2-D sine-cosine positions need")
    return vit


def preprocessing(vit: VisionTransformer, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """What timm's data configuration says of a ViT's images."""
    sizes = describe(vit)
    return {
        "input_size": (sizes["in_channels"], *sizes["image_size"]),
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "mean": tuple(map(float, mean)) * (sizes["in_channels"] // len(mean)),
        "std": tuple(map(float, std)) * (sizes["in_channels"] // len(std)),
    }


def set_preprocessing(vit: VisionTransformer, mean: Sequence[float], std: Sequence[float]) -> None:
    """Let `timm.data.resolve_model_data_config` know a ViT's images, instead of those that timm's weights want."""
    vit.pretrained_cfg = vit.default_cfg = vit.pretrained_cfg | preprocessing(vit, mean, std)


def set_norm_eps(module: nn.Module, norm_eps: float) -> None:
    """Set the epsilon of every LayerNorm in `module`."""
    for norm in module.modules():
        if isinstance(norm, nn.LayerNorm):
            norm.eps = norm_eps


def pools_of(vit: VisionTransformer) -> tuple[str, ...]:
    """How a ViT's tokens can become features."""
    return ("avg",) if vit.cls_token is None else ("avg", "cls")


def pool_tokens(tokens: Tensor, pool: str, vit: VisionTransformer) -> Tensor:
    """Tokens (B, prefix + N, D) of a ViT -> features (B, D), by one of `pools_of(vit)`: `avg` is over the patches."""
    return tokens[:, 0] if pool == "cls" else tokens[:, vit.num_prefix_tokens :].mean(dim=1)


def encode_layers(
    vit: VisionTransformer, images: Tensor, layers: int | Sequence[int], *, norm: bool = True
) -> list[Tensor]:
    """Tokens (B, prefix + N, D) of normalised images after some blocks: see `MaskedAutoencoder.encode_layers`."""
    depth = len(vit.blocks)
    asked = list(range(-layers, 0)) if isinstance(layers, int) else list(layers)
    if not asked or not all(-depth <= layer < depth for layer in asked):
        wanted = f"a number says how many of the last, 1 to {depth}; one of them is a list, as [-1]"
        if not isinstance(layers, int):
            wanted = f"0 to {depth - 1}, or from the end"
        raise InputError(f"layers {layers} must name some of this encoder's {depth}: {wanted}")
    asked = [layer % depth for layer in asked]
    distinct = sorted(set(asked))
    found = vit.forward_intermediates(
        images, indices=distinct, norm=norm, stop_early=True, output_fmt="NLC", intermediates_only=True,
        return_prefix_tokens=vit.num_prefix_tokens > 0,
    )  # fmt: skip
    if vit.num_prefix_tokens:
        found = [torch.cat([prefix, patches], dim=1) for patches, prefix in found]
    # timm gives them in the order of depth, however they were asked for.
    return [found[distinct.index(layer)] for layer in asked]


def dense_features(vit: VisionTransformer, images: Tensor, layer: int) -> Tensor:
    """Patch tokens of normalised images after one block, laid out as their grid: (B, D, rows, columns), float32."""
    (tokens,) = encode_layers(vit, images, [layer])
    patches = tokens[:, vit.num_prefix_tokens :].float()
    return patches.transpose(1, 2).unflatten(2, vit.patch_embed.grid_size)


def describe(vit: VisionTransformer) -> dict:
    """The arguments of `MaskedAutoencoder` that fix its encoder, all written out, from a timm ViT."""
    return {
        "encoder": vit.pretrained_cfg["architecture"],
        "image_size": vit.patch_embed.img_size,
        "patch_size": vit.patch_embed.patch_size,
        "in_channels": vit.patch_embed.proj.in_channels,
        "embed_dim": vit.embed_dim,
        "depth": len(vit.blocks),
        "num_heads": next(module.num_heads for module in vit.blocks.modules() if hasattr(module, "num_heads")),
    }


def compile_blocks(blocks: nn.Sequential) -> None:
    """`torch.compile` each of equal blocks, in place: the first one's code serves all, which together take longer.

    Each shape has code of its own: a second one would otherwise make it slower code, for any shape.
    """
    for block in blocks:
        block.compile(dynamic=False)


def set_fused_attention(model: nn.Module, fused: bool) -> None:
    """Let timm's attention be one kernel, or else plain products: the same mathematics."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused  # type: ignore[assignment]  # timm's flag, a bool


def write_timm(
    vit: VisionTransformer, folder: Path, *, pool: str, names: dict[str, Any], mean: list[float], std: list[float]
) -> None:
    """A stock timm ViT as timm keeps it on the Hub: `model.safetensors` and a `config.json` that
    `timm.create_model("local-dir:FOLDER")` reads, with the data's mean and std and what `label_names` says of a
    classifier's classes.
    """
    num_classes = len(names["label_names"])
    sizes = describe(vit)
    write_tensors(vit.state_dict(), folder / "model.safetensors")
    write_json(
        folder / "config.json",
        {
            "architecture": sizes["encoder"],
            "num_classes": num_classes,
            "num_features": vit.num_features,
            **names,
            "model_args": {
                "img_size": list(sizes["image_size"]),
                "patch_size": list(sizes["patch_size"]),
                "in_chans": sizes["in_channels"],
                "global_pool": TIMM_POOLS[pool],
                "fc_norm": False,
                **{key: sizes[key] for key in ("embed_dim", "depth", "num_heads")},
            },
            "pretrained_cfg": {
                **preprocessing(vit, mean, std),
                "num_classes": num_classes,
                "first_conv": "patch_embed.proj",
                "classifier": "head",
            },
        },
    )
