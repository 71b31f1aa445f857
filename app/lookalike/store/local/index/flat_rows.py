"""Where an exact index has its vectors: in memory of its own, or in a file that is mapped."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import faiss as _faiss
import numpy as np
from numpy.typing import NDArray

from lookalike.cores import available_cores
from lookalike.store.vectors import Vectors

faiss: Any = _faiss  # its stubs describe the C++ signatures, not the Python ones
VERSION: str = faiss.__version__

Positions = NDArray[np.int64]
"""Places in an index, (N,) int64."""

Near = tuple[NDArray[np.float32], Positions]
"""What FAISS found: (Q, n) scores, best first, and (Q, n) positions, -1 for none."""

MAPPED_BYTES = 2**30
"""From this size on, the vectors of an exact index are mapped."""

_BATCH = 4  # from this many queries on, a matrix product and more threads pay
_PARALLEL_WORK = 2**27  # multiplications
_MOST_THREADS = 8  # more wait for memory; every thread that leads a batch keeps as many
_most_threads: int | None = None
# Newer versions compare queries * dim with it, older ones queries; see `tuned`.
_COUNTS_NUMBERS = faiss.cvar.distance_compute_blas_threshold > 10_000


class FlatRows(Protocol):
    """Unit vectors under positions, and the best of them by inner product.

    Attributes:
        fixed: Whether rows can never be added.
    """

    fixed: bool

    @property
    def array(self) -> Vectors:
        """All rows, (N, dim) float32; valid until the next `add`."""
        ...

    def add(self, vectors: Vectors) -> None:
        """Appends (N, dim) float32, C-contiguous. Raises `TypeError` where rows are fixed."""
        ...

    def nearest(
        self, queries: Vectors, width: int, chosen: NDArray[np.bool_] | None = None
    ) -> Near:
        """The `width` best rows of each of (Q, dim) queries, of those that are `chosen`."""
        ...

    @property
    def bytes(self) -> int:
        """Memory that cannot be given back; a mapped file takes none."""
        ...


class MemoryRows:
    """Rows in memory, in FAISS's `IndexFlatIP`.

    Args:
        dim: Numbers in a vector.
    """

    fixed = False

    def __init__(self, dim: int) -> None:
        self._index: Any = faiss.IndexFlatIP(dim)

    @property
    def array(self) -> Vectors:
        """FAISS's own memory, see `FlatRows.array`."""
        count, dim = int(self._index.ntotal), int(self._index.d)
        if not count:
            return np.empty((0, dim), dtype=np.float32)
        rows: Vectors = faiss.rev_swig_ptr(self._index.get_xb(), count * dim).reshape(count, dim)
        return rows

    def add(self, vectors: Vectors) -> None:
        """Appends rows, see `FlatRows.add`."""
        self._index.add(vectors)

    def nearest(
        self, queries: Vectors, width: int, chosen: NDArray[np.bool_] | None = None
    ) -> Near:
        """The best rows, see `FlatRows.nearest`."""
        # A fresh object for each call: FAISS writes into it while it searches.
        parameters = None if chosen is None else faiss.SearchParameters(sel=selector(chosen))
        with tuned(len(queries), int(self._index.ntotal), int(self._index.d)):
            return search_method(self._index)(queries, width, params=parameters)  # type: ignore[no-any-return]

    @property
    def bytes(self) -> int:
        """Four bytes a number."""
        return 4 * int(self._index.ntotal) * int(self._index.d)


class MappedRows:
    """Rows of a file that the system reads when they are needed, and forgets when memory is short.

    Args:
        array: (N, dim) float32, C-contiguous; never changed.
    """

    fixed = True

    def __init__(self, array: Vectors) -> None:
        self._array = array

    @classmethod
    def open(cls, path: Path, *, dim: int) -> MappedRows:
        """Maps a file of little-endian float32. Raises `ValueError` where its size does not fit."""
        size = path.stat().st_size
        if size % (4 * dim):
            raise ValueError(f"{path.name} does not hold whole vectors of {dim} numbers")
        if not size:
            return cls(np.empty((0, dim), dtype=np.float32))
        return cls(np.memmap(path, dtype="<f4", mode="r", shape=(size // (4 * dim), dim)))

    @property
    def array(self) -> Vectors:
        """The mapped file."""
        return self._array

    def add(self, vectors: Vectors) -> None:  # noqa: ARG002
        """Rows of a file are fixed."""
        raise TypeError("a mapped file cannot grow")

    def nearest(
        self, queries: Vectors, width: int, chosen: NDArray[np.bool_] | None = None
    ) -> Near:
        """The best rows, see `FlatRows.nearest`."""
        count, dim = self._array.shape
        scores = np.empty((len(queries), width), dtype=np.float32)
        positions = np.empty((len(queries), width), dtype=np.int64)
        kept = None if chosen is None else selector(chosen)
        with tuned(len(queries), count, dim):
            faiss.knn_inner_product(
                faiss.swig_ptr(queries),
                faiss.swig_ptr(self._array),
                dim,
                len(queries),
                count,
                width,
                faiss.swig_ptr(scores),
                faiss.swig_ptr(positions),
                kept,
            )
        return scores, positions

    @property
    def bytes(self) -> int:
        """None of its own."""
        return 0


def said_by(error: Exception) -> str:
    """FAISS's own words, without the place in its source that stands before them."""
    text = re.sub(r"^Error in .+? at \S+:\d+: ", "", str(error)).rsplit("Error: ", 1)[-1].strip()
    return (text or type(error).__name__).splitlines()[0][:200]


def selector(chosen: NDArray[np.bool_]) -> Any:
    """FAISS's form of a mask over positions."""
    return faiss.IDSelectorBitmap(np.packbits(chosen, bitorder="little"))


def search_method(index: Any) -> Any:
    """FAISS's own search.

    `faiss.contrib.torch_utils`, which pytorch-metric-learning imports, puts one without `params` in
    its place, for the whole process.
    """
    return getattr(index, "search_numpy", index.search)


@contextmanager
def tuned(queries: int, rows: int, dim: int) -> Iterator[None]:
    """Has FAISS multiply matrices, on every core, where a batch is worth it.

    One query is faster without either. The threshold is one for the process: two threads that set
    it at once cost each other time, never correctness.
    """
    faiss.cvar.distance_compute_blas_threshold = _BATCH * (dim if _COUNTS_NUMBERS else 1)
    worth_it = queries >= _BATCH and queries * rows * dim >= _PARALLEL_WORK
    with threads(most_threads() if worth_it else 1):
        yield


def use_at_most(count: int) -> None:
    """Bounds the threads of every batch in this process."""
    global _most_threads  # noqa: PLW0603 - one for the process, as FAISS's own are
    _most_threads = count


def most_threads() -> int:
    """What a batch may use: the cores of this process up to a few, unless bounded further."""
    return min(_most_threads or available_cores(), _MOST_THREADS)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Has FAISS use so many threads for calls from this one."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
