"""How a long task reports its progress and learns that it should end."""

from __future__ import annotations

from collections.abc import Callable

Show = Callable[[str, int, int], None]
"""Shows progress: the stage's name (empty if the task has only one), steps done, steps in all."""


class TaskEndedError(Exception):
    """Raised by `Progress.check` to end a task. Never translated into another error."""


class Progress:
    """What a long task is given to report to; it calls `check` between its steps.

    Subclasses override `check` to end the task, and `report` and `error` to record more.

    Args:
        show: Called with every report; None shows nothing.
    """

    def __init__(self, show: Show | None = None) -> None:
        self._show = show

    def check(self) -> None:
        """Raises `TaskEndedError` if the task should end."""

    def report(self, done: int, total: int, *, stage: str = "") -> None:
        """Reports how many steps are done, and how many there are in all."""
        if self._show is not None:
            self._show(stage, done, total)

    def error(self, text: str) -> None:
        """Reports a step that failed while the task goes on."""

    def stage(self, name: str) -> Progress:
        """The progress of one named stage, for a function that knows nothing of stages."""
        return _Stage(self, name)


class _Stage(Progress):
    def __init__(self, task: Progress, name: str) -> None:
        super().__init__()
        self._task = task
        self._name = name

    def check(self) -> None:
        self._task.check()

    def report(self, done: int, total: int, *, stage: str = "") -> None:
        self._task.report(done, total, stage=stage or self._name)

    def error(self, text: str) -> None:
        self._task.error(text)


NO_PROGRESS = Progress()
"""For callers that show nothing and never end the task early."""
