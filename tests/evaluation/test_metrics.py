"""Every metric against a plain, looped transcription of its definition, and others' code."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lookalike.errors import InvalidParameterError
from lookalike.evaluation import metrics
from lookalike.evaluation.metrics import Relevance, encode_labels, judge
from lookalike.services.ranking import Ranking, rank
from tests.evaluation.made import clouds

Slow = Callable[[list[bool], int, int], float]


def slow_precision(found: list[bool], total: int, k: int) -> float:
    right = 0
    for match in found[:k]:
        if match:
            right += 1
    return right / k


def slow_recall(found: list[bool], total: int, k: int) -> float:
    right = 0
    for match in found[:k]:
        if match:
            right += 1
    return right / total


def slow_hit(found: list[bool], total: int, k: int) -> float:
    for match in found[:k]:
        if match:
            return 1.0
    return 0.0


def slow_average_precision(found: list[bool], total: int, k: int) -> float:
    added = 0.0
    for place in range(k):
        if found[place]:
            added += slow_precision(found, total, place + 1)
    return added / min(total, k)


def slow_ndcg(found: list[bool], total: int, k: int) -> float:
    gained, possible = 0.0, 0.0
    for place in range(k):
        if found[place]:
            gained += 1 / math.log2(place + 2)
        if place < total:
            possible += 1 / math.log2(place + 2)
    return gained / possible


def slow_reciprocal_rank(found: list[bool], total: int, k: int) -> float:
    for place in range(k):
        if found[place]:
            return 1 / (place + 1)
    return 0.0


def slow_map_at_r(found: list[bool], total: int, k: int) -> float:
    added = 0.0
    for place in range(total):
        if found[place]:
            added += slow_precision(found, total, place + 1)
    return added / total


def slow_r_precision(found: list[bool], total: int, k: int) -> float:
    return slow_precision(found, total, total)


AT_K: list[tuple[Callable[[Relevance, int], NDArray[np.float64]], Slow]] = [
    (metrics.precision_at, slow_precision),
    (metrics.recall_at, slow_recall),
    (metrics.hit_at, slow_hit),
    (metrics.average_precision_at, slow_average_precision),
    (metrics.ndcg_at, slow_ndcg),
    (metrics.reciprocal_rank, slow_reciprocal_rank),
]
AT_R: list[tuple[Callable[[Relevance], NDArray[np.float64]], Slow]] = [
    (metrics.average_precision_at_r, slow_map_at_r),
    (metrics.r_precision, slow_r_precision),
]


@st.composite
def relevances(draw: st.DrawFn, *, deep: bool = False) -> Relevance:
    """Random ranks; deep ones reach as far as any query has relevant pictures."""
    depth = draw(st.integers(1, 12))
    rows = draw(st.lists(st.lists(st.booleans(), min_size=depth, max_size=depth), min_size=1))
    totals = []
    for row in rows:
        least = max(1, sum(row))
        totals.append(draw(st.integers(least, depth if deep else least + 20)))
    return Relevance(ranked=np.array(rows, dtype=np.bool_), relevant_total=np.array(totals))


def slowly(relevance: Relevance, slow: Slow, k: int = 0) -> list[float]:
    rows = zip(relevance.ranked.tolist(), relevance.relevant_total.tolist(), strict=True)
    return [slow(found, total, k) for found, total in rows]


@given(relevances(), st.data())
def test_metrics_at_k_are_their_definitions(relevance: Relevance, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, relevance.depth))
    for fast, slow in AT_K:
        values = fast(relevance, k)
        assert values.dtype == np.float64
        np.testing.assert_allclose(values, slowly(relevance, slow, k), atol=1e-12)
        assert ((values >= 0) & (values <= 1)).all()


@given(relevances(deep=True))
def test_metrics_at_r_are_their_definitions(relevance: Relevance) -> None:
    for fast, slow in AT_R:
        values = fast(relevance)
        assert values.dtype == np.float64
        np.testing.assert_allclose(values, slowly(relevance, slow), atol=1e-12)


def test_the_example_of_the_paper() -> None:
    """Musgrave et al. 2020, figure on MAP@R: ten relevant pictures, of which ranks 1 and 10."""
    ranked = np.zeros((1, 10), dtype=np.bool_)
    ranked[0, [0, 9]] = True
    relevance = Relevance(ranked=ranked, relevant_total=np.array([10]))
    assert metrics.r_precision(relevance)[0] == 0.2
    assert metrics.average_precision_at_r(relevance)[0] == pytest.approx((1 + 2 / 10) / 10)


def test_a_perfect_order_gets_one_at_any_k() -> None:
    ranked = np.arange(8)[np.newaxis] < np.array([[3], [8]])
    relevance = Relevance(ranked=ranked, relevant_total=np.array([3, 50]))
    for k in range(1, 9):
        assert metrics.average_precision_at(relevance, k).tolist() == [1, 1]
        assert metrics.ndcg_at(relevance, k).tolist() == [1, 1]


@pytest.mark.parametrize("k", [0, 4])
def test_k_beyond_the_known_ranks_is_refused(k: int) -> None:
    relevance = Relevance(ranked=np.ones((2, 3), dtype=np.bool_), relevant_total=np.array([3, 9]))
    for fast, _ in AT_K:
        with pytest.raises(InvalidParameterError, match=f"k is {k}, but 3 ranks are known"):
            fast(relevance, k)
    for at_r, _ in AT_R:
        with pytest.raises(InvalidParameterError, match="9 relevant pictures, but 3 ranks"):
            at_r(relevance)


@pytest.mark.parametrize(
    ("ranked", "totals", "text"),
    [
        (np.ones((2, 3)), [3, 3], r"\(Q, K\) bool"),
        (np.ones(3, dtype=np.bool_), [3], r"\(Q, K\) bool"),
        (np.ones((2, 0), dtype=np.bool_), [3, 3], r"\(Q, K\) bool"),
        (np.ones((2, 3), dtype=np.bool_), [3], "one number for each"),
        (np.ones((1, 3), dtype=np.bool_), [2], "fewer than were found"),
        (np.zeros((1, 3), dtype=np.bool_), [0], "no relevant picture"),
    ],
)
def test_relevance_is_checked(ranked: NDArray[np.bool_], totals: list[int], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Relevance(ranked=ranked, relevant_total=np.array(totals))


def test_labels_become_numbers() -> None:
    classes = encode_labels(["b", "a\0", "a", "ä", "b"])
    assert classes.names == ("a", "a\0", "b", "ä")
    assert classes.codes.tolist() == [2, 1, 0, 3, 2]
    assert classes.counts().tolist() == [1, 1, 2, 1]
    relevance = judge(classes, queries=np.array([0, 4]), positions=np.array([[4, 1], [2, 0]]))
    assert relevance.ranked.tolist() == [[True, False], [False, True]]
    assert relevance.relevant_total.tolist() == [1, 1]
    with pytest.raises(InvalidParameterError, match="no labels"):
        encode_labels(None)
    with pytest.raises(ValueError, match="no relevant picture"):
        judge(classes, queries=np.array([1]), positions=np.array([[0]]))


# Against what others wrote, on ranked vectors


@pytest.fixture(scope="module")
def ranked() -> tuple[NDArray[np.float32], NDArray[np.int64], Ranking, Relevance]:
    vectors, labels = clouds([4, 9, 30, 17, 2, 1])
    classes = encode_labels(labels)
    queries = np.flatnonzero(classes.counts()[classes.codes] > 1)
    ranking = rank(vectors, queries=queries, k=len(vectors) - 1)
    relevance = judge(classes, queries=queries, positions=ranking.positions)
    return vectors, classes.codes, ranking, relevance


def test_pytorch_metric_learning_agrees(ranked) -> None:
    import torch
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    vectors, codes, _, relevance = ranked
    names = (
        "precision_at_1",
        "r_precision",
        "mean_average_precision_at_r",
        "mean_average_precision",
        "mean_reciprocal_rank",
    )
    calculator = AccuracyCalculator(include=names, k=None, device=torch.device("cpu"))
    theirs = calculator.get_accuracy(vectors, codes)  # leaves the lone picture out, as we do
    ours = {
        "precision_at_1": metrics.precision_at(relevance, 1),
        "r_precision": metrics.r_precision(relevance),
        "mean_average_precision_at_r": metrics.average_precision_at_r(relevance),
        "mean_average_precision": metrics.average_precision_at(relevance, relevance.depth),
        "mean_reciprocal_rank": metrics.reciprocal_rank(relevance, relevance.depth),
    }
    assert 0.2 < ours["mean_average_precision_at_r"].mean() < 0.8
    for name in names:  # their reciprocals are single precision
        assert ours[name].mean() == pytest.approx(theirs[name], abs=1e-7), name


def test_scikit_learn_agrees(ranked) -> None:
    from sklearn.metrics import (
        average_precision_score,
        label_ranking_average_precision_score,
        ndcg_score,
        top_k_accuracy_score,
    )

    _, codes, ranking, relevance = ranked
    truth = codes[ranking.positions] == codes[ranking.queries][:, np.newaxis]
    full = metrics.average_precision_at(relevance, relevance.depth)
    theirs = [average_precision_score(*row) for row in zip(truth, ranking.scores, strict=True)]
    np.testing.assert_allclose(full, theirs, atol=1e-12)
    assert full.mean() == pytest.approx(
        label_ranking_average_precision_score(truth, ranking.scores), abs=1e-12
    )
    for k in (1, 5, 10, 40):
        expected = ndcg_score(truth.astype(float), ranking.scores, k=k, ignore_ties=True)
        assert metrics.ndcg_at(relevance, k).mean() == pytest.approx(expected, abs=1e-12)
    one = np.array([row.argmax() for row in truth])  # the best right match as the only right one
    for k in (1, 5, 10):
        expected = top_k_accuracy_score(one, ranking.scores, k=k, labels=np.arange(relevance.depth))
        assert metrics.hit_at(relevance, k).mean() == pytest.approx(expected, abs=1e-12)
