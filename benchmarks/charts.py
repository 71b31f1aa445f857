"""Charts and the overview of a run as PNG files."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.results import Chart, Row, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 120
_TEXT, _QUIET, _LINE = "#1a1d21", "#626a73", "#dde1e6"
_MET, _MISSED = "#16803c", "#c2410c"
_COLORS = ("#2457d6", "#c2410c", "#16803c", "#7c3aed", "#0e7490", "#a16207", "#be185d", "#475569")
_LINE_LENGTH = 85  # letters


def draw_charts(charts: list[Chart], rows: list[Row], folder: Path) -> list[Path]:
    """Draws each chart, and the goals of the rows that have one; returns the files."""
    files = [draw_chart(chart, folder / f"{chart.name}.png") for chart in charts]
    with_goals = [row for row in rows if row.met is not None and row.ratio]
    if with_goals:
        files.insert(0, draw_goals(with_goals, folder / "goals.png"))
    return files


def draw_chart(chart: Chart, file: Path) -> Path:
    """Draws the lines of one chart, each named at its end."""
    figure, axes = canvas(9.0, 5.5)
    for (name, points), color in zip(chart.lines.items(), _COLORS * 3, strict=False):
        across, up = zip(*points, strict=True)
        axes.plot(across, up, color=color, marker="o", markersize=4, linewidth=1.8, label=name)
    if chart.scale in {"log_x", "log"}:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(number)
    if chart.scale in {"log_y", "log"}:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(number)
    else:
        axes.set_ylim(bottom=0)
    axes.set_title(chart.title, loc="left", color=_TEXT, fontsize=12, fontweight="bold")
    axes.set_xlabel(chart.x_label, color=_TEXT)
    axes.set_ylabel(chart.y_label, color=_TEXT)
    axes.grid(color=_LINE, linewidth=0.8)
    axes.tick_params(colors=_QUIET, which="both")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), labelcolor=_TEXT)
    figure.savefig(file)
    return file


def draw_goals(rows: list[Row], file: Path) -> Path:
    """Draws how far each ratio is beyond its goal, or short of it, on a logarithmic scale."""
    figure, axes = canvas(11.0, 1.2 + 0.4 * len(rows))
    margins = [row.margin for row in rows]
    colors = [_MET if row.met else _MISSED for row in rows]
    axes.hlines(range(len(rows)), 1, margins, colors=colors, linewidth=2)
    axes.scatter(margins, range(len(rows)), c=colors, s=36, zorder=3)
    axes.axvline(1, color=_QUIET, linewidth=1)
    for place, row in enumerate(rows):
        text = f"{short(row.ratio or 0)} ({row.goal})"
        axes.annotate(text, (max(row.margin, 1), place), (8, 0), textcoords="offset points",
                      va="center", fontsize=8, color=_QUIET)  # fmt: skip
    axes.set_yticks(range(len(rows)), [in_lines(row.what) for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(number)
    axes.set_xlim(min(0.5, *margins) * 0.8, max(2.0, *margins) * 6)
    axes.set_xlabel("times the goal: right of the line is better than asked", color=_TEXT)
    axes.set_title("Ratios against their goals", loc="left", color=_TEXT, fontweight="bold")
    axes.tick_params(axis="y", length=0, colors=_TEXT)
    axes.spines["left"].set_visible(False)
    figure.savefig(file)
    return file


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty plot on white, in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - slow to import
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_LINE)
    return figure, axes


def in_lines(text: str) -> str:
    """A name in at most two lines, beside its mark."""
    return "\n".join(textwrap.wrap(text, _LINE_LENGTH, max_lines=2, placeholder=" …"))


def number(value: float, _position: float) -> str:
    """A tick as a plain number."""
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"
