"""`lookalike duplicates`."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from lookalike.cli.common import (
    DEFAULT,
    Collection,
    Json,
    Target,
    cell,
    client_flags,
    progress,
)
from lookalike.client import BaseClient
from lookalike.errors import LookalikeError
from lookalike.records import DuplicateKind
from lookalike.schemas import DuplicatesOut, KeptOut
from lookalike.visualization.drawing import missing_picture, printable
from lookalike.visualization.pages import check_writable, picture_uri, render, write_whole

SHOWN_GROUPS = 50
"""Groups in the table."""

SHOWN_MEMBERS = 10
"""Members of one group in the table."""

MAX_GROUPS = 200
"""Groups on the page."""

MAX_MEMBERS = 24
"""Members of one group on the page."""

_THUMBNAIL = 192  # pixels


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
            found = client.duplicates(
                collection,
                kind=kind,
                threshold=threshold,
                progress=drawn.stage("searching for duplicates"),
            )
        if html is not None:
            page = duplicates_page(found, partial(_thumbnail, client, found.collection))
            write_whole(html, page)
            typer.echo(f"wrote {html}", err=True)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        _print(found)


def _thumbnail(client: BaseClient, collection: str, image_id: str) -> Image.Image:
    content = client.thumbnail(image_id, collection=collection)
    return Image.open(io.BytesIO(content)).convert("RGB")


def duplicates_page(found: DuplicatesOut, thumbnail: Callable[[str], Image.Image]) -> str:
    """Builds the page: totals, then each group with the picture to keep first.

    Args:
        found: All groups, in order; the first `MAX_GROUPS` are shown.
        thumbnail: Opens a picture by its id; where it raises `LookalikeError`, a gray tile stands
            for it.

    Returns:
        HTML that needs nothing from elsewhere.
    """

    def shown(picture: KeptOut) -> dict[str, Any]:
        try:
            image = thumbnail(picture.id)
        except LookalikeError:
            image = missing_picture(_THUMBNAIL)
        return {
            **picture.model_dump(mode="json"),
            "name": printable(picture.filename),
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


def _print(found: DuplicatesOut) -> None:
    table = Table(title=f"duplicates in {found.collection}", title_justify="left")
    for name in ("group", "", "id", "filename", "kind", "score", "pixels", "bytes"):
        right = name in {"group", "score", "bytes"}
        table.add_column(name, justify="right" if right else "left", no_wrap=name != "filename")

    def row(mark: str, number: str, picture: KeptOut, kind: str, score: str) -> None:
        pixels, size = f"{picture.width}x{picture.height}", f"{picture.bytes:,}"
        table.add_row(number, mark, picture.id, cell(picture.filename), kind, score, pixels, size)

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
