"""Long work in the background: what is kept of it, so that it survives a restart."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from lookalike.errors import JobNotFoundError


class JobState(StrEnum):
    """Where a job stands; the last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def finished(self) -> bool:
        """Whether nothing more will come of it."""
        return self not in {JobState.QUEUED, JobState.RUNNING}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One piece of long work.

    Attributes:
        id: 16 hex digits.
        kind: What it does, e.g. `reembed`.
        parameters: What it was asked, a JSON object.
        state: Where it stands.
        cancel_requested: Whether it is to end at its next step.
        done: Steps that are done, in the kind's own unit.
        total: Steps in all; None where that is not known yet.
        errors: Steps that failed.
        error_texts: The first few of their errors.
        message: One sentence on how it stands or how it ended.
        starts: How often it was begun since it last came further, but for where a shutdown ended
            that.
        created_at: ISO 8601 in UTC.
        started_at: When it first began to run, or None.
        updated_at: The last change.
        finished_at: When it ended, or None.
    """

    id: str
    kind: str
    parameters: Mapping[str, Any]
    state: JobState = JobState.QUEUED
    cancel_requested: bool = False
    done: int = 0
    total: int | None = None
    errors: int = 0
    error_texts: tuple[str, ...] = ()
    message: str = ""
    starts: int = 0
    created_at: str
    started_at: str | None = None
    updated_at: str
    finished_at: str | None = None


@dataclass(frozen=True, slots=True)
class JobPage:
    """A stretch of jobs, newest first, and where the next one starts (None: at the end)."""

    jobs: list[Job] = field(default_factory=list)
    next_cursor: str | None = None


class JobStore(Protocol):
    """Keeps jobs; safe to call from many threads. What is written has reached the disk."""

    def add(self, job: Job) -> None:
        """Keeps a new job. Raises ValueError where its id is taken."""
        ...

    def get(self, job_id: str) -> Job:
        """One job. Raises `JobNotFoundError`."""
        ...

    def change(self, job_id: str, change: Callable[[Job], Job]) -> Job:
        """Writes `change(job)`, as one step, and gives it. Raises `JobNotFoundError`.

        All but id, kind, parameters and created_at can change.
        """
        ...

    def unfinished(self) -> list[Job]:
        """Those queued or running, oldest first."""
        ...

    def page(self, *, cursor: str | None = None, limit: int = 100) -> JobPage:
        """A stretch of jobs, newest first.

        Raises:
            InvalidParameterError: The cursor is not one that this call gave, or limit is below 1.
        """
        ...

    def prune(self, *, keep: int) -> int:
        """Forgets finished jobs but the newest `keep` of them; returns how many went."""
        ...

    def close(self) -> None:
        """Lets go of the file; may be called twice."""
        ...


def no_such_job(job_id: str) -> JobNotFoundError:
    """The error for a job that is not known."""
    return JobNotFoundError(
        f"There is no job {job_id!r}; GET /jobs lists them, and those that ended long ago are "
        "forgotten"
    )


def same_work(job: Job, kind: str, parameters: Mapping[str, Any]) -> bool:
    """Whether a job was asked the very same."""
    return job.kind == kind and _canonical(job.parameters) == _canonical(parameters)


def _canonical(parameters: Mapping[str, Any]) -> str:
    return json.dumps(parameters, sort_keys=True)
