"""Results of many autoencoders as rows, and the tables made of them. A row is one cell of a grid under one seed."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..evaluation.metrics import RECONSTRUCTION_METRICS
from ..files import read_json, write_bytes, write_csv
from ..interop.load import load_autoencoder

COLUMNS = (
    "data", "name", "control", "seed", "model", "latent_dim", "loss", "num_features", "parameters", "minutes", "epochs",
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
READ = [column for columns in TABLE.values() for column in columns]


# ---- rows from the folders of a cell


def cell_rows(folder: Path, **names) -> list[dict]:
    """The rows of one cell and seed, read from the results of its stages: the model, and its untrained encoder.

    `names` are the columns that the folder does not state: data, name, model and seed.
    """
    results = {path.parent.name: read_json(path) for path in folder.glob("*/results.json")}
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
    """The row of the pixels themselves, which linear_probe.py scored beside some model."""
    scores = read_json(folder / "linear" / "results.json")["raw_pixels"]
    return {**names, "name": "raw pixels", "control": "raw pixels", **probe_columns({"linear": scores})}


def probe_columns(scores: dict[str, dict]) -> dict:
    """The columns of probes with these heads."""
    linear = scores["linear"]
    columns = {f"knn_{split}": linear[f"knn_{split}"] for split in ("val", "test")}
    for head, results in scores.items():
        columns |= {f"{head}_{split}": results[f"probe_{split}"] for split in ("val", "test")}
    return columns | {"num_features": linear["num_features"]}


# ---- tables


def summarise(rows: Sequence[dict]) -> list[dict]:
    """One line a cell: (mean, standard deviation or None) over its seeds of each column that people read.

    The best linear probe comes first. Standard deviations are those of a sample, and want two seeds.
    """
    cells: dict[tuple, list[dict]] = {}
    for row in rows:
        cells.setdefault((row["data"], row["name"]), []).append(row)
    lines = []
    for (data, name), group in cells.items():
        line = {"data": data, "name": name, "control": group[0]["control"], "seeds": len(group)}
        for column in READ:
            values = [row[column.key] for row in group if row.get(column.key) is not None]
            if values:
                line[column.key] = mean_and_std(values)
        lines.append(line)
    return sorted(lines, key=lambda line: -line["linear_test"][0])


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and the standard deviation of a sample, None of one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def format_value(value: tuple[float, float | None] | None, decimals: int) -> str:
    """ "61.3 ± 0.4", or "61.3" of one seed, or a dash of none.

    >>> format_value((61.3, 0.42), 1), format_value((97.5, None), 1), format_value((5400000.0, 0.0), 0)
    ('61.3 ± 0.4', '97.5', '5,400,000')
    """
    if value is None:
        return "–"
    mean, std = value
    text = f"{mean:,.{decimals}f}"
    return text if std is None or not decimals else f"{text} ± {std:.{decimals}f}"


def describe_diverged(diverged: Sequence[str]) -> str:
    """A sentence about the cells and seeds that are in no table; nothing if there are none."""
    return f"Left out, as a loss diverged: {', '.join(diverged)}." if diverged else ""


def write_tables(rows: Sequence[dict], folder: Path, diverged: Sequence[str]) -> list[Path]:
    """comparison.csv, one line a cell and seed with all digits, and comparison.md, means and stds.

    `diverged` are the cells and seeds that have no rows.
    """
    table, text = folder / "comparison.csv", folder / "comparison.md"
    write_csv(table, COLUMNS, ([row.get(column) for column in COLUMNS] for row in rows))
    write_bytes(text, markdown(summarise(rows), describe_diverged(diverged)).encode())
    return [table, text]


def markdown(lines: Sequence[dict], note: str) -> str:
    """A table for each data set, controls in italics, and a note below."""
    parts = []
    for data in dict.fromkeys(line["data"] for line in lines):
        titles = [f"{column.title}{' (hidden)' if column.key.endswith('_masked') else ''}" for column in READ]
        parts += [f"## {data}\n", f"| model | {' | '.join(titles)} | seeds |", "|---" * (len(READ) + 2) + "|"]
        for line in lines:
            if line["data"] == data:
                name = f"*{line['name']} (control)*" if line["control"] else line["name"]
                values = [format_value(line.get(column.key), column.decimals) for column in READ]
                parts.append(f"| {' | '.join([name, *values, str(line['seeds'])])} |")
        parts.append("")
    parts.append(
        "Accuracies are of the test split, in %, each the mean over seeds ± the standard deviation of a sample where "
        'there are several. MSE, PSNR and SSIM are of pixels in [0, 1]; "hidden": of the whole image, patches at the '
        "model's own mask ratio painted in and visible ones pasted. Controls were not trained.\n"
    )
    if note:
        parts.append(f"{note}\n")
    return "\n".join(parts)
