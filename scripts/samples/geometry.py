"""Outlines as arrays of points, on a square of 100 x 100 with y pointing down."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
"""An outline or a path, (N, 2)."""

Corners = Sequence[tuple[float, float]]


def polygon(corners: Corners) -> Points:
    """Straight lines between corners."""
    return np.asarray(corners, dtype=np.float64)


def curve(corners: Corners, *, closed: bool = True, steps: int = 8) -> Points:
    """A smooth line through every corner (Catmull-Rom)."""
    through = polygon(corners)
    if closed:
        through = np.vstack([through[-1:], through, through[:2]])
    else:
        through = np.vstack([through[:1], through, through[-1:]])
    t = np.linspace(0.0, 1.0, steps, endpoint=False)[None, :, None]
    p0, p1, p2, p3 = (through[i : len(through) - 3 + i, None, :] for i in range(4))
    path = p1 + 0.5 * t * (
        p2 - p0 + t * (2 * p0 - 5 * p1 + 4 * p2 - p3 + t * (3 * (p1 - p2) + p3 - p0))
    )
    path = path.reshape(-1, 2)
    return path if closed else np.vstack([path, through[-1:]])


def arc(
    x: float, y: float, rx: float, ry: float | None = None, *, start: float, stop: float
) -> Points:
    """Part of an ellipse around (x, y), in degrees: 0 is right, 90 is down."""
    angles = np.radians(np.linspace(start, stop, 40))
    return np.stack(
        [x + rx * np.cos(angles), y + (rx if ry is None else ry) * np.sin(angles)], axis=1
    )


def ellipse(x: float, y: float, rx: float, ry: float | None = None) -> Points:
    """A whole ellipse around (x, y); a circle where `ry` is left out."""
    return arc(x, y, rx, ry, start=0, stop=360)


def box(left: float, top: float, right: float, bottom: float, *, radius: float = 0.0) -> Points:
    """A rectangle, its corners rounded."""
    if not radius:
        return polygon([(left, top), (right, top), (right, bottom), (left, bottom)])
    centers = [
        (right - radius, bottom - radius, 0),
        (left + radius, bottom - radius, 90),
        (left + radius, top + radius, 180),
        (right - radius, top + radius, 270),
    ]
    return np.vstack([arc(x, y, radius, start=a, stop=a + 90)[::4] for x, y, a in centers])


def mirrored(points: Points, *, x: float = 50.0) -> Points:
    """The same points on the other side of a vertical line."""
    return points * (-1.0, 1.0) + (2 * x, 0.0)


def symmetric(half: Points, *, x: float = 50.0) -> Points:
    """An outline from its left or right half: the half, then its mirror image backwards."""
    return np.vstack([half, mirrored(half, x=x)[::-1]])


def turned(points: Points, degrees: float, *, around: tuple[float, float] = (50.0, 50.0)) -> Points:
    """The same points, turned clockwise."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    moved: Points = (points - around) @ np.array([[cos, sin], [-sin, cos]]) + around
    return moved
