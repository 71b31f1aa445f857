"""Classes of pictures and their colors, the same on every picture of a map."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lookalike.visualization.drawing import printable

COLORS: tuple[str, ...] = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#17becf"),
    *("#bcbd22", "#5c14ff", "#ad0085", "#00eb00", "#b8b8ff", "#007a5c", "#ff0085", "#ad7a00"),
    *("#d600ff", "#5c99ff", "#f5ada3", "#5ce0a3"),
)
"""20 colors, at least 0.13 apart in OKLab (tab20: 0.05), visible on black and on white."""

OTHER_COLOR = "#999999"
"""Of the classes that are too many for a color of their own."""

PLAIN_COLOR = "#4a7ddb"
"""Of pictures without labels."""

_BINS = 32


@dataclass(frozen=True, slots=True)
class Classes:
    """The classes of N pictures, those with a color of their own first, each part by name.

    Attributes:
        names: Printable; empty where the pictures have no labels.
        colors: One for each, `#rrggbb`.
        counts: Pictures in each.
        index: (N,) int32, the class of each picture; all 0 where there are no labels.
        colored: How many have a color of their own: all up to 20, else the 19 largest.
    """

    names: tuple[str, ...]
    colors: tuple[str, ...]
    counts: tuple[int, ...]
    index: NDArray[np.int32]
    colored: int

    def color(self, position: int) -> str:
        """The color of one picture."""
        return self.colors[self.index[position]] if self.names else PLAIN_COLOR


def classes_of(labels: Sequence[str] | None, *, count: int) -> Classes:
    """Counts the classes and gives them colors.

    Args:
        labels: One for each picture, or None where there are none.
        count: Pictures, N.
    """
    if labels is None:
        return Classes((), (), (), np.zeros(count, dtype=np.int32), 0)
    counter = Counter(labels)
    colored = len(counter) if len(counter) <= len(COLORS) else len(COLORS) - 1
    by_size = sorted(counter, key=lambda name: (-counter[name], name))
    names = _by_name(by_size[:colored]) + _by_name(by_size[colored:])
    numbers = {name: number for number, name in enumerate(names)}
    return Classes(
        names=tuple(printable(name) for name in names),
        colors=COLORS[:colored] + (OTHER_COLOR,) * (len(names) - colored),
        counts=tuple(counter[name] for name in names),
        index=np.fromiter((numbers[label] for label in labels), dtype=np.int32, count=count),
        colored=colored,
    )


def _by_name(names: Sequence[str]) -> list[str]:
    return sorted(names, key=lambda name: (name.casefold(), name))


def unit_square(places: NDArray[np.float32]) -> NDArray[np.float64]:
    """Scales (N, 2) places so that each axis runs from 0 to 1; one without extent is 0.5."""
    low, extent = places.min(axis=0), np.ptp(places, axis=0).astype(np.float64)
    scaled = (places - low) / np.where(extent > 0, extent, 1.0)
    return np.where(extent > 0, scaled, 0.5).astype(np.float64)


def aspect_ratio(places: NDArray[np.float32]) -> float:
    """Width by height of what the places cover, between 1/3 and 3; 1 where it has no extent."""
    width, height = (float(extent) for extent in np.ptp(places, axis=0))
    if width <= 0 or height <= 0:
        return 1.0
    return min(3.0, max(1 / 3, width / height))


def densest_places(places: NDArray[np.float32], classes: Classes) -> NDArray[np.float64]:
    """Where each class has most of its pictures; a mean could lie between two of its groups.

    Args:
        places: (N, 2).
        classes: Of the same pictures.

    Returns:
        (classes, 2): the mean of the class's pictures around the peak of its smoothed histogram.
    """
    from scipy.ndimage import gaussian_filter  # noqa: PLC0415 - as needed

    bins = np.minimum((unit_square(places) * _BINS).astype(int), _BINS - 1)  # (N, 2)
    centers = np.empty((len(classes.names), 2))
    for number in range(len(classes.names)):
        members = np.flatnonzero(classes.index == number)
        density = np.zeros((_BINS, _BINS))
        np.add.at(density, tuple(bins[members].T), 1.0)
        density = gaussian_filter(density, sigma=1.5, mode="constant")
        peak = np.array(np.unravel_index(density.argmax(), density.shape))
        away = np.abs(bins[members] - peak).max(axis=1)
        near = members[away <= max(2, away.min())]
        centers[number] = places[near].mean(axis=0)
    return centers
