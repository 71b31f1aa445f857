"""Searches of a store while it builds its index anew in the background, against searches alone.

`python -m benchmarks.rebuild [--count 100000] [--type auto] [--work FOLDER] [--quick]` from the
repository's root. Searches come at a steady pace and latency counts from the moment at which each
was to begin, so that one that is held up is not the only one to show it. Pairs of runs, without
and with a rebuild, in turn; the median of their ratios counts. What makes a rebuild due is one
list more or less in the index type that is set.
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lookalike.cores import limit_openmp

limit_openmp()

from benchmarks.common import announce, report  # noqa: E402
from benchmarks.contestants import K, factory_of  # noqa: E402
from benchmarks.open_loop import percentile  # noqa: E402
from benchmarks.vector_files import VectorFile  # noqa: E402
from lookalike.records import ModelSpec, NewImage  # noqa: E402
from lookalike.store.local.index.policy import IndexPolicy, Limits  # noqa: E402 - imports FAISS
from lookalike.store.local.store import LocalStore  # noqa: E402

PAIRS = 5
SECONDS = 30.0  # of each run at most; a rebuild that ends sooner ends its run
RATE = 50.0  # searches per second
GROUP = 1000  # rows in a commit
COLLECTION = "default"


def main() -> None:
    """Prints the median of the ratios of p99."""
    options = parse()
    count, pairs, seconds = (20_000, 2, 5.0) if options.quick else (options.count, PAIRS, SECONDS)
    file = VectorFile(options.work, options.dim)
    vectors, queries = file.vectors(count), file.queries(200)
    kinds = two_types(factory_of(options.type, count, options.dim) or options.type)
    spec = ModelSpec(model="none", weights="drawn", weights_sha256="0" * 64, dim=options.dim)
    announce(f"Searches beside a rebuild of {kinds[0]} over {count:,} x {options.dim}")
    with tempfile.TemporaryDirectory(dir=options.work) as name:
        folder = Path(name)
        with closing(opened(folder, kinds[0])) as store:
            fill(store, vectors, spec)
            store._indexes.rebuild(COLLECTION)
        stores = [partial(opened, folder, kind) for kind in kinds]
        figures = [
            pair((stores[number % 2], stores[1 - number % 2]), queries, spec, seconds=seconds)
            for number in range(pairs)
        ]
    report(
        f"{count:,} vectors, {kinds[0]}: p99 of searches beside a rebuild on one thread against "
        f"without, {pairs} pairs",
        f"{statistics.median(busy for busy, _ in figures):.2f} ms",
        f"{statistics.median(quiet for _, quiet in figures):.2f} ms",
        statistics.median(busy / quiet for busy, quiet in figures),
        "at most 2",
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="vectors")
    parser.add_argument("--dim", type=int, default=2048, help="numbers in a vector")
    parser.add_argument("--type", default="auto", help="of the index, with an inverted file")
    parser.add_argument("--work", type=Path, help="folder of the vectors, kept for other runs")
    parser.add_argument("--quick", action="store_true", help="20,000 vectors, two short pairs")
    options = parser.parse_args()
    options.work = options.work or Path(tempfile.gettempdir()) / "lookalike-bench"
    return options


def two_types(factory: str) -> tuple[str, str]:
    """A type, and the same with a list less.

    Raises:
        SystemExit: It has no inverted file.
    """
    found = re.search(r"IVF(\d+)", factory)
    if found is None:
        raise SystemExit(f"{factory} has no inverted file: name another --type, or more vectors")
    return factory, factory.replace(found[0], f"IVF{int(found[1]) - 1}")


def opened(folder: Path, index_type: str) -> LocalStore:
    """The store with an index type set; what is saved of another serves until it is rebuilt."""
    return LocalStore(folder, policy=IndexPolicy(index_type=index_type, limits=Limits(min_rows=1)))


def fill(store: LocalStore, vectors: NDArray[np.float32], spec: ModelSpec) -> None:
    """Puts every vector into the store, with a row that names no file."""
    for start in range(0, len(vectors), GROUP):
        block = np.ascontiguousarray(vectors[start : start + GROUP])
        images = [
            NewImage(id=f"i{number}", sha256=f"{number:064x}", filename=f"{number}.jpg",
                     media_type="image/jpeg", width=500, height=375, bytes=40_000)
            for number in range(start, start + len(block))
        ]  # fmt: skip
        store.upsert(COLLECTION, images, block, spec=spec, provenance={})


def pair(
    stores: tuple[Callable[[], LocalStore], Callable[[], LocalStore]],
    queries: NDArray[np.float32],
    spec: ModelSpec,
    *,
    seconds: float,
) -> tuple[float, float]:
    """Milliseconds of p99 with a rebuild, and before it without.

    Args:
        stores: Open the store with the type that it was built as, and with another one.
        queries: (Q, dim).
        spec: Of the collection.
        seconds: Of each run, at most.
    """

    def search(store: LocalStore) -> Callable[[NDArray[np.float32]], object]:
        return lambda query: store.search(COLLECTION, query, k=K, spec=spec)

    with closing(stores[0]()) as store:
        quiet = latencies(search(store), queries, seconds)
    with closing(stores[1]()) as store:
        busy = latencies(search(store), queries, seconds, going_on=lambda: is_building(store))
        store._indexes.rebuild(
            COLLECTION
        )  # waits for the one under way, so that the next pair finds it
    if not busy:
        raise SystemExit("the rebuild ended before the first search: take more vectors")
    with_, without = percentile(busy, 0.99), percentile(quiet, 0.99)
    print(f"p99 {with_:.2f} ms with ({len(busy)} searches), {without:.2f} ms without", flush=True)
    return with_, without


def is_building(store: LocalStore) -> bool:
    """Whether a rebuild is under way."""
    return "building" in store.describe()["collections"][COLLECTION]


def latencies(
    search: Callable[[NDArray[np.float32]], object],
    queries: NDArray[np.float32],
    seconds: float,
    *,
    going_on: Callable[[], bool] = lambda: True,
) -> list[float]:
    """Milliseconds of searches at a steady pace, each from when it was to begin.

    Args:
        search: Takes one query, (1, dim).
        queries: (Q, dim), asked in turn.
        seconds: For how long.
        going_on: Asked twice a second; where it says no, that is the end.
    """
    for place in range(len(queries)):  # what is loaded and read at first
        search(queries[place : place + 1])
    began, found = time.perf_counter(), []
    for number in range(int(seconds * RATE)):
        if number % (RATE // 2) == 0 and not going_on():
            break
        due = began + number / RATE
        time.sleep(max(0.0, due - time.perf_counter()))
        place = number % len(queries)
        search(queries[place : place + 1])
        found.append((time.perf_counter() - due) * 1000)
    return found


if __name__ == "__main__":
    main()
