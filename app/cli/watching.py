"""Following a job of a running service."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from app.api.job_schemas import JobOut
    from app.cli.remote import RemoteBackend

POLL_S = 0.5


def watched(backend: RemoteBackend, job: JobOut, *, stage: str) -> JobOut:
    """Draws a job's progress until it ends; Ctrl-C ends the drawing, not the job.

    Args:
        backend: The service.
        job: As it was begun.
        stage: What the progress is called.
    """
    from app.cli.progress import progress  # noqa: PLC0415 - see app.cli.main

    try:
        with progress() as report:
            while not job.state.finished:
                if job.total is not None:
                    report(stage, job.done, job.total)
                time.sleep(POLL_S)
                job = backend.job(job.id)
    except KeyboardInterrupt:
        typer.echo(f"no longer watching; job {job.id} goes on", err=True)
        raise typer.Exit(130) from None
    return job


def print_errors(errors: Iterable[str]) -> None:
    """Prints a job's errors, one on a line."""
    for text in errors:
        typer.echo(f"  {text}", err=True)
