"""Notices a training that went wrong: all vectors alike, or a loss that does not move."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import ConfigurationError

LEAST_SPREAD: Final = 0.01
"""One minus the mean cosine of two vectors, below which they count as all alike."""

STUCK: Final = 0.97
"""Share of the margin above which a triplet loss counts as stuck there."""

STUCK_EPOCHS: Final = 5
"""How many epochs in a row it must be stuck."""


def spread(vectors: NDArray[np.float32]) -> float:
    """One minus the mean cosine over all pairs of (N, dim) unit vectors: 0 where all are alike.

    About 1 where directions are random. N is at least 2; NaN where a vector is.
    """
    count = len(vectors)
    total = vectors.sum(axis=0, dtype=np.float64)  # |sum|^2 holds each pair twice, and N ones
    lengths = float((vectors.astype(np.float64) ** 2).sum())
    return 1 - (float(total @ total) - lengths) / (count * (count - 1))


class CollapseDetector:
    """Looks at each epoch; raises `ConfigurationError` with advice when it is hopeless.

    Args:
        margin: Of the triplet loss; None for another loss.
    """

    def __init__(self, *, margin: float | None) -> None:
        self._margin = margin
        self._stuck = 0

    def look(self, *, epoch: int, loss: float, spread: float) -> None:
        """Takes one epoch's mean loss, and the spread of the vectors after it.

        Raises:
            ConfigurationError: The training has collapsed.
        """
        if not np.isfinite(loss) or not np.isfinite(spread):
            raise ConfigurationError(
                f"The training broke down in epoch {epoch}: the loss is not a number any more. "
                "Choose a lower --learning-rate"
            )
        if spread < LEAST_SPREAD:
            raise ConfigurationError(
                f"The training collapsed in epoch {epoch}: all pictures have nearly the same "
                f"vector (spread {spread:.4f}). Choose a lower --learning-rate, or "
                "--loss multi_similarity; and check that the pictures, and so their features, "
                "differ"
            )
        near = self._margin is not None and loss >= STUCK * self._margin
        self._stuck = self._stuck + 1 if near else 0
        if self._stuck >= STUCK_EPOCHS:
            raise ConfigurationError(
                f"The training does not move: for {self._stuck} epochs the loss has been at the "
                f"margin ({loss:.4f} of {self._margin}), as if right and wrong matches were alike. "
                "Check that the labels are right; choose a higher --learning-rate, a larger "
                "--margin, or --loss multi_similarity"
            )
