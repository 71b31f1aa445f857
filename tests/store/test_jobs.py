"""What every store keeps of long work."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from lookalike.errors import (
    DataFolderError,
    InvalidParameterError,
    JobNotFoundError,
    StorageError,
)
from lookalike.store.jobs import Job, JobState, JobStore, same_work

TIME = "2026-01-01T00:00:00.000Z"


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[JobStore]:
    with closing(JobStore(tmp_path / "jobs.db")) as made:
        yield made


def new_job(number: int, *, state: JobState = JobState.QUEUED) -> Job:
    return Job(
        id=f"{number:016x}",
        kind="count",
        parameters={"to": number, "deep": {"a": [1]}},
        state=state,
        created_at=TIME,
        updated_at=TIME,
    )


def test_a_job_is_kept_as_it_is(jobs: JobStore) -> None:
    job = new_job(1)
    jobs.add(job)
    assert jobs.get(job.id) == job
    with pytest.raises(ValueError, match="there already"):
        jobs.add(job)
    changed = replace(
        job,
        state=JobState.FAILED,
        cancel_requested=True,
        done=3,
        total=7,
        errors=2,
        error_texts=("a", "b"),
        message="It ended",
        starts=4,
        started_at=TIME,
        updated_at="2026-01-02T00:00:00.000Z",
        finished_at=TIME,
    )
    assert jobs.change(job.id, lambda _: changed) == changed
    assert jobs.get(job.id) == changed


def test_a_change_sees_what_is_stored(jobs: JobStore) -> None:
    jobs.add(new_job(1))
    for _ in range(3):
        jobs.change(new_job(1).id, lambda job: replace(job, done=job.done + 1))
    assert jobs.get(new_job(1).id).done == 3


def test_a_change_that_fails_changes_nothing(jobs: JobStore) -> None:
    jobs.add(new_job(1))
    with pytest.raises(ZeroDivisionError):
        jobs.change(new_job(1).id, lambda job: replace(job, done=1 // 0))
    assert jobs.get(new_job(1).id) == new_job(1)


def test_what_is_handed_out_changes_nothing(jobs: JobStore) -> None:
    jobs.add(new_job(1))
    jobs.get(new_job(1).id).parameters["deep"]["a"].append(2)
    assert jobs.get(new_job(1).id) == new_job(1)


def test_unknown_jobs(jobs: JobStore) -> None:
    with pytest.raises(JobNotFoundError, match="GET /jobs"):
        jobs.get("0")
    with pytest.raises(JobNotFoundError):
        jobs.change("0", lambda job: job)


def test_unfinished_ones_come_oldest_first(jobs: JobStore) -> None:
    for number, state in enumerate(JobState):
        jobs.add(new_job(number, state=state))
    assert [job.state for job in jobs.unfinished()] == [JobState.QUEUED, JobState.RUNNING]
    assert [state.finished for state in JobState] == [False, False, True, True, True]


def test_pages_are_newest_first(jobs: JobStore) -> None:
    assert jobs.page() == ([], None)
    for number in range(5):
        jobs.add(new_job(number))
    first, cursor = jobs.page(limit=2)
    assert [job.id for job in first] == [new_job(4).id, new_job(3).id]
    jobs.add(new_job(5))
    second, cursor = jobs.page(limit=2, cursor=cursor)
    assert [job.id for job in second] == [new_job(2).id, new_job(1).id]
    last, cursor = jobs.page(limit=2, cursor=cursor)
    assert ([job.id for job in last], cursor) == ([new_job(0).id], None)
    assert jobs.page(limit=6)[1] is None
    assert jobs.page(cursor="c0")[0] == []
    with pytest.raises(InvalidParameterError, match="no cursor"):
        jobs.page(cursor="x")
    with pytest.raises(InvalidParameterError):
        jobs.page(limit=0)


def test_old_finished_ones_are_forgotten(jobs: JobStore) -> None:
    jobs.add(new_job(0, state=JobState.RUNNING))
    for number in range(1, 6):
        jobs.add(new_job(number, state=JobState.DONE))
    assert jobs.prune(keep=2) == 3
    assert jobs.prune(keep=2) == 0
    left = [job.id for job in jobs.page()[0]]
    assert left == [new_job(5).id, new_job(4).id, new_job(0).id]
    jobs.add(new_job(1))
    assert jobs.page()[0][0].id == new_job(1).id


def test_jobs_survive_a_restart(tmp_path: Path) -> None:
    with closing(JobStore(tmp_path / "jobs.db")) as jobs:
        jobs.add(new_job(1))
    with closing(JobStore(tmp_path / "jobs.db")) as jobs:
        assert jobs.get(new_job(1).id) == new_job(1)


def test_older_jobs_are_refused(tmp_path: Path) -> None:
    JobStore(tmp_path / "jobs.db").close()
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as connection:
        connection.execute("PRAGMA user_version = 0")
    for read_only in (False, True):
        with pytest.raises(DataFolderError, match=r"jobs\.db.*older version.*move the file away"):
            JobStore(tmp_path / "jobs.db", read_only=read_only)


def test_a_reader_changes_no_job_and_needs_no_file(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    with closing(JobStore(path, read_only=True)) as reader:
        assert reader.unfinished() == []
    assert not path.exists()
    with closing(JobStore(path)) as owner, closing(JobStore(path, read_only=True)) as reader:
        owner.add(new_job(1))
        assert reader.get(new_job(1).id) == new_job(1)
        with pytest.raises(StorageError, match="reading only"):
            reader.add(new_job(2))
    with pytest.raises(StorageError, match="closed"):
        owner.unfinished()


def test_the_same_work() -> None:
    job = new_job(1)
    assert same_work(job, "count", {"deep": {"a": [1]}, "to": 1})
    assert not same_work(job, "count", {"deep": {"a": [1]}, "to": 2})
    assert not same_work(job, "other", job.parameters)
