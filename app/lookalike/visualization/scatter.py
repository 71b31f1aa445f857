"""The places of a map as a plain picture: one dot for each picture, colored by class."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lookalike.visualization.classes import OTHER_COLOR, PLAIN_COLOR, Classes, densest_places
from lookalike.visualization.fonts import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

_INCHES, _DPI = (12.0, 9.0), 150
_TEXT, _QUIET, _LINE = "#1a1d21", "#626a73", "#dde1e6"
_NAME_LENGTH, _TITLE_LENGTH = 28, 95  # letters
_MOST_NAMES = 40  # on the plot; more would cover the dots
_ROUNDS = 60


def draw_scatter(
    places: NDArray[np.float32], classes: Classes, *, title: str, caption: str
) -> bytes:
    """Draws a scatter plot of places as a PNG of 1,800 x 1,350 pixels.

    Args:
        places: (N, 2), N >= 1; y points down, as on the other pictures of a map.
        classes: Of the pictures. Each has a color, a line in the legend and its name where most
            of it is; above 20 the smaller ones are gray and called other.
        title: Above the plot.
        caption: Below it.

    Returns:
        The file's bytes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - slow to import
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=_INCHES, dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    right = 0.98 if not classes.names else 0.80
    axes = figure.add_axes((0.02, 0.06, right - 0.02, 0.86))
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(_LINE)
    _draw_dots(axes, places, classes)
    _write(
        figure,
        0.02,
        0.95,
        _short(title, _TITLE_LENGTH),
        fontsize=16,
        fontweight="bold",
        color=_TEXT,
    )
    _write(figure, 0.02, 0.025, caption, fontsize=10, color=_QUIET)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a box stands for it
        if classes.names:
            _draw_legend(axes, classes)
            _draw_names(axes, places, classes)
        figure.savefig(file, format="png")
    return file.getvalue()


def _write(figure: Figure, x: float, y: float, text: str, **style: Any) -> None:
    figure.text(x, y, printable(text), parse_math=False, **style)


def _draw_dots(axes: Axes, places: NDArray[np.float32], classes: Classes) -> None:
    count = len(places)
    colors = np.array(classes.colors or (PLAIN_COLOR,))[classes.index]
    order = np.random.default_rng(0).permutation(count)  # so that no class covers the others
    if classes.names:  # but gray lies below
        order = order[np.argsort(classes.index[order] < classes.colored, kind="stable")]
    axes.scatter(
        places[order, 0],
        places[order, 1],
        c=colors[order],
        s=float(np.clip(45_000 / count, 6, 80)),
        alpha=0.85 if count < 5_000 else 0.7,
        linewidths=0,
    )
    axes.margins(0.03)
    axes.set_aspect("equal", adjustable="datalim")
    axes.invert_yaxis()


def _draw_legend(axes: Axes, classes: Classes) -> None:
    from matplotlib.lines import Line2D  # noqa: PLC0415 - see draw_scatter

    entries = [
        (f"{_short(name)} ({count:,})", color)
        for name, color, count in zip(
            classes.names[: classes.colored], classes.colors, classes.counts, strict=False
        )
    ]
    rest = classes.counts[classes.colored :]
    if rest:
        entries.append((f"other: {len(rest):,} classes ({sum(rest):,})", OTHER_COLOR))
    dots = [
        Line2D([], [], marker="o", linestyle="", markersize=8, markeredgewidth=0, color=color)
        for _, color in entries
    ]
    legend = axes.legend(
        dots,
        [name for name, _ in entries],
        loc="upper left",
        bbox_to_anchor=(1.005, 1.0),
        frameon=False,
        fontsize=10,
        labelspacing=0.65,
        handletextpad=0.3,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
        text.set_color(_TEXT)


def _draw_names(axes: Axes, places: NDArray[np.float32], classes: Classes) -> None:
    """The name of each class where most of it is, moved apart where they overlap."""
    from matplotlib.patheffects import withStroke  # noqa: PLC0415 - see draw_scatter

    texts = [
        axes.text(
            x,
            y,
            _short(name),
            parse_math=False,
            ha="center",
            va="center",
            fontsize=11,
            fontweight="bold",
            color=_TEXT if number < classes.colored else _QUIET,
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )
        for number, ((x, y), name) in enumerate(
            zip(
                densest_places(places, classes)[:_MOST_NAMES],
                classes.names[:_MOST_NAMES],
                strict=True,
            )
        )
    ]
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
