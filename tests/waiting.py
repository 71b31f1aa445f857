"""Waiting for what other threads and processes are about to do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE_S = 60.0  # only a failure lasts so long, on a busy machine too


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
