"""The interactive map: one HTML file with everything in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.services.vector_set import VectorSet
from lookalike.visualization.classes import Classes, densest_places
from lookalike.visualization.fonts import printable
from lookalike.visualization.neighbors import nearest_neighbors
from lookalike.visualization.pages import render
from lookalike.visualization.thumbnails import Thumbnails, sheet_columns, sprite_sheets

_NEIGHBORS = 5
_NAMED_CLASSES = 60  # more names on the map cover each other


def map_page(
    places: NDArray[np.float32],
    vectors: VectorSet,
    classes: Classes,
    thumbnails: Thumbnails,
    *,
    title: str,
    caption: str,
) -> str:
    """Makes the page: canvas, legend, search, each picture with its 5 nearest by true cosine.

    Args:
        places: (N, 2).
        vectors: The same N pictures.
        classes: Of the pictures.
        thumbnails: Of the pictures; laid on sprite sheets inside the page.
        title: Of the page.
        caption: How the places were found.
    """
    neighbors, scores = nearest_neighbors(vectors.vectors, k=_NEIGHBORS)
    scaled, offset, extent = _scaled(places)
    centers = (densest_places(places, classes)[:_NAMED_CLASSES] - offset) / extent
    data: dict[str, Any] = {
        "places": np.round(scaled, 5).ravel().tolist(),
        "names": [printable(name) for name in vectors.names],
        "ids": _ids(vectors.ids, vectors.names),
        "classes": list(zip(classes.names, classes.colors, classes.counts, strict=True)),
        "class": classes.index.tolist() if classes.names else [],
        "centers": np.round(centers, 5).tolist(),
        "neighbors": neighbors.tolist(),
        "scores": np.round(scores.astype(np.float64), 4).tolist(),
        "missing": sorted(thumbnails.missing),
        "size": thumbnails.size,
        "columns": sheet_columns(thumbnails.size),
        "sheets": list(sprite_sheets(thumbnails)),
    }
    return render("map.html", title=printable(title), caption=printable(caption), data=data)


def _ids(ids: Sequence[str], names: Sequence[str]) -> list[str] | None:
    """The ids as they can be shown, or None where they are the names again."""
    return None if list(ids) == list(names) else [printable(identity) for identity in ids]


def _scaled(
    places: NDArray[np.float32],
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Places from 0 to 1 along the longer axis, what was taken away, and by what was divided."""
    offset = places.min(axis=0).astype(np.float64)
    extent = float(np.ptp(places, axis=0).max()) or 1.0
    return (places - offset) / extent, offset, extent
