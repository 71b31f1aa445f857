"""Segments: rows and their vectors as searches see them, each score exact.

An index is two of them: sealed rows of a file, and rows added since, in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lookalike.cores import available_cores
from lookalike.records import Effort
from lookalike.store.base import Scores, Seqs, Vectors, best_first, exact_scores
from lookalike.store.local.index.policy import DEFAULT_LIMITS, Limits, faiss

if TYPE_CHECKING:
    from lookalike.store.local.index.approximate import ApproximateSegment

Positions = NDArray[np.int64]
"""Row numbers in a segment, (N,) int64."""

Mask = NDArray[np.bool_]
"""One truth value for each row of a segment, (N,) bool."""

Found = tuple[Scores, Seqs]
"""What one query finds: scores and seqs, best first, of equal length."""

_Near = tuple[NDArray[np.float32], Positions]
"""What FAISS found: (Q, n) scores, best first, and (Q, n) positions, -1 for none."""

_BATCH = 4  # from this many queries on, a matrix product and more threads pay
_MAX_THREADS = 8  # more wait for memory; every thread that leads a batch keeps as many
_max_threads: int | None = None
# Newer versions compare queries * dim with the threshold, older ones queries; see `threads_for`.
_COUNTS_NUMBERS = faiss.cvar.distance_compute_blas_threshold > 10_000
_MAX_CANDIDATES = 4096  # with more, scoring all rows is no slower
_BLOCK_BYTES = 4 * 2**20
_MIN_CAPACITY = 1024
_NO_MASK: Mask = np.empty(0, dtype=np.bool_)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows of a segment one search may find. Later changes do not alter it.

    Attributes:
        few: Their positions, if they are so few that each is scored; the masks are then empty.
        kept: The rows that may be found.
        alive: The rows that are no tombstones.
        filtered: True if the search named the rows that are allowed.
    """

    few: Positions | None
    kept: Mask
    alive: Mask
    filtered: bool = False


class ExactSegment:
    """Unit vectors under ascending seqs, searched exactly by inner product.

    Rows are appended. A removed row stays as a tombstone, because FAISS's own `remove_ids` cannot
    be trusted on every index type. Searches may run side by side; `add` and `remove` must run
    alone. FAISS's candidates are scored again in double precision, so that scores and the order of
    equal scores do not depend on how many queries were searched together.

    Args:
        dim: Numbers in a vector.
        vectors: Rows that are there already, (N, dim) float32, C-contiguous; for example a mapped
            file. The segment is then sealed: no row can be added.
        seqs: The seqs of these rows, (N,) int64, strictly ascending.
        limits: Sizes at which a search does something else.
    """

    def __init__(
        self,
        dim: int,
        vectors: Vectors | None = None,
        seqs: Seqs | None = None,
        *,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self.dim = dim
        self.limits = limits
        self.sealed = vectors is not None
        self.dead = 0
        self._vectors = np.empty((0, dim), np.float32) if vectors is None else vectors
        self._seqs = np.empty(0, np.int64) if seqs is None else seqs
        self._count = len(self._seqs)
        self._alive = np.ones(self._count, np.bool_)
        if self._vectors.shape != (self._count, dim):
            raise ValueError(f"{self._vectors.shape} does not fit ({self._count}, {dim})")

    @classmethod
    def map(
        cls, path: Path, dim: int, seqs: Seqs | None = None, *, limits: Limits = DEFAULT_LIMITS
    ) -> ExactSegment:
        """Maps a file of little-endian float32; the seqs are the positions unless given."""
        rows = path.stat().st_size // (4 * dim)
        vectors: Vectors = np.empty((0, dim), np.float32)
        if rows:  # an empty file cannot be mapped
            vectors = np.memmap(path, dtype="<f4", mode="r", shape=(rows, dim))
        return cls(dim, vectors, np.arange(rows) if seqs is None else seqs, limits=limits)

    def __len__(self) -> int:
        """Rows, tombstones included."""
        return self._count

    @property
    def bytes(self) -> int:
        """Memory of the vectors; those of a sealed segment are taken to be mapped."""
        return 0 if self.sealed else 4 * self.dim * self._count

    @property
    def mapped_bytes(self) -> int:
        """Bytes of a mapped file: read when needed, given back when memory is short."""
        return 4 * self.dim * self._count if self.sealed else 0

    @property
    def array(self) -> Vectors:
        """All rows, (N, dim) float32; valid until the next `add`. Read only."""
        return self._vectors[: self._count]

    @property
    def seqs(self) -> Seqs:
        """The seq of every row, tombstones included; ascending. Read only."""
        return self._seqs[: self._count]

    @property
    def alive(self) -> Mask:
        """Which rows are no tombstones. Read only."""
        return self._alive[: self._count]

    @property
    def last_seq(self) -> int:
        """The highest seq that was added; 0 if there is none."""
        return int(self._seqs[self._count - 1]) if self._count else 0

    def add(self, seqs: Seqs, vectors: Vectors) -> None:
        """Appends rows.

        Raises:
            TypeError: The segment is sealed.
            ValueError: The seqs do not ascend, or the shapes do not fit.
        """
        if self.sealed:
            raise TypeError("a sealed segment cannot grow")
        if vectors.shape != (len(seqs), self.dim):
            raise ValueError(f"{vectors.shape} does not fit ({len(seqs)}, {self.dim})")
        if np.any(np.diff(seqs, prepend=self.last_seq) <= 0):
            raise ValueError("seqs must ascend")
        start, end = self._count, self._count + len(seqs)
        if end > len(self._seqs):
            self._reserve(max(end, 2 * len(self._seqs), _MIN_CAPACITY))
        self._vectors[start:end] = vectors
        self._seqs[start:end] = seqs
        self._alive[start:end] = True
        self._count = end

    def _reserve(self, rows: int) -> None:
        """Makes room for so many rows; memory that no row was written to is not yet taken."""
        vectors = np.empty((rows, self.dim), np.float32)
        seqs, alive = np.zeros(rows, np.int64), np.zeros(rows, np.bool_)
        for new, old in ((vectors, self._vectors), (seqs, self._seqs), (alive, self._alive)):
            new[: self._count] = old[: self._count]
        self._vectors, self._seqs, self._alive = vectors, seqs, alive

    def remove(self, seqs: Seqs) -> None:
        """Makes tombstones of those rows that are alive."""
        positions = self.locate(seqs)
        self._alive[positions] = False
        self.dead += len(positions)

    def locate(self, seqs: Seqs) -> Positions:
        """The positions of those seqs that are alive, in the order given."""
        if not self._count:
            return np.empty(0, np.int64)
        positions: Positions = np.minimum(np.searchsorted(self.seqs, seqs), self._count - 1)
        found: Positions = positions[(self.seqs[positions] == seqs) & self._alive[positions]]
        return found

    def vectors(self, positions: Positions) -> Vectors:
        """Copies of rows: (N, dim) float32."""
        rows: Vectors = self._vectors[positions]
        return rows

    def blocks(self) -> Iterator[tuple[Seqs, Vectors]]:
        """Seqs and vectors of the rows that are alive, in order, in blocks of about 4 MiB."""
        for block in self._blocks(np.flatnonzero(self.alive)):
            yield self._seqs[block], self._vectors[block]

    def compacted(self) -> ExactSegment:
        """The rows that are alive, in a new segment."""
        smaller = ExactSegment(self.dim, limits=self.limits)
        for seqs, vectors in self.blocks():
            smaller.add(seqs, vectors)
        return smaller

    def search(
        self,
        queries: Vectors,
        *,
        k: int,
        allowed: Positions | None = None,
        excluded: Positions | None = None,
    ) -> list[Found]:
        """The k best rows of each query, best first, equal scores by seq.

        Returns k rows for each, or all if there are fewer.

        Args:
            queries: (Q, dim) float32, C-contiguous.
            k: At least 1.
            allowed: Positions that may be found, each once; None for all.
            excluded: Positions that are left out.
        """
        return self.search_selected(queries, self.select(allowed, excluded, k=k), k=k)

    def select(
        self, allowed: Positions | None = None, excluded: Positions | None = None, *, k: int
    ) -> Selection:
        """The rows that a search may find as of now; a change must not run meanwhile."""
        if allowed is not None and len(allowed) <= max(
            self.limits.scored_rows, k + self.limits.exact_spare
        ):
            allowed = allowed[self.alive[allowed]]
            if excluded is not None:
                allowed = np.setdiff1d(allowed, excluded, assume_unique=True)
            return Selection(allowed, _NO_MASK, _NO_MASK)
        alive = self.alive.copy()
        if allowed is None and excluded is None:
            return Selection(None, alive, alive)
        if allowed is None:
            kept = alive.copy()
        else:
            kept = np.zeros(self._count, np.bool_)
            kept[allowed] = alive[allowed]
        if excluded is not None:
            kept[excluded] = False
        return Selection(None, kept, alive, filtered=allowed is not None)

    def search_selected(self, queries: Vectors, selection: Selection, *, k: int) -> list[Found]:
        """The k best of the selected rows, see `search`.

        Rows of a sealed segment may be removed meanwhile; one that grows must not change.
        """
        if queries.shape[1] != self.dim:
            raise ValueError(f"queries have {queries.shape[1]} numbers: a mismatch with {self.dim}")
        if selection.few is not None:
            return [self.best(query, selection.few, k) for query in queries]
        kept = selection.kept
        rows = int(np.count_nonzero(kept))
        if rows <= max(self.limits.scored_rows, k + self.limits.exact_spare):
            allowed = np.flatnonzero(kept)
            return [self.best(query, allowed, k) for query in queries]
        skipped = len(kept) - rows
        masked = skipped > len(kept) // 2 or (
            selection.filtered and skipped > self.limits.exact_overfetched
        )
        mask = kept if masked else None
        near = self._nearest(queries, k + self.limits.exact_spare, rows, mask)
        return [
            self._complete(query, (scores, positions), kept, rows, mask, k=k)
            for query, scores, positions in zip(queries, *near, strict=True)
        ]

    def _nearest(self, queries: Vectors, width: int, rows: int, mask: Mask | None) -> _Near:
        """FAISS's best rows in the mask, if there is one; else more by the share of tombstones."""
        count = self._count
        if mask is None:
            width = min(count, width * count // max(1, rows) + self.limits.exact_spare)
        scores = np.empty((len(queries), width), np.float32)
        positions = np.empty((len(queries), width), np.int64)
        pointers = [faiss.swig_ptr(one) for one in (queries, self._vectors, scores, positions)]
        sizes = (self.dim, len(queries), count, width)
        chosen = None if mask is None else selector(mask)
        with threads_for(len(queries), count, self.dim, parallel_work=self.limits.parallel_work):
            faiss.knn_inner_product(*pointers[:2], *sizes, *pointers[2:], chosen)
        return scores, positions

    def _complete(
        self,
        query: NDArray[np.float32],
        near: _Near,
        kept: Mask,
        rows: int,
        mask: Mask | None,
        *,
        k: int,
    ) -> Found:
        """Scores candidates exactly; fetches more while a row beyond could be among the best."""
        width = k + self.limits.exact_spare
        while True:
            scores, positions = near
            found = positions[(positions >= 0) & kept[positions]]
            if len(found) >= k:
                best = self.best(query, found, k)
                if len(found) == rows or scores[-1] + self._rounding < best[0][-1]:
                    return best
            width *= 4
            if width > min(_MAX_CANDIDATES, rows):
                return self.best(query, np.flatnonzero(kept), k)
            wider = self._nearest(query[None, :], width, rows, mask)
            near = wider[0][0], wider[1][0]

    def best(self, query: NDArray[np.float32], positions: Positions, k: int) -> Found:
        """The k best of some rows, scored in double precision."""
        if len(positions) > k:
            rough = np.concatenate([self._vectors[b] @ query for b in self._blocks(positions)])
            kth = np.partition(rough, len(rough) - k)[len(rough) - k]
            positions = positions[rough >= kth - 2 * self._rounding]
        scores = np.empty(len(positions), np.float64)
        start = 0
        for block in self._blocks(positions):
            scores[start : start + len(block)] = exact_scores(self._vectors[block], query)
            start += len(block)
        seqs = self._seqs[positions]
        order = best_first(scores, seqs, k)
        return scores[order], seqs[order]

    def _blocks(self, positions: Positions) -> Iterator[Positions]:
        step = max(1, _BLOCK_BYTES // (4 * self.dim))
        return (positions[start : start + step] for start in range(0, len(positions), step))

    @property
    def _rounding(self) -> float:
        """More than two ways of adding up a cosine in float32 differ by."""
        return 1e-6 + 2e-7 * float(np.sqrt(self.dim))


def selector(chosen: NDArray[np.bool_]) -> Any:
    """FAISS's form of a mask over positions."""
    return faiss.IDSelectorBitmap(np.packbits(chosen, bitorder="little"))


@contextmanager
def threads_for(queries: int, rows: int, dim: int, *, parallel_work: int) -> Iterator[None]:
    """Lets FAISS multiply matrices, on every core, if a batch is worth it.

    One query is faster without either. FAISS has one threshold for the whole process: two threads
    that set it at once slow each other down, but never get a wrong answer.
    """
    faiss.cvar.distance_compute_blas_threshold = _BATCH * (dim if _COUNTS_NUMBERS else 1)
    parallel = queries >= _BATCH and queries * rows * dim >= parallel_work
    with threads(max_threads() if parallel else 1):
        yield


def use_at_most(count: int) -> None:
    """Limits the threads of every batch in this process."""
    global _max_threads  # noqa: PLW0603 - one for the process, as FAISS's own are
    _max_threads = count


def max_threads() -> int:
    """Threads that a batch may use: this process's cores, up to 8, or what `use_at_most` allows."""
    return min(_max_threads or available_cores(), _MAX_THREADS)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Sets the number of threads that FAISS uses for calls from this thread."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


@dataclass(frozen=True, slots=True)
class PreparedSearch:
    """A search that is half done: the rest may run while rows are added and removed."""

    selection: Selection
    growing: list[Found]


class Segments:
    """A sealed segment and a growing one, searched as one.

    Positions count through the sealed rows first. Searches may run side by side; `add` and `remove`
    must run alone.
    """

    def __init__(
        self,
        sealed: ExactSegment,
        *,
        approximate: ApproximateSegment | None = None,
        growing: ExactSegment | None = None,
        built_with: Mapping[str, Any] | None = None,
    ) -> None:
        self.sealed = sealed
        self.approximate = approximate
        if growing is None:
            growing = ExactSegment(sealed.dim, limits=sealed.limits)
        self.growing = growing
        self.built_with = built_with
        self.dim = sealed.dim

    def __len__(self) -> int:
        """Rows, tombstones included."""
        return len(self.sealed) + len(self.growing)

    @property
    def dead(self) -> int:
        """Tombstones."""
        return self.sealed.dead + self.growing.dead

    @property
    def live_rows(self) -> int:
        """Rows that are no tombstones."""
        return len(self) - self.dead

    @property
    def seqs(self) -> Seqs:
        """The seq of every row, tombstones included; ascending."""
        return np.concatenate([self.sealed.seqs, self.growing.seqs])

    @property
    def alive(self) -> Mask:
        """Which rows are no tombstones."""
        return np.concatenate([self.sealed.alive, self.growing.alive])

    @property
    def last_seq(self) -> int:
        """The highest seq that was added; 0 if there is none."""
        return self.growing.last_seq or self.sealed.last_seq

    @property
    def factory(self) -> str | None:
        """The factory string of the sealed part; None if it is exact."""
        return self.approximate.candidates.factory if self.approximate else None

    @property
    def built_recall(self) -> float | None:
        """The recall that the approximate index was built for; None if unknown."""
        return float(self.built_with["recall"]) if self.built_with else None

    @property
    def bytes(self) -> int:
        """Memory, without what is mapped."""
        candidates = self.approximate.candidates.bytes if self.approximate else 0
        return self.growing.bytes + candidates

    @property
    def mapped_bytes(self) -> int:
        """Bytes of mapped files."""
        candidates = self.approximate.candidates.mapped_bytes if self.approximate else 0
        return self.sealed.mapped_bytes + candidates

    def add(self, seqs: Seqs, vectors: Vectors) -> None:
        """Appends rows to the growing segment, see `ExactSegment.add`."""
        if len(seqs) and seqs[0] <= self.sealed.last_seq:
            raise ValueError("seqs must ascend")
        self.growing.add(seqs, vectors)

    def remove(self, seqs: Seqs) -> None:
        """Makes tombstones of those rows that are alive."""
        self.sealed.remove(seqs)
        self.growing.remove(seqs)

    def locate(self, seqs: Seqs) -> Positions:
        """The positions of those seqs that are alive, the sealed ones first."""
        later = self.growing.locate(seqs) + len(self.sealed)
        return np.concatenate([self.sealed.locate(seqs), later])

    def vectors(self, positions: Positions) -> Vectors:
        """Copies of rows: (N, dim) float32."""
        sealed, growing = self._split(positions)
        rows = np.empty((len(positions), self.dim), np.float32)
        rows[positions < len(self.sealed)] = self.sealed.vectors(sealed)
        rows[positions >= len(self.sealed)] = self.growing.vectors(growing)
        return rows

    def blocks(self) -> Iterator[tuple[Seqs, Vectors]]:
        """Seqs and vectors of the rows that are alive, in order, in blocks of about 4 MiB."""
        yield from self.sealed.blocks()
        yield from self.growing.blocks()

    def prepare(
        self, queries: Vectors, allowed: Positions | None, excluded: Positions | None, *, k: int
    ) -> PreparedSearch:
        """Does the part of a search that changes must not run beside."""
        parts = [
            (None, None) if positions is None else self._split(positions)
            for positions in (allowed, excluded)
        ]
        selection = self.sealed.select(parts[0][0], parts[1][0], k=k)
        growing = self.growing.search(queries, k=k, allowed=parts[0][1], excluded=parts[1][1])
        return PreparedSearch(selection, growing)

    def finish(
        self, queries: Vectors, prepared: PreparedSearch, *, k: int, effort: Effort
    ) -> list[Found]:
        """Does the rest: the k best of both segments for each query, best first."""
        if not len(self.sealed):
            return prepared.growing
        if self.approximate is None:
            found = self.sealed.search_selected(queries, prepared.selection, k=k)
        else:
            found = self.approximate.search_selected(
                queries, prepared.selection, k=k, effort=effort
            )
        return [_merged(*both, k) for both in zip(found, prepared.growing, strict=True)]

    def _split(self, positions: Positions) -> tuple[Positions, Positions]:
        """Positions in the sealed segment, and positions in the growing one."""
        border = len(self.sealed)
        if not border:
            return positions[:0], positions
        sealed = positions < border
        return positions[sealed], positions[~sealed] - border


def in_memory(growing: ExactSegment) -> Segments:
    """An index of growing rows alone."""
    return Segments(ExactSegment(growing.dim, limits=growing.limits), growing=growing)


def _merged(sealed: Found, growing: Found, k: int) -> Found:
    """The k best of both parts."""
    scores, seqs = (np.concatenate(part) for part in zip(sealed, growing, strict=True))
    order = best_first(scores, seqs, k)
    return scores[order], seqs[order]
