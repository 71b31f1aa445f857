"""A map of a set of pictures: places by PCA and t-SNE, drawn in four files."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InvalidParameterError
from lookalike.services.vector_set import VectorSet
from lookalike.visualization.classes import classes_of
from lookalike.visualization.contact_sheet import save_picture
from lookalike.visualization.grid import draw_grid, lay_grid
from lookalike.visualization.map_page import map_page
from lookalike.visualization.pages import write_whole
from lookalike.visualization.projection import Pca, lowered_perplexity, pca, tsne
from lookalike.visualization.scatter import draw_scatter
from lookalike.visualization.thumbnails import read_thumbnails, thumbnail_size

Progress = Callable[[str, int, int], None]
"""Told the stage (`PCA`, `t-SNE`, `pictures`, `files`), what is done of it, and how much it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MapLayout:
    """The place of each picture, and how it was found.

    Attributes:
        places: (N, 2) float32; the unit and the directions have no meaning.
        pca: The coordinates that t-SNE saw, and the share of the variance that they keep.
        perplexity: Of t-SNE, as used.
        seed: Of t-SNE.
    """

    places: NDArray[np.float32]
    pca: Pca
    perplexity: float
    seed: int


class MapFiles(NamedTuple):
    """What `write_map` wrote: two pictures, a page, and the places as a table."""

    scatter: Path
    grid: Path
    page: Path
    table: Path


def _silent(stage: str, done: int, total: int) -> None:
    """Tells nobody."""


def make_map(
    vectors: VectorSet,
    *,
    components: int = 100,
    perplexity: float = 30.0,
    seed: int = 0,
    on_progress: Progress = _silent,
) -> MapLayout:
    """Finds a place on a plane for each picture: PCA, then t-SNE.

    Args:
        vectors: At least 2 pictures.
        components: Principal components to keep, at least 2; lowered to what there is.
        perplexity: About how many neighbors count, at least 1; lowered to (N - 1) / 3.
        seed: The same seed gives the same map.
        on_progress: Told the stage and its steps.

    Raises:
        InvalidParameterError: Fewer than 2 pictures, or a number out of its range.
    """
    if len(vectors) < 2:
        raise InvalidParameterError(
            f"A map needs at least 2 pictures, and {vectors.name} has {len(vectors)}: add more"
        )
    if components < 2:
        raise InvalidParameterError(f"components is {components}; choose a number from 2 on")
    if not perplexity >= 1:
        raise InvalidParameterError(f"perplexity is {perplexity}; choose a number from 1 on")
    on_progress("PCA", 0, 1)
    reduced = pca(vectors.vectors, components=components, seed=seed)
    on_progress("PCA", 1, 1)
    places = tsne(
        reduced.coordinates,
        seed=seed,
        perplexity=perplexity,
        on_progress=lambda done, total: on_progress("t-SNE", done, total),
    )
    return MapLayout(
        places=places,
        pca=reduced,
        perplexity=lowered_perplexity(perplexity, len(vectors)),
        seed=seed,
    )


def write_map(
    layout: MapLayout, vectors: VectorSet, folder: Path, *, on_progress: Progress = _silent
) -> MapFiles:
    """Writes scatter.png, grid.png, map.html and places.csv; files of that name are replaced.

    A picture that cannot be read any more becomes a gray tile.

    Args:
        layout: Of `make_map` for the same pictures.
        vectors: The pictures.
        folder: Made where it is missing.
        on_progress: Told the stage and its steps.
    """
    count = len(vectors)
    classes = classes_of(vectors.labels, count=count)
    title = f"{vectors.name}: {vectors.spec.model}, {vectors.spec.weights}"
    caption = _caption(layout)
    thumbnails = read_thumbnails(
        vectors.picture,
        count,
        size=thumbnail_size(count),
        on_progress=lambda done, total: on_progress("pictures", done, total),
    )
    files = MapFiles(
        folder / "scatter.png", folder / "grid.png", folder / "map.html", folder / "places.csv"
    )
    on_progress("files", 0, 4)
    write_whole(files.table, _table(layout.places, vectors))
    on_progress("files", 1, 4)
    scatter = draw_scatter(layout.places, classes, title=title, caption=caption)
    write_whole(files.scatter, scatter)
    on_progress("files", 2, 4)
    grid = lay_grid(layout.places)
    drawn = draw_grid(
        grid,
        thumbnails.image,
        title=title,
        classes=classes,
        tile_size=min(64, thumbnails.size),
    )
    save_picture(drawn, files.grid)
    on_progress("files", 3, 4)
    page = map_page(layout.places, vectors, classes, thumbnails, title=title, caption=caption)
    write_whole(files.page, page)
    on_progress("files", 4, 4)
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
