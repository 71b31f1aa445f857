"""A job while it runs: how far it is, and whether it is to end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from app.services.work_end import WorkEndedError
from app.store.base import utc_now
from app.store.jobs import Job, JobStore

_ERROR_TEXTS = 20  # errors whose text is kept


class Watch(Protocol):
    """What long work tells of itself, and how it is ended."""

    def step(self) -> None:
        """To be called between steps; raises where the work is to end."""
        ...

    def progress(self, done: int, total: int) -> None:
        """How far it is, in its own unit."""
        ...

    def error(self, text: str) -> None:
        """A step that failed."""
        ...


class JobWatch(Watch, Protocol):
    """What a job's handler is given."""

    @property
    def job_id(self) -> str:
        """The job's id, the same after a restart."""
        ...


@dataclass(frozen=True, slots=True)
class JobStatus:
    """A job, with its speed where it runs now.

    Attributes:
        job: As it is kept.
        rate: Steps in a second since it went on, or None.
        seconds_left: At this rate, or None.
    """

    job: Job
    rate: float | None = None
    seconds_left: float | None = None


class CanceledError(WorkEndedError):
    """Somebody asked that the work ends."""


class StoppedError(WorkEndedError):
    """The service shuts down."""


class JobRun:
    """A job while it runs: the `JobWatch` that its handler is given."""

    def __init__(self, job: Job, store: JobStore, *, every_s: float) -> None:
        self.job_id = job.id
        self.kind = job.kind
        self.parameters = job.parameters
        self._store = store
        self._every_s = every_s
        self._canceled = threading.Event()
        self._why = ""
        self._stopped = threading.Event()
        self._done = job.done
        self._total = job.total
        self._errors: list[str] = []
        self._error_count = 0
        self._since: tuple[float, int] | None = None
        self._written = time.monotonic()

    @property
    def stopped(self) -> bool:
        """Whether the service shuts down."""
        return self._stopped.is_set()

    def stop(self) -> None:
        """Has the next step raise; the job stays unfinished."""
        self._stopped.set()

    def cancel(self, why: str = "") -> None:
        """Has the next step raise; the job is canceled. `why` is said at its end, where given."""
        self._why = why
        self._canceled.set()

    def step(self) -> None:
        """See `Watch.step`."""
        if self._stopped.is_set():
            raise StoppedError
        if self._canceled.is_set():
            raise CanceledError(self._why)

    def progress(self, done: int, total: int) -> None:
        """See `Watch.progress`; written at most every `every_s`."""
        if self._since is None:
            self._since = (time.monotonic(), done)
        self._done, self._total = done, total
        if time.monotonic() - self._written >= self._every_s:
            self.write()

    def error(self, text: str) -> None:
        """See `Watch.error`."""
        self._error_count += 1
        if len(self._errors) < _ERROR_TEXTS:
            self._errors.append(text)

    def write(self, change: Callable[[Job], Job] = lambda job: job) -> None:
        """Keeps how far the job is."""
        self._store.change(self.job_id, lambda job: change(self._now(job)))
        self._written = time.monotonic()

    def status(self, job: Job) -> JobStatus:
        """The job as it is this moment, with its rate."""
        job = self._now(job)
        if self._since is None:
            return JobStatus(job)
        since, before = self._since
        seconds = time.monotonic() - since
        rate = (self._done - before) / seconds if seconds > 0 else 0.0
        if rate <= 0 or self._total is None:
            return JobStatus(job)
        return JobStatus(job, rate, max(0, self._total - self._done) / rate)

    def _now(self, job: Job) -> Job:
        return replace(
            job,
            done=self._done,
            total=self._total,
            errors=self._error_count,
            error_texts=tuple(self._errors),
            updated_at=utc_now(),
        )
