"""Ranks against the definition: every cosine in double precision, sorted."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from lookalike.errors import InvalidParameterError
from lookalike.progress import Progress
from lookalike.services import ranking
from lookalike.services.ranking import rank, rank_blocks
from tests.evaluation.made import clouds, vector_set
from tests.store.helpers import unit_vectors


def by_hand(
    vectors: NDArray[np.float32], query: int, k: int
) -> tuple[list[int], NDArray[np.float64]]:
    wide = vectors.astype(np.float64)
    scores = np.clip([np.sum(row * wide[query]) for row in wide], -1, 1)
    order = [int(p) for p in np.argsort(-scores, kind="stable") if p != query][:k]
    return order, scores[order]


@pytest.mark.parametrize("rows", [30, 2500])  # candidates in double and in single precision
@pytest.mark.parametrize("k", [1, 7, 29])
def test_ranks_are_the_definition(rows: int, k: int) -> None:
    vectors = unit_vectors(rows, dim=12)
    queries = np.array([rows - 1, 0, 5, 5])
    found = rank(vectors, queries=queries, k=k)
    assert found.queries.tolist() == queries.tolist()
    assert found.positions.dtype == np.int64
    assert found.scores.dtype == np.float64
    for row, query in enumerate(queries):
        positions, scores = by_hand(vectors, query, k)
        assert found.positions[row].tolist() == positions
        np.testing.assert_allclose(found.scores[row], scores, atol=1e-12)


def test_all_others_are_ranked() -> None:
    found = rank(unit_vectors(20), queries=np.arange(20), k=19)
    for query, positions in enumerate(found.positions):
        assert sorted([query, *positions.tolist()]) == list(range(20))


@pytest.mark.parametrize("rows", [40, 2500])
def test_equal_pictures_go_by_position_and_the_query_is_left_out(rows: int) -> None:
    vectors = np.repeat(unit_vectors(1, dim=12), rows, axis=0)
    found = rank(vectors, queries=np.array([0, 2, rows - 1]), k=4)
    assert found.positions.tolist() == [[1, 2, 3, 4], [0, 1, 3, 4], [0, 1, 2, 3]]


@pytest.mark.parametrize("k", [1, 9, 300, 399])  # candidates in single and in double precision
@pytest.mark.parametrize("dim", [3, 700])
def test_duplicates_and_near_ones_keep_the_order_of_the_definition(k: int, dim: int) -> None:
    rng = np.random.default_rng(dim)
    few = unit_vectors(40, dim=dim)
    vectors = few[rng.integers(0, len(few), size=400)]
    nudged = rng.choice(400, size=100, replace=False)
    vectors[nudged, 0] = np.nextafter(vectors[nudged, 0], np.float32(2))
    queries = rng.permutation(400)[:60]
    found = rank(vectors, queries=queries, k=k)
    for row, query in enumerate(queries.tolist()):
        positions, scores = by_hand(vectors, query, k)
        assert found.positions[row].tolist() == positions
        np.testing.assert_allclose(found.scores[row], scores, atol=1e-12)


def test_blocks_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = unit_vectors(50, dim=12)
    queries = np.arange(50)[::-1]
    whole = rank(vectors, queries=queries, k=5)
    monkeypatch.setattr(ranking, "_SCORES_BYTES", 7 * 50 * 8)
    monkeypatch.setattr(ranking, "_ROWS_BYTES", 11 * 12 * 8)
    seen: list[tuple[int, int]] = []
    told = Progress(lambda _, *n: seen.append(n))
    blocks = list(rank_blocks(vectors, queries=queries, k=5, progress=told))
    assert [len(block.queries) for block in blocks] == [7] * 7 + [1]
    assert seen[0] == (7, 50)
    assert seen[-1] == (50, 50)
    together = ranking.concatenate(blocks)
    assert np.array_equal(together.queries, queries)
    assert np.array_equal(together.positions, whole.positions)
    assert np.array_equal(together.scores, whole.scores)
    assert together.first(2).positions.tolist() == whole.positions[:, :2].tolist()


def test_a_set_and_its_vectors_rank_alike() -> None:
    vectors, labels = clouds([5, 5])
    left = rank(vector_set(vectors, labels), queries=np.array([1]), k=3)
    assert np.array_equal(left.positions, rank(vectors, queries=np.array([1]), k=3).positions)


def test_read_only_rows_of_another_layout_are_fine() -> None:
    vectors = np.asfortranarray(unit_vectors(30, dim=12))
    vectors.setflags(write=False)
    found = rank(vectors, queries=np.array([4]), k=3)
    assert found.positions[0].tolist() == by_hand(vectors, 4, 3)[0]


@pytest.mark.parametrize("k", [0, -1, 10, 11])
def test_k_out_of_range_is_refused(k: int) -> None:
    with pytest.raises(InvalidParameterError, match=f"k is {k}, but each picture has 9 others"):
        rank(unit_vectors(10), queries=np.array([0]), k=k)


@pytest.mark.parametrize("queries", [[-1], [10], [], [[0]]])
def test_queries_out_of_range_are_refused(queries: list[int]) -> None:
    with pytest.raises(InvalidParameterError, match=r"from 0 to 9|no queries"):
        rank(unit_vectors(10), queries=np.array(queries, dtype=np.int64), k=1)


def test_vectors_that_are_no_directions_are_refused() -> None:
    vectors = unit_vectors(5)
    vectors[2] = np.nan
    with pytest.raises(ValueError, match="length 1"):
        rank(vectors, queries=np.array([0]), k=1)
