"""What is said of data when they are opened: what was found, how it is split, and what is odd about it."""

import itertools
from collections import Counter

import numpy as np

from .sources.source import Source


def describe(source: Source, rows: dict[str, np.ndarray], *, unused_labels: bool = False) -> list[str]:
    """Three lines: what was found, how it is split, and what the images become; and the notes, if there are any."""
    classes = ", several labels an image, which are not used here" if unused_labels else ", no labels"
    if source.labels is not None:
        classes = f" in {len(source.classes):,} classes" + ", several an image" * (source.labels.ndim == 2)
        if unlabelled := int((source.labels < 0).sum()):
            classes += f", {unlabelled:,} of them without a label"
    left_out = ""
    if source.left_out:
        shown = ", ".join(source.left_out[:3]) + (", ..." if len(source.left_out) > 3 else "")
        shown = shown.encode(errors="backslashreplace").decode()  # a name that is not UTF-8 cannot be printed
        left_out = f"; {len(source.left_out):,} other files left alone ({shown})"
    channels, height, width = source.image_shape
    return [
        f"data {source.name} ({source.kind}): {len(source):,} images{classes}{left_out}",
        f"splits: {', '.join(f'{name} {len(part):,}' for name, part in rows.items())}{describe_choice(source, rows)}",
        f"images: {source.shown}, used at {width} x {height} with {channels} channel{'s'[: channels != 1]}",
        *source.notes,
        *describe_classes(source),
        *describe_groups(source, rows),
    ]


def describe_classes(source: Source) -> list[str]:
    """What is odd about the classes: that some have no image, or that there are almost as many as images."""
    if source.labels is None:
        return []
    several = source.labels.ndim == 2
    count = len(source.classes)
    found = source.labels.sum(axis=0) if several else np.bincount(source.labels[source.labels >= 0], minlength=count)
    empty = [source.classes[number] for number in np.flatnonzero(found[:count] == 0)]
    lines = []
    if empty:
        shown = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
        lines.append(f"classes: {len(empty):,} of {count:,} without any image ({shown})")
    if not several and 2 * (count - len(empty)) > (labelled := int(found.sum())) > 20:
        lines.append(f"classes: {count:,} for {labelled:,} labelled images: are these labels classes, or numbers?")
    return lines


def describe_groups(source: Source, rows: dict[str, np.ndarray]) -> list[str]:
    """That there are groups in several splits, of data that come with splits of their own."""
    of_splits = [{source.groups[row] for row in part} for part in rows.values()] if source.groups else []
    counts = Counter(itertools.chain(*of_splits))
    several = sorted(group for group, count in counts.items() if count > 1)
    if not several:
        return []
    shown = ", ".join(several[:3]) + (", ..." if len(several) > 3 else "")
    return [f"groups: {len(several):,} of {len(counts):,} are in more than one split ({shown})"]


def describe_choice(source: Source, rows: dict[str, np.ndarray]) -> str:
    """How the splits were chosen, in brackets: val and test may come with the data or be held out of train."""
    held = [name for name in ("val", "test") if name in rows and name not in source.splits]
    if held:
        how = "by a fixed seed" if source.held_out else "by a hash of each image's own name"
        if source.groups:
            how = f"by a hash of each image's group, one of {len({*source.groups}):,}"
        return f" ({' and '.join(held)} held out of train {how})"
    return " (as the data come)" if source.splits and "all" not in rows else ""
