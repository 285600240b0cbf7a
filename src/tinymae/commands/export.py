"""Hand trained weights to other programs: timm, ONNX Runtime, torch.export, or a page in the browser."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from ..data.batches import pick
from ..data.datasets import require_channels
from ..data.load import load_dataset
from ..errors import InputError
from ..files import is_about, unwritable, write_json
from ..interop.graphs import ClassifierGraph, EncoderGraph, Graph, export_onnx, export_torch, reconstruction_graph
from ..interop.load import Model, load, load_autoencoder, load_classifier
from ..interop.page import SAMPLES, read_samples, require_viewable, write_page
from ..interop.quantise import quantise_onnx
from ..interop.timm import export_timm
from ..models.classifier import Classifier, encoder_of
from .fields import Settings, keywords_of, setting
from .results import Result
from .settings import Pool

CALIBRATION = 256  # images


@dataclass(frozen=True)
class ExportSettings(Settings):
    """Settings of an export."""

    heading = "export"
    weights: str | Path | Model = setting(help="what a run gave: a folder, or a Hub id")
    _: KW_ONLY
    format: Literal["timm", "onnx", "torch", "web"] = setting(help="what to write")
    output_dir: str | Path = setting(help="folder for the files; old ones are replaced")
    pool: Pool = setting("avg", "the features", group="onnx and torch")
    normalised: bool = setting(False, "the encoder takes normalised floats, not pixels", group="onnx and torch")
    int8: str | Path | None = setting(
        None, "training images, as --data of pretraining takes them: also write the encoder or classifier in 8 bits, "
        "scaled by what 256 of them give", group="onnx",
    )  # fmt: skip
    data_dir: str | Path = setting("data", "where named data sets are, or go", group="onnx")
    classifier: str | Path | Model | None = setting(
        None, "what fine-tuning or probing gave, to show what it guesses", group="web"
    )
    samples: str | Path | None = setting(None, "folder of images to choose from (default: CIFAR-10's)", group="web")


def run(settings: ExportSettings) -> Result[Model]:
    """Write weights for another program; `.results` has the size of each file in bytes.

    Of an autoencoder come the encoder (images -> features) and the reconstruction (pixels, mask -> images in [0, 1]);
    of a classifier, pixels -> probabilities. Normalisation is inside, batches may have any size, and the
    outputs are torch's to 1e-4. With `int8` an ONNX encoder or classifier is written a second time, as NAME.int8.onnx,
    whose outputs are near those of the first.

    Raises InputError for weights that cannot be written so.
    """
    folder = Path(settings.output_dir)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output_dir {folder} is a file")
    if settings.classifier is not None and settings.format != "web":
        raise InputError(f"classifier {settings.classifier} is for --format web; here give it as --weights")
    if settings.int8 is not None and settings.format != "onnx":
        raise InputError(f"int8 {settings.int8} is for --format onnx: leave it out")
    try:
        model, takes = write_files(settings, folder)
        sizes = {path: path.stat().st_size for path in sorted(takes)}
    except OSError as error:
        if is_about(error, folder):
            raise unwritable(folder, error) from error
        raise
    for path, size in sizes.items():
        print(f"{path}  {size / 1e6:.1f} MB{takes[path]}")
    if settings.format == "web":
        print(f"to look at it: python -m http.server --directory {folder}, then open http://localhost:8000")
    return Result(model, {"bytes": {str(path.relative_to(folder)): size for path, size in sizes.items()}}, folder)


export = keywords_of(run, ExportSettings)


def write_files(settings: ExportSettings, folder: Path) -> tuple[Model, dict[Path, str]]:
    """Write what is asked for: the model, and the files, each with what it takes if it is a graph, in words."""
    if settings.format == "web":
        require_viewable(autoencoder := load_autoencoder(settings.weights))
        classifier = None if settings.classifier is None else load_classifier(settings.classifier)
        samples = read_samples(SAMPLES if settings.samples is None else settings.samples, autoencoder)
        return autoencoder, dict.fromkeys(write_page(autoencoder, folder, samples=samples, classifier=classifier), "")
    model = load(settings.weights)
    if settings.format == "timm":
        export_timm(model, folder)
        return model, dict.fromkeys([folder / "model.safetensors", folder / "config.json"], "")
    return model, write_graphs(settings, model, folder)


def write_graphs(settings: ExportSettings, model: Model, folder: Path) -> dict[Path, str]:
    """A file of each thing that the weights can do, and config.json with image size, mean, std and class names.

    Returns the files, each with what it takes, in words.
    """
    graphs: dict[str, Graph]
    if isinstance(model, Classifier):
        if settings.normalised:
            raise InputError("normalised is for encoders, a classifier takes pixels: leave it out")
        graphs = {"classifier": ClassifierGraph(model)}
        config: dict = model.label_names
    else:
        encoder = EncoderGraph(model, pool=settings.pool, normalised=settings.normalised)
        graphs = {"encoder": encoder, "reconstruction": reconstruction_graph(model)}
        config = {"architecture": type(model).__name__, **model.config}
    batches = None if settings.int8 is None else calibration_batches(settings, model)
    config_file = folder / "config.json"
    takes = {config_file: ""}
    for name, graph in graphs.items():
        words = ", takes " + ", ".join(f"{given} {describe(example)}" for given, example in graph.inputs.items())
        if settings.format == "onnx":
            takes[path := folder / f"{name}.onnx"] = words
            export_onnx(graph, path)
            if batches is not None and name != "reconstruction":  # whose hidden tokens are closed by a huge number
                takes[small := folder / f"{name}.int8.onnx"] = words
                quantise_onnx(path, small, batches)
        else:
            takes[path := folder / f"{name}.pt2"] = words
            export_torch(graph, path)
    statistics = {name: getattr(encoder_of(model), name).flatten().tolist() for name in ("mean", "std")}
    size = {"image_size": [*model.image_size]}
    write_json(config_file, config | size | statistics | model.reading_noted)
    return takes


def describe(example: torch.Tensor) -> str:
    """An input's type and shape, for a batch of any size.

    >>> describe(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    'uint8 (B, 3, 32, 32)'
    """
    kind = str(example.dtype).removeprefix("torch.")
    return f"{kind} (B, {', '.join(map(str, example.shape[1:]))})"


def calibration_batches(settings: ExportSettings, model: Model) -> list[dict[str, np.ndarray]]:
    """Training images as the graphs take them."""
    dataset = pick(load_dataset(settings.int8, data_dir=settings.data_dir, model=model), CALIBRATION)
    require_channels(dataset, model.in_channels)
    images, _ = dataset[torch.arange(len(dataset))]
    if settings.normalised:
        images = model.normalise(images).cpu()
    elif dataset.depth != (wanted := model.reading.get("depth", "uint8")):
        raise InputError(
            f"int8 {settings.int8} has {dataset.depth} images, those of the weights are {wanted}: give such"
        )
    return [{"images": part.numpy()} for part in images.split(32)]
