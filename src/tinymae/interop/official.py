"""The official MAE's checkpoints, read and written.

Converting renames tensors; no value changes, so what is written and read again is the same bit for bit. The pixels of a
patch are in the order row, column, channel, in theirs as in `patchify`.
"""

import argparse
import re
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from ..errors import InputError, refusal, warn
from ..files import read_tensors, require_types, write_atomically
from ..models.filling import build_filled, fill, require_same_shapes
from ..models.mae import MaskedAutoencoder
from ..models.vit import describe
from .sizes import count_blocks, default_statistics, guess_heads, infer_sizes, require_plain


def from_official(
    path: str | Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    num_heads: int | None = None,
    decoder_dim: int | None = None,
    decoder_depth: int | None = None,
    decoder_heads: int | None = None,
    mask_ratio: float = 0.75,
    norm_pix_loss: bool = True,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> MaskedAutoencoder:
    """The model of an official MAE checkpoint (.pth, .safetensors), in evaluation mode. Sizes are read off the tensors.

    The file may hold tensors, plain values and an `argparse.Namespace`; anything else is refused, as unpickling it
    could run code.

    A file of the encoder alone, as most of the released ones are, leaves the decoder at its initialisation and warns
    (UserWarning): its features are the pretrained ones, its reconstructions are not.

    >>> import tempfile
    >>> model = MaskedAutoencoder(image_size=8, patch_size=2, embed_dim=64, depth=1, num_heads=1, decoder_heads=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     to_official(model, f"{folder}/mae.pth")
    ...     from_official(f"{folder}/mae.pth").num_features
    64

    Args:
        path: the file, with the weights under "model" or at its top.
        image_size: needed where the patches form no square.
        num_heads: by default what `to_official` wrote beside the weights; else 16 for ViT-H (width 1280), and heads
            64 wide for ViT-Ti to ViT-L, or, with a warning, for other widths.
        decoder_heads: likewise; 16 for width 512 (the paper's).
        decoder_dim, decoder_depth: of the new decoder of an encoder-only file (default: the paper's 512 and 8).
        mask_ratio: as in `MaskedAutoencoder`.
        norm_pix_loss: whether it was trained so; the released ones were, but for those named "visualize".
        mean, std: per channel; by default what `to_official` wrote, else ImageNet's, and 0.5 for other than 3 channels.

    Raises:
        InputError: the file is missing or damaged, holds other objects or a fine-tuned classifier, or its sizes
            cannot be inferred or contradict an argument.
    """
    official, written = read_official(path)
    num_heads, decoder_heads = num_heads or written.get("num_heads"), decoder_heads or written.get("decoder_heads")
    mean, std = (written.get(name) if given is None else given for name, given in (("mean", mean), ("std", std)))
    decoder = ("decoder_", "mask_token")
    state = {name if name.startswith(decoder) else f"encoder.{name}": tensor for name, tensor in official.items()}
    sizes = infer_sizes(state, source=path, image_size=image_size, num_heads=num_heads)
    has_decoder = "decoder_embed.weight" in state
    if has_decoder and state["decoder_embed.weight"].ndim != 2:
        raise InputError(f"{path} holds no masked autoencoder: decoder_embed.weight is no matrix")
    found: dict[str, Any] = {"decoder_dim": 512, "decoder_depth": 8}
    if has_decoder:
        found["decoder_dim"] = len(state["decoder_embed.weight"])
        found["decoder_depth"] = count_blocks(state, "decoder_blocks")
    asked = {"decoder_dim": decoder_dim, "decoder_depth": decoder_depth}
    given = {name: value for name, value in asked.items() if value is not None}
    for name, value in given.items():
        if has_decoder and value != found[name]:
            raise InputError(f"{name} {value} contradicts {path}, whose decoder has {found[name]}: leave it out")
    found |= given
    heads = decoder_heads or guess_heads(found["decoder_dim"], known={512: 16}, name="decoder_heads", source=path)
    build = partial(
        MaskedAutoencoder, **sizes, **found, decoder_heads=heads, mask_ratio=mask_ratio, norm_pix_loss=norm_pix_loss,
        mean=default_statistics(sizes["in_channels"], mean, IMAGENET_DEFAULT_MEAN),
        std=default_statistics(sizes["in_channels"], std, IMAGENET_DEFAULT_STD),
    )  # fmt: skip
    expected = "a plain ViT MAE of its sizes has"
    if has_decoder:
        model = build_filled(build, state, source=path, expected=expected)
        model.take_reading(written, Path(path))
        return model.eval()
    encoder = {name.removeprefix("encoder."): tensor for name, tensor in state.items()}
    with torch.device("meta"):  # as in `build_filled`
        require_same_shapes(build().encoder, encoder, source=path, expected=expected)
    model = build()
    fill(model.encoder, encoder, source=path)
    warn(f"{path} holds an encoder alone: the decoder is at its initialisation")
    return model.eval()


def to_official(model: MaskedAutoencoder, path: str | Path) -> None:
    """Write an autoencoder as the official code's checkpoint: {"model": weights, "heads": those of encoder and
    decoder, "statistics": mean and std, "reading": how files are read, where it is not by the defaults}, all but the
    weights for `from_official`: the official code has no place for them.

    The official code's norm_eps is 1e-6.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     to_official(MaskedAutoencoder(image_size=8, patch_size=2, depth=1), f"{folder}/mae.pth")
    ...     len(torch.load(f"{folder}/mae.pth", weights_only=True)["model"]["pos_embed"][0])
    17

    Raises InputError if the model is no plain ViT.
    """
    if not isinstance(model, MaskedAutoencoder):
        raise InputError(f"model is a {type(model).__name__}: an official checkpoint holds a masked autoencoder")
    require_plain(model.encoder, "the official code")
    state = {name.removeprefix("encoder."): value.detach().cpu() for name, value in model.state_dict().items()}
    sizes = describe(model.encoder) | model.decoder_sizes
    heads = {name: sizes[name] for name in ("num_heads", "decoder_heads")}
    content = {"model": state, "heads": heads, "statistics": model.statistics, **model.reading_noted}
    write_atomically(path, lambda beside: torch.save(content, beside))


def read_official(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict of an official checkpoint, under its own names; and, if `to_official` wrote it, heads, mean,
    std and reading.
    """
    tensors_alone = Path(path).suffix == ".safetensors"
    content: Any = read_tensors(path) if tensors_alone else unpickle(path)
    state = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise InputError(f"{path} holds no weights under 'model' or at its top")
    if any(tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size() for tensor in state.values()):
        raise InputError(f"{path} holds tensors that are larger than what is stored of them: it is no checkpoint")
    if any(name.startswith(("head.", "fc_norm.")) for name in state):
        raise InputError(f"{path} holds a classifier (it has a head): give a checkpoint of pretraining")
    if tensors_alone and "patch_embed.proj.weight" not in state:
        raise InputError(
            f"{path} holds no official checkpoint: give tinymae.load the folder that has its config.json too"
        )
    kinds: dict[str, dict[str, Any]] = {
        "heads": dict.fromkeys(("num_heads", "decoder_heads"), int | None),
        "statistics": dict.fromkeys(("mean", "std"), list[float]),
    }
    written: dict[str, Any] = {}
    for name, types in kinds.items():
        if "model" in content and content.get(name) is not None:
            require_types(content, {name: dict}, source=path)
            require_types(content[name], types, source=path)
            written |= {key: content[name].get(key) for key in types}
    if "model" in content:
        written["reading"] = content.get("reading", {})
    return state, written


def unpickle(path: str | Path) -> Any:
    """What a .pth file holds, of types that run no code. Raises InputError, naming it, for others, or for damage."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except Exception as error:  # the unpickler meets damage in many ways
        if foreign := re.search(r"GLOBAL (\S+)", str(error)):
            raise InputError(
                f"{path} holds a {foreign[1]}, and to unpickle more than tensors could run code: "
                "save its state dict alone, by torch.save({'model': state_dict}, path)"
            ) from None
        raise refusal(
            error, f"{path} is truncated, damaged or no checkpoint ({type(error).__name__}): copy it again"
        ) from None
