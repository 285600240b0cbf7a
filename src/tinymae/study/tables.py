"""Results of many autoencoders as rows, and the tables made of them.

A row is one cell of a grid under one seed, scored with one ratio of the labels.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..evaluation.metrics import RECONSTRUCTION_METRICS
from ..files import read_json, write_bytes, write_csv
from ..interop.load import load_autoencoder

COLUMNS = (
    "data", "name", "control", "seed", "label_fraction", "num_labels", "model", "latent_dim", "loss", "num_features",
    "parameters", "minutes", "epochs",
    "knn_test", "linear_test", "mlp_test", "finetuned_test", "knn_val", "linear_val", "mlp_val", "finetuned_val",
    "mse", "psnr", "ssim", "mask_ratio", "mse_masked", "psnr_masked", "ssim_masked", "folder",
)  # fmt: skip


@dataclass(frozen=True)
class Column:
    """A column of a table that people read."""

    key: str
    title: str
    decimals: int = 1
    lower_is_better: bool | None = False  # None: neither is

    @property
    def judge(self) -> str:
        """The key that says who is best: of accuracies that of validation, while errors have only test."""
        return self.key.replace("_test", "_val")


TABLE = {
    "Test accuracy, %": (
        Column("knn_test", "k-NN"), Column("linear_test", "linear probe"), Column("mlp_test", "MLP probe"),
        Column("finetuned_test", "fine-tuned"),
    ),
    "Reconstruction, nothing hidden": (
        Column("mse", "MSE", 4, True), Column("psnr", "PSNR, dB"), Column("ssim", "SSIM", 3),
    ),
    "Reconstruction, patches hidden": (
        Column("mse_masked", "MSE", 4, True), Column("psnr_masked", "PSNR, dB"), Column("ssim_masked", "SSIM", 3),
    ),
    "Size and cost": (
        Column("num_features", "features", 0, None), Column("parameters", "parameters", 0, None),
        Column("minutes", "minutes", 1, None), Column("epochs", "epochs", 1, None),
    ),
}  # fmt: skip
ACCURACIES = TABLE["Test accuracy, %"]
READ = [column for columns in TABLE.values() for column in columns]
UNRANKED = (
    "† Not ranked: with nothing hidden a masked autoencoder redraws patches that it sees, which it never learned, and "
    "with norm_pix_loss, the default of mae, each of them brings its own mean and standard deviation: much of the "
    "answer is given."
)


def is_ranked(scores: Mapping, column: Column) -> bool:
    """Whether a model, by its row or line, may be the best of a column: one that hides patches cannot be where nothing
    is hidden.
    """
    return column.key not in RECONSTRUCTION_METRICS or scores.get("mse_masked") is None


# ---- rows from the folders of a cell


def name_stage(stage: str, label_fraction: float) -> str:
    """The folder of a stage that learns from a ratio of the labels.

    >>> name_stage("linear", 1.0), name_stage("linear", 0.1)
    ('linear', 'linear-0.1')
    """
    return stage if label_fraction == 1 else f"{stage}-{label_fraction}"


def cell_rows(folder: Path, *, label_fraction: float, **names) -> list[dict]:
    """The rows of one cell, seed and ratio of the labels, read from the results of its stages: the model, and its
    untrained encoder.

    `names` are the columns that the folder does not state: data, name, model and seed.
    """
    names["label_fraction"] = label_fraction
    learned = {stage: folder / name_stage(stage, label_fraction) for stage in ("linear", "mlp", "finetune")}
    stages = learned | {stage: folder / stage for stage in ("pretrain", "evaluate")}
    files = {stage: path / "results.json" for stage, path in stages.items()}
    results = {stage: read_json(file) for stage, file in files.items() if file.exists()}
    settings = read_json(folder / "pretrain" / "args.json")["arguments"]
    model = load_autoencoder(folder / "pretrain")
    scores = {"linear": results["linear"], "mlp": results["mlp"]}
    full, masked = results["evaluate"]["full"], results["evaluate"].get("masked", {})
    # Principal components are no parameters to an optimiser; they are what is stored nevertheless.
    tensors = list(model.parameters()) or model.state_dict().values()
    row = {
        **names, "control": "", "latent_dim": settings["latent_dim"], "loss": settings["loss"],
        "parameters": sum(tensor.numel() for tensor in tensors),
        **{key: results["pretrain"][key] for key in ("minutes", "epochs")},
        **probe_columns(scores),
        **{metric: value for metric, value in full.items() if metric in RECONSTRUCTION_METRICS},
        **{f"{metric}_masked": value for metric, value in masked.items() if metric in RECONSTRUCTION_METRICS},
        "mask_ratio": results["evaluate"].get("mask_ratio"), "folder": str(folder),
    }  # fmt: skip
    if "finetune" in results:
        row |= {f"finetuned_{split}": results["finetune"][f"accuracy_{split}"] for split in ("val", "test")}
    if "untrained" not in results["linear"]:
        return [row]
    name = f"{names['name']}, untrained"
    same = {key: row[key] for key in ("latent_dim", "parameters", "folder")}
    control = {**names, **same, "name": name, "control": "untrained"}
    return [row, control | probe_columns({"linear": results["linear"]["untrained"]})]


def pixel_row(folder: Path, **names) -> dict:
    """The row of the pixels themselves, which the linear probe of this folder scored beside some model."""
    scores = read_json(folder / "results.json")["raw_pixels"]
    return {**names, "name": "raw pixels", "control": "raw pixels", **probe_columns({"linear": scores})}


def probe_columns(scores: dict[str, dict]) -> dict:
    """The columns of probes with these heads."""
    linear = scores["linear"]
    columns = {f"knn_{split}": linear[f"knn_{split}"] for split in ("val", "test")}
    for head, results in scores.items():
        columns |= {f"{head}_{split}": results[f"probe_{split}"] for split in ("val", "test")}
    return columns | {name: linear[name] for name in ("num_features", "num_labels")}


# ---- tables


def by_labels(rows: Iterable[dict]) -> dict[float, list[dict]]:
    """The rows of each ratio of the labels, in the order in which they come."""
    found: dict[float, list[dict]] = {}
    for row in rows:
        found.setdefault(row["label_fraction"], []).append(row)
    return found


def tell_labels(label_fraction: float) -> str:
    """What follows a name where not all labels were used.

    >>> [tell_labels(fraction) for fraction in (1.0, 0.1, 0.005)]
    ['', ', 10 % of the labels', ', 0.5 % of the labels']
    """
    return "" if label_fraction == 1 else f", {100 * label_fraction:g} % of the labels"


def summarise(rows: Sequence[dict]) -> list[dict]:
    """One line a cell: (mean, standard deviation or None) over its seeds of each column that people read, and of what
    judges it.

    The rows are of one ratio of the labels. The best linear probe comes first. Standard deviations are those of a
    sample, and want two seeds.
    """
    cells: dict[tuple, list[dict]] = {}
    for row in rows:
        cells.setdefault((row["data"], row["name"]), []).append(row)
    lines = []
    for (data, name), group in cells.items():
        line = {"data": data, "name": name, "control": group[0]["control"], "seeds": len(group)}
        for key in dict.fromkeys(key for column in READ for key in (column.key, column.judge)):
            values = [row[key] for row in group if row.get(key) is not None]
            if values:
                line[key] = mean_and_std(values)
        lines.append(line)
    return sorted(lines, key=lambda line: -line["linear_test"][0])


def filled(columns: Sequence[Column], lines: Sequence[dict]) -> list[Column]:
    """The columns that any of the lines has."""
    return [column for column in columns if any(column.key in line for line in lines)]


def differences(rows: Sequence[dict]) -> list[dict]:
    """The lines of a data set's trained models after the first, of their accuracies less those of the first under the
    same seed: what all models find harder under one seed cancels. They want two seeds.
    """
    trained = [row for row in rows if not row["control"]]
    first = {row["seed"]: row for row in trained if row["name"] == trained[0]["name"]}
    paired = []
    for row in trained:
        other = first.get(row["seed"], row)
        if other["name"] != row["name"]:
            keys = [column.key for column in ACCURACIES if column.key in row.keys() & other.keys()]
            named = {key: row[key] for key in ("data", "name", "control", "seed")}
            paired.append(named | {key: row[key] - other[key] for key in keys})
    return [line for line in summarise(paired) if line["seeds"] > 1]


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and the standard deviation of a sample, None of one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def format_value(value: tuple[float, float | None] | None, decimals: int, *, signed: bool = False) -> str:
    """ "61.3 ± 0.4", or "61.3" of one seed, or a dash of none; `signed` as "+1.3 ± 0.4".

    >>> format_value((61.3, 0.42), 1), format_value((97.5, None), 1), format_value((5400000.0, 0.0), 0)
    ('61.3 ± 0.4', '97.5', '5,400,000')
    """
    if value is None:
        return "–"
    mean, std = value
    text = f"{mean:{'+' if signed else ''},.{decimals}f}"
    return text if std is None or not decimals else f"{text} ± {std:.{decimals}f}"


def format_cell(line: Mapping, column: Column, *, signed: bool = False) -> str:
    """A line's value in a column, with a mark if it is not ranked."""
    text = format_value(line.get(column.key), column.decimals, signed=signed)
    return text if is_ranked(line, column) else f"{text} †"


def describe_rest(extra: Mapping[str, Mapping[str, Any]], diverged: Sequence[str]) -> str:
    """Sentences about what no table shows: settings of one place, and cells and seeds that are left out.

    >>> describe_rest({"vae": {}, "finetune": {"layer_decay": 0.8}}, [])
    'Settings given by extra: finetune (layer_decay 0.8).'
    """
    given = [
        f"{place} ({', '.join(f'{name} {value}' for name, value in settings.items())})"
        for place, settings in extra.items()
        if settings
    ]
    told = [f"Settings given by extra: {', '.join(given)}."] if given else []
    told += [f"Left out, as a loss diverged: {', '.join(diverged)}."] if diverged else []
    return " ".join(told)


def write_tables(rows: Sequence[dict], folder: Path, note: str) -> list[Path]:
    """comparison.csv, one line a cell and seed with all digits, and comparison.md, means and stds.

    `note` stands below the tables.
    """
    table, text = folder / "comparison.csv", folder / "comparison.md"
    write_csv(table, COLUMNS, ([row.get(column) for column in COLUMNS] for row in rows))
    write_bytes(text, markdown(rows, note).encode())
    return [table, text]


def markdown(rows: Sequence[dict], note: str) -> str:
    """For each data set and ratio of the labels a table and, of several seeds, one of differences; remarks and a note
    below. What does not depend on labels is in a data set's first table.
    """
    parts = []
    columns: Sequence[Column]
    for data in dict.fromkeys(row["data"] for row in rows):
        columns = READ
        for fraction, those in by_labels(row for row in rows if row["data"] == data).items():
            lines = summarise(those)
            table = markdown_table(lines, filled(columns, lines), format_cell)
            parts += [f"## {data}{tell_labels(fraction)}\n", *table]
            columns = ACCURACIES
            if further := differences(those):
                than = next(row["name"] for row in those if not row["control"])
                parts.append(f"Test accuracy less that of {than} under the same seed, mean ± standard deviation:\n")
                parts += markdown_table(further, ACCURACIES, partial(format_cell, signed=True))
    parts.append(
        "Accuracies are of the test split, in %, each the mean over seeds ± the standard deviation of a sample where "
        "there are several. A seed decides the initial weights, order, augmentation and masks of pretraining, and all "
        "that is random in the MLP probe and in fine-tuning; where not all labels are used, it draws them. The splits "
        "of the data are the same under every seed: ± does not cover their choice. MSE, PSNR and SSIM are of pixels in "
        '[0, 1]; "hidden": of the whole image, patches at the model\'s own mask ratio painted in and visible ones '
        "pasted. Controls were not trained.\n"
    )
    if any("†" in part for part in parts):
        parts.append(f"{UNRANKED}\n")
    if note:
        parts.append(f"{note}\n")
    return "\n".join(parts)


def markdown_table(lines: Sequence[dict], columns: Sequence[Column], show: Callable[[dict, Column], str]) -> list[str]:
    """The lines of a table, controls in italics, and an empty one."""
    titles = [f"{column.title}{' (hidden)' if column.key.endswith('_masked') else ''}" for column in columns]
    parts = [f"| model | {' | '.join(titles)} | seeds |", "|---" * (len(titles) + 2) + "|"]
    for line in lines:
        name = f"*{line['name']} (control)*" if line["control"] else line["name"]
        parts.append(f"| {' | '.join([name, *(show(line, column) for column in columns), str(line['seeds'])])} |")
    return [*parts, ""]
