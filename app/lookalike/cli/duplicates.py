"""`lookalike duplicates`."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from lookalike.cli.common import (
    DEFAULT,
    MODEL_SETTINGS,
    Collection,
    Exclude,
    Json,
    Target,
    cell,
    client_flags,
    print_errors,
    progress,
)
from lookalike.client import BaseClient, Outcome
from lookalike.config import load_settings
from lookalike.errors import ConfigurationError, LookalikeError, MissingFileError
from lookalike.files.data_folder import claim_folder
from lookalike.files.disk import disk_errors
from lookalike.media.decode import ImageLimits, decode_image
from lookalike.progress import Progress
from lookalike.records import DuplicateKind, counted
from lookalike.schemas import DuplicateGroupOut, DuplicateOut, DuplicatesOut, KeptOut
from lookalike.services import tidying
from lookalike.services.tidying import FileGroup, PictureFile
from lookalike.visualization.drawing import missing_picture, printable
from lookalike.visualization.pages import check_writable, picture_uri, render, write_whole

_THUMBNAIL = 192  # pixels
_LIMITS = ImageLimits()

SHOWN_GROUPS, SHOWN_MEMBERS = 50, 10
"""Groups in the table, and members of one group."""

MAX_GROUPS, MAX_MEMBERS = 200, 24
"""Groups on the page, and members of one group."""


@client_flags(*MODEL_SETTINGS, "cache_dir")
def duplicates(
    folder: Annotated[
        Path | None, typer.Argument(help="Look through this folder, not a collection")
    ] = None,
    *,
    target: Target,
    collection: Collection = DEFAULT,
    kind: Annotated[
        DuplicateKind | None,
        typer.Option(
            help="The weakest kind to find; stricter ones are included "
            "\\[near; exact with --move-to]"
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(min=0.5, max=1, help="The lowest cosine of two duplicates \\[0.95]"),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page of the groups to look at")
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With FOLDER: write a table of the files")
    ] = None,
    script: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With FOLDER: write a shell script that moves them"),
    ] = None,
    move_to: Annotated[
        Path | None,
        typer.Option(metavar="TRASH", help="With FOLDER: move duplicates to this new folder"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --move-to: say what would be moved")
    ] = False,
    undo: Annotated[
        Path | None,
        typer.Option(metavar="MANIFEST", help="Move files back that --move-to moved"),
    ] = None,
    exclude: Exclude = None,
    as_json: Json = False,
) -> None:
    """Find pictures that are there more than once; nothing is deleted."""
    if undo is not None:
        _print_moves(tidying.undo(undo), "moved back", "not moved back")
        return
    _check_flags(folder, (csv, script, move_to, exclude), dry_run=dry_run and move_to is None)
    for file in filter(None, (html, csv, script)):
        check_writable(file)
    default = DuplicateKind.NEAR if move_to is None else DuplicateKind.EXACT
    walked = None if folder is None else _Walked(folder.resolve(), exclude or ())
    mover = tidying.Mover(walked.folder, move_to) if walked and move_to else None
    if walked is not None:
        target = walked.target(target, collection)
    with target.open(changes=walked is not None, must_exist=walked is None) as client:
        with progress() as drawn:
            if walked is not None:
                walked.index(client, drawn.stage("indexing"))
            stage = drawn.stage("searching for duplicates")
            found = client.duplicates(
                collection, kind=kind or default, threshold=threshold, progress=stage
            )
            if walked is not None:
                found = walked.group(found)
        if html is not None:
            write_whole(html, duplicates_page(found, partial(_thumbnail, client, collection)))
            typer.echo(f"wrote {html}", err=True)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        _print_groups(found, files=walked is not None)
    if walked is not None:
        _act(walked, csv, script, mover, dry_run=dry_run, err=as_json)


def _check_flags(folder: Path | None, need_folder: Iterable[object], *, dry_run: bool) -> None:
    if folder is None and any(need_folder):
        raise ConfigurationError("--csv, --script, --move-to and --exclude need a FOLDER")
    if dry_run:
        raise ConfigurationError("--dry-run needs --move-to")


def _act(
    walked: _Walked,
    csv: Path | None,
    script: Path | None,
    mover: tidying.Mover | None,
    *,
    dry_run: bool,
    err: bool,
) -> None:
    """Writes the files that were asked for, and moves files; exits with 1 if pictures failed."""
    if csv is not None:
        write_whole(csv, tidying.as_csv(walked.groups))
    if script is not None:
        write_whole(script, tidying.as_script(walked.groups, walked.folder))
    if mover is not None:
        moves = mover.move(walked.groups, dry_run=dry_run)
        try:
            _print_moves(moves, "would be moved" if dry_run else "moved", "stays", err=err)
        finally:
            if mover.manifest is not None:
                back = shlex.quote(str(mover.manifest))
                typer.echo(f"To move all back: lookalike duplicates --undo {back}", err=True)
    print_errors(f"{one.path}: {one.error}" for one in walked.failed)
    if walked.failed:
        raise typer.Exit(1)


def _print_moves(
    moves: Iterable[tuple[Path, str]], done: str, undone: str, *, err: bool = False
) -> None:
    counts = [0, 0]
    for path, why in moves:
        counts[bool(why)] += 1
        shown = cell(f"{undone}: {path}: {why}" if why else f"{done}: {path}")
        typer.echo(shown.plain, err=err)
    rest = f", {counts[1]:,} not" if counts[1] else ""
    typer.echo(f"{counted(counts[0], 'file')} {done}{rest}", err=err)


class _Walked:
    """A folder as a collection, in a data folder of its own below the cache.

    Attributes:
        groups: The groups as files.
        failed: Files and folders that cannot be read.
    """

    def __init__(self, folder: Path, exclude: Sequence[str]) -> None:
        if not folder.is_dir():
            raise MissingFileError(f"{folder} is no folder; name one that is there")
        self.folder = folder
        self._exclude = exclude
        self._files: dict[str, list[Path]] = {}
        self.groups: list[FileGroup] = []
        self.failed: list[Outcome] = []

    def target(self, target: Target, collection: str) -> Target:
        """The data folder, one for each folder and model; makes the folders around it."""
        if target.server or target.given.get("data_dir") or collection != DEFAULT:
            raise ConfigurationError(
                "A FOLDER needs no --server, --data-dir or --collection; leave them out"
            )
        settings = load_settings(**target.given)
        key = [os.fsencode(self.folder).hex()]
        for name in ("model", "weights", "head", "pooling", "resize", "input_size", "precision"):
            value = getattr(settings, name)
            key.append(f"{name}={value}")
            if name in {"weights", "head"} and value and Path(value).is_file():
                facts = Path(value).stat()
                key.append(f"{facts.st_size} {facts.st_mtime_ns}")
        cache = settings.cache_dir
        with disk_errors(f"keep vectors in {cache} (LOOKALIKE_CACHE_DIR sets another place)"):
            claim_folder(cache, "cache")
            claim_folder(cache / "folders", "cache")
        data_dir = cache / "folders" / sha256(json.dumps(key).encode()).hexdigest()[:16]
        given = {**target.given, "data_dir": data_dir, "originals": "reference"}
        return replace(target, given=given)

    def index(self, client: BaseClient, progress: Progress) -> None:
        """Makes the collection what the folder is now. Links are no files of their own."""
        outcomes = client.index(self.folder, exclude=self._exclude, progress=progress)
        for one in outcomes:
            if one.failed or one.id is None:
                self.failed.append(one)
            elif not one.path.is_symlink():
                self._files.setdefault(one.id, []).append(one.path)
        if len(self.failed) == len(outcomes):
            print_errors(f"{one.path}: {one.error}" for one in self.failed)
            raise ConfigurationError(f"No pictures found in {self.folder} that can be read")
        if gone := [one.id for one in client.list() if one.id not in self._files]:
            client.delete_many(gone)

    def group(self, found: DuplicatesOut) -> DuplicatesOut:
        """Groups files instead of pictures: files of the same bytes are exact duplicates.

        Links are known as copies, and are no files of their own: they alone make no group.
        """
        pairs = [
            self._group(group)
            for group in found.groups
            if group.members or len(self._files[group.keep.id]) > 1
        ]
        pairs.sort(key=lambda pair: -len(pair[0].members))
        shown = [pair[0] for pair in pairs]
        self.groups = [pair[1] for pair in pairs]
        totals = {
            "collection": os.fsencode(self.folder).decode("utf-8", "backslashreplace"),
            "groups": shown,
            "total_groups": len(shown),
            "total_duplicates": sum(len(group.members) for group in shown),
            "bytes_saved": sum(group.bytes_saved for group in shown),
        }
        rest = found.model_dump(exclude={"groups", "total_copies"})  # each copy is a member here
        return DuplicatesOut.model_validate({**rest, **totals})

    def _group(self, found: DuplicateGroupOut) -> tuple[DuplicateGroupOut, FileGroup]:
        (first, *copies), why = tidying.keep_first(self._files[found.keep.id])
        kept = KeptOut.model_validate(self._facts(found.keep, first))
        exact = {"kind": DuplicateKind.EXACT, "score": 1.0}
        files = [(self._facts(found.keep, path) | exact, path) for path in copies]
        for one in found.members:
            files += [(self._facts(one, path), path) for path in self._files[one.id]]
        shown = [DuplicateOut.model_validate(facts) for facts, _ in files]
        group = DuplicateGroupOut(
            kind=shown[-1].kind,
            bytes_saved=sum(one.bytes for one in shown),
            keep=kept,
            why=found.why or why,
            members=shown,
        )
        duplicates = [
            replace(_picture_file(one, path), kind=one.kind, score=one.score)
            for one, (_, path) in zip(shown, files, strict=True)
        ]
        return group, FileGroup(_picture_file(kept, first), duplicates, group.why)

    def _facts(self, picture: KeptOut, path: Path) -> dict[str, Any]:
        named = {"path": path.relative_to(self.folder).as_posix(), "filename": path.name}
        return {**picture.model_dump(), **named, "copies": []}


def _picture_file(shown: KeptOut, path: Path) -> PictureFile:
    return PictureFile(
        path=path,
        sha256_start=shown.id,
        bytes=shown.bytes,
        width=shown.width,
        height=shown.height,
    )


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
            "copies": [printable(path) for path in picture.copies[:MAX_MEMBERS]],
            "more_copies": max(0, len(picture.copies) - MAX_MEMBERS),
            "size": bytes_text(picture.bytes),
            "uri": picture_uri(image, size=_THUMBNAIL),
        }

    groups = [
        {
            "number": number,
            "count": len(group.members) + 1,
            "copies": group.total_copies,
            "why": group.why,
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


def _groups_table(title: str, *, files: bool) -> Table:
    """A table that fits 80 columns; files have no ids that another command takes."""
    table = Table(title=cell(title), title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("group", justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    if not files:
        table.add_column("id", no_wrap=True)
    table.add_column("file" if files else "filename", overflow="fold", min_width=9)
    table.add_column("kind", min_width=len(DuplicateKind.REENCODED))
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("pixels", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    return table


def _print_groups(found: DuplicatesOut, *, files: bool) -> None:
    table = _groups_table(f"duplicates in {found.collection}", files=files)
    no_id = [] if files else [""]

    def row(mark: str, number: str, picture: KeptOut, kind: str, score: str) -> None:
        table.add_row(
            number,
            mark,
            *([] if files else [picture.id]),
            cell(picture.path or picture.filename),
            kind,
            score,
            f"{picture.width}x{picture.height}",
            bytes_text(picture.bytes),
        )
        for path in picture.copies[:SHOWN_MEMBERS]:
            table.add_row("", "", *no_id, cell(path), "copy")
        if (more := len(picture.copies) - SHOWN_MEMBERS) > 0:
            table.add_row("", "", *no_id, f"and {more} more", "copy")

    for number, group in enumerate(found.groups[:SHOWN_GROUPS], start=1):
        row("keep", str(number), group.keep, group.why or "", "")
        for one in group.members[:SHOWN_MEMBERS]:
            row("", "", one, one.kind.value, f"{one.score:.4f}")
        if (more := len(group.members) - SHOWN_MEMBERS) > 0:
            table.add_row("", "", *no_id, f"and {more} more")
        table.add_row()
    console = Console()
    if found.groups:
        console.print(table)
    for line in _summary(found, files=files):
        console.print(cell(line), highlight=False)


def _summary(found: DuplicatesOut, *, files: bool) -> list[str]:
    if not found.groups:
        lines = [f"No duplicates in {found.collection!r}."]
    else:
        lines = [
            f"{counted(found.total_groups, 'group')} with "
            f"{counted(found.total_duplicates, 'picture')} beside those to keep, "
            f"{bytes_text(found.bytes_saved)}. Nothing was deleted; "
            + ("--csv lists the files." if files else "--json gives the ids.")
        ]
        if found.total_copies:
            lines.append(
                f"{counted(found.total_copies, 'more path')} with the same bytes, no pictures of "
                "their own: `lookalike delete` leaves their files."
            )
    if found.total_groups > SHOWN_GROUPS:
        lines.append(f"The first {SHOWN_GROUPS} groups are shown; --json and --html show more.")
    if found.truncated:
        lines.append(
            f"{found.truncated} pictures have more neighbors than are looked at, so that groups "
            "may lack some; a higher --threshold has fewer."
        )
    return lines
