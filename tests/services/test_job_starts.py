"""Jobs that end the service: begun again while they come further, and not for ever."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lookalike.errors import StorageError
from lookalike.progress import Progress
from lookalike.services.jobs import Handler, JobService
from lookalike.store.jobs import Job, JobState, JobStore
from tests.services.test_jobs import Counting, finished
from tests.waiting import PATIENCE_S, wait_for

NEVER_S = 3600.0
CHILD = """
import os, sys, time
from pathlib import Path
from lookalike.services.jobs import JobService
from lookalike.store.jobs import JobStore
jobs = JobService(JobStore(Path(sys.argv[1])), {"count": lambda *_: os._exit(9)})
if not jobs.page()[0]:
    jobs.start("count", {"to": 1})
    jobs.start("count", {"to": 2})
jobs.resume()
time.sleep(60)
"""


class Mortal(JobStore):
    """Jobs of a process that may die: nothing is written then."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "jobs.db")
        self.dead = False

    def change(self, job_id: str, change: Callable[[Job], Job]) -> Job:
        """See `JobStore.change`."""
        if self.dead:
            raise StorageError("planted")
        return super().change(job_id, change)


class Stuck:
    """Comes so far, and no further."""

    def __init__(self, done: int) -> None:
        self._done = done
        self.inside = threading.Event()

    def __call__(self, parameters: Mapping[str, Any], progress: Progress) -> str:
        progress.report(self._done, 100)
        self.inside.set()
        while True:
            progress.check()
            threading.Event().wait(0.005)


class Life:
    """One service after the other on the same jobs, whose progress is seldom written."""

    def __init__(self, folder: Path) -> None:
        self.store = Mortal(folder)
        self.told: list[str] = []

    def begin(self, handler: Handler) -> JobService:
        self.store.dead = False
        service = JobService(
            self.store,
            {"count": handler},
            every_s=NEVER_S,
            retry_s=0.01,
            ended=lambda job: self.told.append(job.id),
        )
        service.resume()
        return service

    def crash(self, service: JobService, *, after: Stuck | None = None) -> None:
        assert after is None or after.inside.wait(PATIENCE_S)
        self.store.dead = True
        service.close()

    def at(self, job_id: str, *, done: int) -> Job | None:
        """The job, once that much of it was written."""
        job = self.store.get(job_id)
        return job if job.done == done else None

    def queue(self, **parameters: int) -> str:
        return JobService(self.store, {"count": Counting()}).start("count", parameters).job.id


@pytest.fixture
def life(tmp_path: Path) -> Life:
    return Life(tmp_path)


def test_a_job_that_ends_the_process_is_not_begun_for_ever(tmp_path: Path) -> None:
    for _ in range(3):
        command = [sys.executable, "-c", CHILD, str(tmp_path / "jobs.db")]
        assert subprocess.run(command, check=False).returncode == 9
    calls: list[Mapping[str, Any]] = []
    told: list[Job] = []

    def count(parameters: Mapping[str, Any], progress: Progress) -> str:
        calls.append(parameters)
        return "Counted"

    with closing(JobStore(tmp_path / "jobs.db")) as store:
        service = JobService(store, {"count": count}, ended=told.append)
        bad, good = store.unfinished()
        service.resume()
        failed = finished(service, bad.id)
        assert (failed.state, failed.starts) == (JobState.FAILED, 4)
        assert failed.message.startswith("The service ended 3 times while it worked on this")
        assert finished(service, good.id).state is JobState.DONE
        service.close()
    assert [job.id for job in told] == [bad.id, good.id]
    assert calls == [{"to": 2}]


def test_what_came_further_may_crash_any_number_of_times(life: Life) -> None:
    count = Counting()
    job_id = life.queue(to=7)
    for done in range(1, 7):
        service = life.begin(count)
        count.let.release()
        job = wait_for(lambda done=done: life.at(job_id, done=done))  # type: ignore[misc]
        assert job.starts == 0
        life.crash(service)
    count.let.release()
    service = life.begin(count)
    assert finished(service, job_id).state is JobState.DONE
    service.close()


def test_what_was_done_before_a_crash_counts_once_it_is_told(life: Life) -> None:
    """As where a journal knows of more than was written of the job."""
    job_id = life.queue()
    for done in range(1, 7):
        service = life.begin(Stuck(done))
        job = wait_for(lambda done=done: life.at(job_id, done=done))  # type: ignore[misc]
        assert job.starts == 1, "the next two may come no further"
        life.crash(service)
    for _ in range(2):
        life.crash(life.begin(stuck := Stuck(6)), after=stuck)
    assert life.store.get(job_id).starts == 3
    service = life.begin(Stuck(7))
    assert finished(service, job_id).state is JobState.FAILED
    service.close()


def test_a_shutdown_is_no_crash(life: Life) -> None:
    job_id = life.queue()
    for _ in range(6):
        stuck = Stuck(0)
        service = life.begin(stuck)
        assert stuck.inside.wait(PATIENCE_S)
        assert life.store.get(job_id).starts == 1
        service.close()
        assert life.store.get(job_id).starts == 0
    service = life.begin(lambda *_: "Done")
    assert finished(service, job_id).state is JobState.DONE
    service.close()


def test_a_shutdown_that_is_cut_short_is_none_either(life: Life) -> None:
    inside, end = threading.Event(), threading.Event()

    def deaf(parameters: Mapping[str, Any], progress: Progress) -> str:
        inside.set()
        end.wait()
        progress.check()
        return "not to be said"

    job_id = life.queue()
    service = life.begin(deaf)
    assert inside.wait(PATIENCE_S)
    assert life.store.get(job_id).starts == 1
    closing_it = threading.Thread(target=service.close)
    closing_it.start()
    wait_for(lambda: life.store.get(job_id).starts == 0)
    life.store.dead = True  # killed before the job heard of it
    end.set()
    closing_it.join()
    assert life.store.get(job_id).state is JobState.RUNNING


def test_a_cancel_is_heard_before_a_job_is_given_up(life: Life) -> None:
    job_id = life.queue()
    for _ in range(3):
        life.crash(life.begin(stuck := Stuck(0)), after=stuck)
    life.store.dead = False
    JobService(life.store, {}).cancel(job_id)
    service = life.begin(Stuck(0))
    assert finished(service, job_id).state is JobState.CANCELED
    service.close()


def test_what_is_given_up_keeps_its_errors(life: Life) -> None:
    job_id = life.queue()
    life.store.change(
        job_id, lambda job: replace(job, starts=3, done=2, errors=1, error_texts=("lost",))
    )
    service = life.begin(Counting())
    failed = finished(service, job_id)
    assert (failed.state, failed.done) == (JobState.FAILED, 2)
    assert (failed.errors, failed.error_texts) == (1, ("lost",))
    service.close()


def test_an_end_that_cannot_be_written_is_no_crash(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = life.store.change
    refused: list[Any] = []

    def refuse(job_id: str, change_it: Callable[[Job], Job]) -> Job:
        if change_it(life.store.get(job_id)).state is JobState.DONE and len(refused) < 6:
            refused.append(job_id)
            raise StorageError("planted")
        return change(job_id, change_it)

    monkeypatch.setattr(life.store, "change", refuse)
    job_id = life.queue()
    service = life.begin(lambda *_: "Done")
    assert finished(service, job_id).state is JobState.DONE
    assert len(refused) == 6
    service.close()
