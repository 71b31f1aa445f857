"""One number for each epoch: how well pictures that are not trained on find each other."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from lookalike.evaluation.metrics import average_precision_at_r, encode_labels, judge
from lookalike.evaluation.ranking import rank

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
