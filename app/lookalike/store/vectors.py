"""What every store does with vectors: check them, score them, put scores in order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
"""Unit vectors: (N, dim) float32."""

Seqs = NDArray[np.int64]
"""Row numbers of a store, (N,) int64."""

Scores = NDArray[np.float64]
"""Cosine similarities in [-1, 1], (N,) float64."""

_BLOCK = 2**19  # numbers at a time in `exact_scores`: 4 MiB of float64
_LENGTH_TOLERANCE = 1e-2


def check_vectors(vectors: Vectors, *, count: int | None, dim: int) -> Vectors:
    """Gives vectors back, C-contiguous (N, dim) float32.

    Args:
        vectors: Rows of length 1.
        count: How many there must be, or None for any number.
        dim: Numbers in each.

    Raises:
        ValueError: Another shape, or rows that are not finite or not of length 1. A NaN would
            break the order of every later search.
    """
    rows = np.ascontiguousarray(vectors, dtype=np.float32)
    if rows.ndim != 2 or rows.shape[1] != dim or (count is not None and len(rows) != count):
        wanted = "N" if count is None else count
        raise ValueError(f"vectors have the shape {rows.shape}; ({wanted}, {dim}) was expected")
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    if not np.all(np.abs(lengths - 1.0) <= _LENGTH_TOLERANCE):
        raise ValueError("vectors must be finite and of length 1")
    return rows


def exact_scores(rows: Vectors, query: NDArray[np.float32]) -> Scores:
    """Cosines of (N, dim) rows with one (dim,) query: (N,) float64, clipped to [-1, 1].

    Each row is summed by itself in double precision, so that equal rows get equal scores wherever
    they stand: a matrix product does not promise that.
    """
    scores = np.empty(len(rows), dtype=np.float64)
    wide = query.astype(np.float64)
    step = max(1, _BLOCK // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        scores[start : start + step] = (rows[start : start + step] * wide).sum(axis=1)
    return np.clip(scores, -1.0, 1.0)


def best_first(scores: Scores, seqs: Seqs, k: int) -> NDArray[np.intp]:
    """Positions of the k best scores, best first; of equal scores the lowest seq first."""
    return np.lexsort((seqs, -scores))[:k]
