"""Training and filling an approximate index, within a bound on memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lookalike.store.local.index.ann import Ann
from lookalike.store.local.index.flat_rows import faiss, threads
from lookalike.store.local.index.index_types import lists_of
from lookalike.store.vectors import Vectors

Progress = Callable[[str, int, int], None]
"""Told what is done, how far, of how many: `train` and `add` rows, `calibrate` depths."""

_TRAINED_PER_LIST = 64
_TRAINED_AT_LEAST = 20_000
_TRAINING_BYTES = 2 * 2**30  # of vectors
_ADDED_BYTES = 64 * 2**20
_ADDED_ROWS = 1000  # at least, as fewer at a time are slower
_TOLD = 50  # times


def build_ann(
    factory: str,
    vectors: Vectors,
    *,
    threads_used: int = 1,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> Ann:
    """Builds an index of all rows.

    Args:
        factory: A factory string of FAISS, see `check_index_type`.
        vectors: (N, dim) float32 unit vectors; may be a mapped file, read in order.
        threads_used: Cores that it may take.
        seed: Chooses the rows that it is trained on.
        on_progress: Told how far it is.

    Raises:
        RuntimeError: FAISS cannot build this type of these vectors; the text is FAISS's.
    """
    tell = on_progress or (lambda *_: None)
    count, dim = vectors.shape
    with threads(threads_used):
        index = faiss.index_factory(dim, factory, faiss.METRIC_L2)
        _train_plainly(index)
        if not index.is_trained:
            sample = _sample(vectors, factory, seed)
            tell("train", 0, len(sample))
            index.train(sample)
        step = max(1, min(_ADDED_BYTES // (4 * dim), max(_ADDED_ROWS, count // _TOLD)))
        for start in range(0, count, step):
            tell("add", start, count)
            index.add(np.ascontiguousarray(vectors[start : start + step], dtype=np.float32))
        tell("add", count, count)
    return Ann(index, factory=factory)


def _train_plainly(index: Any) -> None:
    """Leaves out an order of codes that costs minutes and helps only searches by Hamming distance.

    See `IndexPQ.do_polysemous_training` in FAISS.
    """
    inner = faiss.downcast_index(index)
    while isinstance(inner, faiss.IndexPreTransform):
        inner = faiss.downcast_index(inner.index)
    if hasattr(inner, "do_polysemous_training"):
        inner.do_polysemous_training = False


def _sample(vectors: Vectors, factory: str, seed: int) -> Vectors:
    """Random rows to train on, in their order."""
    count, dim = vectors.shape
    wanted = max(_TRAINED_AT_LEAST, _TRAINED_PER_LIST * lists_of(factory), 2 * dim)
    most = max(1, _TRAINING_BYTES // (4 * dim))
    if count <= min(wanted, most):
        return np.ascontiguousarray(vectors, dtype=np.float32)
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(count, min(wanted, most), replace=False))
    sample: Vectors = np.ascontiguousarray(vectors[chosen], dtype=np.float32)
    return sample
