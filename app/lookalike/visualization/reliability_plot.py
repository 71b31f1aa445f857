"""A reliability diagram: how often pairs are copies, against how likely they were called."""

from __future__ import annotations

from collections.abc import Sequence

from lookalike.extras import require_extra
from lookalike.services.scores import Bin
from lookalike.visualization.drawing import COLORS, QUIET, TEXT, plain_axes, png_of, printable


def draw_reliability(bins: Sequence[Bin], *, ece: float, name: str) -> bytes:
    """Draws the bins of a calibration as a PNG of 900 x 975 pixels.

    Each dot is one tenth of the probabilities; on the dashed line the probability is right. Below
    it, how many pairs each tenth has, on a logarithmic scale.
    """
    require_extra("viz", "a plot")
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to import

    figure = Figure(figsize=(6.0, 6.5), dpi=150, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    upper.plot([0, 1], [0, 1], color=QUIET, ls="--", lw=1, label="right")
    predicted, observed = [one.predicted for one in bins], [one.observed for one in bins]
    upper.plot(predicted, observed, "o-", color=COLORS[0], ms=7, lw=1.5, label="measured")
    upper.set(xlim=(-0.02, 1.02), ylim=(-0.03, 1.03))
    upper.set_ylabel("share of copies", color=TEXT)
    upper.set_title(
        printable(f"{name}: is it a copy? Expected calibration error {ece:.4f}"),
        loc="left",
        color=TEXT,
        parse_math=False,
    )
    upper.legend(frameon=False, loc="upper left")
    lower.bar([(one.low + one.high) / 2 for one in bins], [one.pairs for one in bins], width=0.09)
    lower.set_yscale("log")
    lower.set_ylabel("pairs", color=TEXT)
    lower.set_xlabel("probability of a copy", color=TEXT)
    for axes in (upper, lower):
        plain_axes(axes)
    return png_of(figure)
