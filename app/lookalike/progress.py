"""Long tasks: how one reports its progress and learns that it should end, and a thread for them.

Also how a call learns that whoever made it has left.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import KW_ONLY, dataclass

from lookalike.errors import ClientGoneError, LookalikeError

log = logging.getLogger(__name__)

Show = Callable[[str, int, int], None]
"""Shows progress: the stage's name (empty if the task has only one), steps done, steps in all."""


class TaskEndedError(Exception):
    """Raised by `Progress.check` to end a task. Never translated into another error."""


class Progress:
    """What a long task is given to report to; it calls `check` between its steps.

    Subclasses override `check` to end the task, and `report` and `error` to record more.
    """

    def __init__(self, show: Show | None = None) -> None:
        self._show = show

    def check(self) -> None:
        """Raises `TaskEndedError` if the task should end."""

    def report(self, done: int, total: int, *, stage: str = "") -> None:
        """Reports how many steps are done, and how many there are in all."""
        if self._show is not None:
            self._show(stage, done, total)

    def error(self, text: str) -> None:
        """Reports a step that failed while the task goes on."""

    def stage(self, name: str) -> Progress:
        """The progress of one named stage, for a function that knows nothing of stages."""
        return _Stage(self, name)


class _Stage(Progress):
    def __init__(self, task: Progress, name: str) -> None:
        super().__init__(lambda stage, done, total: task.report(done, total, stage=stage or name))
        self._task = task

    def check(self) -> None:
        self._task.check()

    def error(self, text: str) -> None:
        self._task.error(text)


NO_PROGRESS = Progress()
"""For callers that show nothing and never end the task early."""


class Caller:
    """Whoever waits for the answer of a call; a client may leave before it comes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._gone = False
        self._acts: list[Callable[[], object]] = []

    def leave(self) -> None:
        """Calls what was to be done if the caller leaves; may be called from any thread."""
        with self._lock:
            self._gone = True
            acts, self._acts = self._acts, []
            for act in acts:  # inside the lock, so that none is called after its block
                act()

    @contextmanager
    def on_leave(self, act: Callable[[], object]) -> Iterator[None]:
        """Has `act`, which returns at once, called if the caller leaves while the block runs.

        Raises `ClientGoneError`, before the block or after it, if the caller has left.
        """
        with self._lock:
            if self._gone:
                raise ClientGoneError
            self._acts.append(act)
        try:
            yield
        finally:
            with self._lock:
                if act in self._acts:
                    self._acts.remove(act)
                gone = self._gone
            if gone:
                raise ClientGoneError


caller: ContextVar[Caller] = ContextVar("caller", default=Caller())  # noqa: B039 - never leaves
"""The caller of the current call, on whatever thread the call runs."""


@dataclass(eq=False)
class Worker:
    """Calls a function again and again on a thread of its own.

    The thread starts with the first `wake` and survives every error of a step.
    """

    name: str
    step: Callable[[], bool]  # does one piece of work; returns whether there may be more to do
    _: KW_ONLY
    failure: str  # what the log says if a step raises
    share: float = 1.0  # of the time spent working, above 0 to 1; the thread rests in between
    longest_rest_s: float = 60.0
    every_s: float | None = None  # without work, after which `step` is called again
    retry_s: float = 60.0  # before the next step after one that raised

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._due = threading.Event()
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
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
                more = self.step()
            except Exception as exc:  # the thread must survive: its next step may succeed
                log_failure(exc, self.failure)
                self.closing.wait(self.retry_s)
                continue
            rest = (time.perf_counter() - started) * (1 / self.share - 1)
            self.closing.wait(min(rest, self.longest_rest_s))
            if not more and not self.closing.is_set():
                self._due.wait(self.every_s)


def log_failure(exc: Exception, text: str) -> None:
    """Logs an error that does not end the work; adds the traceback if it is unexpected."""
    known = isinstance(exc, (LookalikeError, OSError))
    log.warning("%s: %s", text, exc, exc_info=None if known else exc)
