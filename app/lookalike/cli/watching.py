"""Following a job of a running service."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import typer

from lookalike.errors import ServerError

if TYPE_CHECKING:
    from lookalike.cli.remote import RemoteBackend
    from lookalike.schemas import JobOut

POLL_S = 0.5
RETRY_S = 60.0
"""How long a service that does not answer, as while it restarts, is asked again."""


def watched(backend: RemoteBackend, job: JobOut, *, stage: str) -> JobOut:
    """Says a job's id and draws its progress until it ends; Ctrl-C ends the drawing, not the job.

    Args:
        backend: The service.
        job: As it was begun.
        stage: What the progress is called.

    Raises:
        ServerError: The service does not answer, and does not come back; or knows no such job.
    """
    from lookalike.cli.progress import progress  # noqa: PLC0415 - see lookalike.cli.main

    typer.echo(f"job {job.id} is {job.state}", err=True)
    try:
        with progress() as report:
            while not job.state.finished:
                if job.total is not None:
                    report(stage, job.done, job.total)
                time.sleep(POLL_S)
                job = _asked(backend, job.id)
    except KeyboardInterrupt:
        typer.echo(f"no longer watching; job {job.id} goes on", err=True)
        raise typer.Exit(130) from None
    return job


def _asked(backend: RemoteBackend, job_id: str) -> JobOut:
    """How far a job is, asked again and again where the service does not answer."""
    end = time.monotonic() + RETRY_S
    while True:
        try:
            return backend.job(job_id)
        except ServerError as exc:
            if not exc.passing:
                raise
            if time.monotonic() >= end:
                raise ServerError(
                    f"{exc} Job {job_id} goes on where it was: GET /jobs/{job_id} says how far"
                ) from exc
        time.sleep(POLL_S)


def print_errors(errors: Iterable[str]) -> None:
    """Prints a job's errors, one on a line."""
    for text in errors:
        typer.echo(f"  {text}", err=True)
