"""`backup` and `restore`; `export` and `import`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import lookalike
from lookalike.bootstrap import open_audit, restore_backup
from lookalike.cli.common import (
    MODEL_SETTINGS,
    Target,
    client_flags,
    print_errors,
    progress,
    settings_flags,
    watch_job,
)
from lookalike.config import load_settings
from lookalike.errors import ConfigurationError
from lookalike.files.data_folder import require_data_folder
from lookalike.records import OnConflict, counted
from lookalike.services.exchange import ExportForm


@client_flags("data_dir")
def backup(
    to: Annotated[
        Path | None,
        typer.Argument(metavar="FILE|FOLDER", help="x.tar, x.tar.gz, or a folder to update"),
    ] = None,
    *,
    target: Target,
    with_keys: Annotated[
        bool, typer.Option("--with-keys", help="Put the service's keys into it")
    ] = False,
    keep: Annotated[
        int | None, typer.Option(min=1, help="Newest versions that a folder keeps \\[7]")
    ] = None,
) -> None:
    """Make a backup of all collections with originals, heads and int8 networks.

    A service may own the data folder and go on. A folder gets only what is new since the backup
    before. With --server, FILE is downloaded; without FILE, the service updates the folder that
    its setting LOOKALIKE_BACKUP_DIR names.
    """
    if to is None and target.server is None:
        raise ConfigurationError("Name a file (photos.tar) or a folder to write the backup to")
    if keep is not None and target.server is not None:
        raise ConfigurationError("--keep is the service's to say (LOOKALIKE_BACKUP_KEEP)")
    with target.open() as client:
        if isinstance(client, lookalike.HttpClient) and to is None:
            job = watch_job(client, client.begin_backup(keys=with_keys), stage="backup")
            message, errors = f"job {job.id} is {job.state}: {job.message}", job.error_texts
            failed = job.state != "done"
        else:
            assert to is not None
            with progress() as drawn:
                if isinstance(client, lookalike.Client):
                    message = client.backup(to, keys=with_keys, keep=keep, progress=drawn)
                else:
                    message = client.backup(to, keys=with_keys, progress=drawn.stage("MB"))
            errors, failed = drawn.errors, False
    typer.echo(message)
    print_errors(errors)
    if errors or failed:
        raise typer.Exit(1)


def restore(
    source: Annotated[Path, typer.Argument(metavar="BACKUP", help="Its file or its folder")],
    folder: Annotated[
        Path, typer.Argument(metavar="DATA_DIR", help="An empty folder, or a new one")
    ],
    *,
    at: Annotated[
        str | None, typer.Option(metavar="VERSION", help="Of a folder's versions, not the newest")
    ] = None,
) -> None:
    """Restore a backup into an empty or a new data folder; every file is checked."""
    with progress() as drawn:
        restored = restore_backup(source, folder, at=at, progress=drawn)
    open_audit(load_settings(data_dir=folder)).append(
        "restore", who="local", details={"source": str(source), "version": at}
    )
    typer.echo(f"restored {restored}")
    if not restored.keys:
        typer.echo("It holds no keys: the service makes a new admin key at its first start.")
    print_errors(restored.errors)
    if restored.errors:
        raise typer.Exit(1)


@settings_flags("data_dir")
def export(
    collection: Annotated[str, typer.Argument(metavar="COLLECTION", help="Collection")],
    to: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder, or an empty one")],
    *,
    given: dict[str, Any],
    form: Annotated[
        ExportForm, typer.Option("--format", help="parquet: with vectors; jsonl: without them")
    ] = ExportForm.PARQUET,
    originals: Annotated[
        bool, typer.Option("--originals/--no-originals", help="Copy the files of the pictures")
    ] = True,
) -> None:
    """Write COLLECTION into a folder: rows with vectors as Parquet, and the originals.

    A service may own the data folder. An earlier export into the same folder is replaced.
    """
    require_data_folder(load_settings(**given).data_dir)
    with lookalike.Client(read_only=True, **given) as client, progress() as drawn:
        stage = drawn.stage("pictures")
        done = client.export_collection(collection, to, form=form, originals=originals,
                                        progress=stage)  # fmt: skip
    parts = [counted(done.pictures, "picture"), counted(done.originals, "original")]
    parts += [f"{done.missing:,} without an original"] if done.missing else []
    typer.echo(f"{', '.join(parts)} in {to}")
    print_errors(drawn.errors)
    if drawn.errors:
        raise typer.Exit(1)


@settings_flags(*MODEL_SETTINGS, "originals")
def import_(
    source: Annotated[
        Path, typer.Argument(metavar="EXPORT", help="Its folder, or its file with the rows")
    ],
    *,
    given: dict[str, Any],
    collection: Annotated[
        str | None,
        typer.Option("--collection", "-c", help="Collection; the export's if not given"),
    ] = None,
    vectors: Annotated[
        Literal["keep", "new"],
        typer.Option(help="keep: take them over; new: make them from the originals"),
    ] = "keep",
    on_conflict: Annotated[
        OnConflict, typer.Option(help="What to do with ids that exist")
    ] = OnConflict.REPLACE,
) -> None:
    """Add the pictures of an export to a collection, under their ids.

    Vectors are taken over if the same model made those of the collection.
    """
    with lookalike.Client(**given) as client, progress() as drawn:
        outcomes = client.import_collection(
            source,
            collection=collection,
            embed=vectors == "new",
            on_conflict=on_conflict,
            progress=drawn.stage("pictures"),
        )
    counts = Counter(outcome.status for outcome in outcomes)
    typer.echo(", ".join(f"{count} {status}" for status, count in counts.items()) or "no pictures")
    print_errors(f"{one.id or one.path}: {one.error}" for one in outcomes if one.failed)
    if any(one.failed for one in outcomes):
        raise typer.Exit(1)
