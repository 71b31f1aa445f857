"""Which classes are found in place of which."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lookalike.evaluation.metrics import Classes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Confusion:
    """Shares of classes among the first k matches, without the pairs that never occurred.

    Attributes:
        names: The C classes.
        asked: (P,) int64, the class of the queries; with `found`, ascending.
        found: (P,) int64, the class of the matches.
        shares: (P,) float64 in (0, 1]; those of one asked class add up to 1.
    """

    names: tuple[str, ...]
    asked: NDArray[np.int64]
    found: NDArray[np.int64]
    shares: NDArray[np.float64]

    def matrix(self) -> NDArray[np.float64]:
        """(C, C): row i, column j is the share of class j in the matches of class i's queries.

        NaN in the rows of classes that had no query.
        """
        size = len(self.names)
        dense = np.full((size, size), np.nan)
        dense[self.asked] = 0.0
        dense[self.asked, self.found] = self.shares
        return dense

    def by_name(self) -> dict[tuple[str, str], float]:
        """Shares by the labels of query and match; pairs that never occurred are missing."""
        asked, found = self.asked.tolist(), self.found.tolist()
        return {
            (self.names[row], self.names[column]): share
            for row, column, share in zip(asked, found, self.shares.tolist(), strict=True)
        }

    def most_confused(self, count: int) -> list[tuple[int, int, float]]:
        """Pairs of different classes by falling share: asked, found, share; at most `count`."""
        wrong = np.flatnonzero(self.asked != self.found)
        order = wrong[np.argsort(-self.shares[wrong], kind="stable")[:count]]
        return [
            (int(self.asked[pair]), int(self.found[pair]), float(self.shares[pair]))
            for pair in order
        ]


def confuse(
    classes: Classes, *, queries: NDArray[np.int64], positions: NDArray[np.int64]
) -> Confusion:
    """Counts classes among the matches.

    Takes memory for the pairs that occur, so that thousands of classes are no trouble.

    Args:
        classes: Of the whole set.
        queries: (Q,) positions.
        positions: (Q, k) of the ranked matches.
    """
    size = len(classes.names)
    own = classes.codes[queries]
    pairs, times = np.unique(
        own[:, np.newaxis] * size + classes.codes[positions], return_counts=True
    )
    asked, found = np.divmod(pairs, size)
    matches = np.bincount(own, minlength=size) * positions.shape[1]  # of each class's queries
    return Confusion(names=classes.names, asked=asked, found=found, shares=times / matches[asked])
