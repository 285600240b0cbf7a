"""Look for what may be wrong with a data set: near-duplicates, outliers, doubtful labels."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InputError
from ..evaluation.inspection import (
    confident_issues,
    find_duplicates,
    group_pairs,
    held_out_probabilities,
    is_weak,
)
from ..evaluation.metrics import accuracy
from ..evaluation.neighbours import kth_distance
from ..evaluation.pages import render
from ..evaluation.sheets import Tile, in_rows, write_sheet
from ..files import write_bytes, write_csv
from ..interop.load import Model, load
from ..randomness import derive_seed
from ..training.processes import on_main
from ..training.run import Run
from .features import FeatureSettings, JoinedSplits, map_images
from .fields import keywords_of, setting, with_default
from .results import Result

SHOWN = 60  # images on a sheet, or groups
LARGEST_GROUP = 12  # images of a group on a sheet, and in a row of it
# Frames of duplicates: groups that stand side by side have the two tones in turn.
ACROSS, WITHIN = ("#c1121f", "#f2a0a8"), ("#1d4e79", "#9cc3e6")


@dataclass(frozen=True, kw_only=True)
class InspectSettings(FeatureSettings):
    """Settings of an inspection."""

    output_dir: str | Path = with_default(FeatureSettings, "output_dir", "runs/inspect")
    least_correlation: float = setting(
        0.86, "of the details of near-duplicates, once aligned", group="inspection", least=-1, most=1
    )
    k: int | None = setting(
        None, "an outlier is far from its k-th neighbour, so k is more than alike outliers there may be "
        "(default: a tenth of the images, at most 500)", group="inspection", least=1,
    )  # fmt: skip
    folds: int = setting(5, "parts whose labels are judged by a probe of the others", group="inspection", least=2)


def run(settings: InspectSettings) -> Result[Model]:
    """Look for near-duplicates within and across splits, outliers and, where there are labels, doubtful ones.

    duplicates.csv has the images of each group, those that lie in several splits first; outliers.csv all images,
    by the cosine distance to their k-th neighbour; doubtful_labels.csv all labelled images, by the probability of their
    label according to a probe of other images. index.html shows a sheet of each.

    Raises InputError for settings or data that cannot work.
    """
    settings, accelerator, model = settings.begin(load)
    encode = settings.encoder(model, accelerator)
    images = settings.open_images(model, accelerator, grouped=True)
    if len(images) < 2:
        raise InputError(f"data set {settings.data_name} has {len(images)} image: there is nothing to compare")
    with settings.open_run(accelerator, splits=images.parts, weights=model) as run:
        features = map_images(encode, images, accelerator, **settings.computing)
        parts = on_main(accelerator, partial(look_into, settings, images, features, run))
        results = {"images": len(images)} | {name: value for part in parts for name, value in part.numbers.items()}
        files = [file for part in parts for file in part.files]
        run.finish(results, [*files, run.folder / "index.html"])
    return Result(model, results, run.folder)


inspect = keywords_of(run, InspectSettings)


@dataclass
class Finding:
    """What was found in one respect."""

    heading: str
    text: str
    numbers: dict
    files: Sequence[Path]  # the table, then the sheet


def look_into(settings: InspectSettings, images: JoinedSplits, features: Tensor, run: Run) -> list[Finding]:
    """All that is looked for, and the page."""
    on_device = features.to(run.accelerator.device)
    parts = [
        inspect_duplicates(settings, images, on_device, run.folder),
        inspect_outliers(settings, images, on_device, run.folder),
    ]
    labelled, of_all = (images.labels >= 0).nonzero()[:, 0], images.groups
    groups = [of_all[row] for row in labelled.tolist()] if of_all else []
    if len(labelled) and len({*groups}) != 1:  # of one group, none can be held out
        parts.append(inspect_labels(settings, images, features, labelled, groups, run.folder))
    for part in parts:
        run.print(f"{part.heading}: {part.text}")
    write_page(settings, images, parts, run.folder / "index.html")
    return parts


def inspect_duplicates(settings: InspectSettings, images: JoinedSplits, features: Tensor, folder: Path) -> Finding:
    """Groups of near-duplicates; those across splits first, then the most similar."""
    pairs = find_duplicates(features, images.__getitem__, least_correlation=settings.least_correlation)
    group_of = group_pairs(pairs.first, pairs.second, len(images))
    grouped = group_of >= 0
    members = group_of.argsort(stable=True)[int((~grouped).sum()) :]  # those of no group, -1, stand first
    groups = members.split(group_of[grouped].bincount().tolist())
    ends, values = torch.cat([pairs.first, pairs.second]), pairs.correlation.repeat(2)
    best = torch.zeros(len(images)).scatter_reduce(0, ends, values, "amax")  # of each image's most similar duplicate
    across = [len(images.find(group).unique()) > 1 for group in groups]
    order = sorted(range(len(groups)), key=lambda n: (not across[n], -float(best[groups[n]].max())))
    rows, shown = [], []
    for number, old in enumerate(order, 1):
        group = groups[old]
        found = zip(images.about(group), best[group].tolist(), strict=True)
        rows += [(number, "yes" if across[old] else "no", *about, f"{high:.4f}") for about, high in found]
        if number <= SHOWN:
            tones = ACROSS if across[old] else WITHIN
            shown.append(show_group(images, group, best[group], number, frame=tones[number % 2]))
    table = write_csv(
        folder / "duplicates.csv", ["group", "across_splits", "name", "split", "label", "correlation"], rows
    )
    title = "groups of near-duplicates, by number; red: across splits" if groups else "no near-duplicates were found"
    sheet = write_sheet(in_columns(shown), folder / "duplicates.png", title)
    numbers = {
        "duplicate_groups": len(groups), "duplicate_images": len(rows), "groups_across_splits": sum(across),
    }  # fmt: skip
    text = f"{len(groups)} group{'s'[: len(groups) != 1]} of {len(rows)} images in all, {sum(across)} across splits"
    if not groups:
        text = "none were found"
    if len(rows) > len(images) / 10:
        of_one = "film or subject, which --group-column or --group-pattern keep in one split"
        text += (
            f". So many suggest frames of one {'group' if images.groups else of_one}; or images that resemble each "
            f"other by nature, as drawings do{', or in their padded borders' * (settings.fit == 'pad')}: then raise "
            f"--least-correlation, which is {settings.least_correlation:g} here, to 0.98 or so"
        )
    return Finding("Near-duplicates", text, numbers, [table, sheet])


def show_group(images: JoinedSplits, group: Tensor, best: Tensor, number: int, *, frame: str) -> list[Tile]:
    """The tiles of a group with the `best` correlation of each of its images, one of each split first; the last of them
    says how many images are not shown.
    """
    splits = images.find(group).tolist()
    ahead = sorted(range(len(group)), key=lambda place: splits.index(splits[place]) != place)
    some, correlations = (values[ahead[:LARGEST_GROUP]] for values in (group, best))
    about = zip(images.look_closer(some), images.about(some), correlations.tolist(), strict=True)
    tiles = [
        Tile(image, (name, f"{number}: {split} {label or ''}", f"correlation {correlation:.2f}"), frame)
        for image, (name, split, label), correlation in about
    ]
    if len(group) > len(some):
        tiles[-1].lines = (*tiles[-1].lines, f"+{len(group) - len(some)} more")
    return tiles


def in_columns(groups: Sequence[list[Tile]]) -> list[list[Tile]]:
    """Groups one after the other in rows as long as the largest may be; a group is not torn apart."""
    rows: list[list[Tile]] = []
    for group in groups:
        if rows and len(rows[-1]) + len(group) <= LARGEST_GROUP:
            rows[-1] += group
        else:
            rows.append(list(group))
    return rows


def inspect_outliers(settings: InspectSettings, images: JoinedSplits, features: Tensor, folder: Path) -> Finding:
    """All images by the distance to their k-th neighbour."""
    k = min(settings.k or min(max(len(images) // 10, 1), 500), len(images) - 1)
    distance = kth_distance(features, k=k).cpu()
    order = distance.argsort(descending=True, stable=True)
    ranked = zip(images.about(order), distance[order].tolist(), strict=True)
    rows = [(rank, *about, f"{far:.4f}") for rank, (about, far) in enumerate(ranked, 1)]
    table = write_csv(folder / "outliers.csv", ["rank", "name", "split", "label", "distance"], rows)
    tiles = [
        Tile(image, (name, label or "", far))
        for image, (_, name, _, label, far) in zip(images.look_closer(order[:SHOWN]), rows, strict=False)
    ]
    title = f"the {len(tiles)} images farthest from their neighbour number {k}"
    sheet = write_sheet(in_rows(tiles), folder / "outliers.png", title)
    text = f"the distance to neighbour number {k} is {float(distance.median()):.3f} in the median, and up to "
    text += f"{float(distance.max()):.3f}"
    return Finding("Outliers", text, {"k": k, "median_distance": float(distance.median())}, [table, sheet])


def inspect_labels(
    settings: InspectSettings, images: JoinedSplits, features: Tensor, labelled: Tensor, groups: list[str], folder: Path
) -> Finding:
    """The `labelled` images, by rows, which may be of `groups`, by the held-out probability of their label."""
    labels = images.labels[labelled]
    folds = min(settings.folds, len({*groups}) or len(labels))
    probabilities = held_out_probabilities(
        features[labelled], labels, num_classes=len(images.classes), folds=folds,
        seed=derive_seed(settings.seed, "folds"), groups=groups,
    )  # fmt: skip
    # A probe that saw no other image, or group, of a class, or few, cannot judge it.
    others = Counter(label for _, label in {*zip(groups or range(len(labels)), labels.tolist(), strict=True)})
    enough = torch.tensor([others[label] >= folds for label in labels.tolist()])
    issues = confident_issues(probabilities, labels) & enough
    own = probabilities.gather(1, labels[:, None])[:, 0]
    order = own.where(enough, torch.inf).argsort(stable=True)
    high, guess = probabilities.max(dim=1)
    ranked = labelled[order]
    found = (each[order].tolist() for each in (guess, own, high, issues, enough))
    rows = [
        (rank, *about, images.classes[other], f"{p:.4f}", f"{q:.4f}",
         "yes" if doubtful else "no" if judged else "too few to judge")
        for rank, (about, other, p, q, doubtful, judged) in enumerate(zip(images.about(ranked), *found, strict=True), 1)
    ]  # fmt: skip
    columns = ["rank", "name", "split", "label", "guess", "label_probability", "guess_probability", "doubtful"]
    table = write_csv(folder / "doubtful_labels.csv", columns, rows)
    tiles = [
        Tile(image, (name, label, f"or {guess}?"))
        for image, (_, name, _, label, guess, *_) in zip(images.look_closer(ranked[:SHOWN]), rows, strict=False)
    ]
    title = f"the {len(tiles)} labels that a probe of other images doubts most: is it the label, or the other class?"
    sheet = write_sheet(in_rows(tiles), folder / "doubtful_labels.png", title)
    right = accuracy(guess, labels)
    text = f"{int(issues.sum())} of {len(labels)}; a probe of other images agrees with {right:.0f} %"
    if is_weak(right, labels):
        text += ", which is too rarely for this list to mean much"
    if not enough.all():
        kind = "groups" if groups else "images"
        text += f"; {int((~enough).sum())} are of classes with fewer than {folds} {kind}, and not judged"
    numbers = {"labels": len(labels), "doubtful_labels": int(issues.sum()), "held_out_accuracy": right}
    return Finding("Doubtful labels", text, numbers, [table, sheet])


def write_page(settings: InspectSettings, images: JoinedSplits, parts: Sequence[Finding], path: Path) -> None:
    """index.html, which shows the sheets beside it."""
    splits = ", ".join(f"{len(part):,} {name}" for name, part in images.parts.items())
    page = render(__package__, "inspect_template.html", name=settings.data_name, splits=splits, parts=parts)
    write_bytes(path, page.encode())
