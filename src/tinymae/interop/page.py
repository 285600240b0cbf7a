"""A folder that shows a model in a browser: static files that any web server can hand out, and nothing from elsewhere.

It is a static Space of the Hugging Face Hub as well: its README.md says so. The page's own sources are in `web/`. What
runs the ONNX files there is onnxruntime-web, whose 14 MB come from npm when a page is written, once per machine; no
repository should carry them.
"""

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
from functools import partial
from importlib import resources
from pathlib import Path

from huggingface_hub import SpaceCardData
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from ..data.images import read_image
from ..data.sources.files import list_images
from ..errors import InputError
from ..files import write_atomically, write_bytes, write_json
from ..models.base import Autoencoder
from ..models.classifier import Classifier
from ..models.masked import PatchMasking
from .graphs import ClassifierGraph, export_onnx, reconstruction_graph

SAMPLES = Path(__file__).parents[3] / "assets" / "cifar10"  # of a source checkout
SHOWN = 10  # samples
RUNTIME = "onnxruntime-web-1.30.0"
RUNTIME_SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
# The build for the CPU alone: the others are twice the size and want a GPU or a page served with special headers.
RUNTIME_FILES = ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
MASKED = "Masked autoencoder", "Hide parts of an image. A small network paints them in from the rest."
PLAIN = "Autoencoder", "A small network encodes the whole image and decodes it again."
CARD = """
# {title}

{lead} It has {parameters:.1f} million parameters.
It runs in the browser: no image leaves the device, and nothing is fetched from elsewhere.

This folder was written by `tinymae export --format web`. Any server of static files can host it. Locally:

```bash
python -m http.server
```

As a static Space of the Hugging Face Hub, from inside this folder:

```bash
hf repos create OWNER/NAME --repo-type space --space-sdk static
hf upload OWNER/NAME . . --repo-type space
```
"""


def write_page(
    model: Autoencoder,
    folder: str | Path,
    *,
    samples: list[tuple[str, Tensor]],
    classifier: Classifier | None = None,
) -> list[Path]:
    """Write the page of a model into `folder`, where files of the same names are replaced: the files of it.

    Args:
        model: what reconstructs, of 1 or 3 channels; where its family hides patches, the page lets people choose which.
        samples: images to choose from, each with a name: uint8 (C, H, W) of the model's size.
        classifier: guesses what is in the image and in its reconstruction; of the model's image size and channels.

    Raises InputError if the channels or the classifier do not fit, or if onnxruntime-web cannot be had.
    """
    folder = Path(folder)
    require_viewable(model)
    shape = (model.in_channels, *model.image_size)
    if classifier is not None and (wanted := (classifier.in_channels, *classifier.image_size)) != shape:
        raise InputError(f"classifier takes images of {wanted}, the weights take {shape}: they must be the same")
    archive = fetch_runtime()
    folder.mkdir(parents=True, exist_ok=True)
    written = unpack_runtime(archive, folder / "onnxruntime")
    graphs = {"reconstruction": reconstruction_graph(model)}
    if classifier is not None:
        graphs["classifier"] = ClassifierGraph(classifier)
    for name, graph in graphs.items():
        graph.inputs["images"] = graph.inputs["images"].byte()  # as a browser has them
        written.append(folder / f"{name}.onnx")
        export_onnx(graph, written[-1])
    files = []
    for number, (name, image) in enumerate(samples):
        files.append({"file": f"samples/{number}.png", "name": name})
        written.append(folder / files[-1]["file"])
        write_atomically(written[-1], partial(to_pil_image(image).save, format="png"))
    masked = isinstance(model, PatchMasking)
    title, lead = MASKED if masked else PLAIN
    settings = {
        "title": title,
        "lead": lead,
        "in_channels": model.in_channels,
        "image_size": model.image_size,
        "grid_size": model.grid_size if masked else None,
        "mask_ratio": model.mask_ratio if masked else None,
        "classes": None if classifier is None else classifier.classes,
        "samples": files,
    }
    write_json(folder / "model.json", settings)
    contents = {source.name: source.read_bytes() for source in resources.files(__package__).joinpath("web").iterdir()}
    contents["README.md"] = describe_space(model).encode()
    for name, content in contents.items():
        write_bytes(folder / name, content)
    return [*written, folder / "model.json", *(folder / name for name in contents)]


def require_viewable(model: Autoencoder) -> None:
    """Raises InputError unless a browser can show the model's images."""
    if model.in_channels not in (1, 3):
        raise InputError(
            f"weights want {model.in_channels} channels, but a page shows images of 1 (grey) or 3 (RGB): give another "
            "format"
        )


def describe_space(model: Autoencoder) -> str:
    """The folder's README.md, with the head of a static Space: https://huggingface.co/docs/hub/spaces-config-reference."""
    masked = isinstance(model, PatchMasking)
    title, lead = MASKED if masked else PLAIN
    head = SpaceCardData(
        title=title, emoji="🧩", colorFrom="indigo", colorTo="gray", sdk="static", app_file="index.html", pinned=False,
        short_description="Hide parts of an image and see them painted in" if masked else "Encode and decode an image",
        tags=["tinymae", "masked-autoencoder" if masked else "autoencoder"],
    )  # fmt: skip
    parameters = sum(tensor.numel() for tensor in model.state_dict().values()) / 1e6  # of PCA all are buffers
    return f"---\n{head.to_yaml()}\n---\n{CARD.format(title=title, lead=lead, parameters=parameters)}"


def read_samples(folder: str | Path, model: Autoencoder) -> list[tuple[str, Tensor]]:
    """Up to SHOWN images of a folder, evenly spread over its files: (name, uint8 (C, H, W) of the model's size).

    Raises InputError if there are none, or if one cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"samples folder {folder} does not exist: give --samples a folder of images")
    files = [folder / path for path in list_images(folder)[0]]
    if not files:
        raise InputError(f"samples folder {folder} holds no images")
    chosen = [files[i * len(files) // SHOWN] for i in range(SHOWN)] if len(files) > SHOWN else files
    shape, options = (model.in_channels, *model.image_size), model.reading | {"depth": "uint8"}
    return [(file.stem, read_image(file, shape, **options)) for file in chosen]


def fetch_runtime() -> Path:
    """onnxruntime-web's archive: from the cache, or through npm into it.

    Raises InputError if npm is missing or fails, or if the archive is not the one that this page was made for.
    """
    archive = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "tinymae", f"{RUNTIME}.tgz")
    package, version = RUNTIME.rsplit("-", 1)
    remedy = f"or put npm's {archive.name} into {archive.parent}"
    if not archive.is_file():
        if (npm := shutil.which("npm")) is None:
            raise InputError(f"format 'web' needs npm once, to fetch {package}: install Node.js, {remedy}")
        archive.parent.mkdir(parents=True, exist_ok=True)
        command = [npm, "pack", "--silent", f"{package}@{version}", "--pack-destination", str(archive.parent)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode or not archive.is_file():
            reason = (result.stderr.strip() or "it wrote no file").splitlines()[0]
            raise InputError(f"npm could not fetch {package} {version} ({reason}): check the network, {remedy}")
    if hashlib.sha256(archive.read_bytes()).hexdigest() != RUNTIME_SHA256:
        raise InputError(f"{archive} is damaged or another {package}: remove it, and it is fetched again")
    return archive


def unpack_runtime(archive: Path, folder: Path) -> list[Path]:
    """Write the few files of the archive that the page loads, and whose they are."""
    with tarfile.open(archive) as tar:
        contents = {name: read_member(tar, f"package/dist/{name}") for name in RUNTIME_FILES}
        licence = json.loads(read_member(tar, "package/package.json"))["license"]
    note = (
        f"{RUNTIME}, Copyright (c) Microsoft Corporation, {licence} licence: https://github.com/microsoft/onnxruntime\n"
    )
    contents["NOTICE.txt"] = note.encode()
    for name, content in contents.items():
        write_bytes(folder / name, content)
    return [folder / name for name in contents]


def read_member(tar: tarfile.TarFile, name: str) -> bytes:
    """The content of a file in an archive."""
    file = tar.extractfile(name)
    assert file is not None  # a plain file, as the checksum vouches for
    return file.read()
