"""Long work in the background: one thread, progress on the disk, going on after a restart."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from lookalike.errors import InvalidParameterError, LookalikeError, NotReadyError
from lookalike.services.job_run import (
    CanceledError,
    JobRun,
    JobStatus,
    JobWatch,
    ended,
    of_the_program,
)
from lookalike.store.base import utc_now
from lookalike.store.jobs import Job, JobPage, JobState, JobStore, same_work

KEPT = 1000
"""Finished jobs that are remembered."""

_STARTS = 3  # that may end with the process before the job came any further
_RETRY_S = 5.0  # after the disk refused
_ENDED_THE_SERVICE = (
    f"The service ended {_STARTS} times while it worked on this, and came no further: a picture "
    "may crash it, or its memory may be too small. Look at its log, at its memory and at the "
    "pictures that come next, then send or ask for it again; what is done is kept"
)

log = logging.getLogger(__name__)


Handler = Callable[[Mapping[str, Any], JobWatch], str]
"""Does the work of one kind of job and gives a sentence on how it ended.

It is called again with the same parameters after a restart, and goes on where it was.
"""


class JobService:
    """Runs jobs one after the other on a thread of its own, once `resume` was called.

    Args:
        store: Keeps them.
        kinds: What to call for each kind.
        every_s: Seconds between two writes of a job's progress.
        kept: Finished jobs that are remembered.
        ended: Told of every job that ended, in whatever way, once that is written.
    """

    def __init__(
        self,
        store: JobStore,
        kinds: Mapping[str, Handler],
        *,
        every_s: float = 1.0,
        kept: int = KEPT,
        ended: Callable[[Job], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._kinds = dict(kinds)
        self._every_s = every_s
        self._kept = kept
        self._ended = ended
        self._changed = threading.Condition()
        self._closed = False
        self._run: JobRun | None = None
        self._begun: str | None = None
        self._thread: threading.Thread | None = None

    def resume(self) -> None:
        """Starts to work: first on what an earlier service left queued or running."""
        with self._changed:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
                self._thread.start()

    def start(self, kind: str, parameters: Mapping[str, Any]) -> JobStatus:
        """Queues a job; where the very same is the last one for a collection, gives that one.

        Raises:
            NotReadyError: The service is shutting down.
        """
        if kind not in self._kinds:
            raise InvalidParameterError(f"There is no kind of job {kind!r}")
        with self._changed:
            if self._closed:
                raise NotReadyError("The service is shutting down: try again later")
            last = self._last_unfinished(kind, parameters)
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
            self._store.add(job)
            self._changed.notify_all()
        return self._status(job)

    def _last_unfinished(self, kind: str, parameters: Mapping[str, Any]) -> Job | None:
        """The job after which nothing else of this kind happens to the same collection."""
        collection = parameters.get("collection")
        jobs = self._store.unfinished()
        of_it = [j for j in jobs if j.kind == kind and j.parameters.get("collection") == collection]
        return of_it[-1] if of_it else None

    def get(self, job_id: str) -> JobStatus:
        """One job. Raises `JobNotFoundError`."""
        return self._status(self._store.get(job_id))

    def page(
        self, *, cursor: str | None = None, limit: int = 100
    ) -> tuple[list[JobStatus], str | None]:
        """A stretch of jobs, newest first, and where the next one starts (None: at the end).

        Raises:
            InvalidParameterError: The cursor is not one that this call gave.
        """
        page: JobPage = self._store.page(cursor=cursor, limit=limit)
        return [self._status(job) for job in page.jobs], page.next_cursor

    def cancel(self, job_id: str, *, why: str = "") -> JobStatus:
        """Ends a queued job at once and a running one at its next step; what ended stays.

        Args:
            job_id: Which one.
            why: The job's message in the end, instead of the usual one.

        Raises:
            JobNotFoundError: There is no such job.
        """
        with self._changed:
            before = self._store.get(job_id).state

            def request(job: Job) -> Job:
                if job.state is JobState.QUEUED:
                    return ended(job, JobState.CANCELED, why or "Canceled before it began")
                if job.state is JobState.RUNNING:
                    return replace(job, cancel_requested=True, updated_at=utc_now())
                return job

            job = self._store.change(job_id, request)
            if self._run is not None and self._run.job_id == job_id:
                self._run.cancel(why)
        if job.state.finished and not before.finished:
            self._tell(job)
        return self._status(job)

    def cancel_all(self, which: Callable[[Job], bool], why: str) -> None:
        """Cancels all unfinished jobs of which `which` holds, as `cancel` does."""
        for job in self._store.unfinished():
            if which(job):
                self.cancel(job.id, why=why)

    def close(self) -> None:
        """Ends after the step that is under way; the job is taken up at the next `resume`."""
        with self._changed:
            self._closed = True
            if self._run is not None:
                self._stop(self._run)
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _stop(self, run: JobRun) -> None:
        """Ends a job's work, and notes that first: the process may be killed meanwhile."""
        run.stop()
        try:
            run.write()
        except Exception as exc:  # the thread is to be waited for
            _warn(exc, "how far job %s is could not be written", run.job_id)

    def _status(self, job: Job) -> JobStatus:
        run = self._run
        if run is None or run.job_id != job.id or job.state is not JobState.RUNNING:
            return JobStatus(job)
        return run.status(job)

    def _work(self) -> None:
        """The thread: one job after the other until closed."""
        while True:
            with self._changed:
                run = None
                try:
                    self._changed.wait_for(lambda: self._closed or bool(self._store.unfinished()))
                    if self._closed:
                        return
                    run = self._begin(self._store.unfinished()[0])
                except LookalikeError as exc:
                    log.warning("jobs wait, because the catalog cannot be used: %s", exc)
                    self._changed.wait(_RETRY_S)
                except Exception:  # the thread must live: what is queued would wait for ever
                    log.exception("no job can be begun")
                    self._changed.wait(_RETRY_S)
            if run is not None:
                self._finish(run)

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
        self._store.change(job.id, lambda _: started)
        self._begun = job.id
        self._run = JobRun(started, self._store, every_s=self._every_s)
        if job.cancel_requested:
            self._run.cancel()
        log.info("job %s (%s) %s", job.id, job.kind, "goes on" if resumed else "begins")
        return self._run

    def _finish(self, run: JobRun) -> None:
        """Does a job's work and writes how it ended."""
        state, message = self._outcome(run)
        try:
            with self._changed:
                job = run.end(state, message) if state else run.write()
                self._run = None
        except Exception as exc:  # the thread must live
            # It is unfinished still, and its work, being done, is soon done again.
            _warn(exc, "the end of job %s could not be written", run.job_id)
            with self._changed:
                self._changed.wait_for(lambda: self._closed, timeout=_RETRY_S)
                self._run = None
            return
        if job.state.finished:
            log.info("job %s: %s: %s", job.id, job.state, job.message)
            self._tell(job)
            self._prune()

    def _tell(self, job: Job) -> None:
        """Says that a job ended; what goes wrong then is no longer the job's."""
        try:
            self._ended(job)
        except Exception as exc:
            _warn(exc, "what job %s left could not be removed", job.id)

    def _prune(self) -> None:
        """Forgets old jobs, now or when the next one ends."""
        try:
            self._store.prune(keep=self._kept)
        except Exception as exc:
            _warn(exc, "old jobs could not be forgotten")

    def _refusal(self, run: JobRun) -> str:
        """Why a job is not worked on; empty where it is."""
        if run.kind not in self._kinds:
            return f"This version of Lookalike has no jobs of the kind {run.kind!r}"
        return _ENDED_THE_SERVICE if run.starts > _STARTS else ""

    def _outcome(self, run: JobRun) -> tuple[JobState | None, str]:
        """How the work ended; None where it is only interrupted."""
        try:
            run.step()
            if refusal := self._refusal(run):
                return JobState.FAILED, refusal
            return JobState.DONE, self._kinds[run.kind](run.parameters, run)
        except CanceledError as exc:
            return JobState.CANCELED, str(exc) or "Canceled; what was done is kept"
        except Exception as exc:
            if run.stopped:  # whatever the shutdown broke is whole again at the next start
                return None, ""
            if isinstance(exc, LookalikeError):
                return JobState.FAILED, str(exc)
            log.exception("job %s failed", run.job_id)
            return JobState.FAILED, of_the_program(exc)


def _warn(exc: Exception, text: str, *names: str) -> None:
    """Logs what is outlived; with its place where nobody thought of it."""
    known = isinstance(exc, (LookalikeError, OSError))
    log.warning(f"{text}: %s", *names, exc, exc_info=None if known else exc)
