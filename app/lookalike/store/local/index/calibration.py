"""How hard an approximate index must look: measured when it is built, and to compare types."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from lookalike.errors import ConfigurationError
from lookalike.progress import NO_PROGRESS, Progress
from lookalike.records import LIMITS, Effort
from lookalike.store.base import Vectors
from lookalike.store.local.index.approximate import (
    ApproximateSegment,
    CandidateIndex,
    build_candidates,
)
from lookalike.store.local.index.policy import (
    AUTO,
    EXACT,
    check_index_type,
    default_candidates,
    error_text,
)
from lookalike.store.local.index.segments import ExactSegment, Found, Positions
from lookalike.store.tuning import TIE, Point, Trial, Tuning, recall_at_k

_QUERIES = 200
_NEIGHBOR = 10  # queries are moved by its distance
_TIMED = 30  # queries that are timed, one by one
_SCORED_ROWS = 4096  # whose scoring is timed
_MAX_CANDIDATES = 8192
_PATIENCE = 3  # harder looks in a row that may find next to nothing new
_CALIBRATED_GAIN = 1e-3  # of recall; a smaller gain is next to nothing
_TUNED_GAIN = 2e-3
_MAX_FACTOR = 64
_COMPLETE = 0.9995  # recall beyond which nothing harder is tried
_QUICK_MS = 2.0  # below it, harder looks are tried even if exact search is faster
_MIN_ROWS = 50

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Level:
    """The effort that finds k matches."""

    k: int
    effort: Effort  # the cheapest that reached the recall aimed at, or the best there is
    recall: float  # share of the true k best that were found, mean over queries
    ms: float  # milliseconds a query on one core, median


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured when an index was built."""

    levels: tuple[Level, ...]  # by ascending k
    row_ms: float  # milliseconds that scoring one row exactly takes

    def for_k(self, k: float) -> Level:
        """The level that finds k matches; beyond the last, its effort grows with k."""
        for level in self.levels:
            if k <= level.k:
                return level
        last = self.levels[-1]
        times = k / last.k
        grown: dict[str, Any] = {
            name: min(LIMITS[name], int(value * times))
            for name in ("nprobe", "ef_search")
            if (value := getattr(last.effort, name)) is not None
        }
        return Level(int(k), replace(last.effort, **grown), last.recall, last.ms * times)

    def to_json(self) -> dict[str, Any]:
        """As a manifest keeps it."""
        levels = [asdict(one) | {"effort": str(one.effort)} for one in self.levels]
        return {"row_ms": self.row_ms, "levels": levels}

    @classmethod
    def from_json(cls, value: Any) -> Calibration:
        """Reads `to_json`. Raises `KeyError`, `TypeError` or `ValueError` if it is damaged."""
        found = [Level(**x | {"effort": Effort.parse(x["effort"])}) for x in value["levels"]]
        return cls(tuple(found), float(value["row_ms"]))


class Questions:
    """Queries with known neighbors: random rows, moved a little, and never their own answer.

    The rows are no tombstones, and their seqs are their positions. At least k neighbors are known.
    """

    def __init__(self, exact: ExactSegment, *, k: int, seed: int, count: int) -> None:
        self.rng = np.random.default_rng(seed)
        size = min(count, len(exact))
        # The row beside which each query lies, (Q,) int64; the queries, (Q, dim) float32; and the
        # best rows of each query without its own.
        self.rows: Positions = np.sort(self.rng.choice(len(exact), size, replace=False))
        self.vectors = moved_rows(exact, self.rows, self.rng)
        found = zip(exact.search(self.vectors, k=k + 2), self.rows, strict=True)
        self.true = [(scores[seqs != own], seqs[seqs != own]) for (scores, seqs), own in found]


def moved_rows(exact: ExactSegment, positions: Positions, rng: np.random.Generator) -> Vectors:
    """Rows, each moved in a random direction by the distance of its 10th neighbor: (N, dim).

    A graph has the neighbors of its own rows one step away and finds them far more easily than
    those of an image that is not there. Moved rows are as hard as images that were held out.
    """
    rows = exact.vectors[positions]
    near = [scores[-1] for scores, _ in exact.search(rows, k=_NEIGHBOR + 1)]
    distances = np.sqrt(np.maximum(0.0, 2.0 - 2.0 * np.array(near)))
    directions = rng.normal(size=rows.shape)
    directions *= (distances / np.linalg.norm(directions, axis=1))[:, np.newaxis]
    moved = rows + directions
    moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    return np.ascontiguousarray(moved, np.float32)


def _median_ms(call: Callable[[Any], object], arguments: Iterable[Any]) -> float:
    """The median milliseconds of a call."""
    times = []
    for argument in arguments:
        started = time.perf_counter()
        call(argument)
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times)


# Calibration: the effort that reaches a recall


def build_segment(
    factory: str,
    exact: ExactSegment,
    *,
    recall: float,
    threads: int = 1,
    progress: Progress = NO_PROGRESS,
) -> ApproximateSegment:
    """Builds an approximate index of rows without tombstones, whose seqs are their positions.

    For several numbers of matches, it looks for the cheapest effort that reaches the recall.
    Raises RuntimeError if FAISS cannot build this type of these vectors.
    """
    candidates = build_candidates(factory, exact.vectors, threads_used=threads, progress=progress)
    # It aims halfway between the recall wanted and 1: a few hundred queries say no more.
    aim = recall + (1 - recall) / 2
    depths = [k for k in exact.limits.calibrated_k if k < len(exact)] or [max(1, len(exact) - 1)]
    progress.report(0, len(depths), stage="calibrate")
    search = _EffortSearch(exact, candidates, k=depths[-1])
    levels = []
    for done, k in enumerate(depths):
        progress.report(done, len(depths), stage="calibrate")
        levels.append(search.level(k, aim))
    return ApproximateSegment(exact, candidates, Calibration(tuple(levels), search.row_ms()))


class _EffortSearch:
    """Looks for the cheapest effort that reaches a recall."""

    def __init__(self, exact: ExactSegment, candidates: CandidateIndex, *, k: int) -> None:
        self._exact = exact
        self._candidates = candidates
        self._is_graph = candidates.knob == "ef_search"
        self._asked = Questions(exact, k=k, seed=0, count=_QUERIES)

    def level(self, k: int, aim: float) -> Level:
        """The fastest of the first effort that reaches the aim and the next harder one."""
        tried: list[Level] = []
        # A graph finds k matches with no less than k.
        for value in self._candidates.knob_values(k if self._is_graph else 1):
            effort, recall = self._fewest_candidates(self._candidates.effort(value), k, aim)
            tried.append(Level(k, effort, recall, self._query_ms(effort, k)))
            recalls = [one.recall for one in tried]
            if max(recalls[:-1], default=0.0) >= aim or _is_stuck(recalls, _CALIBRATED_GAIN):
                break
        enough = [one for one in tried if one.recall >= aim]
        best = max(tried, key=lambda one: one.recall)
        return min(enough, key=lambda one: one.ms, default=best)

    def row_ms(self) -> float:
        """Milliseconds that scoring one scattered row exactly takes."""
        count = min(_SCORED_ROWS, len(self._exact))
        rows = np.sort(self._asked.rng.choice(len(self._exact), count, replace=False))
        score = partial(self._exact.best, positions=rows, k=10)
        return _median_ms(score, self._asked.vectors[:3]) / count

    def _fewest_candidates(self, effort: Effort, k: int, aim: float) -> tuple[Effort, float]:
        """The effort with the least `k_factor` that reaches the aim, and the recall with it."""
        widest = min(_MAX_CANDIDATES, max(1, len(self._exact) - 1))
        if self._is_graph:  # more candidates than `ef_search` raise it: the next value tries that
            widest = min(widest, max(k, effort.ef_search or 1))
        ranks = None if self._is_graph else self._ranks(effort, k=k, width=widest)
        factor = 1
        while True:
            width = min(k * factor, widest)
            found = self._ranks(effort, k=k, width=width) if ranks is None else ranks
            recall = float(np.mean(found < width)) if len(found) else 1.0
            if recall >= aim or width == widest or 2 * factor > LIMITS["k_factor"]:
                return replace(effort, k_factor=factor), recall
            factor *= 2

    def _ranks(self, effort: Effort, *, k: int, width: int) -> Positions:
        """The ranks of the true k best of all queries among `width` candidates: (M,) int64.

        It is 0 for the likeliest candidate, `width` for what is no candidate. A query whose k-th
        neighbor is no nearer than the next one is left out: which of them is found says nothing.
        """
        found = self._candidates.nearest(self._asked.vectors, width + 1, effort)
        rank = np.full(len(self._exact), width)
        ranks = [np.empty(0, np.int64)]
        for row, own, (scores, best) in zip(found, self._asked.rows, self._asked.true, strict=True):
            if len(scores) > k and scores[k - 1] - scores[k] <= TIE:
                continue
            near = row[(row >= 0) & (row != own)][:width]
            rank[near] = np.arange(len(near))
            ranks.append(rank[best[:k]])
            rank[near] = width
        return np.concatenate(ranks)

    def _query_ms(self, effort: Effort, k: int) -> float:
        """Median milliseconds of one query on one core: candidates, then their scores."""
        width = k * (effort.k_factor or 1)

        def search(query: Any) -> None:
            near = self._candidates.nearest(query[None, :], width, effort)[0]
            self._exact.best(query, near[near >= 0], k)

        return _median_ms(search, self._asked.vectors[:_TIMED])


# Tuning: index types compared on a collection's own vectors


def tune(
    vectors: Vectors,
    *,
    rows: int | None = None,
    candidates: Sequence[str] = (),
    k: int = 10,
    queries: int = 200,
    seed: int = 0,
    threads: int = 1,
    progress: Progress = NO_PROGRESS,
) -> Tuning:
    """Builds index types and measures what they find, and how fast; exact search is the first.

    The vectors are (N, dim) float32 and C-contiguous: a collection's, or a sample of its `rows`.
    Queries lie beside images of the collection, and these are left out. They go one by one, on one
    core, through the code that the service searches with. The types are `default_candidates`
    unless given; they are the stages of the progress, which tells how many rows are in. Raises
    `ConfigurationError` if one is no index type, or there are too few images.
    """
    count, dim = vectors.shape
    if count < max(_MIN_ROWS, 2 * k):
        raise ConfigurationError(
            f"{count} pictures are too few to measure recall@{k} on; below 10,000 exact search "
            f"({EXACT}) takes a few milliseconds anyway"
        )
    rows, queries = rows or count, min(queries, count)
    types = _types_to_try(candidates, count, rows, dim)
    tuner = _Tuner(vectors, rows=rows, k=k, queries=queries, seed=seed, threads=threads)
    progress.report(0, count, stage=EXACT)
    trials = [tuner.try_exact()]
    progress.report(count, count, stage=EXACT)
    trials += [tuner.try_type(*one, progress=progress) for one in types]
    return Tuning(rows=rows, measured=count, dim=dim, k=k, queries=queries, trials=tuple(trials))


def _types_to_try(
    candidates: Sequence[str], measured: int, rows: int, dim: int
) -> list[tuple[str, str]]:
    """Types to build of the rows measured, each with its setting for the whole collection."""
    if candidates:
        checked = [check_index_type(text) for text in dict.fromkeys(candidates)]
        if AUTO in checked:
            raise ConfigurationError(
                f"{AUTO} is the service's own choice; leave --index out to try what it chooses from"
            )
        return [(index, index) for index in checked if index != EXACT]
    own, whole = default_candidates(measured, dim), default_candidates(rows, dim)
    return list(zip(own, whole, strict=True))


class _Tuner:
    """The rows and the queries that every type is measured with; see `tune`."""

    def __init__(
        self, vectors: Vectors, *, rows: int, k: int, queries: int, seed: int, threads: int
    ) -> None:
        self._vectors = vectors
        self._rows = rows
        self._k = k
        self._seed = seed
        self._threads = threads
        self._exact = ExactSegment(vectors.shape[1], vectors, np.arange(len(vectors)))
        self._asked = Questions(self._exact, k=k, seed=seed, count=queries)
        self._limit_ms = _QUICK_MS

    def try_exact(self) -> Trial:
        """Measures exact search, which finds everything."""
        point = self._measure(self._exact.search, Effort(exact=True))
        self._limit_ms = max(_QUICK_MS, point.ms)
        size = 4 * self._vectors.shape[1] * self._rows
        return Trial(index=EXACT, setting=EXACT, bytes=size, points=(point,))

    def try_type(self, index: str, setting: str, *, progress: Progress) -> Trial:
        """Builds one type and searches it harder and harder."""
        count = len(self._vectors)

        def show(stage: str, done: int, _: int) -> None:
            progress.report(done if stage == "add" else 0, count, stage=index)

        how: dict[str, Any] = {"threads_used": self._threads, "seed": self._seed}
        started = time.perf_counter()
        try:
            built = build_candidates(index, self._vectors, progress=Progress(show), **how)
            build_s = time.perf_counter() - started
            points = tuple(self._climb(built))
        except (RuntimeError, MemoryError) as exc:
            problem = error_text(exc)
            log.warning("%s cannot be built or searched: %s", index, problem)
            return Trial(index=index, setting=setting, problem=problem)
        size = _size_for(built, self._rows)
        return Trial(index=index, setting=setting, bytes=size, build_s=build_s, points=points)

    def _climb(self, built: CandidateIndex) -> list[Point]:
        """Turns the knob up step by step, and at each step takes more candidates while that helps.

        Ends once everything is found, harder looks find nothing more, or exact search is as fast.
        """
        points: list[Point] = []
        reached: list[float] = []  # the recall at each step of the knob
        limit_ms, factor = self._limit_ms, 1
        any_k = Level(self._k, Effort(), recall=0.0, ms=0.0)
        calibration = Calibration((any_k,), row_ms=limit_ms / len(self._vectors))
        index = ApproximateSegment(self._exact, built, calibration)

        def measure(value: int, factor: int) -> Point:
            effort = replace(built.effort(value), k_factor=factor)
            points.append(self._measure(partial(index.search, effort=effort), effort))
            return points[-1]

        for value in built.knob_values():
            now = measure(value, factor)
            while now.recall < _COMPLETE and factor < _MAX_FACTOR and now.ms < limit_ms:
                wider = measure(value, 2 * factor)
                if wider.recall < now.recall + _TUNED_GAIN:
                    break
                now, factor = wider, factor * 2
            reached.append(points[-1].recall)
            stuck = _is_stuck(reached, _TUNED_GAIN)
            if stuck or reached[-1] >= _COMPLETE or now.ms >= limit_ms:
                break
        return points

    def _measure(self, search: Callable[..., list[Found]], effort: Effort) -> Point:
        found: list[Found] = []

        def ask(asked: Any) -> None:
            query, own = asked
            found.extend(search(query[np.newaxis, :], k=self._k, excluded=np.array([own])))

        ms = _median_ms(ask, zip(self._asked.vectors, self._asked.rows, strict=True))
        recalls = [
            recall_at_k(_ranked(one, self._k), _ranked(true, self._k))
            for one, true in zip(found, self._asked.true, strict=True)
        ]
        return Point(effort=effort, recall=statistics.fmean(recalls), ms=ms)


def _is_stuck(recalls: list[float], gain: float) -> bool:
    """True if the last few steps, each harder than the one before, found next to nothing new."""
    return len(recalls) > _PATIENCE and recalls[-1] < recalls[-1 - _PATIENCE] + gain


def _size_for(built: CandidateIndex, rows: int) -> int:
    """Bytes of an index of so many rows: what was trained stays, the rest grows."""
    if rows == len(built):
        return built.total_bytes
    return built.trained_bytes + (built.total_bytes - built.trained_bytes) * rows // len(built)


def _ranked(found: Found, k: int) -> list[tuple[int, float]]:
    return list(zip(found[1][:k].tolist(), found[0][:k].tolist(), strict=True))
