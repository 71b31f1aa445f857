"""Some of a collection's vectors, without its rows and without reading all of it into memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lookalike.store.base import Store, unknown_collection
from lookalike.store.vectors import Vectors


def sample_vectors(
    store: Store,
    collection: str,
    *,
    most: int,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Vectors:
    """Vectors of a collection, chosen at random, oldest first.

    Args:
        store: Where they are.
        collection: Which collection.
        most: At most so many, at least 1; all where there are no more.
        seed: The same seed chooses the same ones, while the collection stays as it is.
        on_progress: Told how many pictures were passed, and of how many.

    Returns:
        (N, dim) float32, C-contiguous, rows of length 1.

    Raises:
        CollectionNotFoundError: There is no such collection.
    """
    spec = store.spec(collection)
    if spec is None:
        raise unknown_collection(collection)
    count = store.count(collection)
    wanted = np.zeros(count, dtype=np.bool_)
    wanted[np.random.default_rng(seed).permutation(count)[:most]] = True
    vectors = np.empty((int(wanted.sum()), spec.dim), dtype=np.float32)
    passed = filled = 0
    for block in store.scan(collection):
        here = wanted[passed : passed + len(block.vectors)]  # what came since is left out
        chosen = block.vectors[: len(here)][here]
        vectors[filled : filled + len(chosen)] = chosen
        passed, filled = passed + len(here), filled + len(chosen)
        if on_progress is not None:
            on_progress(passed, count)
    return vectors[:filled]
