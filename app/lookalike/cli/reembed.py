"""`lookalike reembed`."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

import lookalike
from lookalike.cli.options import (
    DEFAULT,
    MODEL_SETTINGS,
    ApiKey,
    Collection,
    Json,
    Server,
    open_client,
    settings_flags,
)
from lookalike.cli.output import print_errors, progress, watch_job
from lookalike.errors import ConfigurationError
from lookalike.models.spec import ModelRequest
from lookalike.schemas import JobOut

if TYPE_CHECKING:
    from lookalike import Client

STAGE = "re-embedding"


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
    if server is not None:
        model |= _named_model(given)
    with open_client(server, api_key, given, changes=True) as client:
        if isinstance(client, lookalike.Client):
            _here(client, collection, model)
            return
        job = client.begin_reembed(collection, model=model)
        if watch:
            job = watch_job(client, job, stage=STAGE)
    _print(job, str(server), as_json=as_json)


def _without_head(given: dict[str, Any]) -> dict[str, Any]:
    """Takes `--head none` out of the flags: no setting can say it."""
    if str(given.get("head")) != "none":
        return {}
    given["head"] = None
    return {"head": None}


def _here(client: Client, collection: str, model: dict[str, Any]) -> None:
    with progress() as drawn:
        try:
            message = client.reembed(collection, model=model, progress=drawn.stage(STAGE))
        finally:
            print_errors(drawn.errors)
    typer.echo(message)


def _named_model(given: dict[str, Any]) -> dict[str, Any]:
    """Takes the model settings that a service accepts out of the flags."""
    model: dict[str, Any] = {}
    for name in (field.name for field in fields(ModelRequest)):
        if (value := given.pop(name, None)) is not None:
            model[name] = _number(value) if name == "input_size" else str(value)
    if (precision := given.pop("precision", None)) is not None:
        model["int8"] = str(precision) == "int8"
    return model


def _print(job: JobOut, server: str, *, as_json: bool) -> None:
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
