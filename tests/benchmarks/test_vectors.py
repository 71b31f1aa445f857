"""Synthetic vectors: what every user of them relies on, and the figures that they are judged by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import skew

from benchmarks import vector_files
from benchmarks.geometry import hubness, intrinsic_dimension, measure, nearest, variance_shares
from benchmarks.index_filters import at_random, whole_clusters
from benchmarks.vector_files import VectorFile
from benchmarks.vectors import BLOCK, Collection, clustered

DIM = 64


def test_rows_are_unit_and_non_negative_and_ready_for_faiss() -> None:
    blocks = list(clustered(BLOCK + 5, DIM, seed=3))
    assert [len(block) for block in blocks] == [BLOCK, 5]
    for block in blocks:
        assert block.dtype == np.float32
        assert block.flags.c_contiguous
        assert (block >= 0).all()
        np.testing.assert_allclose(np.linalg.norm(block, axis=1), 1, atol=1e-5)


def test_longer_draws_begin_with_the_shorter_ones_and_seeds_differ() -> None:
    few, many = (np.concatenate(list(clustered(n, DIM, seed=1))) for n in (100, BLOCK + 1))
    np.testing.assert_array_equal(few, many[:100])
    [other] = clustered(100, DIM, seed=2)
    assert not np.allclose(few, other)


def test_queries_are_no_rows_but_of_their_kind() -> None:
    collection = Collection(DIM)
    [(rows, clusters)] = collection.rows(2000)
    queries, kinds = collection.queries(300)
    scores = queries @ rows.T
    assert scores.max() < 1 - 1e-6
    assert not np.array_equal(collection.queries(BLOCK)[0], collection.block(0)[0])
    same = kinds[:, None] == clusters[None, :]
    assert scores[same].mean() > scores[~same].mean() + 0.2
    nearest_kind = clusters[scores.argmax(axis=1)]
    assert (nearest_kind == kinds).mean() > 20 * same.mean()


def test_neighborhoods_are_like_those_of_features_and_unlike_noise() -> None:
    made = measure(np.concatenate(list(clustered(3000, 512))))
    noise = np.abs(np.random.default_rng(0).standard_normal((3000, 512), dtype=np.float32))
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    plain = measure(noise)
    assert 5 < made.intrinsic_dimension < 15  # of a ResNet-18's features: 8 to 11
    assert plain.intrinsic_dimension > 40
    assert made.contrast > 2
    assert plain.contrast < 1.2
    assert made.recalls[4] > 0.7
    assert plain.recalls[4] < 0.4
    assert made.neighbor_cosines[1][1] > made.neighbor_cosines[100][1] > made.random_cosines[1]


def test_the_file_grows_and_is_kept(tmp_path: Path) -> None:
    file = VectorFile(tmp_path, DIM)
    first = np.array(file.vectors(100))
    written = file.path.stat().st_mtime_ns
    assert file.vectors(BLOCK).shape == (BLOCK, DIM)
    assert file.path.stat().st_mtime_ns == written
    more = file.vectors(BLOCK + 7)
    np.testing.assert_array_equal(first, more[:100])
    np.testing.assert_array_equal(more, np.concatenate(list(clustered(BLOCK + 7, DIM))))
    clusters = np.concatenate([kinds for _, kinds in Collection(DIM).rows(BLOCK + 7)])
    np.testing.assert_array_equal(file.clusters(BLOCK + 7), clusters)
    assert VectorFile(tmp_path, DIM, seed=1).path != file.path


def test_a_file_that_was_cut_short_is_mended(tmp_path: Path) -> None:
    file = VectorFile(tmp_path, DIM)
    whole = np.array(file.vectors(2 * BLOCK))
    with file.path.open("r+b") as torn:
        torn.truncate((BLOCK + 3) * DIM * 4 + 1)
    np.testing.assert_array_equal(file.vectors(2 * BLOCK), whole)


def test_a_disk_without_room_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_files, "_SPARE_BYTES", 2**62)
    with pytest.raises(SystemExit, match="--work"):
        VectorFile(tmp_path, DIM).vectors(10)
    assert list(tmp_path.iterdir()) == []


def test_intrinsic_dimension_of_a_ball_is_its_dimension() -> None:
    rng = np.random.default_rng(0)
    for dim in (2, 6):
        # Distances of uniform points of a ball to its center: the k nearest of many.
        radii = np.sort(rng.random((400, 5000)) ** (1 / dim), axis=1)[:, :100]
        cosines = (1 - radii**2 / 2).astype(np.float32)
        assert intrinsic_dimension(cosines) == pytest.approx(dim, rel=0.05)


def test_figures_of_a_small_set_by_hand() -> None:
    corner = np.eye(4, dtype=np.float32)
    scores, found = nearest(np.concatenate([corner, corner[:1]]), k=1)
    assert found[0, 0] == 4  # its copy
    assert found[4, 0] == 0
    assert scores[:, 0].tolist() == [1, 0, 0, 0, 1]
    found = np.random.default_rng(0).zipf(1.5, (500, 10)).clip(max=500) - 1
    counts = np.array([(found == row).sum() for row in range(500)])
    assert hubness(found) == pytest.approx(skew(counts))
    line = np.stack([np.linspace(-1, 1, 60), np.zeros(60), np.zeros(60)], axis=1)
    padded = np.pad(line, ((0, 0), (0, 60))).astype(np.float32)
    assert variance_shares(padded)[1] == pytest.approx(1)


def test_filters_keep_the_share_asked_for() -> None:
    clusters = np.repeat(np.arange(10, dtype=np.int32), 100)
    passing = whole_clusters(clusters, 0.25)
    counts = np.bincount(clusters[passing], minlength=10)
    assert sorted(counts.tolist(), reverse=True) == [100, 100, 50, 0, 0, 0, 0, 0, 0, 0]
    assert (np.diff(passing) > 0).all()
    drawn = at_random(1000, 0.1)
    assert len(drawn) == 100
    assert (np.diff(drawn) > 0).all()
    assert np.bincount(clusters[drawn], minlength=10).min() > 0
