"""The course of a training as a picture."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from lookalike.training.task import TrainingResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INCHES, _DPI = (9.0, 6.5), 120
_TEXT, _QUIET, _LINE = "#1a1d21", "#626a73", "#dde1e6"
_LOSS, _VALIDATION = "#2457d6", "#16803c"


def draw_curves(result: TrainingResult) -> bytes:
    """Draws loss and validation by epoch, one above the other, as a PNG.

    The best epoch is marked, as is what the validation pictures reach without the head; and the
    margin, under triplet loss.

    Returns:
        The file's bytes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - slow to import
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=_INCHES, dpi=_DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True)
    _draw_loss(upper, result)
    _draw_validation(lower, result)
    for axes in (upper, lower):
        axes.axvline(result.best_epoch, color=_QUIET, linestyle=":", linewidth=1)
        axes.grid(color=_LINE, linewidth=0.8)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    lower.set_xlabel("epoch", color=_TEXT)
    lower.xaxis.get_major_locator().set_params(integer=True)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _draw_loss(axes: Axes, result: TrainingResult) -> None:
    epochs = [epoch.number for epoch in result.history]
    axes.plot(epochs, [epoch.loss for epoch in result.history], color=_LOSS, marker=".")
    axes.set_ylabel("loss", color=_TEXT)
    options = result.options
    if options.loss == "triplet":
        axes.axhline(options.margin, color=_QUIET, linestyle="--", linewidth=1)
        axes.annotate("margin", (epochs[-1], options.margin), color=_QUIET, ha="right", va="top")
    axes.set_ylim(bottom=0)
    axes.set_title(
        f"{options.loss.replace('_', ' ')} loss, seed {options.seed}; the best epoch is "
        f"{result.best_epoch}",
        loc="left",
        color=_TEXT,
    )


def _draw_validation(axes: Axes, result: TrainingResult) -> None:
    known = [(e.number, e.validation) for e in result.history if e.validation is not None]
    axes.set_ylabel("validation MAP@R", color=_TEXT)
    if not known or result.validation_before is None:
        axes.text(0.5, 0.5, "no validation", transform=axes.transAxes, color=_QUIET, ha="center")
        return
    axes.plot(
        [number for number, _ in known],
        [value for _, value in known],
        color=_VALIDATION,
        marker=".",
        label="with the head",
    )
    axes.axhline(
        result.validation_before, color=_QUIET, linestyle="--", linewidth=1, label="without"
    )
    axes.legend(frameon=False, loc="best")
