"""How long each stage of a request took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up milliseconds by stage; `total` runs from its making."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._stages: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts the time inside the block towards `name`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._stages[name] = self._stages.get(name, 0.0) + time.perf_counter() - started

    def took_ms(self) -> dict[str, float]:
        """Milliseconds by stage so far, in order of first use, then `total`."""
        total = time.perf_counter() - self._started
        return {name: round(s * 1000, 3) for name, s in {**self._stages, "total": total}.items()}
