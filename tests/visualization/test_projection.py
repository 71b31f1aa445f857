"""PCA against scikit-learn's, and t-SNE on awkward inputs."""

from __future__ import annotations

import numpy as np
import pytest

from lookalike.progress import Progress
from lookalike.visualization.map import lowered_perplexity, pca, tsne


def made(count: int, dim: int, *, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    scales = np.linspace(3, 0.1, dim)
    return (rng.standard_normal((count, dim)) * scales + rng.standard_normal(dim)).astype("float32")


def assert_agrees(vectors: np.ndarray, components: int, **options: int) -> None:
    from sklearn.decomposition import PCA

    reference = PCA(n_components=components, svd_solver="full")
    expected = reference.fit_transform(vectors.astype(np.float64))
    found = pca(vectors, components=components, **options)
    signs = np.sign((found.coordinates * expected).sum(axis=0))
    np.testing.assert_allclose(found.coordinates * signs, expected, atol=2e-5)
    largest = np.abs(found.coordinates).argmax(axis=0)
    assert (found.coordinates[largest, np.arange(components)] > 0).all()
    variances = found.coordinates.var(axis=0, ddof=1, dtype=np.float64)
    np.testing.assert_allclose(variances, reference.explained_variance_, rtol=1e-6)
    assert found.kept == pytest.approx(reference.explained_variance_ratio_.sum(), abs=1e-6)
    assert found.coordinates.dtype == np.float32


@pytest.mark.parametrize(("count", "dim"), [(30, 200), (200, 30), (50, 50)])
@pytest.mark.parametrize("block_bytes", [1, 50_000, 1 << 26])
def test_pca_agrees_with_scikit_learn(count, dim, block_bytes):
    assert_agrees(made(count, dim), components=10, block_bytes=block_bytes)


def test_pca_of_a_large_set_agrees_where_the_variances_fall():
    rng = np.random.default_rng(1)
    few = rng.standard_normal((300, 8)) @ np.diag(2.0 ** -np.arange(8)) @ made(8, 90)
    vectors = (few + 1e-3 * rng.standard_normal((300, 90))).astype(np.float32)
    assert_agrees(vectors, components=4, exact_side=20)


def test_pca_reads_a_read_only_memory_map(tmp_path):
    vectors = made(40, 300)
    np.save(tmp_path / "vectors.npy", vectors)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    np.testing.assert_array_equal(pca(mapped).coordinates, pca(vectors).coordinates)


def test_more_components_than_there_are_is_lowered():
    assert pca(made(6, 40)).coordinates.shape == (6, 5)
    assert pca(made(40, 6)).coordinates.shape == (40, 6)
    assert pca(made(40, 6)).kept == pytest.approx(1.0)


@pytest.mark.parametrize("count", [1, 2, 30])
@pytest.mark.parametrize("dim", [4, 50])
def test_pca_of_the_same_vector_again_and_again(count, dim):
    found = pca(np.tile(made(1, dim), (count, 1)))
    assert found.kept == 1.0
    np.testing.assert_allclose(found.coordinates, 0, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 9])
@pytest.mark.parametrize("kind", ["different", "same", "doubled"])
def test_few_pictures_get_places(count, kind):
    vectors = made(count, 8)
    if kind == "same":
        vectors[:] = vectors[0]
    if kind == "doubled":
        vectors[count // 2 :] = vectors[: count - count // 2]
    places = tsne(pca(vectors).coordinates)
    assert places.shape == (count, 2)
    assert places.dtype == np.float32
    assert np.isfinite(places).all()


def test_the_seed_decides_the_places_and_groups_stay_together():
    rng = np.random.default_rng(3)
    group = np.repeat(np.arange(4), 20)
    vectors = (10 * rng.standard_normal((4, 12))[group] + rng.standard_normal((80, 12))).astype("f")
    coordinates = pca(vectors).coordinates
    calls: list[tuple[int, int]] = []
    places = tsne(coordinates, seed=1, progress=Progress(lambda _, *call: calls.append(call)))
    assert calls == [(done, 750) for done in range(50, 751, 50)]
    np.testing.assert_array_equal(places, tsne(coordinates, seed=1))
    assert not np.array_equal(places, tsne(coordinates, seed=2))
    away = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(away, np.inf)
    np.testing.assert_array_equal(group[away.argmin(axis=1)], group)


def test_the_perplexity_is_lowered_for_few_pictures():
    assert lowered_perplexity(30, 10_000) == 30
    assert lowered_perplexity(30, 31) == 10
    assert lowered_perplexity(30, 2) == 1
