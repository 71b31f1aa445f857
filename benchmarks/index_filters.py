"""Filtered searches of our index against exact search over the rows that pass."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.contestants import K, Ours
from benchmarks.index_task import Task, warm
from lookalike.store.local.index.segments import Positions

SHARES = (0.001, 0.01, 0.1, 0.5)
_QUERIES = 50
_GATHERED = 100_000  # rows that NumPy copies at most


def filters(task: Task) -> dict[str, list[dict[str, Any]]]:
    """Measures each share of the rows, drawn at random and as whole clusters.

    Which rows pass is given as their positions; the time to evaluate a filter is not in it (see
    `benchmarks.filters`).
    """
    vectors, ours = task.file.vectors(task.count), Ours(task.name)
    ours.load(task.folder, vectors)
    warm(vectors)
    queries = task.queries[0][:_QUERIES]
    clusters = task.file.clusters(task.count)
    answers = []
    for share in SHARES:
        for kind, passing in (
            ("at random", at_random(task.count, share)),
            ("as clusters", whole_clusters(clusters, share)),
        ):
            figures = compare(ours, vectors, queries, passing)
            answers.append({"share": share, "kind": kind, "rows": len(passing), **figures})
    return {"filters": answers}


def at_random(count: int, share: float) -> Positions:
    """So many of the rows, ascending."""
    rng = np.random.default_rng(0)
    return np.sort(rng.choice(count, max(1, round(count * share)), replace=False))


def whole_clusters(clusters: NDArray[np.int32], share: float) -> Positions:
    """All rows of some clusters, the last of them in part, ascending: like `label = cat`."""
    order = np.random.default_rng(0).permutation(int(clusters.max()) + 1)
    by_cluster = np.argsort(order[clusters], kind="stable")
    return np.sort(by_cluster[: max(1, round(len(clusters) * share))])


def compare(
    ours: Ours, vectors: NDArray[np.float32], queries: NDArray[np.float32], passing: Positions
) -> dict[str, float | None]:
    """Times three ways on each query in turn.

    They are ours, our exact index over the rows that pass, and NumPy alone: rows copied and
    multiplied in float32, the best picked, and nothing checked.
    """
    mine, exactly, alone, hits = [], [], [], []
    for query in queries:
        row = query[None, :]
        started = time.perf_counter()
        [(_, found)] = ours.index.search(row, k=K, allowed=passing)
        middle = time.perf_counter()
        [(_, true)] = ours.index.exact.search(row, k=K, allowed=passing)
        ended = time.perf_counter()
        mine.append(middle - started)
        exactly.append(ended - middle)
        if len(passing) <= _GATHERED:
            started = time.perf_counter()
            scores = vectors[passing] @ query
            np.argpartition(-scores, min(K, len(scores) - 1))[:K]
            alone.append(time.perf_counter() - started)
        hits.append(len(np.intersect1d(found, true)) / max(1, len(true)))
    return {
        "ours_ms": statistics.median(mine) * 1000,
        "exact_ms": statistics.median(exactly) * 1000,
        "numpy_ms": statistics.median(alone) * 1000 if alone else None,
        "recall": statistics.fmean(hits),
    }
