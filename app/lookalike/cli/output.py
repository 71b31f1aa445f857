"""What commands print beside JSON: tables, progress, errors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as Bars,
)
from rich.text import Text

from lookalike.client import BaseClient
from lookalike.progress import Progress
from lookalike.schemas import JobOut

SHOWN_ERRORS = 20
"""Errors of a long task that are printed."""


def cell(value: str) -> Text:
    """A text as it is: no markup, no control characters."""
    return Text("".join(char if char.isprintable() else "\ufffd" for char in value))


def metadata_cell(metadata: Mapping[str, Any]) -> Text:
    """Metadata as JSON; nothing where there is none."""
    return cell(json.dumps(metadata, ensure_ascii=False) if metadata else "")


def size_text(count: int) -> str:
    """Bytes with the unit that suits them."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
        if count >= unit:
            return f"{count / unit:,.1f}".removesuffix(".0") + f" {name}"
    return f"{count} bytes"


class DrawnProgress(Progress):
    """Draws a bar for each stage that is reported, and keeps the first few errors."""

    def __init__(self, bars: Bars) -> None:
        super().__init__()
        self._bars = bars
        self._stages: dict[str, TaskID] = {}
        self.errors: list[str] = []

    def report(self, done: int, total: int, *, stage: str = "") -> None:
        """Draws how far a stage is."""
        if stage not in self._stages:
            self._stages[stage] = self._bars.add_task(stage, total=total, rate="")
        bar = self._stages[stage]
        speed = self._bars.tasks[self._bars.task_ids.index(bar)].speed
        rate = f"{speed:.1f}/s" if speed else ""
        self._bars.update(bar, completed=done, total=total, rate=rate)

    def error(self, text: str) -> None:
        """Keeps an error, for `print_errors`."""
        if len(self.errors) < SHOWN_ERRORS:
            self.errors.append(text)


@contextmanager
def progress() -> Iterator[DrawnProgress]:
    """Draws on standard error until the block ends; draws nothing where that is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        yield DrawnProgress(bars)


def watch_job(client: BaseClient, job: JobOut, *, stage: str) -> JobOut:
    """Prints a job's id and draws its progress until it ends; Ctrl-C ends the drawing alone.

    Args:
        client: Where the job is.
        job: The job as it was begun.
        stage: What the progress is called.

    Raises:
        ServerError: The service does not answer, and does not come back; or knows no such job.
    """
    typer.echo(f"job {job.id} is {job.state}", err=True)
    if job.state.finished:
        return job
    try:
        with progress() as drawn:
            return client.wait_for_job(job.id, progress=drawn.stage(stage))
    except KeyboardInterrupt:
        typer.echo(f"no longer watching; job {job.id} goes on", err=True)
        raise typer.Exit(130) from None


def print_errors(errors: Iterable[str]) -> None:
    """Prints errors of a long task, one on a line."""
    for text in errors:
        typer.echo(f"  {text}", err=True)
