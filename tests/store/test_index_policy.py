"""Which index is built, when, and what is kept of its calibration."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lookalike.errors import ConfigurationError
from lookalike.records import LIMITS, Effort
from lookalike.store.local.index.approximate import (
    ApproximateSegment,
    CandidateIndex,
    build_candidates,
)
from lookalike.store.local.index.building import Retries
from lookalike.store.local.index.calibration import Calibration, Level
from lookalike.store.local.index.policy import (
    EXACT,
    IndexPolicy,
    Limits,
    check_index_type,
    list_count,
)
from lookalike.store.local.index.segments import ExactSegment, Segments, in_memory
from tests.store.helpers import DIM, unit_vectors

GB = 10**9
SMALL = Limits(min_rows=100)
LEVELS = (
    Level(10, Effort(nprobe=4, k_factor=4), 0.99, 0.5),
    Level(100, Effort(nprobe=8, k_factor=2), 0.995, 2.0),
)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("Flat", "Flat"),
        (" auto ", "auto"),
        (" FLAT ", "Flat"),
        ("Auto", "auto"),
        ("HNSW32,SQ8", "HNSW32,SQ8"),
        (" PCAR64,IVF16,SQ8 ", "PCAR64,IVF16,SQ8"),
        ("HNSW32,SQ8,RFlat", "HNSW32,SQ8"),
        ("IVF16,PQ32x4fs,Refine(SQ8)", "IVF16,PQ32x4fs"),
        ("Flat,RFlat", "Flat"),
        ("IVF64_HNSW16,SQ8", "IVF64_HNSW16,SQ8"),
        ("PCAR1024,Flat", "PCAR1024,Flat"),
        ("PQ96x4fs", "PQ96x4fs"),
    ],
)
def test_index_types_that_serve(text: str, read: str) -> None:
    assert check_index_type(text) == read
    assert IndexPolicy(index_type=text).index_type == read


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "nonsense",
        "HNSW0",
        "HNSW1",
        "HNSW01,SQ8",
        "IVF16,HNSW1",
        "NSG32,Flat",
        "IVF64M,SQ8",
        "IVF0,Flat",
        "PCAR8,IVF0_HNSW32,SQ8",
        "IVF1000000000,Flat",
        "IVF,SQ8",
        "SQ9",
        "PQ7x4fs,PQ8",
        "IVF99999999999,Flat",
        "IVF9000000000000,Flat",
        "IDMap,Flat",
        "IDMap2,HNSW32",
        "HNSW32,IDMap",
        "RFlat",
        "RFlat,HNSW32",
        "HNSW32,RFlat,RFlat",
        "IVF16,SQ8,Refine(SQ(8))",
        "HNSW32\n,SQ8",
        "Ḧ",
    ],
)
def test_index_types_that_do_not_serve(text: str) -> None:
    with pytest.raises(ConfigurationError, match="is no index type") as raised:
        check_index_type(text)
    assert "HNSW32,SQ8" in str(raised.value), "it says what to write"


def test_lists_of_an_inverted_file() -> None:
    types = ("IVF64,Flat", "PCAR9,IVF4k,SQ8", "IVF7_HNSW9,SQ8", "HNSW9")
    assert [list_count(one) for one in types] == [64, 4096, 7, 0]


def test_what_is_set_is_built_where_there_are_enough() -> None:
    def planned(index_type: str, rows: int, least: int = 10_000) -> tuple[str | None, str]:
        policy = IndexPolicy(index_type=index_type, memory=GB, limits=Limits(min_rows=least))
        found = policy.plan(rows, 512)
        return found.factory, found.reason

    assert planned("Flat", 10**9) == (None, "exact, as set")
    assert planned("HNSW32", 10_000) == ("HNSW32", "as set")
    assert planned("HNSW32", 9_999)[0] is None
    assert "10000 pictures to build HNSW32" in planned("HNSW32", 9_999)[1]
    assert planned("IVF1k,SQ8", 39 * 1024 - 1)[0] is None
    assert str(39 * 1024) in planned("IVF1k,SQ8", 39 * 1024 - 1)[1]
    assert planned("IVF1k,SQ8", 39 * 1024)[0] == "IVF1k,SQ8"
    assert planned("IVF4,SQ8", 156, least=60)[0] == "IVF4,SQ8"


@pytest.mark.parametrize(
    ("rows", "dim", "memory", "factory"),
    [
        (9_999, 100_352, GB, None),  # too few to train
        (78_125, 512, GB, None),  # 40 million numbers
        (78_126, 512, GB, "PCAR256,IVF1024,SQ8"),
        (1_000_000, 512, GB, "PCAR256,IVF4096,SQ8"),
        # 256 bytes and a number each; the directions of the PCA, and the centers
        (1_000_000, 512, 264_000_000 + 5_767_168, "PCAR256,IVF4096,SQ8"),
        (1_000_000, 512, 264_000_000 + 5_767_167, "PCAR256,IVF4096,PQ128x4fs"),
        (10_750, 8192, 4_000_000, "RR256,IVF256,PQ128x4fs"),  # more, whatever is chosen
        (1_000_000, 256, GB, "IVF4096,SQ8"),
        (1_000_000, 192, 10**8, "IVF4096,PQ96x4fs"),
        (1_000_000, 2048, GB, "PCAR256,IVF4096,SQ8"),
        (1_000_000, 4096, GB, "PCAR256,IVF4096,SQ8"),
        (1_000_000, 100_352, GB, "RR256,IVF4096,SQ8"),
        (20_000, 100_352, GB, "RR256,IVF512,SQ8"),
        (1_000_000, 129, 10**8, "IVF4096,SQ4"),
    ],
)
def test_auto_fits_the_memory(rows: int, dim: int, memory: int, factory: str | None) -> None:
    found = IndexPolicy(index_type="auto", memory=memory).plan(rows, dim)
    assert found.factory == factory
    assert f"{rows} pictures of {dim} numbers" in found.reason
    if factory:
        assert check_index_type(factory) == factory
        assert f"{memory / 1e6:.0f} MB it may take" in found.reason
        assert ("more than the 4 MB" in found.reason) == (memory == 4_000_000)
    else:
        assert found.reason.startswith("exact")


@pytest.mark.parametrize(
    ("dim", "pca", "memory"),
    [
        (24, 4096, GB),
        (24, 4096, 10_000),
        (23, 4096, 10_000),
        (320, 4096, GB),
        (320, 4096, 10_000),
        (320, 64, GB),
    ],
)
def test_auto_knows_what_an_index_takes(dim: int, pca: int, memory: int) -> None:
    """What `auto` says, against an index that was built."""
    limits = Limits(exact_numbers=0, min_rows=100, pca_dim=pca)
    found = IndexPolicy(index_type="auto", memory=memory, limits=limits).plan(4000, dim)
    assert found.factory is not None
    told = float(found.reason.split("about ")[1].split(" MB")[0])
    built = build_candidates(found.factory, unit_vectors(4000, dim=dim))
    assert built.total_bytes == pytest.approx(told * 1e6, rel=0.15)


@pytest.fixture(scope="module")
def ann() -> CandidateIndex:
    return build_candidates("SQ8", unit_vectors(400))


def made(
    count: int, ann: CandidateIndex | None, built_with: dict[str, Any] | None = None
) -> Segments:
    rows = ExactSegment(DIM, unit_vectors(count), np.arange(1, count + 1))
    approximate = ApproximateSegment(rows, ann, Calibration(LEVELS, 1e-4)) if ann else None
    return Segments(rows, ExactSegment(DIM), approximate, built_with)


def policy(index_type: str = "SQ8", *, limits: Limits = SMALL, **given: Any) -> IndexPolicy:
    return IndexPolicy(index_type=index_type, limits=limits, **given)


def test_few_pictures_need_no_index() -> None:
    flat = in_memory(ExactSegment(DIM))
    flat = flat.added(np.arange(1, 100), unit_vectors(99))
    set_type = policy()
    assert set_type.due(flat) is None
    flat = flat.added(np.array([100]), unit_vectors(1))
    due = set_type.due(flat)
    assert due is not None
    assert (due.factory, due.reason) == ("SQ8", "as set")
    flat = flat.removed(np.array([1]))
    assert set_type.due(flat) is None
    assert IndexPolicy().due(flat) is None
    assert IndexPolicy(index_type="auto").due(flat) is None


def test_what_came_since_makes_a_build_due(ann: CandidateIndex) -> None:
    index = made(400, ann)
    assert policy().due(index) is None
    index = index.added(np.arange(1001, 1051), unit_vectors(50))  # half of `min_rows`, over a tenth
    assert policy().due(index) is None
    index = index.added(np.array([1051]), unit_vectors(1))
    due = policy().due(index)
    assert due is not None
    assert due.factory == "SQ8"


def test_tombstones_make_a_build_due(ann: CandidateIndex) -> None:
    index = made(400, ann)
    index = index.removed(np.arange(1, 101))
    assert policy().due(index) is None
    index = index.removed(np.array([101]))
    assert policy().due(index) is not None


def test_another_type_that_was_set_is_built(ann: CandidateIndex) -> None:
    index = made(400, ann)
    due = policy("IVF2,SQ8").due(index)
    assert due is not None
    assert due.factory == "IVF2,SQ8"
    assert policy("auto").due(index) is None, "any that was built serves"


@pytest.mark.parametrize(
    ("before", "now", "due"),
    [
        ({}, {}, None),
        ({}, {"recall": 0.9}, "SQ8"),
        ({}, {"memory": GB}, None),
        ({}, {"index_type": "IVF2,SQ8"}, "IVF2,SQ8"),
        ({}, {"index_type": "IVF64,SQ8"}, "Flat"),  # of which there are too few
        ({"index_type": "auto"}, {"index_type": "auto"}, None),
        ({"index_type": "HNSW4"}, {"index_type": "auto"}, "IVF8,SQ8"),
        ({"index_type": "auto"}, {"index_type": "auto", "memory": 5_000}, "IVF8,PQ4x4fs"),
        ({"index_type": "auto"}, {"index_type": "auto", "recall": 0.5}, "IVF8,SQ8"),
    ],
)
def test_settings_that_changed_are_heard(
    ann: CandidateIndex,
    before: dict[str, Any],
    now: dict[str, Any],
    due: str | None,
) -> None:
    built_with = json.loads(json.dumps(policy(**before).build_settings))
    limits = replace(SMALL, exact_numbers=0)
    found = policy(limits=limits, **now).due(made(400, ann, built_with))
    assert (found and (found.factory or "Flat")) == due


@pytest.mark.parametrize("index_type", ["Flat", "SQ8", "auto"])
@pytest.mark.parametrize("kind", ["empty", "mapped", "approximate"])
def test_no_build_becomes_due_before_it_was_said(
    ann: CandidateIndex, index_type: str, kind: str
) -> None:
    """However rows come and go; `changes_until_due` only saves asking."""
    limits = Limits(min_rows=150, exact_numbers=DIM * 450, mapped_bytes=4 * DIM * 160)
    asked, chance = policy(index_type, limits=limits), np.random.default_rng(0)
    index = made(400, ann if kind == "approximate" else None)
    if kind == "empty":
        index = in_memory(ExactSegment(DIM))
    quiet, answers = 0, set()
    for change in range(500):
        due = asked.due(index)
        answers.add(due is None)
        assert due is None or change >= quiet
        if due is None and change >= quiet:
            quiet = change + asked.changes_until_due(index)
        if chance.random() < 0.7:
            index = index.added(np.array([1001 + change]), unit_vectors(1, seed=change))
        else:
            index = index.removed(chance.permutation(index.live_seqs)[:1])
    stays = {("mapped", "SQ8"), ("approximate", "Flat")}
    assert len(answers) == 2 or (kind, index_type) in stays


def test_a_mapped_index_keeps_little_in_memory() -> None:
    exact = policy(EXACT, limits=Limits(mapped_bytes=4 * DIM * 100))
    index = made(400, None)
    index = index.added(np.arange(1001, 1101), unit_vectors(100))
    assert exact.due(index) is None
    index = index.added(np.array([1101]), unit_vectors(1))
    assert exact.due(index) is not None


def test_an_index_that_has_shrunk_serves_on(ann: CandidateIndex) -> None:
    index = made(400, ann)
    index = index.removed(np.arange(1, 350))
    assert policy().due(index) is None


def test_the_reason_is_that_of_the_type_that_serves(ann: CandidateIndex) -> None:
    def reason(index: Segments, index_type: str = "SQ8") -> str:
        return f"{index.factory or EXACT}: {policy(index_type).explain(index)}"

    index = made(400, ann)
    assert reason(index) == "SQ8: as set"
    assert reason(index, index_type="IVF2,SQ8") == "SQ8: until IVF2,SQ8 is built (as set)"
    few = "exact until there are 2496 pictures to build IVF64,SQ8 of"
    assert reason(index, index_type="IVF64,SQ8") == (
        f"SQ8: it was built before, and serves on; built now, it would be Flat ({few})"
    )
    flat = in_memory(ExactSegment(DIM))
    assert reason(flat) == "Flat: exact until there are 100 pictures to build SQ8 of"
    flat = flat.added(np.arange(1, 151), unit_vectors(150))
    assert reason(flat) == "Flat: until SQ8 is built (as set)"


def test_a_mapped_exact_index_becomes_approximate() -> None:
    index = made(400, None)
    assert IndexPolicy().due(index) is None
    for index_type in ("SQ8", "auto"):
        due = policy(index_type, limits=replace(SMALL, exact_numbers=100)).due(index)
        assert due is not None
        assert due.factory is not None


@pytest.mark.parametrize(("rows", "again"), [(0, 1), (1, 2), (10, 16), (1000, 1501)])
def test_a_build_that_failed_waits_for_half_as_many_again(rows: int, again: int) -> None:
    retries = Retries(600.0)
    assert retries.allowed(rows)
    retries.failed(rows)
    assert not retries.allowed(again - 1)
    assert retries.allowed(again)
    retries.interrupted()
    assert not retries.allowed(again)
    retries.succeeded()
    assert retries.allowed(0)


def test_calibrations_survive_a_manifest() -> None:
    before = Calibration(LEVELS, 1.5e-4)
    assert Calibration.from_json(json.loads(json.dumps(before.to_json()))) == before
    bare = Calibration((Level(3, Effort(), 1.0, 0.1),), 1.0)
    assert Calibration.from_json(bare.to_json()) == bare


@pytest.mark.parametrize("broken", [None, [], {}, {"levels": [{}], "row_ms": 1}, {"levels": 3}])
def test_a_broken_calibration_is_refused(broken: object) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        Calibration.from_json(broken)


def test_parameters_for_any_number_of_matches() -> None:
    held = Calibration(LEVELS, 1e-4)
    assert held.for_k(1) == held.for_k(10) == LEVELS[0]
    assert held.for_k(11) == held.for_k(100) == LEVELS[1]
    more = held.for_k(1000)
    assert (more.k, more.ms, more.recall) == (1000, 20.0, 0.995)
    assert more.effort == Effort(nprobe=80, k_factor=2)
    assert held.for_k(10**9).effort.nprobe == LIMITS["nprobe"]
    assert held.for_k(10**9).effort.ef_search is None
