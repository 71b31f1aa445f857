"""Learning from judgements: a head that starts as the identity, honest figures, refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lookalike.errors import CalibrationError, ConfigurationError
from lookalike.records import ModelSpec
from lookalike.store.judgements import NewJudgement
from lookalike.training.feedback import (
    JudgedSet,
    _identity,
    _split,
    auc,
    read_judged,
    train_on_judgements,
)
from lookalike.training.plan import TrainingOptions
from tests.memory_store import MemoryStore
from tests.store.helpers import SPEC, fill, unit_vectors

DIM = 16
OPTIONS = TrainingOptions(learning_rate=1e-2, epochs=20)


def judged_set(count: int, *, seed: int = 0, random: bool = False) -> JudgedSet:
    """Pairs that are right if they agree in the first four numbers, whatever the others say."""
    rng = np.random.default_rng(seed)
    kinds = rng.normal(size=(6, 4))
    kind = rng.integers(6, size=2 * count)
    rows = np.concatenate([0.7 * kinds[kind], rng.normal(size=(2 * count, DIM - 4))], axis=1)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    queries, matches = np.arange(count), np.arange(count, 2 * count)
    kind[matches[::2]] = kind[queries[::2]]
    rows[matches[::2], :4] = rows[queries[::2], :4]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    right = kind[queries] == kind[matches]
    if random:
        right = rng.random(count) < 0.5
    vectors = rows.astype(np.float32)
    spec = ModelSpec(model="tiny", weights="random", weights_sha256="0" * 64, dim=DIM)
    return JudgedSet(
        spec=spec,
        vectors=vectors,
        queries=queries,
        matches=matches,
        right=right,
        crowd=unit_vectors(100, dim=DIM),
        unusable=0,
    )


def test_a_new_head_changes_nothing() -> None:
    rows = unit_vectors(50, dim=DIM)
    head = _identity(DIM).to_head(backbone=judged_set(2).spec, trained={})
    assert np.allclose(head.apply(rows), rows, atol=1e-6)


def test_what_it_learns_holds_for_judgements_that_were_held_out() -> None:
    found = train_on_judgements(judged_set(400), OPTIONS)
    assert found.after > found.before + 0.05
    assert found.low > 0
    assert found.helps
    assert found.moved < 0.2
    assert found.head.spec.dim_out == DIM


def test_the_same_seed_gives_the_same_head() -> None:
    one, other = (train_on_judgements(judged_set(150), OPTIONS).head.digest for _ in range(2))
    assert one == other


def test_judgements_at_random_teach_nothing() -> None:
    assert not train_on_judgements(judged_set(200, random=True), OPTIONS).helps


def test_an_auc_counts_pairs() -> None:
    rng = np.random.default_rng(0)
    right, wrong = rng.integers(5, size=30) / 5, rng.integers(5, size=20) / 5
    plain = np.mean([(a > b) + 0.5 * (a == b) for a in right for b in wrong])
    assert auc(right, wrong) == pytest.approx(plain)


def test_what_measures_was_not_trained_on_the_other_way_round_either() -> None:
    ring = np.arange(200)
    judged = judged_set(200)
    judged = replace(
        judged,
        vectors=unit_vectors(200, dim=DIM),
        queries=np.concatenate([ring, np.roll(ring, -1)]),  # each pair is judged from both sides
        matches=np.concatenate([np.roll(ring, -1), ring]),
        right=np.concatenate([ring % 2 == 0] * 2),
    )
    parts = _split(judged, seed=0)
    pairs = [
        {frozenset(pair) for pair in zip(judged.queries[one], judged.matches[one], strict=True)}
        for one in parts.values()
    ]
    queries = [set(judged.queries[one]) for one in parts.values()]
    for sets in (pairs, queries):
        assert all(sets)
        assert len(set().union(*sets)) == sum(map(len, sets))


def test_too_few_judgements_are_refused() -> None:
    with pytest.raises(CalibrationError, match="100 are needed"):
        train_on_judgements(judged_set(99), OPTIONS)
    one_sided = judged_set(200)
    one_sided = replace(one_sided, right=np.ones(200, dtype=np.bool_))
    with pytest.raises(CalibrationError, match="0 wrong"):
        train_on_judgements(one_sided, OPTIONS)
    one_query = replace(judged_set(200), queries=np.zeros(200, dtype=np.int64))
    with pytest.raises(CalibrationError, match="more queries"):
        train_on_judgements(one_query, OPTIONS)


def test_vectors_that_are_too_long_are_refused() -> None:
    wide = judged_set(2)
    wide = replace(wide, spec=replace(wide.spec, dim=5000))
    with pytest.raises(ConfigurationError, match="too long"):
        train_on_judgements(wide, OPTIONS)


def test_judgements_are_read_with_the_vectors_of_the_network() -> None:
    store = MemoryStore()
    vectors = fill(store, 4)
    store.judgements.put("default", [NewJudgement(query="i0", match="i1", right=True)])
    headed = replace(SPEC, head="a" * 64)
    store.spaces.begin("default", headed, provenance={})
    records = [store.get("default", f"i{n}") for n in range(4)]
    store.spaces.add("default", headed, records, unit_vectors(4, seed=9))
    assert store.spaces.activate("default", headed)
    given = NewJudgement(match="i1", right=False, sha256="f" * 64, spec=headed, vector=vectors[0])
    store.judgements.put("default", [given])
    found = read_judged(store, "default")
    assert found.spec == SPEC
    assert np.array_equal(found.vectors, vectors[:2])
    assert (found.queries.tolist(), found.matches.tolist(), found.right.tolist()) == (
        [0],
        [1],
        [True],
    )
    assert found.unusable == 1
    store.spaces.discard("default", SPEC)
    with pytest.raises(ConfigurationError, match="--head none"):
        read_judged(store, "default")
