"""Asks every picture of a labelled set for the others of its class."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lookalike import __version__
from lookalike.errors import InvalidParameterError
from lookalike.evaluation.metrics import (
    AT_K,
    AT_R,
    Classes,
    average_precision_at,
    encode_labels,
    judge,
    mean_intervals,
    values_of,
)
from lookalike.evaluation.ranking import (
    Positions,
    Ranking,
    concatenate,
    rank,
    rank_blocks,
)
from lookalike.evaluation.results import (
    Evaluation,
    Metric,
    QueryResult,
    class_results,
    confuse,
    confused_pairs,
    query_result,
    worst_queries,
)
from lookalike.progress import NO_PROGRESS, Progress
from lookalike.records import utc_now
from lookalike.services.search import Stopwatch
from lookalike.services.vector_set import VectorSet

MAX_DEPTH: Final = 5000
"""Where a class has more other pictures than this, R-precision and MAP@R are left out."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """What will be asked."""

    queries: Positions  # (Q,) positions, ascending; none of them alone in its class
    asked: int | None  # how many queries were wanted; None for all
    left_out: int  # pictures that are alone in their class
    k: int  # the main cut-off
    ks: tuple[int, ...]  # all cut-offs, ascending
    depth: int  # ranks to look at
    with_r: bool  # whether these reach every query's R
    chance: float  # precision that a random order would have
    notes: tuple[str, ...]  # what is left out and why, in sentences
    seed: int  # of the choice of queries and of intervals


def make_plan(
    classes: Classes, *, k: int, ks: Sequence[int], queries: int | None, seed: int
) -> Plan:
    """Chooses queries, cut-offs and depth; arguments as for `runner.evaluate`.

    Raises:
        InvalidParameterError: No two pictures have the same label, or a number is out of its
            range.
    """
    others = len(classes.codes) - 1
    relevant = classes.counts()[classes.codes] - 1  # (N,)
    chosen = _choose(np.flatnonzero(relevant), count=queries, seed=seed)
    within, notes = _cutoffs(k, ks, others)
    most = int(relevant[chosen].max())
    with_r = most <= MAX_DEPTH
    if not with_r:
        notes.append(
            f"R-precision and MAP@R are left out: they would need {most} ranks for the largest "
            f"class, and {MAX_DEPTH} are the most that are looked at for them."
        )
    return Plan(
        queries=chosen,
        asked=queries,
        left_out=int((relevant == 0).sum()),
        k=k,
        ks=within,
        depth=max(*within, most) if with_r else max(within),
        with_r=with_r,
        chance=float(relevant[chosen].mean()) / others,
        notes=tuple(notes),
        seed=seed,
    )


def _choose(able: Positions, *, count: int | None, seed: int) -> Positions:
    """All positions, or `count` of them at random, ascending."""
    if not len(able):
        raise InvalidParameterError(
            "No two pictures have the same label, so there is nothing right to find: use a "
            "dataset with two pictures or more in a class"
        )
    if count is not None and count < 1:
        raise InvalidParameterError(f"{count} queries were asked for; choose 1 or more")
    if seed < 0:
        raise InvalidParameterError(f"The seed is {seed}; choose 0 or more")
    if count is None or count >= len(able):
        return able
    return np.sort(np.random.default_rng(seed).choice(able, size=count, replace=False))


def _cutoffs(k: int, ks: Sequence[int], others: int) -> tuple[tuple[int, ...], list[str]]:
    """The cut-offs that can be looked at, and a sentence for each that cannot."""
    cutoffs = sorted({k, *ks})
    if cutoffs[0] < 1:
        raise InvalidParameterError(f"A cut-off is {cutoffs[0]}; choose 1 or more")
    if k > others:
        raise InvalidParameterError(
            f"k is {k}, but each picture has {others} others to be ranked: choose a k from 1 to "
            "that, or more pictures"
        )
    notes = [
        f"The cut-off {cutoff} is left out: each picture has only {others} others."
        for cutoff in cutoffs
        if cutoff > others
    ]
    return tuple(cutoff for cutoff in cutoffs if cutoff <= others), notes


WORST = 12
"""Queries that are shown one by one."""

PAIRS = 20
"""Most confused pairs of classes that are shown."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Measured:
    """By query: metrics (M, Q) named in `columns`, average precision (Q,), the first k matches."""

    columns: list[tuple[str, int | None]]
    values: NDArray[np.float64]
    average_precision: NDArray[np.float64]
    top: Ranking

    def column(self, name: str, k: int | None) -> NDArray[np.float64]:
        values: NDArray[np.float64] = self.values[self.columns.index((name, k))]
        return values


def evaluate(
    vectors: VectorSet,
    *,
    k: int = 10,
    ks: Sequence[int] = (1, 5, 10),
    queries: int | None = None,
    seed: int = 0,
    progress: Progress = NO_PROGRESS,
) -> Evaluation:
    """Ranks all other pictures for each query and measures how many of its class come first.

    Pictures that are alone in their class are searched, but are no queries. The ranks reach as
    far as the largest class among the queries, so that R-precision and MAP@R are exact; beyond
    `planning.MAX_DEPTH` the two are left out, and `notes` says so.

    Args:
        vectors: A labelled set.
        k: Cut-off of classes, confusion and worst queries; from 1 to N - 1.
        ks: Further cut-offs of the metrics; those above N - 1 are left out, and `notes` says so.
        queries: How many pictures to ask, chosen at random; all unless given.
        seed: Of the choice and of the intervals.
        progress: Told how many queries are ranked; may end the work.

    Raises:
        InvalidParameterError: The set has no labels, no two pictures with the same label, or a
            number is out of its range.
    """
    watch = Stopwatch()
    classes = encode_labels(vectors.labels)
    plan = make_plan(classes, k=k, ks=ks, queries=queries, seed=seed)
    measured = _measure(vectors, classes, plan, watch=watch, progress=progress)
    return _summarize(vectors, classes, plan, measured, watch=watch)


def evaluate_query(vectors: VectorSet, position: int, k: int = 10) -> QueryResult:
    """One picture's k matches among the others; works without labels.

    Raises:
        InvalidParameterError: The position or k is out of its range.
    """
    query = np.array([position], dtype=np.int64)
    found = rank(vectors, queries=query, k=k)
    average_precision = None
    if vectors.labels is not None:
        classes = encode_labels(vectors.labels)
        if classes.counts()[classes.codes[position]] > 1:
            relevance = judge(classes, queries=query, positions=found.positions)
            average_precision = float(average_precision_at(relevance, k)[0])
    return query_result(vectors, found, row=0, average_precision=average_precision)


def _measure(
    vectors: VectorSet,
    classes: Classes,
    plan: Plan,
    *,
    watch: Stopwatch,
    progress: Progress,
) -> _Measured:
    """Ranks block by block, and keeps of each block its metrics and its first k matches."""
    columns: list[tuple[str, int | None]] = [(name, cutoff) for name in AT_K for cutoff in plan.ks]
    columns += [(name, None) for name in AT_R if plan.with_r]
    columns.append(("mrr", plan.depth))
    values, precisions, tops = [], [], []
    with watch.stage("index"):
        blocks = rank_blocks(vectors, queries=plan.queries, k=plan.depth, progress=progress)
    while True:
        with watch.stage("rank"):
            block = next(blocks, None)
        if block is None:
            break
        with watch.stage("measure"):
            relevance = judge(classes, queries=block.queries, positions=block.positions)
            values.append([values_of(relevance, name, cutoff) for name, cutoff in columns])
            precisions.append(average_precision_at(relevance, plan.depth))
            tops.append(block.first(plan.k))
    return _Measured(
        columns=columns,
        values=np.concatenate(values, axis=1),
        average_precision=np.concatenate(precisions),
        top=concatenate(tops),
    )


def _summarize(
    vectors: VectorSet, classes: Classes, plan: Plan, measured: _Measured, *, watch: Stopwatch
) -> Evaluation:
    top = measured.top
    with watch.stage("summarize"):
        metrics = _metrics(measured, seed=plan.seed)
        per_class = class_results(
            classes,
            queries=plan.queries,
            k=plan.k,
            precision=measured.column("precision", plan.k),
            average_precision=measured.column("map", plan.k),
            seed=plan.seed,
        )
        confusion = confuse(classes, queries=top.queries, positions=top.positions)
        pairs = confused_pairs(vectors, classes, confusion, top, count=PAIRS)
        worst = worst_queries(vectors, top, measured.average_precision, count=WORST)
    return Evaluation(
        dataset=vectors.name,
        dataset_sha256=_fingerprint(vectors),
        spec=vectors.spec,
        provenance=dict(vectors.provenance),
        pictures=len(vectors),
        classes=len(classes.names),
        queries=len(plan.queries),
        left_out=plan.left_out,
        skipped=tuple(vectors.skipped),
        k=plan.k,
        ks=plan.ks,
        depth=plan.depth,
        asked=plan.asked,
        seed=plan.seed,
        chance=plan.chance,
        metrics=metrics,
        per_class=per_class,
        confusion=confusion,
        confused_pairs=pairs,
        worst=worst,
        notes=plan.notes,
        seconds={name: ms / 1000 for name, ms in watch.took_ms().items()},
        versions=_versions(),
        created_at=utc_now(),
    )


def _metrics(measured: _Measured, *, seed: int) -> tuple[Metric, ...]:
    low, high = mean_intervals(measured.values, seed=seed)
    return tuple(
        Metric(name=name, k=k, value=float(value), low=float(start), high=float(end))
        for (name, k), value, start, end in zip(
            measured.columns, measured.values.mean(axis=1), low, high, strict=True
        )
    )


def _fingerprint(vectors: VectorSet) -> str:
    """A digest of which pictures these are, whatever their order; not of their vectors."""
    assert vectors.labels is not None
    rows = sorted(zip(vectors.ids, vectors.sha256s, vectors.labels, strict=True))
    return hashlib.sha256(json.dumps(rows, ensure_ascii=True).encode()).hexdigest()


def _versions() -> dict[str, str]:
    return {
        "lookalike": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
