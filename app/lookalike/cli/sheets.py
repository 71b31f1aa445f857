"""The contact sheet of a search."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from lookalike.cli.backends import Backend
from lookalike.errors import LookalikeError
from lookalike.media.decode import ImageLimits, decode_image
from lookalike.schemas import SearchOut
from lookalike.visualization.contact_sheet import Tile, contact_sheet

_TILE = 160  # pixels
_LIMITS = ImageLimits()


def search_sheet(
    backend: Backend, query: str | bytes, result: SearchOut, *, name: str
) -> Image.Image:
    """Draws what was asked beside its matches.

    Args:
        backend: Where the matches' thumbnails come from.
        query: Its path, or its bytes; a gray tile stands for an address that the service fetched.
        result: What the search answered.
        name: Of the query.
    """
    model = result.model
    tiles = [
        Tile(
            image=_thumbnail(backend, result.collection, match.id),
            name=match.filename,
            rank=match.rank,
            score=match.score,
        )
        for match in result.matches
    ]
    asked = Tile(image=_query(query), name=name)
    return contact_sheet(
        asked, tiles, title=f"{model.name}, {model.weights} weights", tile_size=_TILE
    )


def _query(query: str | bytes) -> Image.Image | None:
    try:
        content = query if isinstance(query, bytes) else Path(query).read_bytes()
        return decode_image(content, limits=_LIMITS, decode_size=_TILE).image
    except (LookalikeError, OSError):
        return None


def _thumbnail(backend: Backend, collection: str, image_id: str) -> Image.Image | None:
    try:
        jpeg = backend.thumbnail(collection, image_id)
        return decode_image(io.BytesIO(jpeg), limits=_LIMITS, decode_size=_TILE).image
    except LookalikeError:
        return None
