"""Charts as inline SVG for report.html. Colours are the page's CSS variables, so that they follow light and dark."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

PALETTE = 10  # --k0 to --k9 for classes, --f0 to --f7 for models: told apart by colour-blind eyes
# A shape of its own for each model, so that colour is never all that tells them apart; drawn within -1 and 1.
MARKERS = (
    "M-1,0a1,1 0 1,0 2,0a1,1 0 1,0 -2,0z",
    "M-.88,-.88h1.76v1.76h-1.76z",
    "M0,-1.1L1.05,.8H-1.05z",
    "M0,-1.2L1.1,0L0,1.2L-1.1,0z",
    "M0,1.1L1.05,-.8H-1.05z",
    "M-.5,-1.1h1v.6h.6v1h-.6v.6h-1v-.6h-.6v-1h.6z",
    "M0,-1.15L1.1,-.35L.68,.95H-.68L-1.1,-.35z",
    "M-.55,-1H.55L1.1,0L.55,1H-.55L-1.1,0z",
)
Box = tuple[float, float, float, float]  # left, top, right, bottom


def number(value: float) -> str:
    """A coordinate, short."""
    return f"{value:.1f}".rstrip("0").rstrip(".")


def svg(width: float, height: float, label: str, content: Sequence[str], css: str = "") -> Markup:
    """A drawing that scales with its place and tells screen readers what it shows; `content` is SVG already."""
    box = f'viewBox="0 0 {number(width)} {number(height)}"'
    return Markup(f'<svg class="{css}" {box} role="img" aria-label="{escape(label)}">{"".join(content)}</svg>')


def text(x: float, y: float, words: str, *, anchor: str = "start", css: str = "", extra: str = "") -> Markup:
    place = f'x="{number(x)}" y="{number(y)}" text-anchor="{anchor}" class="{css}" {extra}'
    return Markup(f"<text {place}>{escape(words)}</text>")


def marker(index: int, x: float, y: float, *, size: float = 5.5, hollow: bool = False, title: str = "") -> Markup:
    """A model's mark; a hollow one is a control."""
    place = f'transform="translate({number(x)} {number(y)}) scale({size})"'
    style = f'class="mark{" hollow" if hollow else ""}" style="{colour(index)}"'
    return Markup(f'<path d="{MARKERS[index % len(MARKERS)]}" {place} {style}><title>{escape(title)}</title></path>')


def colour(index: int) -> str:
    """The style that gives a drawing a model's colour."""
    return f"--c:var(--f{index % len(MARKERS)})"


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round numbers from low to high."""
    rough = max(high - low, 1e-9) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [step * index for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class Point:
    """One model in `accuracy_by_size`; accuracies in percent."""

    name: str
    index: int  # of its family, which has a colour and a marker
    size: int  # number of features
    accuracy: float
    std: float | None = None
    untrained: float | None = None  # accuracy of the same encoder before training

    @property
    def colour(self) -> str:
        return colour(self.index)


@dataclass(frozen=True)
class Axes:
    """Where values lie on a chart: across on a logarithmic axis, down on a linear one."""

    width: int
    height: int
    right: int  # margin
    first: int  # powers of two at the left and right end
    last: int
    low: float  # values at the lower and upper end
    high: float
    left = 44
    top = 16
    bottom = 44

    @classmethod
    def around(cls, points: Sequence[Point], floor: float | None, *, width: int, height: int, right: int) -> "Axes":
        """Axes that show all points, their error bars and controls, and `floor`."""
        values = [point.accuracy + sign * (point.std or 0) for point in points for sign in (-1, 1)]
        values += [point.untrained for point in points if point.untrained is not None]
        values += [floor] if floor is not None else []
        low, high = min(values), max(values)
        low, high = low - 0.06 * (high - low) - 0.5, min(100.5, high + 0.08 * (high - low) + 0.5)
        exponents = [math.log2(point.size) for point in points]
        first, last = math.floor(min(exponents) - 0.3), math.ceil(max(exponents) + 0.3)
        return cls(width, height, right, first, last, low, high)

    def across(self, size: float) -> float:
        ratio = (math.log2(size) - self.first) / (self.last - self.first)
        return self.left + ratio * (self.width - self.left - self.right)

    def down(self, value: float) -> float:
        ratio = (self.high - value) / (self.high - self.low)
        return self.top + ratio * (self.height - self.top - self.bottom)

    def rule(self, value: float, css: str) -> str:
        """A horizontal line across the chart."""
        return f'<path class="{css}" d="M{self.left},{number(self.down(value))}H{self.width - self.right}"/>'

    def draw(self, *, columns: int) -> list[str]:
        """Rules with their values, about `columns` sizes below, and the title of the axis of sizes."""
        content = []
        for tick in ticks(self.low, self.high):
            content.append(self.rule(tick, "rule"))
            content.append(text(self.left - 8, self.down(tick) + 4, f"{tick:g}", anchor="end", css="soft"))
        below = self.height - self.bottom + 18
        for exponent in range(self.first, self.last + 1, max(1, math.ceil((self.last - self.first) / columns))):
            size = 2**exponent
            content.append(text(self.across(size), below, f"{size:,}", anchor="middle", css="soft"))
        middle = (self.left + self.width - self.right) / 2
        title = "features, logarithmic scale"
        return [*content, text(middle, self.height - 6, title, anchor="middle", css="soft")]


def accuracy_by_size(
    points: Sequence[Point], floor: float | None, *, width: int, height: int, labels: bool, css: str
) -> Markup:
    """Linear-probe accuracy against the number of features, which is on a logarithmic axis.

    `floor` is the accuracy of raw pixels. Points of one family are joined, in the order of their sizes. `labels` writes
    names beside points, where there is room.
    """
    axes = Axes.around(points, floor, width=width, height=height, right=24 if labels else 14)
    content = axes.draw(columns=9 if labels else 6)
    taken: list[Box] = []
    if floor is not None:
        content += draw_floor(axes, floor, taken)
    for index in dict.fromkeys(point.index for point in points):
        content.append(draw_join(axes, [point for point in points if point.index == index]))
    for point in points:
        content += draw_point(axes, point, taken)
    if labels:
        content += draw_labels(axes, points, taken)
    names = ", ".join(f"{point.name} {point.accuracy:.1f} % at {point.size}" for point in points)
    return svg(width, height, f"Linear-probe accuracy against number of features: {names}", content, css)


def draw_floor(axes: Axes, floor: float, taken: list[Box]) -> list[str]:
    """The line of raw pixels and its name; `taken` gets the room that the name fills."""
    words, y = "raw pixels (control)", axes.down(floor)
    taken.append((axes.left, y - 18, axes.left + 6 * len(words), y))
    return [axes.rule(floor, "floor"), text(axes.left + 6, y - 6, words, css="soft")]


def draw_join(axes: Axes, points: Sequence[Point]) -> str:
    """A line through the points of one family."""
    line = sorted(points, key=lambda point: point.size)
    places = "L".join(f"{number(axes.across(p.size))},{number(axes.down(p.accuracy))}" for p in line)
    return f'<path class="join" style="{line[0].colour}" d="M{places}"/>'


def draw_point(axes: Axes, point: Point, taken: list[Box]) -> list[str]:
    """A model's mark, its untrained encoder and its error bar; `taken` gets the room that the marks fill."""
    content: list[str] = []
    x, y = axes.across(point.size), axes.down(point.accuracy)
    taken.append((x - 7, y - 7, x + 7, y + 7))
    if point.untrained is not None:
        below = axes.down(point.untrained)
        taken.append((x - 5, below - 5, x + 5, below + 5))
        content.append(f'<path class="gain" style="{point.colour}" d="M{number(x)},{number(y)}V{number(below)}"/>')
        words = f"{point.name}, untrained (control): {point.untrained:.1f} %"
        content.append(marker(point.index, x, below, size=4, hollow=True, title=words))
    if point.std:
        reach = axes.down(0) - axes.down(point.std)
        bar = f"M{number(x)},{number(y - reach)}v{number(2 * reach)}"
        content.append(f'<path class="error" style="{point.colour}" d="{bar}"/>')
    words = f"{point.name}: {point.accuracy:.1f} %, {point.size:,} features"
    return [*content, marker(point.index, x, y, title=words)]


def draw_labels(axes: Axes, points: Sequence[Point], taken: list[Box]) -> list[str]:
    """Names beside marks, higher accuracies first; a name that fits nowhere is left out."""
    content: list[str] = []
    for point in sorted(points, key=lambda point: -point.accuracy):
        x, y, long = axes.across(point.size), axes.down(point.accuracy), 6.4 * len(point.name)
        # Where a label may stand, seen from its mark: right, left, above, below, aslant.
        spots: list[tuple[float, float]] = [
            (10, 4), (-10 - long, 4), (-long / 2, -12), (-long / 2, 20), (8, -9), (8, 17), (-8 - long, -9),
        ]  # fmt: skip
        for dx, dy in spots:
            box = (x + dx, y + dy - 10, x + dx + long, y + dy + 3)
            inside = box[0] > axes.left and box[2] < axes.width and box[1] > 0 and box[3] < axes.height - axes.bottom
            if inside and not any(overlap(box, other) for other in taken):
                taken.append(box)
                content.append(text(x + dx, y + dy, point.name, css="label"))
                break
    return content


def overlap(box: Box, other: Box) -> bool:
    return not (box[2] < other[0] or box[0] > other[2] or box[3] < other[1] or box[1] > other[3])


def loss_curves(runs: Sequence[Sequence[tuple[float, float]]], index: int, label: str) -> Markup:
    """(minutes, loss) of each seed's pretraining, one line a seed. Losses above nine tenths of them leave the box."""
    width, height, left, right, top, bottom = 280, 150, 44, 18, 10, 26
    every = [loss for run in runs for _, loss in run]
    low, high = min(every), float(np.quantile(every, 0.9))
    margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    low, high = low - margin, high + margin
    end = max(minutes for run in runs for minutes, _ in run) or 1.0
    content = []
    for tick in ticks(low, high, 4):
        y = top + (high - tick) / (high - low) * (height - top - bottom)
        content.append(f'<path class="rule" d="M{left},{number(y)}H{width - right}"/>')
        content.append(text(left - 6, y + 4, f"{tick:.4g}", anchor="end", css="soft"))
    for tick in ticks(0, end, 4):
        x = left + tick / end * (width - left - right)
        words = f"{tick:.4g}" if tick else "0 min"
        content.append(text(x, height - 8, words, anchor="middle", css="soft"))
    for run in runs:
        points = []
        for minutes, loss in run:
            y = top + (high - min(loss, high)) / (high - low) * (height - top - bottom)
            points.append(f"{number(left + minutes / end * (width - left - right))},{number(y)}")
        content.append(f'<path class="curve" style="{colour(index)}" d="M{"L".join(points)}"/>')
    return svg(width, height, label, content)


def confusion(matrix: np.ndarray, classes: Sequence[str], label: str) -> Markup:
    """Counts (K, K): rows are true classes, columns predictions; shades are ratios of a row."""
    ratios = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    named = len(classes) <= 20
    side = 300 / len(classes)
    margin = 10 + 7.2 * max(map(len, classes)) if named else 8
    content = [f'<rect class="frame" x="{number(margin)}" y="8" width="300" height="300"/>']
    for (row, column), ratio in np.ndenumerate(ratios):
        if ratio < 0.005:
            continue
        x, y = margin + column * side, 8 + row * side
        size = f'width="{number(side)}" height="{number(side)}"'
        content.append(f'<rect class="cell" x="{number(x)}" y="{number(y)}" {size} fill-opacity="{ratio:.2f}"/>')
        if named:
            css = "on" if ratio > 0.55 else "off"
            content.append(text(x + side / 2, y + side / 2 + 4, f"{100 * ratio:.0f}", anchor="middle", css=css))
    for index, name in enumerate(classes if named else []):
        middle = 8 + (index + 0.5) * side
        content.append(text(margin - 6, middle + 4, name, anchor="end", css="soft"))
        x = margin + (index + 0.5) * side + 4
        turn = f'transform="rotate(-90 {number(x)} 314)"' if max(map(len, classes)) > 2 else ""
        anchor, y = ("end", 314) if turn else ("middle", 322)
        content.append(text(x if turn else x - 4, y, name, anchor=anchor, css="soft", extra=turn))
    return svg(margin + 304, 308 + (margin if named else 4), label, content)


def scatter(places: np.ndarray, labels: np.ndarray, label: str) -> Markup:
    """A map (N, 2) of points coloured by class; colours repeat after `PALETTE` classes."""
    low, high = places.min(axis=0), places.max(axis=0)
    scaled = 6 + 288 * (places - low) / np.maximum(high - low, 1e-9)
    content = []
    for colour in range(PALETTE):
        points = scaled[labels % PALETTE == colour]
        if len(points):  # one path a class, of dots that are strokes without length: a tenth of the bytes of circles
            dots = "".join(f"M{number(x)} {number(y)}h0" for x, y in points)
            content.append(f'<path class="dots" style="--c:var(--k{colour})" d="{dots}"/>')
    return svg(300, 300, label, content)
