"""Work on the catalog in the background: a step at a time, beside everybody else's."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

RETRY_S = 60.0
"""Seconds until what failed, on a full disk perhaps, is tried again."""

log = logging.getLogger(__name__)


class Background:
    """A thread that works whenever it is woken, and leaves at least half of the time to others.

    It starts when it is first woken.

    Args:
        name: The thread's.
        step: A little work; whether there is more of it.
        undone: What the log says where a step fails; it is tried again after a while.
    """

    def __init__(self, name: str, step: Callable[[], bool], *, undone: str) -> None:
        self._name = name
        self._step = step
        self._undone = undone
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._due = threading.Event()
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """Has it look for work."""
        self._due.set()
        with self._lock:
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Stops after the step that is under way; may be called twice."""
        self._stop.set()
        self._due.set()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._due.wait()
            self._due.clear()
            work = True
            while work and not self._stop.is_set():
                started = time.perf_counter()
                try:
                    work = self._step()
                except Exception as exc:  # the thread must live
                    log.warning("%s: %s", self._undone, exc)
                    self._stop.wait(RETRY_S)
                else:
                    self._stop.wait(time.perf_counter() - started)
