"""A folder on disk, or on the Hugging Face Hub: what autoencoders and classifiers are saved as."""

import shutil
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import PyTorchModelHubMixin
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from typing_extensions import Self

from ..errors import InputError, first_line
from ..files import digest, read_json, require_types
from .filling import find_weights

# What weights keep of how their images were read, where it is not as usual.
READING: dict[str, Any] = {
    "fit": Literal["pad"] | None, "pixel_range": tuple[float, float] | None, "depth": Literal["uint16"] | None,
}  # fmt: skip

UNREACHABLE: type[Exception] = HfHubHTTPError.__bases__[0]  # without a network the Hub's client raises httpx's own


class Pretrained(PyTorchModelHubMixin, library_name="tinymae"):
    """Saved as `model.safetensors` and `config.json`, by `save_pretrained` and `push_to_hub`, and read by
    `from_pretrained`.
    """

    source: Path | None = None  # the folder that the weights came from
    # How the images that it learned from were read, as READING has it: `load_dataset` takes `fit` and `pixel_range`.
    reading: dict[str, Any] = {}  # noqa: RUF012  # replaced, never written into

    def write_weights(self, folder: str | Path) -> None:
        """Write `model.safetensors` and `config.json`, each atomically."""
        raise NotImplementedError

    @classmethod
    def build_from_folder(cls, folder: Path, config: dict) -> Self:
        """The model of a folder whose config.json has been read, but for its `reading`."""
        raise NotImplementedError

    @classmethod
    def from_folder(cls, folder: Path, config: dict) -> Self:
        """The model of a folder whose config.json has been read, in evaluation mode.

        Raises InputError for a config that is not one of ours, or does not fit the weights.
        """
        model = cls.build_from_folder(folder, {name: value for name, value in config.items() if name != "reading"})
        model.source = folder
        model.take_reading(config, folder / "config.json")
        return model.eval()  # type: ignore[attr-defined]  # all are modules

    def take_reading(self, config: dict, file: Path) -> None:
        """Set `reading` to what the content of a file says of it. Raises InputError for what it cannot be."""
        reading, source = config.get("reading", {}), f"{file}: reading"
        require_types({"reading": reading}, {"reading": dict}, source=file)
        require_types(reading, READING, source=source)
        self.reading = {name: reading[name] for name in READING if reading.get(name) is not None}
        low, high = bounds = self.reading.get("pixel_range", [0, 1])
        if not low < high:
            raise InputError(f"{source}: pixel_range {bounds}: the first must be the lower one")

    @property
    def fingerprint(self) -> str:
        """What runs on these weights record of them: sha256 over the tensors."""
        return digest(self.state_dict())  # type: ignore[attr-defined]  # all are modules

    @property
    def loading(self) -> dict[str, Any]:
        """What of `reading` `load_dataset` takes."""
        return {name: self.reading[name] for name in ("fit", "pixel_range") if name in self.reading}

    @property
    def reading_noted(self) -> dict[str, Any]:
        """What a config.json says of `reading`."""
        return {"reading": self.reading} if self.reading else {}

    @classmethod
    def wrote(cls, config: dict) -> bool:
        """Whether a config.json is one of this class."""
        return config.get("architecture") == cls.__name__

    def save_pretrained(self, save_directory: str | Path, **kwargs) -> str | None:
        """Write `model.safetensors`, `config.json` and a model card into a folder, as on the Hugging Face Hub.

        The card of the folder that the model was loaded from, with its images, goes along; `push_to_hub` likewise.

        >>> import tempfile
        >>> from tinymae import MaskedAutoencoder
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = MaskedAutoencoder(image_size=8, patch_size=2, depth=1).save_pretrained(folder)
        ...     sorted(path.name for path in Path(folder).iterdir())
        ['README.md', 'config.json', 'model.safetensors']
        """
        return super().save_pretrained(save_directory, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs) -> str:
        """Upload what `save_pretrained` writes to the Hugging Face Hub; the keywords are `huggingface_hub`'s.

        Raises InputError where the Hub cannot be reached, or does not take it.
        """
        try:
            return super().push_to_hub(repo_id, **kwargs)
        except (UNREACHABLE, HFValidationError, OSError) as error:
            raise InputError(
                f"{repo_id} was not uploaded, as the Hugging Face Hub cannot be reached or refuses it "
                f"({first_line(error)}): check the network, the name and that you are logged in (hf auth login)"
            ) from None

    def _save_pretrained(self, save_directory: Path) -> None:
        """Called by the mixin's `save_pretrained` and `push_to_hub`; unlike the mixin's own it adds a checksum."""
        self.write_weights(save_directory)
        if self.source is not None and self.source.resolve() != save_directory.resolve():
            for file in (*self.source.glob("README.md"), *self.source.glob("*.png")):
                shutil.copy(file, save_directory)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # its name says more
        cls, folder_or_hub_id: str | Path, *, revision: str | None = None, token: str | bool | None = None,
        cache_dir: str | Path | None = None, force_download: bool = False, local_files_only: bool = False,
    ) -> Self:  # fmt: skip
        """The model of a local folder or of the Hugging Face Hub, in evaluation mode.

        The keywords are those of `huggingface_hub.snapshot_download`, for the Hub alone.

        >>> import tempfile
        >>> from tinymae import MaskedAutoencoder
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = MaskedAutoencoder(image_size=8, patch_size=2, depth=1).save_pretrained(folder)
        ...     MaskedAutoencoder.from_pretrained(folder).num_features
        192

        Raises InputError if there is none, or if its weights are damaged or of another architecture.
        """
        folder = find_weights(
            folder_or_hub_id, revision=revision, token=token, cache_dir=cache_dir, force_download=force_download,
            local_files_only=local_files_only,
        )  # fmt: skip
        config = read_json(folder / "config.json")
        if not cls.wrote(config):
            raise InputError(
                f"weights folder {folder} holds a {config.get('architecture')}, not a {cls.__name__}: "
                "tinymae.load reads every kind"
            )
        return cls.from_folder(folder, config)
