"""The approximate segment: candidates from FAISS, scores from the vectors themselves."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lookalike.progress import NO_PROGRESS, Progress
from lookalike.records import LIMITS, Effort
from lookalike.store.base import Vectors
from lookalike.store.local.index.policy import faiss, list_count
from lookalike.store.local.index.segments import (
    ExactSegment,
    Found,
    Mask,
    Positions,
    max_threads,
    selector,
    threads,
)

if TYPE_CHECKING:
    from lookalike.store.local.index.calibration import Calibration, Level

_PARALLEL_QUERIES = 16  # from so many on, more threads pay
_HARDER = 4  # each further look takes so many times as many lists, links or candidates
_MIN_EF = 16
_WIDE_SHARE = 5  # gathering and sorting a fifth of the rows is slower than scoring all in order
_MARGIN = 2  # a part's matches are looked for among twice as many of the nearest as should do

_TRAINED_PER_LIST = 64
_MIN_TRAINED = 20_000
_TRAINING_BYTES = 2 * 2**30  # of vectors
_ADDED_BYTES = 64 * 2**20
_MIN_ADDED = 1000  # rows; fewer at a time are slower
_REPORTS = 50


class CandidateIndex:
    """A FAISS index of any type, trained and filled: candidates for a query. It never changes.

    FAISS compares by Euclidean distance: of unit vectors the nearest are those of the highest
    cosine, and unlike the inner product it survives a PCA, which centers. Distances choose
    candidates and do nothing else. Searches may run side by side.
    """

    def __init__(self, index: Any, *, factory: str, mapped: bool = False) -> None:
        self._index = index
        self.factory = factory
        self._mapped = mapped
        self._inner = innermost(index)
        # The effort that this type takes, its smallest useful value, and that for every row.
        self.knob: str | None = None
        self.knob_min = self.knob_max = 1
        if isinstance(self._inner, faiss.IndexIVF):
            self.knob, self.knob_max = "nprobe", min(int(self._inner.nlist), LIMITS["nprobe"])
        elif isinstance(self._inner, faiss.IndexHNSW):
            self.knob, self.knob_min = "ef_search", _MIN_EF
            self.knob_max = min(max(len(self), _MIN_EF), LIMITS["ef_search"])
        self.takes_selectors = self._try_selector()

    @classmethod
    def read(cls, path: Path, *, factory: str) -> CandidateIndex:
        """Maps a saved index. Raises `RuntimeError` if FAISS cannot read it."""
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        read = cls(index, factory=factory, mapped=True)
        read.total_bytes = path.stat().st_size  # instead of writing it to count
        return read

    def write(self, path: Path) -> None:
        """Writes it to a file. Raises `RuntimeError` if the disk refuses."""
        faiss.write_index(self._index, str(path))

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def bytes(self) -> int:
        """Memory that cannot be given back, so without what is mapped."""
        return self.total_bytes - self.mapped_bytes

    @functools.cached_property
    def total_bytes(self) -> int:
        """Its size as a file."""
        return _file_size(self._index)

    @functools.cached_property
    def trained_bytes(self) -> int:
        """The size of the same index without rows."""
        empty = faiss.deserialize_index(faiss.serialize_index(self._index))
        empty.reset()
        return _file_size(empty)

    @property
    def mapped_bytes(self) -> int:
        """The part that lies in the mapped file, as measured.

        An inverted file keeps its row numbers in memory, a fast scan type its codes, too.
        """
        if not self._mapped or isinstance(
            self._inner, (faiss.IndexIVFFastScan, faiss.IndexFastScan)
        ):
            return 0
        if self.knob != "nprobe":
            return self.total_bytes
        return len(self) * int(self._inner.code_size)

    def effort(self, value: int, base: Effort | None = None) -> Effort:
        """An effort with the knob at a value, otherwise as `base`."""
        turned: dict[str, Any] = {self.knob: value} if self.knob else {}
        return replace(base or Effort(), **turned)

    def harder(self, effort: Effort) -> Effort | None:
        """The effort with the knob turned up; None if it is at its end."""
        value = self._knob_of(effort)
        if value >= self.knob_max:
            return None
        return self.effort(min(value * _HARDER, self.knob_max), effort)

    def knob_values(self, least: int = 1) -> Iterator[int]:
        """Values of the knob up to the last, each twice the one before."""
        value = max(self.knob_min, min(least, self.knob_max))
        while value < self.knob_max:
            yield value
            value *= 2
        yield self.knob_max

    def nearest(
        self, queries: Vectors, width: int, effort: Effort, mask: Mask | None = None
    ) -> Positions:
        """Candidates for (Q, dim) queries, likely ones first: (Q, width) int64, -1 for none.

        The least effort is made if none is given. A mask needs `takes_selectors`.
        """
        with threads(max_threads() if len(queries) >= _PARALLEL_QUERIES else 1):
            params = self._params(effort, None if mask is None else selector(mask))
            found = search_method(self._index)(queries, min(width, len(self)), params=params)
            positions: Positions = found[1]
        return positions

    def _knob_of(self, effort: Effort) -> int:
        value = (self.knob and getattr(effort, self.knob)) or self.knob_min
        return min(value, self.knob_max)

    def _params(self, effort: Effort, sel: Any) -> Any:
        """What the innermost index takes; new each time, because FAISS writes into it."""
        # FAISS silently ignores a selector that an outer layer gets.
        if self.knob == "nprobe":
            return faiss.SearchParametersIVF(sel=sel, nprobe=self._knob_of(effort))
        if self.knob == "ef_search":
            return faiss.SearchParametersHNSW(sel=sel, efSearch=self._knob_of(effort))
        return None if sel is None else faiss.SearchParameters(sel=sel)

    def _try_selector(self) -> bool:
        """Tries whether a selector is honored, because types differ."""
        if not len(self):
            return False
        query = np.zeros((1, int(self._index.d)), np.float32)
        try:
            found = self.nearest(query, 1, Effort(), np.zeros(len(self), np.bool_))
        except RuntimeError:
            return False
        return bool((found < 0).all())


def build_candidates(
    factory: str,
    vectors: Vectors,
    *,
    threads_used: int = 1,
    seed: int = 0,
    progress: Progress = NO_PROGRESS,
) -> CandidateIndex:
    """Trains and fills an index of all rows, (N, dim) float32 unit vectors, read in order.

    The seed chooses the rows that it is trained on; the stages are `train` and `add`. Raises
    RuntimeError, with FAISS's text, if it cannot build this type of these vectors.
    """
    count, dim = vectors.shape
    with threads(threads_used):
        index = faiss.index_factory(dim, factory, faiss.METRIC_L2)
        if not index.is_trained:
            held = _set_training(index)
            sample = _training_sample(vectors, factory, seed)
            progress.report(0, len(sample), stage="train")
            index.train(sample)
            for transform in held:
                transform.pq = None
        step = max(1, min(_ADDED_BYTES // (4 * dim), max(_MIN_ADDED, count // _REPORTS)))
        for start in range(0, count, step):
            progress.report(start, count, stage="add")
            index.add(np.ascontiguousarray(vectors[start : start + step], np.float32))
        progress.report(count, count, stage="add")
    return CandidateIndex(index, factory=factory)


def _set_training(whole: Any) -> dict[Any, Any]:
    """Keeps FAISS from training for Hamming distances, which takes minutes and is not used here.

    And from printing that it is trained on few vectors: what it finds is measured. Returns the
    rotations that were given a quantizer for their training, each with it.
    """
    index, held = innermost(whole), {}
    for rotation in _rotations(whole):
        held[rotation] = rotation.pq = faiss.ProductQuantizer(rotation.d_out, rotation.M, 8)
        rotation.pq.cp.min_points_per_centroid = 1
    storage = getattr(index, "storage", None)  # below a graph
    parts = [index, index if storage is None else faiss.downcast_index(storage)]
    names = ("pq", "rq", "refine_pq", "prq")
    parts += [part for each in parts for name in names if (part := getattr(each, name, None))]
    for part in list(parts):
        if isinstance(part, faiss.ProductAdditiveQuantizer):
            subs = map(part.subquantizer, range(part.nsplits))
            parts += map(faiss.downcast_AdditiveQuantizer, subs)
    for part in parts:
        if hasattr(part, "do_polysemous_training"):
            part.do_polysemous_training = False
        if hasattr(part, "cp"):
            part.cp.min_points_per_centroid = 1
    return held


def _rotations(index: Any) -> list[Any]:
    """The OPQ matrices before an index."""
    chain = getattr(index, "chain", None)
    found = [] if chain is None else [chain.at(number) for number in range(chain.size())]
    return [one for one in map(faiss.downcast_VectorTransform, found) if hasattr(one, "niter_pq")]


def _training_sample(vectors: Vectors, factory: str, seed: int) -> Vectors:
    """Random rows to train on, in their order."""
    count, dim = vectors.shape
    wanted = max(_MIN_TRAINED, _TRAINED_PER_LIST * list_count(factory), 2 * dim)
    size = min(wanted, max(1, _TRAINING_BYTES // (4 * dim)))
    if count > size:
        rng = np.random.default_rng(seed)
        vectors = vectors[np.sort(rng.choice(count, size, replace=False))]
    sample: Vectors = np.ascontiguousarray(vectors, np.float32)
    return sample


@dataclass(frozen=True, slots=True)
class _Look:
    """One look for matches among the nearest rows of all."""

    depth: int  # so many of the nearest rows must hold k that may be found
    width: int  # candidates to fetch
    effort: Effort  # hard enough that nearly all of the nearest are among the candidates


@dataclass(frozen=True)
class ApproximateSegment:
    """Sealed rows, an approximate index of them, and the effort that finds which recall.

    Every score is exact; only which rows are scored is not.
    """

    exact: ExactSegment
    candidates: CandidateIndex
    calibration: Calibration

    def __post_init__(self) -> None:
        if len(self.exact) != len(self.candidates):
            raise ValueError(f"{len(self.candidates)} rows are indexed, of {len(self.exact)}")

    def search(
        self,
        queries: Vectors,
        *,
        k: int,
        allowed: Positions | None = None,
        excluded: Positions | None = None,
        effort: Effort | None = None,
    ) -> list[Found]:
        """The k best rows of each query that it finds; arguments as of `ExactSegment.search`.

        If too few candidates may be found, it looks harder, and scores every row in the end. What
        is not given of the effort is calibrated.
        """
        limits = self.exact.limits
        if allowed is not None and len(allowed) <= limits.scored_rows:
            return self.exact.search(queries, k=k, allowed=allowed, excluded=excluded)
        effort, kept = effort or Effort(), self.exact.kept(allowed, excluded)
        rows, count, dead = int(np.count_nonzero(kept)), len(self.exact), self.exact.dead
        # If most rows are gone, those left lie far from where the index was calibrated.
        hides = limits.overfetched < dead <= count // 2 and self.candidates.takes_selectors
        mask = self.exact.alive if hides else None
        few = allowed is not None and rows <= limits.scored_rows
        looks = partial(self._looks, k, count - rows - (dead if hides else 0), rows, effort)
        look = None if effort.exact or few else next(looks(), None)
        if look is None:
            return self.exact.search_kept(queries, kept, k=k)
        near = self.candidates.nearest(queries, look.width, look.effort, mask)
        return [
            self._complete(query, row, looks(), kept, mask, k=min(k, rows))
            for query, row in zip(queries, near, strict=True)
        ]

    def _looks(self, k: int, unwanted: int, rows: int, effort: Effort) -> Iterator[_Look]:
        """Deeper and deeper looks for k of some rows, with `unwanted` rows in the way.

        They end once scoring every row costs little more, or FAISS cannot look harder.
        """
        limits, count = self.exact.limits, len(self.exact)
        ms, harder = 0.0, effort if rows > k + limits.spare else None
        # The k best of a part are, with a margin, among so many more of all rows.
        depth = math.ceil(_MARGIN * k * (rows + unwanted) / max(1, rows))
        if harder and unwanted <= limits.overfetched:
            level = self.calibration.for_k(k)
            depth = _width(k, effort, level) + limits.spare + unwanted
            asked = [depth] if effort.k_factor is not None else []
            if effort.ef_search is not None and self.candidates.knob == "ef_search":
                asked.append(effort.ef_search)
            if count >= limits.small_rows and max(asked, default=0) > count // _WIDE_SHARE:
                return
            look = _Look(depth, depth, effort.over(level.effort))
            yield look
            harder = self.candidates.harder(look.effort) if depth < count else None
            ms, depth = level.ms, _HARDER * depth
        while harder:
            level = self.calibration.for_k(depth)
            ms += level.ms
            if ms > limits.tried_share * rows * self.calibration.row_ms:
                return
            look = _Look(depth, _width(depth, harder, level), harder.over(level.effort))
            yield look
            harder = self.candidates.harder(look.effort) if depth < count else None
            depth *= _HARDER

    def _complete(
        self,
        query: NDArray[np.float32],
        near: Positions,
        looks: Iterator[_Look],
        kept: Mask,
        mask: Mask | None,
        *,
        k: int,
    ) -> Found:
        """Scores what may be found of the first look's candidates; looks deeper for too few."""
        for number, look in enumerate(looks):
            if number:
                near = self.candidates.nearest(query[None, :], look.width, look.effort, mask)[0]
            near = near[near >= 0]
            if np.count_nonzero(kept[near[: look.depth]]) >= k:
                return self.exact.best(query, near[kept[near]], k)
        return self.exact.best(query, np.flatnonzero(kept), k)


def _width(k: int, effort: Effort, level: Level) -> int:
    """Candidates for k matches: as many as asked for, or as the level was measured with."""
    if effort.k_factor is not None:
        return k * effort.k_factor
    return level.k * (level.effort.k_factor or 1)


def _file_size(index: Any) -> int:
    sizes: list[int] = []
    faiss.write_index(index, faiss.PyCallbackIOWriter(lambda data: sizes.append(len(data))))
    return sum(sizes)


def search_method(index: Any) -> Any:
    """FAISS's own search method."""
    # `faiss.contrib.torch_utils`, which pytorch-metric-learning imports, replaces it by one that
    # lacks `params`.
    return getattr(index, "search_numpy", index.search)


def innermost(index: Any) -> Any:
    """The index behind all transformations of vectors."""
    inner = faiss.downcast_index(index)
    while isinstance(inner, faiss.IndexPreTransform):
        inner = faiss.downcast_index(inner.index)
    return inner
