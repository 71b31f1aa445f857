"""`lookalike duplicates`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from lookalike.cli.common import (
    DEFAULT,
    ApiKey,
    Collection,
    Json,
    Server,
    cell,
    open_client,
    progress,
    settings_flags,
)
from lookalike.client import BaseClient
from lookalike.records import DuplicateKind
from lookalike.schemas import DuplicatesOut, KeptOut
from lookalike.visualization.group_pages import ShownGroup, ShownPicture, duplicates_page
from lookalike.visualization.pages import check_writable, write_whole

SHOWN_GROUPS = 50
"""Groups in the table."""

SHOWN_MEMBERS = 10
"""Members of one group in the table."""


@settings_flags("data_dir")
def duplicates(
    given: dict[str, Any],
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
    server: Server = None,
    api_key: ApiKey = None,
) -> None:
    """Find pictures that are stored more than once; nothing is deleted."""
    if html is not None:
        check_writable(html)
    with open_client(server, api_key, given) as client:
        with progress() as drawn:
            found = client.duplicates(
                collection,
                kind=kind,
                threshold=threshold,
                progress=drawn.stage("searching for duplicates"),
            )
        if html is not None:
            _write(html, found, client)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        _print(found)


def _write(path: Path, found: DuplicatesOut, client: BaseClient) -> None:
    def shown(picture: KeptOut, *, kind: str = "", score: float = 1.0) -> ShownPicture:
        return ShownPicture(
            id=picture.id,
            name=picture.filename,
            width=picture.width,
            height=picture.height,
            bytes=picture.bytes,
            kind=kind,
            score=score,
        )

    def thumbnail(image_id: str) -> Image.Image:
        content = client.thumbnail(image_id, collection=found.collection)
        return Image.open(io.BytesIO(content)).convert("RGB")

    groups = [
        ShownGroup(
            keep=shown(group.keep),
            members=[shown(one, kind=one.kind.value, score=one.score) for one in group.members],
        )
        for group in found.groups
    ]
    page = duplicates_page(
        groups,
        collection=found.collection,
        kind=found.kind.value,
        threshold=found.threshold,
        duplicates=found.total_duplicates,
        bytes_saved=found.bytes_saved,
        truncated=found.truncated,
        thumbnail=thumbnail,
    )
    write_whole(path, page)
    typer.echo(f"wrote {path}", err=True)


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
