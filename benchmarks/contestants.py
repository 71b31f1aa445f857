"""The indexes that are set beside each other: ours, hnswlib and usearch, behind one interface."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lookalike.progress import Progress
from lookalike.store.local.index.approximate import ApproximateSegment, CandidateIndex
from lookalike.store.local.index.calibration import Calibration, build_segment
from lookalike.store.local.index.policy import IndexPolicy, Limits
from lookalike.store.local.index.segments import ExactSegment

K = 10
AIM = 0.995  # on the queries that parameters are chosen with, so that others reach 0.99
_CONNECTIONS, _CONSTRUCTION = 16, 200  # of a graph: what both libraries are usually measured with
_MOST_EFFORT = 4096

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]


class Contestant(Protocol):
    """An index of (N, dim) float32 unit vectors, whose rows are their numbers."""

    def build(self, vectors: Vectors, *, threads: int) -> float:
        """Builds it from nothing; gives the seconds of it that chose parameters of searches."""

    def save(self, folder: Path) -> None:
        """Writes its files into an empty folder."""

    def load(self, folder: Path, vectors: Vectors) -> None:
        """Reads them; ours maps the vectors, too."""

    def tune(self, queries: Vectors, truth: Rows) -> None:
        """Chooses the fastest search parameters that find enough of the truth, (Q, K)."""

    def search(self, queries: Vectors, *, threads: int = 1) -> Rows:
        """The K nearest that it finds, (Q, K), -1 for none."""

    def describe(self) -> str:
        """What it is, with the parameters of searches."""


def contestant(name: str) -> Contestant:
    """Makes one: `hnswlib`, `usearch`, or a type of our index.

    Raises:
        ImportError: The library is not installed.
    """
    if name == "hnswlib":
        return Hnswlib()
    return Usearch() if name == "usearch" else Ours(name)


def is_ours(name: str) -> bool:
    """Whether the name is a type of our index."""
    return name not in {"hnswlib", "usearch"}


def factory_of(name: str, count: int, dim: int) -> str | None:
    """What our index would be built as; None where it would stay exact.

    `auto` is given a quarter of what the float32 vectors take, the goal for memory.
    """
    policy = IndexPolicy(index_type=name, memory=count * dim, limits=Limits(min_rows=0))
    return policy.plan(count, dim).factory


class Ours:
    """Our index, calibrated when it is built."""

    def __init__(self, index_type: str) -> None:
        self._type = index_type
        self.index: ApproximateSegment

    def build(self, vectors: Vectors, *, threads: int) -> float:
        """See `Contestant`."""
        self._type = factory_of(self._type, *vectors.shape) or self._type
        told = [time.perf_counter()]
        self.index = build_segment(
            self._type,
            ExactSegment(vectors.shape[1], vectors, np.arange(len(vectors))),
            recall=0.99,
            threads=threads,
            progress=Progress(lambda *_: told.append(time.perf_counter())),
        )
        return time.perf_counter() - told[-1]

    def save(self, folder: Path) -> None:
        """See `Contestant`."""
        self.index.candidates.write(folder / "index.faiss")
        about = {"factory": self._type, "calibration": self.index.calibration.to_json()}
        (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")

    def load(self, folder: Path, vectors: Vectors) -> None:
        """See `Contestant`."""
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        exact = ExactSegment(vectors.shape[1], vectors, np.arange(len(vectors)))
        calibration = Calibration.from_json(about["calibration"])
        candidates = CandidateIndex.read(folder / "index.faiss", factory=about["factory"])
        self.index = ApproximateSegment(exact, candidates, calibration)
        self._type = about["factory"]

    def tune(self, queries: Vectors, truth: Rows) -> None:
        """Nothing: building did it, with queries of its own."""

    def search(self, queries: Vectors, *, threads: int = 1) -> Rows:  # noqa: ARG002 - its own choice
        """See `Contestant`."""
        found = np.full((len(queries), K), -1, dtype=np.int64)
        for row, (_, seqs) in zip(found, self.index.search(queries, k=K), strict=True):
            row[: len(seqs)] = seqs
        return found

    def describe(self) -> str:
        """See `Contestant`."""
        return f"{self._type} ({self.index.calibration.for_k(K).effort})"


class Hnswlib:
    """hnswlib's graph over float32."""

    def __init__(self) -> None:
        self._library: Any = importlib.import_module("hnswlib")
        self._index: Any = None
        self._effort = K

    def build(self, vectors: Vectors, *, threads: int) -> float:
        """See `Contestant`."""
        self._index = self._library.Index(space="ip", dim=vectors.shape[1])
        self._index.init_index(len(vectors), M=_CONNECTIONS, ef_construction=_CONSTRUCTION)
        for start, block in blocks(vectors):
            numbers = np.arange(start, start + len(block))
            self._index.add_items(block, numbers, num_threads=threads)
        return 0.0

    def save(self, folder: Path) -> None:
        """See `Contestant`."""
        self._index.save_index(str(folder / "index"))

    def load(self, folder: Path, vectors: Vectors) -> None:
        """See `Contestant`."""
        self._index = self._library.Index(space="ip", dim=vectors.shape[1])
        self._index.load_index(str(folder / "index"))

    def tune(self, queries: Vectors, truth: Rows) -> None:
        """See `Contestant`."""
        for self._effort in efforts():
            self._index.set_ef(self._effort)
            if recall(self.search(queries), truth) >= AIM:
                return

    def search(self, queries: Vectors, *, threads: int = 1) -> Rows:
        """See `Contestant`."""
        found, _ = self._index.knn_query(queries, k=K, num_threads=threads)
        return np.asarray(found, dtype=np.int64)

    def describe(self) -> str:
        """See `Contestant`."""
        return f"hnswlib (M={_CONNECTIONS}, ef={self._effort})"


class Usearch:
    """usearch's graph over float32."""

    def __init__(self) -> None:
        self._library: Any = importlib.import_module("usearch.index")
        self._index: Any = None

    def build(self, vectors: Vectors, *, threads: int) -> float:
        """See `Contestant`."""
        self._index = self._library.Index(
            ndim=vectors.shape[1],
            metric="ip",
            dtype="f32",
            connectivity=_CONNECTIONS,
            expansion_add=_CONSTRUCTION,
        )
        for start, block in blocks(vectors):
            self._index.add(np.arange(start, start + len(block)), block, threads=threads)
        return 0.0

    def save(self, folder: Path) -> None:
        """See `Contestant`."""
        self._index.save(str(folder / "index"))

    def load(self, folder: Path, vectors: Vectors) -> None:  # noqa: ARG002 - has its own copy
        """See `Contestant`."""
        self._index = self._library.Index.restore(str(folder / "index"))

    def tune(self, queries: Vectors, truth: Rows) -> None:
        """See `Contestant`."""
        for effort in efforts():
            self._index.expansion_search = effort
            if recall(self.search(queries), truth) >= AIM:
                return

    def search(self, queries: Vectors, *, threads: int = 1) -> Rows:
        """See `Contestant`."""
        found = self._index.search(queries, K, threads=threads).keys
        return np.asarray(found, dtype=np.int64).reshape(len(queries), K)

    def describe(self) -> str:
        """See `Contestant`."""
        expansion = self._index.expansion_search
        return f"usearch (connectivity={_CONNECTIONS}, expansion={expansion})"


def blocks(vectors: Vectors) -> Iterator[tuple[int, Vectors]]:
    """Rows in memory, 8,192 at a time, each with the number of the first."""
    for start in range(0, len(vectors), 8192):
        yield start, np.ascontiguousarray(vectors[start : start + 8192])


def efforts() -> Iterator[int]:
    """Widths of a graph's search, ascending, each half as much again."""
    effort = 16.0
    while effort <= _MOST_EFFORT:
        yield int(effort)
        effort *= 1.5


def recall(found: Rows, truth: Rows) -> float:
    """The share of the truth that was found; both (Q, K)."""
    return float((truth[:, :, None] == found[:, None, :]).any(axis=2).mean())
