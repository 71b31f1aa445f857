"""The nearest-neighbor structure: FAISS behind row numbers of our own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import faiss as _faiss
import numpy as np
from numpy.typing import NDArray

from app.store.vectors import Scores, Seqs, Vectors, best_first, exact_scores

faiss: Any = _faiss  # its stubs describe the C++ signatures, not the Python ones
VERSION: str = faiss.__version__

Positions = NDArray[np.int64]
"""Places in the index, (N,) int64."""

Found = tuple[Scores, Seqs]
"""What one query finds: scores and seqs, best first, of equal length."""

_SPARE = 16  # fetched beyond k, so that ties at the k-th place show
_WIDEST = 4096  # beyond this many candidates, scoring all rows is no slower
_GATHERED = 2048  # up to this many rows are scored without FAISS
_SKIPPED = 256  # more rows than these ruled out by `among` are masked, not over-fetched
_BATCH = 4  # from this many queries on, a matrix product and more threads pay
_PARALLEL_WORK = 2**27  # multiplications
_BLOCK_BYTES = 4 * 2**20
# Newer versions compare queries * dim with it, older ones queries; see `_tuned`.
_COUNTS_NUMBERS = faiss.cvar.distance_compute_blas_threshold > 10_000


class FlatIndex:
    """Exact search by inner product over unit vectors (`IndexFlatIP`).

    Rows are appended under ascending seqs; a removed row stays as a tombstone, because FAISS's own
    `remove_ids` cannot be trusted on every index type. Searches may run side by side; `add` and
    `remove` must run alone. What FAISS finds is scored again in double precision, so that scores
    and the order of ties do not depend on how many queries came together.

    Attributes:
        dim: Numbers in a vector.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._index: Any = faiss.IndexFlatIP(dim)
        self._seqs: Seqs = np.empty(0, dtype=np.int64)
        self._alive: NDArray[np.bool_] = np.empty(0, dtype=np.bool_)
        self._dead = 0

    def __len__(self) -> int:
        """Rows, tombstones included."""
        return int(self._index.ntotal)

    @property
    def dead(self) -> int:
        """Tombstones."""
        return self._dead

    @property
    def seqs(self) -> Seqs:
        """The seq of every row, tombstones included: (N,) int64, ascending; not to be changed."""
        return self._seqs[: len(self)]

    @property
    def alive(self) -> NDArray[np.bool_]:
        """Which rows are no tombstones: (N,) bool; not to be changed."""
        return self._alive[: len(self)]

    @property
    def last_seq(self) -> int:
        """The highest seq that was added; 0 where none was."""
        return int(self._seqs[len(self) - 1]) if len(self) else 0

    def add(self, seqs: Seqs, vectors: Vectors) -> None:
        """Appends rows.

        Args:
            seqs: (N,) int64, strictly ascending, above `last_seq`.
            vectors: (N, dim) float32, C-contiguous.

        Raises:
            ValueError: The seqs do not ascend, or the shapes do not fit.
        """
        if vectors.shape != (len(seqs), self.dim):
            raise ValueError(f"{vectors.shape} does not fit ({len(seqs)}, {self.dim})")
        if np.any(np.diff(seqs, prepend=self.last_seq) <= 0):
            raise ValueError("seqs must ascend")
        start, end = len(self), len(self) + len(seqs)
        if end > len(self._seqs):
            room = max(end, 2 * len(self._seqs), 1024) - len(self._seqs)
            self._seqs = np.concatenate([self._seqs, np.zeros(room, dtype=np.int64)])
            self._alive = np.concatenate([self._alive, np.zeros(room, dtype=np.bool_)])
        self._seqs[start:end] = seqs
        self._alive[start:end] = True
        self._index.add(vectors)

    def remove(self, seqs: Seqs) -> None:
        """Makes tombstones of those rows that are alive."""
        positions = self.locate(seqs)
        self._alive[positions] = False
        self._dead += len(positions)

    def locate(self, seqs: Seqs) -> Positions:
        """The positions of those seqs that are alive, in the order given."""
        if not len(self):
            return np.empty(0, dtype=np.int64)
        positions: Positions = np.minimum(np.searchsorted(self.seqs, seqs), len(self) - 1)
        here: Positions = positions[(self.seqs[positions] == seqs) & self._alive[positions]]
        return here

    def vectors(self, positions: Positions) -> Vectors:
        """Copies of rows: (N, dim) float32."""
        rows: Vectors = self._rows()[positions]
        return rows

    def blocks(self) -> Iterator[tuple[Seqs, Vectors]]:
        """The rows that are alive, in order, in blocks of about 4 MiB: seqs and vectors."""
        rows, step = self._rows(), self._block_rows()
        alive = np.flatnonzero(self.alive)
        for start in range(0, len(alive), step):
            block = alive[start : start + step]
            yield self._seqs[block], rows[block]

    def compacted(self) -> FlatIndex:
        """The same rows without the tombstones, in a new index."""
        smaller = FlatIndex(self.dim)
        for seqs, vectors in self.blocks():
            smaller.add(seqs, vectors)
        return smaller

    def search(
        self,
        queries: Vectors,
        *,
        k: int,
        among: Positions | None = None,
        without: Positions | None = None,
    ) -> list[Found]:
        """The k best rows of each query, best first, equal scores by seq.

        Gives exactly as many as there are, up to k.

        Args:
            queries: (Q, dim) float32, C-contiguous.
            k: At least 1.
            among: Positions that may be found, from `locate`, each once; None for all alive.
            without: Positions that are left out.
        """
        mask = self._mask(among, without)
        allowed = np.flatnonzero(mask)
        if len(allowed) <= max(_GATHERED, k + _SPARE):
            return [self._score_all(query, allowed, k) for query in queries]
        skipped = len(self) - len(allowed)
        masked = skipped > len(self) // 2 or (among is not None and skipped > _SKIPPED)
        chosen = mask if masked else None
        scores, positions = self._candidates(queries, k + _SPARE, chosen)
        found = []
        for row, query in enumerate(queries):
            near = (scores[row], positions[row])
            found.append(self._settle(query, near, k=k, allowed=allowed, mask=mask, chosen=chosen))
        return found

    def _mask(self, among: Positions | None, without: Positions | None) -> NDArray[np.bool_]:
        alive = self.alive
        if among is not None:
            mask = np.zeros(len(self), dtype=np.bool_)
            mask[among] = alive[among]
        else:
            mask = alive.copy()
        if without is not None:
            mask[without] = False
        return mask

    def _candidates(
        self, queries: Vectors, width: int, chosen: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.float32], Positions]:
        """FAISS's best rows of those chosen: (Q, n) scores and positions, -1 for none.

        Where none are chosen, the width grows by the share of tombstones.
        """
        with _tuned(len(queries), len(self), self.dim):
            if chosen is None:
                wide = min(len(self), width * len(self) // (len(self) - self._dead) + _SPARE)
                return _search(self._index)(queries, wide)  # type: ignore[no-any-return]
            bits = np.packbits(chosen, bitorder="little")
            # A fresh object for each call: FAISS writes into it while it searches.
            parameters = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bits))
            return _search(self._index)(queries, width, params=parameters)  # type: ignore[no-any-return]

    def _settle(
        self,
        query: NDArray[np.float32],
        near: tuple[NDArray[np.float32], Positions],
        *,
        k: int,
        allowed: Positions,
        mask: NDArray[np.bool_],
        chosen: NDArray[np.bool_] | None,
    ) -> Found:
        """Scores candidates exactly, and fetches more while one left out could belong to them."""
        width = k + _SPARE
        while True:
            scores, positions = near
            found = positions[(positions >= 0) & mask[positions]]
            if len(found) >= k:
                best = self._score_all(query, found, k)
                if len(found) == len(allowed) or scores[-1] + self._slack() < best[0][-1]:
                    return best
            width *= 4
            if width > min(_WIDEST, len(allowed)):
                return self._score_all(query, allowed, k)
            wider, places = self._candidates(query[None, :], width, chosen)
            near = (wider[0], places[0])

    def _score_all(self, query: NDArray[np.float32], positions: Positions, k: int) -> Found:
        """The k best of the positions: float32 finds who is near, float64 decides."""
        if len(positions) > k:
            rough = self._rough(query, positions)
            kth = np.partition(rough, len(rough) - k)[len(rough) - k]
            positions = positions[rough >= kth - 2 * self._slack()]
        rows, step = self._rows(), self._block_rows()
        scores = np.empty(len(positions), dtype=np.float64)
        for start in range(0, len(positions), step):
            block = positions[start : start + step]
            scores[start : start + step] = exact_scores(rows[block], query)
        seqs = self._seqs[positions]
        order = best_first(scores, seqs, k)
        return scores[order], seqs[order]

    def _rough(self, query: NDArray[np.float32], positions: Positions) -> NDArray[np.float32]:
        rows, step = self._rows(), self._block_rows()
        rough = np.empty(len(positions), dtype=np.float32)
        for start in range(0, len(positions), step):
            rough[start : start + step] = rows[positions[start : start + step]] @ query
        return rough

    def _slack(self) -> float:
        """More than two ways of adding up a cosine in float32 differ by."""
        return 1e-6 + 2e-7 * float(np.sqrt(self.dim))

    def _rows(self) -> Vectors:
        """FAISS's own memory as (N, dim) float32; valid until the next `add`."""
        if not len(self):
            return np.empty((0, self.dim), dtype=np.float32)
        numbers = faiss.rev_swig_ptr(self._index.get_xb(), len(self) * self.dim)
        rows: Vectors = numbers.reshape(len(self), self.dim)
        return rows

    def _block_rows(self) -> int:
        return max(1, _BLOCK_BYTES // (4 * self.dim))


def _search(index: Any) -> Any:
    """FAISS's own search.

    `faiss.contrib.torch_utils`, which pytorch-metric-learning imports, puts one without `params` in
    its place, for the whole process.
    """
    return getattr(index, "search_numpy", index.search)


@contextmanager
def _tuned(queries: int, rows: int, dim: int) -> Iterator[None]:
    """Has FAISS multiply matrices, on every core, where a batch is worth it.

    One query is faster without either. The threshold is one for the process: two threads that set
    it at once cost each other time, never correctness.
    """
    faiss.cvar.distance_compute_blas_threshold = _BATCH * (dim if _COUNTS_NUMBERS else 1)
    worth_it = queries >= _BATCH and queries * rows * dim >= _PARALLEL_WORK
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(os.cpu_count() or 1 if worth_it else 1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
