"""A map of a set of pictures: positions by PCA and t-SNE, drawn in four files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count as count_up
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lookalike.cores import available_cores
from lookalike.errors import InvalidParameterError
from lookalike.extras import require_extra
from lookalike.progress import NO_PROGRESS, Progress
from lookalike.services.ranking import rank
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
from lookalike.visualization.pages import render, write_table, write_whole

_OVERSAMPLING = 20
_PASSES = 4
_TSNE_LEAST = 5
_TSNE_PARALLEL = 500  # below, threads that wait for each other cost more than they save
_TSNE_STEPS, _TSNE_REPORT = (250, 500), 50  # openTSNE's own phases, and how often it reports

Vectors = NDArray[np.float32]
Float64s = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Pca:
    """Vectors in the coordinates of their first principal components."""

    # (N, c) float32, centered, variances falling; the sign of each column is chosen so that its
    # entry of largest magnitude is positive
    coordinates: Vectors
    # share of the vectors' variance that the coordinates keep, 0 to 1; 1 where all vectors are the
    # same
    kept: float


def pca(
    vectors: Vectors,
    *,
    components: int = 100,
    seed: int = 0,
    exact_side: int = 5_000,
    block_bytes: int = 64 * 2**20,
) -> Pca:
    """Principal component analysis in bounded memory; the vectors are only read, in blocks.

    Exact (the eigenvectors of X X^T or X^T X, X being centered, whichever is smaller) as long as
    there are at most `exact_side` vectors or dimensions (5,000: 200 MB, seconds). Above both,
    randomized subspace iteration with 4 passes: Halko, Martinsson and Tropp 2011, algorithm 4.4.

    `vectors` are (N, dim), N >= 1, perhaps a read-only memory map; `components` is lowered to N - 1
    and to dim. The seed is of the randomized method alone. `block_bytes` of float64 are held at a
    time.
    """
    count, dim = vectors.shape
    components = max(1, min(components, count - 1, dim))
    blocks = _Centered(vectors, block_bytes)
    if min(count, dim) > exact_side:
        basis = _random_basis(blocks, (count, components + _OVERSAMPLING), seed=seed)
        squares, turned = _top(_squared(basis.T @ block for block in blocks.columns()), components)
        coordinates = basis @ (turned * np.sqrt(squares))
    elif count <= dim:
        squares, left = _top(_squared(blocks.columns()), components)
        coordinates = left * np.sqrt(squares)
    else:
        squares, axes = _top(_squared(block.T for block in blocks.rows()), components)
        coordinates = np.concatenate([block @ axes for block in blocks.rows()])
    largest = np.abs(coordinates).argmax(axis=0)
    signs = np.where(coordinates[largest, np.arange(components)] < 0, -1.0, 1.0)
    return Pca(
        coordinates=(coordinates * signs).astype(np.float32),
        kept=min(1.0, float(squares.sum() / blocks.squares)) if blocks.squares else 1.0,
    )


class _Centered:
    """The vectors less their mean, in blocks of float64.

    Attributes:
        squares: Sum of the squares of all numbers; 0 where all vectors are the same.
    """

    def __init__(self, vectors: Vectors, block_bytes: int) -> None:
        self._vectors = vectors
        self._block_bytes = block_bytes
        self._mean = vectors.mean(axis=0, dtype=np.float64)  # (dim,)
        self.squares = sum(float(np.einsum("ij,ij", block, block)) for block in self.rows())
        rounding = 16 * float(np.finfo(np.float64).eps * np.linalg.norm(self._mean))
        if self.squares <= len(vectors) * rounding**2:
            self.squares = 0.0

    def rows(self) -> Iterator[Float64s]:
        """Blocks (n, dim), from the first row to the last."""
        step = max(1, self._block_bytes // (8 * self._vectors.shape[1]))
        for start in range(0, len(self._vectors), step):
            yield self._vectors[start : start + step].astype(np.float64) - self._mean

    def columns(self) -> Iterator[Float64s]:
        """Blocks (N, d), from the first column to the last."""
        step = max(1, self._block_bytes // (8 * len(self._vectors)))
        for start in range(0, self._vectors.shape[1], step):
            part = slice(start, start + step)
            yield self._vectors[:, part].astype(np.float64) - self._mean[part]


def _squared(parts: Iterable[Float64s]) -> Float64s:
    """The sum of A A^T over all parts A."""
    total: Any = 0.0
    for part in parts:
        total += part @ part.T
    return np.asarray(total)


def _random_basis(blocks: _Centered, shape: tuple[int, int], *, seed: int) -> Float64s:
    """An orthonormal basis of nearly the span of X's first left singular vectors."""
    basis = np.random.default_rng(seed).standard_normal(shape)
    for _ in range(_PASSES):
        basis = np.linalg.qr(basis).Q
        product = np.zeros_like(basis)
        for block in blocks.columns():
            product += block @ (block.T @ basis)
        basis = product
    return np.linalg.qr(basis).Q


def _top(symmetric: Float64s, count: int) -> tuple[Float64s, Float64s]:
    """The largest eigenvalues of a matrix without negative ones, falling, and their vectors."""
    from scipy.linalg import eigh  # noqa: PLC0415 - as needed

    last = len(symmetric) - 1
    values, axes = eigh(symmetric, subset_by_index=(last - count + 1, last))
    return np.maximum(values[::-1], 0.0), axes[:, ::-1]


def tsne(
    coordinates: Vectors,
    *,
    seed: int = 0,
    perplexity: float = 30.0,
    progress: Progress = NO_PROGRESS,
) -> Vectors:
    """Places on a plane where near neighbors stay near: t-SNE, van der Maaten and Hinton 2008.

    It starts from the first two coordinates, so that the large order is that of the PCA, and is
    the same for the same seed on the same machine. Fewer than 5 pictures are placed by their
    first two coordinates alone.

    Args:
        coordinates: (N, c), of `pca`: the columns' variances fall.
        seed: Of the small noise that parts equal pictures, and of the search for neighbors.
        perplexity: About how many neighbors count; lowered to (N - 1) / 3.
        progress: Told how many steps are done.

    Returns:
        (N, 2) float32, finite, centered; the unit has no meaning.
    """
    count, width = coordinates.shape
    start = np.zeros((count, 2))
    start[:, :width] = coordinates[:, :2]
    start /= float(start[:, 0].std()) or 1.0
    if count < _TSNE_LEAST:
        return start.astype(np.float32)
    noise = np.random.default_rng(seed).standard_normal(start.shape)
    from openTSNE import TSNE  # noqa: PLC0415 - takes seconds

    reports = count_up(1)  # openTSNE's own step numbers start anew in each phase

    def report(*_: object) -> None:
        progress.report(next(reports) * _TSNE_REPORT, sum(_TSNE_STEPS))

    places = TSNE(
        perplexity=lowered_perplexity(perplexity, count),
        initialization=(start + 0.01 * noise) * 1e-4,
        n_jobs=available_cores() if count >= _TSNE_PARALLEL else 1,
        random_state=seed,
        callbacks=report,
        callbacks_every_iters=_TSNE_REPORT,
    ).fit(coordinates)
    result: Float64s = np.asarray(places, dtype=np.float64)
    centered: Float64s = result - result.mean(axis=0)
    return centered.astype(np.float32)


def lowered_perplexity(perplexity: float, count: int) -> float:
    """The perplexity that `count` pictures allow: at most a third of the others, at least 1."""
    return max(1.0, min(float(perplexity), (count - 1) / 3))


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
    count = len(vectors)
    near = rank(vectors, queries=np.arange(count), k=min(_NEIGHBORS, count - 1))
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
        "neighbors": near.positions.tolist(),
        "scores": np.round(near.scores, 4).tolist(),
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
    labels = [""] * count if vectors.labels is None else vectors.labels
    points = [(f"{x:.4f}", f"{y:.4f}") for x, y in layout.places.tolist()]
    rows = [(*each, *point) for *each, point in zip(vectors.ids, labels, points, strict=True)]
    write_table(files.table, ["id", "label", "x", "y"], rows)
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
