"""`lookalike search`."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
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
    print_warnings,
    read_filter,
)
from lookalike.client import BaseClient
from lookalike.errors import ConfigurationError, LookalikeError
from lookalike.media.decode import ImageLimits, decode_image
from lookalike.records import LIMITS, Effort, counted
from lookalike.schemas import SearchOut
from lookalike.services.queries import MAX_WEIGHT, Combine, Part, crop_of, numbers_of
from lookalike.services.search import MAX_FOUND
from lookalike.visualization.contact_sheet import Tile, check_suffix, contact_sheet, save_picture
from lookalike.visualization.heat import Pair, explained_sheet
from lookalike.visualization.pages import check_writable, write_whole

_TILE = 160  # pixels
_LIMITS = ImageLimits()
_FILE = re.compile(r"\.[A-Za-z][A-Za-z0-9]{1,4}$")  # no words end so
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@client_flags(*MODEL_SETTINGS, *FETCH_SETTINGS)
def search(
    asked: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PICTURE|WORDS...",
            help="What to search for: files, words, or one address (see --fetch-urls)",
        ),
    ] = None,
    *,
    target: Target,
    text: Annotated[
        list[str] | None,
        typer.Option(metavar="WORDS", help="Words, for models that know words; may be repeated"),
    ] = None,
    id_: Annotated[
        list[str] | None,
        typer.Option("--id", metavar="ID", help="A stored picture; may be repeated"),
    ] = None,
    not_: Annotated[
        list[str] | None,
        typer.Option(
            "--not", metavar="PICTURE|WORDS", help="What matches are not like; may be repeated"
        ),
    ] = None,
    weight: Annotated[
        list[float] | None,
        typer.Option(
            help="One for each PICTURE or WORDS, --text and --id, in this order \\[1]",
            min=-MAX_WEIGHT,
            max=MAX_WEIGHT,
        ),
    ] = None,
    not_weight: Annotated[
        float, typer.Option(min=0, max=MAX_WEIGHT, help="How much each --not counts")
    ] = 0.25,
    crop: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X,Y,W,H",
            help="For each PICTURE the part that counts, in fractions of it; may be repeated",
        ),
    ] = None,
    flip: Annotated[
        bool, typer.Option("--flip", help="Count the mirror image of each picture as well")
    ] = False,
    combine: Annotated[
        Combine, typer.Option(help="mean: like all of them; any: like one of them")
    ] = Combine.MEAN,
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="How many matches")] = 10,
    offset: Annotated[
        int, typer.Option(min=0, max=MAX_FOUND, help="For the next page: leave out so many")
    ] = 0,
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
    explain: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="As --save, and show which parts make each score"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Find the pictures most like a picture, or like several pictures and words together."""
    options: dict[str, Any] = {
        "k": k,
        "offset": offset,
        "min_score": min_score,
        "filter": read_filter(filter_),
        "group_by": group_by,
        "collection": collection,
        "effort": Effort(nprobe=nprobe, ef_search=ef_search, k_factor=k_factor, exact=exact),
    }
    for file in filter(None, (save, explain)):
        check_suffix(file)
        check_writable(file)
    address = next((one for one in asked or () if _ADDRESS.match(one)), None)
    if address and (len(asked or ()) > 1 or text or id_ or not_ or weight or crop or flip):
        raise ConfigurationError(
            "An address is searched for alone: save the picture to a file, and search with that"
        )
    parts = [] if address else _parts(asked or (), text or (), id_ or (), weight or (), crop or ())
    parts += [replace(_part(one), weight=-not_weight) for one in not_ or ()]
    if not parts and address is None:
        raise ConfigurationError("Name what to search for: a file, words, or --id ID")
    if explain is not None and (len(parts) > 1 or (parts and not parts[0].picture) or crop or flip):
        raise ConfigurationError("--explain takes one whole picture; search with that alone")
    fetched: list[bytes] = []
    with target.open() as client:
        if address is not None:
            keep = lambda file: fetched.append(file.read())  # noqa: E731
            result = client.search_url(address, keep=keep, **options)
        else:
            result = client.search(*parts, combine=combine, flip=flip, **options)
        if save is not None:
            name = " + ".join(_name(part) for part in parts if part.weight > 0)
            query = fetched[0] if fetched else address or parts[0].picture
            save_picture(_sheet(client, query, result, name=name or str(address)), save)
        if explain is not None:
            if not fetched and address is not None:
                raise ConfigurationError(
                    "--explain needs the picture itself, which the service fetched: save it to a "
                    "file, and search with that"
                )
            query = fetched[0] if fetched else parts[0].picture
            name = _name(parts[0]) if parts else str(address)
            save_picture(_explained(client, query, result, name=name), explain)
    if as_json:
        typer.echo(result.model_dump_json(indent=2))
    else:
        _print(result)
        print_warnings(result.warnings)


@client_flags(*MODEL_SETTINGS)
def embed(
    items: Annotated[list[str], typer.Argument(metavar="PICTURE|WORDS...", help="Files, or words")],
    *,
    target: Target,
    save: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Save the vectors as a NumPy file (.npy), a row each"),
    ] = None,
    collection: Collection = DEFAULT,
) -> None:
    """Print the vectors of pictures and words, a line of JSON each; store nothing."""
    if save is not None:
        if save.suffix != ".npy":
            raise ConfigurationError(f"{save} must end in .npy: that is what is written")
        check_writable(save)
    with target.open() as client:
        vectors = client.embed(*map(_part, items), collection=collection)
    if save is None:
        for name, vector in zip(items, vectors, strict=True):
            typer.echo(json.dumps({"name": name, "vector": vector.tolist()}))
        return
    content = io.BytesIO()
    np.save(content, vectors)
    write_whole(save, content.getvalue())
    typer.echo(f"wrote {counted(len(vectors), 'vector')} to {save}", err=True)


def _part(one: str) -> Part:
    """A file if there is one of this name, or if it looks like the name of one; else words."""
    if os.path.lexists(one) or _FILE.search(one):
        return Part(picture=one)
    return Part(text=one)


def _parts(
    asked: Sequence[str],
    texts: Sequence[str],
    ids: Sequence[str],
    weights: Sequence[float],
    crops: Sequence[str],
) -> list[Part]:
    parts = [_part(one) for one in asked]
    pictures = [number for number, part in enumerate(parts) if part.picture is not None]
    if crops and len(crops) != len(pictures):
        raise ConfigurationError(
            f"{counted(len(crops), 'crop')} for {counted(len(pictures), 'picture')}; give --crop "
            "once for each (0,0,1,1 is the whole picture), or not at all"
        )
    for number, text in zip(pictures, crops, strict=False):
        parts[number] = replace(parts[number], crop=crop_of(numbers_of(text)))
    parts += [Part(text=one) for one in texts] + [Part(id=one) for one in ids]
    if weights and len(weights) != len(parts):
        raise ConfigurationError(
            f"{counted(len(weights), 'weight')} for {counted(len(parts), 'thing')} to search for; "
            "give --weight once for each, or not at all"
        )
    every = weights or [1.0] * len(parts)
    return [replace(part, weight=one) for part, one in zip(parts, every, strict=True)]


def _name(part: Part) -> str:
    """What a part is called below its picture."""
    return part.text or part.id or Path(part.picture).name


def _sheet(
    client: BaseClient, query: str | bytes | None, result: SearchOut, *, name: str
) -> Image.Image:
    """Draws the query beside its matches; a gray tile where the service fetched the query."""
    thumbnail = partial(client.thumbnail, collection=result.collection)
    pictures = [_opened(partial(thumbnail, match.id)) for match in result.matches]
    tiles = [
        Tile(image=picture, name=match.filename, rank=match.rank, score=match.score)
        for picture, match in zip(pictures, result.matches, strict=True)
    ]
    read = partial(bytes, query) if isinstance(query, bytes) else Path(query or "").read_bytes
    asked = Tile(image=_opened(read), name=name)
    title = f"{result.model.name}, {result.model.weights} weights"
    return contact_sheet(asked, tiles, title=title, tile_size=_TILE)


def _explained(
    client: BaseClient, query: str | bytes, result: SearchOut, *, name: str
) -> Image.Image:
    """Draws the query beside its matches, each with what its parts add to the score."""
    matches: list[tuple[Tile, Pair]] = []
    for match in result.matches:
        why = client.explain(match.id, picture=query, collection=result.collection)
        thumbnail = partial(client.thumbnail, match.id, collection=result.collection)
        tile = Tile(
            image=_opened(thumbnail), name=match.filename, rank=match.rank, score=match.score
        )
        matches.append(
            (tile, ((why.query.shares, why.query.seen), (why.match.shares, why.match.seen)))
        )
    read = partial(bytes, query) if isinstance(query, bytes) else Path(query).read_bytes
    asked = Tile(image=_opened(read), name=name)
    title = f"{result.model.name}, {result.model.weights} weights"
    return explained_sheet(asked, matches, title=title)


def _opened(read: Callable[[], bytes]) -> Image.Image | None:
    try:
        return decode_image(read(), limits=_LIMITS, decode_size=_TILE).image
    except (LookalikeError, OSError):
        return None


def _print(result: SearchOut) -> None:
    model = result.model
    head = "" if model.head is None else f" with head {model.head}"
    title = f"{model.name}, {model.weights}{head}, {model.dim} numbers"
    names = ["rank", "score"]
    if calibrated := any(match.copy_probability is not None for match in result.matches):
        names.append("copy")
    right = [Column(name, justify="right") for name in names]
    name = Column("filename", overflow="fold")
    table = Table(*right, "id", name, "metadata", title=title, title_justify="left")
    for match in result.matches:
        cells = [str(match.rank), f"{match.score:.4f}"]
        if calibrated:
            cells.append("" if match.copy_probability is None else f"{match.copy_probability:.2f}")
        shown = cell(match.path or match.filename)
        table.add_row(*cells, match.id, shown, metadata_cell(match.metadata))
    console = Console()
    console.print(table)
    if result.verdict is not None:
        console.print(f"verdict: {result.verdict}")
    if not result.matches:
        console.print(f"No matches: the collection {result.collection!r} has none that pass.")
