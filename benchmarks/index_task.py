"""What one step of the index benchmark measures, and how times are taken."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.open_loop import percentile
from benchmarks.vector_files import VectorFile

TESTS, TUNING = 200, 200  # queries to measure with, and to choose parameters with
_SECONDS = 20.0  # for single queries, at most

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Task:
    """What to measure.

    Attributes:
        work: Folder of the vectors, and of what steps leave to each other.
        count: Rows.
        dim: Numbers in a vector.
        name: Of a contestant.
        threads: To build with.
    """

    work: str
    count: int
    dim: int
    name: str = ""
    threads: int = 1

    @property
    def file(self) -> VectorFile:
        """The vectors."""
        return VectorFile(Path(self.work), self.dim)

    @property
    def folder(self) -> Path:
        """Where the contestant's files are."""
        return Path(self.work) / f"index-{self.name.replace(',', '_')}-{self.count}"

    @property
    def truth_file(self) -> Path:
        """The true neighbors of all queries."""
        return self.file.path.with_name(f"{self.file.path.stem}-truth-{self.count}.npy")

    @property
    def queries(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Those to measure with, and those to choose parameters with."""
        both = self.file.queries(TESTS + TUNING)
        return both[:TESTS], both[TESTS:]

    @property
    def truth(self) -> tuple[Rows, Rows]:
        """The true neighbors of both, (Q, K)."""
        both = np.load(self.truth_file)
        return both[:TESTS], both[TESTS:]


def run(step: str, task: Task) -> dict[str, Any]:
    """Runs a step of `benchmarks.index_worker` in a process of its own.

    Raises:
        subprocess.CalledProcessError: It failed; what it said went to stderr.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.index_worker", step, json.dumps(asdict(task))],
        check=True,
        stdout=subprocess.PIPE,
    )
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def single_ms(
    search_one: Callable[[NDArray[np.float32]], object],
    queries: NDArray[np.float32],
    *,
    rounds: int = 1,
) -> list[float]:
    """Milliseconds of each query alone, after one that is not counted; within a time limit."""
    search_one(queries[:1])
    times: list[float] = []
    for number in range(len(queries) * rounds):
        place = number % len(queries)
        started = time.perf_counter()
        search_one(queries[place : place + 1])
        times.append((time.perf_counter() - started) * 1000)
        if sum(times) > _SECONDS * 1000:
            break
    return times


def spread(times: list[float]) -> dict[str, float]:
    """Median and 99th percentile."""
    return {"p50": statistics.median(times), "p99": percentile(times, 0.99)}


def warm(vectors: NDArray[np.float32]) -> None:
    """Reads the file once, so that no step pays for the disk."""
    for start in range(0, len(vectors), 8192):
        vectors[start : start + 8192].sum()
