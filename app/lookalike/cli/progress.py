"""Progress of long work on standard error; nothing where that is no terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[str, int, int], None]
"""Told the stage, how many are done, and of how many."""


@contextmanager
def progress() -> Iterator[Report]:
    """Draws a bar for each stage that is reported; all go when the block ends."""
    from rich.console import Console  # noqa: PLC0415 - see lookalike.cli.main
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    stages: dict[str, TaskID] = {}
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bars:

        def report(stage: str, done: int, total: int) -> None:
            if stage not in stages:
                stages[stage] = bars.add_task(stage, total=total, rate="")
            speed = bars.tasks[bars.task_ids.index(stages[stage])].speed
            rate = f"{speed:.1f}/s" if speed else ""
            bars.update(stages[stage], completed=done, total=total, rate=rate)

        yield report
