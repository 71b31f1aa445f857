"""What every store keeps of long work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lookalike.errors import InvalidParameterError, JobNotFoundError
from lookalike.store.base import Store
from lookalike.store.jobs import Job, JobState, same_work
from lookalike.store.local.store import LocalStore

TIME = "2026-01-01T00:00:00.000Z"


def new_job(number: int, *, state: JobState = JobState.QUEUED) -> Job:
    return Job(
        id=f"{number:016x}",
        kind="count",
        parameters={"to": number, "deep": {"a": [1]}},
        state=state,
        created_at=TIME,
        updated_at=TIME,
    )


def test_a_job_is_kept_as_it_is(store: Store) -> None:
    job = new_job(1)
    store.jobs.add(job)
    assert store.jobs.get(job.id) == job
    with pytest.raises(ValueError, match="there already"):
        store.jobs.add(job)
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
    assert store.jobs.change(job.id, lambda _: changed) == changed
    assert store.jobs.get(job.id) == changed


def test_a_change_sees_what_is_stored(store: Store) -> None:
    store.jobs.add(new_job(1))
    for _ in range(3):
        store.jobs.change(new_job(1).id, lambda job: replace(job, done=job.done + 1))
    assert store.jobs.get(new_job(1).id).done == 3


def test_a_change_that_fails_changes_nothing(store: Store) -> None:
    store.jobs.add(new_job(1))
    with pytest.raises(ZeroDivisionError):
        store.jobs.change(new_job(1).id, lambda job: replace(job, done=1 // 0))
    assert store.jobs.get(new_job(1).id) == new_job(1)


def test_what_is_handed_out_changes_nothing(store: Store) -> None:
    store.jobs.add(new_job(1))
    store.jobs.get(new_job(1).id).parameters["deep"]["a"].append(2)
    assert store.jobs.get(new_job(1).id) == new_job(1)


def test_unknown_jobs(store: Store) -> None:
    with pytest.raises(JobNotFoundError, match="GET /jobs"):
        store.jobs.get("0")
    with pytest.raises(JobNotFoundError):
        store.jobs.change("0", lambda job: job)


def test_unfinished_ones_come_oldest_first(store: Store) -> None:
    for number, state in enumerate(JobState):
        store.jobs.add(new_job(number, state=state))
    assert [job.state for job in store.jobs.unfinished()] == [JobState.QUEUED, JobState.RUNNING]
    assert [state.finished for state in JobState] == [False, False, True, True, True]


def test_pages_are_newest_first(store: Store) -> None:
    assert store.jobs.page().jobs == []
    for number in range(5):
        store.jobs.add(new_job(number))
    first = store.jobs.page(limit=2)
    assert [job.id for job in first.jobs] == [new_job(4).id, new_job(3).id]
    store.jobs.add(new_job(5))
    second = store.jobs.page(limit=2, cursor=first.next_cursor)
    assert [job.id for job in second.jobs] == [new_job(2).id, new_job(1).id]
    last = store.jobs.page(limit=2, cursor=second.next_cursor)
    assert ([job.id for job in last.jobs], last.next_cursor) == ([new_job(0).id], None)
    assert store.jobs.page(limit=6).next_cursor is None
    assert store.jobs.page(cursor="c0").jobs == []
    with pytest.raises(InvalidParameterError, match="no cursor"):
        store.jobs.page(cursor="x")
    with pytest.raises(InvalidParameterError):
        store.jobs.page(limit=0)


def test_old_finished_ones_are_forgotten(store: Store) -> None:
    store.jobs.add(new_job(0, state=JobState.RUNNING))
    for number in range(1, 6):
        store.jobs.add(new_job(number, state=JobState.DONE))
    assert store.jobs.prune(keep=2) == 3
    assert store.jobs.prune(keep=2) == 0
    left = [job.id for job in store.jobs.page().jobs]
    assert left == [new_job(5).id, new_job(4).id, new_job(0).id]
    store.jobs.add(new_job(1))
    assert store.jobs.page().jobs[0].id == new_job(1).id


def test_jobs_survive_a_restart(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.jobs.add(new_job(1))
    store.close()
    store = LocalStore(tmp_path)
    assert store.jobs.get(new_job(1).id) == new_job(1)
    store.close()


def test_the_same_work() -> None:
    job = new_job(1)
    assert same_work(job, "count", {"deep": {"a": [1]}, "to": 1})
    assert not same_work(job, "count", {"deep": {"a": [1]}, "to": 2})
    assert not same_work(job, "other", job.parameters)
