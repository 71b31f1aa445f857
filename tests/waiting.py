"""Waiting for other threads and processes, and working beside them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

PATIENCE_S = 240.0  # only a failure lasts so long, on a busy machine too


def wait_for(
    find: Callable[[], T | None],
    *,
    seconds: float = PATIENCE_S,
    state: Callable[[], object] | None = None,
) -> T:
    """Asks again and again until the answer is true in Python's sense, and gives it.

    Args:
        find: What is asked.
        seconds: How long before the test fails.
        state: What a failure shows.
    """
    end = time.monotonic() + seconds
    while not (found := find()):
        assert time.monotonic() < end, state() if state else f"still {found!r}"
        time.sleep(0.005)
    return found


def assert_stays(holds: Callable[[], object], *, seconds: float) -> None:
    """Asks again and again for a time, and fails as soon as the answer is false.

    Args:
        holds: What is asked.
        seconds: How long it must stay true.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert holds()
        time.sleep(0.005)
    assert holds()


def repeat_together(
    *jobs: Callable[[], object], seconds: float, enough: Callable[[], bool] = lambda: True
) -> None:
    """Repeats every job on a thread of its own for a time, and longer on a busy machine.

    Args:
        jobs: What each thread does again and again; what one raises is raised.
        seconds: How long at least.
        enough: Whether enough happened; each job has had four turns by then, too.
    """
    turns, failed, began = [0] * len(jobs), threading.Event(), time.monotonic()

    def is_done() -> bool:
        spent = time.monotonic() - began
        happened = spent > PATIENCE_S or (min(turns) > 3 and enough())
        return failed.is_set() or (spent > seconds and happened)

    def repeat(place: int) -> None:
        try:
            while not is_done():
                jobs[place]()
                turns[place] += 1
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(len(jobs)) as pool:
        for work in [pool.submit(repeat, place) for place in range(len(jobs))]:
            work.result()
    assert min(turns) > 3
    assert enough()
