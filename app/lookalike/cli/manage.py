"""`lookalike info`, `list` and `delete`."""

from __future__ import annotations

import json
from itertools import islice
from typing import Annotated, Any

import typer

from lookalike.cli.options import (
    DEFAULT,
    ApiKey,
    Collection,
    FilterOption,
    Json,
    Server,
    settings_flags,
)
from lookalike.errors import ConfigurationError


@settings_flags("data_dir")
def info(
    given: dict[str, Any], *, as_json: Json = False, server: Server = None, api_key: ApiKey = None
) -> None:
    """Show collections, what made their vectors, their indexes with memory, and the version."""
    from lookalike.cli.connect import open_backend  # noqa: PLC0415 - see lookalike.cli.main

    with open_backend(server, api_key, given) as backend:
        facts = backend.info()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    from rich.console import Console  # noqa: PLC0415 - see lookalike.cli.main
    from rich.table import Table  # noqa: PLC0415

    from lookalike.cli.facts import about  # noqa: PLC0415
    from lookalike.cli.tables import cell  # noqa: PLC0415

    console = Console()
    for collection in facts["collections"]:
        title = f"{collection['name']}: {collection['count']:,} pictures"
        console.print(title, style="bold", highlight=False, soft_wrap=True)
        table = Table(box=None, show_header=False, padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, text in about(collection, facts):
            table.add_row(name, cell(text))
        console.print(table)
    if not facts["collections"]:
        console.print("There are no collections.")
    console.print(f"lookalike {facts['version']}")


@settings_flags("data_dir")
def list_images(
    given: dict[str, Any],
    *,
    collection: Collection = DEFAULT,
    filter_: FilterOption = None,
    limit: Annotated[int, typer.Option(min=1, help="Most pictures to list")] = 100,
    as_json: Json = False,
    server: Server = None,
    api_key: ApiKey = None,
) -> None:
    """List the pictures of a collection, oldest first."""
    from lookalike.cli.connect import open_backend  # noqa: PLC0415 - see lookalike.cli.main

    with open_backend(server, api_key, given) as backend:
        listed = list(islice(backend.images(collection, where=filter_), limit + 1))
    images, more = listed[:limit], len(listed) > limit
    if as_json:
        typer.echo(json.dumps([image.model_dump() for image in images], indent=2))
        return
    from rich.console import Console  # noqa: PLC0415 - see lookalike.cli.main
    from rich.table import Table  # noqa: PLC0415

    from lookalike.cli.tables import cell, metadata_cell  # noqa: PLC0415

    table = Table("id", "filename", "pixels", "metadata", "updated")
    for image in images:
        pixels = f"{image.width}x{image.height}"
        updated = image.updated_at[:19].replace("T", " ")
        metadata = metadata_cell(image.metadata)
        table.add_row(image.id, cell(image.filename), pixels, metadata, updated)
    console = Console()
    console.print(table)
    if more:
        console.print(f"There are more; --limit shows more than {limit}.")


@settings_flags("data_dir")
def delete(
    given: dict[str, Any],
    ids: Annotated[list[str] | None, typer.Argument(help="Pictures to delete")] = None,
    *,
    collection: Collection = DEFAULT,
    everything: Annotated[bool, typer.Option("--all", help="Delete the whole collection")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask")] = False,
    server: Server = None,
    api_key: ApiKey = None,
) -> None:
    """Delete pictures by id, or a whole collection."""
    from lookalike.cli.connect import open_backend  # noqa: PLC0415 - see lookalike.cli.main

    if bool(ids) == everything:
        raise ConfigurationError("Name the ids to delete, or --all for the whole collection")
    if everything and not yes:
        typer.confirm(f"Delete the collection {collection!r} with all its pictures?", abort=True)
    with open_backend(server, api_key, given, changes=True) as backend:
        if everything:
            backend.drop(collection)
        for image_id in ids or []:
            backend.delete(collection, image_id)
    typer.echo(f"deleted {f'the collection {collection}' if everything else len(ids or [])}")
