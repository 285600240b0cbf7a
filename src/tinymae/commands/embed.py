"""Turn images into a table of features: Parquet, .npz, TensorBoard's projector, and a map to look at."""

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ..errors import InputError
from ..evaluation.figures import thumbnails
from ..evaluation.layout import choose_to_label, find_clusters, has_umap, lay_out
from ..evaluation.map import Colouring, write_map
from ..evaluation.sheets import Tile, in_rows, write_sheet
from ..files import write_atomically, write_csv
from ..interop.load import Model, load
from ..training.processes import on_main
from ..training.run import Run
from .features import FeatureSettings, JoinedSplits, map_images
from .fields import Several, keywords_of, setting, with_default
from .results import Result

PART = 8192  # images in a part of the table: what a killed run loses at most, and what is in memory at a time
SHOWN = 100  # images on the sheet of those to label first
PROJECTED = 5000  # images in TensorBoard's projector, which is slow with more

SPRITE = 8192  # pixels a side, the most that the projector shows


@dataclass(frozen=True, kw_only=True)
class EmbedSettings(FeatureSettings):
    """Settings of a table of features."""

    resumes = True
    output_dir: str | Path = with_default(FeatureSettings, "output_dir", "runs/embed")
    formats: Several[Literal["npz", "projector", "map"]] = setting(
        ("npz", "projector", "map"), "what to write beside embeddings.parquet", free=True
    )
    clusters: int = setting(10, "colours of the map by k-means", least=1, free=True)
    to_label: int | None = setting(
        None, "also list this many images to label first, of train if --split has it: to_label.csv", least=1, free=True
    )


def run(settings: EmbedSettings) -> Result[Model]:
    """Write the features of images, with their names, splits and labels.

    embeddings.parquet has a row for each image: name, split, label (null without one) and features, a list of float32.
    embeddings.npz has the same as arrays. projector/ is for TensorBoard, and has at most 5,000 of the images. map.html
    shows all of them in two dimensions. With `to_label`, to_label.csv and to_label.png are of the images without a
    label that are most worth one, of train if it is among the splits. A run that was stopped resumes. Only
    embeddings.parquet and projector/ are written a part at a time: memory grows with the number of images for the
    others.

    Raises InputError for settings or data that cannot work.
    """
    settings, accelerator, model = settings.begin(load)
    encode = settings.encoder(model, accelerator)
    images = settings.open_images(model, accelerator, several=settings.to_label is not None)
    if images.labels.ndim == 2:
        raise InputError(f"to_label {settings.to_label}: these images may have several labels each; leave it out")
    if settings.to_label is not None:
        where, those = to_choose_from(images)
        if (images.labels[those] >= 0).all():
            raise InputError(
                f"to_label {settings.to_label}: all {len(those):,} images of {where} have a label: leave it out, or "
                "give images without one: other splits by --split, a folder unlabelled/ beside those of the classes, "
                "rows of a table with an empty label, or photos/*/ if folders are no classes"
            )
    with settings.open_run(accelerator, splits=images.parts, weights=model) as run:
        started = time.monotonic()
        table = write_table(settings, encode, images, run)
        seconds = time.monotonic() - started
        width = on_main(accelerator, lambda: pq.read_schema(table).field("features").type.list_size)
        results = {
            "images": len(images), "splits": {name: len(part) for name, part in images.parts.items()},
            "num_features": width, "seconds": seconds,
        }  # fmt: skip
        run.print(f"{len(images)} images, {results['num_features']} features each")
        run.finish(results, write_others(settings, table, images, run) if run.is_main else [])
    return Result(model, results, run.folder)


embed = keywords_of(run, EmbedSettings)


def write_table(settings: EmbedSettings, encode: Callable[[Tensor], Tensor], images: JoinedSplits, run: Run) -> Path:
    """embeddings.parquet, by parts that outlive a stop; a table that is there already is this run's own.

    All processes compute, the main one writes.
    """
    path, folder = run.folder / "embeddings.parquet", run.folder / "parts"
    every = torch.arange(len(images)).split(PART)
    parts = [folder / f"{number:06}.parquet" for number in range(len(every))]
    there = on_main(run.accelerator, lambda: [path.exists() or part.exists() for part in parts])
    for number in range(len(parts)):
        if there[number]:
            continue
        desc = "features" + f", part {number + 1} of {len(parts)}" * (len(parts) > 1)
        options = {"at": every[number], "desc": desc, **settings.computing}
        features = map_images(encode, images, run.accelerator, **options)
        if run.is_main:
            rows = as_table(images, every[number], features)
            write_atomically(parts[number], partial(pq.write_table, rows))
    if run.is_main and not path.exists():
        write_atomically(path, lambda beside: join_tables(parts, beside))
    if run.is_main:
        shutil.rmtree(folder, ignore_errors=True)
    return path


def write_others(settings: EmbedSettings, table: Path, images: JoinedSplits, run: Run) -> list[Path]:
    """The other formats that are wanted; all files, the table first."""
    written, folder = [table], run.folder
    if "npz" in settings.formats:
        written.append(write_npz(table, folder / "embeddings.npz", images))
    if "projector" in settings.formats:
        written.append(write_projector(table, folder / "projector", images))
    if "map" in settings.formats:
        run.print(f"laying out the map of {len(images):,} images by {layout_method()}")
        written.append(write_page(settings, table, images, folder / "map.html"))
    if settings.to_label is not None:
        written += write_to_label(settings, table, images, run)
    return written


def to_choose_from(images: JoinedSplits) -> tuple[str, Tensor]:
    """Whose images may be chosen, and their rows: of train if it is there. A test of chosen images, which are typical
    ones, would not be fair.
    """
    every = torch.arange(len(images))
    if "train" not in images.parts:
        return f"split {' '.join(images.parts)}", every
    return "train", every[images.find(every) == [*images.parts].index("train")]


def write_to_label(settings: EmbedSettings, table: Path, images: JoinedSplits, run: Run) -> list[Path]:
    """to_label.csv and to_label.png: the images to label first.

    Of files, the first is a table to fill in: put beside the images, it is data with labels. It names the splits where
    some are of test, which no label may move into train; else they follow from the paths, as those of the images.
    """
    assert settings.to_label is not None
    where, those = to_choose_from(images)
    features, labelled = read_features(table, those.numpy()), (images.labels[those] >= 0).numpy()
    rows = those[choose_to_label(features, labelled, count=settings.to_label, seed=settings.seed)]
    names, of_split, _ = zip(*images.about(rows), strict=True)
    of_files = all(part.of_files for part in images.parts.values())
    shown = [Tile(image, (name,)) for image, name in zip(images.look_closer(rows[:SHOWN]), names, strict=False)]
    unlabelled = f"the {int((~labelled).sum()):,} images of {where} without a label"
    run.print(f"to_label.csv: {len(rows):,} of {unlabelled}")
    title = f"{len(rows):,} of {unlabelled}, to be labelled first"
    columns = {"path" if of_files else "name": names, "label": ("",) * len(names)}
    if "test" in of_split:
        columns["split"] = of_split
    return [
        write_csv(run.folder / "to_label.csv", [*columns], zip(*columns.values(), strict=True)),
        write_sheet(in_rows(shown), run.folder / "to_label.png", title),
    ]


def layout_method() -> str:
    """How a map is laid out here."""
    return "UMAP" if has_umap() else "t-SNE"


def as_table(images: JoinedSplits, indices: Tensor, features: Tensor) -> pa.Table:
    """Rows of the table: the images at `indices` (B,) with their features (B, F)."""
    columns = zip(("name", "split", "label"), zip(*images.about(indices), strict=True), strict=True)
    flat = pa.array(features.flatten().numpy())
    return pa.table(
        {name: pa.array(values, pa.string()) for name, values in columns}
        | {"features": pa.FixedSizeListArray.from_arrays(flat, features.shape[1])}
    )


def join_tables(parts: list[Path], path: Path) -> None:
    """One Parquet file of several, a part in memory at a time."""
    with pq.ParquetWriter(path, pq.read_schema(parts[0])) as writer:
        for part in parts:
            writer.write_table(pq.read_table(part))


def write_npz(table: Path, path: Path, images: JoinedSplits) -> Path:
    """The table as arrays: features (N, F), names, splits, labels (-1: none) and the classes' names."""
    names, splits, _ = zip(*images.about(torch.arange(len(images))), strict=True)
    arrays: dict[str, Any] = {
        "features": read_features(table, np.arange(len(images))), "names": np.array(names), "splits": np.array(splits),
        "labels": images.labels.numpy(), "classes": np.array(images.classes, dtype=np.str_),
    }  # fmt: skip

    def write(beside: Path) -> None:
        with open(beside, "wb") as file:  # of a path, numpy would change the name
            np.savez(file, **arrays)

    write_atomically(path, write)
    return path


def write_projector(table: Path, folder: Path, images: JoinedSplits) -> Path:
    """A folder for TensorBoard's projector: features, names and classes of some images, and a sprite of them."""
    from torch.utils.tensorboard import SummaryWriter

    chosen = torch.linspace(0, len(images) - 1, min(len(images), PROJECTED)).long()
    side = min(max(images.image_shape[1:]), SPRITE // math.ceil(len(chosen) ** 0.5))
    if (folder / "projector_config.pbtxt").exists():  # of an earlier run, about which TensorBoard would warn
        shutil.rmtree(folder)
    writer = SummaryWriter(str(folder))
    writer.add_embedding(
        torch.from_numpy(read_features(table, chosen.numpy())), metadata_header=["name", "split", "label"],
        # In a table, a tab ends a cell.
        metadata=[[" ".join((cell or "").split()) for cell in row] for row in images.about(chosen)],
        label_img=thumbnails(images.view(chosen), side).float() / 255, tag="features",
    )  # fmt: skip
    writer.close()
    return folder


def write_page(settings: EmbedSettings, table: Path, images: JoinedSplits, path: Path) -> Path:
    """map.html: places and clusters of all features."""
    every = torch.arange(len(images))
    features = read_features(table, every.numpy())
    found = find_clusters(features, count=settings.clusters, seed=settings.seed)
    labels = [f"cluster {number}" for number in range(found.max() + 1)]
    colourings = [Colouring("cluster", labels, found)]
    if images.classes:
        unlabelled = bool((images.labels < 0).any())
        classes = [*images.classes, *(["(no label)"] if unlabelled else [])]
        colourings.insert(0, Colouring("class", classes, images.labels.numpy() % len(classes)))
    if len(images.parts) > 1:
        colourings.append(Colouring("split", list(images.parts), images.find(every).numpy()))
    return write_map(
        path, places=lay_out(features, seed=settings.seed), names=[name for name, *_ in images.about(every)],
        images=images.view, side=max(images.image_shape[1:]), colourings=colourings,
        title=f"{settings.data_name}: {len(images):,} images",
        subtitle=f"{layout_method()} of {features.shape[1]} features: similar images are close",
    )  # fmt: skip


def read_features(table: Path, rows: np.ndarray) -> np.ndarray:
    """The features (M, F) of some sorted rows of the table, a part of it in memory at a time."""
    found, start = [], 0
    for batch in pq.ParquetFile(table).iter_batches(PART, columns=["features"]):
        inside = rows[(rows >= start) & (rows < start + batch.num_rows)] - start
        column = batch.column(0)
        found.append(column.flatten().to_numpy().reshape(len(column), -1)[inside])
        start += batch.num_rows
    return np.concatenate(found)
