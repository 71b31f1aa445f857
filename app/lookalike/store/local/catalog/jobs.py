"""Jobs in the catalog."""

# ruff: noqa: S608 - only constants go into the SQL texts, every value is bound

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from typing import Any

from lookalike.errors import InvalidParameterError
from lookalike.store.jobs import Job, JobPage, JobState, no_such_job
from lookalike.store.local.catalog.connections import Connections
from lookalike.store.names import MAX_SEQ, decode_cursor, encode_cursor

_COLUMNS = (
    "id, kind, parameters, state, cancel_requested, done, total, errors, error_texts, message, "
    "starts, created_at, started_at, updated_at, finished_at"
)
_CHANGED = (
    "state = ?, cancel_requested = ?, done = ?, total = ?, errors = ?, error_texts = ?, "
    "message = ?, starts = ?, started_at = ?, updated_at = ?, finished_at = ?"
)
_UNFINISHED = f"state IN ('{JobState.QUEUED}', '{JobState.RUNNING}')"


class CatalogJobs:
    """A `JobStore` in the catalog's file."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def add(self, job: Job) -> None:
        """Keeps a new job, see `JobStore.add`."""
        sql = f"INSERT INTO jobs ({_COLUMNS}) VALUES ({', '.join('?' * 15)})"
        values = (
            job.id,
            job.kind,
            json.dumps(dict(job.parameters)),
            *_standing(job),
            job.created_at,
            *_times(job),
        )
        with self._connections.write() as connection:
            if connection.execute("SELECT 1 FROM jobs WHERE id = ?", (job.id,)).fetchone():
                raise ValueError(f"the job {job.id} is there already")
            connection.execute(sql, values)

    def get(self, job_id: str) -> Job:
        """One job. Raises `JobNotFoundError`."""
        with self._connections.read() as connection:
            return _get(connection, job_id)

    def change(self, job_id: str, change: Callable[[Job], Job]) -> Job:
        """Writes `change(job)`, see `JobStore.change`."""
        with self._connections.write() as connection:
            job = change(_get(connection, job_id))
            values = (*_standing(job), *_times(job), job_id)
            connection.execute(f"UPDATE jobs SET {_CHANGED} WHERE id = ?", values)
            return _get(connection, job_id)

    def unfinished(self) -> list[Job]:
        """Those queued or running, oldest first."""
        sql = f"SELECT {_COLUMNS} FROM jobs WHERE {_UNFINISHED} ORDER BY number"
        with self._connections.read() as connection:
            return [_job(row) for row in connection.execute(sql)]

    def page(self, *, cursor: str | None = None, limit: int = 100) -> JobPage:
        """A stretch of jobs, newest first, see `JobStore.page`."""
        before = MAX_SEQ if cursor is None else decode_cursor(cursor)
        if limit < 1:
            raise InvalidParameterError("limit must be at least 1")
        sql = f"SELECT number, {_COLUMNS} FROM jobs WHERE number < ? ORDER BY number DESC LIMIT ?"
        with self._connections.read() as connection:
            rows = connection.execute(sql, (before, limit + 1)).fetchall()
        more = len(rows) > limit
        jobs = [_job(row[1:]) for row in rows[:limit]]
        return JobPage(jobs, encode_cursor(rows[limit - 1][0]) if more else None)

    def prune(self, *, keep: int) -> int:
        """Forgets old finished jobs, see `JobStore.prune`."""
        sql = (
            "DELETE FROM jobs WHERE number IN (SELECT number FROM jobs"
            f" WHERE NOT {_UNFINISHED} ORDER BY number DESC LIMIT -1 OFFSET ?)"
        )
        with self._connections.write() as connection:
            return connection.execute(sql, (keep,)).rowcount


def _get(connection: sqlite3.Connection, job_id: str) -> Job:
    sql = f"SELECT {_COLUMNS} FROM jobs WHERE id = ?"
    found = connection.execute(sql, (job_id,)).fetchone()
    if found is None:
        raise no_such_job(job_id)
    return _job(found)


def _standing(job: Job) -> tuple[Any, ...]:
    return (
        job.state.value,
        int(job.cancel_requested),
        job.done,
        job.total,
        job.errors,
        json.dumps(list(job.error_texts)),
        job.message,
        job.starts,
    )


def _times(job: Job) -> tuple[str | None, ...]:
    return (job.started_at, job.updated_at, job.finished_at)


def _job(row: tuple[Any, ...]) -> Job:
    """Reads `_COLUMNS`."""
    return Job(
        id=row[0],
        kind=row[1],
        parameters=json.loads(row[2]),
        state=JobState(row[3]),
        cancel_requested=bool(row[4]),
        done=row[5],
        total=row[6],
        errors=row[7],
        error_texts=tuple(json.loads(row[8])),
        message=row[9],
        starts=row[10],
        created_at=row[11],
        started_at=row[12],
        updated_at=row[13],
        finished_at=row[14],
    )
