"""Text on pictures: a font with many letters, and names cut to a width."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_ELLIPSIS = "…"


@functools.cache
def load_font(size: int, *, bold: bool = False) -> Font:
    """DejaVu Sans, which comes with matplotlib; where it is missing, Pillow's own font.

    Pillow's own font has ASCII alone; DejaVu Sans has Latin, Greek, Cyrillic, Arabic and more.
    A letter that the font lacks is drawn as a box.

    Args:
        size: In pixels.
        bold: A heavier face, for titles.
    """
    spec = importlib.util.find_spec("matplotlib")  # finds it without importing it
    if spec is not None and spec.origin is not None:
        name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
        path = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / name
        if path.is_file():
            return ImageFont.truetype(path, size)
    return ImageFont.load_default(size)  # pragma: no cover  # a matplotlib without its data


def printable(text: str) -> str:
    """The text on one line, with U+FFFD for each character that cannot be shown or encoded."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def shorten(text: str, *, font: Font, width: float) -> str:
    """Cuts the middle out of a text that is wider than `width` pixels, so that its end stays.

    Returns:
        The printable text, or less of it around an ellipsis; empty where not even that fits.
    """
    text = printable(text)[:500]
    if font.getlength(text) <= width:
        return text
    for kept in range(len(text) - 1, 0, -1):
        head, tail = (kept + 1) // 2, kept // 2
        shorter = text[:head].rstrip() + _ELLIPSIS + text[len(text) - tail :].lstrip()
        if font.getlength(shorter) <= width:
            return shorter
    return _ELLIPSIS if font.getlength(_ELLIPSIS) <= width else ""
