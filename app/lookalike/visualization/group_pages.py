"""Groups of pictures as files: clusters as sheets, a table and a page; duplicates as a page."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from lookalike.errors import LookalikeError
from lookalike.services.clusters import Cluster, Clusters
from lookalike.services.vector_set import VectorSet
from lookalike.visualization.contact_sheet import Tile, picture_sheet, save_picture
from lookalike.visualization.drawing import missing_picture, printable
from lookalike.visualization.pages import picture_uri, render, write_whole

SHOWN = 32
"""Pictures on one contact sheet, the most central ones."""

_TILE = 128  # pixels


def write_clusters(clusters: Clusters, vectors: VectorSet, folder: Path) -> list[Path]:
    """Writes `index.html`, `groups.csv` and `group-001.png`, `group-002.png`, ...

    Args:
        clusters: The groups.
        vectors: What was grouped; its pictures are opened.
        folder: Made where it does not exist; files of these names are replaced.

    Returns:
        The files, the page first.

    Raises:
        ConfigurationError: The files cannot be written there.
    """
    sheets = []
    for number, group in enumerate(clusters.groups, start=1):
        path = folder / f"group-{number:03d}.png"
        save_picture(_sheet(number, group, vectors), path)
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


def _sheet(number: int, group: Cluster, vectors: VectorSet) -> Image.Image:
    shown = zip(group.positions[:SHOWN].tolist(), group.scores[:SHOWN].tolist(), strict=True)
    tiles = [_tile(vectors, position, score) for position, score in shown]
    return picture_sheet(f"group {number}: {len(group)} pictures", tiles, tile_size=_TILE)


def _tile(vectors: VectorSet, position: int, score: float) -> Tile:
    image = vectors.picture_or_none(position, size=_TILE)
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


MAX_GROUPS = 200
"""Groups on one page."""

MAX_MEMBERS = 24
"""Members of one group that are shown."""

_THUMBNAIL = 192  # pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownPicture:
    """A picture as the page shows it."""

    id: str  # in the collection
    name: str  # the file's name
    width: int  # in pixels
    height: int  # in pixels
    bytes: int  # size of the file
    kind: str = ""  # `exact`, `reencoded` or `near`; empty for the one to keep
    score: float = 1.0  # cosine with the one to keep

    @property
    def size(self) -> str:
        """The bytes for people, e.g. `1.2 MB`."""
        return bytes_text(self.bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownGroup:
    """A picture to keep, and its duplicates."""

    keep: ShownPicture
    members: Sequence[ShownPicture]


def duplicates_page(
    groups: Sequence[ShownGroup],
    *,
    collection: str,
    kind: str,
    threshold: float,
    duplicates: int,
    bytes_saved: int,
    truncated: int,
    thumbnail: Callable[[str], Image.Image],
) -> str:
    """Builds the page: totals, then each group with the picture to keep first.

    Args:
        groups: All of them, in order; the first `MAX_GROUPS` are shown.
        collection: Where they were found.
        kind: The weakest kind that was asked for.
        threshold: The lowest cosine that was asked for.
        duplicates: Pictures of all groups but those to keep.
        bytes_saved: By deleting these.
        truncated: Pictures with more neighbors than were looked at.
        thumbnail: Opens a picture by its id; where it raises `LookalikeError`, a gray tile stands
            for it.

    Returns:
        HTML that needs nothing from elsewhere.
    """

    def uri(image_id: str) -> str:
        try:
            image = thumbnail(image_id)
        except LookalikeError:
            image = missing_picture(_THUMBNAIL)
        return picture_uri(image, size=_THUMBNAIL)

    shown = [
        {
            "number": number,
            "count": len(group.members) + 1,
            "pictures": [
                (replace(one, name=printable(one.name)), uri(one.id))
                for one in (group.keep, *group.members[:MAX_MEMBERS])
            ],
            "hidden": max(0, len(group.members) - MAX_MEMBERS),
        }
        for number, group in enumerate(groups[:MAX_GROUPS], start=1)
    ]
    return render(
        "duplicates.html",
        title=f"Duplicates in {collection}",
        groups=shown,
        total=len(groups),
        kind=kind,
        threshold=threshold,
        duplicates=duplicates,
        saved=bytes_text(bytes_saved),
        truncated=truncated,
    )


def bytes_text(count: int) -> str:
    """A number of bytes for people: decimal units, as file managers show them."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{count} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
