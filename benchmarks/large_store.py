"""A store of a million pictures: filled, its index built, started again.

`python -m benchmarks.large_store [--count 1000000] [--type auto] [--work FOLDER]
[--free-vectors]` from the repository's root. A million vectors of 2,048 numbers take 8.2 GB as
drawn, 8.7 GB in the catalog and 8.2 GB in the saved index; `--free-vectors` removes the first of
these before the last is made. The start is measured in a process of its own, from the end of its
imports to the first answer.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from lookalike.cores import limit_openmp

limit_openmp()

from benchmarks.common import announce, report  # noqa: E402
from benchmarks.memory import anonymous_bytes  # noqa: E402
from benchmarks.rebuild import COLLECTION, fill  # noqa: E402
from benchmarks.vector_files import VectorFile  # noqa: E402
from lookalike.records import ModelSpec  # noqa: E402
from lookalike.store.local.index.policy import IndexPolicy  # noqa: E402 - imports FAISS
from lookalike.store.local.store import LocalStore  # noqa: E402

DIM = 2048
K = 10
QUERIES = 200


def main() -> None:
    """Prints what each step takes."""
    options = parse()
    if options.start:
        print(json.dumps(start(Path(options.start), options)))
        return
    announce(f"A store of {options.count:,} pictures, {DIM} numbers a vector")
    spec = spec_of()
    file = VectorFile(options.work, DIM)
    with tempfile.TemporaryDirectory(dir=options.work) as name:
        folder = Path(name)
        with closing(LocalStore(folder)) as store:
            began = time.perf_counter()
            fill(store, file.vectors(options.count), spec)
            print(
                f"filled: {options.count / (time.perf_counter() - began):,.0f} rows/s", flush=True
            )
        if options.free_vectors:
            file.path.unlink()
        with closing(LocalStore(folder, policy=IndexPolicy(index_type=options.type))) as store:
            began = time.perf_counter()
            store._indexes.rebuild(COLLECTION)
            seconds = time.perf_counter() - began
            print(json.dumps(store.describe()["collections"][COLLECTION]), flush=True)
        most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
        print(f"built: {seconds:.0f} s, at most {most:.1f} GB with the mapped file")
        command = [sys.executable, "-m", "benchmarks.large_store", "--start", name]
        command += ["--type", options.type, "--count", str(options.count)]
        for _ in range(3):
            answer = subprocess.run(command, check=True, capture_output=True, text=True)
            figures = json.loads(answer.stdout)
            print(figures, flush=True)
    report(
        f"{options.count:,} pictures: from the end of the imports to the first answer",
        f"{figures['ready_s']:.1f} s",
        "10 s",
        figures["ready_s"] / 10,
        "at most 1",
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000, help="pictures")
    parser.add_argument("--type", default="auto", help="of the index")
    parser.add_argument("--work", type=Path, help="folder of everything")
    parser.add_argument("--free-vectors", action="store_true", help="remove the drawn vectors")
    parser.add_argument("--start", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.work = options.work or Path(tempfile.gettempdir()) / "lookalike-bench"
    return options


def spec_of() -> ModelSpec:
    """What stands for the model that made the vectors."""
    return ModelSpec(model="none", weights="drawn", weights_sha256="0" * 64, dim=DIM)


def start(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Opens the store, searches it, and gives seconds, memory and milliseconds."""
    queries = VectorFile(options.work, DIM).queries(QUERIES)
    before, began = anonymous_bytes(), time.perf_counter()
    with closing(LocalStore(folder, policy=IndexPolicy(index_type=options.type))) as store:
        store.load()
        opened = time.perf_counter() - began

        def search(number: int) -> float:
            since = time.perf_counter()
            store.search(COLLECTION, queries[number : number + 1], k=K, spec=spec_of())
            return time.perf_counter() - since

        first = search(0)
        times = [search(number) for number in range(1, QUERIES)]
        return {
            "ready_s": round(opened + first, 2),
            "first_search_ms": round(1e3 * first, 1),
            "p50_ms": round(1e3 * statistics.median(times), 2),
            "memory_mb": round((anonymous_bytes() - before) / 1e6),
            "type": store.describe()["collections"][COLLECTION]["type"],
        }


if __name__ == "__main__":
    main()
