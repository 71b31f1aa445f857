"""Segments: rows and their vectors as searches see them, each score exact.

An index is two of them: sealed rows of a file, and rows added since, in memory. Neither ever
changes, so searches need no lock: adding and removing rows gives new segments that share memory.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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

# What FAISS found: (Q, n) scores, best first, and (Q, n) positions, -1 for none.
_Near = tuple[NDArray[np.float32], Positions]

_BATCH = 4  # from this many queries on, a matrix product and more threads pay
_MAX_THREADS = 8  # more wait for memory; every thread that leads a batch keeps as many
_max_threads: int | None = None
# Newer versions compare queries * dim with the threshold, older ones queries.
_COUNTS_NUMBERS = faiss.cvar.distance_compute_blas_threshold > 10_000
_MAX_CANDIDATES = 4096  # with more, scoring all rows is no slower
_BLOCK_BYTES = 4 * 2**20
_MIN_CAPACITY = 1024


@dataclass(slots=True, eq=False)
class _Room:
    """Memory for rows, allocated ahead; segments that grew from one another share it."""

    vectors: Vectors
    seqs: Seqs
    used: int = 0


def map_vectors(path: Path, dim: int) -> Vectors:
    """Maps a file of little-endian float32 as (N, dim)."""
    rows = path.stat().st_size // (4 * dim)
    if not rows:  # an empty file cannot be mapped
        return np.empty((0, dim), np.float32)
    return np.memmap(path, dtype="<f4", mode="r", shape=(rows, dim))


def watch(*paths: Path) -> list[mmap.mmap]:
    """Maps files, to see later whether they were cut; takes no memory."""
    found = []
    for path in paths:
        with path.open("rb") as file:
            found.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return found


class ExactSegment:
    """Unit vectors under ascending seqs, searched exactly by inner product.

    A removed row stays as a tombstone, because FAISS's own `remove_ids` cannot be trusted on every
    index type. FAISS's candidates are scored again in double precision, so that scores and the
    order of equal scores do not depend on how many queries were searched together.

    Rows are (N, dim) float32, C-contiguous, their seqs (N,) int64 and strictly ascending. If they
    lie in a room, others can be added in place.
    """

    def __init__(
        self,
        dim: int,
        vectors: Vectors | None = None,
        seqs: Seqs | None = None,
        *,
        alive: Mask | None = None,
        room: _Room | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self.dim = dim
        self.limits = limits
        self.vectors = np.empty((0, dim), np.float32) if vectors is None else vectors
        self.seqs = np.empty(0, np.int64) if seqs is None else seqs
        self.alive = np.ones(len(self.seqs), np.bool_) if alive is None else alive
        self.dead = len(self.alive) - int(np.count_nonzero(self.alive))
        self._room = room
        if self.vectors.shape != (len(self.seqs), dim):
            raise ValueError(f"{self.vectors.shape} does not fit ({len(self.seqs)}, {dim})")

    def __len__(self) -> int:
        """Rows, tombstones included."""
        return len(self.seqs)

    @property
    def last_seq(self) -> int:
        """The highest seq that was added; 0 if there is none."""
        return int(self.seqs[-1]) if len(self) else 0

    def added(self, seqs: Seqs, vectors: Vectors) -> ExactSegment:
        """These rows and more. Raises ValueError if seqs do not ascend or shapes do not fit."""
        if vectors.shape != (len(seqs), self.dim):
            raise ValueError(f"{vectors.shape} does not fit ({len(seqs)}, {self.dim})")
        if np.any(np.diff(seqs, prepend=self.last_seq) <= 0):
            raise ValueError("seqs must ascend")
        if not len(seqs):
            return self
        start, end = len(self), len(self) + len(seqs)
        room = self._room
        if room is None or room.used != start or end > len(room.seqs):
            # Memory that no row was written to is not yet taken.
            size = max(end, 2 * start, _MIN_CAPACITY)
            room = _Room(np.empty((size, self.dim), np.float32), np.empty(size, np.int64))
            room.vectors[:start], room.seqs[:start] = self.vectors, self.seqs
        room.vectors[start:end], room.seqs[start:end], room.used = vectors, seqs, end
        alive = np.concatenate([self.alive, np.ones(len(seqs), np.bool_)])
        rows, named = room.vectors[:end], room.seqs[:end]
        return ExactSegment(self.dim, rows, named, alive=alive, room=room, limits=self.limits)

    def removed(self, seqs: Seqs) -> ExactSegment:
        """These rows, those that have one of the seqs as tombstones."""
        positions = self.locate(seqs)
        if not len(positions):
            return self
        alive = self.alive.copy()
        alive[positions] = False
        rows, named, room = self.vectors, self.seqs, self._room
        return ExactSegment(self.dim, rows, named, alive=alive, room=room, limits=self.limits)

    def locate(self, seqs: Seqs) -> Positions:
        """The positions of those seqs that are alive, in the order given."""
        if not len(self):
            return np.empty(0, np.int64)
        positions: Positions = np.minimum(np.searchsorted(self.seqs, seqs), len(self) - 1)
        found: Positions = positions[(self.seqs[positions] == seqs) & self.alive[positions]]
        return found

    def blocks(self) -> Iterator[tuple[Seqs, Vectors]]:
        """Seqs and vectors of the rows that are alive, in order, in blocks of about 4 MiB."""
        for block in self._blocks(np.flatnonzero(self.alive)):
            yield self.seqs[block], self.vectors[block]

    def compacted(self) -> ExactSegment:
        """The rows that are alive, in a new segment."""
        smaller = ExactSegment(self.dim, limits=self.limits)
        for seqs, vectors in self.blocks():
            smaller = smaller.added(seqs, vectors)
        return smaller

    def search(
        self,
        queries: Vectors,
        *,
        k: int,
        allowed: Positions | None = None,
        excluded: Positions | None = None,
    ) -> list[Found]:
        """The k best rows of each query, best first, equal scores by seq; all if there are fewer.

        Queries are (Q, dim) float32, C-contiguous. Allowed positions are each given once; None
        allows all.
        """
        if allowed is None or len(allowed) > self._few(k):
            return self.search_kept(queries, self.kept(allowed, excluded), k=k)
        positions = allowed[self.alive[allowed]]  # without a mask over all rows
        if excluded is not None:
            positions = positions[~np.isin(positions, excluded)]
        return [self.best(query, positions, k) for query in queries]

    def _few(self, k: int) -> int:
        """How many rows are scored one by one, without FAISS."""
        return max(self.limits.scored_rows, k + self.limits.exact_spare)

    def kept(self, allowed: Positions | None, excluded: Positions | None) -> Mask:
        """The rows that a search may find."""
        if allowed is None and excluded is None:
            return self.alive
        kept = self.alive.copy()
        if allowed is not None:
            kept[:] = False
            kept[allowed] = self.alive[allowed]
        if excluded is not None:
            kept[excluded] = False
        return kept

    def search_kept(self, queries: Vectors, kept: Mask, *, k: int) -> list[Found]:
        """The k best of the rows in a mask, which holds no tombstones; see `search`."""
        if queries.shape[1] != self.dim:
            raise ValueError(f"queries have {queries.shape[1]} numbers: a mismatch with {self.dim}")
        rows = int(np.count_nonzero(kept))
        if rows <= self._few(k):
            positions = np.flatnonzero(kept)
            return [self.best(query, positions, k) for query in queries]
        skipped = len(self) - rows
        filtered = skipped - self.dead > self.limits.exact_overfetched
        mask = kept if filtered or skipped > len(self) // 2 else None
        near = self._nearest(queries, k + self.limits.exact_spare, rows, mask)
        return [
            self._complete(query, (scores, positions), kept, rows, mask, k=k)
            for query, scores, positions in zip(queries, *near, strict=True)
        ]

    def _nearest(self, queries: Vectors, width: int, rows: int, mask: Mask | None) -> _Near:
        """FAISS's best rows in the mask, if there is one; else more by the share of tombstones."""
        count = len(self)
        if mask is None:
            width = min(count, width * count // max(1, rows) + self.limits.exact_spare)
        scores = np.empty((len(queries), width), np.float32)
        positions = np.empty((len(queries), width), np.int64)
        pointers = [faiss.swig_ptr(one) for one in (queries, self.vectors, scores, positions)]
        sizes = (self.dim, len(queries), count, width)
        chosen = None if mask is None else selector(mask)
        # One query is faster on one core and without a matrix product. FAISS has one threshold for
        # the process: two threads that set it at once slow each other down, but are never wrong.
        faiss.cvar.distance_compute_blas_threshold = _BATCH * (self.dim if _COUNTS_NUMBERS else 1)
        work = len(queries) * count * self.dim
        parallel = len(queries) >= _BATCH and work >= self.limits.parallel_work
        with threads(max_threads() if parallel else 1):
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
            rough = np.concatenate([self.vectors[b] @ query for b in self._blocks(positions)])
            kth = np.partition(rough, len(rough) - k)[len(rough) - k]
            positions = positions[rough >= kth - 2 * self._rounding]
        scores = np.empty(len(positions), np.float64)
        start = 0
        for block in self._blocks(positions):
            scores[start : start + len(block)] = exact_scores(self.vectors[block], query)
            start += len(block)
        seqs = self.seqs[positions]
        order = best_first(scores, seqs, k)
        return scores[order], seqs[order]

    def _blocks(self, positions: Positions) -> Iterator[Positions]:
        step = max(1, _BLOCK_BYTES // (4 * self.dim))
        return (positions[start : start + step] for start in range(0, len(positions), step))

    @property
    def _rounding(self) -> float:
        """An upper bound on how much two summation orders of a float32 cosine differ."""
        return 1e-6 + 2e-7 * float(np.sqrt(self.dim))


def selector(chosen: Mask) -> Any:
    """FAISS's form of a mask over positions."""
    return faiss.IDSelectorBitmap(np.packbits(chosen, bitorder="little"))


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


@dataclass(frozen=True)
class Segments:
    """A sealed segment and a growing one, searched as one."""

    sealed: ExactSegment
    growing: ExactSegment  # rows added since the sealed ones were built, or all rows
    approximate: ApproximateSegment | None = None  # of the sealed rows
    built_with: Mapping[str, Any] | None = None  # the settings of the approximate index, if known
    watched: Sequence[mmap.mmap] = ()  # maps of its files once more, which say how long these are

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
    def live_seqs(self) -> Seqs:
        """The seq of every row that is no tombstone, ascending."""
        return np.concatenate([part.seqs[part.alive] for part in (self.sealed, self.growing)])

    @property
    def last_seq(self) -> int:
        """The highest seq that was added; 0 if there is none."""
        return self.growing.last_seq or self.sealed.last_seq

    @property
    def factory(self) -> str | None:
        """The factory string of the sealed part; None if it is exact."""
        return self.approximate.candidates.factory if self.approximate else None

    @property
    def is_cut(self) -> bool:
        """True if a mapped file was cut: the system kills a process that reads beyond the end."""
        return any(one.size() < len(one) for one in self.watched)

    @property
    def bytes(self) -> int:
        """Memory, without what is mapped."""
        candidates = self.approximate.candidates.bytes if self.approximate else 0
        return self.growing.vectors.nbytes + candidates

    @property
    def mapped_bytes(self) -> int:
        """Bytes of mapped files."""
        candidates = self.approximate.candidates.mapped_bytes if self.approximate else 0
        return self.sealed.vectors.nbytes + candidates

    def added(self, seqs: Seqs, vectors: Vectors) -> Segments:
        """The index with more rows behind its last one, see `ExactSegment.added`."""
        if len(seqs) and seqs[0] <= self.sealed.last_seq:
            raise ValueError("seqs must ascend")
        return replace(self, growing=self.growing.added(seqs, vectors))

    def removed(self, seqs: Seqs) -> Segments:
        """The index with the rows of some seqs as tombstones."""
        sealed, growing = self.sealed.removed(seqs), self.growing.removed(seqs)
        approximate = self.approximate and replace(self.approximate, exact=sealed)
        return replace(self, sealed=sealed, growing=growing, approximate=approximate)

    def blocks(self) -> Iterator[tuple[Seqs, Vectors]]:
        """Seqs and vectors of the rows that are alive, in order, in blocks of about 4 MiB."""
        yield from self.sealed.blocks()
        yield from self.growing.blocks()

    def search(
        self,
        queries: Vectors,
        *,
        k: int,
        allowed: Seqs | None = None,
        excluded: Seqs | None = None,
        effort: Effort | None = None,
    ) -> list[Found] | None:
        """The k best rows of each query; None if `allowed` or `excluded` names a seq not here."""
        both = {"allowed": allowed, "excluded": excluded}
        named = {name: seqs for name, seqs in both.items() if seqs is not None}
        sealed = {name: self.sealed.locate(seqs) for name, seqs in named.items()}
        growing = {name: self.growing.locate(seqs) for name, seqs in named.items()}
        if any(len(sealed[name]) + len(growing[name]) != len(named[name]) for name in named):
            return None
        added = self.growing.search(queries, k=k, **growing)
        if not len(self.sealed):
            return added
        if self.approximate:
            found = self.approximate.search(queries, k=k, effort=effort, **sealed)
        else:
            found = self.sealed.search(queries, k=k, **sealed)
        return [_merged(*both, k) for both in zip(found, added, strict=True)]


def in_memory(growing: ExactSegment) -> Segments:
    """An index of growing rows alone."""
    return Segments(ExactSegment(growing.dim, limits=growing.limits), growing)


def _merged(sealed: Found, growing: Found, k: int) -> Found:
    """The k best of both parts."""
    scores, seqs = (np.concatenate(part) for part in zip(sealed, growing, strict=True))
    order = best_first(scores, seqs, k)
    return scores[order], seqs[order]
