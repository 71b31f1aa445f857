"""Exact ranks: what a search of the whole set would answer, for many queries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lookalike.cores import limit_openmp
from lookalike.errors import InvalidParameterError
from lookalike.services.vector_set import VectorSet
from lookalike.store.names import check_index_type
from lookalike.store.vectors import check_vectors

if TYPE_CHECKING:
    from lookalike.store.local.index.exact import ExactSegment

Positions = NDArray[np.int64]
"""Places in a vector set, from 0."""

Progress = Callable[[int, int], None]
"""Told how many queries are done, and of how many."""

_QUERIES = 256  # at a time
_BLOCK_BYTES = 16 * 2**20  # of vectors that are copied at a time


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ranking:
    """The k nearest pictures of each query, itself left out.

    Attributes:
        queries: (Q,) int64, positions in the set.
        positions: (Q, k) int64, best first; of equal scores the lower position first.
        scores: (Q, k) float64, cosines in [-1, 1], descending.
    """

    queries: Positions
    positions: Positions
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
    index: str = "Flat",
    on_progress: Progress | None = None,
) -> Ranking:
    """Ranks all pictures for each query, with the index that the service searches.

    Takes memory for the index and the answer, (Q, k) twice; `rank_blocks` does without the latter.

    Args:
        vectors: A set, or (N, dim) float32 rows of length 1.
        queries: (Q,) positions in the set, at least one.
        k: From 1 to N - 1.
        index: The index type; `Flat` is exact.
        on_progress: Called after each block of queries.

    Raises:
        InvalidParameterError: k or a query is out of its range.
        ConfigurationError: There is no such index type.
        ValueError: The vectors are not finite or not of length 1.
    """
    blocks = rank_blocks(vectors, queries=queries, k=k, index=index, on_progress=on_progress)
    return concatenate(list(blocks))


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
    index: str = "Flat",
    on_progress: Progress | None = None,
) -> Iterator[Ranking]:
    """As `rank`, in blocks of queries, for whoever keeps only a part of each.

    Arguments and errors as for `rank`; errors are raised at once, not with the first block.
    """
    rows = vectors.vectors if isinstance(vectors, VectorSet) else vectors
    queries = np.asarray(queries, dtype=np.int64)
    if not 1 <= k < len(rows):
        raise InvalidParameterError(
            f"k is {k}, but each picture has {max(0, len(rows) - 1)} others to be ranked: "
            "choose a k from 1 to that, or more pictures"
        )
    if queries.ndim != 1 or not len(queries):
        raise InvalidParameterError("There are no queries; name the position of one or more")
    if queries.min() < 0 or queries.max() >= len(rows):
        raise InvalidParameterError(
            f"There is no picture {queries.min() if queries.min() < 0 else queries.max()}: "
            f"positions in this set go from 0 to {len(rows) - 1}"
        )
    return _search(_filled(rows, index), rows, queries, k=k, on_progress=on_progress)


def _filled(rows: NDArray[np.float32], name: str) -> ExactSegment:
    """The index with all rows, under their positions plus one: seqs start at 1."""
    limit_openmp()
    from lookalike.store.local.index.exact import ExactSegment  # noqa: PLC0415 - imports faiss

    check_index_type(name)
    dim = rows.shape[1]
    index = ExactSegment(dim)
    step = max(1, _BLOCK_BYTES // (4 * dim))
    for start in range(0, len(rows), step):
        block = check_vectors(rows[start : start + step], count=None, dim=dim)
        index.add(np.arange(start, start + len(block), dtype=np.int64) + 1, block)
    return index


def _search(
    index: ExactSegment,
    rows: NDArray[np.float32],
    queries: Positions,
    *,
    k: int,
    on_progress: Progress | None,
) -> Iterator[Ranking]:
    step = max(1, min(_QUERIES, _BLOCK_BYTES // (4 * index.dim)))
    for start in range(0, len(queries), step):
        block = queries[start : start + step]
        found = index.search(np.ascontiguousarray(rows[block], dtype=np.float32), k=k + 1)
        scores = np.stack([scores for scores, _ in found])  # (B, k + 1)
        positions = np.stack([seqs for _, seqs in found]) - 1
        others = _all_but_one(positions == block[:, np.newaxis])
        yield Ranking(
            queries=block,
            positions=positions[others].reshape(len(block), k),
            scores=scores[others].reshape(len(block), k),
        )
        if on_progress is not None:
            on_progress(start + len(block), len(queries))


def _all_but_one(itself: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What to keep of (B, k + 1) places: all but the query's own, or but the last.

    A query does not find itself where more than k pictures before it have the very same vector.
    """
    keep = ~itself
    keep[:, -1] &= itself.any(axis=1)
    return keep
