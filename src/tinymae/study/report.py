"""report.html: one self-contained page about a comparison, that asks nothing of the network.

What the page says and how it looks is in report_template.html; here is what it says it about.
"""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ..data.batches import pick
from ..data.datasets import Dataset, with_label
from ..data.load import load_dataset
from ..evaluation.figures import Channels, display_limits, tile, viewable
from ..evaluation.layout import lay_out_by_tsne
from ..evaluation.metrics import map_dataset
from ..evaluation.pages import render
from ..files import read_json, write_bytes
from ..interop.load import load_autoencoder
from ..tensors import to_unit
from ..training.cards import with_settled
from . import charts
from .tables import (
    ACCURACIES,
    READ,
    TABLE,
    UNRANKED,
    Column,
    by_labels,
    filled,
    format_cell,
    is_ranked,
    name_stage,
    summarise,
    tell_labels,
)

SHOWN = 8  # test images in the strips of reconstructions
MAPPED = 1000  # test images in a map of latents
SETTINGS = (
    "encoder", "patch_size", "embed_dim", "depth", "width", "latent_dim", "beta", "codebook_size", "mask_ratio",
    "skips", "loss", "batch_size", "base_lr", "weight_decay", "max_minutes", "mixed_precision",
)  # fmt: skip


def write_report(
    rows: Sequence[dict], path: Path, note: str, *, reading: dict[str, Any], channels: Channels | None
) -> Path:
    """Write the page about these rows, see `tables.cell_rows`. `reading` is how `load_dataset` reads their data,
    `note` stands at the end; `channels` of images are those to look at, see `viewable`.
    """
    names = dict.fromkeys(row["data"] for row in rows if not row["control"])
    sections = [data_section([row for row in rows if row["data"] == name], reading, channels) for name in names]
    page = render(__package__, "report_template.html", sections=sections, note=note)
    write_bytes(path, page.encode())
    return path


@torch.no_grad()
def data_section(rows: Sequence[dict], reading: dict[str, Any], channels: Channels | None) -> dict:
    """All about one data set."""
    (ratio, rows), *fewer = by_labels(rows).items()
    lines = summarise(rows)
    trained = [row for row in rows if not row["control"]]
    cells = [next(group) for _, group in groupby(trained, key=lambda row: row["name"])]  # under their first seed
    models = {row["name"]: load_autoencoder(Path(row["folder"]) / "pretrain") for row in cells}
    run = read_json(Path(cells[0]["folder"]) / "pretrain" / "args.json")
    first = next(iter(models.values()))
    size: dict[str, Any] = {"image_size": first.image_size, "channels": first.in_channels}
    test_set = with_label(load_dataset(run["arguments"]["data"], "test", **size, **reading))
    seeds = sorted({row["seed"] for row in trained})
    return {
        "name": rows[0]["data"],
        "seeds": seeds,
        "facts": facts(trained, models, test_set, run),
        "labels": tell_labels(ratio),
        "table": table(lines, READ, len(seeds)),
        "few_labels": [
            {
                "told": tell_labels(few),
                "count": f"{those[0]['num_labels']:,}",
                "table": table(summarise(those), ACCURACIES, len(seeds)),
            }
            for few, those in fewer
        ],
        "sizes": sizes(lines, rows),
        "strips": strips(models, test_set, channels),
        "samples": samples(models, channels),
        "maps": maps(models, test_set),
        "confusions": pictures(cells, f"{name_stage('linear', ratio)}/confusion_matrix.png"),
        "curves": pictures(cells, "pretrain/curves.png"),
        "settings": settings(trained, run),
    }


# ---- who is best


def find_best(lines: Sequence[dict]) -> dict[str, list[str]]:
    """The best trained models of each column that several have, more than one where they tie."""
    best = {}
    for column in READ:
        ranked = [line for line in lines if column.judge in line and not line["control"] and is_ranked(line, column)]
        means = {line["name"]: line[column.judge][0] for line in ranked}
        if column.lower_is_better is not None and len(means) > 1:
            top = min(means.values()) if column.lower_is_better else max(means.values())
            best[column.key] = [name for name, mean in means.items() if mean == top]
    return best


# ---- text and numbers


def spread(values: Sequence[float], decimals: int = 1) -> str:
    """ "5.0", or "4.9 to 5.1"."""
    low, high = f"{min(values):,.{decimals}f}", f"{max(values):,.{decimals}f}"
    return low if low == high else f"{low} to {high}"


def facts(trained: Sequence[dict], models: dict, test_set: Dataset, run: dict) -> dict:
    """Data, seeds and cost, before any number is read."""
    pretrained = [row for row in trained if not models[row["name"]].fitted]
    minutes = [row["minutes"] for row in pretrained]
    return {
        "num_models": len(models),
        "num_seeds": len({row["seed"] for row in trained}),
        "minutes": spread(minutes, 1 if max(minutes) > 1 else 2) if minutes else "",
        "epochs": spread([row["epochs"] for row in pretrained]) if pretrained else "",
        "device": run["device"],
        "num_test": f"{len(test_set):,}",
        "num_labels": f"{trained[0]['num_labels']:,}",
    }


def table(lines: Sequence[dict], columns: Sequence[Column], num_seeds: int) -> dict:
    """A sortable table; without scripts it stays sorted by the linear probe."""
    columns = filled(columns, lines)
    counts = {title: sum(column in columns for column in group) for title, group in TABLE.items()}
    trained, best = [line for line in lines if not line["control"]], find_best(lines)
    return {
        "groups": [(title, count) for title, count in counts.items() if count],
        "heads": [(column.title, "descending" if column.key == "linear_test" else "") for column in columns],
        "rows": [
            {"name": line["name"], "control": line["control"], "cells": [cell(line, c, best) for c in columns]}
            for line in lines
        ],
        "fewer": [(line["name"], line["seeds"]) for line in trained if line["seeds"] < num_seeds],
        "unranked": UNRANKED if any("mse_masked" in line for line in lines) else "",
    }


def cell(line: dict, column: Column, best: dict[str, list[str]]) -> dict:
    """What a cell says, by which number it is sorted, and whether it is its column's best."""
    value = line.get(column.key)
    return {
        "text": format_cell(line, column),
        "order": "" if value is None else repr(value[0]),
        "best": line["name"] in best.get(column.key, []),
    }


def settings(trained: Sequence[dict], run: dict) -> dict:
    """What else one needs to make this again."""
    models = []
    for row in trained:
        folder = Path(row["folder"]) / "pretrain"
        given = with_settled(read_json(folder / "args.json")["arguments"], read_json(folder / "results.json"))
        words = ", ".join(f"{key} {value}" for key, value in given.items() if key in SETTINGS and value is not None)
        models.append((row["name"], row["seed"], words))
    searched = []
    for path in sorted(Path(trained[0]["folder"]).parents[1].glob("search/*/best.json")):
        found = read_json(path)
        flags = ", ".join(f"{name} {value}" for name, value in found["settings"].items())
        score = f"{found['value']:.1f}"
        searched.append(found | {"family": path.parent.name, "score": score, "flags": flags})
    return {
        "models": models,
        "searched": searched,
        "versions": ", ".join(f"{name} {version}" for name, version in run["versions"].items()),
        "commit": (commit := run["commit"] or "")[:10] + commit[40:],  # which may be -dirty
        "date": run["date"][:10],
    }


# ---- drawings and images


def sizes(lines: Sequence[dict], rows: Sequence[dict]) -> list[tuple[str, "Sheet"]]:
    """Accuracy against the number of features."""
    family_of = {row["name"]: row["model"] for row in rows}
    by_name = {line["name"]: line for line in lines}
    points = []
    for line in sorted(lines, key=lambda line: family_of[line["name"]]):
        if not line["control"]:
            untrained = by_name.get(f"{line['name']}, untrained", {}).get("linear_test", (None,))[0]
            family, size = family_of[line["name"]], int(line["num_features"][0])
            accuracy, std = line["linear_test"]
            points.append(charts.Point(family, size, accuracy, std, untrained))
    floor = next((line["linear_test"][0] for line in lines if line["control"] == "raw pixels"), None)
    return [("linear probe by the number of features", Sheet.of_figure(charts.accuracy_by_size(points, floor)))]


@dataclass(frozen=True)
class Sheet:
    """Images side by side as one PNG inside an address; width and height in pixels."""

    address: str
    width: int
    height: int

    @classmethod
    def of(cls, images: Tensor, columns: int) -> "Sheet":
        """Images (N, C, H, W), as `viewable` takes them, in rows of `columns`."""
        memory = io.BytesIO()
        Image.fromarray(tile(images, columns)).save(memory, "PNG", optimize=True)
        return cls.of_png(memory.getvalue())

    @classmethod
    def of_figure(cls, figure: Figure) -> "Sheet":
        """A drawing of matplotlib."""
        memory = io.BytesIO()
        figure.savefig(memory, format="png", dpi=150)
        return cls.of_png(memory.getvalue())

    @classmethod
    def of_png(cls, content: bytes) -> "Sheet":
        """A file's content."""
        return cls(f"data:image/png;base64,{base64.b64encode(content).decode()}", *Image.open(io.BytesIO(content)).size)


def strips(models: dict, test_set: Dataset, channels: Channels | None) -> dict:
    """The same test images through every model, a line each."""
    images = test_set[torch.tensor(first_of_each_class(test_set))][0]
    limits = display_limits(images, channels)
    shown = []
    for name, kind, sheet in [("original", "", images), *reconstructions(models, images)]:
        alt = f"{name or 'the same model'} {kind}: {len(images)} test images"
        strip = Sheet.of(viewable(sheet, channels, limits), SHOWN)
        shown.append({"name": name, "kind": kind, "alt": alt, "sheet": strip})
    return {
        "shown": shown,
        "columns": SHOWN,
        "masked": any(model.hides_patches for model in models.values()),
        "normalised": any(model.hides_patches and model.norm_pix_loss for model in models.values()),
    }


def first_of_each_class(test_set: Dataset) -> list[int]:
    """`SHOWN` indices: the first image of each class, then others if the classes are too few."""
    assert test_set.labels is not None  # or there would be no probes
    labels = test_set.labels.tolist()
    chosen = [labels.index(label) for label in sorted(set(labels))][:SHOWN]
    return chosen + [index for index in range(len(labels)) if index not in chosen][: SHOWN - len(chosen)]


def reconstructions(models: dict, images: Tensor) -> Iterable[tuple[str, str, Tensor]]:
    """(name, what it is, images) of each model: three of one that masks, of which only the first has the name."""
    for name, model in models.items():
        if not model.hides_patches:
            yield name, "", model.reconstruct(images).images
            continue
        seen = model.reconstruct(images, generator=torch.Generator().manual_seed(0))
        nothing = torch.zeros(model.num_patches, dtype=torch.bool)
        yield name, f"sees {1 - model.mask_ratio:.0%}", seen.masked
        yield "", "paints in the rest", seen.images
        yield "", "nothing hidden", model.reconstruct(images, nothing).prediction


def samples(models: dict, channels: Channels | None) -> list[tuple[str, Sheet]]:
    """New images by the models that can draw them."""
    return [
        (name, Sheet.of(viewable(model.sample(32, generator=torch.Generator().manual_seed(0)), channels), 8))
        for name, model in models.items()
        if model.samples
    ]


def maps(models: dict, test_set: Dataset) -> dict | None:
    """A map of each model's features, and of the pixels. None if the images are too few for any neighbourhood."""
    if len(test_set) < 4:
        return None
    some = pick(test_set, MAPPED)
    assert some.labels is not None
    encoders = {"raw pixels (control)": lambda images: to_unit(images.flatten(1))}
    encoders |= {name: model.encode for name, model in models.items()}
    drawings = []
    for name, encode in encoders.items():
        places = lay_out_by_tsne(map_dataset(encode, some, device="cpu").numpy(), seed=0)
        drawings.append((name, Sheet.of_figure(charts.scatter(places, some.labels.cpu().numpy()))))
    named = len(test_set.classes) <= len(charts.PALETTE)
    colours = list(zip(test_set.classes, charts.PALETTE, strict=False)) if named else []
    return {"count": f"{len(some):,}", "colours": colours, "drawings": drawings}


def pictures(cells: Sequence[dict], file: str) -> list[tuple[str, Sheet]]:
    """A picture that the runs of each cell drew, where they did."""
    paths = {row["name"]: Path(row["folder"]) / file for row in cells}
    return [(name, Sheet.of_png(path.read_bytes())) for name, path in paths.items() if path.exists()]
