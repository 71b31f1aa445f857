"""Jobs: one after the other, with progress, kept over restarts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lookalike.errors import InvalidParameterError, JobNotFoundError, NotReadyError, StorageError
from lookalike.progress import Progress
from lookalike.services.jobs import JobService, JobStatus
from lookalike.store.jobs import Job, JobState, JobStore
from tests.waiting import PATIENCE_S, wait_for


class Counting:
    """Counts to `to`, one step whenever it is let."""

    def __init__(self) -> None:
        self.let = threading.Semaphore(0)
        self.done = 0
        self.calls = 0

    def __call__(self, parameters: Mapping[str, Any], progress: Progress) -> str:
        self.calls += 1
        while self.done < parameters["to"]:
            progress.report(self.done, parameters["to"])
            while not self.let.acquire(timeout=0.01):
                progress.check()
            self.done += 1
            if parameters.get("fails"):
                progress.error(f"step {self.done} failed")
        progress.report(self.done, parameters["to"])
        return f"Counted to {self.done}"


@pytest.fixture
def count() -> Counting:
    return Counting()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    with closing(JobStore(tmp_path / "jobs.db")) as jobs:
        yield jobs


@pytest.fixture
def service(store: JobStore, count: Counting) -> Iterator[JobService]:
    made = JobService(store, {"count": count, "break": _break}, every_s=0.0, kept=3)
    made.resume()
    yield made
    made.close()


def _break(parameters: Mapping[str, Any], progress: Progress) -> str:
    progress.report(1, 2)
    if parameters.get("ours"):
        raise StorageError("the disk refuses; make room")
    raise ZeroDivisionError("planted")


def until(service: JobService, job_id: str, holds: Callable[[JobStatus], bool]) -> JobStatus:
    """Looks at a job until something holds of it."""

    def look() -> JobStatus | None:
        found = service.get(job_id)
        return found if holds(found) else None

    return wait_for(look, state=lambda: service.get(job_id))


def finished(service: JobService, job_id: str) -> Job:
    return until(service, job_id, lambda found: found.job.state.finished).job


def test_a_job_runs_to_its_end(service: JobService, count: Counting) -> None:
    started = service.start("count", {"to": 3, "fails": True}).job
    assert (started.state, started.done, started.total) == (JobState.QUEUED, 0, None)
    running = until(service, started.id, lambda found: found.job.total is not None)
    assert (running.job.state, running.job.done, running.job.total) == (JobState.RUNNING, 0, 3)
    assert running.seconds_left is None
    count.let.release()
    running = until(service, started.id, lambda found: found.job.done == 1)
    assert running.rate is not None
    assert running.seconds_left == pytest.approx(2 / running.rate)
    count.let.release(2)
    done = finished(service, started.id)
    assert (done.state, done.done, done.total) == (JobState.DONE, 3, 3)
    assert (done.errors, done.error_texts) == (3, tuple(f"step {n} failed" for n in (1, 2, 3)))
    assert done.message == "Counted to 3"
    assert done.created_at <= (done.started_at or "") <= (done.finished_at or "")
    assert service.get(done.id).rate is None


def test_only_the_first_errors_keep_their_texts(service: JobService, count: Counting) -> None:
    job = service.start("count", {"to": 50, "fails": True}).job
    count.let.release(50)
    done = finished(service, job.id)
    assert (done.errors, len(done.error_texts)) == (50, 20)


def test_jobs_run_one_after_the_other(service: JobService, count: Counting) -> None:
    first = service.start("count", {"to": 1}).job
    second = service.start("count", {"to": 2}).job
    until(service, first.id, lambda found: found.job.state is JobState.RUNNING)
    assert service.get(second.id).job.state is JobState.QUEUED
    count.let.release()
    finished(service, first.id)
    until(service, second.id, lambda found: found.job.state is JobState.RUNNING)
    count.let.release()
    assert finished(service, second.id).state is JobState.DONE
    found, cursor = service.page(limit=10)
    assert ([one.job.id for one in found], cursor) == ([second.id, first.id], None)


def test_the_same_work_is_not_begun_twice(service: JobService, count: Counting) -> None:
    first = service.start("count", {"to": 1}).job
    assert service.start("count", {"to": 1}).job.id == first.id
    until(service, first.id, lambda found: found.job.state is JobState.RUNNING)
    assert service.start("count", {"to": 1}).job.id == first.id
    assert service.start("count", {"to": 2}).job.id != first.id
    service.cancel(first.id)
    assert service.start("count", {"to": 1}).job.id != first.id


def test_what_is_asked_last_is_done_last(service: JobService, count: Counting) -> None:
    one, other = {"to": 1, "collection": "shop"}, {"to": 2, "collection": "shop"}
    first = service.start("count", one).job
    elsewhere = service.start("count", {"to": 1, "collection": "archive"}).job
    second = service.start("count", other).job
    assert service.start("count", other).job.id == second.id
    assert service.start("count", {"to": 1, "collection": "archive"}).job.id == elsewhere.id
    third = service.start("count", one).job
    assert third.id not in {first.id, second.id}, "otherwise the other would have the last word"


def test_progress_reaches_the_disk_while_it_runs(store: JobStore, count: Counting) -> None:
    service = JobService(store, {"count": count}, every_s=0.0)
    service.resume()
    job = service.start("count", {"to": 3}).job
    count.let.release(2)
    wait_for(lambda: store.get(job.id).done == 2)
    assert (store.get(job.id).done, store.get(job.id).state) == (2, JobState.RUNNING)
    count.let.release()
    service.close()


def test_what_fails_says_why(
    service: JobService, caplog: pytest.LogCaptureFixture, count: Counting
) -> None:
    ours = finished(service, service.start("break", {"ours": True}).job.id)
    assert (ours.state, ours.message) == (JobState.FAILED, "the disk refuses; make room")
    assert (ours.done, ours.total) == (1, 2)
    theirs = finished(service, service.start("break", {}).job.id)
    assert theirs.state is JobState.FAILED
    assert "ZeroDivisionError" in theirs.message
    assert "planted" in caplog.text
    count.let.release()
    assert finished(service, service.start("count", {"to": 1}).job.id).state is JobState.DONE


def test_canceling(service: JobService, count: Counting) -> None:
    first = service.start("count", {"to": 5}).job
    second = service.start("count", {"to": 6}).job
    until(service, first.id, lambda found: found.job.total is not None)
    assert service.cancel(second.id).job.state is JobState.CANCELED
    service.cancel(first.id)
    ended = finished(service, first.id)
    assert (ended.state, ended.cancel_requested) == (JobState.CANCELED, True)
    assert service.cancel(first.id).job == ended
    assert count.calls == 1
    with pytest.raises(JobNotFoundError):
        service.cancel("0" * 16)


def test_canceling_those_of_a_collection_says_why(service: JobService, count: Counting) -> None:
    running, queued, other = (
        service.start("count", {"to": to, "collection": "c" if to else "d"}).job for to in (5, 6, 0)
    )
    until(service, running.id, lambda found: found.job.total is not None)
    for job in service.unfinished("c"):
        service.cancel(job.id, why="Nobody counts any more")
    for job in (running, queued):
        ended = finished(service, job.id)
        assert (ended.state, ended.message) == (JobState.CANCELED, "Nobody counts any more")
    assert finished(service, other.id).state is JobState.DONE


def test_a_restart_goes_on_where_it_was(store: JobStore, count: Counting) -> None:
    service = JobService(store, {"count": count}, every_s=0.0)
    service.resume()
    running = service.start("count", {"to": 4}).job
    queued = service.start("count", {"to": 5}).job
    count.let.release(2)
    until(service, running.id, lambda found: found.job.done == 2)
    service.close()
    left = store.get(running.id)
    assert (left.state, left.done, left.total) == (JobState.RUNNING, 2, 4)
    assert store.get(queued.id).state is JobState.QUEUED
    with pytest.raises(NotReadyError):
        service.start("count", {"to": 9})
    again = JobService(store, {"count": count}, every_s=0.0)
    count.let.release(3)
    assert again.get(running.id).job == left
    again.resume()
    assert finished(again, running.id).done == 4
    assert finished(again, running.id).started_at == left.started_at
    assert finished(again, queued.id).state is JobState.DONE
    again.close()
    again.close()


def test_a_cancel_survives_a_crash(store: JobStore, count: Counting) -> None:
    """The flag is on the disk before the job sees it."""
    service = JobService(store, {"count": count}, every_s=0.0)
    service.resume()
    job = service.start("count", {"to": 4}).job
    until(service, job.id, lambda found: found.job.total is not None)
    service.close()  # as if it had died: the job is left running
    JobService(store, {"count": count}).cancel(job.id)
    again = JobService(store, {"count": count})
    again.resume()
    assert finished(again, job.id).state is JobState.CANCELED
    assert count.calls == 1
    again.close()


def test_a_failure_amid_the_shutdown_is_no_failure(store: JobStore) -> None:
    inside, end = threading.Event(), threading.Event()

    def breaks_at_shutdown(parameters: Mapping[str, Any], progress: Progress) -> str:
        inside.set()
        assert end.wait(PATIENCE_S)
        raise NotReadyError("The service is shutting down")

    service = JobService(store, {"count": breaks_at_shutdown})
    service.resume()
    job = service.start("count", {}).job
    assert inside.wait(PATIENCE_S)
    closing = threading.Thread(target=service.close)
    closing.start()
    wait_for(lambda: service._closed)
    end.set()
    closing.join()
    assert store.get(job.id).state is JobState.RUNNING


def test_old_jobs_are_forgotten(service: JobService, count: Counting) -> None:
    count.let.release(100)
    made = []
    for number in range(5):
        made.append(service.start("count", {"to": number}).job.id)
        finished(service, made[-1])
    wait_for(lambda: len(service.page()[0]) <= 3)
    assert [one.job.id for one in service.page()[0]] == made[:1:-1]


def test_kinds_that_are_not_known(store: JobStore, count: Counting) -> None:
    service = JobService(store, {"count": count})
    with pytest.raises(InvalidParameterError):
        service.start("paint", {})
    job = service.start("count", {"to": 1}).job
    older = JobService(store, {})
    older.resume()
    assert "no jobs of the kind 'count'" in finished(older, job.id).message
    older.close()


def test_a_disk_that_refuses_is_outlived(
    store: JobStore, count: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a job that cannot be written is written later."""
    service = JobService(store, {"count": count}, every_s=60.0, retry_s=0.01)
    change = store.change
    refused: list[Any] = []

    def refuse(job_id: str, change_it: Callable[[Job], Job]) -> Job:
        if change_it(store.get(job_id)).state is JobState.DONE and len(refused) < 2:
            refused.append(job_id)
            raise StorageError("planted")
        return change(job_id, change_it)

    monkeypatch.setattr(store, "change", refuse)
    service.resume()
    count.let.release()
    job = service.start("count", {"to": 1}).job
    assert finished(service, job.id).state is JobState.DONE
    assert refused == [job.id, job.id]
    service.close()


@pytest.mark.parametrize("planted", [StorageError("planted"), ValueError("a row of nonsense")])
def test_what_keeps_a_job_from_beginning_does_not_end_the_thread(
    store: JobStore, count: Counting, monkeypatch: pytest.MonkeyPatch, planted: Exception
) -> None:
    service = JobService(store, {"count": count}, retry_s=0.01)
    unfinished = store.unfinished
    raised: list[Any] = []

    def refuse() -> list[Job]:
        if threading.current_thread().name == "jobs" and len(raised) < 2:
            raised.append(planted)
            raise planted
        return unfinished()

    monkeypatch.setattr(store, "unfinished", refuse)
    job = service.start("count", {"to": 1}).job
    count.let.release()
    service.resume()
    assert finished(service, job.id).state is JobState.DONE
    assert len(raised) == 2
    service.close()


@pytest.mark.parametrize("planted", [StorageError("planted"), ValueError("planted")])
def test_jobs_that_cannot_be_forgotten_keep_nothing_from_going(
    store: JobStore, count: Counting, monkeypatch: pytest.MonkeyPatch, planted: Exception
) -> None:
    def refuse(*, keep: int) -> int:
        raise planted

    monkeypatch.setattr(store, "prune", refuse)
    told: list[Job] = []
    service = JobService(store, {"count": count}, ended=told.append)
    service.resume()
    for _ in range(2):
        job = service.start("count", {"to": 0}).job
        assert finished(service, job.id).state is JobState.DONE
        wait_for(lambda: told and told[-1].id == job.id)  # noqa: B023 - it is this one
    service.close()
    assert [one.state for one in told] == [JobState.DONE, JobState.DONE]


def test_an_end_that_nobody_thought_of_does_not_end_the_thread(
    store: JobStore, count: Counting, caplog: pytest.LogCaptureFixture
) -> None:
    """A message that no disk takes, and somebody told who breaks."""

    def name_a_file(parameters: Mapping[str, Any], progress: Progress) -> str:
        raise StorageError("\udcff.png cannot be read")

    def ended(job: Job) -> None:
        raise ZeroDivisionError("planted")

    service = JobService(store, {"count": count, "name": name_a_file}, ended=ended)
    service.resume()
    named = finished(service, service.start("name", {}).job.id)
    assert named.state is JobState.FAILED
    count.let.release()
    assert finished(service, service.start("count", {"to": 1}).job.id).state is JobState.DONE
    service.close()
    assert "ZeroDivisionError: planted" in caplog.text


@pytest.mark.parametrize("times", [1, 3])
def test_an_end_that_cannot_be_written_for_no_known_reason_is_tried_again(
    store: JobStore, count: Counting, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    service = JobService(store, {"count": count}, every_s=60.0, retry_s=0.01)
    change = store.change
    refused: list[Any] = []

    def refuse(job_id: str, change_it: Callable[[Job], Job]) -> Job:
        if change_it(store.get(job_id)).state.finished and len(refused) < times:
            refused.append(job_id)
            raise ValueError("planted")
        return change(job_id, change_it)

    monkeypatch.setattr(store, "change", refuse)
    service.resume()
    first = service.start("count", {"to": 0}).job
    second = service.start("count", {"to": 0, "n": 2}).job
    assert "ValueError" in finished(service, first.id).message
    assert finished(service, second.id).state is JobState.DONE
    service.close()
