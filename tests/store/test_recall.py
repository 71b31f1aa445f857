"""Recall against a plain transcription of its definition."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookalike.store.tuning import TIE, recall_at_k


@given(data=st.data(), k=st.integers(1, 8))
def test_recall_is_that_of_its_definition(data, k):
    """Scores from a small grid, so that ties are common."""
    scores = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=20))
    ranked = sorted(range(len(scores)), key=lambda n: (-scores[n], n))
    found = data.draw(st.permutations(range(len(scores))))[:k]
    exact = ranked[:k]

    better = [n for n in range(len(scores)) if scores[n] > scores[exact[-1]]]
    places_for_ties = len(exact) - len(better)
    ties = [n for n in found if scores[n] == scores[exact[-1]]]
    right = sum(n in found for n in better) + min(len(ties), places_for_ties)

    recall = recall_at_k([(n, scores[n] / 10) for n in found], [(n, scores[n] / 10) for n in exact])
    assert recall == pytest.approx(right / len(exact))
    assert 0 <= recall <= 1


def test_scores_that_differ_by_rounding_are_a_tie():
    exact = [("a", 0.9), ("b", 0.5)]
    assert recall_at_k([("a", 0.9), ("c", 0.5 - TIE / 2)], exact) == 1.0
    assert recall_at_k([("a", 0.9), ("c", 0.5 - TIE * 2)], exact) == 0.5
    assert recall_at_k([], exact) == 0.0
