"""How FAISS is called here: its threads, its selectors, and its words for errors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import faiss as _faiss
import numpy as np
from numpy.typing import NDArray

from lookalike.cores import available_cores

faiss: Any = _faiss  # its stubs describe the C++ signatures, not the Python ones
VERSION: str = faiss.__version__

_BATCH = 4  # from this many queries on, a matrix product and more threads pay
_MAX_THREADS = 8  # more wait for memory; every thread that leads a batch keeps as many
_max_threads: int | None = None
# Newer versions compare queries * dim with the threshold, older ones queries; see `threads_for`.
_COUNTS_NUMBERS = faiss.cvar.distance_compute_blas_threshold > 10_000


def error_text(error: Exception) -> str:
    """FAISS's own words, without the position in its source that precedes them."""
    text = re.sub(r"^Error in .+? at \S+:\d+: ", "", str(error)).rsplit("Error: ", 1)[-1].strip()
    return (text or type(error).__name__).splitlines()[0][:200]


def selector(chosen: NDArray[np.bool_]) -> Any:
    """FAISS's form of a mask over positions."""
    return faiss.IDSelectorBitmap(np.packbits(chosen, bitorder="little"))


def search_method(index: Any) -> Any:
    """FAISS's own search method.

    `faiss.contrib.torch_utils`, which pytorch-metric-learning imports, replaces it for the whole
    process by one that lacks `params`.
    """
    return getattr(index, "search_numpy", index.search)


def innermost(index: Any) -> Any:
    """The index behind all transformations of vectors."""
    inner = faiss.downcast_index(index)
    while isinstance(inner, faiss.IndexPreTransform):
        inner = faiss.downcast_index(inner.index)
    return inner


@contextmanager
def threads_for(queries: int, rows: int, dim: int, *, parallel_work: int) -> Iterator[None]:
    """Lets FAISS multiply matrices, on every core, if a batch is worth it.

    One query is faster without either. FAISS has one threshold for the whole process: two threads
    that set it at once slow each other down, but never get a wrong answer.
    """
    faiss.cvar.distance_compute_blas_threshold = _BATCH * (dim if _COUNTS_NUMBERS else 1)
    parallel = queries >= _BATCH and queries * rows * dim >= parallel_work
    with threads(max_threads() if parallel else 1):
        yield


def use_at_most(count: int) -> None:
    """Limits the threads of every batch in this process."""
    global _max_threads  # noqa: PLW0603 - one for the process, as FAISS's own are
    _max_threads = count


def max_threads() -> int:
    """Threads that a batch may use: this process's cores, up to 8, or what `use_at_most` allows."""
    return min(_max_threads or available_cores(), _MAX_THREADS)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Sets the number of threads that FAISS uses for calls from this thread."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
