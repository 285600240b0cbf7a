"""report.html: one self-contained page about a comparison, that asks nothing of the network."""

import base64
import io
from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from string import Template

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from . import charts
from .comparison import READ, TABLE, format_value, summarise, tell_diverged
from .data import Dataset, pick
from .evaluate import map_dataset
from .figures import tile
from .files import read_json, read_metrics, write_atomically
from .weights import load_autoencoder

SHOWN = 8  # test pictures in the strips of reconstructions
MAPPED = 1000  # test pictures in a map of latents


def write_report(rows: Sequence[dict], path: Path, load: Callable[..., Dataset], diverged: Sequence[str] = ()) -> Path:
    """Write the page about these rows, see `comparison.cell_rows`. `load(data, split, image_size=, channels=)`.

    `diverged` are the cells and seeds that have no rows.
    """
    names = list(dict.fromkeys(row["data"] for row in rows if not row["control"]))
    sections = [data_section([row for row in rows if row["data"] == name], load) for name in names]
    links = [f'<a href="#{slug(name)}">{escape(name)}</a>' for name in names]
    nav = f'<nav aria-label="data sets">{"".join(links)}</nav>' if len(names) > 1 else ""
    template = Template((files(__package__) / "report_template.html").read_text(encoding="utf-8"))
    title = escape(f"Autoencoders compared on {', '.join(names)}")
    note = f'<p class="note">{escape(tell_diverged(diverged))}</p>' if diverged else ""
    page = template.substitute(title=title, nav=nav, body=note + "".join(sections))
    write_atomically(path, lambda beside: beside.write_text(page, encoding="utf-8"))
    return path


@torch.no_grad()
def data_section(rows: Sequence[dict], load: Callable[..., Dataset]) -> str:
    """All about one data set."""
    name, lines = rows[0]["data"], summarise(rows)
    trained = [row for row in rows if not row["control"]]
    order = {model: index for index, model in enumerate(dict.fromkeys(row["model"] for row in trained))}
    cells = [next(group) for _, group in groupby(trained, key=lambda row: row["name"])]  # under their first seed
    models = {row["name"]: load_autoencoder(Path(row["folder"]) / "pretrain") for row in cells}
    run = read_json(Path(cells[0]["folder"]) / "pretrain" / "args.json")
    first = next(iter(models.values()))
    test_set = load(run["arguments"]["data"], "test", image_size=first.image_size, channels=first.in_channels)
    seeds = sorted({row["seed"] for row in trained})
    under = "" if len(seeds) == 1 else " Each under its first seed."
    parts = [
        f'<section id="{slug(name)}"><h2>{escape(name)}</h2>',
        facts(rows, cells, test_set, seeds, run),
        tiles(lines),
        block("Results", table(lines, name), table_note(lines, seeds)),
        size_block(lines, rows, order),
        block("Reconstructions", strips(models, test_set), strips_note(models, under)),
        samples(models, under),
        maps(models, test_set, under),
        confusions(cells, test_set, under),
        curves(trained, order),
        settings(rows, run),
        "</section>",
    ]
    return "".join(parts)


def block(title: str, content: str, note: str) -> str:
    """A part of a section: heading, what it shows, and what one must know to read it."""
    return f'<section class="block"><h3>{escape(title)}</h3><p class="note">{note}</p>{content}</section>'


def panel(title: str, content: str) -> str:
    """One of several pictures side by side."""
    return f"<figure><figcaption>{escape(title)}</figcaption>{content}</figure>"


def slug(name: str) -> str:
    """A name as an anchor."""
    return "data-" + "".join(letter if letter.isalnum() else "-" for letter in name)


def spread(values: Sequence[float], decimals: int = 1) -> str:
    """ "5.0", or "4.9 to 5.1"."""
    low, high = f"{min(values):,.{decimals}f}", f"{max(values):,.{decimals}f}"
    return low if low == high else f"{low} to {high}"


# ---- text and numbers


def facts(rows: Sequence[dict], cells: Sequence[dict], test_set: Dataset, seeds: list[int], run: dict) -> str:
    """Data, seeds and cost, before any number is read."""
    probe = read_json(Path(cells[0]["folder"]) / "linear" / "results.json")
    learnt = [row for row in rows if not row["control"] and row["model"] != "pca"]
    minutes = [row["minutes"] for row in learnt]
    length = f"pretrained for {spread(minutes, 1 if max(minutes) > 1 else 2)} minutes" if learnt else "fitted"
    length += f" ({spread([row['epochs'] for row in learnt])} epochs)" if learnt else ""
    one = "one seed, so differences between models may be chance" if len(seeds) == 1 else f"{len(seeds)} seeds"
    many = f"{len(cells)} models" if len(cells) > 1 else "One model"
    return (
        f'<p class="lead">{many}, {length} on {escape(run["device"])}, scored on {len(test_set):,} test images; '
        f"{probe['num_labels']:,} labelled images for the probes; {one}.</p>"
    )


def tiles(lines: Sequence[dict]) -> str:
    """The best of three columns, the same that the table shows in bold."""
    best = {}
    for key, title, decimals in (
        ("linear_test", "best linear probe", 1), ("finetuned_test", "best fine-tuned", 1),
        ("mse", "lowest error, nothing hidden", 4),
    ):  # fmt: skip
        ranked = [line for line in lines if key in line and not line["control"]]
        if ranked:
            line = sorted(ranked, key=itemgetter(key))[0 if key == "mse" else -1]  # by the mean, which comes first
            unit = "" if key == "mse" else "&thinsp;%"
            mean, *deviation = format_value(line[key], decimals).split(" ± ")
            give = f"<small>&thinsp;±&thinsp;{deviation[0]}</small>" if deviation else ""
            best[title] = (f"{mean}{unit}{give}", line["name"])
    pixels = [line for line in lines if line["control"] == "raw pixels"]
    if pixels:
        best["control: raw pixels"] = (f"{format_value(pixels[0]['linear_test'], 1)}&thinsp;%", "linear probe")
    items = (
        f"<div><dt>{title}</dt><dd>{value}<span>{escape(name)}</span></dd></div>"
        for title, (value, name) in best.items()
    )
    return f'<dl class="tiles">{"".join(items)}</dl>'


def table(lines: Sequence[dict], name: str) -> str:
    """The sortable table; without scripts it stays sorted by the linear probe."""
    columns = [column for column in READ if any(column.key in line for line in lines)]
    best = {}
    for column in columns:
        values = [line[column.key][0] for line in lines if column.key in line and not line["control"]]
        if column.lower_is_better is not None and len(values) > 1:
            best[column.key] = min(values) if column.lower_is_better else max(values)
    groups, heads = [], [head("model", "text", "")]
    for title, group in TABLE.items():
        shown = [column for column in group if column in columns]
        if shown:
            groups.append(f'<th scope="colgroup" colspan="{len(shown)}">{escape(title)}</th>')
        for column in shown:
            heads.append(head(column.title, "number", "descending" if column.key == "linear_test" else ""))
    body = []
    for line in lines:
        mark = '<span class="badge">control</span>' if line["control"] else ""
        cells = [f'<th scope="row" data-value="{escape(line["name"])}">{escape(line["name"])}{mark}</th>']
        for column in columns:
            value = line.get(column.key)
            sort_by = "" if value is None else f' data-value="{value[0]!r}"'
            winner = value is not None and not line["control"] and best.get(column.key) == value[0]
            cells.append(f"<td{sort_by}{' class=best' if winner else ''}>{format_value(value, column.decimals)}</td>")
        body.append(f"<tr{' class=control' if line['control'] else ''}>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Results on {escape(name)}, scrollable">'
        f'<table class="sortable"><thead><tr><td></td>{"".join(groups)}</tr><tr>{"".join(heads)}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def head(title: str, kind: str, sort: str) -> str:
    """A column's heading, a button that sorts by it."""
    state = f' aria-sort="{sort}"' if sort else ""
    return f'<th scope="col" data-kind="{kind}"{state}><button type="button">{escape(title)}</button></th>'


def table_note(lines: Sequence[dict], seeds: list[int]) -> str:
    """How the table is to be read."""
    if len(seeds) > 1:
        how = f"Means over {len(seeds)} seeds ± standard deviation. "
        fewer = [line for line in lines if line["seeds"] < len(seeds) and not line["control"]]
        how += "".join(f"{escape(line['name'])} has only {line['seeds']} of them. " for line in fewer)
    else:
        how = f"One seed ({seeds[0]}): no deviations. "
    hidden = (
        " Masked autoencoders never learnt to redraw patches that they see: with nothing hidden their figures say "
        "little. With patches hidden, the whole picture counts, visible patches pasted."
        if any("mse_masked" in line for line in lines)
        else ""
    )
    return (
        f"{how}Press a heading to sort; bold is the best trained model of a column. Controls were not trained: raw "
        "pixels, and each encoder before its training. Probes chose their regularisation on validation; test was "
        f"scored once. Errors are of pixels in [0, 1].{hidden}"
    )


# ---- pictures


def size_block(lines: Sequence[dict], rows: Sequence[dict], order: dict[str, int]) -> str:
    """Accuracy against the number of features, with its key."""
    model_of = {row["name"]: row["model"] for row in rows}
    by_name = {line["name"]: line for line in lines}
    points = []
    for line in lines:
        if not line["control"]:
            untrained = by_name.get(f"{line['name']}, untrained", {}).get("linear_test", (None,))[0]
            accuracy, deviation = line["linear_test"]
            points.append(
                {"name": line["name"], "index": order[model_of[line["name"]]], "size": int(line["num_features"][0]),
                 "accuracy": accuracy, "deviation": deviation, "untrained": untrained}
            )  # fmt: skip
    floor = next((line["linear_test"][0] for line in lines if line["control"] == "raw pixels"), None)
    wide = charts.accuracy_by_size(points, floor, width=900, height=430, labels=True, css="wide")
    narrow = charts.accuracy_by_size(points, floor, width=350, height=330, labels=False, css="narrow")
    keys = []
    for model, index in order.items():
        picture = f'<svg viewBox="-9 -9 18 18" aria-hidden="true">{charts.marker(index, 0, 0)}</svg>'
        keys.append(f"<li>{picture}{escape(model)}</li>")
    hollow = '<svg viewBox="-9 -9 18 18" aria-hidden="true"><circle class="ring" r="4"/></svg>'
    if any(point["untrained"] is not None for point in points):
        keys.append(f"<li>{hollow}hollow: the same encoder, untrained</li>")
    note = (
        "Linear-probe accuracy on test, %, by the number of features that the encoder gives. The dotted line from a "
        "hollow mark to a filled one is what training added. Models differ in more than this size."
    )
    return block("Accuracy against latent size", f'{wide}{narrow}<ul class="key">{"".join(keys)}</ul>', note)


def data_uri(images: Tensor, columns: int, *, gap: int = 1) -> tuple[str, int, int]:
    """Images (N, C, H, W) in [0, 1] in rows of `columns`, as a PNG inside an address; its width and height."""
    sheet = Image.fromarray((tile(images, columns, gap=gap) * 255).round().astype(np.uint8))
    memory = io.BytesIO()
    sheet.save(memory, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(memory.getvalue()).decode()}", *sheet.size


def picture(images: Tensor, columns: int, alt: str, *, gap: int = 1) -> str:
    """A sheet of images, its pixels kept sharp."""
    address, width, height = data_uri(images, columns, gap=gap)
    return f'<img src="{address}" width="{width}" height="{height}" alt="{escape(alt)}">'


def strips(models: dict, test_set: Dataset) -> str:
    """The same test pictures through every model, a line each."""
    assert test_set.labels is not None  # or there would be no probes
    labels = test_set.labels.tolist()
    chosen = [labels.index(label) for label in sorted(set(labels))][:SHOWN]
    chosen += [index for index in range(len(labels)) if index not in chosen][: SHOWN - len(chosen)]
    images = test_set[torch.tensor(chosen)][0]
    shown: list[tuple[str, str, Tensor]] = []
    for name, model in models.items():
        if not hasattr(model, "mask_ratio"):
            shown.append((name, "", model.reconstruct(images).images))
            continue
        seen = model.reconstruct(images, generator=torch.Generator().manual_seed(0))
        nothing = torch.zeros(model.num_patches, dtype=torch.bool)
        shown.append((name, f"sees {1 - model.mask_ratio:.0%}", seen.masked))
        shown.append(("", "paints in the rest", seen.images))
        shown.append(("", "nothing hidden", model.reconstruct(images, nothing).prediction))
    lines = [("original", "", images / 255), *shown]
    items = []
    for name, kind, pictures in lines:
        label = f"<b>{escape(name)}</b>" if name else ""
        alt = f"{name or 'the same model'} {kind}: {len(images)} test pictures"
        css = ' class="first"' if name else ""
        items.append(f"<li{css}><div>{label}<span>{escape(kind)}</span></div>{picture(pictures, SHOWN, alt)}</li>")
    return f'<ul class="strips">{"".join(items)}</ul>'


def strips_note(models: dict, under: str) -> str:
    """What the strips are of."""
    note = f"The same test pictures, the first of each of up to {SHOWN} classes, through every model.{under}"
    if any(hasattr(model, "mask_ratio") for model in models.values()):
        note += " With nothing hidden, a masked autoencoder is asked for what it never learnt, patches that it sees."
    if any(getattr(model, "norm_pix_loss", False) for model in models.values()):
        note += (
            " Brightness and contrast of hidden patches, which a loss on normalised patches leaves open, are "
            "interpolated from visible ones."
        )
    return note


def samples(models: dict, under: str) -> str:
    """New pictures of the models that can draw them."""
    drawn = {
        name: model.sample(32, generator=torch.Generator().manual_seed(0))
        for name, model in models.items() if hasattr(model, "sample")
    }  # fmt: skip
    if not drawn:
        return ""
    panels = [panel(name, picture(images, 8, f"32 samples of {name}")) for name, images in drawn.items()]
    note = (
        "Drawn at random, not picked. A VAE decodes standard normal latents. For a VQ-VAE no prior over maps of codes "
        f"was learnt: each place gets a code as frequent there as in training, which gives texture without form.{under}"
    )
    return block("Samples", f'<div class="panels pictures">{"".join(panels)}</div>', note)


def maps(models: dict, test_set: Dataset, under: str) -> str:
    """A map of each model's features, and of the pixels."""
    if len(test_set) < 4:  # too few for any neighbourhood
        return ""
    some = pick(test_set, MAPPED)
    assert some.labels is not None
    labels, classes = some.labels.cpu().numpy(), test_set.classes
    encoders = {"raw pixels (control)": lambda images: images.flatten(1) / 255}
    encoders |= {name: model.encode for name, model in models.items()}
    panels = []
    for name, encode in encoders.items():
        places = embed(map_dataset(encode, some, device="cpu").numpy())
        panels.append(panel(name, charts.scatter(places, labels, f"Map of the features of {name}, by class")))
    key = ""
    colours = f"Colours repeat over the {len(classes)} classes."
    if len(classes) <= charts.PALETTE:
        names = (f'<li><i style="--c:var(--k{k})"></i>{escape(name)}</li>' for k, name in enumerate(classes))
        key, colours = (
            f'<ul class="key">{"".join(names)}</ul>',
            "Colours are the true classes, which no encoder was told.",
        )
    note = (
        f"t-SNE of the features of {len(some):,} test pictures (perplexity 30, at most 50 principal components). "
        f"{colours} Clusters are worth a look; sizes of clusters and distances between them mean nothing.{under}"
    )
    return block("Maps of the latents", f'{key}<div class="panels maps">{"".join(panels)}</div>', note)


def embed(features: np.ndarray) -> np.ndarray:
    """Features (N, F) -> places (N, 2), by t-SNE, always the same."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if features.shape[1] > 50 and len(features) > 50:
        features = PCA(50, random_state=0).fit_transform(features)
    perplexity = min(30, (len(features) - 1) / 3)
    init = "pca" if features.shape[1] > 1 else "random"
    return TSNE(2, init=init, random_state=0, perplexity=perplexity).fit_transform(features)


def confusions(cells: Sequence[dict], test_set: Dataset, under: str) -> str:
    """A confusion matrix of each model's linear probe."""
    panels = []
    for row in cells:
        results = read_json(Path(row["folder"]) / "linear" / "results.json")
        matrix = np.array(results["confusion_matrix"])
        label = f"Confusion matrix of {row['name']}: {results['probe_test']:.1f} % right"
        drawing = charts.confusion(matrix, test_set.classes, label)
        panels.append(panel(f"{row['name']}, {results['probe_test']:.1f} %", drawing))
    note = (
        f"Linear probes on test, in % of the true class (rows); columns are predictions. Blank is below 0.5 %.{under}"
    )
    return block("Confusion matrices", f'<div class="panels">{"".join(panels)}</div>', note)


def curves(trained: Sequence[dict], order: dict[str, int]) -> str:
    """The loss of each pretraining, each in its own scale."""
    panels = []
    for name in dict.fromkeys(row["name"] for row in trained):
        rows = [row for row in trained if row["name"] == name]
        runs = [points for row in rows if (points := loss_points(Path(row["folder"]) / "pretrain" / "metrics.jsonl"))]
        if runs:
            drawing = charts.loss_curves(runs, order[rows[0]["model"]], f"Loss of {name} over its minutes of training")
            panels.append(panel(name, drawing))
    note = (
        "Training loss over minutes, one line a seed. Each model minimises a loss of its own, so heights do not "
        "compare across panels; the highest tenth of the losses, at the start, is cut off. A PCA is fitted at once and "
        "has no curve."
    )
    return block("Loss curves", f'<div class="panels">{"".join(panels)}</div>', note) if panels else ""


def loss_points(path: Path) -> list[tuple[float, float]]:
    """(minutes, loss) of a run's metrics."""
    return [(line["minutes"], line["loss"]) for line in read_metrics(path) if line.get("loss") is not None]


def settings(rows: Sequence[dict], run: dict) -> str:
    """What else one needs to make this again."""
    items = []
    for row in rows:
        if not row["control"]:
            given = read_json(Path(row["folder"]) / "pretrain" / "args.json")["arguments"]
            words = ", ".join(f"{key} {value}" for key, value in given.items() if key in SETTINGS and value is not None)
            items.append(f"<li><b>{escape(row['name'])}</b>, seed {row['seed']}: {escape(words)}</li>")
    folder = Path(next(row["folder"] for row in rows if not row["control"])).parents[1]
    found = []
    for path in sorted(folder.glob("search/*/best.json")):
        best = read_json(path)
        found.append(
            f"<li><b>{escape(path.parent.name)}</b>: trial {best['trial']} of {best['trials']}, {best['value']:.1f} % "
            f"of validation, <code>{escape(' '.join(best['flags']))}</code></li>"
        )
    searched = (
        f"<p>Settings were searched first, by the linear probe on validation after short pretrainings; test was not "
        f"loaded.</p><ul>{''.join(found)}</ul>"
        if found
        else "<p>Settings are each family's recipe and the flags given; none was searched for on this data.</p>"
    )
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    return (
        f'<details class="block"><summary>Settings and versions</summary>{searched}<ul>{"".join(items)}</ul>'
        f"<p>{escape(versions)}; commit {escape(str(run['commit'])[:10])}; {escape(run['date'][:10])}.</p></details>"
    )


SETTINGS = (
    "encoder", "patch_size", "embed_dim", "depth", "width", "latent_dim", "beta", "codebook_size", "mask_ratio",
    "skips", "loss", "batch_size", "base_lr", "weight_decay", "max_minutes", "mixed_precision",
)  # fmt: skip
