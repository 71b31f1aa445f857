"""Models on the same pictures: paired differences, and what changed most."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lookalike.evaluation.comparison import Cost, compare_models, paired_changes, peak_memory
from lookalike.evaluation.metrics import RESAMPLES
from lookalike.evaluation.report import write_comparison
from lookalike.evaluation.runner import evaluate
from lookalike.services.vector_set import VectorSet
from tests.evaluation.made import clouds, vector_set

COST = Cost(load_s=1.0, cpu_ms=2.0, wall_ms=1.0, timed=64, batch=32, peak_bytes=10**8)


def noisy(vectors: VectorSet, seed: int, amount: float) -> VectorSet:
    """The same pictures by a worse model."""
    rows = vectors.vectors + amount * np.random.default_rng(seed).normal(size=vectors.vectors.shape)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    spec = replace(vectors.spec, weights=f"noise {seed}", weights_sha256=f"{seed:064d}")
    return replace(vectors, vectors=rows.astype(np.float32), spec=spec)


GOOD = vector_set(*clouds([6, 5, 7, 4]))
WORSE = noisy(GOOD, 1, 0.3)


def test_paired_differences_are_those_of_a_slow_transcription() -> None:
    before, after = (evaluate(one, k=3, seed=7) for one in (WORSE, GOOD))
    changes = paired_changes(before, after, seed=7)
    queries = before.queries
    draws = np.random.default_rng(7).integers(0, queries, size=(RESAMPLES, queries))
    for row, change in enumerate(changes):
        apart = [after.values[row, q] - before.values[row, q] for q in range(queries)]
        assert change.value == pytest.approx(sum(apart) / queries, abs=1e-12)
        means = sorted(sum(apart[q] for q in draw) / queries for draw in draws.tolist())
        for end, share in ((change.low, 0.025), (change.high, 0.975)):
            below, part = divmod(share * (RESAMPLES - 1), 1)
            low, high = means[int(below)], means[int(below) + 1]
            assert end == pytest.approx(low + part * (high - low), abs=1e-9)
        assert change.low <= change.value <= change.high


def test_the_other_way_round_is_the_opposite_and_a_model_does_not_differ_from_itself() -> None:
    one, other = (evaluate(each, k=3) for each in (GOOD, WORSE))
    pairs = zip(paired_changes(one, other, seed=0), paired_changes(other, one, seed=0), strict=True)
    for there, back in pairs:
        assert (there.value, there.low, there.high) == pytest.approx(
            (-back.value, -back.high, -back.low), abs=1e-12
        )
    for change in paired_changes(one, one, seed=0):
        assert (change.value, change.low, change.high) == (0, 0, 0)
    with pytest.raises(ValueError, match="same queries"):
        paired_changes(one, evaluate(GOOD, k=3, queries=5), seed=0)


def test_what_makes_a_query_hard_for_both_does_not_widen_the_interval() -> None:
    vectors = vector_set(*clouds([20, 20, 20], spread=1.5))
    one, other = (evaluate(each, k=5) for each in (vectors, noisy(vectors, 2, 0.01)))
    (metric,) = (at for at, one in enumerate(one.metrics) if one.name == "map_at_r")
    change = paired_changes(one, other, seed=0)[metric]
    assert change.high - change.low < (one.metrics[metric].high - one.metrics[metric].low) / 2


def test_models_are_compared_on_the_pictures_that_all_could_read(tmp_path: Any) -> None:
    part = WORSE.part(np.arange(1, len(WORSE), dtype=np.int64))
    third = noisy(GOOD, 3, 0.1)
    measured = {"good": (GOOD, COST), "worse": (part, COST), "third": (third, COST)}
    found = compare_models(measured, failed={"broken": "no <weights>"}, k=3)
    assert [len(one.vectors) for one in found.candidates] == [len(GOOD) - 1] * 3
    assert len({one.evaluation.dataset_sha256 for one in found.candidates}) == 1
    assert "1 pictures are left out" in found.notes[0]
    main = found.shown[-1]
    assert main.title == "MAP@R"
    value, change = found.of(found.candidates[1], main)
    first, none = found.of(found.candidates[0], main)
    assert change.value == pytest.approx(value.value - first.value, abs=1e-12)
    assert none.value == none.low == none.high == 0
    spreads = [max(one.values) - min(one.values) for one in found.changed]
    assert spreads == sorted(spreads, reverse=True)
    assert spreads[-1] > 0
    values = np.stack([one.evaluation.values for one in found.candidates])
    row = found.candidates[0].evaluation.metrics.index(main)
    assert spreads[0] == pytest.approx(np.ptp(values[:, row], axis=0).max())
    for changed in found.changed:
        assert len({one.position for one in changed.results}) == 1
    page = tmp_path / "comparison.html"
    write_comparison(found, page)
    text = page.read_text()
    assert "no &lt;weights&gt;" in text
    assert "<script" not in text


def test_what_any_model_could_not_read_counts_as_left_out() -> None:
    each = np.arange(len(GOOD), dtype=np.int64)
    measured = {"a": (GOOD.part(each[1:]), COST), "b": (WORSE.part(each[:-1]), COST)}
    found = compare_models(measured, k=3)
    assert len(found.candidates[0].vectors) == len(GOOD) - 2
    assert "2 pictures are left out" in found.notes[0]


def test_a_model_that_is_there_twice_is_named() -> None:
    found = compare_models({"a": (GOOD, COST), "b": (GOOD, COST)}, k=3)
    assert "b and a are the same model: their vectors mean the same." in found.notes
    assert found.changed == ()


def test_the_memory_of_this_process_is_known() -> None:
    held = np.ones(30_000_000, dtype=np.uint8)
    assert peak_memory() > len(held)
