"""Approximate search: candidates from FAISS, scores from the vectors themselves."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from lookalike.store.effort import Effort
from lookalike.store.local.index.ann import Ann
from lookalike.store.local.index.ann_build import Progress, build_ann
from lookalike.store.local.index.calibration import DEFAULT_RECALL, Calibration, Level, calibrate
from lookalike.store.local.index.flat_index import FlatIndex, Found
from lookalike.store.local.index.flat_rows import MappedRows, Positions
from lookalike.store.vectors import Vectors

_SPARE = 16  # candidates beyond k, so that ties at the k-th place show
_SKIPPED = 64  # so many rows that must not be found are over-fetched
_MANY = 20_000  # rows; of fewer any search is fast
_WIDE = 5  # a fifth of the rows as candidates, gathered and sorted, is slower than all in order
_ROOM = 2  # how many more of the nearest are looked at than must hold the matches of a part
_DEEPER = 4
_TRIED = 0.2  # of the cost of scoring all that may be found, before that is done


@dataclass(frozen=True, slots=True)
class _Look:
    """One look for matches among the nearest rows of all.

    Attributes:
        depth: So many of the nearest must hold k that may be found.
        width: Candidates to ask for.
        effort: How hard, so that nearly all of the nearest are among the candidates.
        ms: Milliseconds that it is expected to take, with the looks before it.
    """

    depth: int
    width: int
    effort: Effort
    ms: float


class AnnIndex:
    """Rows in a file, an approximate index of them, and what finds which recall.

    Rows can be removed, none can be added. Every score is exact; only which rows are scored is not.

    Args:
        exact: The rows, in a mapped file.
        ann: Built of the same rows.
        calibration: Measured on them.
    """

    def __init__(self, exact: FlatIndex, ann: Ann, calibration: Calibration) -> None:
        if len(exact) != len(ann):
            raise ValueError(f"{len(ann)} rows are indexed, of {len(exact)}")
        self.exact = exact
        self.ann = ann
        self.calibration = calibration

    @classmethod
    def build(
        cls,
        factory: str,
        vectors: Vectors,
        *,
        threads: int = 1,
        seed: int = 0,
        recall: float = DEFAULT_RECALL,
        on_progress: Progress | None = None,
    ) -> AnnIndex:
        """Builds and calibrates; seqs are positions.

        Args:
            factory: A factory string of FAISS, see `check_index_type`.
            vectors: (N, dim) float32 unit vectors, C-contiguous; may be a mapped file.
            threads: Cores that it may take.
            seed: Chooses what it is trained and calibrated on.
            recall: Share of the true matches that its parameters are to find.
            on_progress: Told how far it is.

        Raises:
            RuntimeError: FAISS cannot build this type of these vectors.
        """
        seqs = np.arange(len(vectors), dtype=np.int64)
        exact = FlatIndex(vectors.shape[1], MappedRows(vectors), seqs)
        ann = build_ann(factory, vectors, threads_used=threads, seed=seed, on_progress=on_progress)
        measured = calibrate(exact, ann, recall=recall, seed=seed, on_progress=on_progress)
        return cls(exact, ann, measured)

    def __len__(self) -> int:
        """Rows, tombstones included."""
        return len(self.exact)

    @property
    def bytes(self) -> int:
        """Memory that it takes beyond what is mapped."""
        return self.exact.bytes + self.ann.bytes

    @property
    def mapped_bytes(self) -> int:
        """What of files is mapped: read when needed, given back when memory is short."""
        return 4 * self.exact.dim * len(self.exact) + self.ann.mapped_bytes

    def search(
        self,
        queries: Vectors,
        *,
        k: int,
        among: Positions | None = None,
        without: Positions | None = None,
        effort: Effort | None = None,
    ) -> list[Found]:
        """The k best rows of each query that it finds, best first, equal scores by seq.

        Gives exactly as many as there are, up to k: where too few candidates pass, it looks
        harder, and scores all rows in the end.

        Args:
            queries: (Q, dim) float32, C-contiguous.
            k: At least 1.
            among: Positions that may be found, each once; None for all alive.
            without: Positions that are left out.
            effort: Go before what was calibrated.
        """
        return self.begin_search(queries, k=k, among=among, without=without, effort=effort)()

    def begin_search(
        self,
        queries: Vectors,
        *,
        k: int,
        among: Positions | None = None,
        without: Positions | None = None,
        effort: Effort | None = None,
    ) -> Callable[[], list[Found]]:
        """Does what changes must not come between, see `FlatIndex.begin_search`."""
        few = self.exact.few(among, without, k=k)
        if few is not None:
            return partial(self.exact.all_of, queries, few, k=k)
        return partial(
            self.search_kept,
            queries,
            k=k,
            kept=self.exact.mask(among, without),
            alive=self.exact.alive.copy(),
            picked=among is not None,
            effort=effort,
        )

    def search_kept(
        self,
        queries: Vectors,
        *,
        k: int,
        kept: NDArray[np.bool_],
        alive: NDArray[np.bool_],
        picked: bool,
        effort: Effort | None = None,
    ) -> list[Found]:
        """The k best of some rows that it finds, see `search`; rows may be removed meanwhile.

        Args:
            queries: (Q, dim) float32, C-contiguous.
            k: At least 1.
            kept: Which rows may be found, from `FlatIndex.mask`.
            alive: Which rows were alive then: (N,) bool.
            picked: Whether `among` was given.
            effort: Go before what was calibrated.
        """
        asked = effort or Effort()
        there, dead = int(np.count_nonzero(kept)), len(alive) - int(np.count_nonzero(alive))
        # Where most rows are gone, what is left lies far from where it was calibrated.
        hides = _SKIPPED < dead <= len(self) // 2 and self.ann.takes_selectors
        hidden = alive if hides else None
        ruled_out = len(self) - there - (dead if hides else 0)
        look = self._first_look(k, ruled_out, there, asked)
        if asked.exact or look is None:
            return self.exact.search_kept(queries, k=k, kept=kept, picked=picked)
        near = self.ann.nearest(queries, look.width, look.effort, hidden)
        return [
            self._settle(query, row, look, k=min(k, there), kept=kept, hidden=hidden)
            for query, row in zip(queries, near, strict=True)
        ]

    def _first_look(self, k: int, ruled_out: int, there: int, asked: Effort) -> _Look | None:
        """How to begin; None where scoring all that may be found costs little more.

        Args:
            k: Matches wanted.
            ruled_out: Rows that must not be found and that FAISS finds all the same.
            there: Rows that may be found.
            asked: Parameters of the request or by setting.
        """
        if there <= k + _SPARE:
            return None
        if ruled_out <= _SKIPPED:
            level = self.calibration.for_k(k)
            effort = asked.over(level.effort)
            width = _width(k, asked, level) + _SPARE + ruled_out
            if self._wide(width, asked):
                return None
            return _Look(width, width, effort, level.ms)
        # The k best of a part are, with room to spare, among so many more of the whole.
        depth = math.ceil(_ROOM * k * (there + ruled_out) / there)
        return self._affordable(depth, asked, spent=0.0, there=there)

    def _wide(self, width: int, asked: Effort) -> bool:
        """Whether what a request asks for costs more than exact search."""
        looked_at = [width] if asked.k_factor is not None else []
        if asked.ef_search is not None and self.ann.knob == "ef_search":
            looked_at.append(asked.ef_search)
        return len(self) >= _MANY and max(looked_at, default=0) > len(self) // _WIDE

    def _affordable(self, depth: int, asked: Effort, *, spent: float, there: int) -> _Look | None:
        """A look for a part of the rows, while all looks together cost little beside exactness."""
        level = self.calibration.for_k(depth)
        ms = spent + level.ms
        if ms > _TRIED * there * self.calibration.row_ms:
            return None
        effort = asked.over(level.effort)
        return _Look(depth, _width(depth, asked, level), effort, ms)

    def _settle(
        self,
        query: NDArray[np.float32],
        near: Positions,
        look: _Look,
        *,
        k: int,
        kept: NDArray[np.bool_],
        hidden: NDArray[np.bool_] | None,
    ) -> Found:
        """Scores the candidates that may be found; where they are too few, looks deeper."""
        while True:
            near = near[near >= 0]
            if np.count_nonzero(kept[near[: look.depth]]) >= k:
                return self.exact.best_of(query, near[kept[near]], k)
            deeper = self._deeper(look, there=int(np.count_nonzero(kept)))
            if deeper is None:
                return self.exact.best_of(query, np.flatnonzero(kept), k)
            look = deeper
            near = self.ann.nearest(query[None, :], look.width, look.effort, hidden)[0]

    def _deeper(self, look: _Look, *, there: int) -> _Look | None:
        """The next look; None where FAISS cannot look harder, or scoring all rows is cheaper."""
        harder = self.ann.harder(look.effort)
        if harder is None or look.depth >= len(self):
            return None
        return self._affordable(_DEEPER * look.depth, harder, spent=look.ms, there=there)


def _width(k: int, asked: Effort, level: Level) -> int:
    """Candidates for k matches: as many as asked for, or those that the level was measured with."""
    if asked.k_factor is not None:
        return k * asked.k_factor
    return level.k * (level.effort.k_factor or 1)
