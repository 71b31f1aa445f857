"""Pictures on a grid without overlap, neighbors on the map beside each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lookalike.visualization.classes import Classes, aspect_ratio, unit_square
from lookalike.visualization.fonts import load_font, shorten

MOST_ASSIGNED = 2_500
"""Above this many pictures a cell shows one for all that fall into it."""

_LARGEST_SIDE = 4_000  # of the drawn grid, in pixels
_TILES = (32, 64)  # smallest and largest side of a picture in it
_GAP, _MARGIN, _FRAME = 2, 20, 2
_PAGE, _TEXT, _QUIET = "#ffffff", "#1a1d21", "#626a73"


@dataclass(frozen=True, slots=True)
class Grid:
    """Which picture is in which cell.

    Attributes:
        cells: (rows, columns) int64, the picture's position, or -1 for an empty cell.
        counts: (rows, columns) int64, how many pictures the cell stands for.
    """

    cells: NDArray[np.int64]
    counts: NDArray[np.int64]


def lay_grid(places: NDArray[np.float32]) -> Grid:
    """Lays pictures on a grid by their places; row 0 is that of the smallest y.

    Up to 2,500 pictures, each gets a cell of its own: the assignment with the smallest sum of
    squared distances between the ranks of the pictures along both axes and the cells. (Ranks
    instead of places fill the gaps between groups, and make it take seconds at most.) Above, the
    map is cut into about 2,500 cells, each of which shows the picture nearest to its center.

    Args:
        places: (N, 2), N >= 1.
    """
    if len(places) <= MOST_ASSIGNED:
        return _assigned(places)
    return _represented(places)


def _assigned(places: NDArray[np.float32]) -> Grid:
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415 - as needed
    from scipy.spatial.distance import cdist  # noqa: PLC0415

    count = len(places)
    columns = min(count, max(1, round((count * aspect_ratio(places)) ** 0.5)))
    rows = -(-count // columns)
    order = np.random.default_rng(0).permutation(count)  # parts places that are the same
    ranks = np.empty((count, 2))
    for axis in (0, 1):
        ranks[np.lexsort((order, places[:, axis])), axis] = np.arange(count)
        order = np.random.default_rng(1).permutation(count)
    x, y = np.meshgrid((np.arange(columns) + 0.5) / columns, (np.arange(rows) + 0.5) / rows)
    centers = np.column_stack([x.ravel(), y.ravel()])  # (rows * columns, 2)
    pictures, chosen = linear_sum_assignment(cdist((ranks + 0.5) / count, centers, "sqeuclidean"))
    cells = np.full(rows * columns, -1, dtype=np.int64)
    cells[chosen] = pictures
    cells = cells.reshape(rows, columns)
    return Grid(cells, (cells >= 0).astype(np.int64))


def _represented(places: NDArray[np.float32]) -> Grid:
    columns = max(1, round((MOST_ASSIGNED * aspect_ratio(places)) ** 0.5))
    rows = max(1, round(MOST_ASSIGNED / columns))
    scaled = unit_square(places) * (columns, rows)
    column, row = np.minimum(scaled.astype(int), (columns - 1, rows - 1)).T
    off = ((scaled - np.column_stack([column, row]) - 0.5) ** 2).sum(axis=1)
    cell = row * columns + column
    counts = np.bincount(cell, minlength=rows * columns)
    order = np.lexsort((off, cell))  # by cell, the nearest to its center first
    filled, first = np.unique(cell[order], return_index=True)
    cells = np.full(rows * columns, -1, dtype=np.int64)
    cells[filled] = order[first]
    return Grid(cells.reshape(rows, columns), counts.reshape(rows, columns))


def draw_grid(
    grid: Grid,
    picture: Callable[[int], Image.Image],
    *,
    title: str,
    classes: Classes,
    tile_size: int = _TILES[1],
) -> Image.Image:
    """Draws the grid with square pictures; the frame of each has the color of its class.

    Args:
        grid: Of `lay_grid`.
        picture: A square RGB picture for a position.
        title: Above the grid, shortened to its width.
        classes: Of the pictures; without labels there are no frames.
        tile_size: Largest side of a picture in pixels; less where the drawing would be larger
            than 4,000 pixels, but never below 32.

    Returns:
        An RGB picture.
    """
    rows, columns = grid.cells.shape
    fitting = (_LARGEST_SIDE - 4 * _MARGIN) // max(rows, columns) - _GAP
    size = max(_TILES[0], min(tile_size, fitting))
    step = size + _GAP
    width = max(columns * step - _GAP, 240) + 2 * _MARGIN
    letters = max(18, width // 80)
    font, top = load_font(letters, bold=True), 2 * _MARGIN + round(1.3 * letters)
    canvas = Image.new("RGB", (width, top + rows * step - _GAP + _MARGIN), _PAGE)
    pen = ImageDraw.Draw(canvas)
    shown = shorten(title, font=font, width=width - 2 * _MARGIN)
    pen.text((_MARGIN, _MARGIN), shown, fill=_TEXT, font=font)
    for row, column in np.argwhere(grid.cells >= 0).tolist():
        position = int(grid.cells[row, column])
        x, y = _MARGIN + column * step, top + row * step
        tile = picture(position)
        if tile.width != size:
            tile = tile.resize((size, size), Image.Resampling.LANCZOS)
        canvas.paste(tile, (x, y))
        if classes.names:
            frame = (x, y, x + size - 1, y + size - 1)
            pen.rectangle(frame, outline=classes.color(position), width=_FRAME)
        if grid.counts[row, column] > 1:
            _draw_count(pen, int(grid.counts[row, column]), x + size, y + size)
    return canvas


def _draw_count(pen: ImageDraw.ImageDraw, count: int, right: int, bottom: int) -> None:
    """A small number in the lower right corner of a tile."""
    font = load_font(10)
    text = str(count)
    width = round(font.getlength(text)) + 4
    pen.rectangle((right - width, bottom - 13, right - 1, bottom - 1), fill=_TEXT)
    pen.text((right - width + 2, bottom - 13), text, fill="white", font=font)
