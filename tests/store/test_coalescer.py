"""Queries that wait together are searched together."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lookalike.store.base import Vectors
from lookalike.store.local.index.indexes import Coalescer
from lookalike.store.local.index.segments import ExactSegment, Found
from tests.store.helpers import unit_vectors
from tests.waiting import PATIENCE_S, wait_for


class Slow:
    """An index that is held up until told to go on, and that counts what comes together."""

    def __init__(self) -> None:
        self.index = ExactSegment(8).added(np.arange(1, 101), unit_vectors(100))
        self.go_on = threading.Event()
        self.sizes: list[int] = []

    def search(self, queries: Vectors, k: int) -> list[Found]:
        self.sizes.append(len(queries))
        assert self.go_on.wait(PATIENCE_S)
        return self.index.search(queries, k=k)


def test_who_waits_is_searched_for_together() -> None:
    slow = Slow()
    joined = Coalescer(slow.search)
    vectors = unit_vectors(100)
    with ThreadPoolExecutor(13) as pool:
        first = [pool.submit(joined.search, vectors[n : n + 1], 3) for n in range(3)]
        wait_for(lambda: len(slow.sizes) == 3)
        rest = [pool.submit(joined.search, vectors[n : n + 2], 1 + n % 5) for n in range(3, 13)]
        wait_for(lambda: len(joined._waiting) == 10)
        slow.go_on.set()
        for n, future in enumerate(first):
            assert [seqs[0] for _, seqs in future.result()] == [n + 1]
        for n, future in enumerate(rest, start=3):
            found = future.result()
            assert [seqs[0] for _, seqs in found] == [n + 1, n + 2]
            assert {len(seqs) for _, seqs in found} == {1 + n % 5}
    assert slow.sizes == [1, 1, 1, 20]


@pytest.mark.parametrize("places", [1, 9])
def test_a_search_that_fails_fails_its_callers_and_no_others(places: int) -> None:
    slow = Slow()
    slow.go_on.set()
    joined = Coalescer(slow.search, places=places)
    for _ in range(3):
        with pytest.raises(ValueError, match="mismatch"):
            joined.search(unit_vectors(1, dim=9), 1)
    assert len(joined.search(unit_vectors(2), 5)) == 2
