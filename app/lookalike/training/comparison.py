"""What a head does to pictures that it was not trained on: the same measure before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lookalike.evaluation.metrics import Relevance, encode_labels, judge, mean_intervals, values_of
from lookalike.evaluation.ranking import rank
from lookalike.evaluation.results import Evaluation, Metric
from lookalike.evaluation.runner import evaluate, make_plan
from lookalike.models.head import Head
from lookalike.progress import NO_PROGRESS, Progress
from lookalike.services.vector_set import VectorSet
from lookalike.training.plan import Split

QUERIES: Final = 5000
"""Queries of each part at most, chosen at random."""

PartName = Literal["unseen", "held_out"]

TITLES: dict[PartName, str] = {
    "unseen": "classes never seen in training",
    "held_out": "other pictures of the trained classes",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a head does to a metric, query by query: the mean difference, after minus before."""

    value: float  # in [-1, 1]
    low: float  # lower end of its 95% interval
    high: float  # upper end


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Compared:
    """One part of a set, measured without and with the head."""

    name: PartName  # `unseen` or `held_out`, see `splits.Split`
    plain: VectorSet  # the part as it was
    headed: VectorSet  # the same pictures with the head's vectors
    before: Evaluation  # pictures of `plain` ranked against its others
    after: Evaluation  # the same queries for `headed`
    # one for each metric of both. Their intervals are narrower than those of `before` and `after`,
    # for the queries are the same.
    changes: tuple[Change, ...]

    @property
    def title(self) -> str:
        """For people."""
        return TITLES[self.name]


def compare(
    vectors: VectorSet,
    headed: VectorSet,
    split: Split,
    *,
    seed: int = 0,
    progress: Progress = NO_PROGRESS,
) -> tuple[Compared, ...]:
    """Measures both parts that were kept; those without pictures are left out."""
    parts: list[tuple[PartName, NDArray[np.int64]]] = [
        ("unseen", split.unseen),
        ("held_out", split.held_out),
    ]
    kept = [(name, positions) for name, positions in parts if len(positions)]
    compared = []
    for number, (name, positions) in enumerate(kept, start=1):
        compared.append(_compare_part(vectors, headed, name, positions, seed=seed))
        progress.report(number, len(kept))
    return tuple(compared)


def _compare_part(
    vectors: VectorSet,
    headed_whole: VectorSet,
    name: PartName,
    positions: NDArray[np.int64],
    *,
    seed: int,
) -> Compared:
    plain, headed = (
        part_of(one, positions, name=f"{one.name}: {TITLES[name]}")
        for one in (vectors, headed_whole)
    )
    k = min(10, len(plain) - 1)
    before, after = (evaluate(one, k=k, queries=QUERIES, seed=seed) for one in (plain, headed))
    return Compared(
        name=name,
        plain=plain,
        headed=headed,
        before=before,
        after=after,
        changes=_changes(plain, headed, before, seed=seed),
    )


def _changes(
    plain: VectorSet, headed: VectorSet, before: Evaluation, *, seed: int
) -> tuple[Change, ...]:
    classes = encode_labels(plain.labels)
    plan = make_plan(classes, k=before.k, ks=before.ks, queries=QUERIES, seed=seed)
    first, second = (
        _values(judge(classes, queries=plan.queries, positions=found.positions), before.metrics)
        for found in (
            rank(one, queries=plan.queries, k=plan.depth, scored=0) for one in (plain, headed)
        )
    )
    apart = second - first
    ends = zip(apart.mean(axis=1), *mean_intervals(apart, seed=seed), strict=True)
    return tuple(Change(value=float(v), low=float(a), high=float(b)) for v, a, b in ends)


def _values(relevance: Relevance, metrics: Sequence[Metric]) -> NDArray[np.float64]:
    """Each metric of each query: (M, Q)."""
    return np.stack([values_of(relevance, metric.name, metric.k) for metric in metrics])


def part_of(vectors: VectorSet, positions: NDArray[np.int64], *, name: str) -> VectorSet:
    """Some pictures of a set, in the order of their positions."""
    chosen = positions.tolist()

    def picture(position: int, *, size: int) -> Image.Image:
        return vectors.picture(chosen[position], size=size)

    labels = vectors.labels
    return replace(
        vectors,
        name=name,
        vectors=np.array(vectors.vectors[positions], dtype=np.float32),
        ids=[vectors.ids[position] for position in chosen],
        names=[vectors.names[position] for position in chosen],
        labels=None if labels is None else [labels[position] for position in chosen],
        sha256s=[vectors.sha256s[position] for position in chosen],
        picture=picture,
        skipped=(),
    )


def with_head(vectors: VectorSet, head: Head) -> VectorSet:
    """The same pictures with the head's vectors and spec.

    Raises:
        WeightsMismatchError: The head was trained on the vectors of another network.
    """
    return replace(
        vectors,
        spec=head.spec_over(vectors.spec),
        vectors=head.apply(np.ascontiguousarray(vectors.vectors, dtype=np.float32)),
    )
