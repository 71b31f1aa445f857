"""Exact search: every row is scored, in double precision where it matters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from lookalike.store.effort import Effort
from lookalike.store.local.index.flat_rows import FlatRows, MemoryRows, Near, Positions
from lookalike.store.vectors import Scores, Seqs, Vectors, best_first, exact_scores

Found = tuple[Scores, Seqs]
"""What one query finds: scores and seqs, best first, of equal length."""

_SPARE = 16  # fetched beyond k, so that ties at the k-th place show
_WIDEST = 4096  # beyond this many candidates, scoring all rows is no slower
_GATHERED = 2048  # up to this many rows are scored without FAISS
_SKIPPED = 256  # more rows than these ruled out by `among` are masked, not over-fetched
_BLOCK_BYTES = 4 * 2**20


class FlatIndex:
    """Exact search by inner product over unit vectors.

    Rows are appended under ascending seqs; a removed row stays as a tombstone, because FAISS's own
    `remove_ids` cannot be trusted on every index type. Searches may run side by side; `add` and
    `remove` must run alone. What FAISS finds is scored again in double precision, so that scores
    and the order of ties do not depend on how many queries came together.

    Args:
        dim: Numbers in a vector.
        rows: Where the vectors are; in memory unless given.
        seqs: The seqs of the rows that are there already: (N,) int64, strictly ascending.

    Attributes:
        dim: Numbers in a vector.
    """

    def __init__(self, dim: int, rows: FlatRows | None = None, seqs: Seqs | None = None) -> None:
        self.dim = dim
        self._rows = MemoryRows(dim) if rows is None else rows
        self._seqs = np.empty(0, dtype=np.int64) if seqs is None else seqs
        self._alive = np.ones(len(self._seqs), dtype=np.bool_)
        self._count = len(self._seqs)
        self._dead = 0
        if self._rows.array.shape != (self._count, dim):
            raise ValueError(f"{self._rows.array.shape} does not fit ({self._count}, {dim})")

    def __len__(self) -> int:
        """Rows, tombstones included."""
        return self._count

    @property
    def bytes(self) -> int:
        """Memory that the vectors take; those of a mapped file take none."""
        return self._rows.bytes

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

    @property
    def mapped_bytes(self) -> int:
        """What of a file is mapped: read when needed, given back when memory is short."""
        return 4 * self.dim * len(self) - self._rows.bytes

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
        self._rows.add(vectors)
        self._count = end

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
        rows: Vectors = self._rows.array[positions]
        return rows

    def blocks(self) -> Iterator[tuple[Seqs, Vectors]]:
        """The rows that are alive, in order, in blocks of about 4 MiB: seqs and vectors."""
        rows, step = self._rows.array, self._block_rows()
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
        return self.begin_search(queries, k=k, among=among, without=without)()

    def begin_search(
        self,
        queries: Vectors,
        *,
        k: int,
        among: Positions | None = None,
        without: Positions | None = None,
        effort: Effort | None = None,  # noqa: ARG002 - always exact
    ) -> Callable[[], list[Found]]:
        """Does what changes must not come between, and gives the rest, which they may.

        Rows of a mapped file never change but for their tombstones, which are copied here; so a
        long search of them keeps no change waiting. Others are searched at once.
        """
        few = self.few(among, without, k=k)
        if few is not None:
            finish = partial(self.all_of, queries, few, k=k)
        else:
            kept, picked = self.mask(among, without), among is not None
            finish = partial(self.search_kept, queries, k=k, kept=kept, picked=picked)
        if self._rows.fixed:
            return finish
        found = finish()
        return lambda: found

    def few(
        self, among: Positions | None, without: Positions | None, *, k: int
    ) -> Positions | None:
        """The rows that may be found, where they are picked and so few that all are scored."""
        if among is None or len(among) > max(_GATHERED, k + _SPARE):
            return None
        return among if without is None else np.setdiff1d(among, without, assume_unique=True)

    def all_of(self, queries: Vectors, positions: Positions, *, k: int) -> list[Found]:
        """The k best of these rows for each query, all of them scored."""
        return [self.best_of(query, positions, k) for query in queries]

    def search_kept(
        self, queries: Vectors, *, k: int, kept: NDArray[np.bool_], picked: bool
    ) -> list[Found]:
        """The k best of some rows, see `search`.

        Args:
            queries: (Q, dim) float32, C-contiguous.
            k: At least 1.
            kept: Which rows may be found, from `mask`.
            picked: Whether `among` was given.
        """
        allowed = np.flatnonzero(kept)
        if len(allowed) <= max(_GATHERED, k + _SPARE):
            return self.all_of(queries, allowed, k=k)
        skipped = len(self) - len(allowed)
        masked = skipped > len(self) // 2 or (picked and skipped > _SKIPPED)
        chosen = kept if masked else None
        scores, positions = self._candidates(queries, k + _SPARE, chosen)
        found = []
        for row, query in enumerate(queries):
            near = (scores[row], positions[row])
            found.append(self._settle(query, near, k=k, allowed=allowed, mask=kept, chosen=chosen))
        return found

    def mask(self, among: Positions | None, without: Positions | None) -> NDArray[np.bool_]:
        """Which rows are alive, of those in `among` and not in `without`: a new (N,) bool."""
        alive = self.alive
        if among is not None:
            mask = np.zeros(len(self), dtype=np.bool_)
            mask[among] = alive[among]
        else:
            mask = alive.copy()
        if without is not None:
            mask[without] = False
        return mask

    def _candidates(self, queries: Vectors, width: int, chosen: NDArray[np.bool_] | None) -> Near:
        """FAISS's best rows of those chosen: (Q, n) scores and positions, -1 for none.

        Where none are chosen, the width grows by the share of tombstones.
        """
        if chosen is None:
            wide = min(len(self), width * len(self) // max(1, len(self) - self._dead) + _SPARE)
            return self._rows.nearest(queries, wide)
        return self._rows.nearest(queries, width, chosen)

    def _settle(
        self,
        query: NDArray[np.float32],
        near: Near,
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
                best = self.best_of(query, found, k)
                if len(found) == len(allowed) or scores[-1] + self._slack() < best[0][-1]:
                    return best
            width *= 4
            if width > min(_WIDEST, len(allowed)):
                return self.best_of(query, allowed, k)
            wider, places = self._candidates(query[None, :], width, chosen)
            near = (wider[0], places[0])

    def best_of(self, query: NDArray[np.float32], positions: Positions, k: int) -> Found:
        """The k best of some rows, scored in double precision.

        Args:
            query: (dim,) float32.
            positions: Rows that are alive, each once; in any order.
            k: At least 1.
        """
        if len(positions) > k:
            rough = self._rough(query, positions)
            kth = np.partition(rough, len(rough) - k)[len(rough) - k]
            positions = positions[rough >= kth - 2 * self._slack()]
        rows, step = self._rows.array, self._block_rows()
        scores = np.empty(len(positions), dtype=np.float64)
        for start in range(0, len(positions), step):
            block = positions[start : start + step]
            scores[start : start + step] = exact_scores(rows[block], query)
        seqs = self._seqs[positions]
        order = best_first(scores, seqs, k)
        return scores[order], seqs[order]

    def _rough(self, query: NDArray[np.float32], positions: Positions) -> NDArray[np.float32]:
        rows, step = self._rows.array, self._block_rows()
        rough = np.empty(len(positions), dtype=np.float32)
        for start in range(0, len(positions), step):
            rough[start : start + step] = rows[positions[start : start + step]] @ query
        return rough

    def _slack(self) -> float:
        """More than two ways of adding up a cosine in float32 differ by."""
        return 1e-6 + 2e-7 * float(np.sqrt(self.dim))

    def _block_rows(self) -> int:
        return max(1, _BLOCK_BYTES // (4 * self.dim))
