"""Colors, patterns and the pen that fills outlines with them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from scripts.samples.geometry import Points, ellipse, turned

Color = tuple[int, int, int]
Paint = Color | Image.Image
Field = NDArray[np.float32]
"""One number for each pixel, (height, width)."""

INK: Color = (43, 40, 46)
CREAM: Color = (248, 240, 222)
WHITE: Color = (252, 252, 250)
STEEL: Color = (172, 180, 190)
WOOD: Color = (168, 112, 66)


def oklch(lightness: float, chroma: float, hue: float) -> Color:
    """A color by how it looks: equal steps of hue (degrees) look equally different."""
    a = chroma * math.cos(math.radians(hue))
    b = chroma * math.sin(math.radians(hue))
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )
    red, green, blue = (round(255 * min(max(v, 0.0), 1.0) ** (1 / 2.2)) for v in linear)
    return red, green, blue


def shade(color: Color, amount: float) -> Color:
    """The color nearer to white (amount up to 1) or to black (down to -1)."""
    goal = 255 if amount > 0 else 0
    red, green, blue = (round(c + (goal - c) * abs(amount)) for c in color)
    return red, green, blue


def _part(x: Field) -> Field:
    """The part behind the decimal point, so that a pattern repeats at each whole number."""
    return x - np.floor(x)


def _below(x: Field, limit: float) -> Field:
    """1 where a number is below the limit, else 0."""
    return (x < limit).astype(np.float32)


PATTERNS: dict[str, Callable[[Field, Field], Field]] = {
    "plain": lambda x, _: np.zeros_like(x),
    "stripes": lambda _, y: _below(_part(y), 0.45),
    "dots": lambda x, y: _below((_part(x) - 0.5) ** 2 + (_part(y) - 0.5) ** 2, 0.1),
    "checks": lambda x, y: np.float32(0.5) * (_below(_part(x), 0.5) + _below(_part(y), 0.5)),
    "gradient": lambda x, y: np.clip(0.15 * (x + y) + 0.5, 0, 1),
    "zigzag": lambda x, y: _below(_part(y + np.abs(_part(x) - 0.5)), 0.45),
    "rings": lambda x, y: _below(_part(np.sqrt(x * x + y * y)), 0.45),
    "band": lambda _, y: _below(np.abs(y), 0.7),
}
"""Name -> how much of the second color there is, from 0 to 1. Origin at the square's center."""


def fabric(
    pattern: str, side: int, first: Color, second: Color, *, repeats: float, tilt: float
) -> Image.Image:
    """A square of two colors in a pattern.

    Args:
        pattern: A name in `PATTERNS`.
        side: In pixels.
        first: The ground.
        second: What the pattern lays on it.
        repeats: How often the pattern repeats over the square.
        tilt: Its angle in degrees.
    """
    steps = np.linspace(-repeats / 2, repeats / 2, side // 2, dtype=np.float32)
    cos, sin = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
    x = steps[None, :] * np.float32(cos) + steps[:, None] * np.float32(sin)
    y = steps[:, None] * np.float32(cos) - steps[None, :] * np.float32(sin)
    share = PATTERNS[pattern](x, y) * np.float32(255)
    mask = Image.fromarray(share.astype(np.uint8)).resize((side, side), Image.Resampling.BILINEAR)
    steps_between = np.linspace(first, second, 256).round().astype(int).T.tolist()
    channels = [mask.point(table) for table in steps_between]
    return Image.merge("RGBA", (*channels, Image.new("L", mask.size, 255)))


@dataclass(frozen=True)
class Look:
    """What an instance fixes, apart from its proportions.

    Attributes:
        main: The color by which one would name it.
        accent: A second color, far from the first.
        trim: Of soles, lids, frames: dark, cream, metal or wood.
        cloth: Main and accent in the instance's pattern.
        rng: The instance's own randomness, for proportions and details.
    """

    main: Color
    accent: Color
    trim: Color
    cloth: Image.Image
    rng: np.random.Generator

    def vary(self, low: float, high: float) -> float:
        """A proportion of this instance."""
        return float(self.rng.uniform(low, high))

    def count(self, low: int, high: int) -> int:
        """How many of a detail this instance has, `high` included."""
        return int(self.rng.integers(low, high, endpoint=True))


class Pen:
    """Fills and strokes outlines on a transparent square.

    Args:
        side: Of the square, in pixels; outlines come on a square of 100 x 100.

    Attributes:
        layer: What was drawn so far.
        tilt: Turns everything that is drawn from now on, in degrees.
        zoom: Enlarges it.
    """

    def __init__(self, side: int) -> None:
        self.layer = Image.new("RGBA", (side, side))
        self.tilt = 0.0
        self.zoom = 1.0
        self._scale = side / 100
        self._draw = ImageDraw.Draw(self.layer)

    def fill(self, outline: Points, paint: Paint) -> None:
        """Fills an outline with a color or a cloth."""
        corners = self._pixels(outline)
        if not isinstance(paint, Image.Image):
            self._draw.polygon(corners, fill=paint)
            return
        xs, ys = corners[::2], corners[1::2]
        left, top = (max(0, math.floor(min(side))) for side in (xs, ys))
        right, bottom = (min(self.layer.width, math.ceil(max(side)) + 1) for side in (xs, ys))
        mask = Image.new("1", (right - left, bottom - top))
        moved = [v - (top if i % 2 else left) for i, v in enumerate(corners)]
        ImageDraw.Draw(mask).polygon(moved, fill=1)
        self.layer.paste(paint.crop((left, top, right, bottom)), (left, top), mask)

    def stroke(self, path: Points, width: float, color: Color) -> None:
        """Draws a line with round ends."""
        self._draw.line(
            self._pixels(path),
            fill=color,
            width=round(width * self.zoom * self._scale),
            joint="curve",
        )
        for x, y in (path[0], path[-1]):
            self.fill(ellipse(x, y, width / 2 - 0.1), color)

    def _pixels(self, points: Points) -> list[float]:
        """Flat pixel coordinates, as Pillow wants them."""
        if self.tilt or self.zoom != 1:
            points = (turned(points, self.tilt) - 50) * self.zoom + 50
        flat: list[float] = (points * self._scale).ravel().tolist()
        return flat
