"""Exact ranks: the nearest pictures of many queries, by brute force over the whole set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InvalidParameterError
from lookalike.progress import NO_PROGRESS, Progress
from lookalike.services.vector_set import VectorSet
from lookalike.store.base import best_first, check_vectors, exact_scores

Positions = NDArray[np.int64]
"""Positions in a vector set, from 0."""

_QUERIES = 256  # in one block, at most
_SCORES_BYTES = 256 * 2**20  # of one block's scores
_ROWS_BYTES = 32 * 2**20  # of vectors that are held in double precision
_FEW = 32  # in sets of this many times k, single precision picks the candidates


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ranking:
    """The k nearest pictures of each query, itself left out."""

    queries: Positions  # (Q,) int64, positions in the set
    positions: Positions  # (Q, k) int64, best first; of equal scores the lower position first
    # (Q, k) float64, cosines in [-1, 1], descending; fewer columns where fewer were asked for
    scores: NDArray[np.float64]

    def first(self, k: int) -> Ranking:
        """A copy of the first k ranks."""
        return Ranking(
            queries=self.queries,
            positions=self.positions[:, :k].copy(),
            scores=self.scores[:, :k].copy(),
        )


def rank(
    vectors: VectorSet | NDArray[np.float32],
    *,
    queries: Positions,
    k: int,
    scored: int | None = None,
) -> Ranking:
    """As `rank_blocks`, in one piece: with memory for the answer, (Q, k) twice."""
    return concatenate(list(rank_blocks(vectors, queries=queries, k=k, scored=scored)))


def concatenate(blocks: Sequence[Ranking]) -> Ranking:
    """The queries of all blocks, one after another; at least one block."""
    return Ranking(
        queries=np.concatenate([block.queries for block in blocks]),
        positions=np.concatenate([block.positions for block in blocks]),
        scores=np.concatenate([block.scores for block in blocks]),
    )


def rank_blocks(
    vectors: VectorSet | NDArray[np.float32],
    *,
    queries: Positions,
    k: int,
    scored: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> Iterator[Ranking]:
    """Ranks all pictures for each query, for a caller that keeps only a part of each block.

    Args:
        vectors: A set, or (N, dim) float32 rows of length 1.
        queries: (Q,) positions in the set, at least one.
        k: From 1 to N - 1.
        scored: Ranks whose scores are wanted; all k unless given.
        progress: Told how many queries are ranked; may end the work after each block.

    Raises:
        InvalidParameterError: k or a query is out of its range.
        ValueError: The vectors are not finite or not of length 1.
    """
    rows = vectors.vectors if isinstance(vectors, VectorSet) else vectors
    queries = np.asarray(queries, dtype=np.int64)
    _check(queries, k=k, count=len(rows))
    for part in _slices(rows):
        check_vectors(rows[part], count=None, dim=rows.shape[1])
    step = max(1, min(_QUERIES, _SCORES_BYTES // (8 * max(rows.shape))))
    dtype = np.float32 if k * _FEW <= len(rows) else np.float64
    for start in range(0, len(queries), step):
        block = queries[start : start + step]
        scores = _product(rows, block, dtype)
        worst = np.partition(scores, -k, axis=1)[:, -k]  # of the k that each query wants
        best = [_best(rows, *each, k=k) for each in zip(block, scores, worst, strict=True)]
        exact = [_exact(rows, q, found[:scored]) for q, found in zip(block, best, strict=True)]
        yield Ranking(queries=block, positions=np.stack(best), scores=np.stack(exact))
        progress.report(start + len(block), len(queries))
        progress.check()


def _check(queries: Positions, *, k: int, count: int) -> None:
    if not 1 <= k < count:
        raise InvalidParameterError(
            f"k is {k}, but each picture has {max(0, count - 1)} others to be ranked: "
            "choose a k from 1 to that, or more pictures"
        )
    if queries.ndim != 1 or not len(queries):
        raise InvalidParameterError("There are no queries; name the position of one or more")
    if queries.min() < 0 or queries.max() >= count:
        raise InvalidParameterError(
            f"There is no picture {queries.min() if queries.min() < 0 else queries.max()}: "
            f"positions in this set go from 0 to {count - 1}"
        )


def _product(
    rows: NDArray[np.float32], queries: Positions, dtype: type[np.floating[Any]]
) -> NDArray[Any]:
    """Cosines of (B,) queries with all rows, (B, N) of `dtype`; its own is minus infinity."""
    wanted = rows[queries].astype(dtype)
    scores = np.empty((len(queries), len(rows)), dtype=dtype)
    for part in _slices(rows):
        scores[:, part] = wanted @ rows[part].astype(dtype, copy=False).T
    np.clip(scores, -1.0, 1.0, out=scores)
    scores[np.arange(len(queries)), queries] = -np.inf
    return scores


def _best(
    rows: NDArray[np.float32], query: np.int64, scores: NDArray[Any], worst: float, *, k: int
) -> Positions:
    """The k best positions, from a query's scores with all (N,) rows.

    A matrix product may give equal rows slightly different scores, depending on where they stand.
    So scores that are closer than its rounding are computed again, row by row.
    """
    rounding = _rounding(rows.shape[1], scores.dtype)
    positions = np.flatnonzero(scores >= worst - rounding)
    found = scores[positions].astype(np.float64)
    order = best_first(found, positions, len(found))
    near = np.flatnonzero(-np.diff(found[order]) <= rounding)
    if len(near):
        doubtful = order[np.union1d(near, near + 1)]
        found[doubtful] = _exact(rows, query, positions[doubtful])
        order = best_first(found, positions, k)
    best: Positions = positions[order[:k]]
    return best


def _exact(rows: NDArray[np.float32], query: np.int64, positions: Positions) -> NDArray[np.float64]:
    """Cosines of a query with some rows; equal rows get equal scores wherever they stand."""
    scores = np.empty(len(positions))
    for part in _slices(rows, count=len(positions)):
        scores[part] = exact_scores(rows[positions[part]], rows[query])
    return scores


def _rounding(dim: int, dtype: np.dtype[Any]) -> float:
    """An upper bound on how much two summation orders of `dim` products differ."""
    if dtype == np.float32:
        return 2e-6 + 4e-7 * float(np.sqrt(dim))
    return 2 * float(np.finfo(np.float64).eps) * dim


def _slices(rows: NDArray[np.float32], *, count: int | None = None) -> Iterator[slice]:
    """Cuts all rows, or `count` of them, into parts of `_ROWS_BYTES` in double precision."""
    step = max(1, _ROWS_BYTES // (8 * rows.shape[1]))
    for start in range(0, len(rows) if count is None else count, step):
        yield slice(start, start + step)
