"""Trying index types on a collection's own vectors, against exact search."""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lookalike.errors import ConfigurationError
from lookalike.store.effort import Effort
from lookalike.store.local.index.ann import Ann
from lookalike.store.local.index.ann_build import Progress, build_ann
from lookalike.store.local.index.ann_index import AnnIndex
from lookalike.store.local.index.calibration import Calibration, Level, moved_rows
from lookalike.store.local.index.flat_index import FlatIndex, Found
from lookalike.store.local.index.flat_rows import MappedRows, Positions, faiss, said_by
from lookalike.store.local.index.index_types import (
    AUTO,
    EXACT,
    MOST_REDUCED,
    check_index_type,
    reduction,
    suitable_lists,
)
from lookalike.store.recall import recall_at_k
from lookalike.store.tuning import Point, Trial, Tuning
from lookalike.store.vectors import Vectors

log = logging.getLogger(__name__)

_MOST_WHOLE_DIM = 1024  # longer vectors are not tried at their full length
_MOST_FACTOR = 64
_WORTH_IT = 0.002  # of recall; what brings less is not followed
_PATIENCE = 3  # steps that may bring less
_ENOUGH = 0.9995  # of recall; nothing harder is tried
_QUICK_MS = 2.0  # below it, harder looks are tried even where exact search is faster
_LEAST_ROWS = 50


@dataclass(frozen=True, slots=True)
class _Bench:
    """The rows, the pictures that ask, and what they should find; arrays are by query."""

    exact: FlatIndex
    vectors: Vectors
    asked: Positions
    queries: Vectors
    true: list[Found]
    k: int
    rows: int
    threads: int


def default_candidates(rows: int, dim: int) -> list[str]:
    """Index types worth trying, fit for so many rows.

    The rows are scored from their float32 vectors in the end, so types may be coarse: vectors
    are cut to 256 or 128 numbers, and those compressed to 8 or 2 bits each.

    Args:
        rows: Rows of the index: they decide how many lists there are.
        dim: Numbers in a vector.
    """
    lists, kept = suitable_lists(rows), min(dim, MOST_REDUCED)
    first = reduction(dim, kept)
    found = [f"{first}IVF{lists},SQ8", f"{first}HNSW32,SQ8", f"{first}SQ8"]
    if kept % 2 == 0:
        found.insert(1, f"{first}IVF{lists},PQ{kept // 2}x4fs")
    if first:
        found.append(f"{reduction(dim, MOST_REDUCED // 2)}IVF{lists},SQ8")
        found += [f"IVF{lists},SQ8"] if dim <= _MOST_WHOLE_DIM else []
    return found


def tune(
    vectors: Vectors,
    *,
    rows: int | None = None,
    candidates: Sequence[str] = (),
    k: int = 10,
    queries: int = 200,
    seed: int = 0,
    threads: int = 1,
    on_progress: Progress | None = None,
) -> Tuning:
    """Builds index types and measures what they find, and how fast.

    Queries beside pictures of the collection (see `moved_rows`), these left out, one by one on one
    core, go through the code that the service searches with.

    Args:
        vectors: (N, dim) float32 unit vectors, C-contiguous: the collection's, or a sample.
        rows: Pictures in the collection; N unless given.
        candidates: Index types; `default_candidates` unless given. Exact search is always tried.
        k: Matches asked for, at least 1.
        queries: How many pictures ask, at most.
        seed: Chooses them, and what indexes are trained on.
        threads: Cores that a build may take.
        on_progress: Told the type that is being built, and how many rows of how many are in.

    Raises:
        ConfigurationError: A candidate is no index type, or there are too few pictures.
    """
    tell = on_progress or (lambda *_: None)
    count, dim = vectors.shape
    whole = rows or count
    if count < max(_LEAST_ROWS, 2 * k):
        raise ConfigurationError(
            f"{count} pictures are too few to measure recall@{k} on; below 10,000 exact search "
            f"({EXACT}) takes a few milliseconds anyway"
        )
    tried = _settings(candidates, count, whole, dim)
    tell(EXACT, 0, count)
    bench = _bench(vectors, k=k, queries=queries, seed=seed, rows=whole, threads=threads)
    exact = _exact_trial(bench)
    tell(EXACT, count, count)
    limit_ms = max(_QUICK_MS, exact.points[0].ms)
    trials = [_trial(bench, *one, seed=seed, limit_ms=limit_ms, tell=tell) for one in tried]
    return Tuning(
        rows=whole, measured=count, dim=dim, k=k, queries=len(bench.asked), trials=(exact, *trials)
    )


def _settings(
    candidates: Sequence[str], measured: int, rows: int, dim: int
) -> list[tuple[str, str]]:
    """What to build of the rows measured, each with its setting for the whole collection."""
    if candidates:
        checked = [check_index_type(text) for text in dict.fromkeys(candidates)]
        if AUTO in checked:
            raise ConfigurationError(
                f"{AUTO} is the service's own choice; leave --index out to try what it chooses from"
            )
        return [(index, index) for index in checked if index != EXACT]
    own, whole = default_candidates(measured, dim), default_candidates(rows, dim)
    return list(zip(own, whole, strict=True))


def _bench(vectors: Vectors, *, k: int, queries: int, seed: int, rows: int, threads: int) -> _Bench:
    count, dim = vectors.shape
    exact = FlatIndex(dim, MappedRows(vectors), np.arange(count, dtype=np.int64))
    rng = np.random.default_rng(seed)
    asked = np.sort(rng.choice(count, min(queries, count), replace=False))
    questions = moved_rows(exact, asked, rng)
    found = exact.search(questions, k=k + 1)
    true = [_others(one, own, k) for one, own in zip(found, asked.tolist(), strict=True)]
    return _Bench(exact, vectors, asked, questions, true, k, rows, threads)


def _others(found: Found, own: int, k: int) -> Found:
    scores, positions = found
    kept = positions != own
    return scores[kept][:k], positions[kept][:k]


def _exact_trial(bench: _Bench) -> Trial:
    """Exact search: finds everything."""
    times = []
    for query, own in zip(bench.queries, bench.asked, strict=True):
        started = time.perf_counter()
        bench.exact.search(query[np.newaxis, :], k=bench.k, without=np.array([own]))
        times.append(time.perf_counter() - started)
    ms = 1e3 * statistics.median(times)
    point = Point(effort=Effort(exact=True), recall=1.0, ms=ms)
    size = 4 * bench.vectors.shape[1] * bench.rows
    return Trial(index=EXACT, setting=EXACT, bytes=size, points=(point,))


def _trial(
    bench: _Bench, index: str, setting: str, *, seed: int, limit_ms: float, tell: Progress
) -> Trial:
    """Builds one type and searches it harder and harder."""
    count = len(bench.vectors)
    tell(index, 0, count)
    started = time.perf_counter()
    try:
        ann = build_ann(
            index,
            bench.vectors,
            threads_used=bench.threads,
            seed=seed,
            on_progress=lambda _, done, total: tell(index, done if total == count else 0, count),
        )
        build_s = time.perf_counter() - started
        any_k = Level(bench.k, Effort(), recall=0.0, ms=0.0)
        searched = AnnIndex(bench.exact, ann, Calibration((any_k,), row_ms=limit_ms / count))
        points = tuple(_climb(bench, searched, limit_ms))
    except (RuntimeError, MemoryError) as exc:
        problem = said_by(exc)
        log.warning("%s cannot be built or searched: %s", index, problem)
        return Trial(index=index, setting=setting, problem=problem)
    return Trial(
        index=index,
        setting=setting,
        bytes=_size_for(ann, bench.rows),
        build_s=build_s,
        points=points,
    )


def _size_for(ann: Ann, rows: int) -> int:
    """Bytes that an index of so many rows would have: what was trained stays, the rest grows."""
    if rows == len(ann):
        return ann.total_bytes
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        ann.write(path)
        trained = faiss.read_index(str(path))
    trained.reset()
    fixed = Ann(trained, factory=ann.factory).total_bytes
    return fixed + (ann.total_bytes - fixed) * rows // len(ann)


def _climb(bench: _Bench, index: AnnIndex, limit_ms: float) -> list[Point]:
    """Turns the knob up step by step, and at each step takes more candidates while that helps.

    It ends where everything is found, where harder looks find nothing more, or where exact search
    would be as fast.
    """
    points: list[Point] = []
    reached: list[float] = []  # the recall at each step of the knob

    def look(value: int, factor: int) -> Point:
        effort = Effort(k_factor=factor).over(index.ann.setting(value))
        points.append(_measure(bench, index, effort))
        return points[-1]

    value, factor = index.ann.least, 1
    while True:
        now = look(value, factor)
        while now.recall < _ENOUGH and factor < _MOST_FACTOR and now.ms < limit_ms:
            wider = look(value, factor * 2)
            if wider.recall < now.recall + _WORTH_IT:
                break
            now, factor = wider, factor * 2
        reached.append(points[-1].recall)
        stuck = len(reached) > _PATIENCE and reached[-1] < reached[-1 - _PATIENCE] + _WORTH_IT
        if stuck or reached[-1] >= _ENOUGH or value >= index.ann.most or now.ms >= limit_ms:
            return points
        value = min(value * 2, index.ann.most)


def _measure(bench: _Bench, index: AnnIndex, effort: Effort) -> Point:
    times, recalls = [], []
    for query, own, true in zip(bench.queries, bench.asked, bench.true, strict=True):
        started = time.perf_counter()
        (found,) = index.search(
            query[np.newaxis, :], k=bench.k, without=np.array([own]), effort=effort
        )
        times.append(time.perf_counter() - started)
        recalls.append(recall_at_k(_ranked(found), _ranked(true)))
    recall, ms = statistics.fmean(recalls), 1e3 * statistics.median(times)
    return Point(effort=effort, recall=recall, ms=ms)


def _ranked(found: Found) -> list[tuple[int, float]]:
    return list(zip(found[1].tolist(), found[0].tolist(), strict=True))
