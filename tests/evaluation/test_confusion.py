"""Confusion against counting by hand."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lookalike.evaluation.metrics import encode_labels
from lookalike.evaluation.runner import confuse


@given(st.lists(st.sampled_from("abcd"), min_size=2, max_size=9), st.data())
def test_shares_are_counted(labels: list[str], data: st.DataObject) -> None:
    places = st.integers(0, len(labels) - 1)
    k = data.draw(st.integers(1, 4))
    asked = data.draw(st.lists(places, min_size=1, max_size=6))
    found = [data.draw(st.lists(places, min_size=k, max_size=k)) for _ in asked]
    confusion = confuse(encode_labels(labels), queries=np.array(asked), positions=np.array(found))
    matrix = confusion.matrix()
    for row, name in enumerate(confusion.names):
        seen = [
            labels[match]
            for query, matches in zip(asked, found, strict=True)
            for match in matches
            if labels[query] == name
        ]
        for column, other in enumerate(confusion.names):
            if not seen:
                assert np.isnan(matrix[row, column])
                continue
            share = seen.count(other) / len(seen)
            assert matrix[row, column] == share
            assert confusion.by_name().get((name, other), 0) == share
    assert np.isnan(matrix).any() or np.allclose(matrix.sum(axis=1), 1)


def test_the_most_confused_pairs_come_first_ties_in_order() -> None:
    labels = ["a", "b", "c", "c"]
    found = np.array([[1, 2], [2, 3], [3, 0], [2, 0]])
    confusion = confuse(encode_labels(labels), queries=np.arange(4), positions=found)
    pairs = [(1, 2, 1.0), (0, 1, 0.5), (0, 2, 0.5), (2, 0, 0.5)]
    assert confusion.most_confused(9) == pairs
    assert confusion.most_confused(2) == pairs[:2]


def test_many_classes_need_no_matrix() -> None:
    labels = [str(n // 2) for n in range(60_000)]
    queries = np.arange(60_000)
    confusion = confuse(encode_labels(labels), queries=queries, positions=(queries ^ 1)[:, None])
    assert len(confusion.shares) == 30_000
    assert confusion.most_confused(3) == []
