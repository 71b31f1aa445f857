"""`lookalike info`, `list`, `delete` and `vectors`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from lookalike.cli.common import (
    DEFAULT,
    Collection,
    FilterOption,
    Json,
    Target,
    cell,
    client_flags,
    metadata_cell,
    read_filter,
    size_text,
)
from lookalike.errors import ConfigurationError
from lookalike.services.checks import WINDOW

Facts = Mapping[str, Any]


@client_flags("data_dir")
def info(target: Target, *, as_json: Json = False) -> None:
    """Show collections, what made their vectors, their indexes with memory, and the version."""
    with target.open() as client:
        facts = client.info()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return

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


def about(collection: Facts, facts: Facts) -> Iterator[tuple[str, str]]:
    """Yields lines about a collection: a name and a text each.

    Args:
        collection: One of `collections` in `facts`.
        facts: What `GET /info` answers, or a data folder says of itself.
    """
    index = facts["store"].get("collections", {}).get(collection["name"], {})
    yield "model", _model(collection["passport"], collection["provenance"])
    yield "index", _index(index, collection["index"])
    if building := index.get("building"):
        yield "building", f"{building['stage']}, {building['done']:,} of {building['total']:,}"
    if "failure" in index:
        yield "failure", index["failure"]
    if "type" in index:
        yield "memory", _memory(index)
    if recall := _recall(index, facts.get("recall", {}).get(collection["name"])):
        yield "recall", recall


def _model(spec: Facts, provenance: Facts) -> str:
    parts = [f"{spec['model']} with {spec['weights']} weights"]
    if spec["head"]:
        parts.append(f"head {spec['head'][:8]}")
    parts.append(f"{spec['dim']:,} numbers")
    if "precision" in provenance:
        parts.append(provenance["precision"])
    return ", ".join(parts)


def _index(index: Facts, setting: str) -> str:
    """The index type in use; for an index that is not loaded, what the folder has saved of it."""
    if "type" in index:
        return f"{index['type']}: {index['reason']}"
    saved = index.get("saved")
    if saved is None:
        return f"not loaded, and nothing is saved; as set here: {setting}"
    return (
        f"not loaded; saved: {saved['type']} of {saved['count']:,} pictures, "
        f"{size_text(saved['bytes'])} on the disk"
    )


def _memory(index: Facts) -> str:
    text = f"{size_text(index['bytes'])}, {index['bytes_per_picture']:,.0f} bytes a picture"
    mapped = index.get("mapped_bytes", 0)
    return f"{text}; {size_text(mapped)} mapped" if mapped else text


def _recall(index: Facts, measured: Facts | None) -> str | None:
    """Recall as measured on searches; before the first, as measured when the index was built."""
    if measured and measured["mean"] is not None:
        count = min(measured["samples"], WINDOW)
        return f"{measured['mean']:.4f}, mean of the last {count:,} searches that were measured"
    levels = index.get("calibration", [])
    parts = [f"{level['recall']:.4f} for {level['k']:,} matches" for level in levels]
    return f"when it was built {', '.join(parts)}" if parts else None


@client_flags("data_dir")
def list_images(
    target: Target,
    *,
    collection: Collection = DEFAULT,
    filter_: FilterOption = None,
    limit: Annotated[int, typer.Option(min=1, help="Most pictures to list")] = 100,
    as_json: Json = False,
) -> None:
    """List the pictures of a collection, oldest first."""
    with target.open() as client:
        listed = list(islice(client.list(collection, filter=read_filter(filter_)), limit + 1))
    images, more = listed[:limit], len(listed) > limit
    if as_json:
        typer.echo(json.dumps([image.model_dump() for image in images], indent=2))
        return

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


@client_flags("data_dir")
def delete(
    target: Target,
    ids: Annotated[list[str] | None, typer.Argument(help="Pictures to delete")] = None,
    *,
    collection: Collection = DEFAULT,
    everything: Annotated[bool, typer.Option("--all", help="Delete the whole collection")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask")] = False,
) -> None:
    """Delete pictures by id, or a whole collection."""
    if bool(ids) == everything:
        raise ConfigurationError("Name the ids to delete, or --all for the whole collection")
    if everything and not yes:
        typer.confirm(f"Delete the collection {collection!r} with all its pictures?", abort=True)
    with target.open(changes=True) as client:
        if everything:
            client.drop(collection)
        for image_id in ids or []:
            client.delete(image_id, collection=collection)
    typer.echo(f"deleted {f'the collection {collection}' if everything else len(ids or [])}")


vectors = typer.Typer(
    help="List the vectors of a collection, or discard those that it no longer uses.",
    no_args_is_help=True,
)
Which = Annotated[str, typer.Argument(metavar="COLLECTION", help="Collection")]


@vectors.command("list")
@client_flags("data_dir")
def list_vectors(collection: Which, *, target: Target, as_json: Json = False) -> None:
    """List the vectors of COLLECTION: one set for each model that it was embedded with."""
    with target.open() as client:
        sets = client.vectors(collection)
    if as_json:
        typer.echo(json.dumps([one.model_dump() for one in sets], indent=2))
        return
    table = Table("digest", "model", "pictures", "in use")
    for one in sets:
        model = _model(one.passport.model_dump(), one.provenance)
        used = "yes" if one.active else ""
        table.add_row(one.passport.digest, cell(model), f"{one.count:,}", used)
    Console().print(table)


@vectors.command("discard")
@client_flags("data_dir")
def discard_vectors(
    collection: Which,
    digests: Annotated[
        list[str] | None, typer.Argument(metavar="[DIGEST]...", help="Sets to discard")
    ] = None,
    *,
    target: Target,
    unused: Annotated[
        bool, typer.Option("--unused", help="Discard every set that is not in use")
    ] = False,
) -> None:
    """Delete vectors that COLLECTION no longer uses; going back means embedding again."""
    if bool(digests) == unused:
        raise ConfigurationError("Name the digests to discard, or --unused for all not in use")
    with target.open(changes=True) as client:
        if unused:
            digests = [one.passport.digest for one in client.vectors(collection) if not one.active]
        for digest in digests or []:
            client.discard_vectors(digest, collection=collection)
    typer.echo(f"discarded {len(digests or [])}")
