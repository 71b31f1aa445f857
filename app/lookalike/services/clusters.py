"""Groups of pictures that look alike: k-means on their vectors."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InvalidParameterError
from lookalike.extras import require_extra
from lookalike.progress import NO_PROGRESS, Progress
from lookalike.services.vector_set import VectorSet
from lookalike.store.base import Vectors

TRIED = (2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50)  # groups, where no number is given
MAX_CLUSTERS = 1000  # that can be asked for
_SIZE = 5  # pictures in a group on average, at least, where the number is chosen

Labels = NDArray[np.int64]
"""The group of each picture, (N,) int64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes above which grouping works on samples and on shortened vectors."""

    sample: int = 2_000  # pictures by which numbers of groups are compared
    longest: int = 4_096  # numbers in a vector; longer ones are brought to `kept` by PCA
    kept: int = 256
    fitted: int = 10_000  # pictures by which PCA is fitted
    whole: int = 20_000  # pictures that k-means sees in each step; of more, it takes samples


SIZES = Sizes()


@dataclass(frozen=True, slots=True)
class Cluster:
    """Pictures of one group, the most central first."""

    positions: NDArray[np.int64]  # (n,), into the vector set
    scores: NDArray[np.float32]  # (n,), the cosine of each with the group's mean direction

    def __len__(self) -> int:
        return len(self.positions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clusters:
    """All groups, the largest first; every picture is in exactly one.

    `purity` is the share of pictures whose label is their group's most frequent one: it grows with
    the number of groups by itself. It and `nmi` are None without labels.
    """

    groups: list[Cluster]
    tried: dict[int, float] = field(default_factory=dict)  # mean silhouettes, in [-1, 1]
    purity: float | None = None
    nmi: float | None = None  # normalized mutual information of groups and labels, in [0, 1]

    def of_pictures(self) -> Labels:
        """The place of each picture's group, from 0: (N,) int64."""
        labels = np.empty(sum(map(len, self.groups)), dtype=np.int64)
        for number, group in enumerate(self.groups):
            labels[group.positions] = number
        return labels


def cluster_pictures(
    vectors: VectorSet,
    *,
    clusters: int | None = None,
    seed: int = 0,
    progress: Progress = NO_PROGRESS,
    sizes: Sizes = SIZES,
) -> Clusters:
    """Groups pictures by k-means on their unit vectors, which compares cosines.

    Vectors of more than 4,096 numbers are brought to 256 by PCA first. Beyond 20,000 pictures,
    k-means goes by samples (Sculley, Web-scale k-means clustering, 2010).

    Where no number of groups is given, the one of `TRIED` with the highest mean silhouette is
    taken (Rousseeuw, Silhouettes, J. Comput. Appl. Math. 20, 1987), over 2,000 pictures chosen
    by the seed; at most one group for five pictures. The silhouette favors few, well separated
    groups: it is a start, not a truth.

    There are fewer groups than asked for where pictures have equal vectors.

    Raises:
        InvalidParameterError: Too few pictures, or a number of groups that cannot be.
        ConfigurationError: The extra `viz` is not installed.
    """
    require_extra("viz", "grouping pictures")
    count = len(vectors)
    if count < 2:
        raise InvalidParameterError(f"{count} pictures cannot be grouped; index some more first")
    most = min(count, MAX_CLUSTERS)
    if clusters is not None and not 1 <= clusters <= most:
        raise InvalidParameterError(f"clusters is {clusters}; choose from 1 to {most}")
    rows = _shortened(vectors.vectors, sizes, seed=seed)
    tried: dict[int, float] = {}
    if clusters is None:
        tried = _silhouettes(rows, sizes, seed=seed, progress=progress)
        clusters = max(tried, key=lambda number: (tried[number], -number)) if tried else 1
    labels = _k_means(rows, clusters, sizes, seed=seed)
    found = Clusters(groups=_groups(vectors.vectors, labels), tried=tried)
    if vectors.labels is None:
        return found
    purity, nmi = _agreement(found.of_pictures(), vectors.labels)
    return replace(found, purity=purity, nmi=nmi)


def _shortened(rows: Vectors, sizes: Sizes, *, seed: int) -> Vectors:
    """Rows that k-means can work with: (N, at most `longest`) float32."""
    if rows.shape[1] <= sizes.longest:
        return rows
    from sklearn.decomposition import PCA  # noqa: PLC0415 - slow to import

    fitted = rows[_chosen(len(rows), sizes.fitted, seed=seed)]
    pca = PCA(min(sizes.kept, len(fitted) - 1), svd_solver="randomized", random_state=seed)
    pca.fit(fitted)
    step = max(1, 2**26 // rows.shape[1])
    parts = [pca.transform(rows[start : start + step]) for start in range(0, len(rows), step)]
    return np.concatenate(parts).astype(np.float32)


def _k_means(rows: Vectors, clusters: int, sizes: Sizes, *, seed: int) -> Labels:
    from sklearn.cluster import KMeans, MiniBatchKMeans  # noqa: PLC0415 - slow to import
    from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415

    if len(rows) <= sizes.whole:
        model = KMeans(clusters, n_init=4, random_state=seed)
    else:
        model = MiniBatchKMeans(clusters, n_init=4, batch_size=4096, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct vectors than groups
        return np.asarray(model.fit_predict(rows), dtype=np.int64)


def _silhouettes(rows: Vectors, sizes: Sizes, *, seed: int, progress: Progress) -> dict[int, float]:
    """The mean silhouette of each number of groups that can be tried on a sample."""
    from sklearn.metrics import silhouette_score  # noqa: PLC0415 - slow to import
    from sklearn.metrics.pairwise import euclidean_distances  # noqa: PLC0415

    sample = rows[_chosen(len(rows), sizes.sample, seed=seed)]
    apart = euclidean_distances(sample)  # (n, n)
    most = max(2, len(sample) // _SIZE)
    numbers = [number for number in TRIED if number <= most and number < len(sample)]
    tried = {}
    for done, number in enumerate(numbers, start=1):
        labels = _k_means(sample, number, sizes, seed=seed)
        if 1 < len(np.unique(labels)) < len(sample):
            tried[number] = float(silhouette_score(apart, labels, metric="precomputed"))
        progress.report(done, len(numbers))
        progress.check()
    return tried


def _chosen(count: int, most: int, *, seed: int) -> NDArray[np.int64]:
    """Positions of at most so many rows, in order, chosen by the seed."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))


def _groups(rows: Vectors, labels: Labels) -> list[Cluster]:
    groups = []
    for label in np.unique(labels):
        positions = np.flatnonzero(labels == label)
        center = rows[positions].mean(axis=0, dtype=np.float64)
        center /= max(float(np.linalg.norm(center)), 1e-12)
        scores = (rows[positions] @ center.astype(np.float32)).astype(np.float32)
        order = np.lexsort((positions, -scores))
        groups.append(Cluster(positions[order], scores[order]))
    return sorted(groups, key=lambda group: (-len(group), int(group.positions.min())))


def _agreement(groups: Labels, labels: Sequence[str]) -> tuple[float, float]:
    """Purity, and mutual information normalized by the arithmetic mean of the entropies.

    As in Manning, Raghavan and Schuetze, Introduction to Information Retrieval, 2008, ch. 16.3.
    """
    from sklearn.metrics import normalized_mutual_info_score  # noqa: PLC0415 - slow to import
    from sklearn.metrics.cluster import contingency_matrix  # noqa: PLC0415

    names = list(labels)
    purity = contingency_matrix(names, groups).max(axis=0).sum() / len(names)
    return float(purity), float(normalized_mutual_info_score(names, groups))
