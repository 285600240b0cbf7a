"""Every figure. Functions write one PNG, atomically, and return its path."""

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from matplotlib import colormaps
from matplotlib.figure import Figure  # not pyplot, which chooses a backend for the whole process and keeps every figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ..data.fit import resize
from ..errors import InputError
from ..files import write_atomically
from ..tensors import LEVELS, pick_pixels, to_unit
from .fonts import installed

Channels = tuple[int, int, int]  # which of an image are shown as red, green and blue
Limits = tuple[tuple[float, float], ...]  # of red, green and blue: values, in [0, 1], shown as darkest and brightest
FULL: Limits = ((0.0, 1.0),) * 3
NAMED = 120  # classes whose names have room beside a confusion matrix
COLOURS = ("#2f6690", "#edae49", "#66a182", "#d1495b")


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG. A letter that no installed font has becomes a box, without a warning."""
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_fontfamily([*text.get_fontfamily(), *installed()])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        write_atomically(path, lambda beside: figure.savefig(beside, format="png", dpi=150, bbox_inches="tight"))
    return Path(path)


def require_shown(channels: Channels | None, count: int) -> None:
    """Raises InputError unless `channels` are three of `count`."""
    if channels is not None and (len(channels) != 3 or not all(0 <= channel < count for channel in channels)):
        raise InputError(
            f"show_channels {' '.join(map(str, channels))}: give three numbers from 0 to {count - 1}, as the images "
            f"have {count} channel{'s'[: count != 1]}"
        )


def viewable(images: Tensor, channels: Channels | None = None, limits: Limits = FULL) -> Tensor:
    """Images (N, C, H, W), pixels or floats in [0, 1], as RGB to look at: uint8 (N, 3, H, W).

    `channels` are shown as red, green and blue. Without them these are the first three; of one or two channels the
    first is shown in grey. The values between `limits`, see `display_limits`, are stretched from black to white.

    >>> viewable(torch.tensor([0.0, 0.2, 0.4, 0.6, 1.0]).view(1, 5, 1, 1), (4, 0, 1)).flatten().tolist()
    [255, 0, 51]

    Raises InputError for channels that the images do not have.
    """
    chosen = choose_channels(images, channels)
    if chosen.dtype == torch.uint8 and limits == FULL:
        return chosen
    low, high = torch.tensor(limits, device=chosen.device).T[..., None, None]
    unit = to_unit(chosen) if chosen.dtype in LEVELS else chosen.float()
    return (255 * ((unit - low) / (high - low)).clamp(0, 1)).round().to(torch.uint8)


def choose_channels(images: Tensor, channels: Channels | None) -> Tensor:
    """The three channels (N, 3, H, W) of images (N, C, H, W) that are to be seen."""
    count = images.shape[1]
    require_shown(channels, count)
    return pick_pixels(images.detach(), (slice(None), list(channels or ((0, 1, 2) if count >= 3 else (0, 0, 0)))))


def display_limits(images: Tensor, channels: Channels | None = None) -> Limits:
    """Which values, in [0, 1], of pixels (N, C, H, W) are to be seen as darkest and brightest, in red, green and blue.

    Of grey or RGB images of 8 bits these are all. Others may fill a small part of their range, as those of a camera of
    12 bits in uint16 do, and would look black: the limits are the 1st and the 99th percentile of the channels that are
    seen. They are taken together, so that colours stay; of more than three channels, which may be bands of quite other
    ranges, each by itself. Give all parts of a sheet the same.

    >>> dark = torch.arange(100).view(1, 1, 10, 10)
    >>> display_limits(dark.to(torch.uint8)) == FULL
    True
    >>> [round(65535 * limit) for limit in display_limits(dark.to(torch.uint16))[0]]
    [1, 98]
    """
    if images.dtype not in LEVELS or (images.dtype == torch.uint8 and images.shape[1] in (1, 3)):
        return FULL
    values = to_unit(choose_channels(images, channels)).movedim(1, 0).flatten(1).cpu().numpy()  # (3, N * H * W)
    found = np.percentile(values, (1, 99), axis=1 if images.shape[1] > 3 else None)
    pairs = np.broadcast_to(found.reshape(2, -1), (2, 3)).T.tolist()
    return tuple((low, high) if high > low else FULL[0] for low, high in pairs)


def tile(images: Tensor, columns: int) -> np.ndarray:
    """Images (N, C, H, W), as `viewable` takes them, laid row by row on white: uint8 (height, width, 3)."""
    pixels = torch.nn.functional.pad(viewable(images).cpu(), (0, 1, 0, 1), value=255)  # a line between images
    blank = pixels.new_full((-len(pixels) % columns, *pixels.shape[1:]), 255)
    sheet = rearrange(torch.cat([pixels, blank]), "(r c) rgb h w -> (r h) (c w) rgb", c=columns)
    return sheet[:-1, :-1].numpy()


def thumbnails(images: Tensor, side: int) -> Tensor:
    """Images (N, C, H, W), as `viewable` takes them, scaled and padded in grey to squares: uint8 (N, 3, side, side).

    >>> thumbnails(torch.zeros(2, 1, 8, 16, dtype=torch.uint8), 4)[0, 0].tolist()
    [[128, 128, 128, 128], [0, 0, 0, 0], [0, 0, 0, 0], [128, 128, 128, 128]]
    """
    images = viewable(images)
    scale = side / max(images.shape[2:])
    height, width = (max(1, round(scale * size)) for size in images.shape[2:])
    if (height, width) != images.shape[2:]:
        images = resize(images, (height, width))
    top, left = (side - height) // 2, (side - width) // 2
    padding = (left, side - width - left, top, side - height - top)
    return torch.nn.functional.pad(images, padding, value=128)


def colour_classes(masks: Tensor) -> Tensor:
    """Numbers of classes (B, H, W) as colours (B, 3, H, W) in [0, 1]: 0 black, 255 white, the others 20 colours."""
    palette = torch.tensor([(0.0, 0.0, 0.0), *colormaps["tab20"].colors])  # type: ignore[attr-defined]
    numbers = masks.long().cpu()
    place = (numbers - 1) % 20  # dark and light tones alternate there: the dark ones first
    colours = palette[torch.where(numbers > 0, 1 + 2 * (place % 10) + place // 10, 0)]
    return torch.where(numbers[..., None] == 255, 1.0, colours).permute(0, 3, 1, 2)


def reconstruction_sheet(
    columns: dict[str, Tensor], path: str | Path, title: str, *, channels: Channels | None = None,
    limits: Limits = FULL, groups: int = 4,
) -> Path:  # fmt: skip
    """One row per image: each named column shows its version of that image, (N, C, H, W), as `viewable` shows it.

    The rows stand in `groups` blocks side by side.
    """
    columns = {name: viewable(images, channels, limits) for name, images in columns.items()}
    count = len(next(iter(columns.values())))
    per_group = -(-count // groups)
    height, width = next(iter(columns.values())).shape[2:]
    shape = (groups * len(columns) * 1.0 * width / height + 0.2, per_group * 1.0 + 0.5)
    figure = Figure(figsize=shape)
    axes = figure.subplots(1, groups * len(columns), squeeze=False)
    for group in range(groups):
        part = slice(group * per_group, (group + 1) * per_group)
        for place, (name, images) in enumerate(columns.items()):
            axis = axes[0, group * len(columns) + place]
            axis.axis("off")
            if len(images[part]):
                axis.imshow(tile(images[part], 1), interpolation="nearest")
                axis.set_title(name, fontsize=8)
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1 - 0.5 / shape[1], wspace=0.06)
    figure.suptitle(title, fontsize=9, y=1)
    return save(figure, path)


def training_curves(rows: Sequence[dict], panels: dict[str, list[str]], path: str | Path, title: str) -> Path:
    """A panel for each title in `panels`, drawing the named metrics against epochs, from the lines of metrics.jsonl.
    What has fewer than two points is no curve, and left out.

    Two panels stand in a row, at most 1,200 pixels wide, so that a page of text can show them without shrinking.
    """
    counts = Counter(metric for row in rows for metric in row)
    panels = {name: [metric for metric in metrics if counts[metric] > 1] for name, metrics in panels.items()}
    panels = {name: metrics for name, metrics in panels.items() if metrics} or {"too short a run for curves": []}
    columns, lines = min(2, len(panels)), math.ceil(len(panels) / 2)
    figure = Figure(figsize=(3.9 * columns, 2.8 * lines + 0.2), layout="tight")  # when saved, with the fonts of `save`
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for axis in axes[len(panels) :]:
        axis.axis("off")
    for axis, (name, metrics) in zip(axes, panels.items(), strict=False):
        for metric, colour in zip(metrics, COLOURS, strict=False):
            points = [(row["epoch"], row[metric]) for row in rows if metric in row]
            few = len(points) < 40
            axis.plot(*zip(*points, strict=True), color=colour, marker="o" if few else "", ms=5, label=metric)
        axis.set(xlabel="epoch", title=name)
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
        axis.ticklabel_format(axis="y", useOffset=False)  # of nearly equal values, "+3.1e1" over the axis
        axis.grid(alpha=0.3)
        if len(metrics) > 1:
            axis.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    return save(figure, path)


def pretraining_curves(rows: Sequence[dict], path: str | Path, title: str) -> Path:
    """`training_curves` of pretraining. Where a contrast is learned as well, each loss has its panel: their sum would
    jump where the contrast begins.
    """
    losses = {"loss": ["loss"]}
    if any("contrastive_loss" in row for row in rows):
        losses = {"reconstruction loss": ["reconstruction_loss"], "contrastive loss": ["contrastive_loss"]}
        # Before the contrast begins, the reconstruction's is the only loss.
        rows = [{"reconstruction_loss": row["loss"]} | row if "loss" in row else row for row in rows]
    panels = losses | {"k-NN accuracy, %": ["knn_val"], "learning rate": ["learning_rate"]}
    return training_curves(rows, panels, path, title)


def confusion_matrix(matrix: np.ndarray, classes: Sequence[str], path: str | Path, title: str = "") -> Path:
    """Rows: true class and its number of images, columns: predicted; each row in percent of its class. `matrix` holds
    counts (K, K).
    """
    counts = matrix.sum(axis=1).astype(int)
    percent = 100 * matrix / np.maximum(counts, 1)[:, None]
    size = min(max(4.0, 0.45 * len(classes) + 1.5), 14.0)
    figure = Figure(figsize=(size, size))
    axis = figure.subplots()
    axis.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    if len(classes) <= 20:
        for (row, column), value in np.ndenumerate(percent):
            if value >= 0.05:
                colour, text = "white" if value > 55 else "black", f"{value:.0f}" if value >= 1 else "·"
                axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=7)
    if len(classes) <= NAMED:
        few = len(classes) <= 20
        axis.set_xticks(range(len(classes)), classes, rotation=45 if few else 90, ha="right" if few else "center")
        axis.set_yticks(range(len(classes)), [f"{name} ({n:,})" for name, n in zip(classes, counts, strict=True)])
        axis.tick_params(labelsize=8 if few else 6)
    axis.set(xlabel="predicted", ylabel="true", title=f"{title}\neach row in % of its true class".strip())
    return save(figure, path)


def reliability(bins: dict[str, list[float]], path: str | Path, title: str = "") -> Path:
    """Accuracy against confidence, and how many images have it; `bins` as `calibration.reliability` gives them."""
    count = len(bins["images"])
    middles = [(number + 0.5) / count for number in range(count)]
    figure = Figure(figsize=(4.2, 4.8), layout="tight")
    upper, lower = figure.subplots(2, sharex=True, height_ratios=[4, 1])
    upper.bar(middles, bins["accuracy"], width=0.92 / count, color=COLOURS[0], label="accuracy")
    seen = [number for number in range(count) if bins["images"][number]]
    means = {name: [bins[name][number] for number in seen] for name in ("confidence", "accuracy")}
    upper.scatter(means["confidence"], means["accuracy"], s=12, color=COLOURS[1], zorder=3, label="at mean confidence")
    upper.plot([0, 1], [0, 1], color="black", lw=0.8, ls="--")
    upper.set(ylabel="accuracy", ylim=(0, 1.02))
    upper.set_title(title, pad=22)  # over the legend, which inside the axes would cover a bar
    upper.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    lower.bar(middles, bins["images"], width=0.92 / count, color=COLOURS[2])
    lower.set(xlabel="confidence", ylabel="images", xlim=(0, 1))
    lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    return save(figure, path)
