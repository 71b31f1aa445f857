"""`lookalike search`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lookalike.cli.options import (
    DEFAULT,
    FETCH_SETTINGS,
    MODEL_SETTINGS,
    ApiKey,
    Collection,
    FilterOption,
    Json,
    Server,
    settings_flags,
)
from lookalike.store.effort import LIMITS, Effort

if TYPE_CHECKING:
    from lookalike.schemas import SearchOut


_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@settings_flags(*MODEL_SETTINGS, *FETCH_SETTINGS)
def search(
    image: Annotated[
        str,
        typer.Argument(help="The picture to search with: a file, or an address (see --fetch-urls)"),
    ],
    given: dict[str, Any],
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
    server: Server = None,
    api_key: ApiKey = None,
) -> None:
    """Find the pictures most like IMAGE."""
    from lookalike.cli.backends import Ask  # noqa: PLC0415 - see lookalike.cli.main
    from lookalike.cli.connect import open_backend  # noqa: PLC0415
    from lookalike.cli.sheets import search_sheet  # noqa: PLC0415
    from lookalike.visualization.contact_sheet import check_suffix, save_picture  # noqa: PLC0415
    from lookalike.visualization.pages import check_writable  # noqa: PLC0415

    ask = Ask(
        k=k,
        min_score=min_score,
        filter=filter_,
        group_by=group_by,
        collection=collection,
        effort=Effort(nprobe=nprobe, ef_search=ef_search, k_factor=k_factor, exact=exact),
    )
    if save is not None:
        check_suffix(save)
        check_writable(save)
    fetched: list[bytes] = []
    with open_backend(server, api_key, given) as backend:
        if _ADDRESS.match(image):
            result = backend.search_url(image, ask, keep=lambda file: fetched.append(file.read()))
        else:
            result = backend.search(Path(image), ask)
        if save is not None:
            query = fetched[0] if fetched else image
            save_picture(search_sheet(backend, query, result, name=Path(image).name), save)
    if as_json:
        typer.echo(result.model_dump_json(indent=2))
    else:
        _print(result)


def _print(result: SearchOut) -> None:
    from rich.console import Console  # noqa: PLC0415 - see lookalike.cli.main
    from rich.table import Table  # noqa: PLC0415

    from lookalike.cli.tables import cell, metadata_cell  # noqa: PLC0415

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
