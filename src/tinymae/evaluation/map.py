"""map.html: one page that shows images as points in two dimensions, and asks nothing of the network."""

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..files import write_bytes
from .figures import thumbnails
from .pages import render

COLUMNS = 16  # of a sheet of images; it has as many rows
PIXELS = 2**25  # of all images in the page: some 20 MB
LARGEST = 96  # pixels a side of an image, as the page shows it


@dataclass
class Colouring:
    """One way to colour the points."""

    name: str
    labels: Sequence[str]  # as the legend has them
    values: Sequence[int] | NDArray[np.integer]  # (N,): which of them each image has


def write_map(
    path: str | Path, *, places: NDArray[np.float32], names: Sequence[str], images: Callable[[Tensor], Tensor],
    side: int, colourings: Sequence[Colouring], title: str, subtitle: str,
) -> Path:  # fmt: skip
    """Write the page. Images are read sheet by sheet: of each, memory holds only what the page does.

    Args:
        path: the file.
        places: (N, 2) in the unit square.
        names: of the images.
        images: indices (B,) -> images (B, C, H, W), as `viewable` takes them.
        side: pixels a side of the images; smaller in the page where there are many.
        colourings: the first is shown first.
        title, subtitle: above the map.
    """
    # Images that are close stand in the same sheet, so that a look at a region decodes few.
    order = by_place(places, COLUMNS**2)
    side = int(min(side, LARGEST, max(16.0, (PIXELS / len(order)) ** 0.5)))
    steps = np.round(np.clip(places[order], 0, 1) * 65535).astype("<u2")
    data = {
        "names": [names[row] for row in order], "places": encode(steps.tobytes()), "side": side, "columns": COLUMNS,
        "per_sheet": COLUMNS**2, "format": "webp",
        "colourings": [
            {"name": each.name, "labels": list(each.labels),
             "values": encode(np.asarray(each.values)[order].astype("<u2").tobytes())}
            for each in colourings
        ],
    }  # fmt: skip
    theme = resources.files("tinymae.interop").joinpath("web", "theme.css").read_text(encoding="utf-8")
    page = render(
        __package__, "web/map.html", title=title, subtitle=subtitle, count=len(order), side=side, data=data,
        sheets=sheets(order, images, side), theme=theme,
    )  # fmt: skip
    write_bytes(path, page.encode())
    return Path(path)


def by_place(places: NDArray[np.float32], size: int) -> NDArray[np.int64]:
    """An order of the points (N, 2) in which each `size` of them lie close together: by strips from top to bottom."""
    strips = max(1, round((len(places) / size) ** 0.5))
    ranks = np.argsort(np.argsort(places[:, 0], kind="stable"), kind="stable")
    return np.lexsort((places[:, 1], ranks * strips // len(places)))


def sheets(order: NDArray[np.int64], images: Callable[[Tensor], Tensor], side: int) -> Iterator[str]:
    """Sheets of images in this order, as base64 of WebP."""
    for rows in torch.from_numpy(order).split(COLUMNS**2):
        small = thumbnails(images(rows), side).cpu()
        blank = small.new_full((COLUMNS**2 - len(small), 3, side, side), 128)
        pixels = rearrange(torch.cat([small, blank]), "(r c) rgb h w -> (r h) (c w) rgb", c=COLUMNS)
        memory = io.BytesIO()
        Image.fromarray(pixels.numpy()).save(memory, format="webp", quality=80, method=2)
        yield encode(memory.getvalue())


def encode(content: bytes) -> str:
    """base64"""
    return base64.b64encode(content).decode()
