"""Images, and tables of them, made up for the tests of data."""

import io

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import csv, parquet


def as_set(images) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def picture(path, *, size=(12, 12), mode="RGB", seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"RGB": 3, "L": 1, "RGBA": 4}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    Image.fromarray(pixels.squeeze(), mode).save(path)


def pixels(*shape) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def encode(image: np.ndarray) -> bytes:
    memory = io.BytesIO()
    Image.fromarray(image).save(memory, "PNG")
    return memory.getvalue()


def write_table(folder, rows: list[dict], name="table.csv"):
    for row, line in enumerate(rows):
        picture(folder / line["path"], seed=row)
    table = pa.Table.from_pylist(rows)
    path = folder / name
    if name.endswith("parquet"):
        parquet.write_table(table, path)
    else:
        csv.write_csv(table, path, csv.WriteOptions(delimiter="\t" if name.endswith("tsv") else ","))
    return path
