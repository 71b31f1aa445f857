"""Heat over pictures: which parts of a query and of its match make their score."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps
from PIL.PngImagePlugin import PngInfo

from lookalike.media.sources import SOFTWARE
from lookalike.services.explaining import Explanation
from lookalike.visualization.contact_sheet import Tile, contact_sheet
from lookalike.visualization.drawing import QUIET, TEXT, load_font, shorten

Grid = Sequence[Sequence[float]] | NDArray[np.float64]
"""What each position adds to a score, (rows, columns)."""

Box = tuple[float, float, float, float]
"""Where a grid lies: left, top, right, bottom by the size of its picture."""

Pair = tuple[tuple[Grid, Box], tuple[Grid, Box]]
"""The shares of a query and of its match, and where they lie."""

_COLORS: Final = ("#10103c", "#2b3f8c", "#2f7a9a", "#5fae7c", "#c3d04c", "#fff27a")
"""From little to much: lighter with each step, so that they can be told apart without hue."""

_COLD, _HOT = 0.45, 0.75  # opacity of the lowest and the highest heat over a picture
_UNSEEN = 0.75  # share of white over what the network did not see
_STEPS = 256
_GAP, _MARGIN, _BAR = 16, 24, 180  # pixels


@dataclass(frozen=True, slots=True)
class Scale:
    """The shares that the first and the last color stand for."""

    low: float
    high: float
    mean: float  # share that each position would have if all had the same

    @classmethod
    def of(cls, *grids: Grid) -> Scale:
        """From 0, or the lowest share below it, to the highest share of all grids."""
        values = [np.asarray(grid, dtype=np.float64) for grid in grids]
        low = min(0.0, *(float(one.min()) for one in values))
        high = max(float(one.max()) for one in values)
        mean = float(np.mean([one.mean() for one in values]))
        return cls(low, high if high > low else low + 1.0, mean)

    @property
    def text(self) -> str:
        """What the colors stand for: multiples of the mean share, or shares."""
        if self.mean <= 0:
            return f"share of a position, {self.low:.4f} to {self.high:.4f}"
        low, high = self.low / self.mean, self.high / self.mean
        return f"share of the score, {low:.1f} to {high:.1f} times the mean"


def heat(image: Image.Image, shares: Grid, seen: Box, *, scale: Scale) -> Image.Image:
    """Draws shares over an RGB picture, smoothly; what the network did not see becomes pale."""
    width, height = image.size
    left, top, right, bottom = (
        round(end * side) for end, side in zip(seen, (width, height) * 2, strict=True)
    )
    size = max(1, right - left), max(1, bottom - top)
    grid = Image.fromarray(np.asarray(shares, dtype=np.float32), "F")
    smooth = np.asarray(grid.resize(size, Image.Resampling.BICUBIC))
    level = np.clip((smooth - scale.low) / (scale.high - scale.low), 0, 1)
    colored = _table()[np.rint(level * (_STEPS - 1)).astype(int)]  # (rows, columns, 3)
    opacity = np.rint(255 * (_COLD + (_HOT - _COLD) * level)).astype(np.uint8)
    gray = ImageOps.grayscale(image).point(_quiet).convert("RGB")
    drawn = Image.blend(gray, Image.new("RGB", image.size, "white"), _UNSEEN)
    area = (left, top, left + size[0], top + size[1])
    drawn.paste(gray.crop(area), (left, top))
    drawn.paste(Image.fromarray(colored), (left, top), Image.fromarray(opacity))
    return drawn


def _quiet(light: int) -> int:
    """Less contrast, so that the picture's light parts are not taken for heat."""
    return 70 + light * 120 // 255


def _table() -> NDArray[np.uint8]:
    """The colors of all steps, (steps, 3)."""
    anchors = np.array([[int(c[at : at + 2], 16) for at in (1, 3, 5)] for c in _COLORS], float)
    at, steps = np.linspace(0, 1, len(anchors)), np.linspace(0, 1, _STEPS)
    channels = [np.interp(steps, at, channel) for channel in anchors.T]
    table: NDArray[np.uint8] = np.rint(np.stack(channels, axis=1)).astype(np.uint8)
    return table


def legend(scale: Scale, *, width: int) -> Image.Image:
    """The colors in a bar, and what they stand for beside it; RGB on white."""
    font = load_font(13)
    line = round(font.getbbox("Ág")[3] * 1.2)
    bar = Image.fromarray(_table()[np.newaxis]).resize((_BAR, line), Image.Resampling.NEAREST)
    drawn = Image.new("RGB", (width, line), "white")
    drawn.paste(bar, (0, 0))
    text = shorten(scale.text, font=font, width=width - _BAR - _GAP // 2)
    ImageDraw.Draw(drawn).text((_BAR + _GAP // 2, 0), text, fill=QUIET, font=font)
    return drawn


def explained_sheet(
    query: Tile, matches: Sequence[tuple[Tile, Pair]], *, title: str, tile_size: int = 160
) -> Image.Image:
    """Draws a query at the left, and for each match the query and the match with their heat; RGB.

    Shares are shown as multiples of their pair's mean, so that pairs of other scores can be
    compared; the scale below is that of all. A picture that cannot be read has no heat.
    """
    matches = [(tile, _relative(pair)) for tile, pair in matches]
    scale = Scale.of(*(shares for _, pair in matches for shares, _ in pair)) if matches else None
    tiles = []
    for tile, pair in matches:
        assert scale is not None
        asked = replace(query, name=f"query, for match {tile.rank}")
        for whose, (shares, seen) in zip((asked, tile), pair, strict=True):
            drawn = whose.image and heat(whose.image, shares, seen, scale=scale)
            tiles.append(replace(whose, image=drawn))
    sheet = contact_sheet(query, tiles, title=title, columns=4, tile_size=tile_size)
    if scale is None:
        return sheet
    bar = legend(scale, width=sheet.width - 2 * _MARGIN)
    canvas = Image.new("RGB", (sheet.width, sheet.height + bar.height + _MARGIN), "white")
    canvas.paste(sheet, (0, 0))
    canvas.paste(bar, (_MARGIN, sheet.height))
    return canvas


def _relative(pair: Pair) -> Pair:
    """The shares by their mean; as they are where that is not positive."""
    (one, seen), (other, other_seen) = pair
    mean = Scale.of(one, other).mean
    by = mean if mean > 0 else 1.0
    return (np.asarray(one) / by, seen), (np.asarray(other) / by, other_seen)


def drawing(explanation: Explanation, *, side: int = 320) -> bytes:
    """Both pictures with their heat side by side, and the score: a PNG file.

    `side` is the longest side of each picture, in pixels.
    """
    both = {"query": explanation.query, "match": explanation.match}
    scale = Scale.of(*(one.shares for one in both.values()))
    drawn = [
        heat(ImageOps.contain(one.image, (side, side)), one.shares, one.seen, scale=scale)
        for one in both.values()
    ]
    font = load_font(15, bold=True)
    line = round(font.getbbox("Ág")[3] * 1.4)
    width = 2 * _MARGIN + 2 * side + _GAP
    bar = legend(scale, width=width - 2 * _MARGIN)
    below = _MARGIN + line + max(one.height for one in drawn) + _GAP
    canvas = Image.new("RGB", (width, below + bar.height + _MARGIN), "white")
    pen = ImageDraw.Draw(canvas)
    for number, (title, one) in enumerate(zip(both, drawn, strict=True)):
        x = _MARGIN + number * (side + _GAP)
        pen.text((x, _MARGIN), title, fill=TEXT, font=font)
        canvas.paste(one, (x, _MARGIN + line))
    score = f"score {explanation.score:.4f}"
    pen.text((width - _MARGIN - font.getlength(score), _MARGIN), score, fill=TEXT, font=font)
    canvas.paste(bar, (_MARGIN, below))
    out, info = io.BytesIO(), PngInfo()
    info.add_text("Software", SOFTWARE)
    canvas.save(out, "PNG", pnginfo=info)
    return out.getvalue()
