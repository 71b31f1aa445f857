"""Synthetic vectors that lie in space as a network's features do, for tests of size.

A picture's features before the last ReLU are drawn as `offset + latent @ basis + noise`:

- `offset` has one number for each dimension, so that some dimensions are mostly 0 and some are not;
- `latent` has few dimensions, as features do, with variances that fall as a power of the rank: a
  group's center, in it a cluster's center, and around it the picture. Sizes of groups and clusters
  follow Zipf's law, each cluster has a shape and a width of its own, and each picture a distance;
- `noise` is the same in all directions.

The ReLU makes the features non-negative and many of them 0, and the rows are brought to length 1.
How near that comes to real features is measured by `python -m benchmarks.likeness`, with which the
constants were chosen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 8192  # rows
_ROWS, _QUERIES = 0, 1  # streams of random numbers


@dataclass(frozen=True, slots=True)
class Constants:
    """What the distribution is made of.

    Attributes:
        groups: Kinds of pictures.
        clusters: Kinds of pictures within those.
        latent: Dimensions that features vary along, at most `dim`.
        zipf: The i-th largest group or cluster has a size in proportion to i ** -zipf.
        between_decay: The j-th latent variance of the centers is in proportion to
            (j + flat) ** -decay.
        within_decay: The same of pictures around their cluster's center.
        flat: About how many of the first latent variances are nearly the same.
        group_spread: Total variance of the groups' centers, as that of everything below it.
        cluster_spread: Total variance of the clusters' centers around their group's.
        picture_spread: Total variance of the pictures around their cluster's center.
        shape: Standard deviation of the logarithm of a cluster's own factor on each latent
            dimension.
        width: The same of a cluster's factor on all of them, and of each picture's.
        noise: Total variance in all directions.
        offset_mean: Mean of the offsets, where the features' own variance is about 1 a dimension.
        offset_deviation: Their standard deviation.
    """

    groups: int = 16
    clusters: int = 300
    latent: int = 192
    zipf: float = 0.5
    between_decay: float = 2.5
    within_decay: float = 2.05
    flat: float = 2.1
    group_spread: float = 0.85
    cluster_spread: float = 0.21
    picture_spread: float = 0.43
    shape: float = 0.43
    width: float = 0.015
    noise: float = 0.0007
    offset_mean: float = 0.25
    offset_deviation: float = 0.1


class Collection:
    """One distribution of vectors; longer draws begin with the shorter ones.

    Args:
        dim: Dimensions of a vector.
        seed: Of everything.
        constants: What the distribution is made of.
    """

    def __init__(self, dim: int, *, seed: int = 0, constants: Constants | None = None) -> None:
        self.dim = dim
        self._seed = seed
        self._constants = chosen = constants or Constants()
        rng = np.random.default_rng(seed)
        latent = min(chosen.latent, dim)
        between, self._within = (
            np.sqrt(powers(latent, decay, first=1 + chosen.flat) * latent).astype(np.float32)
            for decay in (chosen.between_decay, chosen.within_decay)
        )
        groups = normal(rng, chosen.groups, latent) * between * chosen.group_spread**0.5
        parents = rng.choice(chosen.groups, chosen.clusters, p=powers(chosen.groups, chosen.zipf))
        own = normal(rng, chosen.clusters, latent) * between * chosen.cluster_spread**0.5
        self._centers = groups[parents] + own  # (clusters, latent)
        shapes = np.exp(chosen.shape * normal(rng, chosen.clusters, latent))
        widths = np.exp(chosen.width * normal(rng, chosen.clusters, 1))
        self._shapes = shapes / np.sqrt((shapes**2 * self._within**2).mean(axis=1, keepdims=True))
        self._shapes *= self._within * widths * chosen.picture_spread**0.5
        self._shares = powers(chosen.clusters, chosen.zipf)
        self._basis = normal(rng, latent, dim) / np.float32(latent**0.5)  # (latent, dim)
        self._offsets = chosen.offset_mean + chosen.offset_deviation * normal(rng, 1, dim)

    @property
    def digest(self) -> str:
        """Names the distribution: the same only where every vector is."""
        about = repr((self.dim, self._seed, self._constants)).encode()
        return f"{self.dim}-{hashlib.sha256(about).hexdigest()[:8]}"

    def rows(self, count: int) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int32]]]:
        """The first vectors of the collection, in blocks.

        Yields:
            (n, dim) float32, C-contiguous, rows of length 1; and the cluster of each, (n,) int32.
        """
        for number, start in enumerate(range(0, count, BLOCK)):
            vectors, clusters = self.block(number)
            yield vectors[: count - start], clusters[: count - start]

    def block(self, number: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Rows number * BLOCK to (number + 1) * BLOCK, and their clusters; in any order."""
        return self._draw(BLOCK, np.random.default_rng((self._seed, _ROWS, number)))

    def queries(self, count: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Vectors of the same distribution that are not among the rows, with their clusters."""
        return self._draw(count, np.random.default_rng((self._seed, _QUERIES)))

    def _draw(
        self, count: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        chosen = self._constants
        clusters = rng.choice(len(self._shares), count, p=self._shares).astype(np.int32)
        latent = normal(rng, count, self._basis.shape[0]) * self._shapes[clusters]
        latent *= np.exp(chosen.width * normal(rng, count, 1))
        latent += self._centers[clusters]
        vectors = normal(rng, count, self.dim)
        vectors *= np.float32(chosen.noise**0.5)
        vectors += latent @ self._basis
        vectors += self._offsets
        np.maximum(vectors, 0, out=vectors)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors, clusters


def clustered(count: int, dim: int, *, seed: int = 0) -> Iterator[NDArray[np.float32]]:
    """The first `count` vectors of a collection, in blocks of (n, dim) float32, rows of length 1.

    Args:
        count: How many in all.
        dim: Dimensions of a vector.
        seed: The same seed gives the same vectors; more of them begin with the fewer.
    """
    return (vectors for vectors, _ in Collection(dim, seed=seed).rows(count))


def powers(count: int, decay: float, *, first: float = 1.0) -> NDArray[np.float64]:
    """The series first ** -decay, (first + 1) ** -decay, ...: (count,), scaled to the sum 1."""
    values = (first + np.arange(count)) ** -decay
    return np.asarray(values / values.sum())


def normal(rng: np.random.Generator, rows: int, columns: int) -> NDArray[np.float32]:
    """Standard normal numbers, (rows, columns)."""
    return rng.standard_normal((rows, columns), dtype=np.float32)
