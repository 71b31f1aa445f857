"""Jobs in memory: the plain definition of `JobStore`."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import replace

from lookalike.errors import InvalidParameterError
from lookalike.store.jobs import Job, JobPage, no_such_job
from lookalike.store.names import decode_cursor, encode_cursor


class MemoryJobs:
    """A `JobStore` that forgets."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers: dict[str, int] = {}
        self._jobs: dict[int, Job] = {}
        self._last = 0

    def add(self, job: Job) -> None:
        """Keeps a new job, see `JobStore.add`."""
        with self._lock:
            if job.id in self._numbers:
                raise ValueError(f"the job {job.id} is there already")
            self._last += 1
            self._numbers[job.id] = self._last
            self._jobs[self._last] = _own(job)

    def get(self, job_id: str) -> Job:
        """One job. Raises `JobNotFoundError`."""
        with self._lock:
            return _own(self._jobs[self._number(job_id)])

    def change(self, job_id: str, change: Callable[[Job], Job]) -> Job:
        """Writes `change(job)`, see `JobStore.change`."""
        with self._lock:
            number = self._number(job_id)
            changed = _own(change(_own(self._jobs[number])))
            self._jobs[number] = changed
            return _own(changed)

    def unfinished(self) -> list[Job]:
        """Those queued or running, oldest first."""
        with self._lock:
            return [_own(job) for job in self._jobs.values() if not job.state.finished]

    def page(self, *, cursor: str | None = None, limit: int = 100) -> JobPage:
        """A stretch of jobs, newest first, see `JobStore.page`."""
        before = decode_cursor(cursor)
        if limit < 1:
            raise InvalidParameterError("limit must be at least 1")
        with self._lock:
            numbers = [n for n in reversed(self._jobs) if cursor is None or n < before]
            jobs = [_own(self._jobs[number]) for number in numbers[:limit]]
            more = len(numbers) > limit
            return JobPage(jobs, encode_cursor(numbers[limit - 1]) if more else None)

    def prune(self, *, keep: int) -> int:
        """Forgets old finished jobs, see `JobStore.prune`."""
        with self._lock:
            finished = [n for n in reversed(self._jobs) if self._jobs[n].state.finished]
            for number in finished[keep:]:
                del self._numbers[self._jobs.pop(number).id]
            return len(finished[keep:])

    def close(self) -> None:
        """Nothing to let go of."""

    def _number(self, job_id: str) -> int:
        if job_id not in self._numbers:
            raise no_such_job(job_id)
        return self._numbers[job_id]


def _own(job: Job) -> Job:
    """A copy whose parameters nobody else can change."""
    return replace(job, parameters=copy.deepcopy(dict(job.parameters)))
