"""`lookalike search`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from lookalike.cli.common import (
    DEFAULT,
    FETCH_SETTINGS,
    MODEL_SETTINGS,
    Collection,
    FilterOption,
    Json,
    Target,
    cell,
    client_flags,
    metadata_cell,
    read_filter,
)
from lookalike.client import BaseClient
from lookalike.errors import LookalikeError
from lookalike.media.decode import ImageLimits, decode_image
from lookalike.records import LIMITS, Effort
from lookalike.schemas import SearchOut
from lookalike.visualization.contact_sheet import Tile, check_suffix, contact_sheet, save_picture
from lookalike.visualization.pages import check_writable

_TILE = 160  # pixels
_LIMITS = ImageLimits()
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@client_flags(*MODEL_SETTINGS, *FETCH_SETTINGS)
def search(
    image: Annotated[
        str,
        typer.Argument(help="The picture to search with: a file, or an address (see --fetch-urls)"),
    ],
    target: Target,
    *,
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="How many matches")] = 10,
    min_score: Annotated[
        float | None, typer.Option(min=-1, max=1, help="Leave out matches below this cosine")
    ] = None,
    filter_: FilterOption = None,
    group_by: Annotated[
        str | None, typer.Option(metavar="FIELD", help="Only the best of each value of this field")
    ] = None,
    collection: Collection = DEFAULT,
    nprobe: Annotated[
        int | None, typer.Option(min=1, max=LIMITS["nprobe"], help="Of an IVF index: lists visited")
    ] = None,
    ef_search: Annotated[
        int | None,
        typer.Option(min=1, max=LIMITS["ef_search"], help="Of an HNSW index: candidates kept"),
    ] = None,
    k_factor: Annotated[
        int | None,
        typer.Option(
            min=1, max=LIMITS["k_factor"], help="Candidates scored exactly for each match"
        ),
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Score every picture, whatever the index")
    ] = False,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Save a contact sheet: png, jpg or webp")
    ] = None,
    as_json: Json = False,
) -> None:
    """Find the pictures most like IMAGE."""
    options: dict[str, Any] = {
        "k": k,
        "min_score": min_score,
        "filter": read_filter(filter_),
        "group_by": group_by,
        "collection": collection,
        "effort": Effort(nprobe=nprobe, ef_search=ef_search, k_factor=k_factor, exact=exact),
    }
    if save is not None:
        check_suffix(save)
        check_writable(save)
    fetched: list[bytes] = []
    with target.open() as client:
        if _ADDRESS.match(image):
            result = client.search_url(
                image, keep=lambda file: fetched.append(file.read()), **options
            )
        else:
            result = client.search(image, **options)
        if save is not None:
            query = fetched[0] if fetched else image
            save_picture(_sheet(client, query, result, name=Path(image).name), save)
    if as_json:
        typer.echo(result.model_dump_json(indent=2))
    else:
        _print(result)


def _sheet(client: BaseClient, query: str | bytes, result: SearchOut, *, name: str) -> Image.Image:
    """Draws the query beside its matches.

    A gray tile stands for a query that the service fetched.
    """
    model = result.model
    tiles = [
        Tile(
            image=_thumbnail(client, match.id, result.collection),
            name=match.filename,
            rank=match.rank,
            score=match.score,
        )
        for match in result.matches
    ]
    asked = Tile(image=_query(query), name=name)
    title = f"{model.name}, {model.weights} weights"
    return contact_sheet(asked, tiles, title=title, tile_size=_TILE)


def _query(query: str | bytes) -> Image.Image | None:
    try:
        content = query if isinstance(query, bytes) else Path(query).read_bytes()
        return decode_image(content, limits=_LIMITS, decode_size=_TILE).image
    except (LookalikeError, OSError):
        return None


def _thumbnail(client: BaseClient, image_id: str, collection: str) -> Image.Image | None:
    try:
        jpeg = client.thumbnail(image_id, collection=collection)
        return decode_image(jpeg, limits=_LIMITS, decode_size=_TILE).image
    except LookalikeError:
        return None


def _print(result: SearchOut) -> None:
    model = result.model
    head = "" if model.head is None else f" with head {model.head}"
    title = f"{model.name}, {model.weights}{head}, {model.dim} numbers"
    table = Table(title=title, title_justify="left")
    table.add_column("rank", justify="right")
    table.add_column("score", justify="right")
    table.add_column("id")
    table.add_column("filename")
    table.add_column("metadata")
    for match in result.matches:
        table.add_row(
            str(match.rank),
            f"{match.score:.4f}",
            match.id,
            cell(match.filename),
            metadata_cell(match.metadata),
        )
    console = Console()
    console.print(table)
    if not result.matches:
        console.print(f"No matches: the collection {result.collection!r} has none that pass.")
