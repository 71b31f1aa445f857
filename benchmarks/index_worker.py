"""One step of the index benchmark, in a process of its own so that its memory can be told.

`python -m benchmarks.index_worker STEP JSON` prints JSON; see `benchmarks.index_types`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from lookalike.cores import available_cores, limit_openmp

limit_openmp()

from benchmarks.contestants import K, blocks, contestant, recall  # noqa: E402 - imports FAISS
from benchmarks.index_filters import filters  # noqa: E402 - as above
from benchmarks.index_task import TESTS, TUNING, Task, single_ms, spread, warm  # noqa: E402
from benchmarks.memory import anonymous_bytes, peak  # noqa: E402


def main() -> None:
    """Runs one step."""
    step, text = sys.argv[1:]
    print(json.dumps(STEPS[step](Task(**json.loads(text)))))


def exact(task: Task) -> dict[str, float]:
    """`IndexFlatIP` over all rows; leaves the true neighbors of the queries."""
    import faiss  # noqa: PLC0415 - its own step

    before = anonymous_bytes()
    index: Any = faiss.IndexFlatIP(task.dim)
    for _, block in blocks(task.file.vectors(task.count)):
        index.add(block)
    growth = anonymous_bytes() - before
    tests, tuning = task.queries
    faiss.omp_set_num_threads(1)
    times = single_ms(lambda query: index.search(query, K), tests)
    faiss.omp_set_num_threads(available_cores())
    started = time.perf_counter()
    _, truth = index.search(np.concatenate([tests, tuning]), K)
    seconds = time.perf_counter() - started
    np.save(task.truth_file, truth)
    return {**spread(times), "per_second": len(truth) / seconds, "memory": growth}


def build(task: Task) -> dict[str, float]:
    """Builds a contestant and saves it."""
    vectors, made = task.file.vectors(task.count), contestant(task.name)
    warm(vectors)
    with peak() as seen:
        started = time.perf_counter()
        calibrating = made.build(vectors, threads=task.threads)
        seconds = time.perf_counter() - started
    task.folder.mkdir(parents=True, exist_ok=True)
    made.save(task.folder)
    size = sum(file.stat().st_size for file in task.folder.iterdir())
    return {
        "seconds": seconds,
        "calibrating": calibrating,
        "peak": seen.growth,
        "file": size,
    }


def search(task: Task) -> dict[str, Any]:
    """Loads a contestant and measures it on queries that no parameters were chosen with."""
    vectors, made = task.file.vectors(task.count), contestant(task.name)
    (tests, tuning), (truth, tuning_truth) = task.queries, task.truth
    before = anonymous_bytes()
    started = time.perf_counter()
    made.load(task.folder, vectors)
    made.search(tests[:1])
    load_seconds = time.perf_counter() - started
    warm(vectors)
    made.tune(tuning, tuning_truth)
    found = made.search(tests)
    memory = anonymous_bytes() - before
    times = single_ms(made.search, tests, rounds=3)
    started = time.perf_counter()
    made.search(np.concatenate([tests, tuning]), threads=available_cores())
    seconds = time.perf_counter() - started
    return {
        **spread(times),
        "about": made.describe(),
        "recall": recall(found, truth),
        "memory": memory,
        "load_seconds": load_seconds,
        "per_second": (TESTS + TUNING) / seconds,
    }


STEPS: dict[str, Callable[[Task], dict[str, Any]]] = {
    "exact": exact,
    "build": build,
    "search": search,
    "filters": filters,
}


if __name__ == "__main__":
    main()
