"""Bootstrap intervals: against loops, against the theory, and where they could go wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookalike.evaluation.metrics import mean_intervals


def slowly(values: np.ndarray, *, seed: int, resamples: int) -> tuple[list[float], list[float]]:
    """Draws queries one set at a time, and sorts the means of each metric."""
    rng = np.random.default_rng(seed)
    queries = values.shape[1]
    sets: list[Any] = [rng.integers(0, queries, size=queries) for _ in range(resamples)]
    low, high = [], []
    for row in values:
        means = [sum(row[query] for query in drawn) / queries for drawn in sets]
        low.append(float(np.percentile(means, 2.5)))
        high.append(float(np.percentile(means, 97.5)))
    return low, high


@pytest.mark.parametrize("block", [1, 100, 2**20])
def test_intervals_are_percentiles_of_means(block: int) -> None:
    values = np.random.default_rng(1).random((3, 20))
    low, high = mean_intervals(values, seed=7, resamples=200, block=block)
    slow_low, slow_high = slowly(values, seed=7, resamples=200)
    np.testing.assert_allclose(low, slow_low, atol=1e-12)
    np.testing.assert_allclose(high, slow_high, atol=1e-12)


def test_intervals_have_the_width_that_theory_gives() -> None:
    values = (np.arange(10_000) % 4 == 0)[np.newaxis].astype(np.float64)
    low, high = mean_intervals(values, seed=0)
    error = 1.96 * np.sqrt(0.25 * 0.75 / 10_000)
    assert low[0] == pytest.approx(0.25 - error, abs=error / 8)
    assert high[0] == pytest.approx(0.25 + error, abs=error / 8)


def test_most_intervals_hold_the_true_mean() -> None:
    rng = np.random.default_rng(3)
    held = 0
    for seed in range(100):
        values = (rng.random((1, 200)) < 0.6).astype(np.float64)
        low, high = mean_intervals(values, seed=seed, resamples=300)
        held += bool(low[0] <= 0.6 <= high[0])
    assert 88 <= held <= 100


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9), st.integers(0, 2**32))
def test_the_mean_lies_between(values: list[float], seed: int) -> None:
    rows = np.array([values, [0.1] * len(values)])
    low, high = mean_intervals(rows, seed=seed, resamples=20)
    assert (low <= rows.mean(axis=1)).all()
    assert (rows.mean(axis=1) <= high).all()
    assert high[1] - low[1] < 1e-15


def test_rounding_leaves_the_mean_between() -> None:
    values = np.repeat(np.random.default_rng(2).random((60, 1)), 1001, axis=1)
    low, high = mean_intervals(values, seed=0, resamples=3)
    assert (low <= values.mean(axis=1)).all()
    assert (values.mean(axis=1) <= high).all()


def test_a_seed_gives_the_same_intervals_for_each_metric_alone() -> None:
    values = np.random.default_rng(1).random((2, 50))
    both = mean_intervals(values, seed=5)
    again = mean_intervals(values[1:], seed=5)
    assert both[0][1] == pytest.approx(again[0][0], abs=1e-15)
    assert not np.array_equal(both[0], mean_intervals(values, seed=6)[0])


@pytest.mark.parametrize("values", [np.empty((2, 0)), np.ones(3), np.array([[1.0, np.nan]])])
def test_values_must_be_finite_and_there(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="finite values"):
        mean_intervals(values, seed=0)
