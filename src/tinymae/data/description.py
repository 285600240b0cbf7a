"""What is said of data when they are opened: what was found, how it is split, and what is odd about it."""

import re
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import chain, combinations, groupby
from pathlib import PurePath

import numpy as np

from ..errors import list_some
from .sources.source import Source

COUNTED = 12  # classes whose images are counted, unless there are more: then the largest of them, and the smallest
FEWEST = 5  # images of a class, of which less is hardly learned and not judged
RARE = 50  # images of a class, of which each split's are told: a hash may give it next to none
COMPARED = 100  # classes whose names are compared, each with each
NEARLY = 0.82  # of SequenceMatcher: beetel is nearly beetle, and mouse is not house
NO_LABEL = ("na", "n/a", "nan", "null", "none")  # what tables have where there is no label


def describe(source: Source, rows: dict[str, np.ndarray], *, unused_labels: bool = False) -> list[str]:
    """Three lines: what was found, how it is split, and what the images become; and the notes, if there are any."""
    classes = ", whose labels are not used here" if unused_labels else ", no labels"
    if source.labels is not None:
        several = source.labels.ndim == 2
        classes = f" in {len(source.classes):,} classes" + ", several an image" * several
        if several and (without := int((~source.labels.any(axis=1)).sum())):
            classes += f" ({without:,} of them have none)"
        elif unlabelled := int((source.labels < 0).sum()):
            classes += f", {unlabelled:,} of them without a label"
    left_out = ""
    if source.left_out:
        others = f"{len(source.left_out):,} other file{'s'[: len(source.left_out) != 1]}"
        left_out = f"; {others} left alone ({count_kinds(source.left_out)})"
    channels, height, width = source.image_shape
    parts = ", ".join(count_rows(source, name, part) for name, part in rows.items())
    return [
        f"data {source.name} ({source.kind}): {len(source):,} images{classes}{left_out}",
        f"splits: {parts}{describe_choice(source, rows)}",
        f"images: {source.shown}, used at {width} x {height} with {channels} channel{'s'[: channels != 1]}",
        *source.notes,
        *describe_classes(source, rows),
        *describe_groups(source, rows),
    ]


def count_rows(source: Source, name: str, rows: np.ndarray) -> str:
    """The images of a split, and how many of them have a label if not all do or none."""
    labels = None if source.labels is None or source.labels.ndim == 2 else source.labels[rows]
    labelled = len(rows) if labels is None else int((labels >= 0).sum())
    return f"{name} {len(rows):,}" + f" ({labelled:,} labelled)" * (labelled < len(rows))


def count_kinds(files: Sequence[str]) -> str:
    """How many files there are of each extension, the most frequent ones first.

    >>> count_kinds(["notes.txt", "a/1.DCM", "a/2.dcm", "README"])
    '2 .dcm, 1 .txt, 1 without extension'
    """
    kinds = Counter(PurePath(name).suffix.lower() or "without extension" for name in files)
    shown = list_some([f"{count:,} {kind}" for kind, count in kinds.most_common()], 8)
    return shown.encode(errors="backslashreplace").decode()  # a name that is not UTF-8 cannot be printed


def describe_classes(source: Source, rows: dict[str, np.ndarray]) -> list[str]:
    """How many images the classes have, rare ones in each split, and what is odd about them: too few images, names that
    may mean the same class, or almost as many classes as images.
    """
    if source.labels is None:
        return []
    several, count = source.labels.ndim == 2, len(source.classes)
    found = count_labels(source.labels, count)
    empty = [source.classes[number] for number in np.flatnonzero(found == 0)]
    ranked = [f"{source.classes[n]} ({found[n]:,})" for n in np.argsort(-found, kind="stable") if found[n]]
    shown = ranked if len(ranked) <= COUNTED else [*ranked[: COUNTED - 1], "...", ranked[-1]]
    lines = [f"classes: {', '.join(shown)}"] if shown else []
    if empty:
        lines.append(f"classes: {len(empty):,} of {count:,} without any image ({list_some(empty)})")
    by_name = [[*names] for _, names in groupby(sorted(source.classes, key=str.casefold), key=str.casefold)]
    if alike := [" and ".join(names) for names in by_name if len(names) > 1]:
        lines.append(f"classes: {list_some(alike, 3)} differ in case alone: are they one?")
    if missing := next((name for name in source.classes if name.casefold() in NO_LABEL), None):
        lines.append(f"classes: {missing} is one of them: if it means that there is no label, leave it empty")
    if not several and 2 * (count - len(empty)) > (labelled := int(found.sum())) > 20:
        return [*lines, f"classes: {count:,} for {labelled:,} labelled images: are these labels classes, or numbers?"]
    if alike := [" and ".join(names) for names in find_alike(source.classes)]:
        lines.append(f"classes: {list_some(alike, 3)} are spelled nearly the same: are they one?")
    rare = [number for number in np.argsort(found, kind="stable") if 0 < found[number] < RARE]
    if rare and len(rows) > 1:
        of_splits = [(name, count_labels(source.labels[part], count)) for name, part in rows.items()]
        parts = [", ".join(f"{name} {each[number]}" for name, each in of_splits) for number in rare]
        shown = [f"{source.classes[number]} ({part})" for number, part in zip(rare, parts, strict=True)]
        lines.append(f"classes: fewer than {RARE} images of {list_some(shown)}")
    if few := [source.classes[number] for number in np.flatnonzero((found > 0) & (found < FEWEST))]:
        lines.append(f"classes: fewer than {FEWEST} images of {list_some(few)}: too few to be learned or judged well")
    return lines


def count_labels(labels: np.ndarray, classes: int) -> np.ndarray:
    """How many images each class has: int (classes,)."""
    if labels.ndim == 2:
        return labels.sum(axis=0, dtype=int)
    return np.bincount(labels[labels >= 0], minlength=classes)


def find_alike(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of names that may be one, misspelled. Names of other numbers, or of another case alone, are none.

    >>> find_alike(["beetle", "beetel", "house", "mouse", "sample 1", "sample 2", "Beetle"])
    [('beetle', 'beetel'), ('beetel', 'Beetle')]
    """
    if len(names) > COMPARED:
        return []
    plain = {name: name.casefold() for name in names}
    return [
        (first, second)
        for first, second in combinations(names, 2)
        if plain[first] != plain[second]
        and re.findall(r"\d+", first) == re.findall(r"\d+", second)
        and SequenceMatcher(None, plain[first], plain[second]).ratio() > NEARLY
    ]


def describe_groups(source: Source, rows: dict[str, np.ndarray]) -> list[str]:
    """That there are groups in several splits, of data that come with splits of their own."""
    of_splits = [{source.groups[row] for row in part} for part in rows.values()] if source.groups else []
    counts = Counter(chain(*of_splits))
    several = sorted(group for group, count in counts.items() if count > 1)
    if not several:
        return []
    return [f"groups: {len(several):,} of {len(counts):,} are in more than one split ({list_some(several, 3)})"]


def describe_choice(source: Source, rows: dict[str, np.ndarray]) -> str:
    """How the splits were chosen, in brackets: val and test may come with the data or be held out of train."""
    held = [name for name in ("val", "test") if name in rows and name not in source.splits]
    if held:
        how = "by a fixed seed" if source.held_out else "by a hash of each image's own name"
        if source.groups:
            how = f"by a hash of each image's group, one of {len({*source.groups}):,}"
        return f" ({' and '.join(held)} held out of train {how})"
    return " (as the data come)" if source.splits and "all" not in rows else ""
