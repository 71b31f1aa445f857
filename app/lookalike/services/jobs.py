"""Long tasks in the background: one thread, progress on the disk, resumed after a restart."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

from lookalike.errors import InvalidParameterError, LookalikeError, NotReadyError
from lookalike.progress import Progress, TaskEndedError, Worker, log_failure
from lookalike.records import utc_now
from lookalike.store.jobs import Job, JobState, JobStore, same_work

ARCHIVE_KIND = "index_archive"
FOLDER_KIND = "index_folder"
MANIFEST_KIND = "index_manifest"
REEMBED_KIND = "reembed"
BACKUP_KIND = "backup"
TAG_KIND = "tag"
CALIBRATE_KIND = "calibrate"

IMPORT_KINDS = frozenset({ARCHIVE_KIND, FOLDER_KIND, MANIFEST_KIND})
"""The kinds of jobs that add pictures."""

_ERROR_TEXTS = 20  # errors whose text is kept
_STARTS = 3  # that may end with the process before the job comes any further
_ENDED_THE_SERVICE = (
    f"The service ended {_STARTS} times while it worked on this, and came no further: a picture "
    "may crash it, or its memory may be too small. Look at its log, at its memory and at the "
    "pictures that come next, then send or ask for it again; what is done is kept"
)

log = logging.getLogger(__name__)


class CanceledError(TaskEndedError):
    """Somebody canceled the job."""


class StoppedError(TaskEndedError):
    """The service is shutting down."""


@dataclass(frozen=True, slots=True)
class JobStatus:
    """A job as it stands; `rate` is in steps per second since it was started or resumed."""

    job: Job
    rate: float | None = None
    seconds_left: float | None = None


class JobRun(Progress):
    """A running job: the progress that its handler is given; written every so many seconds."""

    def __init__(self, job: Job, store: JobStore, *, every_s: float) -> None:
        super().__init__()
        self.job = job  # as it stands this moment
        self.stopped = False  # the service is shutting down: the job stays unfinished
        self.canceled: str | None = None  # why it ends, as its final message
        self._store = store
        self._every_s = every_s
        self._since: tuple[float, int] | None = None
        self._written = time.monotonic()

    @property
    def starts(self) -> int:
        """See `Job.starts`; this one counts until the job comes further or the service stops."""
        return max(0, self.job.starts - self.stopped)

    def check(self) -> None:
        """Raises if the service is shutting down or the job was canceled."""
        if self.stopped:
            raise StoppedError
        if self.canceled is not None:
            raise CanceledError(self.canceled)

    def report(self, done: int, total: int, *, stage: str = "") -> None:  # noqa: ARG002
        """Notes the progress; writes it every `every_s`, or at once if `starts` depends on it."""
        first, grew = self._since is None, done > self.job.done  # the first tells what was done
        at_once = grew and (first or self.job.starts > 0)
        starts = self.job.starts
        if first:
            self._since = (time.monotonic(), done)
        if grew:
            starts = min(starts, 1 if first else 0)
        self.job = replace(self.job, done=done, total=total, starts=starts)
        if at_once or time.monotonic() - self._written >= self._every_s:
            self.write()

    def error(self, text: str) -> None:
        """Counts a step that failed, and keeps the first few texts."""
        texts = (*self.job.error_texts, text)[:_ERROR_TEXTS]
        self.job = replace(self.job, errors=self.job.errors + 1, error_texts=texts)

    def write(self, **change: Any) -> Job:
        """Writes the progress, and further fields; returns the job."""
        job = self._store.change(self.job.id, lambda stored: replace(self._now(stored), **change))
        self._written = time.monotonic()
        return job

    def end(self, state: JobState, message: str) -> Job:
        """Writes how the job ended; returns it."""
        try:
            return self.write(**_ended(state, message))
        except LookalikeError:
            raise
        except Exception as exc:  # perhaps because of the message: this one can be written
            log.exception("the end of job %s cannot be written", self.job.id)
            return self.write(**_ended(JobState.FAILED, _bug(exc)))

    def status(self, stored: Job) -> JobStatus:
        """The job as it stands this moment, with its rate."""
        job = self._now(stored)
        if self._since is None:
            return JobStatus(job)
        since, before = self._since
        seconds = time.monotonic() - since
        rate = (job.done - before) / seconds if seconds > 0 else 0.0
        if rate <= 0 or job.total is None:
            return JobStatus(job)
        return JobStatus(job, rate, max(0, job.total - job.done) / rate)

    def _now(self, stored: Job) -> Job:
        own = {name: getattr(self.job, name) for name in ("done", "total", "errors", "error_texts")}
        return replace(stored, **own, starts=self.starts, updated_at=utc_now())


Handler = Callable[[Mapping[str, Any], JobRun], str]
"""Does one kind of job, or resumes it after a restart; returns a sentence on how it ended."""


@dataclass(eq=False)
class JobService:
    """Runs jobs one after the other on a background thread, once `resume` was called."""

    store: JobStore
    kinds: Mapping[str, Handler]
    _: KW_ONLY
    every_s: float = 1.0  # between two writes of a job's progress
    kept: int = 1000  # finished jobs that are remembered
    retry_s: float = 5.0  # after a job's state could not be read or written
    ended: Callable[[Job], None] = lambda _: None  # told of every job once its end is written

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._resumed = False
        self._closed = False
        self._run: JobRun | None = None
        self._begun: str | None = None
        failure = "jobs cannot go on for now and are tried again"
        self._worker = Worker("jobs", self._work, failure=failure, retry_s=self.retry_s)

    def resume(self) -> None:
        """Starts to work, first on what an earlier service left queued or running."""
        self._resumed = True
        self._worker.wake()

    def start(self, kind: str, parameters: Mapping[str, Any]) -> JobStatus:
        """Queues a job; if the same is the last one for a collection, returns that one."""
        if kind not in self.kinds:
            raise InvalidParameterError(f"There is no kind of job {kind!r}")
        with self._lock:
            if self._closed:
                raise NotReadyError("The service is shutting down: try again later")
            others = self.unfinished(parameters.get("collection"))
            last = next((job for job in reversed(others) if job.kind == kind), None)
            if last and same_work(last, kind, parameters) and not last.cancel_requested:
                return self._status(last)
            now = utc_now()
            job = Job(
                id=uuid.uuid4().hex[:16],
                kind=kind,
                parameters=dict(parameters),
                created_at=now,
                updated_at=now,
            )
            self.store.add(job)
        if self._resumed:
            self._worker.wake()
        return self._status(job)

    def get(self, job_id: str) -> JobStatus:
        """One job. Raises `JobNotFoundError`."""
        return self._status(self.store.get(job_id))

    def page(
        self, *, cursor: str | None = None, limit: int = 100
    ) -> tuple[list[JobStatus], str | None]:
        """Jobs, newest first, and the cursor of the next page; raises as `JobStore.page`."""
        jobs, next_cursor = self.store.page(cursor=cursor, limit=limit)
        return [self._status(job) for job in jobs], next_cursor

    def cancel(self, job_id: str, *, why: str = "") -> JobStatus:
        """Ends a queued job at once and a running one at its next step.

        `why` is its final message, instead of the usual one. Raises `JobNotFoundError`.
        """
        with self._lock:
            before = self.store.get(job_id).state

            def request(job: Job) -> Job:
                if job.state is JobState.QUEUED:
                    ended = _ended(JobState.CANCELED, why or "Canceled before it began")
                    return replace(job, **ended)
                if job.state is JobState.RUNNING:
                    return replace(job, cancel_requested=True, updated_at=utc_now())
                return job

            job = self.store.change(job_id, request)
            if self._run is not None and self._run.job.id == job_id:
                self._run.canceled = why
        if job.state.finished and not before.finished:
            self._tell(job)
        return self._status(job)

    def unfinished(self, collection: str | None) -> list[Job]:
        """The queued and running jobs of a collection (None: of none), oldest first."""
        jobs = self.store.unfinished()
        return [job for job in jobs if job.parameters.get("collection") == collection]

    def close(self) -> None:
        """Ends after the step that is under way; the job goes on at the next `resume`."""
        with self._lock:
            self._closed = True
            if self._run is not None:
                self._run.stopped = True
                try:
                    self._run.write()  # now, since the process may be killed before the job ends
                except Exception as exc:  # the thread is waited for in any case
                    log_failure(exc, f"the progress of job {self._run.job.id} cannot be written")
        self._worker.close()

    def _status(self, job: Job) -> JobStatus:
        run = self._run
        if run is None or run.job.id != job.id or job.state is not JobState.RUNNING:
            return JobStatus(job)
        return run.status(job)

    def _work(self) -> bool:
        """Runs the next job, if there is one; the worker's step."""
        with self._lock:
            unfinished = [] if self._closed else self.store.unfinished()
            if not unfinished:
                return False
            run = self._begin(unfinished[0])
        state, message = self._outcome(run)
        # If this raises, the job is soon begun again: its work, being done, is quickly done again.
        with self._lock:
            job = run.end(state, message) if state else run.write()
            self._run = None
        if job.state.finished:
            log.info("job %s: %s: %s", job.id, job.state, job.message)
            self._tell(job)
            try:
                self.store.prune(keep=self.kept)
            except Exception as exc:  # the next job that ends tries again
                log_failure(exc, "old jobs cannot be forgotten")
        return True

    def _begin(self, job: Job) -> JobRun:
        """Marks a job as running; the caller holds the lock."""
        now = utc_now()
        resumed = job.state is JobState.RUNNING
        again = self._begun == job.id  # by this very process, which could not write its end
        started = replace(
            job,
            state=JobState.RUNNING,
            started_at=job.started_at or now,
            updated_at=now,
            message="Goes on after a restart" if resumed else "Runs",
            starts=job.starts if again else job.starts + 1,
        )
        if started.starts <= _STARTS:
            started = replace(started, errors=0, error_texts=())
        self.store.change(job.id, lambda _: started)
        self._begun = job.id
        self._run = JobRun(started, self.store, every_s=self.every_s)
        if job.cancel_requested:
            self._run.canceled = ""
        log.info("job %s (%s) %s", job.id, job.kind, "goes on" if resumed else "begins")
        return self._run

    def _tell(self, job: Job) -> None:
        """Says that a job ended; an error then is no longer the job's."""
        try:
            self.ended(job)
        except Exception as exc:
            log_failure(exc, f"what job {job.id} left cannot be removed")

    def _outcome(self, run: JobRun) -> tuple[JobState | None, str]:
        """Does the work; returns how it ended, or None if it was interrupted."""
        try:
            run.check()
            return JobState.DONE, self._handler(run)(run.job.parameters, run)
        except CanceledError as exc:
            return JobState.CANCELED, str(exc) or "Canceled; what was done is kept"
        except Exception as exc:
            if run.stopped:  # whatever the shutdown broke works again at the next start
                return None, ""
            if isinstance(exc, LookalikeError):
                return JobState.FAILED, str(exc)
            log.exception("job %s failed", run.job.id)
            return JobState.FAILED, _bug(exc)

    def _handler(self, run: JobRun) -> Handler:
        """Of a job's kind; raises if the job cannot be run."""
        if run.job.kind not in self.kinds:
            text = f"This version of Lookalike has no jobs of the kind {run.job.kind!r}"
            raise InvalidParameterError(text)
        if run.starts > _STARTS:
            raise LookalikeError(_ENDED_THE_SERVICE)
        return self.kinds[run.job.kind]


def _ended(state: JobState, message: str) -> dict[str, Any]:
    """The fields of a job that change at its end."""
    now = utc_now()
    return {"state": state, "message": message, "updated_at": now, "finished_at": now}


def _bug(exc: Exception) -> str:
    return f"Failed by an error of the program: {exc!r}; see the log"
