"""`backup` and `restore`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import lookalike
from lookalike.bootstrap import open_audit, restore_backup
from lookalike.cli.common import Target, client_flags, print_errors, progress, watch_job
from lookalike.config import load_settings
from lookalike.errors import ConfigurationError


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
