"""Trying index types: what is measured is what a plain computation gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookalike.errors import ConfigurationError
from lookalike.progress import Progress
from lookalike.records import Effort
from lookalike.store.base import Vectors
from lookalike.store.local.index import calibration
from lookalike.store.local.index.calibration import moved_rows, tune
from lookalike.store.local.index.policy import (
    AUTO,
    IndexPolicy,
    check_index_type,
    default_candidates,
)
from lookalike.store.local.index.segments import ExactSegment
from lookalike.store.tuning import Goal, Point, Trial, Tuning, pareto
from tests.store.helpers import unit_vectors


def clustered(count: int, *, dim: int = 16, clusters: int = 12) -> Vectors:
    """(count, dim) float32 unit vectors around a few centers."""
    centers = unit_vectors(clusters, dim=dim, seed=1)
    rows = centers[np.arange(count) % clusters] + 0.15 * unit_vectors(count, dim=dim, seed=2)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_what_is_measured_of_an_inverted_file():
    vectors = unit_vectors(600, dim=12)
    seen: list[tuple[str, int, int]] = []
    found = tune(
        vectors,
        candidates=["IVF8,Flat", "Flat"],
        k=5,
        queries=100,
        progress=Progress(lambda *step: seen.append(step)),
    )
    exact, trial = found.trials
    assert (exact.index, exact.bytes, exact.points[0].recall) == ("Flat", 4 * 12 * 600, 1.0)
    assert found.exact_ms > 0
    assert (found.rows, found.measured, found.dim, found.k, found.queries) == (600, 600, 12, 5, 100)
    recalls = {str(point.effort): point.recall for point in trial.points}
    assert recalls["nprobe=1,k_factor=1"] < 0.8
    assert recalls["nprobe=8,k_factor=1"] == 1.0  # all lists
    assert sorted(recalls.values()) == [p.recall for p in trial.points]
    assert all(point.ms > 0 for point in trial.points)
    assert trial.bytes == pytest.approx(600 * (4 * 12 + 8), rel=0.1)  # vectors and row numbers
    assert trial.build_s > 0
    assert {stage for stage, _, _ in seen} == {"Flat", "IVF8,Flat"}
    assert all(done <= total == 600 for _, done, total in seen)
    assert seen[-1] == ("IVF8,Flat", 600, 600)


def test_recall_is_that_of_a_plain_computation():
    """Rows cut to 8 numbers, all looked at: the best by a plain PCA are scored exactly."""
    vectors = unit_vectors(400, dim=32, seed=5)
    found = tune(vectors, candidates=["PCA8,Flat"], k=5, queries=400, seed=3)
    point = found.trials[1].points[0]
    assert point.effort == Effort(k_factor=1)

    rng = np.random.default_rng(3)
    rng.choice(400, 400, replace=False)  # the rows that ask: all of them
    exact = ExactSegment(32, vectors, np.arange(400))
    queries = moved_rows(exact, np.arange(400), rng)
    mean = vectors.mean(axis=0)
    axes = np.linalg.svd(vectors - mean, full_matrices=False)[2][:8].T
    cut, asked = (vectors - mean) @ axes, (queries - mean) @ axes
    shares = []
    for own in range(400):
        scores = vectors @ queries[own]
        scores[own] = -2
        true = set(np.argsort(-scores)[:5].tolist())
        near = np.argsort(((cut - asked[own]) ** 2).sum(axis=1))
        candidates = [n for n in near.tolist() if n != own][: 5 + 16]  # 16 are spare
        best = sorted(candidates, key=lambda n: -scores[n])[:5]
        shares.append(len(true & set(best)) / 5)
    assert point.recall == pytest.approx(np.mean(shares), abs=0.01)
    assert 0.3 < point.recall < 0.95


def test_more_candidates_are_taken_while_they_help():
    """Vectors cut to a quarter: the order of candidates is poor, and there are no lists."""
    (_, trial) = tune(unit_vectors(2000, dim=24), candidates=["PCA6,Flat"], queries=60).trials
    factors = [point.effort.k_factor for point in trial.points]
    recalls = [point.recall for point in trial.points]
    assert factors == [1, 2, 4, 8, 16, 32, 64]
    assert recalls == sorted(recalls)
    assert recalls[0] < 0.7
    assert 0.9 < recalls[-1] < 0.9995
    fastest = trial.fastest(0.9)
    assert fastest is not None
    assert fastest.recall >= 0.9


def test_equal_pictures_are_no_misses():
    """Each vector twenty times: which twins are found is no merit."""
    vectors = np.repeat(unit_vectors(30, dim=8), 20, axis=0)
    found = tune(vectors, candidates=["IVF2,SQ8"], k=10, queries=60)
    surest = found.trials[1].surest()
    assert surest is not None
    assert surest.recall == 1.0


def test_harder_looks_end_where_everything_is_found():
    found = tune(clustered(1500), candidates=["IVF16,SQ8", "HNSW16,Flat", "SQ8"], queries=50)
    for trial in found.trials:
        assert trial.problem is None
        surest = trial.surest()
        assert surest is not None
        assert surest.recall > 0.99
        below = [point for point in trial.points if point.recall < 0.9995]
        assert len(trial.points) - len(below) <= 1


def test_a_type_that_cannot_be_built_harms_no_other():
    found = tune(clustered(100), candidates=["IVF4096,SQ8", "IVF4,SQ8"], queries=20)
    assert [trial.problem is None for trial in found.trials] == [True, False, True]
    assert found.trials[1].fastest(0.0) is None
    assert found.trials[1].surest() is None
    assert found.recommended(Goal(recall=0.9)) is not found.trials[1]


def test_a_type_that_cannot_be_searched_harms_no_other():
    found = tune(clustered(2000), candidates=["HNSW8_8+PQ4", "IVF4,SQ8"], queries=20)
    assert [trial.problem is None for trial in found.trials] == [True, False, True]


def test_what_is_tried_unless_it_is_said():
    found = tune(clustered(2000), rows=1_000_000, queries=20)
    assert [trial.setting for trial in found.trials] == [
        "Flat",
        *default_candidates(1_000_000, 16),
    ]
    assert [trial.index for trial in found.trials[1:]] == default_candidates(2000, 16)
    assert not [trial.problem for trial in found.trials if trial.problem]
    assert found.trials[0].bytes == 1_000_000 * 4 * 16
    assert (found.rows, found.measured) == (1_000_000, 2000)


@pytest.mark.parametrize("index", ["PCAR32,SQ8", "HNSW16,Flat", "IVF20,SQ8", "PCAR32,IVF8,PQ8x4fs"])
def test_the_size_for_all_is_that_of_an_index_of_all(index):
    vectors = clustered(4000, dim=64)
    (_, estimated) = tune(vectors[:2000], rows=4000, candidates=[index], queries=5).trials
    (_, built) = tune(vectors, candidates=[index], queries=5).trials
    assert estimated.bytes == pytest.approx(built.bytes, rel=0.05)


def test_default_candidates_by_size_and_length():
    assert default_candidates(1_000_000, 2048) == [
        "PCAR256,IVF4096,SQ8",
        "PCAR256,IVF4096,PQ128x4fs",
        "PCAR256,HNSW32,SQ8",
        "PCAR256,SQ8",
        "PCAR128,IVF4096,SQ8",
    ]
    assert "IVF1024,SQ8" in default_candidates(100_000, 512)
    assert default_candidates(100_000, 100_352)[0] == "RR256,IVF1024,SQ8"
    assert default_candidates(15_000, 128)[0] == "IVF256,SQ8"
    assert not [name for name in default_candidates(10_000, 27) if "PQ" in name]
    assert default_candidates(10, 8)[0] == "IVF1,SQ8"


@pytest.mark.parametrize("dim", [64, 512, 2048, 5000])
@pytest.mark.parametrize("rows", [10_000, 15_000, 16_000, 19_968, 70_000, 1_000_000])
def test_what_is_tried_and_chosen_by_default_can_be_built_of_so_many(rows: int, dim: int):
    tried = [check_index_type(one) for one in default_candidates(rows, dim)]
    automatic = IndexPolicy(index_type=AUTO, memory=10**12).plan(rows, dim).factory
    for one in tried if automatic is None else [*tried, automatic]:
        assert IndexPolicy(index_type=one).plan(rows, dim).factory == one


def test_a_build_without_memory_is_a_problem_of_its_own(monkeypatch: pytest.MonkeyPatch):
    def no_memory(*_: object, **__: object) -> None:
        raise MemoryError("std::bad_alloc")

    monkeypatch.setattr(calibration, "build_candidates", no_memory)
    (_, failed) = tune(clustered(100), candidates=["SQ8"], queries=20).trials
    assert failed.problem == "std::bad_alloc"


@pytest.mark.parametrize("count", [1, 49])
def test_too_few_pictures(count):
    with pytest.raises(ConfigurationError, match="too few"):
        tune(unit_vectors(count))


def test_no_index_type():
    with pytest.raises(ConfigurationError, match="no index type"):
        tune(unit_vectors(100), candidates=["Flat", "Tree7"])
    with pytest.raises(ConfigurationError, match="auto is the service's own choice"):
        tune(unit_vectors(100), candidates=["auto"])


def point(recall: float, ms: float) -> Point:
    return Point(effort=Effort(), recall=recall, ms=ms)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 6)), max_size=12))
def test_pareto_keeps_what_none_beats(pairs):
    points = [point(recall / 6, ms) for recall, ms in pairs]
    kept = pareto(points)
    plain = {
        (p.ms, p.recall)
        for p in points
        if not any(
            q.recall >= p.recall and q.ms <= p.ms and (q.recall, q.ms) != (p.recall, p.ms)
            for q in points
        )
    }
    assert [(p.ms, p.recall) for p in kept] == sorted(plain)


def test_the_fastest_that_reaches_the_recall_in_the_memory_is_recommended():
    def trial(name: str, size: int, *points: Point) -> Trial:
        return Trial(index=name, setting=name, bytes=size, points=points)

    flat = trial("Flat", 900, point(1.0, 5.0))
    wide = trial("wide", 500, point(0.9, 0.5), point(0.995, 1.0), point(0.999, 2.0))
    small = trial("small", 100, point(0.95, 0.8), point(0.992, 1.5))
    made = Tuning(rows=9, measured=9, dim=2, k=1, queries=3, trials=(flat, wide, small))
    assert made.recommended(Goal()) is wide
    assert made.recommended(Goal(memory=499)) is small
    assert made.recommended(Goal(memory=500)) is wide
    assert made.recommended(Goal(recall=0.9995)) is flat
    assert made.recommended(Goal(recall=0.9)) is wide
    assert made.recommended(Goal(recall=0.999, memory=499)) is None
    assert wide.fastest(0.99) == point(0.995, 1.0)
    assert small.surest() == point(0.992, 1.5)
