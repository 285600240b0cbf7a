"""Sheets of images with a caption under each: to look at what a search or a check has found."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..files import write_atomically
from .figures import thumbnails
from .fonts import file_for

SIDE, GAP, TEXT = 96, 8, 11  # pixels: of a tile, between tiles, and of the captions
FRAME = 3


@dataclass
class Tile:
    """An image and what is said about it."""

    image: Tensor  # (C, H, W), as `viewable` takes it
    lines: Sequence[str] = ()  # the first is its name
    frame: str | None = None  # a colour


def write_sheet(rows: Sequence[Sequence[Tile]], path: str | Path, title: str) -> Path:
    """Rows of tiles as a PNG, written atomically. Images become squares of 96 pixels, as `thumbnails` scales them.

    Lines that are too long are cut in their middle; a name is shown without the folders, in two lines if need be.
    """
    columns = max((len(row) for row in rows), default=1)
    lines = max((len(caption(tile.lines)) for row in rows for tile in row), default=0)
    cell = (SIDE + GAP, SIDE + GAP + lines * (TEXT + 3))
    top = TEXT + 2 * GAP
    width = min(math.ceil(font_for(title).getlength(title)), 600) + 2 * GAP  # a few tiles are narrower than their title
    size = (max(columns * cell[0] + GAP, width), max(top + len(rows) * cell[1], 40))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)

    def write(where: tuple[int, int], text: str) -> None:
        draw.text(where, text, fill="black", font=font_for(text))

    write((GAP, GAP // 2), cut(title, size[0] - 2 * GAP))
    for row, tiles in enumerate(rows):
        for column, tile in enumerate(tiles):
            place = (GAP + column * cell[0], top + row * cell[1])
            if tile.frame:
                outer = (place[0] - FRAME, place[1] - FRAME, place[0] + SIDE + FRAME - 1, place[1] + SIDE + FRAME - 1)
                draw.rectangle(outer, fill=tile.frame)
            square = thumbnails(tile.image[None].cpu(), SIDE)[0].permute(1, 2, 0).contiguous()
            sheet.paste(Image.fromarray(square.numpy()), place)
            for number, line in enumerate(caption(tile.lines)):
                write((place[0], place[1] + SIDE + 2 + number * (TEXT + 3)), line)
    write_atomically(path, lambda beside: sheet.save(beside, format="png"))
    return Path(path)


@cache
def open_font(file: str) -> ImageFont.FreeTypeFont:
    """A font at the size of captions."""
    return ImageFont.truetype(file, TEXT)


def font_for(text: str) -> ImageFont.FreeTypeFont:
    """The font that has the letters of a text, if one is installed."""
    return open_font(file_for(text))


def caption(lines: Sequence[str]) -> list[str]:
    """The lines below a tile, each as wide as it at most; the first is a name."""
    names = [part for line in lines[:1] for part in wrap(line.rsplit("/", 1)[-1], SIDE)]
    return names + [cut(line, SIDE) for line in lines[1:]]


def wrap(name: str, width: int) -> list[str]:
    """A name in one line of `width` pixels or in two; of one that is longer, the start and the end."""
    name = " ".join(name.split())
    length = font_for(name).getlength
    if length(name) <= width:
        return [name]
    places = [place for place in range(1, len(name)) if length(name[:place]) <= width]
    between = [place for place in places if name[place - 1] in " _-" and length(name[place:]) <= width]
    place = (between or places)[-1]
    return [name[:place], cut(name[place:], width, ahead=0)]


def cut(text: str, width: int, *, ahead: float = 0.5) -> str:
    """The text, with a part left out if it is wider than `width` pixels: the ratio `ahead` of the rest is before it."""
    text = " ".join(text.split())
    font = font_for(text)
    if font.getlength(text) <= width:
        return text
    for keep in range(len(text) - 1, 0, -1):
        before = int(ahead * keep)
        shortened = text[:before] + "…" + text[len(text) - keep + before :]
        if font.getlength(shortened) <= width:
            return shortened
    return "…"


def in_rows(tiles: Sequence[Tile], columns: int = 10) -> list[Sequence[Tile]]:
    """Tiles as rows of `columns`."""
    return [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
