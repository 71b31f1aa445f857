"""Looks at a training after each epoch: is it still going somewhere, and how good is it?"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import ConfigurationError
from lookalike.evaluation.metrics import average_precision_at_r, encode_labels, judge
from lookalike.evaluation.ranking import rank

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


PICTURES_PER_CLASS: Final = 50
"""Of a validation class at most, chosen at random; so that no epoch waits for its validation."""

QUERIES: Final = 2000
"""At most, chosen at random among these pictures."""


class Validator:
    """Mean MAP@R of the validation pictures among themselves.

    Args:
        labels: (N,) of the validation pictures; each at least twice.
        seed: Of the choice, where there are too many.
    """

    def __init__(self, labels: NDArray[np.int64], *, seed: int) -> None:
        rng = np.random.default_rng(seed)
        own = (rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels))
        self.chosen = np.sort(np.concatenate([one[:PICTURES_PER_CLASS] for one in own]))
        self._classes = encode_labels([str(label) for label in labels[self.chosen]])
        count = min(QUERIES, len(self.chosen))
        self._queries = np.sort(rng.choice(len(self.chosen), size=count, replace=False))
        self._depth = int(self._classes.counts().max()) - 1

    def measure(self, vectors: NDArray[np.float32]) -> float:
        """MAP@R of the vectors of the chosen pictures, in their order: (n, dim) float32."""
        found = rank(vectors, queries=self._queries, k=self._depth, scored=0)
        relevance = judge(self._classes, queries=self._queries, positions=found.positions)
        return float(average_precision_at_r(relevance).mean())
