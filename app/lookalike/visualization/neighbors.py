"""The nearest neighbors of every picture of a set, by brute force."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BLOCK_BYTES = 64 * 1024 * 1024  # of cosines that are held at a time


def nearest_neighbors(
    vectors: NDArray[np.float32], *, k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Finds the k nearest other pictures of each picture by cosine; exact.

    Args:
        vectors: (N, dim) rows of length 1; perhaps a read-only memory map.
        k: How many; lowered to N - 1.

    Returns:
        Positions and scores, each (N, k), best first; of equal scores the lower position first.
    """
    count = len(vectors)
    k = min(k, count - 1)
    positions = np.empty((count, k), dtype=np.int64)
    scores = np.empty((count, k), dtype=np.float32)
    step = max(1, _BLOCK_BYTES // (4 * count))
    for start in range(0, count, step):
        rows = np.arange(start, min(start + step, count))
        cosines = np.asarray(vectors[start : start + step] @ vectors.T)  # (n, N)
        cosines[rows - start, rows] = -np.inf
        for rank in range(k):
            best = cosines.argmax(axis=1)  # the first of equal ones
            positions[rows, rank] = best
            scores[rows, rank] = cosines[rows - start, best]
            cosines[rows - start, best] = -np.inf
    return positions, np.clip(scores, -1.0, 1.0)
