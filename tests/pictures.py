"""Images, and tables of them, made up for the tests of data."""

import functools
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from pyarrow import csv, parquet

from tinymae import load_dataset


def as_set(images) -> set[bytes]:
    """Images to be compared in any order."""
    return {image.tobytes() for image in np.asarray(images)}


def picture(path, *, size=(12, 12), mode="RGB", seed=0) -> None:
    """Save an image of random pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"RGB": 3, "L": 1, "RGBA": 4}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    Image.fromarray(pixels.squeeze(), mode).save(path)


def resized(channel, side: int) -> np.ndarray:
    """A square channel as Pillow scales it: bicubic, smooth either way."""
    image = Image.fromarray(np.asarray(channel, dtype=np.float32)).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(image).clip(0, 255).round().astype(np.uint8)


def pixels(*shape) -> np.ndarray:
    """Random pixels of 8 bits."""
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def encode(image: np.ndarray) -> bytes:
    """The image as a PNG file."""
    memory = io.BytesIO()
    Image.fromarray(image).save(memory, "PNG")
    return memory.getvalue()


def write_table(folder, rows: list[dict], name="table.csv") -> Path:
    """A table of these rows, and an image at the path of each."""
    for row, line in enumerate(rows):
        picture(folder / line["path"], seed=row)
    table = pa.Table.from_pylist(rows)
    path = folder / name
    if name.endswith("parquet"):
        parquet.write_table(table, path)
    else:
        csv.write_csv(table, path, csv.WriteOptions(delimiter="\t" if name.endswith("tsv") else ","))
    return path


class Items(torch.utils.data.Dataset):
    """A torch Dataset of these items."""

    labels: list | None = None
    classes: list[str]

    def __init__(self, items):
        self.items = list(items)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


SPLITS = ("train", "val", "test")


def every_split(data, **options) -> dict:
    """The data set of each split."""
    return {split: load_dataset(data, split, **options) for split in SPLITS}


def describe(data, **options) -> str:
    """What is said of all images."""
    return "\n".join(load_dataset(data, "all", **options).description)


@functools.cache
def digits_as_rows() -> list:
    """(pixels as features in 0 to 1, labels) of the digits to train on, to choose by and to test with."""
    splits = [load_dataset("digits", split) for split in SPLITS]
    return [(split.images.flatten(1) / 255, split.labels) for split in splits]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_pictures(count: int, channels: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, channels, 8, 8), dtype=torch.uint8, generator=seeded())
