"""Charts for report.html."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, groupby
from operator import attrgetter
from typing import Any

import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

PALETTE = [to_hex(f"C{number}") for number in range(10)]  # matplotlib's own
MARKERS = "os^Dv*Ph"  # a shape of its own for each family, so that colour is never all that tells them apart


@dataclass(frozen=True)
class Point:
    """One model in `accuracy_by_size`; accuracies in percent."""

    family: str
    size: int  # number of features
    accuracy: float
    std: float | None = None
    untrained: float | None = None  # accuracy of the same encoder before training


def accuracy_by_size(points: Sequence[Point], floor: float | None) -> Figure:
    """Linear-probe accuracy against the number of features, on a logarithmic axis; `floor` is that of raw pixels.

    Points of one family, which stand together, are joined.
    """
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axis = figure.subplots()
    families = groupby(points, attrgetter("family"))
    for mark, colour, (family, those) in zip(cycle(MARKERS), cycle(PALETTE), families, strict=False):
        line = sorted(those, key=attrgetter("size"))
        sizes, accuracies = [point.size for point in line], [point.accuracy for point in line]
        look: dict[str, Any] = {"color": colour, "marker": mark}
        axis.errorbar(sizes, accuracies, [point.std or 0.0 for point in line], **look, lw=1, elinewidth=2, label=family)
        for point in line:
            if point.untrained is not None:
                axis.plot([point.size] * 2, [point.untrained, point.accuracy], color=colour, lw=1, ls=":")
                axis.plot(point.size, point.untrained, **look, ms=5, mfc="white", zorder=1.5)  # below results
    if floor is not None:
        axis.axhline(floor, color="grey", lw=1, ls="--", label="raw pixels (control)")
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.set(xlabel="features", ylabel="linear probe, %")
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    return figure


def scatter(places: np.ndarray, labels: np.ndarray) -> Figure:
    """A map (N, 2) of points coloured by class; colours repeat after those of `PALETTE`."""
    figure = Figure(figsize=(4, 4))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.scatter(places[:, 0], places[:, 1], s=12, c=[PALETTE[label % len(PALETTE)] for label in labels], linewidths=0)
    axis.axis("off")
    return figure
