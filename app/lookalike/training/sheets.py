"""The same queries before and after, as contact sheets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from lookalike.evaluation.runner import evaluate_query
from lookalike.services.vector_set import VectorSet
from lookalike.training.comparison import Compared
from lookalike.visualization.contact_sheet import Tile, contact_sheet

QUERIES = 4
"""Queries that are shown."""

_MATCHES = 6
_TILE = 160  # pixels


def before_after_sheet(compared: Compared, *, seed: int) -> Image.Image:
    """Draws random queries of one part with their matches before and after, right ones green.

    Args:
        compared: A part in which some class has two pictures or more.
        seed: Of the choice.

    Returns:
        An RGB picture, two rows for each query.
    """
    labels = np.array(compared.plain.labels)
    names, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    rng = np.random.default_rng(seed)
    able = [rng.choice(np.flatnonzero(codes == code)) for code in np.flatnonzero(counts >= 2)]
    chosen = rng.permutation(able)[:QUERIES]  # of different classes
    rows = []
    for query in chosen.tolist():
        label = str(names[codes[query]])
        rows.append(_row(compared.plain, query, f"before: {label}"))
        rows.append(_row(compared.headed, query, f"after: {label}"))
    return _stack(rows)


def _row(vectors: VectorSet, query: int, title: str) -> Image.Image:
    assert vectors.labels is not None
    found = evaluate_query(vectors, query, min(_MATCHES, len(vectors) - 1))
    tiles = [
        Tile(
            image=vectors.picture_or_none(match.position, size=_TILE),
            name=match.label or match.name,
            rank=match.rank,
            score=match.score,
            right=match.relevant,
        )
        for match in found.matches
    ]
    asked = Tile(image=vectors.picture_or_none(query, size=_TILE), name=vectors.names[query])
    return contact_sheet(asked, tiles, title=title, columns=_MATCHES, tile_size=_TILE)


def _stack(rows: Sequence[Image.Image]) -> Image.Image:
    sheet = Image.new(
        "RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white"
    )
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet
