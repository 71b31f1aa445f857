"""`lookalike index`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.options import (
    DEFAULT,
    MODEL_SETTINGS,
    ApiKey,
    Collection,
    Json,
    Server,
    settings_flags,
)
from app.errors import ConfigurationError
from app.records import OnConflict
from app.services.walk import Found, walk

if TYPE_CHECKING:
    from app.cli.backends import Backend, Job, Line


@settings_flags(*MODEL_SETTINGS, "originals")
def index(
    paths: Annotated[list[Path], typer.Argument(help="Pictures, or folders to walk")],
    given: dict[str, Any],
    *,
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
    as_json: Json = False,
    server: Server = None,
    api_key: ApiKey = None,
) -> None:
    """Add pictures to a collection; what is there already is skipped without work."""
    from app.cli.connect import open_backend  # noqa: PLC0415 - see app.cli.main

    jobs = _jobs(walk(paths), metadata, folder_field)
    if not jobs:
        raise ConfigurationError("No pictures found there; name files or folders that hold some")
    with open_backend(server, api_key, given, changes=True, must_exist=False) as backend:
        lines = _run(backend, jobs, collection, on_conflict)
    failed = [line for line in lines if line.reason is not None]
    _report(lines, failed, as_json=as_json)
    if failed:
        raise typer.Exit(1)


def _jobs(found: Any, metadata: str | None, folder_field: str | None) -> list[Job]:
    from app.cli.backends import Job  # noqa: PLC0415 - see app.cli.main

    try:
        common = json.loads(metadata) if metadata is not None else None
    except ValueError as exc:
        raise ConfigurationError(f"--metadata is not valid JSON: {exc}") from exc
    if common is not None and not isinstance(common, dict):
        raise ConfigurationError('--metadata must be a JSON object such as {"label": "cat"}')

    def described(one: Found) -> dict[str, Any] | None:
        if folder_field is None:
            return common
        return {**(common or {}), folder_field: one.folder}

    return [Job(path=one.path, metadata=described(one)) for one in found]


def _run(backend: Backend, jobs: list[Job], collection: str, on_conflict: OnConflict) -> list[Line]:
    from app.cli.progress import progress  # noqa: PLC0415 - see app.cli.main

    lines: list[Line] = []
    with progress() as report:
        for line in backend.index(jobs, collection=collection, on_conflict=on_conflict):
            lines.append(line)
            report("indexing", len(lines), len(jobs))
    return lines


def _report(lines: list[Line], failed: list[Line], *, as_json: bool) -> None:
    counts = Counter(line.status for line in lines)
    if as_json:
        items = [
            {"path": str(line.path), "status": line.status, "id": line.id, "reason": line.reason}
            for line in lines
        ]
        typer.echo(json.dumps({**counts, "items": items}, indent=2))
        return
    typer.echo(", ".join(f"{count} {status}" for status, count in counts.items()))
    for line in failed:
        typer.echo(f"  {line.path}: {line.reason}", err=True)
