"""`lookalike index` and `lookalike reembed`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import lookalike
from lookalike.cli.common import (
    DEFAULT,
    MODEL_SETTINGS,
    Collection,
    Json,
    Target,
    client_flags,
    print_errors,
    progress,
    watch_job,
)
from lookalike.client import Outcome
from lookalike.errors import ConfigurationError, LookalikeError
from lookalike.media.sources import walk
from lookalike.models.spec import ModelRequest
from lookalike.records import OnConflict
from lookalike.schemas import JobOut
from lookalike.services.importing import ARCHIVE_ENDINGS

if TYPE_CHECKING:
    from lookalike import HttpClient

STAGE = "indexing"


@client_flags(*MODEL_SETTINGS, "originals")
def index(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Pictures, folders to walk, or archives")
    ] = None,
    *,
    target: Target,
    collection: Collection = DEFAULT,
    metadata: Annotated[
        str | None, typer.Option(metavar="JSON", help="Metadata for every picture")
    ] = None,
    folder_field: Annotated[
        str | None,
        typer.Option(metavar="FIELD", help="Set this field to the name of the picture's folder"),
    ] = None,
    on_conflict: Annotated[
        OnConflict, typer.Option(help="What to do with ids that exist")
    ] = OnConflict.REPLACE,
    on_server: Annotated[
        list[str] | None,
        typer.Option(metavar="FOLDER", help="With --server: a folder of the service's machine"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Add pictures to a collection; what is there already is skipped without work.

    An archive (zip, tar, tar.gz, tar.bz2, tar.xz) is sent to a service (--server) as it is, which
    indexes its pictures in the background; so are folders of the service's machine (--on-server).
    """
    if on_server and target.server is None:
        raise ConfigurationError("--on-server needs --server: which service is to read the folder?")
    options: dict[str, Any] = {
        "collection": collection,
        "on_conflict": on_conflict,
        "metadata": _common(metadata),
        "folder_field": folder_field,
    }
    archives = [path for path in paths or () if _is_archive(path)]
    if missing := [path for path in archives if not path.is_file()]:
        raise ConfigurationError(f"{missing[0]} does not exist, or is no file")
    files = [path for path in paths or () if not _is_archive(path)]
    some = [next(walk([path]), None) is not None for path in files]  # raises where one is missing
    if not (any(some) or archives or on_server):
        raise ConfigurationError("No pictures found there; name files or folders that hold some")
    jobs: list[JobOut] = []
    with target.open(changes=True, must_exist=False) as client:
        with progress() as drawn:
            outcomes = client.index(*files, progress=drawn.stage(STAGE), **options)
            if isinstance(client, lookalike.Client):
                for path in archives:
                    stage = drawn.stage(f"{STAGE} {path.name}")
                    outcomes += client.index_archive(path, progress=stage, **options)
        if isinstance(client, lookalike.HttpClient):
            for place in (*archives, *(on_server or ())):  # one that fails harms no other
                try:
                    jobs.append(watch_job(client, _begin(client, place, options), stage=STAGE))
                except LookalikeError as exc:
                    outcomes.append(Outcome.failure(Path(place), exc))
    _report(outcomes, jobs, as_json=as_json)


def _common(metadata: str | None) -> dict[str, Any] | None:
    try:
        common = json.loads(metadata) if metadata is not None else None
    except ValueError as exc:
        raise ConfigurationError(f"--metadata is not valid JSON: {exc}") from exc
    if common is not None and not isinstance(common, dict):
        raise ConfigurationError('--metadata must be a JSON object such as {"label": "cat"}')
    return common


def _is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVE_ENDINGS) and not path.is_dir()


def _begin(client: HttpClient, place: Path | str, options: dict[str, Any]) -> JobOut:
    """Has a service index an archive of this machine, or a folder of its own: a text."""
    if isinstance(place, str):
        return client.index_folder(place, **options)
    with progress() as drawn:
        return client.index_archive(place, progress=drawn, **options)


def _report(outcomes: Sequence[Outcome], jobs: Sequence[JobOut], *, as_json: bool) -> None:
    """Prints what became of all; exits with 1 where something failed."""
    counts = Counter(outcome.status for outcome in outcomes)
    if as_json:
        items = [_item(outcome) for outcome in outcomes]
        ended = {"jobs": [job.model_dump(mode="json") for job in jobs]} if jobs else {}
        typer.echo(json.dumps({**counts, "items": items, **ended}, indent=2))
    else:
        if outcomes:
            typer.echo(", ".join(f"{count} {status}" for status, count in counts.items()))
        print_errors(f"{one.path}: {one.error}" for one in outcomes if one.failed)
        for job in jobs:
            typer.echo(f"job {job.id} is {job.state}: {job.message}")
            print_errors(job.error_texts)
    if counts["failed"] or any(job.errors or job.state in {"failed", "canceled"} for job in jobs):
        raise typer.Exit(1)


def _item(outcome: Outcome) -> dict[str, Any]:
    reason = None if outcome.error is None else str(outcome.error)
    facts = {"path": str(outcome.path), "status": outcome.status, "id": outcome.id}
    return facts | {"reason": reason}


_MOVING = "re-embedding"


@client_flags(*MODEL_SETTINGS)
def reembed(
    target: Target,
    *,
    collection: Collection = DEFAULT,
    watch: Annotated[
        bool, typer.Option("--watch", help="With --server: draw the job's progress to its end")
    ] = False,
    as_json: Json = False,
) -> None:
    """Move a collection to another model: new vectors for every picture, then one switch.

    On a data folder it is done here, and again after an interruption it goes on where it was. A
    running service (--server) does it in the background and answers searches meanwhile; paths
    are then those of its machine. --head none means no head.
    """
    model: dict[str, Any] = {}
    if str(target.given.get("head")) == "none":  # no setting can say it
        target.given["head"] = model["head"] = None
    if target.server is not None:
        model |= _named_model(target.given)
    with target.open(changes=True) as client:
        if isinstance(client, lookalike.Client):
            with progress() as drawn:
                try:
                    message = client.reembed(collection, model=model, progress=drawn.stage(_MOVING))
                finally:
                    print_errors(drawn.errors)
            typer.echo(message)
            return
        job = client.begin_reembed(collection, model=model)
        if watch:
            job = watch_job(client, job, stage=_MOVING)
    _print_job(job, str(target.server), as_json=as_json)


def _named_model(given: dict[str, Any]) -> dict[str, Any]:
    """Takes the model settings that a service accepts out of the flags."""
    model: dict[str, Any] = {}
    for name in (field.name for field in fields(ModelRequest)):
        if (value := given.pop(name, None)) is not None:
            model[name] = _number(value) if name == "input_size" else str(value)
    if (precision := given.pop("precision", None)) is not None:
        model["int8"] = str(precision) == "int8"
    return model


def _print_job(job: JobOut, server: str, *, as_json: bool) -> None:
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
