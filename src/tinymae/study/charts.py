"""Charts for report.html."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, groupby, pairwise
from operator import attrgetter
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

PALETTE = [to_hex(f"C{number}") for number in range(10)]  # matplotlib's own
MARKERS = "os^Dv*Ph"  # a shape of its own for each family, so that colour is never all that tells them apart
# Where a name may stand, seen from its mark: how far in points, and which of its sides is there.
SPOTS = (
    (8, 0, "left", "center"), (-8, 0, "right", "center"), (0, 8, "center", "bottom"), (0, -8, "center", "top"),
    (6, 6, "left", "bottom"), (6, -6, "left", "top"), (-6, 6, "right", "bottom"), (-6, -6, "right", "top"),
)  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One model in `accuracy_by_size`; accuracies in percent."""

    name: str
    family: str
    size: int  # number of features
    accuracy: float
    std: float | None = None
    untrained: float | None = None  # accuracy of the same encoder before training


def accuracy_by_size(points: Sequence[Point], floor: float | None, *, wide: bool) -> Figure:
    """Linear-probe accuracy against the number of features, on a logarithmic axis; `floor` is that of raw pixels.

    Points of one family, which stand together, are joined. A `wide` figure has their names beside them, as far as there
    is room; the other is for a phone.
    """
    figure = Figure(figsize=(9.4, 4.7) if wide else (3.6, 4.2), layout="constrained")
    axis = figure.subplots()
    colours = dict(zip(dict.fromkeys(point.family for point in points), cycle(PALETTE), strict=False))
    for mark, (family, those) in zip(cycle(MARKERS), groupby(points, attrgetter("family")), strict=False):
        line = sorted(those, key=attrgetter("size"))
        sizes, accuracies = [point.size for point in line], [point.accuracy for point in line]
        look: dict[str, Any] = {"color": colours[family], "marker": mark}
        axis.errorbar(sizes, accuracies, [point.std or 0.0 for point in line], **look, lw=1, elinewidth=2, label=family)
        for point in line:
            if point.untrained is not None:
                axis.plot([point.size] * 2, [point.untrained, point.accuracy], color=look["color"], lw=1, ls=":")
                axis.plot(point.size, point.untrained, **look, ms=5, mfc="white", zorder=1.5)  # below results
    if floor is not None:
        axis.axhline(floor, color="grey", lw=1, ls="--", label="raw pixels (control)")
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.margins(x=0.1 if wide else 0.05)
    axis.set(xlabel="features", ylabel="linear probe, %")
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=5 if wide else 2, fontsize=9, frameon=False)
    if wide:
        write_names(figure, axis, points, colours)
    return figure


def write_names(figure: Figure, axis: Axes, points: Sequence[Point], colours: dict[str, str]) -> None:
    """Names beside marks, in the `colours` of families, higher accuracies first; one that fits nowhere is left out."""
    figure.draw_without_rendering()  # what is where is known only then
    figure.set_layout_engine("none")  # and has to stay there
    values = [(p.size, value) for p in points for value in (p.accuracy, p.untrained) if value is not None]
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in axis.transData.transform(values)]
    for _, those in groupby(points, attrgetter("family")):
        line = axis.transData.transform(sorted((point.size, point.accuracy) for point in those))
        places = (place for start, end in pairwise(line) for place in np.linspace(start, end, 50))
        taken += [Bbox.from_bounds(x, y, 1, 1) for x, y in places]
    for point in sorted(points, key=lambda point: -point.accuracy):
        for right, up, across, along in SPOTS:
            text = axis.annotate(
                point.name, (point.size, point.accuracy), (right, up), textcoords="offset points", ha=across, va=along,
                fontsize=9, color=colours[point.family], path_effects=[withStroke(linewidth=3, foreground="white")],
            )  # fmt: skip
            box = text.get_window_extent()
            if all(axis.bbox.contains(*corner) for corner in (box.min, box.max)) and not box.count_overlaps(taken):
                taken.append(box)
                break
            text.remove()


def scatter(places: np.ndarray, labels: np.ndarray) -> Figure:
    """A map (N, 2) of points coloured by class; colours repeat after those of `PALETTE`."""
    figure = Figure(figsize=(4, 4))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.scatter(places[:, 0], places[:, 1], s=12, c=[PALETTE[label % len(PALETTE)] for label in labels], linewidths=0)
    axis.axis("off")
    return figure
