"""Figures that say how a set of vectors lies in space, as far as nearest-neighbor search feels it.

All are over unit vectors, where a cosine c and a Euclidean distance d say the same: d² = 2 - 2c.
"""

from __future__ import annotations

from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

NEIGHBORS = 100
RANKS = (1, 10, 100)
COMPONENTS = (1, 10, 50)
PROBES = (1, 2, 4, 8, 16)
K = 10
BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Geometry:
    """What was measured over N vectors, each against the N - 1 others.

    Attributes:
        neighbor_cosines: rank -> (5%, 50%, 95%) quantiles of the cosine to the neighbor of that
            rank.
        random_cosines: The same of the cosine to a vector drawn at random.
        intrinsic_dimension: Median over the vectors of the maximum likelihood estimate from the
            distances d to the k = 100 nearest, -1 / mean(ln(d_i / d_k)): Levina and Bickel,
            Maximum Likelihood Estimation of Intrinsic Dimension, 2004; Amsaleg et al.,
            Estimating Local Intrinsic Dimensionality, 2015.
        variance_shares: count -> share of the total variance along the first principal components.
        hubness: Skewness of how often a vector is among the 10 nearest of others: Radovanović et
            al., Hubs in Space, 2010. 0 for none.
        contrast: Mean distance to a random vector by mean distance to the nearest: He et al., On
            the Difficulty of Nearest Neighbor Search, 2012. 1 is hopeless for any index.
        recalls: nprobe -> recall@10 of an inverted file with `lists` lists, exact within them.
        lists: Its number of lists, 4 times the square root of N.
        zeros: Share of the numbers that are 0.
    """

    neighbor_cosines: dict[int, tuple[float, float, float]]
    random_cosines: tuple[float, float, float]
    intrinsic_dimension: float
    variance_shares: dict[int, float]
    hubness: float
    contrast: float
    recalls: dict[int, float]
    lists: int
    zeros: float


def measure(vectors: NDArray[np.float32], *, seed: int = 0) -> Geometry:
    """Measures a set of vectors.

    Args:
        vectors: (N, dim), rows of length 1, N > 100. Up to about 20,000: every pair is looked at.
        seed: For the random pairs.
    """
    scores, neighbors = nearest(vectors, k=NEIGHBORS)
    rng = np.random.default_rng(seed)
    others = (np.arange(len(vectors)) + rng.integers(1, len(vectors), len(vectors))) % len(vectors)
    at_random = np.einsum("nd,nd->n", vectors, vectors[others])  # (N,)
    lists = round(4 * len(vectors) ** 0.5)
    return Geometry(
        neighbor_cosines={rank: quantiles(scores[:, rank - 1]) for rank in RANKS},
        random_cosines=quantiles(at_random),
        intrinsic_dimension=intrinsic_dimension(scores),
        variance_shares=variance_shares(vectors),
        hubness=hubness(neighbors[:, :K]),
        contrast=float(distances(at_random).mean() / distances(scores[:, 0]).mean()),
        recalls=inverted_file_recalls(vectors, neighbors[:, :K], lists=lists),
        lists=lists,
        zeros=float((vectors == 0).mean()),
    )


def nearest(
    vectors: NDArray[np.float32], *, k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k nearest others of each vector: cosines and positions, both (N, k), best first."""
    scores, found = faiss.knn(vectors, vectors, k + 1, metric=faiss.METRIC_INNER_PRODUCT)
    itself = found == np.arange(len(vectors))[:, None]
    itself[~itself.any(axis=1), -1] = True  # an equal vector came before it
    return scores[~itself].reshape(-1, k), found[~itself].reshape(-1, k)


def distances(cosines: NDArray[np.float32]) -> NDArray[np.float64]:
    """Euclidean distances of unit vectors."""
    return np.sqrt(np.maximum(2 - 2 * cosines.astype(np.float64), 0))


def quantiles(values: NDArray[np.float32]) -> tuple[float, float, float]:
    """5%, 50% and 95%."""
    low, middle, high = np.quantile(values, (0.05, 0.5, 0.95))
    return float(low), float(middle), float(high)


def intrinsic_dimension(scores: NDArray[np.float32]) -> float:
    """See `Geometry`; neighbors at distance 0 are left out.

    Args:
        scores: (N, k) cosines to the nearest, best first.
    """
    apart = distances(scores)  # (N, k)
    apart = np.where(apart > 1e-6, apart, np.nan)
    logs = np.nanmean(np.log(apart[:, :-1] / apart[:, -1:]), axis=1)  # (N,)
    return float(np.nanmedian(-1 / logs))


def variance_shares(vectors: NDArray[np.float32]) -> dict[int, float]:
    """See `Geometry`."""
    centered = vectors - vectors.mean(axis=0)
    shares = np.linalg.eigvalsh(centered.T @ centered)[::-1]
    return {count: float(shares[:count].sum() / shares.sum()) for count in COMPONENTS}


def hubness(neighbors: NDArray[np.int64]) -> float:
    """See `Geometry`; neighbors is (N, 10)."""
    counts = np.bincount(neighbors.ravel(), minlength=len(neighbors)).astype(np.float64)
    deviations = counts - counts.mean()
    return float((deviations**3).mean() / (deviations**2).mean() ** 1.5)


def inverted_file_recalls(
    vectors: NDArray[np.float32], neighbors: NDArray[np.int64], *, lists: int
) -> dict[int, float]:
    """See `Geometry`.

    Args:
        vectors: (N, dim).
        neighbors: (N, 10), the nearest others of each.
        lists: How many lists.
    """
    quantizer = faiss.IndexFlatIP(vectors.shape[1])
    index = faiss.IndexIVFFlat(quantizer, vectors.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.spherical = True
    index.cp.min_points_per_centroid = 1  # no warning
    index.train(vectors)
    index.add(vectors)
    recalls = {}
    for probes in PROBES:
        index.nprobe = probes
        _, found = index.search(vectors, K + 1)
        hits = (neighbors[:, :, None] == found[:, None, :]).any(axis=2)  # (N, 10)
        recalls[probes] = float(hits.mean())
    return recalls
