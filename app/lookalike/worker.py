"""One background thread that works step by step until it is closed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from lookalike.errors import LookalikeError

log = logging.getLogger(__name__)


class Worker:
    """Calls a function again and again on a thread of its own.

    The thread starts with the first `wake` and survives every error of a step.

    Args:
        name: The thread's name.
        step: Does one piece of work; returns whether there may be more to do now.
        failure: What the log says if a step raises.
        share: Share of the time spent working, above 0 to 1; the thread rests in between.
        longest_rest_s: Upper bound of one such rest, in seconds.
        every_s: Seconds without work after which `step` is called again; None waits for `wake`.
        retry_s: Seconds before the next step after one that raised.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[], bool],
        *,
        failure: str,
        share: float = 1.0,
        longest_rest_s: float = 60.0,
        every_s: float | None = None,
        retry_s: float = 60.0,
    ) -> None:
        self._step = step
        self._failure = failure
        self._rest = 1 / share - 1  # seconds for each second of work
        self._longest_rest_s = longest_rest_s
        self._every_s = every_s
        self._retry_s = retry_s
        self._lock = threading.Lock()
        self._due = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.closing = threading.Event()
        """Set by `close`; a long step should look at it."""

    def wake(self) -> None:
        """Has the thread look for work; a rest that is under way is finished first."""
        self._due.set()
        with self._lock:
            if self._thread.ident is None and not self.closing.is_set():
                self._thread.start()

    def close(self) -> None:
        """Ends the thread after the step that is under way; may be called twice."""
        with self._lock:
            self.closing.set()
        self._due.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self.closing.is_set():
            self._due.clear()
            started = time.perf_counter()
            try:
                more = self._step()
            except Exception as exc:  # the thread must survive: its next step may succeed
                log_failure(exc, self._failure)
                self.closing.wait(self._retry_s)
                continue
            rest = (time.perf_counter() - started) * self._rest
            self.closing.wait(min(rest, self._longest_rest_s))
            if not more and not self.closing.is_set():
                self._due.wait(self._every_s)


def log_failure(exc: Exception, text: str) -> None:
    """Logs an error that does not end the work; adds the traceback if it is unexpected."""
    known = isinstance(exc, (LookalikeError, OSError))
    log.warning("%s: %s", text, exc, exc_info=None if known else exc)
