"""The index against the definition: every score, sorted."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from lookalike.store.base import best_first, exact_scores
from lookalike.store.local.index import policy, segments
from lookalike.store.local.index.policy import DEFAULT_LIMITS, Limits
from lookalike.store.local.index.segments import ExactSegment
from tests.store.helpers import unit_vectors

ROWS, DIM = 6000, 24


def made(vectors: NDArray[np.float32], limits: Limits = DEFAULT_LIMITS) -> ExactSegment:
    index = ExactSegment(vectors.shape[1], limits=limits)
    for start in range(0, len(vectors), 1000):
        seqs = np.arange(start, min(start + 1000, len(vectors)), dtype=np.int64) * 3 + 10
        index = index.added(seqs, vectors[start : start + 1000])
    return index


def by_hand(
    vectors: NDArray[np.float32], query: NDArray[np.float32], k: int, rows: NDArray[np.int64]
) -> tuple[list[float], list[int]]:
    scores, seqs = exact_scores(vectors[rows], query), rows * 3 + 10
    order = best_first(scores, seqs, k)
    return scores[order].tolist(), seqs[order].tolist()


@pytest.mark.parametrize("queries", [1, 3, 30])
@pytest.mark.parametrize("k", [1, 10, 500, 7000])
@pytest.mark.parametrize("removed", [0, 100, 3000])
def test_search_is_exact(queries: int, k: int, removed: int) -> None:
    vectors = unit_vectors(ROWS, dim=DIM)
    vectors[::50] = vectors[0]
    index = made(vectors)
    gone = np.random.default_rng(1).permutation(ROWS)[:removed]
    whole = index
    index = index.removed(gone * 3 + 10).removed(gone * 3 + 10)
    assert (index.dead, whole.dead) == (removed, 0)
    rows = np.setdiff1d(np.arange(ROWS), gone)
    asked = np.concatenate([vectors[:1], unit_vectors(queries, dim=DIM, seed=2)])[:queries]
    for query, (scores, seqs) in zip(asked, index.search(asked, k=k), strict=True):
        assert (scores.tolist(), seqs.tolist()) == by_hand(vectors, query, k, rows)


@pytest.mark.parametrize("share", [0, 5, 400, 4000, ROWS])
def test_only_what_is_allowed_is_found(share: int) -> None:
    vectors = unit_vectors(ROWS, dim=DIM)
    index = made(vectors)
    allowed = np.sort(np.random.default_rng(3).permutation(ROWS)[:share])
    left_out = allowed[:3]
    query = unit_vectors(1, dim=DIM, seed=4)
    found = index.search(
        query,
        k=10,
        allowed=index.locate(allowed * 3 + 10),
        excluded=index.locate(left_out * 3 + 10),
    )
    scores, seqs = found[0]
    assert (scores.tolist(), seqs.tolist()) == by_hand(vectors, query[0], 10, allowed[3:])


def test_ties_beyond_the_last_place_go_by_seq() -> None:
    vectors = np.repeat(unit_vectors(1, dim=DIM), ROWS, axis=0)
    index = made(vectors)
    scores, seqs = index.search(vectors[:1], k=3)[0]
    assert seqs.tolist() == [10, 13, 16]
    assert len(set(scores.tolist())) == 1
    index = index.removed(np.array([13]))
    assert index.search(vectors[:1], k=3)[0][1].tolist() == [10, 16, 19]


def test_seqs_must_ascend_and_fit() -> None:
    index = ExactSegment(DIM).added(np.array([5, 7]), unit_vectors(2, dim=DIM))
    for seqs in ([7, 8], [9, 9], [3, 10]):
        with pytest.raises(ValueError, match="ascend"):
            index.added(np.array(seqs), unit_vectors(2, dim=DIM))
    with pytest.raises(ValueError, match="does not fit"):
        index.added(np.array([8]), unit_vectors(2, dim=DIM))
    assert (len(index), index.last_seq) == (2, 7)


def test_segments_that_share_memory_do_not_see_each_other() -> None:
    vectors = unit_vectors(6, dim=DIM)
    first = ExactSegment(DIM).added(np.arange(1, 3), vectors[:2])
    second = first.added(np.arange(3, 5), vectors[2:4])
    other = first.added(np.arange(7, 9), vectors[4:]).removed(np.array([1]))
    for index, seqs, rows in (
        (first, [1, 2], [0, 1]),
        (second, [1, 2, 3, 4], [0, 1, 2, 3]),
        (other, [2, 7, 8], [1, 4, 5]),
    ):
        assert sorted(index.search(vectors[:1], k=9)[0][1].tolist()) == seqs
        assert np.array_equal(np.concatenate([v for _, v in index.blocks()]), vectors[rows])


def test_an_empty_index_finds_nothing() -> None:
    index = ExactSegment(DIM)
    assert index.last_seq == 0
    assert len(index.locate(np.array([1]))) == 0
    assert [len(s) for s, _ in index.search(unit_vectors(2, dim=DIM), k=3)] == [0, 0]
    assert list(index.blocks()) == []


def test_compaction_keeps_what_is_alive() -> None:
    vectors = unit_vectors(ROWS, dim=DIM)
    index = made(vectors)
    index = index.removed(index.seqs[:5000])
    smaller = index.compacted()
    assert (len(smaller), smaller.dead, smaller.last_seq) == (1000, 0, index.last_seq)
    query = unit_vectors(1, dim=DIM, seed=5)
    left, right = index.search(query, k=5)[0], smaller.search(query, k=5)[0]
    assert np.array_equal(left[0], right[0])
    assert np.array_equal(left[1], right[1])


def test_threads_are_raised_for_a_batch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(policy.faiss, "omp_set_num_threads", seen.append)
    monkeypatch.setattr(segments, "available_cores", lambda: 7)
    monkeypatch.setattr(segments, "_max_threads", None)
    index = made(unit_vectors(ROWS, dim=DIM), Limits(parallel_work=1))
    index.search(unit_vectors(1, dim=DIM), k=1)
    assert seen[0] == 1
    index.search(unit_vectors(8, dim=DIM), k=1)
    assert 7 in seen
    monkeypatch.setattr(segments, "available_cores", lambda: 64)
    assert segments.max_threads() == 8
    monkeypatch.setattr(segments, "_max_threads", None)
    segments.use_at_most(2)
    assert segments.max_threads() == 2


def test_searches_side_by_side_are_right() -> None:
    vectors = unit_vectors(ROWS, dim=DIM)
    index = made(vectors)
    index = index.removed(index.seqs[::2])
    asked = unit_vectors(40, dim=DIM, seed=6)
    alone = [index.search(asked[n : n + 1], k=10)[0] for n in range(40)]

    def ask(n: int) -> bool:
        scores, seqs = index.search(asked[n : n + 1], k=10)[0]
        return np.array_equal(scores, alone[n][0]) and np.array_equal(seqs, alone[n][1])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, list(range(40)) * 10))
