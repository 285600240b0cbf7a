"""Folders of Hugging Face's transformers, read and written: ViTMAEForPreTraining and ViTForImageClassification.

It takes names and JSON alone, so transformers itself is not needed. Converting renames tensors, and splits or joins the
rows of qkv; no value changes, so what is written and read again is the same bit for bit.
"""

import re
from functools import partial
from pathlib import Path

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from ..errors import InputError
from ..files import read_json, read_tensors, require_types, write_json, write_tensors
from ..models.base import Encoder
from ..models.classifier import Classifier, require_names, wrap_vit
from ..models.filling import SAYS, build_filled
from ..models.mae import MaskedAutoencoder
from ..models.vit import create_vit, describe, set_norm_eps
from ..tensors import pair
from .sizes import default_statistics, infer_sizes, require_plain

# Parts of a block: our name, then transformers' names: in files, and in modules since its release 5.
BLOCK_PARTS = {
    "norm1": ("layernorm_before", "layernorm_before"),
    "attn.q": ("attention.attention.query", "attention.q_proj"),
    "attn.k": ("attention.attention.key", "attention.k_proj"),
    "attn.v": ("attention.attention.value", "attention.v_proj"),
    "attn.proj": ("attention.output.dense", "attention.o_proj"),
    "norm2": ("layernorm_after", "layernorm_after"),
    "mlp.fc1": ("intermediate.dense", "mlp.fc1"),
    "mlp.fc2": ("output.dense", "mlp.fc2"),
}
# Where a block stands: our name, then transformers' in files, and others that its release 5 has or writes.
BLOCKS = {
    "encoder.blocks": ("vit.encoder.layer", "vit.layers"),
    "decoder_blocks": ("decoder.decoder_layers", "decoder.decoder_encoder.layer"),
}
OUTSIDE_BLOCKS = {
    "encoder.cls_token": "vit.embeddings.cls_token",
    "encoder.pos_embed": "vit.embeddings.position_embeddings",
    "encoder.patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
    "encoder.norm": "vit.layernorm",
    "encoder.head": "classifier",
    "mask_token": "decoder.mask_token",
    "decoder_pos_embed": "decoder.decoder_pos_embed",
    "decoder_embed": "decoder.decoder_embed",
    "decoder_norm": "decoder.decoder_norm",
    "decoder_pred": "decoder.decoder_pred",
}
# What is read of a config.json to fix the encoder and the classes, and transformers' defaults.
TYPES = {
    "image_size": int | tuple[int, int], "num_attention_heads": int, "layer_norm_eps": float, "id2label": dict,
}  # fmt: skip
DEFAULTS = {"image_size": 224, "num_attention_heads": 12, "layer_norm_eps": 1e-12, "id2label": {}}
# What is read of a preprocessor_config.json beside mean and std, and those where it does not normalise.
PREPROCESSING = {"do_normalize": bool | None, "do_rescale": bool | None, "rescale_factor": float | None}
UNCHANGED = {"image_mean": (0.0,), "image_std": (1.0,)}
MULTI_LABEL = "multi_label_classification"  # the `problem_type` whose probabilities are sigmoids


def from_transformers(
    folder: str | Path, *, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
) -> MaskedAutoencoder:
    """The model of a folder that `ViTMAEForPreTraining.save_pretrained` wrote, in evaluation mode.

    `mean` and `std`, per channel, are by default those of its preprocessor_config.json, else those that
    `to_transformers` wrote into config.json, else ImageNet's (0.5 for other than 3 channels). LayerNorm's epsilon is as
    its config says: transformers' default is 1e-12, though the official weights were trained with 1e-6.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     to_transformers(MaskedAutoencoder(image_size=8, patch_size=2, depth=1), folder)
    ...     from_transformers(folder).encode(torch.randn(2, 3, 8, 8)).shape
    torch.Size([2, 192])

    Raises InputError if the folder holds something else, is incomplete or damaged, or is no plain ViT.
    """
    config, sizes, state = read_folder(folder, model_type="vit_mae", architecture="ViTMAEForPreTraining")
    norm_eps = config["layer_norm_eps"]
    arguments = {
        "decoder_dim": config.get("decoder_hidden_size", 512),
        "decoder_depth": config.get("decoder_num_hidden_layers", 8),
        "decoder_heads": config.get("decoder_num_attention_heads", 16),
        "mask_ratio": config.get("mask_ratio", 0.75),
        "norm_pix_loss": config.get("norm_pix_loss", False),
        "norm_eps": None if norm_eps == 1e-6 else norm_eps,
        "mean": read_statistic(folder, config, "image_mean", mean, sizes["in_channels"], IMAGENET_DEFAULT_MEAN),
        "std": read_statistic(folder, config, "image_std", std, sizes["in_channels"], IMAGENET_DEFAULT_STD),
    }
    build = partial(MaskedAutoencoder.from_config, sizes | arguments, source=folder)
    model = build_filled(build, state, source=folder, expected=SAYS)
    model.take_reading(config, Path(folder) / "config.json")
    return model.eval()


def classifier_from_transformers(
    folder: str | Path, *, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
) -> Classifier:
    """The classifier of a folder that `ViTForImageClassification.save_pretrained` wrote, in evaluation mode.

    Its classes are named by the config's `id2label`; with `problem_type` "multi_label_classification" an image may have
    several. `mean` and `std`, per channel, are by default those of its preprocessor_config.json, else 0.5, as in
    transformers. LayerNorm's epsilon is as the config says; written by `export_timm` it becomes timm's 1e-6.

    >>> import tempfile
    >>> from tinymae.models.classifier import build_classifier
    >>> model = MaskedAutoencoder(image_size=8, patch_size=2, depth=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     to_transformers(build_classifier(model, pool="cls", classes=["cat", "dog"]), folder)
    ...     classifier_from_transformers(folder).classes
    ['cat', 'dog']

    Raises InputError if the folder holds something else, is incomplete or damaged, or is no plain ViT.
    """
    config, sizes, state = read_folder(folder, model_type="vit", architecture="ViTForImageClassification")
    problem = config.get("problem_type")
    if problem not in (None, "single_label_classification", MULTI_LABEL):
        raise InputError(f"problem_type {problem!r} of {folder} is no classification: give the folder of a classifier")
    num_classes = len(state.get("encoder.head.bias", ()))  # where there is no head, the strict check below says so
    name, sizes = sizes["encoder"], {key: value for key, value in sizes.items() if key != "encoder"}
    state = {name.removeprefix("encoder."): tensor for name, tensor in state.items()}
    build = partial(create_vit, name, **sizes, num_classes=num_classes or 1, global_pool="token", fc_norm=False)
    vit = build_filled(build, state, source=folder, expected=SAYS)
    set_norm_eps(vit, config["layer_norm_eps"])
    mean = read_statistic(folder, config, "image_mean", mean, sizes["in_channels"], (0.5,))
    std = read_statistic(folder, config, "image_std", std, sizes["in_channels"], (0.5,))
    names = config["id2label"]
    classes = [str(names.get(str(index), index)) for index in range(num_classes)]
    # Two may be called alike, as ImageNet's two cranes.
    require_names([*dict.fromkeys(classes)], source=f"{Path(folder) / 'config.json'}: id2label")
    model = wrap_vit(vit, pool="cls", mean=mean, std=std, classes=classes, several=problem == MULTI_LABEL)
    model.take_reading(config, Path(folder) / "config.json")
    return model.eval()


def to_transformers(model: MaskedAutoencoder | Classifier, folder: str | Path) -> None:
    """Write an autoencoder or a classifier as a folder of transformers.

    Its config.json, model.safetensors and preprocessor_config.json (mean, std, size) are for
    `ViTMAEForPreTraining.from_pretrained` or `ViTForImageClassification.from_pretrained`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     to_transformers(MaskedAutoencoder(image_size=8, patch_size=2, depth=1), folder)
    ...     sorted(path.name for path in Path(folder).iterdir())
    ['config.json', 'model.safetensors', 'preprocessor_config.json']

    Raises InputError for what transformers cannot express: a classifier that averages the patches (fine-tune with
    `--pool cls`), an autoencoder of images or patches that are not square, an encoder that is no plain ViT.
    """
    folder = Path(folder)
    encoder: Encoder  # what knows mean and std
    if isinstance(model, MaskedAutoencoder):
        encoder, config, state = model, autoencoder_config(model), model.state_dict()
    elif isinstance(model, Classifier):
        encoder, config, vit = model.encoder, classifier_config(model), model.vit
        assert vit is not None
        state = {f"encoder.{name}": tensor for name, tensor in vit.state_dict().items()}
    else:
        raise InputError(f"model is a {type(model).__name__}: transformers knows masked ViTs and ViT classifiers")
    write_tensors(to_transformers_names(state), folder / "model.safetensors")
    statistics = {
        f"image_{name}": values * (model.in_channels // len(values)) for name, values in encoder.statistics.items()
    }
    write_json(folder / "config.json", config | statistics | model.reading_noted)
    height, width = model.image_size
    write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": height, "width": width},
            "resample": 3,  # bicubic, as in timm's config
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            **statistics,
        },
    )


def vit_config(vit: VisionTransformer) -> dict:
    """What the configs of both models have. Raises InputError unless it is a plain ViT."""
    require_plain(vit, "transformers")
    sizes = describe(vit)
    image_size, patch_size = (
        size[0] if size[0] == size[1] else list(size) for size in (sizes["image_size"], sizes["patch_size"])
    )
    return {
        "hidden_size": vit.embed_dim,
        "num_hidden_layers": sizes["depth"],
        "num_attention_heads": sizes["num_heads"],
        "intermediate_size": 4 * vit.embed_dim,
        "hidden_act": "gelu",
        "layer_norm_eps": vit.norm.eps,
        "image_size": image_size,
        "patch_size": patch_size,
        "num_channels": sizes["in_channels"],
        "qkv_bias": True,
    }


def autoencoder_config(model: MaskedAutoencoder) -> dict:
    """The config.json of a ViTMAEForPreTraining, which knows square images and patches alone."""
    config = vit_config(model.encoder)
    if isinstance(config["image_size"], list) or isinstance(config["patch_size"], list):
        raise InputError(
            f"image_size {model.image_size} with patch_size {model.patch_size} is not square, which ViTMAE wants: "
            "adapt the model to a square size first"
        )
    sizes = model.decoder_sizes
    return config | {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        "decoder_hidden_size": sizes["decoder_dim"],
        "decoder_num_hidden_layers": sizes["decoder_depth"],
        "decoder_num_attention_heads": sizes["decoder_heads"],
        "decoder_intermediate_size": 4 * sizes["decoder_dim"],
        "mask_ratio": model.mask_ratio,
        "norm_pix_loss": model.norm_pix_loss,
    }


def classifier_config(model: Classifier) -> dict:
    """The config.json of a ViTForImageClassification, which knows the class token alone."""
    if model.vit is None:
        raise InputError(f"a classifier on a {type(model.encoder).__name__} is no ViT, which is all transformers knows")
    if model.vit.global_pool != "token":
        raise InputError(
            f"global_pool {model.vit.global_pool!r}: ViTForImageClassification classifies by the class token; "
            "fine-tune with pool 'cls'"
        )
    config = vit_config(model.vit) | {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "id2label": {str(index): name for index, name in enumerate(model.classes)},
        "label2id": {name: index for index, name in enumerate(model.classes)},
    }
    return config | ({"problem_type": MULTI_LABEL} if model.several else {})


def read_folder(folder: str | Path, *, model_type: str, architecture: str) -> tuple[dict, dict, dict[str, Tensor]]:
    """A folder's config with its defaults, the arguments of `MaskedAutoencoder` that fix its encoder, and its tensors
    under our names.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    if config.get("model_type") != model_type:
        raise InputError(f"{folder} holds model_type {config.get('model_type')!r}, not {model_type!r} ({architecture})")
    if not (folder / "model.safetensors").is_file():
        raise InputError(
            f"{folder} has no model.safetensors: "
            f"write it by transformers.{architecture}.from_pretrained(...).save_pretrained(folder)"
        )
    for name, wanted in (("hidden_act", "gelu"), ("qkv_bias", True)):
        if config.get(name, wanted) != wanted:
            raise InputError(f"{name} {config[name]!r} of {folder} is not {wanted!r}, as in the models tinymae builds")
    config = DEFAULTS | config
    require_types(config, TYPES, source=folder / "config.json")
    if not 0 < config["layer_norm_eps"] <= 1e-6:
        raise InputError(
            f"layer_norm_eps {config['layer_norm_eps']} of {folder} is outside (0, 1e-6], as timm's ViTs have"
        )
    state = from_transformers_names(read_tensors(folder / "model.safetensors"))
    sizes = infer_sizes(
        state, source=folder, image_size=pair(config["image_size"]), num_heads=config["num_attention_heads"]
    )
    return config, sizes, state


def read_statistic(
    folder: str | Path, config: dict, key: str, given: tuple[float, ...] | None, in_channels: int,
    default: tuple[float, ...],
) -> tuple[float, ...]:  # fmt: skip
    """Mean or std: as given, else as preprocessor_config.json has it, else as our config.json does, which outlives
    training in transformers, else the default.
    """
    path = Path(folder) / "preprocessor_config.json"
    if given is None and path.is_file():
        content = read_json(path)
        require_types(content, PREPROCESSING | {key: tuple[float, ...] | None}, source=path)
        rescales, factor = content.get("do_rescale", True), content.get("rescale_factor")
        if not rescales or (factor is not None and abs(255 * factor - 1) > 1e-5):
            raise InputError(
                f"{path}: do_rescale {rescales} with rescale_factor {factor} does not scale pixels by 1/255: "
                "give from_transformers or classifier_from_transformers the mean and std of pixels in [0, 1]"
            )
        normalises = content.get("do_normalize", True)  # where it is null, transformers does not
        given = content.get(key) if normalises else UNCHANGED[key]
    if given is None and key in config:
        require_types(config, {key: tuple[float, ...] | None}, source=Path(folder) / "config.json")
        given = config[key]
    return default_statistics(in_channels, given, default)


def to_transformers_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under the names of transformers' files, which all its releases read."""
    blocks, parts = ({ours: theirs[0] for ours, theirs in table.items()} for table in (BLOCKS, BLOCK_PARTS))
    return rename(split_qkv(state), blocks, parts, OUTSIDE_BLOCKS)


def from_transformers_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' tensors under our names."""
    blocks, parts = (
        {theirs: ours for ours, many in table.items() for theirs in many} for table in (BLOCKS, BLOCK_PARTS)
    )
    return join_qkv(rename(state, blocks, parts, {theirs: ours for ours, theirs in OUTSIDE_BLOCKS.items()}))


def rename(
    state: dict[str, Tensor], blocks: dict[str, str], parts: dict[str, str], outside: dict[str, str]
) -> dict[str, Tensor]:
    """Tensors under other names; a name that no table has stays, for the strict check to refuse."""
    pattern = re.compile(rf"({'|'.join(map(re.escape, blocks))})\.(\d+)\.({'|'.join(map(re.escape, parts))})")
    renamed = {}
    for name, tensor in state.items():
        stem, _, kind = name.rpartition(".")
        if place := pattern.fullmatch(stem):
            new = f"{blocks[place[1]]}.{place[2]}.{parts[place[3]]}.{kind}"
        else:  # a parameter of its own, or a layer's
            new = outside.get(name) or f"{outside.get(stem, stem)}.{kind}"
        renamed[new] = tensor
    return renamed


def split_qkv(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """attn.qkv (3D, ...) -> attn.q, attn.k and attn.v (D, ...)."""
    split = {}
    for name, tensor in state.items():
        if ".attn.qkv." in name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                split[name.replace(".attn.qkv.", f".attn.{letter}.")] = part
        else:
            split[name] = tensor
    return split


def join_qkv(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `split_qkv`; where one of the three is missing, the others stay for the strict check to refuse."""
    joined = dict(state)
    for name in state:
        trio = [name.replace(".attn.q.", f".attn.{letter}.") for letter in "qkv"]
        if ".attn.q." in name and all(part in state for part in trio):
            joined[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat([joined.pop(part) for part in trio])
    return joined
