"""The background worker: steps until there is nothing to do, wakes, rests, survives errors."""

from __future__ import annotations

import logging
import threading

import pytest

from lookalike.errors import StorageFullError
from lookalike.progress import Progress, TaskEndedError, Worker
from tests.waiting import PATIENCE_S, wait_for


def test_steps_follow_each_other_until_there_is_nothing_to_do() -> None:
    left = [3, 2, 1]
    done: list[int] = []

    def step() -> bool:
        done.append(left.pop())
        return bool(left)

    worker = Worker("test", step, failure="it failed")
    worker.wake()
    wait_for(lambda: done == [1, 2, 3])
    left.append(4)
    worker.wake()
    wait_for(lambda: done == [1, 2, 3, 4])
    worker.close()
    worker.close()


def test_a_wake_during_a_step_is_not_lost() -> None:
    began, go = threading.Semaphore(0), threading.Semaphore(0)

    def step() -> bool:
        began.release()
        go.acquire()
        return False

    worker = Worker("test", step, failure="it failed")
    worker.wake()
    assert began.acquire(timeout=PATIENCE_S)
    worker.wake()
    go.release()
    assert began.acquire(timeout=PATIENCE_S)
    go.release()
    worker.close()


def test_a_periodic_worker_needs_one_wake_alone() -> None:
    steps = threading.Semaphore(0)
    worker = Worker("test", lambda: bool(steps.release()), failure="it failed", every_s=0.001)
    worker.wake()
    for _ in range(3):
        assert steps.acquire(timeout=PATIENCE_S)
    worker.close()


@pytest.mark.parametrize(
    ("error", "traced"), [(StorageFullError("full"), False), (KeyError("x"), True)]
)
def test_a_step_that_fails_is_logged_and_tried_again(
    error: Exception, traced: bool, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[int] = []

    def step() -> bool:
        tries.append(1)
        if len(tries) == 1:
            raise error
        return False

    worker = Worker("test", step, failure="it failed", retry_s=0.001)
    with caplog.at_level(logging.WARNING):
        worker.wake()
        wait_for(lambda: len(tries) == 2)
    worker.close()
    assert [bool(record.exc_info) for record in caplog.records] == [traced]
    assert caplog.records[0].getMessage().startswith("it failed: ")


def test_closing_cuts_a_rest_short_and_a_closed_worker_never_starts() -> None:
    stepped = threading.Event()
    worker = Worker(
        "test", lambda: not stepped.set(), failure="it failed", share=1e-9, longest_rest_s=1e6
    )
    worker.wake()
    assert stepped.wait(PATIENCE_S)
    worker.close()
    unborn = Worker("test", lambda: pytest.fail("it ran"), failure="it failed")
    unborn.close()
    unborn.wake()
    assert not any(thread.name == "test" for thread in threading.enumerate())


def test_a_stage_reports_under_its_name_and_checks_as_its_task() -> None:
    shown: list[tuple[str, int, int]] = []
    errors: list[str] = []

    class Ended(Progress):
        def error(self, text: str) -> None:
            errors.append(text)

        def check(self) -> None:
            raise TaskEndedError

    task = Ended(lambda *report: shown.append(report))
    stage = task.stage("reading")
    task.report(1, 2)
    stage.report(2, 2)
    stage.error("broken")
    assert shown == [("", 1, 2), ("reading", 2, 2)]
    assert errors == ["broken"]
    with pytest.raises(TaskEndedError):
        stage.check()
