"""A job while it runs: how far it is, and whether it is to end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from lookalike.errors import LookalikeError
from lookalike.media.work_end import WorkEndedError
from lookalike.store.base import utc_now
from lookalike.store.jobs import Job, JobState, JobStore

_ERROR_TEXTS = 20  # errors whose text is kept

log = logging.getLogger(__name__)


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
        self._errors = list(job.error_texts)
        self._error_count = job.errors
        self._starts = job.starts
        self._since: tuple[float, int] | None = None
        self._written = time.monotonic()

    @property
    def starts(self) -> int:
        """See `Job.starts`; this one counts until it came further or the service shuts down."""
        return max(0, self._starts - self.stopped)

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
        """See `Watch.progress`; written every `every_s`, and at once where `starts` depends on it.

        What is told first was done before this start, and the next time it is this one's work.
        """
        first, grew = self._since is None, done > self._done
        at_once = grew and (first or self._starts > 0)
        if first:
            self._since = (time.monotonic(), done)
        if grew:
            self._starts = min(self._starts, 1 if first else 0)
        self._done, self._total = done, total
        if at_once or time.monotonic() - self._written >= self._every_s:
            self.write()

    def error(self, text: str) -> None:
        """See `Watch.error`."""
        self._error_count += 1
        if len(self._errors) < _ERROR_TEXTS:
            self._errors.append(text)

    def write(self, change: Callable[[Job], Job] = lambda job: job) -> Job:
        """Keeps how far the job is."""
        job = self._store.change(self.job_id, lambda job: change(self._now(job)))
        self._written = time.monotonic()
        return job

    def end(self, state: JobState, message: str) -> Job:
        """Writes how the job ended, and gives it."""
        try:
            return self.write(lambda job: ended(job, state, message))
        except LookalikeError:
            raise
        except Exception as exc:  # of the message, perhaps: this one can be written
            log.exception("the end of job %s cannot be written", self.job_id)
            text = of_the_program(exc)
            return self.write(lambda job: ended(job, JobState.FAILED, text))

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
            starts=self.starts,
            updated_at=utc_now(),
        )


def ended(job: Job, state: JobState, message: str) -> Job:
    """A job that ended just now."""
    now = utc_now()
    return replace(job, state=state, message=message, updated_at=now, finished_at=now)


def of_the_program(exc: Exception) -> str:
    """What is said of an error that nobody thought of."""
    return f"Failed by an error of the program: {exc!r}; see the log"
