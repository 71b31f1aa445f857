"""The indexes that are compared: each finds what it should, before and after its file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.contestants import K, Ours, contestant, factory_of, is_ours, recall
from benchmarks.index_filters import at_random, compare, filters
from benchmarks.index_task import Task, single_ms, spread
from benchmarks.vectors import Collection

DIM = 32
COUNT = 1500


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    [(rows, _)] = Collection(DIM).rows(COUNT)
    return np.ascontiguousarray(rows)


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return Collection(DIM).queries(60)[0]


def nearest(vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    return np.argsort(-(queries @ vectors.T), axis=1)[:, :K]


@pytest.mark.parametrize("name", ["IVF8,SQ8", "hnswlib", "usearch"])
def test_each_finds_the_neighbors_from_its_file(
    name: str, vectors: np.ndarray, queries: np.ndarray, tmp_path: Path
) -> None:
    if not is_ours(name):
        pytest.importorskip(name)
    truth = nearest(vectors, queries)
    made = contestant(name)
    assert (made.build(vectors, threads=1) > 0) == is_ours(name)
    made.save(tmp_path)
    read = contestant(name)
    read.load(tmp_path, vectors)
    read.tune(queries[:30], truth[:30])
    found = read.search(queries[30:])
    assert found.shape == (30, K)
    assert recall(found, truth[30:]) > 0.97
    assert name.split(",", maxsplit=1)[0] in read.describe()


def test_recall_is_the_share_of_the_truth_that_is_found() -> None:
    rng = np.random.default_rng(0)
    found, truth = (np.array([rng.permutation(15)[:K] for _ in range(20)]) for _ in range(2))
    found[0] = -1
    slowly = [len(set(one) & set(other)) / K for one, other in zip(found, truth, strict=True)]
    assert recall(found, truth) == pytest.approx(sum(slowly) / 20)


def test_auto_stays_exact_where_that_is_quick() -> None:
    assert factory_of("auto", 1000, 2048) is None
    assert factory_of("IVF8,SQ8", 1000, 2048) == "IVF8,SQ8"
    factory = factory_of("auto", 1_000_000, 2048)
    assert factory is not None
    assert "IVF" in factory


def test_filtered_searches_are_compared_over_the_same_rows(
    vectors: np.ndarray, queries: np.ndarray
) -> None:
    ours = Ours("IVF8,SQ8")
    ours.build(vectors, threads=1)
    figures = compare(ours, vectors, queries[:5], at_random(COUNT, 0.1))
    assert figures["recall"] == 1
    assert min(figures[name] or 0 for name in ("ours_ms", "exact_ms", "numpy_ms")) > 0


def test_every_share_of_the_rows_is_filtered_both_ways(tmp_path: Path) -> None:
    task = Task(str(tmp_path), COUNT, DIM, "IVF8,SQ8")
    ours = Ours(task.name)
    ours.build(task.file.vectors(COUNT), threads=1)
    task.folder.mkdir()
    ours.save(task.folder)
    found = filters(task)["filters"]
    rows = [(one["kind"], one["rows"]) for one in found]
    assert rows == [(kind, n) for n in (2, 15, 150, 750) for kind in ("at random", "as clusters")]


def test_single_queries_are_timed_one_by_one(queries: np.ndarray) -> None:
    asked: list[np.ndarray] = []
    times = single_ms(asked.append, queries[:3], rounds=2)
    assert len(times) == 6
    assert [len(one) for one in asked] == [1] * 7  # the first is not counted
    np.testing.assert_array_equal(asked[2], queries[1:2])
    assert spread([1.0, 2.0, 9.0]) == {"p50": 2.0, "p99": 9.0}
