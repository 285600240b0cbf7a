"""What a ViT's tensors state of its architecture, and whether it is the plain ViT that other libraries know."""

import math
from pathlib import Path

from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from ..errors import InputError, warn
from ..models.vit import create_vit, describe
from ..tensors import pair

# The timm name says little more than the width: depth and heads are written out beside it.
ENCODERS = {
    192: "vit_tiny_patch16_224", 384: "vit_small_patch16_224", 768: "vit_base_patch16_224",
    1024: "vit_large_patch16_224", 1280: "vit_huge_patch14_224",
}  # fmt: skip
HEADS = {width: width // 64 for width in ENCODERS} | {1280: 16}


def infer_sizes(
    state: dict[str, Tensor], *, source: str | Path, image_size: int | tuple[int, int] | None, num_heads: int | None
) -> dict:
    """The arguments of `MaskedAutoencoder` that fix its encoder, from tensors under our names."""
    needed = ("encoder.patch_embed.proj.weight", "encoder.pos_embed", "encoder.blocks.0.mlp.fc1.weight")
    if any(name not in state for name in needed):
        raise InputError(f"{source} holds no masked autoencoder or ViT: it has no {', '.join(needed)}")
    if (state[needed[0]].ndim, state[needed[1]].ndim) != (4, 3):
        raise InputError(f"{source} holds no ViT: its patch projection is no convolution, or its positions no sequence")
    if min(min(state[name].shape) for name in needed[:2]) < 1 or state[needed[1]].shape[1] < 2:
        raise InputError(f"{source} holds no ViT: its patch projection or its positions are empty")
    embed_dim, in_channels, *patch_size = state["encoder.patch_embed.proj.weight"].shape
    num_patches = state["encoder.pos_embed"].shape[1] - 1
    if image_size is None:
        side = math.isqrt(num_patches)
        if side**2 != num_patches:
            raise InputError(
                f"image_size of {source} cannot be inferred: {num_patches} patches do not form a square; "
                "pass image_size"
            )
        image_size = (side * patch_size[0], side * patch_size[1])
    image_size = pair(image_size)
    if (image_size[0] // patch_size[0]) * (image_size[1] // patch_size[1]) != num_patches:
        raise InputError(
            f"image_size {image_size} does not give the {num_patches} patches of {tuple(patch_size)} pixels "
            f"that {source} has"
        )
    return {
        "encoder": ENCODERS.get(embed_dim, ENCODERS[192]),
        "image_size": image_size,
        "patch_size": tuple(patch_size),
        "in_channels": in_channels,
        "embed_dim": embed_dim,
        "depth": count_blocks(state, "encoder.blocks"),
        "num_heads": num_heads or guess_heads(embed_dim, known=HEADS, name="num_heads", source=source),
    }


def count_blocks(state: dict[str, Tensor], place: str) -> int:
    """How many blocks are numbered after `place`."""
    return len({name[len(place) + 1 :].split(".")[0] for name in state if name.startswith(f"{place}.")})


def guess_heads(width: int, *, known: dict[int, int], name: str, source: str | Path) -> int:
    """Heads leave no trace in shapes: the known sizes', else, with a warning, heads 64 wide.

    Raises InputError if they do not divide.
    """
    if width in known:
        return known[width]
    if width % 64:
        raise InputError(f"{name} of {source} cannot be inferred: width {width} is not a multiple of 64; pass {name}")
    warn(f"{source} does not say its {name}: taken for {width // 64}, 64 wide each; give {name} if it has others")
    return width // 64


def require_plain(vit: VisionTransformer, target: str) -> None:
    """Raises InputError unless the ViT is the paper's: one class token, learned positions, MLP ratio 4, GELU."""
    name = vit.pretrained_cfg["architecture"]
    problem = f"encoder {name!r} is no plain ViT, which is all that {target} knows"
    if any(type(block) is not Block for block in vit.blocks):
        raise InputError(problem)
    sizes = {key: value for key, value in describe(vit).items() if key != "encoder"}
    # One block is enough to know them all, and spares the memory of a second ViT-H.
    plain = create_vit(ENCODERS[192], **sizes | {"depth": 1}, num_classes=vit.num_classes, fc_norm=False)
    ours = {name: tensor.shape for name, tensor in vit.state_dict().items()}
    theirs = {
        name.replace("blocks.0.", f"blocks.{number}."): tensor.shape
        for name, tensor in plain.state_dict().items()
        for number in range(len(vit.blocks))
    }
    norms = {module.eps for module in vit.modules() if isinstance(module, nn.LayerNorm)}
    activations = {type(block.mlp.act) for block in vit.blocks}
    if ours != theirs or max(norms) > 1e-6 or len(norms) > 1 or activations != {nn.GELU} or vit.no_embed_class:
        odd = sorted(name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name))
        raise InputError(problem + (f": it differs in {', '.join(odd[:3])}" if odd else ""))


def default_statistics(
    in_channels: int, given: tuple[float, ...] | None, default: tuple[float, ...]
) -> tuple[float, ...]:
    """Mean or std as given; else the default, which for another number of channels is 0.5."""
    if given is not None:
        return given
    return default if len(default) in (1, in_channels) else (0.5,)
