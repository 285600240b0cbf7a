"""Fonts for names of classes and files: matplotlib's own, and where it lacks a letter one that is installed."""

from functools import cache

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

OWN = "DejaVu Sans"  # comes with matplotlib; has Latin, Greek and Cyrillic letters
# Of Chinese, Japanese and Korean, on Linux, Windows and macOS.
OTHERS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "IPAexGothic",
          "MS Gothic", "Microsoft YaHei", "Malgun Gothic", "Hiragino Sans", "PingFang SC")  # fmt: skip


@cache
def installed() -> dict[str, str]:
    """The file of each of these fonts that this machine has, in this order; matplotlib's own is always there."""
    known = {font.name for font in font_manager.fontManager.ttflist}
    return {name: font_manager.findfont(name) for name in (OWN, *OTHERS) if name == OWN or name in known}


@cache
def letters(file: str) -> frozenset[int]:
    """The code points that a font has."""
    return frozenset(FT2Font(file).get_charmap())


def file_for(text: str) -> str:
    """The file of the first font that has all letters of a text; matplotlib's own if none has.

    >>> file_for("кошка").endswith("DejaVuSans.ttf")
    True
    """
    wanted = {ord(letter) for letter in text}
    files = list(installed().values())
    return next((file for file in files if wanted <= letters(file)), files[0])
