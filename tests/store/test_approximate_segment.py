"""Approximate search of any type against exact search of the same rows."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lookalike.progress import Progress
from lookalike.records import Effort
from lookalike.store.base import Vectors
from lookalike.store.local.index.approximate import (
    ApproximateSegment,
    CandidateIndex,
    build_candidates,
)
from lookalike.store.local.index.calibration import build_segment
from lookalike.store.local.index.policy import DEFAULT_LIMITS, Limits
from lookalike.store.local.index.segments import ExactSegment, Found
from lookalike.store.tuning import recall_at_k
from tests.store.helpers import unit_vectors

ROWS, DIM, CLUSTERS, QUERIES = 3000, 32, 20, 40
TYPES = (
    "IVF32,Flat",
    "IVF32,SQ8",
    "IVF16,PQ16x4fs",
    "HNSW16,SQ8",
    "PCAR16,IVF16,SQ8",
    "RR16,SQ8",
    "SQ8",
    "PQ16x4fs",
)
WITHOUT_SELECTORS = {"PQ16x4fs"}


def clustered(count: int, *, seed: int, spread: float = 0.8) -> Vectors:
    """(count, DIM) float32 unit vectors around CLUSTERS centers, taken in turn."""
    centers = np.random.default_rng(0).normal(size=(CLUSTERS, DIM))
    noise = spread * np.random.default_rng(seed).normal(size=(count, DIM))
    rows = (centers[np.arange(count) % CLUSTERS] + noise).astype(np.float32)
    return np.ascontiguousarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


VECTORS, ASKED = clustered(ROWS, seed=1), clustered(QUERIES, seed=2)
CLUSTER_OF = np.arange(ROWS) % CLUSTERS


LIMITS = Limits(calibrated_k=(10, 100))
ASKS_FAISS = replace(LIMITS, scored_rows=0, tried_share=1e9)
"""Nothing is too little to be looked for among the candidates of FAISS."""


def rows(vectors: Vectors = VECTORS, limits: Limits = DEFAULT_LIMITS) -> ExactSegment:
    return ExactSegment(vectors.shape[1], vectors, np.arange(len(vectors)), limits=limits)


def build(kind: str, vectors: Vectors = VECTORS, limits: Limits = LIMITS) -> ApproximateSegment:
    return build_segment(kind, rows(vectors, limits), recall=0.99)


@pytest.fixture(scope="module", params=TYPES)
def built(request: pytest.FixtureRequest) -> ApproximateSegment:
    return build(request.param)


@pytest.fixture
def index(built: ApproximateSegment) -> ApproximateSegment:
    """One without tombstones."""
    return ApproximateSegment(rows(), built.candidates, built.calibration)


@pytest.fixture
def asking(built: ApproximateSegment) -> ApproximateSegment:
    """One without tombstones that asks FAISS for everything."""
    return ApproximateSegment(rows(limits=ASKS_FAISS), built.candidates, built.calibration)


def check(
    index: ApproximateSegment, k: int, *, allowed: NDArray[np.int64] | None, at_least: float
) -> None:
    """Full answers of rows that may be found, with exact scores in order; and the recall."""
    exact = rows().removed(np.flatnonzero(~index.exact.alive))
    passing = np.flatnonzero(exact.alive)
    if allowed is not None:
        passing = np.intersect1d(passing, allowed)
    mine, true = (one.search(ASKED, k=k, allowed=allowed) for one in (index, exact))
    recalls = []
    for query, (scores, seqs), best in zip(ASKED, mine, true, strict=True):
        assert len(seqs) == min(k, len(passing))
        assert len(set(seqs.tolist())) == len(seqs)
        assert np.isin(seqs, passing).all()
        assert np.allclose(scores, VECTORS[seqs].astype(float) @ query, rtol=0, atol=1e-9)
        order = np.lexsort((seqs, -scores))
        assert np.array_equal(order, np.arange(len(seqs)))
        recalls.append(recall_at_k(ranked((scores, seqs)), ranked(best)))
    assert np.mean(recalls) >= at_least


def ranked(found: Found) -> list[tuple[int, float]]:
    return list(zip(found[1].tolist(), found[0].tolist(), strict=True))


def test_progress_says_what_is_still_to_do() -> None:
    told: list[tuple[str, int, int]] = []
    build_segment(
        "IVF4,SQ8",
        rows(unit_vectors(5000)),
        recall=0.99,
        progress=Progress(lambda *one: told.append(one)),
    )
    assert list(dict.fromkeys(stage for stage, _, _ in told)) == ["train", "add", "calibrate"]
    assert [one[1:] for one in told if one[0] == "train"] == [(0, 5000)]
    assert [one[1:] for one in told if one[0] == "add"] == [(1000 * n, 5000) for n in range(6)]
    calibrated = [one[1:] for one in told if one[0] == "calibrate"]
    assert calibrated == [(0, 5), *((n, 5) for n in range(5))]


@pytest.mark.parametrize("k", [1, 10, 100])
def test_pictures_that_are_not_there_find_their_neighbors(
    index: ApproximateSegment, k: int
) -> None:
    assert all(level.recall >= 0.99 for level in index.calibration.levels)
    check(index, k, allowed=None, at_least=0.975)


def test_far_more_matches_than_were_calibrated(index: ApproximateSegment) -> None:
    check(index, 1500, allowed=None, at_least=0.97)
    check(index, ROWS + 5, allowed=None, at_least=1.0)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5])
def test_random_parts(asking: ApproximateSegment, share: float) -> None:
    chosen = np.sort(np.random.default_rng(3).permutation(ROWS)[: int(share * ROWS)])
    for k in (10, 100):
        check(asking, k, allowed=chosen, at_least=0.99)


@pytest.mark.parametrize("part", ["farthest", "all but the nearest"])
def test_parts_that_have_to_do_with_the_query(
    asking: ApproximateSegment, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    query = ASKED[0]
    centers = np.array([VECTORS[n == CLUSTER_OF].mean(axis=0) @ query for n in range(CLUSTERS)])
    if part == "farthest":
        chosen = np.flatnonzero(centers.argmin() == CLUSTER_OF)
    else:
        chosen = np.flatnonzero(centers.argmax() != CLUSTER_OF)
    monkeypatch.setattr(sys.modules[__name__], "ASKED", ASKED[:1])
    for k in (10, 100):
        check(asking, k, allowed=chosen, at_least=0.99)


@pytest.mark.parametrize("removed", [5, 900, 2900])
def test_what_was_removed_is_not_found(asking: ApproximateSegment, removed: int) -> None:
    nearest = np.concatenate([seqs for _, seqs in rows().search(ASKED, k=30)])
    order = np.random.default_rng(4).permutation(ROWS)
    gone = np.concatenate([nearest[np.sort(np.unique(nearest, return_index=True)[1])], order])
    gone = gone[np.sort(np.unique(gone, return_index=True)[1])][:removed]
    asking = replace(asking, exact=asking.exact.removed(gone))
    assert asking.exact.dead == removed
    for k in (10, 100):
        check(asking, k, allowed=None, at_least=0.97)
        check(asking, k, allowed=np.arange(0, ROWS, 2), at_least=0.97)


def test_which_types_rule_rows_out_while_they_search(built: ApproximateSegment) -> None:
    assert built.candidates.takes_selectors == (built.candidates.factory not in WITHOUT_SELECTORS)
    if built.candidates.takes_selectors:
        odd = np.arange(ROWS) % 2 == 1
        everything = built.candidates.effort(built.candidates.knob_max)
        near = built.candidates.nearest(ASKED, 50, everything, odd)
        assert np.all(near[near >= 0] % 2 == 1)
        assert np.all(near[:, :10] >= 0)


def test_rows_that_are_left_out(asking: ApproximateSegment) -> None:
    (best,) = rows().search(ASKED[:1], k=3)
    for others in (None, np.arange(0, ROWS)):
        (found,) = asking.search(ASKED[:1], k=10, allowed=others, excluded=best[1])
        assert len(found[1]) == 10
        assert not np.isin(best[1], found[1]).any()


def test_exact_is_exact(index: ApproximateSegment) -> None:
    exact = rows().removed(np.arange(0, ROWS, 3))
    index = replace(index, exact=index.exact.removed(np.arange(0, ROWS, 3)))
    for k in (1, 10, 500):
        mine = index.search(ASKED, k=k, effort=Effort(exact=True))
        for found, true in zip(mine, exact.search(ASKED, k=k), strict=True):
            assert ranked(found) == ranked(true)


def test_what_is_asked_for_goes_before_what_was_calibrated(index: ApproximateSegment) -> None:
    least = Effort(nprobe=1, ef_search=1, k_factor=1)
    most = Effort(nprobe=65_536, ef_search=65_536, k_factor=300)

    def recall(effort: Effort | None) -> float:
        mine = index.search(ASKED, k=10, effort=effort)
        true = rows().search(ASKED, k=10)
        pairs = zip(mine, true, strict=True)
        return float(np.mean([recall_at_k(ranked(one), ranked(best)) for one, best in pairs]))

    assert recall(most) == 1.0
    if index.candidates.factory.startswith(("IVF", "PCAR", "RR")):
        assert recall(least) < recall(None)


@pytest.mark.parametrize(
    ("effort", "asks"),
    [
        (Effort(k_factor=10), True),
        (Effort(k_factor=100), False),
        (Effort(ef_search=5000), False),
        (Effort(), True),
    ],
)
def test_looks_that_are_wider_than_exact_search_are_exact(
    index: ApproximateSegment,
    monkeypatch: pytest.MonkeyPatch,
    effort: Effort,
    asks: bool,
) -> None:
    limits = replace(LIMITS, small_rows=ROWS)
    index = ApproximateSegment(rows(limits=limits), index.candidates, index.calibration)
    asked = []
    nearest = index.candidates.nearest
    monkeypatch.setattr(
        index.candidates, "nearest", lambda *given: asked.append(1) or nearest(*given), raising=True
    )
    exact = index.exact.search(ASKED, k=10)
    found = index.search(ASKED, k=10, effort=effort)
    no_knob = effort.ef_search is not None and index.candidates.knob != "ef_search"
    assert bool(asked) == (asks or no_knob)
    if not asked:
        for (scores, seqs), (best, places) in zip(found, exact, strict=True):
            assert np.array_equal(scores, best)
            assert np.array_equal(seqs, places)


def test_nobody_asks(index: ApproximateSegment) -> None:
    assert index.search(ASKED[:0], k=5) == []


def test_saved_and_mapped_it_finds_the_same(index: ApproximateSegment, tmp_path: Path) -> None:
    index.candidates.write(tmp_path / "ann")
    read = CandidateIndex.read(tmp_path / "ann", factory=index.candidates.factory)
    mapped = ApproximateSegment(rows(), read, index.calibration)
    assert read.total_bytes == index.candidates.total_bytes
    assert 0 <= read.mapped_bytes <= read.total_bytes
    assert index.candidates.bytes == read.bytes + read.mapped_bytes
    assert (read.mapped_bytes == 0) == ("x4fs" in read.factory), "codes for fast scans are copied"
    for mine, true in zip(mapped.search(ASKED, k=20), index.search(ASKED, k=20), strict=True):
        assert ranked(mine) == ranked(true)


def test_equal_pictures_do_not_make_it_look_harder() -> None:
    """Which of many equal pictures is found is chance, and no fault of the parameters."""
    vectors = VECTORS.copy()
    vectors[: ROWS // 2] = vectors[0]
    (level,) = build("PQ16x4fs", vectors, Limits(calibrated_k=(10,))).calibration.levels
    assert level.recall >= 0.99
    assert (level.effort.k_factor or 1) <= 16


@pytest.mark.parametrize(
    "kind",
    [
        "IVF64,PQ8",
        "IVF64,PQ8x4fs",
        "IVF64_HNSW16,SQ8",
        "PCAR16,IVF64,SQ8",
        "HNSW16,PQ8",
        "IVF64,RQ2x8",
        "OPQ4_16,IVF16,PQ4",
        "IVF16,PQ8+8",
        "IVF16,PRQ2x2x8",
    ],
)
def test_faiss_prints_nothing_about_few_vectors(
    kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    build_candidates(kind, VECTORS[:400])
    assert capfd.readouterr() == ("", "")


def test_a_graph_is_not_tried_with_its_own_rows() -> None:
    """They are found with so little effort that pictures from elsewhere would be missed."""
    vectors, asked = unit_vectors(ROWS, dim=24, seed=5), unit_vectors(60, dim=24, seed=6)
    index = build("HNSW16,SQ8", vectors, Limits(calibrated_k=(10,)))
    true = index.search(asked, k=10, effort=Effort(exact=True))
    pairs = zip(index.search(asked, k=10), true, strict=True)
    assert np.mean([recall_at_k(ranked(one), ranked(best)) for one, best in pairs]) >= 0.98


PATCHED = """
from lookalike.cores import limit_openmp
limit_openmp()
import faiss.contrib.torch_utils
from dataclasses import replace
import numpy as np
from tests.store.helpers import unit_vectors
from tests.store.test_approximate_segment import ASKED, ASKS_FAISS, ROWS, build
from tests.store.test_exact_segment import made
index = made(unit_vectors(6000, dim=8))
allowed = index.locate(index.seqs[::2].copy())
(found,) = index.search(unit_vectors(1, dim=8, seed=5), k=5, allowed=allowed)
assert set(found[1].tolist()) <= set(index.seqs[::2].tolist()) and len(found[1]) == 5
for kind in ("IVF16,SQ8", "HNSW8,SQ8"):
    index = build(kind, limits=ASKS_FAISS)
    assert index.candidates.takes_selectors
    index = replace(index, exact=index.exact.removed(np.arange(0, ROWS, 2)))
    for found in index.search(ASKED, k=5, allowed=np.arange(ROWS // 2)):
        assert len(found[1]) == 5 and np.all(found[1] % 2 == 1) and found[1].max() < ROWS // 2
"""


def test_it_works_beside_libraries_that_replace_search() -> None:
    command = [sys.executable, "-c", PATCHED]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
