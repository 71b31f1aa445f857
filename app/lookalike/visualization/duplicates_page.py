"""A page of duplicate groups to look at before anything is deleted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from PIL import Image

from lookalike.errors import LookalikeError
from lookalike.visualization.fonts import printable
from lookalike.visualization.pages import picture_uri, render
from lookalike.visualization.thumbnails import missing_picture

MAX_GROUPS = 200
"""Groups on one page."""

MAX_MEMBERS = 24
"""Members of one group that are shown."""

_THUMBNAIL = 192  # pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownPicture:
    """A picture as the page shows it.

    Attributes:
        id: In the collection.
        name: The file's name.
        width: In pixels.
        height: In pixels.
        bytes: Size of the file.
        kind: `exact`, `reencoded` or `near`; empty for the one to keep.
        score: Cosine with the one to keep.
    """

    id: str
    name: str
    width: int
    height: int
    bytes: int
    kind: str = ""
    score: float = 1.0

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
