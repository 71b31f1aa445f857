"""Index types as a picture: what they find against the time that they take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lookalike.extras import require_extra
from lookalike.store.tuning import Goal, Point, Tuning, pareto
from lookalike.visualization.drawing import (
    COLORS,
    LINE,
    QUIET,
    TEXT,
    draw_legend,
    plain_axes,
    png_of,
    printable,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHOWN, _SHOWN_AT_LEAST = 10, 0.05  # times the misses allowed, and a share; more is not drawn


def draw_tuning(tuning: Tuning, goal: Goal, *, name: str) -> bytes:
    """Draws recall against milliseconds as a PNG of 1,650 x 975 pixels.

    Each type has a color and a dot for each way to search it that no other way of the type beats;
    the gray line joins what no type beats, and a ring marks the type to use. The goal's recall is a
    dashed line.
    """
    require_extra("viz", "a plot")
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to import

    figure = Figure(figsize=(11.0, 6.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    _draw_trials(axes, tuning, goal)
    _draw_frame(axes, tuning, goal, name)
    return png_of(figure)


def _draw_trials(axes: Axes, tuning: Tuning, goal: Goal) -> None:
    everything = pareto([point for trial in tuning.trials for point in trial.points])
    axes.plot(*_places(everything), color=LINE, lw=8, label="the best of all (Pareto)", zorder=1)
    for number, trial in enumerate(trial for trial in tuning.trials if trial.points):
        color = COLORS[number % len(COLORS)]
        label = f"{printable(trial.setting)}  ({_size(trial.bytes)})"
        axes.plot(*_places(pareto(trial.points)), "o-", color=color, ms=6, lw=1.6, label=label)
    chosen = tuning.recommended(goal)
    point = None if chosen is None else chosen.fastest(goal.recall)
    if chosen is not None and point is not None:
        label = f"{printable(chosen.setting)}: {point.ms:.2g} ms, recall {point.recall:.3f}"
        ring = axes.plot([point.ms], [point.recall], "o", ms=15, label=label, zorder=4)[0]
        ring.set(mfc="none", mec=TEXT, mew=2)


def _draw_frame(axes: Axes, tuning: Tuning, goal: Goal, name: str) -> None:
    from matplotlib.ticker import LogLocator, NullLocator  # noqa: PLC0415 - see draw_tuning

    wanted = f"recall {goal.recall:g}, wanted"
    axes.axhline(goal.recall, color=QUIET, ls="--", lw=1, label=wanted, zorder=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    most = max(_SHOWN_AT_LEAST, _SHOWN * (1 - goal.recall))
    lowest = min(point.recall for trial in tuning.trials for point in trial.points)
    bottom = max(1 - most, min(lowest, goal.recall))
    margin = max(0.002, 0.04 * (1 - bottom))
    axes.set_ylim(bottom - margin, 1 + margin)
    axes.set_xlabel("milliseconds a query, one core (log scale)", color=TEXT, fontsize=11)
    axes.set_ylabel(f"recall@{tuning.k}", color=TEXT, fontsize=11)
    plain_axes(axes)
    some = "" if tuning.measured == tuning.rows else f"{tuning.measured:,} of "
    title = f"{printable(name)}: {some}{tuning.rows:,} pictures of {tuning.dim} numbers"
    axes.set_title(title, loc="left", color=TEXT, fontsize=14, fontweight="bold", parse_math=False)
    draw_legend(axes, left=1.01)


def _places(points: list[Point]) -> tuple[list[float], list[float]]:
    return [point.ms for point in points], [point.recall for point in points]


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
