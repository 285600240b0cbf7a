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

import numpy as np
import torch
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from ..data.batches import pick
from ..data.datasets import Dataset, with_label
from ..data.load import load_dataset
from ..evaluation.figures import Channels, display_limits, tile, viewable
from ..evaluation.layout import lay_out_by_tsne
from ..evaluation.metrics import map_dataset
from ..evaluation.pages import render
from ..files import read_json, read_metrics, write_bytes
from ..interop.load import load_autoencoder
from ..tensors import to_unit
from ..training.cards import with_settled
from . import charts
from .tables import (
    READ,
    TABLE,
    UNRANKED,
    Column,
    describe_diverged,
    format_cell,
    format_value,
    is_ranked,
    mean_and_std,
    summarise,
)

SHOWN = 8  # test images in the strips of reconstructions
MAPPED = 1000  # test images in a map of latents
TILES = {
    "linear_test": "best linear probe", "finetuned_test": "best fine-tuned", "mse": "lowest error, nothing hidden",
}  # fmt: skip
SETTINGS = (
    "encoder", "patch_size", "embed_dim", "depth", "width", "latent_dim", "beta", "codebook_size", "mask_ratio",
    "skips", "loss", "batch_size", "base_lr", "weight_decay", "max_minutes", "mixed_precision",
)  # fmt: skip


def write_report(
    rows: Sequence[dict], path: Path, diverged: Sequence[str], *, reading: dict[str, Any], channels: Channels | None
) -> Path:
    """Write the page about these rows, see `tables.cell_rows`. `reading` is how `load_dataset` reads their data,
    `diverged` are the cells and seeds that have no rows; `channels` of images are those to look at, see `viewable`.
    """
    names = dict.fromkeys(row["data"] for row in rows if not row["control"])
    sections = [data_section([row for row in rows if row["data"] == name], reading, channels) for name in names]
    left_out = describe_diverged(diverged)
    page = render(__package__, "report_template.html", sections=sections, left_out=left_out)
    write_bytes(path, page.encode())
    return path


@torch.no_grad()
def data_section(rows: Sequence[dict], reading: dict[str, Any], channels: Channels | None) -> dict:
    """All about one data set."""
    lines = summarise(rows)
    trained = [row for row in rows if not row["control"]]
    order = {model: index for index, model in enumerate(dict.fromkeys(row["model"] for row in trained))}
    cells = [next(group) for _, group in groupby(trained, key=lambda row: row["name"])]  # under their first seed
    models = {row["name"]: load_autoencoder(Path(row["folder"]) / "pretrain") for row in cells}
    run = read_json(Path(cells[0]["folder"]) / "pretrain" / "args.json")
    first = next(iter(models.values()))
    size: dict[str, Any] = {"image_size": first.image_size, "channels": first.in_channels}
    test_set = with_label(load_dataset(run["arguments"]["data"], "test", **size, **reading))
    seeds = sorted({row["seed"] for row in trained})
    best = find_best(trained)
    return {
        "name": rows[0]["data"],
        "anchor": anchor(rows[0]["data"]),
        "seeds": seeds,
        "facts": facts(trained, models, test_set, run),
        "tiles": tiles(lines, trained, best),
        "table": table(lines, best, len(seeds)),
        "sizes": sizes(lines, rows, order),
        "strips": strips(models, test_set, channels),
        "samples": samples(models, channels),
        "maps": maps(models, test_set),
        "confusions": confusions(cells, test_set),
        "curves": curves(trained, order),
        "settings": settings(trained, run),
    }


def anchor(name: str) -> str:
    return "data-" + "".join(letter if letter.isalnum() else "-" for letter in name)


# ---- who is best


def deciding(column: Column) -> str:
    """The key of the column that decides who is best: accuracies are judged on validation, errors have only test."""
    return column.key.replace("_test", "_val")


def scores_of(trained: Sequence[dict], key: str) -> dict[str, tuple[float, float | None]]:
    """(mean, standard deviation or None) over seeds of one column, by the names of the models that have it."""
    scores: dict[str, list[float]] = {}
    for row in trained:
        if row.get(key) is not None:
            scores.setdefault(row["name"], []).append(row[key])
    return {name: mean_and_std(values) for name, values in scores.items()}


def find_best(trained: Sequence[dict]) -> dict[str, list[str]]:
    """The best models of each column that has a best: several where they tie, in the order of the grid."""
    best = {}
    for column in READ:
        ranked = [row for row in trained if is_ranked(row, column)]
        means = {name: mean for name, (mean, _) in scores_of(ranked, deciding(column)).items()}
        if column.lower_is_better is not None and means:
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
    probe = read_json(Path(trained[0]["folder"]) / "linear" / "results.json")
    pretrained = [row for row in trained if not models[row["name"]].fitted]
    minutes = [row["minutes"] for row in pretrained]
    return {
        "num_models": len(models),
        "num_seeds": len({row["seed"] for row in trained}),
        "minutes": spread(minutes, 1 if max(minutes) > 1 else 2) if minutes else "",
        "epochs": spread([row["epochs"] for row in pretrained]) if pretrained else "",
        "device": run["device"],
        "num_test": f"{len(test_set):,}",
        "num_labels": f"{probe['num_labels']:,}",
    }


def tiles(lines: Sequence[dict], trained: Sequence[dict], best: dict[str, list[str]]) -> list[dict]:
    """The best of three columns, which the table shows in bold, and the control."""
    by_name = {line["name"]: line for line in lines}
    columns = {column.key: column for column in READ}
    shown = []
    for key, title in TILES.items():
        if key in best:
            name, column = best[key][0], columns[key]
            validation = None
            if deciding(column) != key:
                validation = format_value(scores_of(trained, deciding(column))[name], column.decimals)
            score = number_parts(by_name[name].get(key), column)
            shown.append({"title": title, "name": name, "validation": validation, **score})
    for line in lines:
        if line["control"] == "raw pixels":
            score = number_parts(line["linear_test"], columns["linear_test"])
            shown.append({"title": "control: raw pixels", "name": "linear probe", "validation": None, **score})
    return shown


def number_parts(value: tuple[float, float | None] | None, column: Column) -> dict:
    """A value as a tile shows it, its standard deviation apart."""
    mean, _, std = format_value(value, column.decimals).partition(" ± ")
    return {"mean": mean, "std": std, "percent": column.key.endswith("_test")}


def table(lines: Sequence[dict], best: dict[str, list[str]], num_seeds: int) -> dict:
    """The sortable table; without scripts it stays sorted by the linear probe. A column's best has a rival."""
    columns = [column for column in READ if any(column.key in line for line in lines)]
    counts = {title: sum(column in columns for column in group) for title, group in TABLE.items()}
    trained = [line for line in lines if not line["control"]]
    rivals = {c.key: sum(c.key in line and is_ranked(line, c) for line in trained) for c in columns}
    best = {key: names for key, names in best.items() if rivals.get(key, 0) > 1}
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
        score, flags = (
            f"{found['value']:.1f}",
            ", ".join(f"{name} {value}" for name, value in found["settings"].items()),
        )
        searched.append(
            {"family": path.parent.name, "trial": found["trial"], "trials": found["trials"], "score": score,
             "flags": flags}
        )  # fmt: skip
    return {
        "models": models,
        "searched": searched,
        "versions": ", ".join(f"{name} {version}" for name, version in run["versions"].items()),
        "commit": (run["commit"] or "")[:10],
        "date": run["date"][:10],
    }


# ---- drawings and images


def sizes(lines: Sequence[dict], rows: Sequence[dict], order: dict[str, int]) -> dict:
    """Accuracy against the number of features, drawn for wide and for narrow screens, with its key."""
    family_of = {row["name"]: row["model"] for row in rows}
    by_name = {line["name"]: line for line in lines}
    points = []
    for line in lines:
        if not line["control"]:
            accuracy, std = line["linear_test"]
            untrained = by_name.get(f"{line['name']}, untrained", {}).get("linear_test", (None,))[0]
            index, size = order[family_of[line["name"]]], int(line["num_features"][0])
            points.append(charts.Point(line["name"], index, size, accuracy, std, untrained))
    floor = next((line["linear_test"][0] for line in lines if line["control"] == "raw pixels"), None)
    return {
        "wide": charts.accuracy_by_size(points, floor, width=900, height=430, labels=True, css="wide"),
        "narrow": charts.accuracy_by_size(points, floor, width=350, height=330, labels=False, css="narrow"),
        "families": [(charts.marker(index, 0, 0), model) for model, index in order.items()],
        "untrained": any(point.untrained is not None for point in points),
    }


@dataclass(frozen=True)
class Sheet:
    """Images side by side as one PNG inside an address; width and height in pixels."""

    address: str
    width: int
    height: int

    @classmethod
    def of(cls, images: Tensor, columns: int) -> "Sheet":
        """Images (N, C, H, W), as `viewable` takes them, in rows of `columns`."""
        sheet = Image.fromarray(tile(images, columns))
        memory = io.BytesIO()
        sheet.save(memory, "PNG", optimize=True)
        return cls(f"data:image/png;base64,{base64.b64encode(memory.getvalue()).decode()}", *sheet.size)


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
        label = f"Map of the features of {name}, by class"
        drawings.append((name, charts.scatter(places, some.labels.cpu().numpy(), label)))
    return {
        "count": f"{len(some):,}",
        "classes": test_set.classes,
        "named": len(test_set.classes) <= charts.PALETTE,
        "drawings": drawings,
    }


def confusions(cells: Sequence[dict], test_set: Dataset) -> list[tuple[str, Markup]]:
    """A confusion matrix of each model's linear probe."""
    drawings = []
    for row in cells:
        results = read_json(Path(row["folder"]) / "linear" / "results.json")
        label = f"Confusion matrix of {row['name']}: {results['probe_test']:.1f} % right"
        drawing = charts.confusion(np.array(results["confusion_matrix"]), test_set.classes, label)
        drawings.append((f"{row['name']}, {results['probe_test']:.1f} %", drawing))
    return drawings


def curves(trained: Sequence[dict], order: dict[str, int]) -> list[tuple[str, Markup]]:
    """The loss of each pretraining, each in its own scale."""
    drawings = []
    for name in dict.fromkeys(row["name"] for row in trained):
        rows = [row for row in trained if row["name"] == name]
        runs = [points for row in rows if (points := loss_points(Path(row["folder"]) / "pretrain" / "metrics.jsonl"))]
        if runs:
            label = f"Loss of {name} over its minutes of training"
            drawings.append((name, charts.loss_curves(runs, order[rows[0]["model"]], label)))
    return drawings


def loss_points(path: Path) -> list[tuple[float, float]]:
    """(minutes, loss) of a run's metrics."""
    return [(line["minutes"], line["loss"]) for line in read_metrics(path) if line.get("loss") is not None]
