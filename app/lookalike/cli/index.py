"""`lookalike index`."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from pathlib import Path
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
from lookalike.errors import ConfigurationError, LookalikeError
from lookalike.media.walk import Found, walk
from lookalike.progress import NO_PROGRESS
from lookalike.records import OnConflict
from lookalike.services.import_run import ARCHIVE_ENDINGS

if TYPE_CHECKING:
    from lookalike.cli.backends import Backend, Line
    from lookalike.schemas import JobOut
    from lookalike.services.importing import ImportOptions

STAGE = "indexing"


@settings_flags(*MODEL_SETTINGS, "originals")
def index(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Pictures, folders to walk, or archives")
    ] = None,
    *,
    given: dict[str, Any],
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
    server: Server = None,
    api_key: ApiKey = None,
) -> None:
    """Add pictures to a collection; what is there already is skipped without work.

    An archive (zip, tar, tar.gz, tar.bz2, tar.xz) is sent to a service (--server) as it is, which
    indexes its pictures in the background; so are folders of the service's machine (--on-server).
    """
    from lookalike.cli.connect import open_backend  # noqa: PLC0415 - see lookalike.cli.main
    from lookalike.services.importing import ImportOptions  # noqa: PLC0415

    if on_server and server is None:
        raise ConfigurationError("--on-server needs --server: which service is to read the folder?")
    options = ImportOptions(
        collection=collection,
        on_conflict=on_conflict,
        metadata=_common(metadata),
        folder_field=folder_field,
    )
    archives = [path for path in paths or () if _is_archive(path)]
    if missing := [path for path in archives if not path.is_file()]:
        raise ConfigurationError(f"{missing[0]} does not exist, or is no file")
    files = [path for path in paths or () if not _is_archive(path)]
    found = list(walk(files))
    if not (found or archives or on_server):
        raise ConfigurationError("No pictures found there; name files or folders that hold some")
    with open_backend(server, api_key, given, changes=True, must_exist=False) as backend:
        lines = _index_files(backend, found, options)
        jobs: list[JobOut] = []
        if server is None:
            lines += _index_archives(backend, archives, options)
        else:
            failed, jobs = _have_indexed(backend, archives, on_server or [], options)
            lines += failed
    _report(lines, jobs, as_json=as_json)


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


def _index_files(backend: Backend, found: list[Found], options: ImportOptions) -> list[Line]:
    from lookalike.cli.backends import Job  # noqa: PLC0415 - see lookalike.cli.main
    from lookalike.cli.progress import progress  # noqa: PLC0415

    jobs = [
        Job(path=one.path, metadata=options.describe(one.folder))
        for one in found
        if one.error is None
    ]
    lines = [_failed(one.path, one.error) for one in found if one.error is not None]
    if not jobs:
        return lines
    with progress() as report:
        for line in backend.index(
            jobs, collection=options.collection, on_conflict=options.on_conflict
        ):
            lines.append(line)
            report(STAGE, len(lines), len(found))
    return lines


def _index_archives(backend: Backend, archives: list[Path], options: ImportOptions) -> list[Line]:
    """Indexes archives into a data folder; one that fails harms no other."""
    from lookalike.cli.local import LocalBackend  # noqa: PLC0415 - see lookalike.cli.main
    from lookalike.cli.progress import progress  # noqa: PLC0415

    assert isinstance(backend, LocalBackend)
    lines: list[Line] = []
    with progress() as report:
        for path in archives:
            before = len(lines)
            try:
                feed = backend.open_archive(path, options)
                total = feed.count(NO_PROGRESS)
                for line in backend.index_archive(path, feed, options):
                    lines.append(line)
                    report(f"{STAGE} {path.name}", len(lines) - before, total)
            except LookalikeError as exc:
                lines.append(_failed(path, exc))
    return lines


def _failed(path: Path, error: LookalikeError) -> Line:
    from lookalike.cli.backends import Line  # noqa: PLC0415 - see lookalike.cli.main

    return Line(path=path, status="failed", reason=str(error))


def _have_indexed(
    backend: Backend, archives: list[Path], folders: list[str], options: ImportOptions
) -> tuple[list[Line], list[JobOut]]:
    """Has a service index archives and its own folders, and follows each to its end.

    Returns:
        Those that failed, which harm no other, and the jobs of the rest.
    """
    from lookalike.cli.progress import progress  # noqa: PLC0415 - see lookalike.cli.main
    from lookalike.cli.remote import RemoteBackend  # noqa: PLC0415

    assert isinstance(backend, RemoteBackend)

    def send(path: Path) -> JobOut:
        with progress() as report:
            return backend.index_archive(path, options, report)

    begin = [(path, partial(send, path)) for path in archives]
    begin += [(Path(path), partial(backend.index_folder, path, options)) for path in folders]
    failed: list[Line] = []
    jobs: list[JobOut] = []
    for path, begun in begin:
        try:
            jobs.append(watched(backend, begun(), stage=STAGE))
        except LookalikeError as exc:
            failed.append(_failed(path, exc))
    return failed, jobs


def _report(lines: list[Line], jobs: list[JobOut], *, as_json: bool) -> None:
    """Prints what became of all; exits with 1 where something failed."""
    counts = Counter(line.status for line in lines)
    failed = [line for line in lines if line.reason is not None]
    if as_json:
        items = [
            {"path": str(line.path), "status": line.status, "id": line.id, "reason": line.reason}
            for line in lines
        ]
        ended = {"jobs": [job.model_dump(mode="json") for job in jobs]} if jobs else {}
        typer.echo(json.dumps({**counts, "items": items, **ended}, indent=2))
    else:
        if lines:
            typer.echo(", ".join(f"{count} {status}" for status, count in counts.items()))
        for line in failed:
            typer.echo(f"  {line.path}: {line.reason}", err=True)
        for job in jobs:
            typer.echo(f"job {job.id} is {job.state}: {job.message}")
            print_errors(job.error_texts)
    if failed or any(job.errors or job.state in {"failed", "canceled"} for job in jobs):
        raise typer.Exit(1)
