"""`sync`: a collection follows a folder or a manifest."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from lookalike.cli.common import (
    DEFAULT,
    FETCH_SETTINGS,
    MODEL_SETTINGS,
    SHOWN_ERRORS,
    Collection,
    Exclude,
    Json,
    Target,
    client_flags,
    print_errors,
    progress,
)


@client_flags(*MODEL_SETTINGS, "originals", *FETCH_SETTINGS)
def sync(
    path: Annotated[Path, typer.Argument(metavar="FOLDER|MANIFEST", help="What to follow")],
    *,
    target: Target,
    collection: Collection = DEFAULT,
    folder_field: Annotated[
        str | None,
        typer.Option(metavar="FIELD", help="Set this field to the name of the picture's folder"),
    ] = None,
    exclude: Exclude = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only name what would be added and deleted")
    ] = False,
    delete_most: Annotated[
        bool, typer.Option("--delete-most", help="Delete even more than half of the pictures")
    ] = False,
    as_json: Json = False,
) -> None:
    """Add what is new or changed there, then delete what earlier runs added and is gone.

    Nothing is deleted if the folder or the manifest cannot be read whole, or names no picture. A
    service (--server) is sent the pictures of a folder, and works a manifest off by itself.
    """
    with target.open(changes=True, must_exist=False) as client, progress() as drawn:
        done = client.sync(
            path,
            collection=collection,
            folder_field=folder_field,
            exclude=exclude or (),
            dry_run=dry_run,
            most=1.0 if delete_most else 0.5,
            progress=drawn.stage("indexing"),
        )
    counts = Counter(one.status for one in done.outcomes)
    failed = [one for one in done.outcomes if one.failed]
    if as_json:
        errors = [{"path": str(one.path), "reason": str(one.error)} for one in failed]
        facts = {"added": done.added, "deleted": done.deleted, "refused": done.refused}
        facts |= {"job": None if done.job is None else done.job.model_dump(mode="json")}
        typer.echo(json.dumps({**counts, **facts, "dry_run": dry_run, "errors": errors}, indent=2))
    else:
        if dry_run:
            for name in done.added:
                typer.echo(f"would add {name}")
        word = "deleted"
        if dry_run:
            word = "would delete" if done.refused is None else "gone"
        for image_id, name in done.deleted.items():
            typer.echo(f"{word} {image_id} {name}")
        parts = [f"{count:,} {status}" for status, count in counts.items()]
        if done.job is not None:
            parts = [done.job.message]
        typer.echo(", ".join([*parts, f"{len(done.deleted):,} {word}"]))
        print_errors(f"{one.path}: {one.error}" for one in failed[:SHOWN_ERRORS])
        if len(failed) > SHOWN_ERRORS:
            print_errors([f"and {len(failed) - SHOWN_ERRORS:,} more; --json names them all"])
        if done.refused is not None:
            typer.echo(done.refused, err=True)
    if failed or done.refused is not None:
        raise typer.Exit(1)
