"""A whole evaluation against plain NumPy, and what it does at the edges."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lookalike.errors import InvalidParameterError
from lookalike.evaluation.metrics import average_precision_at, encode_labels, judge
from lookalike.evaluation.runner import PAIRS, WORST, Metric, evaluate, evaluate_query
from lookalike.progress import Progress
from lookalike.services.ranking import rank
from lookalike.services.vector_set import Skipped, VectorSet
from tests.evaluation.made import clouds, drawn_set, vector_set


def plain(vectors: VectorSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Order and scores of all others, (N, N - 1), and which are right."""
    wide = vectors.vectors.astype(np.float64)
    labels = np.array(vectors.labels)
    scores = wide @ wide.T
    np.fill_diagonal(scores, -np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :-1]
    return order, np.take_along_axis(scores, order, axis=1), labels[order] == labels[:, None]


@pytest.fixture(scope="module")
def mixed() -> VectorSet:
    vectors, labels = clouds([8, 20, 1, 13, 1])
    return vector_set(vectors, labels, skipped=[Skipped("bad.jpg", "no picture")])


def test_figures_are_those_of_plain_numpy(mixed: VectorSet) -> None:
    found = evaluate(mixed, k=4, ks=(1, 3))
    _, _, right = plain(mixed)
    totals = right.sum(axis=1)
    right, totals = right[totals > 0], totals[totals > 0]
    assert found.depth == 19
    assert found.metric("precision", 4).value == pytest.approx(right[:, :4].mean(), abs=1e-12)
    assert found.metric("hit_rate", 3).value == pytest.approx(right[:, :3].any(axis=1).mean())
    recall = (right[:, :4].sum(axis=1) / totals).mean()
    assert found.metric("recall", 4).value == pytest.approx(recall, abs=1e-12)
    at_r = [row[:total].mean() for row, total in zip(right, totals, strict=True)]
    assert found.metric("r_precision").value == pytest.approx(np.mean(at_r), abs=1e-12)
    first = np.where(right[:, :19].any(axis=1), 1 / (1 + right.argmax(axis=1)), 0)
    assert found.metric("mrr", 19).value == pytest.approx(first.mean(), abs=1e-12)
    assert found.chance == pytest.approx((totals / 42).mean())
    for metric in found.metrics:
        assert 0 <= metric.low <= metric.value <= metric.high <= 1


def test_counts_and_setup_are_told(mixed: VectorSet) -> None:
    found = evaluate(mixed, k=4, ks=(3, 1))
    assert (found.pictures, found.classes, found.queries, found.left_out) == (43, 5, 41, 2)
    assert found.skipped == (Skipped("bad.jpg", "no picture"),)
    assert (found.k, found.ks, found.seed, found.index) == (4, (1, 3, 4), 0, "Flat")
    assert (found.dataset, found.asked, found.notes) == ("made", None, ())
    assert found.spec == mixed.spec
    assert {"index", "rank", "measure", "summarize", "total"} == set(found.seconds)
    assert {"lookalike", "python", "numpy"} == set(found.versions)
    names = [(metric.name, metric.k) for metric in found.metrics]
    assert len(set(names)) == len(names) == 5 * 3 + 3
    with pytest.raises(KeyError):
        found.metric("precision", 2)


def test_classes_are_means_over_their_queries(mixed: VectorSet) -> None:
    found = evaluate(mixed, k=4)
    _, _, right = plain(mixed)
    labels = np.array(mixed.labels)
    assert [result.label for result in found.per_class] == ["class 000", "class 001", "class 003"]
    for result in found.per_class:
        rows = right[labels == result.label]
        assert result.pictures == result.queries == len(rows)
        assert result.precision.value == pytest.approx(rows[:, :4].mean(), abs=1e-12)
        assert result.precision.low <= result.precision.value <= result.precision.high
    weights = [result.queries for result in found.per_class]
    values = [result.average_precision.value for result in found.per_class]
    assert np.average(values, weights=weights) == pytest.approx(found.metric("map", 4).value)


def test_confused_pairs_come_with_their_highest_score(mixed: VectorSet) -> None:
    found = evaluate(mixed, k=4)
    order, scores, _ = plain(mixed)
    labels = np.array(mixed.labels)
    assert 0 < len(found.confused_pairs) <= PAIRS
    assert np.isnan(found.confusion.matrix()[2]).all()  # alone in its class: no query
    shares = [pair.share for pair in found.confused_pairs]
    assert shares == sorted(shares, reverse=True)
    for pair in found.confused_pairs:
        rows = np.flatnonzero(labels == pair.asked)
        wrong = labels[order[rows, :4]] == pair.found
        assert pair.share == pytest.approx(wrong.mean())
        assert pair.match.score == pytest.approx(scores[rows, :4][wrong].max(), abs=1e-12)
        assert pair.match.position == order[pair.query, pair.match.rank - 1]
        assert labels[pair.query] == pair.asked
        assert pair.match.label == labels[pair.match.position] == pair.found
        assert not pair.match.relevant


def test_the_worst_queries_have_the_lowest_average_precision(mixed: VectorSet) -> None:
    found = evaluate(mixed, k=4)
    classes = encode_labels(mixed.labels)
    queries = np.flatnonzero(classes.counts()[classes.codes] > 1)
    ranking = rank(mixed, queries=queries, k=19)
    judged = judge(classes, queries=queries, positions=ranking.positions)
    values = average_precision_at(judged, 19)
    expected = sorted(zip(values.tolist(), queries.tolist(), strict=True))[:WORST]
    assert [(query.average_precision, query.position) for query in found.worst] == expected
    order, _, right = plain(mixed)
    assert mixed.labels is not None
    for query in found.worst:
        assert [match.position for match in query.matches] == order[query.position, :4].tolist()
        assert [match.relevant for match in query.matches] == right[query.position, :4].tolist()
        assert [match.rank for match in query.matches] == [1, 2, 3, 4]
        assert query.precision == right[query.position, :4].mean()
        assert (query.id, query.name) == (f"id{query.position}", f"{query.position}.jpg")
        assert query.label == mixed.labels[query.position]


def test_equally_bad_queries_go_by_position() -> None:
    rows = np.eye(30, dtype=np.float32)
    rows[0::2] = rows[0]  # all even ones alike
    rows[1::2] = rows[1]
    labels = [str(n // 2) for n in range(30)]  # the right one is always the other kind
    found = evaluate(vector_set(rows, labels), k=3, ks=(1,))
    assert [query.position for query in found.worst] == list(range(WORST))


def test_some_queries_are_chosen_by_the_seed(mixed: VectorSet) -> None:
    few = evaluate(mixed, k=4, queries=10, seed=1)
    again = evaluate(mixed, k=4, queries=10, seed=1)
    other = evaluate(mixed, k=4, queries=10, seed=2)
    assert (few.queries, few.asked, few.left_out) == (10, 10, 2)
    assert few.metrics == again.metrics
    assert few.metric("map", 4).value != other.metric("map", 4).value
    assert sum(result.queries for result in few.per_class) == 10
    every = evaluate(mixed, k=4)
    most = evaluate(mixed, k=4, queries=1000)
    assert (most.queries, most.metrics) == (41, every.metrics)


def test_blocks_change_nothing(mixed: VectorSet, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate(mixed, k=4)
    monkeypatch.setattr("lookalike.services.ranking._QUERIES", 7)
    seen: list[tuple[int, int]] = []
    parts = evaluate(mixed, k=4, progress=Progress(lambda _, *done: seen.append(done)))
    assert parts.metrics == whole.metrics
    assert parts.worst == whole.worst
    assert seen == [(n, 41) for n in (7, 14, 21, 28, 35, 41)]


def test_large_classes_leave_out_what_needs_their_depth(mixed: VectorSet) -> None:
    whole = evaluate(mixed, k=4)
    found = evaluate(mixed, k=4, max_depth=18)
    assert found.depth == 10
    assert len(found.notes) == 1
    assert "R-precision and MAP@R are left out: they would need 19 ranks" in found.notes[0]
    assert {m.name for m in whole.metrics} - {m.name for m in found.metrics} == {
        "r_precision",
        "map_at_r",
    }
    assert found.metric("precision", 4) == whole.metric("precision", 4)


def test_cutoffs_beyond_a_small_set_are_left_out_and_told() -> None:
    vectors, labels = clouds([3, 3])
    found = evaluate(vector_set(vectors, labels), k=5)
    assert (found.ks, found.depth) == ((1, 5), 5)
    assert found.notes == ("The cut-off 10 is left out: each picture has only 5 others.",)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"k": 6}, "k is 6, but each picture has 5 others"),
        ({"k": 0}, "A cut-off is 0"),
        ({"k": 2, "ks": (-1,)}, "A cut-off is -1"),
        ({"k": 2, "queries": 0}, "0 queries were asked for"),
        ({"k": 2, "seed": -1}, "The seed is -1"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any], text: str) -> None:
    vectors, labels = clouds([3, 3])
    with pytest.raises(InvalidParameterError, match=text):
        evaluate(vector_set(vectors, labels), **options)


def test_sets_without_anything_to_find_are_refused() -> None:
    vectors, labels = clouds([1] * 12)
    with pytest.raises(InvalidParameterError, match="No two pictures have the same label"):
        evaluate(vector_set(vectors, labels))
    with pytest.raises(InvalidParameterError, match="no labels"):
        evaluate(vector_set(vectors, None))
    with pytest.raises(InvalidParameterError, match="No two pictures"):
        evaluate(vector_set(vectors[:0], []))


def test_one_class_is_all_right() -> None:
    vectors, labels = clouds([15])
    found = evaluate(vector_set(vectors, labels))
    assert {m.value for m in found.metrics if m.name != "recall"} == {1.0}
    assert found.chance == 1
    assert found.confused_pairs == ()


def test_the_fingerprint_is_of_the_pictures() -> None:
    vectors, labels = clouds([6, 6])
    made = vector_set(vectors, labels)
    first = evaluate(made).dataset_sha256
    mirrored = replace(
        made,
        vectors=vectors[::-1],
        ids=made.ids[::-1],
        names=made.names[::-1],
        labels=labels[::-1],
        sha256s=made.sha256s[::-1],
    )
    assert first == evaluate(mirrored).dataset_sha256
    assert first != evaluate(replace(made, labels=labels[::-1])).dataset_sha256
    assert first != evaluate(replace(made, sha256s=made.sha256s[::-1])).dataset_sha256


def test_one_query_with_and_without_labels(mixed: VectorSet) -> None:
    order, scores, right = plain(mixed)
    found = evaluate_query(mixed, 7, 5)
    assert mixed.labels is not None
    assert (found.position, found.label) == (7, mixed.labels[7])
    assert [match.position for match in found.matches] == order[7, :5].tolist()
    assert [match.score for match in found.matches] == pytest.approx(scores[7, :5], abs=1e-12)
    assert found.precision == right[7, :5].mean()
    assert found.average_precision is not None
    assert 0 <= found.average_precision <= 1
    bare = evaluate_query(vector_set(mixed.vectors, None), 7, 5)
    assert (bare.label, bare.precision, bare.average_precision) == (None, None, None)
    assert [match.position for match in bare.matches] == order[7, :5].tolist()
    assert {(match.label, match.relevant) for match in bare.matches} == {(None, None)}


def test_one_query_alone_in_its_class_has_no_precision(mixed: VectorSet) -> None:
    lone = (mixed.labels or ()).index("class 002")
    found = evaluate_query(mixed, lone)
    assert (found.precision, found.average_precision) == (None, None)
    assert {match.relevant for match in found.matches} == {False}


@pytest.mark.parametrize("position", [-1, 43])
def test_one_query_out_of_range_is_refused(mixed: VectorSet, position: int) -> None:
    with pytest.raises(InvalidParameterError, match="from 0 to 42"):
        evaluate_query(mixed, position)


def test_drawn_pictures_find_their_own_kind() -> None:
    found = evaluate(drawn_set(classes=["leaf", "clock", "car"], instances=3, views=3), k=2)
    assert (found.pictures, found.classes) == (27, 3)
    assert found.metric("precision", 1).value > 2 * found.chance


@pytest.mark.parametrize(
    ("name", "low", "value", "high"),
    [("other", 0, 0, 1), ("map", 0.5, 0.4, 1), ("map", 0, 1, 0.5), ("map", 0, 1.1, 1.2)],
)
def test_metrics_are_checked(name: str, low: float, value: float, high: float) -> None:
    with pytest.raises(ValueError, match=name):
        Metric(name=name, k=1, value=value, low=low, high=high)
    assert Metric(name="map_at_r", k=None, value=0, low=0, high=0).title == "MAP@R"
    assert Metric(name="map", k=5, value=0, low=0, high=0).title == "mAP@5"
