"""Contact sheets: a query beside its matches, or each group of a clustering, with an index page."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from lookalike.errors import ConfigurationError
from lookalike.services.clusters import Cluster, Clusters
from lookalike.services.vector_set import VectorSet
from lookalike.visualization.drawing import load_font, missing_picture, shorten
from lookalike.visualization.pages import render, write_whole

_PAGE, _TEXT, _QUIET, _LINE, _MAT = "#ffffff", "#1a1d21", "#626a73", "#c3c9d1", "#f5f6f8"
_RIGHT, _WRONG = "#16803c", "#c62828"
_ACCENT = "#2457d6"
_MARGIN = 24  # around the sheet, in pixels
_GAP = 16  # between tiles
_FRAME = 3  # around a picture
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One picture of a sheet and what stands below it."""

    # RGB, any size; None for one that cannot be read: a gray tile stands for it
    image: Image.Image | None
    name: str  # shortened where it is too long
    rank: int | None = None  # 1 for the best match; None for a picture that is no match
    score: float | None = None  # cosine similarity in [-1, 1], or None
    right: bool | None = None  # whether the match is right, where that is known


def contact_sheet(
    query: Tile,
    matches: Sequence[Tile],
    *,
    title: str | None = None,
    columns: int = 5,
    tile_size: int = 160,
) -> Image.Image:
    """Draws a query at the left, set apart, and its matches in rows beside it.

    Args:
        query: What was asked; its rank and score are not shown.
        matches: Best first; may be empty.
        title: Above it all, shortened to the width of the sheet.
        columns: Most matches in a row.
        tile_size: Longest side of a picture, in pixels.

    Returns:
        An RGB picture.
    """
    columns = max(1, min(columns, len(matches)))
    sheet = _Sheet(
        matches, title=title, columns=columns, tile_size=tile_size, left=tile_size + 3 * _GAP
    )
    sheet.draw_query(query)
    if not matches:
        sheet.draw_note("no matches")
    return sheet.draw_tiles()


def picture_sheet(
    title: str | None, tiles: Sequence[Tile], *, columns: int = 8, tile_size: int = 128
) -> Image.Image:
    """Draws pictures in rows, without a query: the members of a group.

    Arguments as for `contact_sheet`.

    Returns:
        An RGB picture.
    """
    columns = max(1, min(columns, len(tiles)))
    return _Sheet(tiles, title=title, columns=columns, tile_size=tile_size).draw_tiles()


def save_picture(image: Image.Image, path: Path) -> None:
    """Writes a picture in the format of the file's suffix: png, jpg, jpeg or webp.

    A reader sees the old file or the whole new one. Folders above it are made.

    Raises:
        ConfigurationError: Another suffix, or the file cannot be written there.
    """
    kind = check_suffix(path)
    file = io.BytesIO()
    options = {} if kind == "PNG" else {"quality": 90}
    try:
        image.save(file, kind, **options)
    except (OSError, ValueError) as exc:  # JPEG ends at 65,535 pixels a side, WebP at 16,383
        raise ConfigurationError(
            f"A picture of {image.width} x {image.height} pixels cannot be saved as {kind}: "
            "choose a file that ends in .png, or fewer pictures"
        ) from exc
    write_whole(path, file.getvalue())


def check_suffix(path: Path) -> str:
    """Pillow's name for the format that a file's suffix stands for, e.g. `JPEG` for `.jpg`.

    Raises:
        ConfigurationError: The suffix is not one of those that are known.
    """
    kind = _FORMATS.get(path.suffix.lower())
    if kind is None:
        known = ", ".join(_FORMATS)
        raise ConfigurationError(
            f"{path.name!r} does not say which picture format to write: end it in one of {known}"
        )
    return kind


class _Sheet:
    """A canvas with a title and tiles in rows; `left` pixels stay free beside them."""

    def __init__(
        self,
        tiles: Sequence[Tile],
        *,
        title: str | None,
        columns: int,
        tile_size: int,
        left: int = 0,
    ) -> None:
        self._tiles, self._columns, self._size = tiles, columns, tile_size
        self._font = load_font(max(11, tile_size // 11))
        self._line = round(self._font.getbbox("Ág")[3] * 1.2)
        title_font = load_font(max(15, tile_size // 7), bold=True)
        self._top = _MARGIN
        if title is not None:
            self._top += round(title_font.getbbox("Ág")[3] * 1.2) + _GAP
        self._left = _MARGIN + left
        lines = max((_lines(tile) for tile in tiles), default=1)
        self._row = tile_size + 2 * _FRAME + 6 + lines * self._line + _GAP
        rows = max(1, -(-len(tiles) // columns))
        width = self._left + columns * self._step - _GAP + _MARGIN
        height = self._top + rows * self._row - _GAP + _MARGIN
        self._canvas = Image.new("RGB", (width, height), _PAGE)
        self._pen = ImageDraw.Draw(self._canvas)
        if title is not None:
            shown = shorten(title, font=title_font, width=width - 2 * _MARGIN)
            self._pen.text((_MARGIN, _MARGIN), shown, fill=_TEXT, font=title_font)

    @property
    def _step(self) -> int:
        return self._size + 2 * _FRAME + _GAP

    def draw_query(self, query: Tile) -> None:
        """The query in the free space at the left, and a line between it and the matches."""
        self._picture(query.image, _MARGIN, self._top, frame=_ACCENT)
        below = self._top + self._size + 2 * _FRAME + 6
        self._text("query", _MARGIN, below, fill=_ACCENT)
        self._text(query.name, _MARGIN, below + self._line, fill=_TEXT)
        x = self._left - _GAP - _GAP // 4
        self._pen.line((x, self._top, x, self._canvas.height - _MARGIN), fill=_LINE)

    def draw_note(self, text: str) -> None:
        """A line where the first tile would be."""
        self._text(text, self._left, self._top, fill=_QUIET)

    def draw_tiles(self) -> Image.Image:
        """All tiles, row by row; gives the finished sheet."""
        for number, tile in enumerate(self._tiles):
            row, column = divmod(number, self._columns)
            self._tile(tile, self._left + column * self._step, self._top + row * self._row)
        return self._canvas

    def _tile(self, tile: Tile, x: int, y: int) -> None:
        frame = {None: _LINE, True: _RIGHT, False: _WRONG}[tile.right]
        self._picture(tile.image, x, y, frame=frame)
        if tile.right is not None:
            self._mark(tile.right, x, y)
        below = y + self._size + 2 * _FRAME + 6
        facts = [] if tile.rank is None else [f"{tile.rank}"]
        facts += [] if tile.score is None else [f"{tile.score:.4f}"]
        if facts:
            self._text("   ".join(facts), x, below, fill=_TEXT)
            below += self._line
        self._text(tile.name, x, below, fill=_QUIET if facts else _TEXT)

    def _picture(self, image: Image.Image | None, x: int, y: int, *, frame: str) -> None:
        """Fits a picture into a square with a frame; its proportions stay."""
        side = self._size + 2 * _FRAME
        self._pen.rectangle((x, y, x + side - 1, y + side - 1), _MAT, frame, width=_FRAME)
        if image is None:
            image = missing_picture(self._size)
        scale = min(self._size / image.width, self._size / image.height)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        small = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
        offset = ((self._size - size[0]) // 2, (self._size - size[1]) // 2)
        self._canvas.paste(small, (x + _FRAME + offset[0], y + _FRAME + offset[1]))

    def _mark(self, right: bool, x: int, y: int) -> None:
        """A check or a cross in the upper right corner of a tile."""
        side = max(16, self._size // 7)
        x1, y1 = x + self._size + 2 * _FRAME - 1, y
        x0, y2 = x1 - side, y1 + side
        self._pen.rectangle((x0, y1, x1, y2), fill=_RIGHT if right else _WRONG)
        a, width = side / 4, max(2, side // 8)
        if right:
            points = [(x0 + a, y1 + side * 0.52), (x0 + side * 0.43, y2 - a), (x1 - a, y1 + a)]
            self._pen.line(points, fill="white", width=width, joint="curve")
        else:
            self._pen.line((x0 + a, y1 + a, x1 - a, y2 - a), fill="white", width=width)
            self._pen.line((x0 + a, y2 - a, x1 - a, y1 + a), fill="white", width=width)

    def _text(self, text: str, x: int, y: int, *, fill: str) -> None:
        shown = shorten(text, font=self._font, width=self._size + 2 * _FRAME)
        self._pen.text((x, y), shown, fill=fill, font=self._font)


def _lines(tile: Tile) -> int:
    return 1 if tile.rank is None and tile.score is None else 2


_TILE = 160  # pixels


def query_sheet(
    vectors: VectorSet, query: int, matches: Sequence[tuple[int, float, bool | None]]
) -> Image.Image:
    """Draws a picture of a set beside its matches.

    Args:
        vectors: The set.
        query: Position of the query.
        matches: Best first: position, score, and whether it is right where that is known.

    Returns:
        An RGB picture.
    """
    tiles = [
        Tile(
            image=vectors.picture_or_none(position, size=_TILE),
            name=_name(vectors, position),
            rank=rank,
            score=score,
            right=right,
        )
        for rank, (position, score, right) in enumerate(matches, start=1)
    ]
    asked = Tile(image=vectors.picture_or_none(query, size=_TILE), name=_name(vectors, query))
    return contact_sheet(asked, tiles, tile_size=_TILE)


def _name(vectors: VectorSet, position: int) -> str:
    return vectors.names[position] if vectors.labels is None else vectors.labels[position]


SHOWN = 32
"""Pictures on one contact sheet, the most central ones."""

_SMALL_TILE = 128  # pixels


def write_clusters(clusters: Clusters, vectors: VectorSet, folder: Path) -> list[Path]:
    """Writes `index.html`, `groups.csv` and `group-001.png`, `group-002.png`, ...

    The folder is made where it does not exist; files of these names are replaced.

    Returns:
        The files, the page first.

    Raises:
        ConfigurationError: The files cannot be written there.
    """
    sheets = []
    for number, group in enumerate(clusters.groups, start=1):
        path = folder / f"group-{number:03d}.png"
        save_picture(_group_sheet(number, group, vectors), path)
        sheets.append(path)
    page, table = folder / "index.html", folder / "groups.csv"
    write_whole(table, _table(clusters, vectors))
    write_whole(page, _page(clusters, vectors, sheets))
    for path in folder.glob("group-[0-9][0-9][0-9].png"):
        if path not in sheets:  # of an earlier run that made more groups
            path.unlink()
    return [page, table, *sheets]


def group_labels(group: Cluster, vectors: VectorSet) -> list[tuple[str, int]]:
    """The labels of a group's pictures with their counts, the most frequent first."""
    if vectors.labels is None:
        return []
    labels = Counter(vectors.labels[position] for position in group.positions)
    return sorted(labels.items(), key=lambda item: (-item[1], item[0]))


def _group_sheet(number: int, group: Cluster, vectors: VectorSet) -> Image.Image:
    shown = zip(group.positions[:SHOWN].tolist(), group.scores[:SHOWN].tolist(), strict=True)
    tiles = [_group_tile(vectors, position, score) for position, score in shown]
    return picture_sheet(f"group {number}: {len(group)} pictures", tiles, tile_size=_SMALL_TILE)


def _group_tile(vectors: VectorSet, position: int, score: float) -> Tile:
    image = vectors.picture_or_none(position, size=_SMALL_TILE)
    return Tile(image=image, name=vectors.names[position], score=score)


def _table(clusters: Clusters, vectors: VectorSet) -> str:
    """One line for each picture, in the order of the set; groups count from 1."""
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow(["id", "name", "group", "score"])
    scores = {
        position: score
        for group in clusters.groups
        for position, score in zip(group.positions.tolist(), group.scores.tolist(), strict=True)
    }
    for position, number in enumerate(clusters.of_pictures().tolist()):
        score = f"{scores[position]:.6f}"
        lines.writerow([vectors.ids[position], vectors.names[position], number + 1, score])
    return out.getvalue()


def _page(clusters: Clusters, vectors: VectorSet, sheets: list[Path]) -> str:
    groups = [
        {
            "number": number,
            "size": len(group),
            "sheet": sheet.name,
            "labels": group_labels(group, vectors)[:5],
            "shown": min(SHOWN, len(group)),
        }
        for number, (group, sheet) in enumerate(zip(clusters.groups, sheets, strict=True), start=1)
    ]
    return render(
        "clusters.html",
        title=f"Groups in {vectors.name}",
        groups=groups,
        count=len(vectors),
        spec=vectors.spec,
        purity=clusters.purity,
        nmi=clusters.nmi,
        tried=sorted(clusters.tried.items()),
    )
