"""Contact sheets: a query beside its matches, or each group of a clustering, with an index page."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, ImageDraw, ImageOps
from PIL.PngImagePlugin import PngInfo

from lookalike.errors import ConfigurationError
from lookalike.media.sources import SOFTWARE
from lookalike.services.clusters import Cluster, Clusters
from lookalike.services.vector_set import VectorSet
from lookalike.visualization.drawing import QUIET, TEXT, load_font, missing_picture, shorten
from lookalike.visualization.pages import render, write_table, write_whole

_FRAMES = {None: "#c3c9d1", True: "#16803c", False: "#c62828"}  # by whether a match is right
_ACCENT, _MAT = "#2457d6", "#f5f6f8"
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
    """Draws a query at the left, set apart, and its matches beside it: an RGB picture.

    Args:
        query: What was asked; its rank and score are not shown.
        matches: Best first; may be empty.
        title: Above it all, shortened to the width of the sheet.
        columns: Most matches in a row.
        tile_size: Longest side of a picture, in pixels.
    """
    left = tile_size + 3 * _GAP
    sheet = _Sheet(matches, title=title, columns=columns, tile_size=tile_size, left=left)
    sheet.draw_query(query)
    return sheet.canvas


def picture_sheet(
    title: str | None, tiles: Sequence[Tile], *, columns: int = 8, tile_size: int = 128
) -> Image.Image:
    """Draws pictures in rows, without a query; otherwise as `contact_sheet`."""
    return _Sheet(tiles, title=title, columns=columns, tile_size=tile_size).canvas


def save_picture(image: Image.Image, path: Path) -> None:
    """Writes a picture in the format of the file's suffix, as `write_whole` does.

    Raises:
        ConfigurationError: Another suffix, or the file cannot be written there.
    """
    kind = check_suffix(path)
    file = io.BytesIO()
    options: dict[str, Any] = {"pnginfo": PngInfo()}
    options["pnginfo"].add_text("Software", SOFTWARE)
    if kind != "PNG":
        exif = Image.Exif()
        exif[ExifTags.Base.Software] = SOFTWARE
        options = {"quality": 90, "exif": exif}
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
        columns = max(1, min(columns, len(tiles)))
        self._size, self._side = tile_size, tile_size + 2 * _FRAME
        self._font = load_font(max(11, tile_size // 11))
        self._line = round(self._font.getbbox("Ág")[3] * 1.2)
        title_font = load_font(max(15, tile_size // 7), bold=True)
        self._top, self._left = _MARGIN, _MARGIN + left
        if title is not None:
            self._top += round(title_font.getbbox("Ág")[3] * 1.2) + _GAP
        lines = max((1 + bool(_facts(tile)) for tile in tiles), default=1)
        step, row_step = self._side + _GAP, self._side + 6 + lines * self._line + _GAP
        rows = max(1, -(-len(tiles) // columns))
        width = self._left + columns * step - _GAP + _MARGIN
        height = self._top + rows * row_step - _GAP + _MARGIN
        self.canvas = Image.new("RGB", (width, height), "white")
        self._pen = ImageDraw.Draw(self.canvas)
        if title is not None:
            shown = shorten(title, font=title_font, width=width - 2 * _MARGIN)
            self._pen.text((_MARGIN, _MARGIN), shown, fill=TEXT, font=title_font)
        for number, tile in enumerate(tiles):
            row, column = divmod(number, columns)
            x, y = self._left + column * step, self._top + row * row_step
            facts = _facts(tile)
            self._picture(tile.image, x, y, frame=_FRAMES[tile.right])
            if tile.right is not None:
                self._mark(tile.right, x, y)
            texts = [(facts, TEXT), (tile.name, QUIET)] if facts else [(tile.name, TEXT)]
            self._texts(texts, x, y + self._side + 6)
        if not tiles and left:
            self._texts([("no matches", QUIET)], self._left, self._top)

    def draw_query(self, query: Tile) -> None:
        """The query in the free space at the left, and a line between it and the matches."""
        self._picture(query.image, _MARGIN, self._top, frame=_ACCENT)
        below = self._top + self._side + 6
        self._texts([("query", _ACCENT), (query.name, TEXT)], _MARGIN, below)
        x = self._left - _GAP - _GAP // 4
        self._pen.line((x, self._top, x, self.canvas.height - _MARGIN), fill=_FRAMES[None])

    def _picture(self, image: Image.Image | None, x: int, y: int, *, frame: str) -> None:
        """Fits a picture into a square with a frame; its proportions stay."""
        end = self._side - 1
        self._pen.rectangle((x, y, x + end, y + end), _MAT, frame, width=_FRAME)
        square = (self._size, self._size)
        fitted = ImageOps.pad(
            image or missing_picture(self._size), square, Image.Resampling.LANCZOS, color=_MAT
        )
        self.canvas.paste(fitted, (x + _FRAME, y + _FRAME))

    def _mark(self, right: bool, x: int, y: int) -> None:
        """A check or a cross in the upper right corner of a tile."""
        side = max(16, self._size // 7)
        x1, y1 = x + self._side - 1, y
        x0, y2 = x1 - side, y1 + side
        self._pen.rectangle((x0, y1, x1, y2), fill=_FRAMES[right])
        a, width = side / 4, max(2, side // 8)
        if right:
            points = [(x0 + a, y1 + side * 0.52), (x0 + side * 0.43, y2 - a), (x1 - a, y1 + a)]
            self._pen.line(points, fill="white", width=width, joint="curve")
        else:
            self._pen.line((x0 + a, y1 + a, x1 - a, y2 - a), fill="white", width=width)
            self._pen.line((x0 + a, y2 - a, x1 - a, y1 + a), fill="white", width=width)

    def _texts(self, texts: Sequence[tuple[str, str]], x: int, y: int) -> None:
        """Lines below each other, each with its color, as wide as a tile."""
        for number, (text, color) in enumerate(texts):
            shown = shorten(text, font=self._font, width=self._side)
            self._pen.text((x, y + number * self._line), shown, fill=color, font=self._font)


def _facts(tile: Tile) -> str:
    """Rank and score, as far as they are known."""
    rank = [] if tile.rank is None else [f"{tile.rank}"]
    return "   ".join(rank if tile.score is None else [*rank, f"{tile.score:.4f}"])


_TILE = 160  # pixels


def query_sheet(
    vectors: VectorSet,
    query: int,
    matches: Sequence[tuple[int, float, bool | None]],
    *,
    title: str | None = None,
    columns: int = 5,
) -> Image.Image:
    """Draws a picture of a set beside its matches; otherwise as `contact_sheet`.

    `query` is a position. Each match has its position, its score, and whether it is right where
    that is known. Below the query stands its name where there is a title, else its label.
    """
    names = vectors.names if vectors.labels is None else vectors.labels
    tiles = [
        Tile(
            image=vectors.picture_or_none(position, size=_TILE),
            name=names[position],
            rank=rank,
            score=score,
            right=right,
        )
        for rank, (position, score, right) in enumerate(matches, start=1)
    ]
    name = (names if title is None else vectors.names)[query]
    asked = Tile(image=vectors.picture_or_none(query, size=_TILE), name=name)
    return contact_sheet(asked, tiles, title=title, columns=columns, tile_size=_TILE)


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
    names = vectors.names
    sheets, groups, rows = [], [], []
    for number, group in enumerate(clusters.groups, start=1):
        members = list(zip(group.positions.tolist(), group.scores.tolist(), strict=True))
        tiles = [
            Tile(image=vectors.picture_or_none(one, size=_SMALL_TILE), name=names[one], score=score)
            for one, score in members[:SHOWN]
        ]
        sheet, title = folder / f"group-{number:03d}.png", f"group {number}: {len(group)} pictures"
        save_picture(picture_sheet(title, tiles, tile_size=_SMALL_TILE), sheet)
        sheets.append(sheet)
        labels = group_labels(group, vectors)[:5]
        groups.append({"size": len(group), "sheet": sheet.name, "labels": labels})
        rows += [(one, vectors.ids[one], names[one], number, f"{s:.6f}") for one, s in members]
    page, table = folder / "index.html", folder / "groups.csv"
    write_table(table, ["id", "name", "group", "score"], [row[1:] for row in sorted(rows)])
    title = f"Groups in {vectors.name}"
    html = render(
        "clusters.html", title=title, vectors=vectors, found=clusters, groups=groups, shown=SHOWN
    )
    write_whole(page, html)
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
