"""How far a mean over queries can be trusted: intervals by resampling."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

RESAMPLES: Final = 1000
"""How many sets of queries are drawn."""

CONFIDENCE: Final = 0.95
"""The share of the drawn means that lie inside an interval."""

_BLOCK = 2**17  # draws at a time: they stay in the cache


def mean_intervals(
    values: NDArray[np.float64], *, seed: int, resamples: int = RESAMPLES
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bootstrap percentile intervals of means over queries.

    Q queries are drawn with replacement, `resamples` times; the interval reaches from the 2.5th to
    the 97.5th percentile of the means (Efron and Tibshirani, An Introduction to the Bootstrap,
    1993, chapter 13). It says how much the mean depends on which queries were asked, and nothing
    of how it depends on the pictures that were searched. All metrics see the same draws.

    Args:
        values: (M, Q), one row for each metric; Q at least 1.
        seed: The same seed gives the same intervals.
        resamples: At least 1.

    Returns:
        Lower and upper ends, (M,) each; the mean lies between them.

    Raises:
        ValueError: There are no queries, or a value is not finite.
    """
    if values.ndim != 2 or not values.shape[1] or not np.isfinite(values).all():
        raise ValueError(
            f"finite values (M, Q) of one query or more are needed, not {values.shape}"
        )
    queries = values.shape[1]
    rng = np.random.default_rng(seed)
    means = np.empty((resamples, len(values)))
    step = max(1, _BLOCK // queries)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(0, queries, size=(rows, queries))
        drawn += np.arange(rows)[:, np.newaxis] * queries
        times = np.bincount(drawn.ravel(), minlength=rows * queries).reshape(rows, queries)
        means[start : start + rows] = times.astype(np.float64) @ values.T / queries
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    mean = values.mean(axis=1)
    return np.minimum(low, mean), np.maximum(high, mean)  # sums in another order round otherwise
