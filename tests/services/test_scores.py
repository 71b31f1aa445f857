"""The arithmetic of calibrations: against its definition, and where it could break."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike.errors import CalibrationError, InvalidParameterError
from lookalike.services.scores import (
    CalibrationOptions,
    Pairs,
    ScoreCalibration,
    choose_threshold,
    fit_copies,
    fit_logistic,
    reliability,
    sigmoid,
    weights_of,
)

SCORES = st.floats(-1, 1, width=32)


def loss(a: float, b: float, scores: np.ndarray, copies: np.ndarray) -> float:
    """The weighted negative log-likelihood, term by term."""
    right, wrong = int(copies.sum()), int((~copies).sum())
    total = 0.0
    for score, is_copy in zip(scores, copies, strict=True):
        target = (right + 1) / (right + 2) if is_copy else 1 / (wrong + 2)
        p = 1 / (1 + math.exp(-(a + b * score)))
        weight = 0.5 / (right if is_copy else wrong)
        total -= weight * (target * math.log(p) + (1 - target) * math.log(1 - p))
    return total


def drawn(count: int, seed: int, apart: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    copies = np.arange(count) % 3 == 0
    return np.clip(rng.normal(0.4 + apart * copies, 0.15), -1, 1), copies


@pytest.mark.parametrize("seed", range(4))
def test_no_step_makes_the_fit_better(seed: int) -> None:
    scores, copies = drawn(120, seed)
    a, b = fit_logistic(scores, copies)
    best = loss(a, b, scores, copies)
    for da in (-0.05, 0, 0.05):
        for db in (-0.1, 0, 0.1):
            assert loss(a + da, b + db, scores, copies) >= best - 1e-9


@given(
    st.lists(SCORES, min_size=1, max_size=30),
    st.lists(SCORES, min_size=1, max_size=30),
    st.sampled_from([1.0, 1e-6]),
)
@settings(max_examples=150, deadline=None)
def test_numbers_are_finite_and_probabilities_rise(
    right: list[float], wrong: list[float], scale: float
) -> None:
    scores = np.array(right + wrong) * scale
    copies = np.arange(len(scores)) < len(right)
    try:
        a, b = fit_logistic(scores, copies)
    except CalibrationError:
        return
    assert math.isfinite(a)
    assert math.isfinite(b)
    assert b > 0


@pytest.mark.parametrize("gap", [1e-6, 0.01, 0.5])
def test_scores_that_tell_all_copies(gap: float) -> None:
    scores = np.concatenate([np.full(50, 0.9), np.full(50, 0.9 - gap)])
    a, b = fit_logistic(scores, np.arange(100) < 50)
    p = 1 / (1 + np.exp(-(a + b * scores)))
    assert p[0] > 0.95
    assert p[-1] < 0.05


def test_a_slope_that_is_bounded_turns_about_its_middle() -> None:
    scores = np.concatenate([np.full(1000, 0.501), np.full(1000, 0.5), [-1.0]])
    a, b = fit_logistic(scores, np.arange(2001) < 1000)
    assert b * scores.std() == pytest.approx(40)
    p = sigmoid(a + b * scores)
    assert p[0] > 0.6
    assert p[1000] < 0.4


@pytest.mark.parametrize(
    ("scores", "copies"),
    [([0.5] * 4, [True, False] * 2), ([0.1, 0.9], [True, False]), ([0.1, 0.9], [True, True])],
    ids=["all alike", "the wrong way round", "nothing else"],
)
def test_scores_that_tell_nothing(scores: list[float], copies: list[bool]) -> None:
    with pytest.raises(CalibrationError):
        fit_logistic(np.array(scores), np.array(copies))


def test_reliability_against_three_loops() -> None:
    rng = np.random.default_rng(1)
    p = rng.random(500)
    copies = rng.random(500) < p**2
    ece, bins = reliability(p, copies)
    expected, weights = 0.0, weights_of(copies)
    for tenth in range(10):
        here = [i for i in range(500) if tenth / 10 <= p[i] < (tenth + 1) / 10]
        total = sum(weights[i] for i in here)
        mean = sum(weights[i] * p[i] for i in here) / total
        share = sum(weights[i] * copies[i] for i in here) / total
        expected += total * abs(mean - share)
        found = next(one for one in bins if one.low == tenth / 10)
        assert found.pairs == len(here)
        assert found.predicted == pytest.approx(mean)
        assert found.observed == pytest.approx(share)
    assert ece == pytest.approx(expected)


def test_probabilities_are_right_where_the_model_is() -> None:
    rng = np.random.default_rng(2)
    count = 6000
    copies = np.arange(count) % 2 == 0
    scores = rng.normal(0.2 * copies, 0.2)  # of two normals with one width, the logit is linear
    pairs = Pairs(
        scores=scores,
        copies=copies,
        pictures=np.arange(count) // 2,
        kinds=np.array(["any"] * count),
    )
    fitted = fit_copies(pairs, duplicates=0)
    assert fitted.slope == pytest.approx(0.2 / 0.2**2, rel=0.1)
    assert fitted.ece < 0.03
    assert fitted.probability(-fitted.intercept / fitted.slope) == pytest.approx(0.5)


def test_a_threshold_keeps_the_rate() -> None:
    rng = np.random.default_rng(3)
    wrong, right = rng.normal(0.4, 0.1, 3000).tolist(), rng.normal(0.8, 0.1, 500).tolist()
    found = choose_threshold(wrong, right, CalibrationOptions(), by="labels")
    chosen = wrong[:2000]
    assert sum(one >= found.threshold for one in chosen) <= 0.05 * 2000
    assert sum(one >= found.threshold - 0.01 for one in chosen) > 0.05 * 2000
    assert found.false_alarms == pytest.approx(0.05, abs=0.02)
    assert found.found is not None
    assert found.found > 0.95


def test_a_threshold_of_too_few() -> None:
    with pytest.raises(CalibrationError, match="40 are needed"):
        choose_threshold([0.5] * 39, [], CalibrationOptions(), by="judgements")


@pytest.mark.parametrize(
    "wrong", [{"false_alarms": 0}, {"false_alarms": 0.6}, {"sample": 19}, {"seed": -1}]
)
def test_options_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidParameterError, match=next(iter(wrong))):
        CalibrationOptions(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [None, {}, {"format": 2}, {"format": 1, "pictures": "many"}])
def test_what_cannot_be_read_counts_as_none(content: dict[str, object] | None) -> None:
    assert ScoreCalibration.of_json(content) is None
