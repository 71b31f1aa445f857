"""The embedding pipeline: order, one answer each, errors of their own, bounds, and its end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookalike.errors import LookalikeError, NotAnImageError, UnavailableError, UnreadableImageError
from lookalike.models.encoders import Vector
from lookalike.services.pipeline import Pipeline, Prepared, grouped, reading
from tests.waiting import PATIENCE_S, wait_for

KINDS = ["no vector", "vector", "fails to decode", "fails in the network"]


class Work:
    """Prepares numbered items as their kind says, and counts what is under way."""

    def __init__(self, kinds: list[str]) -> None:
        self.kinds = kinds
        self.taken = 0
        self.answered = 0
        self.most = 0

    def items(self) -> Iterator[int]:
        for item in range(len(self.kinds)):
            self.taken += 1
            self.most = max(self.most, self.taken - self.answered)
            yield item

    def prepare(self, item: int) -> Prepared[str]:
        kind = self.kinds[item]
        if kind == "fails to decode":
            raise NotAnImageError(f"{item} cannot be decoded")
        if kind == "no vector":
            return f"value {item}", None
        vector: Future[Vector] = Future()
        if kind == "fails in the network":
            vector.set_exception(LookalikeError(f"{item} cannot be embedded"))
        else:
            vector.set_result(np.array([item], dtype=np.float32))
        return f"value {item}", vector


@given(
    kinds=st.lists(st.sampled_from(KINDS), max_size=30),
    threads=st.integers(1, 3),
    window=st.integers(1, 8),
)
def test_every_item_is_answered_once_in_order(kinds: list[str], threads: int, window: int) -> None:
    work = Work(kinds)
    with Pipeline(threads=threads, window=window) as pipeline:
        for item, result in enumerate(pipeline.run(work.items(), work.prepare)):
            work.answered += 1
            assert result.item == item
            kind = kinds[item]
            assert (result.error is not None) == kind.startswith("fails")
            if result.error is not None:
                assert str(result.error).startswith(f"{item} ")
            assert result.value == (None if kind == "fails to decode" else f"value {item}")
            assert (result.vector is not None) == (kind == "vector")
            assert result.vector is None or result.vector[0] == item
    assert work.answered == len(kinds)
    assert work.most <= window


@given(taken=st.integers(0, 5), threads=st.integers(1, 3), window=st.integers(1, 8))
def test_a_run_that_is_closed_leaves_no_work(taken: int, threads: int, window: int) -> None:
    running, lock = [0], threading.Lock()

    def prepare(item: int) -> Prepared[int]:
        with lock:
            running[0] += 1
        try:
            return item, None
        finally:
            with lock:
                running[0] -= 1

    pipeline = Pipeline(threads=threads, window=window)
    work = Work(["no vector"] * 1000)
    results = pipeline.run(work.items(), prepare)
    for _ in range(taken):
        next(results)
    results.close()
    assert running == [0]
    assert work.taken <= taken + window
    assert [one.item for one in pipeline.run(range(3), prepare)] == [0, 1, 2], "others may follow"
    pipeline.close()
    pipeline.close()


def test_closing_the_pipeline_ends_its_threads() -> None:
    before = set(threading.enumerate())
    with Pipeline(threads=3, window=8) as pipeline:
        list(pipeline.run(range(20), lambda item: (item, None)))
    assert set(threading.enumerate()) <= before


def test_closing_waits_for_what_has_begun() -> None:
    began, go, ended = threading.Event(), threading.Event(), threading.Event()

    def prepare(item: int) -> Prepared[int]:
        if item == 1:
            began.set()
            assert go.wait(PATIENCE_S)
            ended.set()
        return item, None

    with Pipeline(threads=2, window=2) as pipeline:
        results = pipeline.run(range(2), prepare)
        next(results)
        assert began.wait(PATIENCE_S)
        closing = threading.Thread(target=results.close)
        closing.start()
        assert not ended.is_set()
        go.set()
        wait_for(lambda: not closing.is_alive())
        assert ended.is_set()


def test_an_error_of_the_program_ends_the_run() -> None:
    def prepare(item: int) -> Prepared[int]:
        return 1 // item, None

    with Pipeline(threads=2, window=4) as pipeline, pytest.raises(ZeroDivisionError):
        list(pipeline.run([1, 0, 1], prepare))


def test_an_error_of_the_input_ends_the_run() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise UnreadableImageError("no more")

    with Pipeline(threads=1, window=4) as pipeline, pytest.raises(UnreadableImageError):
        list(pipeline.run(items(), lambda item: (item, None)))


def test_groups_hold_everything_in_order() -> None:
    assert list(grouped(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(grouped([], 3)) == []


def test_too_many_open_files_say_nothing_of_a_picture() -> None:
    with pytest.raises(UnavailableError, match="open"), reading("photo"):
        raise OSError(24, "Too many open files")


def test_what_cannot_be_read_is_named() -> None:
    with pytest.raises(UnreadableImageError, match="photo cannot be read: gone"), reading("photo"):
        raise OSError(2, "gone")
