"""Asks every picture of a labelled set for the others of its class."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Sequence
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
    values_of,
)
from lookalike.evaluation.ranking import Positions, Ranking, concatenate, rank, rank_blocks
from lookalike.evaluation.results import (
    Column,
    Evaluation,
    QueryResult,
    class_results,
    confuse,
    confused_pairs,
    mean_metrics,
    query_result,
)
from lookalike.progress import NO_PROGRESS, Progress
from lookalike.records import utc_now
from lookalike.services.search import Stopwatch
from lookalike.services.vector_set import VectorSet

MAX_DEPTH: Final = 5000
"""Where a class has more other pictures than this, R-precision and MAP@R are left out."""

WORST = 12
"""Queries that are shown one by one."""

PAIRS = 20
"""Most confused pairs of classes that are shown."""


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
    `MAX_DEPTH` the two are left out, and `notes` says so.

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
    relevant = classes.counts()[classes.codes] - 1  # (N,)
    chosen = _choose(np.flatnonzero(relevant), count=queries, seed=seed)
    others = len(relevant) - 1
    cutoffs, notes = _cutoffs(k, ks, others)
    columns: list[Column] = [(name, cutoff) for name in AT_K for cutoff in cutoffs]
    depth, most = max((k, *cutoffs)), int(relevant[chosen].max())
    if most <= MAX_DEPTH:
        depth = max(depth, most)
        columns += [(name, None) for name in AT_R]
    else:
        notes.append(
            f"R-precision and MAP@R are left out: they would need {most} ranks for the largest "
            f"class, and {MAX_DEPTH} are the most that are looked at for them."
        )
    columns.append(("mrr", depth))
    with watch.stage("index"):
        blocks = rank_blocks(vectors, queries=chosen, k=depth, scored=k, progress=progress)
    values, average_precision, top = _measure(blocks, classes, columns, k=k, watch=watch)
    with watch.stage("summarize"):
        metrics = mean_metrics(columns, values, seed=seed)
        at_k = values[[columns.index(("precision", k)), columns.index(("map", k))]]
        per_class = class_results(classes, at_k, queries=chosen, k=k, seed=seed)
        confusion = confuse(classes, queries=chosen, positions=top.positions)
        pairs = confused_pairs(vectors, classes, confusion, top, count=PAIRS)
        worst = tuple(
            query_result(vectors, top, row=row, average_precision=float(average_precision[row]))
            for row in np.argsort(average_precision, kind="stable")[:WORST].tolist()
        )
    return Evaluation(
        dataset=vectors.name,
        dataset_sha256=_fingerprint(vectors),
        spec=vectors.spec,
        provenance=dict(vectors.provenance),
        pictures=len(vectors),
        classes=len(classes.names),
        queries=len(chosen),
        left_out=int((relevant == 0).sum()),
        skipped=tuple(vectors.skipped),
        k=k,
        ks=cutoffs,
        depth=depth,
        asked=queries,
        seed=seed,
        chance=float(relevant[chosen].mean()) / others,
        metrics=metrics,
        values=values,
        per_class=per_class,
        confusion=confusion,
        confused_pairs=pairs,
        worst=worst,
        notes=tuple(notes),
        seconds={name: ms / 1000 for name, ms in watch.took_ms().items()},
        versions={
            "lookalike": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
        },
        created_at=utc_now(),
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
    """The cut-offs that can be looked at, ascending, and a sentence for each that cannot."""
    cutoffs = sorted({k, *ks})
    if cutoffs[0] < 1:
        raise InvalidParameterError(f"A cut-off is {cutoffs[0]}; choose 1 or more")
    notes = [
        f"The cut-off {cutoff} is left out: each picture has only {others} others."
        for cutoff in cutoffs
        if cutoff > others
    ]
    return tuple(cutoff for cutoff in cutoffs if cutoff <= others), notes


def _measure(
    blocks: Iterator[Ranking], classes: Classes, columns: list[Column], *, k: int, watch: Stopwatch
) -> tuple[NDArray[np.float64], NDArray[np.float64], Ranking]:
    """Metrics (M, Q) of `columns`, average precision (Q,) over all ranks, the first k matches."""
    values, precisions, tops = [], [], []
    while True:
        with watch.stage("rank"):
            block = next(blocks, None)
        if block is None:
            break
        with watch.stage("measure"):
            relevance = judge(classes, queries=block.queries, positions=block.positions)
            values.append([values_of(relevance, name, cutoff) for name, cutoff in columns])
            precisions.append(average_precision_at(relevance, relevance.depth))
            tops.append(block.first(k))
    return np.concatenate(values, axis=1), np.concatenate(precisions), concatenate(tops)


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


def _fingerprint(vectors: VectorSet) -> str:
    """A digest of which pictures these are, whatever their order; not of their vectors."""
    assert vectors.labels is not None
    rows = sorted(zip(vectors.ids, vectors.sha256s, vectors.labels, strict=True))
    return hashlib.sha256(json.dumps(rows, ensure_ascii=True).encode()).hexdigest()
