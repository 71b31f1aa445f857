"""A map as plain pictures: a scatter plot, and the pictures themselves on a grid."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lookalike.visualization.drawing import (
    LINE,
    OTHER_COLOR,
    PLAIN_COLOR,
    QUIET,
    TEXT,
    Classes,
    Thumbnails,
    aspect_ratio,
    densest_places,
    draw_legend,
    load_font,
    png_of,
    printable,
    shorten,
    unit_square,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text


_NAME_LENGTH, _TITLE_LENGTH = 28, 95  # letters
_MOST_NAMES = 40  # on the plot; more would cover the dots
_ROUNDS = 60


def draw_scatter(
    places: NDArray[np.float32], classes: Classes, *, title: str, caption: str
) -> bytes:
    """Draws places, (N, 2), as a PNG of 1,800 x 1,350 pixels; y points down.

    Each class has a color, a line in the legend and its name where most of it is; above 20 the
    smaller ones are gray and called other. The title is above the plot, the caption below.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to import

    figure = Figure(figsize=(12.0, 9.0), dpi=150)
    right = 0.98 if not classes.names else 0.80
    axes = figure.add_axes((0.02, 0.06, right - 0.02, 0.86))
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(LINE)
    _draw_dots(axes, places, classes)
    heading = printable(_short(title, _TITLE_LENGTH))
    figure.text(0.02, 0.95, heading, fontsize=16, weight="bold", color=TEXT, parse_math=False)
    figure.text(0.02, 0.025, printable(caption), fontsize=10, color=QUIET, parse_math=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a box stands for it
        if classes.names:
            _draw_legend(axes, classes)
            _draw_names(axes, places, classes)
        return png_of(figure)


def _draw_dots(axes: Axes, places: NDArray[np.float32], classes: Classes) -> None:
    count = len(places)
    colors = np.array(classes.colors or (PLAIN_COLOR,))[classes.index]
    order = np.random.default_rng(0).permutation(count)  # so that no class covers the others
    if classes.names:  # but gray lies below
        order = order[np.argsort(classes.index[order] < classes.colored, kind="stable")]
    size, alpha = float(np.clip(45_000 / count, 6, 80)), 0.85 if count < 5_000 else 0.7
    x, y = places[order].T
    axes.scatter(x, y, c=colors[order], s=size, alpha=alpha, linewidths=0)
    axes.margins(0.03)
    axes.set_aspect("equal", adjustable="datalim")
    axes.invert_yaxis()


def _draw_legend(axes: Axes, classes: Classes) -> None:
    from matplotlib.lines import Line2D  # noqa: PLC0415 - see draw_scatter

    colored = zip(classes.names[: classes.colored], classes.colors, classes.counts, strict=False)
    entries = [(f"{_short(name)} ({count:,})", color) for name, color, count in colored]
    rest = classes.counts[classes.colored :]
    if rest:
        entries.append((f"other: {len(rest):,} classes ({sum(rest):,})", OTHER_COLOR))
    dots = [Line2D([], [], marker="o", ls="", ms=8, mew=0, color=color) for _, color in entries]
    names = [name for name, _ in entries]
    draw_legend(axes, dots, names, left=1.005, labelspacing=0.65, handletextpad=0.3)


def _draw_names(axes: Axes, places: NDArray[np.float32], classes: Classes) -> None:
    """The name of each class where most of it is, moved apart where they overlap."""
    from matplotlib.patheffects import withStroke  # noqa: PLC0415 - see draw_scatter

    centers = densest_places(places, classes)[:_MOST_NAMES]
    texts = []
    for number, (x, y) in enumerate(centers):
        text = axes.text(x, y, _short(classes.names[number]), parse_math=False)
        text.set(ha="center", va="center", fontsize=11, fontweight="bold")
        text.set_color(TEXT if number < classes.colored else QUIET)
        text.set_path_effects([withStroke(linewidth=3, foreground="white")])
        texts.append(text)
    _part(axes, texts)


def _part(axes: Axes, texts: list[Text]) -> None:
    """Moves overlapping texts apart, up and down, until none overlap or the rounds are over."""
    boxes = np.array([text.get_window_extent().extents for text in texts])  # (n, 4) pixels
    centers, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    frame = np.array(axes.get_window_extent().extents)
    for _ in range(_ROUNDS):
        moved = False
        for a in range(len(texts)):
            for b in range(a):
                apart = np.abs(centers[a] - centers[b])
                needed = (sizes[a] + sizes[b]) / 2
                if (apart < needed).all():
                    shift = (needed[1] - apart[1]) / 2 + 0.5
                    up = 1.0 if centers[a, 1] >= centers[b, 1] else -1.0
                    centers[a, 1] += up * shift
                    centers[b, 1] -= up * shift
                    moved = True
        centers = np.clip(centers, frame[:2] + sizes / 2, frame[2:] - sizes / 2)
        if not moved:
            break
    back = axes.transData.inverted().transform(centers)
    for text, place in zip(texts, back, strict=True):
        text.set_position((float(place[0]), float(place[1])))


def _short(text: str, length: int = _NAME_LENGTH) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


MOST_ASSIGNED = 2_500
"""Above this many pictures a cell shows one for all that fall into it."""

_LARGEST_SIDE = 4_000  # of the drawn grid, in pixels
_TILES = (32, 64)  # smallest and largest side of a picture in it
_GAP, _MARGIN, _FRAME = 2, 20, 2


@dataclass(frozen=True, slots=True)
class Grid:
    """Which picture is in which cell."""

    # (rows, columns) int64, the picture's position, or -1 for an empty cell
    cells: NDArray[np.int64]
    counts: NDArray[np.int64]  # (rows, columns) int64, how many pictures the cell stands for


def lay_grid(places: NDArray[np.float32], *, most: int = MOST_ASSIGNED) -> Grid:
    """Lays pictures on a grid by their places; row 0 is that of the smallest y.

    Up to `most` pictures, each gets a cell of its own: the assignment with the smallest sum of
    squared distances between the ranks of the pictures along both axes and the cells. (Ranks
    instead of places fill the gaps between groups, and make it take seconds at most.) Above, the
    map is cut into about `most` cells, each of which shows the picture nearest to its center.
    """
    if len(places) <= most:
        return _assigned(places)
    return _represented(places, most)


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


def _represented(places: NDArray[np.float32], most: int) -> Grid:
    columns = max(1, round((most * aspect_ratio(places)) ** 0.5))
    rows = max(1, round(most / columns))
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


def draw_grid(grid: Grid, thumbnails: Thumbnails, *, title: str, classes: Classes) -> Image.Image:
    """Draws the pictures on the grid; the frame of each has the color of its class, if it has one.

    They are 64 pixels wide; less where they are smaller, or where the drawing would be larger than
    4,000 pixels, but never below 32. The title is shortened to the width of the grid.
    """
    rows, columns = grid.cells.shape
    fitting = (_LARGEST_SIDE - 4 * _MARGIN) // max(rows, columns) - _GAP
    size = max(_TILES[0], min(_TILES[1], thumbnails.size, fitting))
    step = size + _GAP
    width = max(columns * step - _GAP, 240) + 2 * _MARGIN
    letters = max(18, width // 80)
    font, top = load_font(letters, bold=True), 2 * _MARGIN + round(1.3 * letters)
    canvas = Image.new("RGB", (width, top + rows * step - _GAP + _MARGIN), "white")
    pen = ImageDraw.Draw(canvas)
    shown = shorten(title, font=font, width=width - 2 * _MARGIN)
    pen.text((_MARGIN, _MARGIN), shown, fill=TEXT, font=font)
    for row, column in np.argwhere(grid.cells >= 0).tolist():
        position = int(grid.cells[row, column])
        x, y = _MARGIN + column * step, top + row * step
        tile = Image.fromarray(thumbnails.pixels[position])
        if tile.width != size:
            tile = tile.resize((size, size), Image.Resampling.LANCZOS)
        canvas.paste(tile, (x, y))
        if classes.names:
            frame = (x, y, x + size - 1, y + size - 1)
            color = classes.colors[classes.index[position]]
            pen.rectangle(frame, outline=color, width=_FRAME)
        if grid.counts[row, column] > 1:
            _draw_count(pen, int(grid.counts[row, column]), x + size, y + size)
    return canvas


def _draw_count(pen: ImageDraw.ImageDraw, count: int, right: int, bottom: int) -> None:
    """A small number in the lower right corner of a tile."""
    font = load_font(10)
    text = str(count)
    width = round(font.getlength(text)) + 4
    pen.rectangle((right - width, bottom - 13, right - 1, bottom - 1), fill=TEXT)
    pen.text((right - width + 2, bottom - 13), text, fill="white", font=font)
