"""A map of a set of pictures: positions by PCA and t-SNE, drawn in four files."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InvalidParameterError
from lookalike.extras import require_extra
from lookalike.progress import NO_PROGRESS, Progress
from lookalike.services.vector_set import VectorSet
from lookalike.visualization.contact_sheet import save_picture
from lookalike.visualization.drawing import (
    Classes,
    Thumbnails,
    classes_of,
    densest_places,
    printable,
    read_thumbnails,
    sheet_columns,
    sprite_sheets,
    thumbnail_size,
)
from lookalike.visualization.map_pictures import draw_grid, draw_scatter, lay_grid
from lookalike.visualization.pages import render, write_whole
from lookalike.visualization.projection import Pca, lowered_perplexity, pca, tsne

_BLOCK_BYTES = 64 * 1024 * 1024  # of cosines that are held at a time


def nearest_neighbors(
    vectors: NDArray[np.float32], *, k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Finds the k nearest other pictures of each picture by cosine; exact.

    `k` is lowered to N - 1.

    Returns:
        Positions and scores, each (N, k), best first; of equal scores the lower position first.
    """
    count = len(vectors)
    k = min(k, count - 1)
    positions = np.empty((count, k), dtype=np.int64)
    scores = np.empty((count, k), dtype=np.float32)
    step = max(1, _BLOCK_BYTES // (4 * count))
    for start in range(0, count, step):
        rows = np.arange(start, min(start + step, count))
        cosines = np.asarray(vectors[start : start + step] @ vectors.T)  # (n, N)
        cosines[rows - start, rows] = -np.inf
        for rank in range(k):
            best = cosines.argmax(axis=1)  # the first of equal ones
            positions[rows, rank] = best
            scores[rows, rank] = cosines[rows - start, best]
            cosines[rows - start, best] = -np.inf
    return positions, np.clip(scores, -1.0, 1.0)


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
    """Makes the page: canvas, legend, search, each picture with its 5 nearest by true cosine."""
    neighbors, scores = nearest_neighbors(vectors.vectors, k=_NEIGHBORS)
    centers = densest_places(places, classes)[:_NAMED_CLASSES]
    low = places.min(axis=0).astype(np.float64)
    extent = float(np.ptp(places, axis=0).max()) or 1.0  # the longer axis goes from 0 to 1
    same = list(vectors.ids) == list(vectors.names)
    data: dict[str, Any] = {
        "places": np.round((places - low) / extent, 5).ravel().tolist(),
        "names": [printable(name) for name in vectors.names],
        "ids": None if same else [printable(identity) for identity in vectors.ids],
        "classes": list(zip(classes.names, classes.colors, classes.counts, strict=True)),
        "class": classes.index.tolist() if classes.names else [],
        "centers": np.round((centers - low) / extent, 5).tolist(),
        "neighbors": neighbors.tolist(),
        "scores": np.round(scores.astype(np.float64), 4).tolist(),
        "missing": sorted(thumbnails.missing),
        "size": thumbnails.size,
        "columns": sheet_columns(thumbnails.size),
        "sheets": list(sprite_sheets(thumbnails)),
    }
    return render("map.html", title=printable(title), caption=printable(caption), data=data)


@dataclass(frozen=True, slots=True, kw_only=True)
class MapLayout:
    """The place of each picture, and how it was found."""

    places: NDArray[np.float32]  # (N, 2) float32; the unit and the directions have no meaning
    pca: Pca  # the coordinates that t-SNE saw, and the share of the variance that they keep
    perplexity: float  # of t-SNE, as used
    seed: int  # of t-SNE


class MapFiles(NamedTuple):
    """What `write_map` wrote: two pictures, a page, and the places as a table."""

    scatter: Path
    grid: Path
    page: Path
    table: Path


def make_map(
    vectors: VectorSet,
    *,
    components: int = 100,
    perplexity: float = 30.0,
    seed: int = 0,
    progress: Progress = NO_PROGRESS,
) -> MapLayout:
    """Finds a place on a plane for each picture: PCA, then t-SNE.

    Args:
        vectors: At least 2 pictures.
        components: Principal components to keep, at least 2; lowered to what there is.
        perplexity: About how many neighbors count, at least 1; lowered to (N - 1) / 3.
        seed: The same seed gives the same map.
        progress: Told the steps of each stage.

    Raises:
        InvalidParameterError: Fewer than 2 pictures, or a number out of its range.
        ConfigurationError: The extra `viz` is not installed.
    """
    require_extra("viz", "a map")
    if len(vectors) < 2:
        raise InvalidParameterError(
            f"A map needs at least 2 pictures, and {vectors.name} has {len(vectors)}: add more"
        )
    if components < 2:
        raise InvalidParameterError(f"components is {components}; choose a number from 2 on")
    if not perplexity >= 1:
        raise InvalidParameterError(f"perplexity is {perplexity}; choose a number from 1 on")
    progress.report(0, 1, stage="PCA")
    reduced = pca(vectors.vectors, components=components, seed=seed)
    progress.report(1, 1, stage="PCA")
    perplexity = lowered_perplexity(perplexity, len(vectors))
    steps = progress.stage("t-SNE")
    places = tsne(reduced.coordinates, seed=seed, perplexity=perplexity, progress=steps)
    return MapLayout(places=places, pca=reduced, perplexity=perplexity, seed=seed)


def write_map(
    layout: MapLayout, vectors: VectorSet, folder: Path, *, progress: Progress = NO_PROGRESS
) -> MapFiles:
    """Writes scatter.png, grid.png, map.html and places.csv; files of that name are replaced.

    A picture that cannot be read any more becomes a gray tile.

    Raises:
        ConfigurationError: The extra `viz` is not installed, or a file cannot be written.
    """
    require_extra("viz", "a map")
    count = len(vectors)
    classes = classes_of(vectors.labels, count=count)
    title = f"{vectors.name}: {vectors.spec.model}, {vectors.spec.weights}"
    caption = _caption(layout)
    reading = progress.stage("pictures")
    size = thumbnail_size(count)
    thumbnails = read_thumbnails(vectors.picture, count, size=size, progress=reading)
    files = MapFiles(
        folder / "scatter.png", folder / "grid.png", folder / "map.html", folder / "places.csv"
    )
    progress.report(0, 4, stage="files")
    write_whole(files.table, _table(layout.places, vectors))
    progress.report(1, 4, stage="files")
    scatter = draw_scatter(layout.places, classes, title=title, caption=caption)
    write_whole(files.scatter, scatter)
    progress.report(2, 4, stage="files")
    grid = draw_grid(lay_grid(layout.places), thumbnails, title=title, classes=classes)
    save_picture(grid, files.grid)
    progress.report(3, 4, stage="files")
    page = map_page(layout.places, vectors, classes, thumbnails, title=title, caption=caption)
    write_whole(files.page, page)
    progress.report(4, 4, stage="files")
    return files


def _caption(layout: MapLayout) -> str:
    return (
        f"{len(layout.places):,} pictures. t-SNE (perplexity {layout.perplexity:.4g}, seed "
        f"{layout.seed}) of {layout.pca.coordinates.shape[1]} principal components, which keep "
        f"{layout.pca.kept:.1%} of the variance. Near means alike; directions mean nothing."
    )


def _table(places: NDArray[np.float32], vectors: VectorSet) -> bytes:
    """Comma-separated id, label, x and y; the label is empty where there is none."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["id", "label", "x", "y"])
    labels = vectors.labels if vectors.labels is not None else [""] * len(vectors)
    for identity, label, (x, y) in zip(vectors.ids, labels, places.tolist(), strict=True):
        writer.writerow([identity, label, f"{x:.4f}", f"{y:.4f}"])
    return file.getvalue().encode("utf-8", errors="backslashreplace")
