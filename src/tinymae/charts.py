"""Charts as inline SVG for report.html. Colours are the page's CSS variables, so that they follow light and dark."""

import math
from collections.abc import Sequence
from html import escape

import numpy as np

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


def number(value: float) -> str:
    """A coordinate, short."""
    return f"{value:.1f}".rstrip("0").rstrip(".")


def svg(width: float, height: float, label: str, content: Sequence[str], css: str = "") -> str:
    """A picture that scales with its place and tells screen readers what it shows."""
    box = f'viewBox="0 0 {number(width)} {number(height)}"'
    return f'<svg class="{css}" {box} role="img" aria-label="{escape(label)}">{"".join(content)}</svg>'


def text(x: float, y: float, words: str, *, anchor: str = "start", css: str = "", extra: str = "") -> str:
    return f'<text x="{number(x)}" y="{number(y)}" text-anchor="{anchor}" class="{css}" {extra}>{escape(words)}</text>'


def marker(index: int, x: float, y: float, *, size: float = 5.5, hollow: bool = False, title: str = "") -> str:
    """A model's mark; a hollow one is a control."""
    place = f'transform="translate({number(x)} {number(y)}) scale({size})"'
    style = f'class="mark{" hollow" if hollow else ""}" style="--c:var(--f{index % len(MARKERS)})"'
    return f'<path d="{MARKERS[index % len(MARKERS)]}" {place} {style}><title>{escape(title)}</title></path>'


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round numbers from low to high."""
    rough = max(high - low, 1e-9) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [step * index for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def accuracy_by_size(
    points: Sequence[dict], floor: float | None, *, width: int, height: int, labels: bool, css: str
) -> str:
    """Linear-probe accuracy against the number of features, which is on a logarithmic axis.

    A point has name, index (of its model), size, accuracy, deviation, untrained (accuracy or None). `floor` is the
    accuracy of raw pixels. Points of one model are joined, in the order of their sizes.
    """
    left, right, top, bottom = 44, 14 if not labels else 24, 16, 44
    heights = [point["accuracy"] + sign * (point["deviation"] or 0) for point in points for sign in (-1, 1)]
    heights += [point["untrained"] for point in points if point["untrained"] is not None]
    heights += [floor] if floor is not None else []
    low, high = min(heights), max(heights)
    low, high = low - 0.06 * (high - low) - 0.5, min(100.5, high + 0.08 * (high - low) + 0.5)
    exponents = [math.log2(point["size"]) for point in points]
    first, last = math.floor(min(exponents) - 0.3), math.ceil(max(exponents) + 0.3)

    def across(size: float) -> float:
        return left + (math.log2(size) - first) / (last - first) * (width - left - right)

    def down(accuracy: float) -> float:
        return top + (high - accuracy) / (high - low) * (height - top - bottom)

    content = []
    for tick in ticks(low, high):
        content.append(f'<path class="rule" d="M{left},{number(down(tick))}H{width - right}"/>')
        content.append(text(left - 8, down(tick) + 4, f"{tick:g}", anchor="end", css="soft"))
    step = max(1, math.ceil((last - first) / (9 if labels else 6)))
    for exponent in range(first, last + 1, step):
        content.append(text(across(2**exponent), height - bottom + 18, f"{2**exponent:,}", anchor="middle", css="soft"))
    content.append(
        text((left + width - right) / 2, height - 6, "features, logarithmic scale", anchor="middle", css="soft")
    )
    taken: list[tuple[float, float, float, float]] = []
    if floor is not None:
        content.append(f'<path class="floor" d="M{left},{number(down(floor))}H{width - right}"/>')
        words = "raw pixels (control)"
        content.append(text(left + 6, down(floor) - 6, words, css="soft"))
        taken.append((left, down(floor) - 18, left + 6 * len(words), down(floor)))
    for model in dict.fromkeys(point["index"] for point in points):
        line = sorted((p for p in points if p["index"] == model), key=lambda point: point["size"])
        places = "L".join(f"{number(across(p['size']))},{number(down(p['accuracy']))}" for p in line)
        content.append(f'<path class="join" style="--c:var(--f{model % len(MARKERS)})" d="M{places}"/>')
    for point in points:
        x, y, colour = across(point["size"]), down(point["accuracy"]), point["index"] % len(MARKERS)
        taken.append((x - 7, y - 7, x + 7, y + 7))
        if point["untrained"] is not None:
            below = down(point["untrained"])
            taken.append((x - 5, below - 5, x + 5, below + 5))
            content.append(
                f'<path class="gain" style="--c:var(--f{colour})" d="M{number(x)},{number(y)}V{number(below)}"/>'
            )
            words = f"{point['name']}, untrained (control): {point['untrained']:.1f} %"
            content.append(marker(point["index"], x, below, size=4, hollow=True, title=words))
        if point["deviation"]:
            reach = down(0) - down(point["deviation"])
            bar = f"M{number(x)},{number(y - reach)}v{number(2 * reach)}"
            content.append(f'<path class="error" style="--c:var(--f{colour})" d="{bar}"/>')
        words = f"{point['name']}: {point['accuracy']:.1f} %, {point['size']:,} features"
        content.append(marker(point["index"], x, y, title=words))
    for point in sorted(points, key=lambda point: -point["accuracy"]) if labels else []:
        x, y, long = across(point["size"]), down(point["accuracy"]), 6.4 * len(point["name"])
        # Where a label may stand, seen from its mark: right, left, above, below, aslant.
        spots: list[tuple[float, float]] = [
            (10, 4), (-10 - long, 4), (-long / 2, -12), (-long / 2, 20), (8, -9), (8, 17), (-8 - long, -9),
        ]  # fmt: skip
        for dx, dy in spots:
            box = (x + dx, y + dy - 10, x + dx + long, y + dy + 3)
            inside = box[0] > left and box[2] < width and box[1] > 0 and box[3] < height - bottom
            clear = all(box[2] < t[0] or box[0] > t[2] or box[3] < t[1] or box[1] > t[3] for t in taken)
            if inside and clear:
                taken.append(box)
                content.append(text(x + dx, y + dy, point["name"], css="label"))
                break
    names = ", ".join(f"{point['name']} {point['accuracy']:.1f} % at {point['size']}" for point in points)
    return svg(width, height, f"Linear-probe accuracy against number of features: {names}", content, css)


def loss_curves(runs: Sequence[Sequence[tuple[float, float]]], index: int, label: str) -> str:
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
        content.append(f'<path class="curve" style="--c:var(--f{index % len(MARKERS)})" d="M{"L".join(points)}"/>')
    return svg(width, height, label, content)


def confusion(matrix: np.ndarray, classes: Sequence[str], label: str) -> str:
    """Counts (K, K): rows are true classes, columns predictions; shades are shares of a row."""
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    named = len(classes) <= 20
    side = 300 / len(classes)
    margin = 10 + 7.2 * max(map(len, classes)) if named else 8
    content = [f'<rect class="frame" x="{number(margin)}" y="8" width="300" height="300"/>']
    for (row, column), share in np.ndenumerate(shares):
        if share < 0.005:
            continue
        x, y = margin + column * side, 8 + row * side
        size = f'width="{number(side)}" height="{number(side)}"'
        content.append(f'<rect class="cell" x="{number(x)}" y="{number(y)}" {size} fill-opacity="{share:.2f}"/>')
        if named:
            css = "on" if share > 0.55 else "off"
            content.append(text(x + side / 2, y + side / 2 + 4, f"{100 * share:.0f}", anchor="middle", css=css))
    for index, name in enumerate(classes if named else []):
        middle = 8 + (index + 0.5) * side
        content.append(text(margin - 6, middle + 4, name, anchor="end", css="soft"))
        x = margin + (index + 0.5) * side + 4
        turn = f'transform="rotate(-90 {number(x)} 314)"' if max(map(len, classes)) > 2 else ""
        anchor, y = ("end", 314) if turn else ("middle", 322)
        content.append(text(x if turn else x - 4, y, name, anchor=anchor, css="soft", extra=turn))
    return svg(margin + 304, 308 + (margin if named else 4), label, content)


def scatter(places: np.ndarray, labels: np.ndarray, label: str) -> str:
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
