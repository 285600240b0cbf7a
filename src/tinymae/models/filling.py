"""Weights that somebody else may have written: found, and filled into a model name by name, shape by shape."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id
from torch import Tensor, nn

from ..errors import InputError, first_line
from ..files import closest_path, read_tensors

Built = TypeVar("Built", bound=nn.Module)
SAYS = "its config.json says"
WEIGHTS_FILES = ["config.json", "preprocessor_config.json", "model.safetensors", "README.md", "*.png"]


def folder_of(source: str | Path) -> Path:
    """The folder, where `source` names the config.json or the model.safetensors of one; else `source` itself."""
    path = Path(source)
    inside = path.name in ("config.json", "model.safetensors") and path.with_name("config.json").is_file()
    return path.parent if inside and path.is_file() else path


def find_weights(source: str | Path, **download) -> Path:
    """A folder with config.json and model.safetensors: a local one, that of either file, or a Hub id's, downloaded.

    Raises InputError if it does not exist, here or on the Hub, or holds no weights.
    """
    folder = folder_of(source)
    if folder.is_file():
        raise InputError(f"weights {source} is a file: give a folder that holds config.json and model.safetensors")
    if not folder.is_dir():
        missing, hint = f"weights folder {source} does not exist", closest_path(folder)
        try:
            validate_repo_id(str(source))
        except HFValidationError:
            raise InputError(missing + hint) from None
        # A mistyped path, or a disk that is not there: on the Hub that name may be a stranger's.
        if len(folder.parts) > 1 and folder.parent.is_dir():
            raise InputError(f"{missing}{hint}; the Hugging Face Hub is not asked, as {folder.parent} is a folder here")
        if hint:
            raise InputError(missing + hint)
        try:
            folder = Path(snapshot_download(str(source), allow_patterns=WEIGHTS_FILES, **download))
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise InputError(f"{missing}, and the Hugging Face Hub gave nothing ({first_line(error)})") from None
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise InputError(f"weights folder {folder} has no {name}: is the run finished?")
    return folder


def build_from_file(build: Callable[[], Built], path: str | Path) -> Built:
    """The model that `build` makes, filled from a safetensors file.

    Raises InputError, naming the file, if it is missing, damaged, not finite, or of another architecture.
    """
    return build_filled(build, read_tensors(path), source=path, expected=SAYS)


def build_filled(build: Callable[[], Built], state: dict[str, Tensor], *, source: str | Path, expected: str) -> Built:
    """The model that `build` makes, every parameter and buffer from `state`, in the model's own dtype.

    It is first built without memory, so that sizes which the tensors do not bear out cost none. Raises InputError, in
    the words "SOURCE holds another architecture than EXPECTED", unless names and shapes match one by one, and for
    tensors that are not finite.
    """
    with torch.device("meta"):
        require_same_shapes(build(), state, source=source, expected=expected)
    model = build()
    fill(model, state, source=source)
    return model


def fill(model: nn.Module, state: dict[str, Tensor], *, source: str | Path) -> None:
    """Load tensors of the model's names and shapes. Raises InputError for NaN or infinity among them."""
    model.load_state_dict(state, strict=True)
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise InputError(f"{source} has NaN or infinity in {name}: its training diverged, give other weights")


def require_same_shapes(model: nn.Module, state: dict[str, Tensor], *, source: str | Path, expected: str) -> None:
    """Raises InputError unless `state` has the names and shapes of the model's parameters and buffers."""
    wanted = model.state_dict()
    missing, unexpected = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or unexpected:
        raise InputError(
            f"{source} holds another architecture than {expected}: "
            f"missing {missing[:3]}, unexpected {unexpected[:3]} ({len(missing)} and {len(unexpected)} in all)"
        )
    for name, tensor in state.items():
        if tensor.shape != wanted[name].shape:
            raise InputError(
                f"{source} holds {name} of shape {tuple(tensor.shape)} where {expected} {tuple(wanted[name].shape)}"
            )
