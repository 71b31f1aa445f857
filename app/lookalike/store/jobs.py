"""Jobs, long work in the background: what is kept of them, in a SQLite file of their own."""

# ruff: noqa: S608 - only constants go into the SQL texts, every value is bound

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from lookalike.errors import InvalidParameterError, JobNotFoundError
from lookalike.records import MAX_SEQ, decode_cursor, encode_cursor
from lookalike.store.sqlite import OneConnection, Schema, read_json, read_object, reads


class JobState(StrEnum):
    """Where a job stands; the last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def finished(self) -> bool:
        """Whether the job has ended."""
        return self not in {JobState.QUEUED, JobState.RUNNING}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One piece of long work; times are ISO 8601 in UTC."""

    id: str  # 16 hex digits
    kind: str  # what it does, e.g. `reembed`
    parameters: Mapping[str, Any]  # what it was asked, a JSON object
    state: JobState = JobState.QUEUED
    cancel_requested: bool = False  # whether it is to end at its next step
    done: int = 0  # steps that are done, in the kind's own unit
    total: int | None = None  # steps in all; None where that is not known yet
    errors: int = 0  # steps that failed
    error_texts: tuple[str, ...] = ()  # the first few of their errors
    message: str = ""  # one sentence on how it stands or how it ended
    # How often it was begun since it last came further, but for where a shutdown ended that.
    starts: int = 0
    created_at: str
    started_at: str | None = None  # when it first began to run
    updated_at: str  # the last change
    finished_at: str | None = None


def same_work(job: Job, kind: str, parameters: Mapping[str, Any]) -> bool:
    """Whether a job has this kind and these parameters."""
    asked = json.dumps(dict(parameters), sort_keys=True)
    return job.kind == kind and json.dumps(dict(job.parameters), sort_keys=True) == asked


_SCHEMA = Schema(
    application=0x4C4B4A42,  # "LKJB"
    version=1,
    statements=(
        """
        CREATE TABLE jobs (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            kind TEXT NOT NULL,
            parameters TEXT NOT NULL,
            state TEXT NOT NULL,
            cancel_requested INTEGER NOT NULL,
            done INTEGER NOT NULL,
            total INTEGER,
            errors INTEGER NOT NULL,
            error_texts TEXT NOT NULL,
            message TEXT NOT NULL,
            starts INTEGER NOT NULL,
            created_at TEXT NOT NULL,
            started_at TEXT,
            updated_at TEXT NOT NULL,
            finished_at TEXT
        )
        """,
        "CREATE INDEX jobs_by_state ON jobs (state)",
    ),
    remedy="move the file away: it holds the history of jobs, and no pictures",
    journal="DELETE",
)
_FIELDS = tuple(one.name for one in fields(Job))
_COLUMNS = ", ".join(_FIELDS)
_CHANGED = [one for one in _FIELDS if one not in {"id", "kind", "parameters", "created_at"}]
_UNFINISHED = f"state IN ('{JobState.QUEUED}', '{JobState.RUNNING}')"


class JobStore:
    """Keeps jobs in one SQLite file; safe to call from many threads.

    What is written has reached the disk. The file is made where it does not exist, with its folder,
    which must belong to this process; with `read_only` neither is needed. Raises `DataFolderError`
    if the file is damaged or of another version, and `StorageError` if the disk refuses.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._file = OneConnection(path, _SCHEMA, read_only=read_only)

    def close(self) -> None:
        """Lets go of the file; may be called twice."""
        self._file.close()

    def add(self, job: Job) -> None:
        """Keeps a new job. Raises ValueError where its id is taken."""
        sql = f"INSERT INTO jobs ({_COLUMNS}) VALUES ({', '.join('?' * len(_FIELDS))})"
        with self._file.write() as connection:
            if connection.execute("SELECT 1 FROM jobs WHERE id = ?", (job.id,)).fetchone():
                raise ValueError(f"the job {job.id} is there already")
            connection.execute(sql, _values(job, _FIELDS))

    def get(self, job_id: str) -> Job:
        """One job. Raises `JobNotFoundError`."""
        with self._file.read() as connection:
            return _get(connection, job_id)

    def change(self, job_id: str, change: Callable[[Job], Job]) -> Job:
        """Writes `change(job)`, as one step, and gives it. Raises `JobNotFoundError`.

        All but id, kind, parameters and created_at can change.
        """
        with self._file.write() as connection:
            job = change(_get(connection, job_id))
            changed = ", ".join(f"{name} = ?" for name in _CHANGED)
            values = (*_values(job, _CHANGED), job_id)
            connection.execute(f"UPDATE jobs SET {changed} WHERE id = ?", values)
            return _get(connection, job_id)

    def unfinished(self) -> list[Job]:
        """Those queued or running, oldest first."""
        sql = f"SELECT {_COLUMNS} FROM jobs WHERE {_UNFINISHED} ORDER BY number"
        with self._file.read() as connection:
            return [_job(row) for row in connection.execute(sql)]

    def page(self, *, cursor: str | None = None, limit: int = 100) -> tuple[list[Job], str | None]:
        """Jobs, newest first, and the cursor behind them, if any; raises as `decode_cursor`."""
        before = MAX_SEQ if cursor is None else decode_cursor(cursor)
        if limit < 1:
            raise InvalidParameterError("limit must be at least 1")
        sql = f"SELECT number, {_COLUMNS} FROM jobs WHERE number < ? ORDER BY number DESC LIMIT ?"
        with self._file.read() as connection:
            rows = connection.execute(sql, (before, limit + 1)).fetchall()
        jobs = [_job(row[1:]) for row in rows[:limit]]
        return jobs, encode_cursor(rows[limit - 1][0]) if len(rows) > limit else None

    def prune(self, *, keep: int) -> int:
        """Forgets finished jobs but the newest `keep` of them; returns how many went."""
        sql = (
            "DELETE FROM jobs WHERE number IN (SELECT number FROM jobs"
            f" WHERE NOT {_UNFINISHED} ORDER BY number DESC LIMIT -1 OFFSET ?)"
        )
        with self._file.write() as connection:
            return connection.execute(sql, (keep,)).rowcount


def _get(connection: sqlite3.Connection, job_id: str) -> Job:
    sql = f"SELECT {_COLUMNS} FROM jobs WHERE id = ?"
    found = connection.execute(sql, (job_id,)).fetchone()
    if found is None:
        raise JobNotFoundError(
            f"There is no job {job_id!r}; GET /jobs lists them, and those that ended long ago are "
            "forgotten"
        )
    return _job(found)


def _values(job: Job, names: Sequence[str]) -> tuple[Any, ...]:
    written = {
        "parameters": json.dumps(dict(job.parameters)),
        "error_texts": json.dumps(list(job.error_texts)),
    }
    return tuple(written.get(name, getattr(job, name)) for name in names)


_TEXTS = ("id", "kind", "message", "created_at", "updated_at")
_NUMBERS = ("done", "errors", "starts")


@reads("jobs.db")
def _job(row: Sequence[Any]) -> Job:
    """Reads `_COLUMNS`."""
    read = dict(zip(_FIELDS, row, strict=True))
    read["parameters"] = read_object(read["parameters"])
    read["state"] = JobState(read["state"])
    read["cancel_requested"] = bool(read["cancel_requested"])
    read["error_texts"] = tuple(map(str, read_json(read["error_texts"])))
    if not (
        all(type(read[name]) is str for name in _TEXTS)
        and all(type(read[name]) is int for name in _NUMBERS)
        and type(read["total"] or 0) is int
    ):
        raise ValueError("a row of jobs")
    return Job(**read)
