"""`lookalike reembed`."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lookalike.cli.options import (
    DEFAULT,
    MODEL_SETTINGS,
    ApiKey,
    Collection,
    Json,
    Server,
    settings_flags,
)
from lookalike.cli.watching import print_errors, watched
from lookalike.errors import ConfigurationError
from lookalike.progress import Progress

if TYPE_CHECKING:
    from lookalike.cli.progress import Report

STAGE = "re-embedding"
SHOWN_ERRORS = 20


@settings_flags(*MODEL_SETTINGS)
def reembed(
    given: dict[str, Any],
    *,
    collection: Collection = DEFAULT,
    watch: Annotated[
        bool, typer.Option("--watch", help="With --server: draw the job's progress to its end")
    ] = False,
    as_json: Json = False,
    server: Server = None,
    api_key: ApiKey = None,
) -> None:
    """Move a collection to another model: new vectors for every picture, then one switch.

    On a data folder it is done here, and again after an interruption it goes on where it was. A
    running service (--server) does it in the background and answers searches meanwhile; paths
    are then those of its machine. --head none means no head.
    """
    model = _without_head(given)
    if server is None:
        _here(given, model, collection)
    else:
        _there(given, model, collection, server, api_key, watch=watch, as_json=as_json)


def _without_head(given: dict[str, Any]) -> dict[str, Any]:
    """What the flags can say of the model that the settings cannot: no head."""
    if str(given.get("head")) != "none":
        return {}
    given["head"] = None
    return {"head": None}


def _here(given: dict[str, Any], model: dict[str, Any], collection: str) -> None:
    from lookalike.cli.connect import open_backend  # noqa: PLC0415 - see lookalike.cli.main
    from lookalike.cli.local import LocalBackend  # noqa: PLC0415
    from lookalike.cli.progress import progress  # noqa: PLC0415

    with open_backend(None, None, given, changes=True) as backend, progress() as report:
        assert isinstance(backend, LocalBackend)
        watch = _Bar(report)
        try:
            message = backend.reembed(collection, model, watch)
        finally:
            print_errors(watch.errors)
    typer.echo(message)


def _there(
    given: dict[str, Any],
    model: dict[str, Any],
    collection: str,
    server: str,
    api_key: str | None,
    *,
    watch: bool,
    as_json: bool,
) -> None:
    from lookalike.cli.connect import open_backend  # noqa: PLC0415 - see lookalike.cli.main
    from lookalike.cli.remote import RemoteBackend  # noqa: PLC0415
    from lookalike.models.spec import ModelRequest  # noqa: PLC0415

    for name in (field.name for field in fields(ModelRequest)):
        if (value := given.pop(name, None)) is not None:
            model[name] = _number(value) if name == "input_size" else str(value)
    if (precision := given.pop("precision", None)) is not None:
        model["int8"] = str(precision) == "int8"
    with open_backend(server, api_key, given, changes=True) as backend:
        assert isinstance(backend, RemoteBackend)
        job = backend.reembed(collection, model)
        if watch:
            job = watched(backend, job, stage=STAGE)
    if as_json:
        typer.echo(job.model_dump_json(indent=2))
    elif not job.state.finished:
        typer.echo(
            f"job {job.id} is {job.state}; --watch draws how far it is, and so does "
            f"GET {server.rstrip('/')}/jobs/{job.id}"
        )
    else:
        print_errors(job.error_texts)
        typer.echo(f"job {job.id} is {job.state}: {job.message}")
    if job.state in {"failed", "canceled"}:
        raise typer.Exit(1)


def _number(text: Any) -> int:
    try:
        return int(text)
    except ValueError as exc:
        raise ConfigurationError(f"--input-size is {text!r}; give a number of pixels") from exc


class _Bar(Progress):
    """The progress of work that is done here; keeps the first few errors."""

    def __init__(self, report: Report) -> None:
        super().__init__(lambda _, done, total: report(STAGE, done, total))
        self.errors: list[str] = []

    def error(self, text: str) -> None:
        """Keeps the first few errors."""
        if len(self.errors) < SHOWN_ERRORS:
            self.errors.append(text)
