"""Several models on the same pictures: paired differences, and the queries that changed most."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InvalidImageError, InvalidParameterError
from lookalike.evaluation.datasets import Dataset
from lookalike.evaluation.metrics import mean_intervals
from lookalike.evaluation.runner import Evaluation, Metric, QueryResult, evaluate, evaluate_query
from lookalike.media.decoder import ImageDecoder
from lookalike.models.base import Encoder
from lookalike.progress import NO_PROGRESS, Progress
from lookalike.services.vector_set import VectorSet

TIMED = 64  # pictures whose time is measured
CHANGED = 12  # queries that are shown
SHOWN_MATCHES = 8  # of each, by each model


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What another model, or a head, does to a metric: the mean difference over queries."""

    value: float  # in [-1, 1], after minus before
    low: float  # lower end of its 95% interval
    high: float  # upper end


def paired_changes(before: Evaluation, after: Evaluation, *, seed: int) -> tuple[Change, ...]:
    """The difference of each metric of two evaluations of the same queries, after minus before.

    With d_q the difference of query q, of Q queries, `value` is the mean of all d_q. The interval
    is a paired bootstrap: `RESAMPLES` times, Q queries are drawn with replacement and the mean of
    their d_q is taken; it reaches from the 2.5th to the 97.5th percentile of these means. Both are
    always asked the same queries, so what makes a query hard for both does not widen it.

    Raises:
        ValueError: The queries or the metrics differ.
    """
    if before.values.shape != after.values.shape or before.dataset_sha256 != after.dataset_sha256:
        raise ValueError("the two were not asked the same queries of the same pictures")
    apart = after.values - before.values
    ends = zip(apart.mean(axis=1), *mean_intervals(apart, seed=seed), strict=True)
    return tuple(Change(value=float(v), low=float(low), high=float(high)) for v, low, high in ends)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a model takes, in a process of its own."""

    load_s: float  # CPU seconds from the start of the process until it was loaded
    cpu_ms: float  # of CPU time, to resize and embed one picture
    wall_ms: float  # of time, likewise
    timed: int  # pictures that were measured, in batches
    batch: int  # pictures in each
    peak_bytes: int  # of memory, at most, by the end of that


def time_pictures(
    dataset: Dataset, encoder: Encoder, decoder: ImageDecoder, *, batch: int
) -> Mapping[str, float]:
    """Measures an encoder: `cpu_ms` and `wall_ms` a picture, and how many were `timed`.

    The pictures are spread over the dataset, and decoded before: that takes each model the same.
    One batch is embedded before, as the first takes longer. Raises `InvalidParameterError` if none
    of them can be read.
    """
    images = []
    for position in np.linspace(0, len(dataset) - 1, min(TIMED, len(dataset)), dtype=int).tolist():
        with suppress(InvalidImageError), dataset.source(position).open() as file:
            preprocess, size = encoder.spec.preprocess, encoder.decode_size
            images.append(decoder.decode(file, decode_size=size, preprocess=preprocess).image)
    if not images:
        raise InvalidParameterError(f"None of {dataset.name}'s pictures can be read")

    encoder.encode([encoder.prepare(image) for image in images[:batch]])
    cpu, wall = time.process_time(), time.perf_counter()
    prepared = [encoder.prepare(image) for image in images]
    for start in range(0, len(prepared), batch):
        encoder.encode(prepared[start : start + batch])
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {
        "cpu_ms": 1000 * cpu / len(images),
        "wall_ms": 1000 * wall / len(images),
        "timed": len(images),
    }


def peak_memory() -> int:
    """The most bytes of memory that this process has held.

    Not `ru_maxrss`, which begins at what the process that started this one held.
    """
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        line = next(line for line in lines if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource  # noqa: PLC0415 - not on Windows
    import sys  # noqa: PLC0415

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidate:
    """One model of a comparison."""

    name: str  # as it was asked for
    vectors: VectorSet
    cost: Cost
    evaluation: Evaluation
    changes: tuple[Change, ...]  # of each metric, against the first model; its own are 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChangedQuery:
    """A query that the models answer differently."""

    results: tuple[QueryResult, ...]  # one by each model
    values: tuple[float, ...]  # the main metric of each


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Comparison:
    """Models on the same pictures and queries."""

    candidates: tuple[Candidate, ...]  # in the order asked for; the first is what others change
    failed: Mapping[str, str]  # the models that could not be measured, and why
    main: tuple[str, int | None]  # the metric to choose by: MAP@R, or mAP@k where that is left out
    shown: tuple[Metric, ...]  # the metrics of the table, as the first model has them
    changed: tuple[ChangedQuery, ...]  # the queries that changed most, the largest change first
    notes: tuple[str, ...]

    def of(self, candidate: Candidate, metric: Metric) -> tuple[Metric, Change]:
        """A metric of a model, and its difference to the first model's."""
        found = candidate.evaluation.metric(metric.name, metric.k)
        return found, candidate.changes[candidate.evaluation.metrics.index(found)]


def compare_models(
    measured: Mapping[str, tuple[VectorSet, Cost]],
    *,
    failed: Mapping[str, str] | None = None,
    k: int = 10,
    queries: int | None = None,
    seed: int = 0,
    progress: Progress = NO_PROGRESS,
) -> Comparison:
    """Evaluates models on the pictures that all of them could read, and compares them.

    Args:
        measured: The vectors of the same dataset and the cost, by the model's name; the others are
            held against the first.
        failed: Models that could not be measured, and why.
        k: As of `evaluate`, as are `queries` and `seed`: all models are asked the same queries.
        queries: Likewise.
        seed: Of the choice of queries and of the intervals.
        progress: Told how many queries are ranked.

    Raises:
        InvalidParameterError: As `evaluate`.
    """
    sets, notes = _common({name: vectors for name, (vectors, _) in measured.items()})
    evaluations = {
        name: evaluate(
            vectors, k=k, queries=queries, seed=seed, progress=progress.stage(f"ranking, {name}")
        )
        for name, vectors in sets.items()
    }
    first = next(iter(evaluations.values()))
    candidates = tuple(
        Candidate(
            name=name,
            vectors=sets[name],
            cost=measured[name][1],
            evaluation=evaluation,
            changes=paired_changes(first, evaluation, seed=seed),
        )
        for name, evaluation in evaluations.items()
    )
    main = ("map_at_r", None) if ("map_at_r", None) in _columns(first) else ("map", k)
    shown = [("precision", 1), ("precision", k), main]
    digests: dict[str, str] = {}
    for name, vectors in sets.items():
        same = digests.setdefault(vectors.spec.digest, name)
        if same != name:
            notes.append(f"{name} and {same} are the same model: their vectors mean the same.")
    return Comparison(
        candidates=candidates,
        failed=dict(failed or {}),
        main=main,
        shown=tuple(first.metric(*one) for one in dict.fromkeys(shown)),
        changed=_most_changed(candidates, main),
        notes=(*notes, *first.notes),
    )


def _columns(evaluation: Evaluation) -> list[tuple[str, int | None]]:
    return [(metric.name, metric.k) for metric in evaluation.metrics]


def _common(sets: Mapping[str, VectorSet]) -> tuple[dict[str, VectorSet], list[str]]:
    """The pictures that all sets have with the same content, and what was left out."""
    contents = [dict(zip(one.ids, one.sha256s, strict=True)).items() for one in sets.values()]
    common = set(contents[0]).intersection(*contents[1:])
    parts = {}
    for name, one in sets.items():
        kept = [
            at for at, key in enumerate(zip(one.ids, one.sha256s, strict=True)) if key in common
        ]
        parts[name] = one if len(kept) == len(one) else one.part(np.array(kept, dtype=np.int64))
    left_out = len({id for one in sets.values() for id in one.ids}) - len(common)
    text = f"{left_out} pictures are left out: not all models could read them, or they changed."
    return parts, [text] if left_out else []


def _most_changed(
    candidates: Sequence[Candidate], main: tuple[str, int | None]
) -> tuple[ChangedQuery, ...]:
    """The queries whose main metric differs most between any two models."""
    row = _columns(candidates[0].evaluation).index(main)
    values = np.stack([one.evaluation.values[row] for one in candidates])  # (models, Q)
    spread: NDArray[np.float64] = values.max(axis=0) - values.min(axis=0)
    order = np.argsort(-spread, kind="stable")[:CHANGED]
    positions = candidates[0].evaluation.positions
    most = min(SHOWN_MATCHES, len(candidates[0].vectors) - 1)
    return tuple(
        ChangedQuery(
            results=tuple(
                evaluate_query(one.vectors, int(positions[query]), most) for one in candidates
            ),
            values=tuple(values[:, query].tolist()),
        )
        for query in order[spread[order] > 0].tolist()
    )
