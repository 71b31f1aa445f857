"""The contact sheet of one query within a set."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from lookalike.services.vector_set import VectorSet
from lookalike.visualization.contact_sheet import Tile, contact_sheet

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
