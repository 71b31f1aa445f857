"""`check` and `rebuild`: what is wrong with a data folder, its repair, and its catalog anew."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

import lookalike
from lookalike import bootstrap
from lookalike.cli.common import (
    MODEL_SETTINGS,
    SHOWN_ERRORS,
    Json,
    print_errors,
    progress,
    settings_flags,
)
from lookalike.config import load_settings
from lookalike.files.data_folder import require_data_folder
from lookalike.records import counted
from lookalike.schemas import CheckOut, FindingOut


@settings_flags(*MODEL_SETTINGS, "originals")
def check(
    *,
    given: dict[str, Any],
    quick: Annotated[
        bool, typer.Option("--quick", help="Read neither every vector nor every file")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Make again what can be made; stop the service first")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare rows, files, digests, vectors and indexes; ends with 1 if something is wrong.

    Without --repair nothing is changed, and a service may run on the folder meanwhile.
    """
    require_data_folder(load_settings(**given).data_dir)
    with lookalike.Client(read_only=not repair, **given) as client, progress() as drawn:
        checked = client.check(quick=quick, repair=repair, progress=drawn)
    if as_json:
        typer.echo(checked.model_dump_json(indent=2))
    else:
        _report(checked)
        print_errors(drawn.errors)
    if checked.findings:
        raise typer.Exit(1)


def _report(checked: CheckOut) -> None:
    for title, findings in (("repaired", checked.repaired), ("wrong", checked.findings)):
        shown = Counter[str]()
        for one in findings:
            shown[one.kind] += 1
            if shown[one.kind] <= SHOWN_ERRORS:
                typer.echo(f"{title}: {_line(one)}")
        for kind, count in shown.items():
            if count > SHOWN_ERRORS:
                typer.echo(f"{title}: {count - SHOWN_ERRORS:,} more of the kind {kind}")
    counts = Counter(one.kind for one in checked.findings)
    listed = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
    result = f"{counted(counts.total(), 'problem')} ({listed})" if counts else "nothing is wrong"
    typer.echo(f"checked {counted(checked.pictures, 'picture')}: {result}")


def _line(one: FindingOut) -> str:
    where = "/".join(part for part in (one.collection, one.id) if part)
    return f"{one.kind} {where}: {one.text}" if where else one.text


@settings_flags(*MODEL_SETTINGS)
def rebuild(
    exports: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[EXPORT]...", help="Folders, .parquet files or JSON lines"),
    ] = None,
    *,
    given: dict[str, Any],
    as_json: Json = False,
) -> None:
    """Make pictures of originals that the catalog lacks; make the catalog again if it is lost.

    A catalog that is whole keeps what it has. One that is missing, damaged or another folder's is
    replaced, and kept under another name. Ids, collections, metadata and times are those of EXPORT,
    or else those that can still be read in the old catalog. Other originals go into the collection
    `default`, with ids made from their content.
    """
    settings = load_settings(**given)
    with progress() as drawn:
        made = bootstrap.rebuild(settings, exports or (), drawn.stage("indexing"))
    if as_json:
        typer.echo(json.dumps(asdict(made), indent=2))
    else:
        typer.echo(
            f"made {made.named:,} pictures as they were, and {made.unnamed:,} from originals alone "
            f"(in `default`); {made.missing:,} have no original, {made.failed:,} failed"
        )
        if made.replaced:
            typer.echo(f"The old catalog is kept as {settings.data_dir / made.replaced}")
        print_errors(made.errors)
    if made.missing or made.failed:
        raise typer.Exit(1)
