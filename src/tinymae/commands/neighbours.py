"""Find the images that are most like some others: a sheet to look at, and a table."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..data.datasets import ImageDataset
from ..data.images import read_image
from ..data.sources.files import list_images
from ..data.unreadable import needed
from ..errors import InputError
from ..evaluation.figures import viewable
from ..evaluation.neighbours import nearest
from ..evaluation.sheets import Tile, in_rows, write_sheet
from ..files import write_csv
from ..interop.load import Model, load
from .features import FeatureSettings, JoinedSplits, map_images, map_together
from .fields import Several, keywords_of, setting, with_default
from .results import Result

SHOWN = 50  # queries on the sheet
MOST_ACROSS = 21  # images in a row of it


@dataclass(frozen=True, kw_only=True)
class NeighboursSettings(FeatureSettings):
    """Settings of a search."""

    output_dir: str | Path = with_default(FeatureSettings, "output_dir", "runs/neighbours")
    query: Several[str] = setting(help="image files, or folders of them", group="search")
    k: int = setting(8, "neighbours of each query", group="search", least=1)


def run(settings: NeighboursSettings) -> Result[Model]:
    """Find the `k` images of the data nearest to each query, by the cosine of their features; exact.

    neighbours.csv has a line for each query and neighbour, best first; neighbours.png shows them. A query that is
    itself in the data finds itself first.

    Raises InputError for settings, data or queries that cannot work.
    """
    settings, accelerator, model = settings.begin(load)
    encode = settings.encoder(model, accelerator)
    files = find_queries(settings.query)
    images = settings.open_images(model, accelerator)
    read = partial(read_image, depth=images.depth, pixel_range=settings.pixel_range, fit=settings.fit or "crop")
    with needed():
        queries = torch.stack([read(file, images.image_shape) for file in files])  # as the data are
    with settings.open_run(accelerator, splits=images.parts, weights=model) as run:
        bank = map_images(encode, images, accelerator, **settings.computing).to(accelerator.device)
        wanted = ImageDataset("query", queries, None, [])
        asked = map_together(encode, wanted, accelerator, **settings.computing, desc="queries").to(bank.device)
        results = {"images": len(images), "queries": len(queries), "k": min(settings.k, len(images))}
        shown = []
        if run.is_main:
            cosines, index = (found.cpu() for found in nearest(asked, bank, k=settings.k))
            shown.append(write_table(files, images, cosines, index, run.folder / "neighbours.csv"))
            closer = torch.stack([read(file, images.tile_shape) for file in files[:SHOWN]])
            shown.append(show(files, closer, images, cosines, index, run.folder / "neighbours.png"))
        run.finish(results, shown)
    return Result(model, results, run.folder)


neighbours = keywords_of(run, NeighboursSettings)


def find_queries(query: tuple[str, ...]) -> list[Path]:
    """The files that are named, and those of folders. Raises InputError if there are none."""
    files = []
    for given in query:
        path = Path(given)
        if path.is_dir():
            files += [path / name for name in list_images(path)[0]]
        elif path.is_file():
            files.append(path)
        else:
            raise InputError(f"query {path} does not exist: give image files, or folders of them")
    if not files:
        raise InputError(f"query {' '.join(map(str, query))} holds no images")
    return files


def write_table(files: list[Path], images: JoinedSplits, cosines: Tensor, index: Tensor, path: Path) -> Path:
    """A line of CSV for each query and neighbour."""
    rows = []
    for file, row, near in zip(files, cosines.tolist(), index, strict=True):
        found = zip(images.about(near), row, strict=True)
        rows += [(file, rank, *about, f"{cosine:.4f}") for rank, (about, cosine) in enumerate(found, 1)]
    return write_csv(path, ["query", "rank", "name", "split", "label", "cosine"], rows)


def show(files: list[Path], queries: Tensor, images: JoinedSplits, cosines: Tensor, index: Tensor, path: Path) -> Path:
    """A row for each query: itself, framed, then its neighbours."""
    rows = []
    for file, query, near, row in zip(files[:SHOWN], queries, index, cosines.tolist(), strict=False):
        about = zip(images.look_closer(near), images.about(near), row, strict=True)
        found = [Tile(image, (name, label or "", f"{cosine:.3f}")) for image, (name, _, label), cosine in about]
        shown = viewable(query[None], images.channels, images.limits)[0]
        rows += in_rows([Tile(shown, (file.name, "query"), "#2f6690"), *found], MOST_ACROSS)
    more = f", the first {SHOWN}" if len(files) > SHOWN else ""
    return write_sheet(rows, path, f"queries{more}, and their nearest images of {len(images):,}, by cosine")
