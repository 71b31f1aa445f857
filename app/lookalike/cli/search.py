"""`lookalike search` and `lookalike duplicates`."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image
from rich.console import Console
from rich.table import Column, Table

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
    progress,
    read_filter,
)
from lookalike.client import BaseClient
from lookalike.errors import LookalikeError
from lookalike.media.decode import ImageLimits, decode_image
from lookalike.records import LIMITS, DuplicateKind, Effort
from lookalike.schemas import DuplicatesOut, KeptOut, SearchOut
from lookalike.visualization.contact_sheet import Tile, check_suffix, contact_sheet, save_picture
from lookalike.visualization.drawing import missing_picture, printable
from lookalike.visualization.pages import check_writable, picture_uri, render, write_whole

_TILE = 160  # pixels
_THUMBNAIL = 192  # pixels
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
    """Draws the query beside its matches; a gray tile where the service fetched the query."""
    thumbnail = partial(client.thumbnail, collection=result.collection)
    pictures = [_opened(partial(thumbnail, match.id)) for match in result.matches]
    tiles = [
        Tile(image=picture, name=match.filename, rank=match.rank, score=match.score)
        for picture, match in zip(pictures, result.matches, strict=True)
    ]
    read = partial(bytes, query) if isinstance(query, bytes) else Path(query).read_bytes
    asked = Tile(image=_opened(read), name=name)
    title = f"{result.model.name}, {result.model.weights} weights"
    return contact_sheet(asked, tiles, title=title, tile_size=_TILE)


def _opened(read: Callable[[], bytes]) -> Image.Image | None:
    try:
        return decode_image(read(), limits=_LIMITS, decode_size=_TILE).image
    except (LookalikeError, OSError):
        return None


def _print(result: SearchOut) -> None:
    model = result.model
    head = "" if model.head is None else f" with head {model.head}"
    title = f"{model.name}, {model.weights}{head}, {model.dim} numbers"
    right = [Column(name, justify="right") for name in ("rank", "score")]
    table = Table(*right, "id", "filename", "metadata", title=title, title_justify="left")
    for match in result.matches:
        name, metadata = cell(match.path or match.filename), metadata_cell(match.metadata)
        table.add_row(str(match.rank), f"{match.score:.4f}", match.id, name, metadata)
    console = Console()
    console.print(table)
    if not result.matches:
        console.print(f"No matches: the collection {result.collection!r} has none that pass.")


SHOWN_GROUPS, SHOWN_MEMBERS = 50, 10
"""Groups in the table, and members of one group."""

MAX_GROUPS, MAX_MEMBERS = 200, 24
"""Groups on the page, and members of one group."""


@client_flags("data_dir")
def duplicates(
    target: Target,
    *,
    collection: Collection = DEFAULT,
    kind: Annotated[
        DuplicateKind, typer.Option(help="The weakest kind to find; stricter ones are included")
    ] = DuplicateKind.NEAR,
    threshold: Annotated[
        float | None,
        typer.Option(min=0.5, max=1, help="The lowest cosine of two duplicates \\[0.95]"),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page of the groups to look at")
    ] = None,
    as_json: Json = False,
) -> None:
    """Find pictures that are stored more than once; nothing is deleted."""
    if html is not None:
        check_writable(html)
    with target.open() as client:
        with progress() as drawn:
            stage = drawn.stage("searching for duplicates")
            found = client.duplicates(collection, kind=kind, threshold=threshold, progress=stage)
        if html is not None:
            write_whole(html, duplicates_page(found, partial(_thumbnail, client, found.collection)))
            typer.echo(f"wrote {html}", err=True)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        _print_groups(found)


def _thumbnail(client: BaseClient, collection: str, image_id: str) -> Image.Image:
    content = client.thumbnail(image_id, collection=collection)
    return decode_image(content, limits=_LIMITS, decode_size=_THUMBNAIL).image


def duplicates_page(found: DuplicatesOut, thumbnail: Callable[[str], Image.Image]) -> str:
    """Builds the page, as HTML that needs nothing from elsewhere.

    Totals come first, then the first `MAX_GROUPS` groups, each with the picture to keep first.
    `thumbnail` opens a picture by its id; a gray tile stands for one where it raises
    `LookalikeError`.
    """

    def shown(picture: KeptOut) -> dict[str, Any]:
        try:
            image = thumbnail(picture.id)
        except LookalikeError:
            image = missing_picture(_THUMBNAIL)
        return {
            **picture.model_dump(mode="json"),
            "name": printable(picture.path or picture.filename),
            "size": bytes_text(picture.bytes),
            "uri": picture_uri(image, size=_THUMBNAIL),
        }

    groups = [
        {
            "number": number,
            "count": len(group.members) + 1,
            "pictures": [shown(one) for one in (group.keep, *group.members[:MAX_MEMBERS])],
            "hidden": max(0, len(group.members) - MAX_MEMBERS),
        }
        for number, group in enumerate(found.groups[:MAX_GROUPS], start=1)
    ]
    return render(
        "duplicates.html",
        title=f"Duplicates in {found.collection}",
        groups=groups,
        total=len(found.groups),
        found=found,
        saved=bytes_text(found.bytes_saved),
    )


def bytes_text(count: int) -> str:
    """A number of bytes for people: decimal units, as file managers show them."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{count} bytes" if unit == "bytes" else f"{size:.1f} {unit}"


def _print_groups(found: DuplicatesOut) -> None:
    table = Table(title=f"duplicates in {found.collection}", title_justify="left")
    for name in ("group", "", "id", "filename", "kind", "score", "pixels", "bytes"):
        right = name in {"group", "score", "bytes"}
        table.add_column(name, justify="right" if right else "left", no_wrap=name != "filename")

    def row(mark: str, number: str, picture: KeptOut, kind: str, score: str) -> None:
        pixels, size = f"{picture.width}x{picture.height}", f"{picture.bytes:,}"
        table.add_row(
            number,
            mark,
            picture.id,
            cell(picture.path or picture.filename),
            kind,
            score,
            pixels,
            size,
        )

    for number, group in enumerate(found.groups[:SHOWN_GROUPS], start=1):
        row("keep", str(number), group.keep, "", "")
        for one in group.members[:SHOWN_MEMBERS]:
            row("", "", one, one.kind.value, f"{one.score:.4f}")
        if (more := len(group.members) - SHOWN_MEMBERS) > 0:
            table.add_row("", "", f"and {more} more")
        table.add_section()
    console = Console()
    if found.groups:
        console.print(table)
    for line in _summary(found):
        console.print(line, highlight=False)


def _summary(found: DuplicatesOut) -> list[str]:
    if not found.groups:
        lines = [f"No duplicates in the collection {found.collection!r}."]
    else:
        lines = [
            f"{found.total_groups} groups with {found.total_duplicates} pictures beside those to "
            f"keep, {found.bytes_saved:,} bytes. Nothing was deleted; --json gives the ids."
        ]
    if found.total_groups > SHOWN_GROUPS:
        lines.append(f"The first {SHOWN_GROUPS} groups are shown; --json and --html show more.")
    if found.truncated:
        lines.append(
            f"{found.truncated} pictures have more neighbors than are looked at, so that groups "
            "may lack some; a higher --threshold has fewer."
        )
    return lines
