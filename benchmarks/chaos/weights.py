"""Weights folders that are damaged or hostile."""

import copy
import json
import resource
import shutil
import socket
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

import tinymae
from tinymae import InputError
from tinymae.files import digest
from tinymae.models.classifier import build_classifier
from tinymae.models.conv import ConvAutoencoder

from .cases import SIZES, Case, flip_bits


def save_models(place: Path) -> list[Path]:
    """A folder of each kind of weights."""
    torch.manual_seed(0)
    mae = tinymae.MaskedAutoencoder(**SIZES)
    conv = ConvAutoencoder(image_size=8, width=8, latent_dim=4)
    mae.write_weights(place / "mae")
    conv.write_weights(place / "conv_ae")
    build_classifier(mae, classes=["cat", "dog"], pool="avg").write_weights(place / "vit_classifier")
    build_classifier(conv, classes=["cat", "dog"]).write_weights(place / "conv_classifier")
    tinymae.to_transformers(build_classifier(mae, classes=["cat", "dog"], pool="cls"), place / "hf_classifier")
    return sorted(place.iterdir())


def mutate_config(path: Path, generator: np.random.Generator) -> str:
    """Change a JSON file: a value of another type or size, a key more or less, or its bytes."""
    values = [None, True, "two\nlines", "", -1, 0, 1, 2, 3, 7, 12, 64, 0.5, 1e9, 10**9, 10**30, float("nan"), [], {},
              [8, "x"], [-1, -1], [8, 8], "avg", {"a": 1}, [[]], "MaskedAutoencoder", "vit_tiny"]  # fmt: skip
    way = str(generator.choice(["value", "value", "value", "gone", "extra", "flipped", "truncated"]))
    if way in ("flipped", "truncated"):
        whole = path.read_bytes()
        cut = int(generator.integers(len(whole)))
        path.write_bytes(flip_bits(whole, generator) if way == "flipped" else whole[:cut])
        return f"{path.name} {way}"
    content = inner = json.loads(path.read_text())
    key = str(generator.choice(sorted(inner)))
    while isinstance(inner[key], dict) and inner[key] and generator.integers(5):
        inner = inner[key]
        key = str(generator.choice(sorted(inner)))
    value = copy.deepcopy(values[generator.integers(len(values))])
    if way == "gone":
        del inner[key]
    else:
        extras = ["checkpoint_path", "pretrained", "self", "device", "a\nkey", "depth", "encoder"]
        key = key if way == "value" else str(generator.choice(extras))
        inner[key] = value
    path.write_text(json.dumps(content))
    return f"{path.name} {key!r} {way}" + (f": {value!r}" if way != "gone" else "")


def mutate_tensors(path: Path, others: list[Path], generator: np.random.Generator) -> str:
    """Change a safetensors file: its bits, its length, the order of its bytes or of its names; or take another's."""
    whole = path.read_bytes()
    start, at = 8 + int.from_bytes(whole[:8], "little"), int(generator.integers(len(whole)))
    way = str(generator.choice(["flipped", "flipped in header", "truncated", "shuffled", "swapped", "another's"]))
    if way == "shuffled":
        body = np.frombuffer(whole[start:], np.uint8).copy()
        generator.shuffle(body)
        whole = whole[:start] + body.tobytes()
    elif way == "swapped":
        header = json.loads(whole[8:start])
        one, two = (
            str(name) for name in generator.choice([n for n in header if n != "__metadata__"], 2, replace=False)
        )
        header[one], header[two] = header[two], header[one]
        whole = whole[:8] + json.dumps(header, separators=(",", ":")).encode().ljust(start - 8) + whole[start:]
    elif way == "another's":
        whole = (others[generator.integers(len(others))] / "model.safetensors").read_bytes()
    else:
        flipped = flip_bits(whole, generator, within=start if way == "flipped in header" else None)
        whole = whole[:at] if way == "truncated" else flipped
    path.write_bytes(whole)
    return f"{path.name} {way}"


def prepare(place: Path, seed: int) -> Callable[[int], Case]:
    """tinymae.load gives the tensors that were saved, in a model that works, or an InputError on one line."""
    folders, asked = save_models(place), []

    def refuse(*arguments, **_):
        asked.append(str(arguments))
        raise OSError("the network was asked")

    for owner, name in ((socket.socket, "connect"), (socket, "create_connection"), (socket, "getaddrinfo")):
        setattr(owner, name, refuse)
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    known = {}
    for folder in folders:
        model = tinymae.load(folder)
        model(images if isinstance(model, tinymae.MaskedAutoencoder) else images.float())
        known[folder] = digest(model.state_dict())

    def check(number: int) -> Case:
        generator = np.random.default_rng([seed, 4, number])
        source, folder, lost = folders[generator.integers(len(folders))], place / "mutant", None
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)
        others = [each for each in folders if each != source]
        files = sorted(path for path in folder.glob("*.json"))
        if generator.integers(5) < 2:
            changed = mutate_tensors(folder / "model.safetensors", others, generator)
        else:
            changed = mutate_config(files[generator.integers(len(files))], generator)
        what, before = f"{source.name}: {changed}", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            model = tinymae.load(folder)
            if digest(model.state_dict()) != known[source] and "safetensors" in changed:
                # A damage that also removes the checksum's name makes a file of another writer, who gives none.
                with safe_open(folder / "model.safetensors", "pt") as file:
                    lost = "gave a model with other tensors" if "sha256" in (file.metadata() or {}) else None
        except InputError as error:
            lost = f"said {str(error)!r}" if "\n" in str(error) else None
        except Exception as error:
            lost = f"raised {error!r}: {traceback.format_exc()[-900:]}"
        growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        if growth > 500:
            lost = lost or f"took {growth:.0f} MB"
        if asked:
            lost = f"asked the network: {asked.pop()}"
        return {"what": what, "lost": lost}

    return check
