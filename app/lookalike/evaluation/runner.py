"""Asks every picture of a labelled set for the others of its class, and says what was found."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
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
from lookalike.progress import NO_PROGRESS, Progress
from lookalike.records import ModelSpec, utc_now
from lookalike.services.ranking import Positions, Ranking, concatenate, rank, rank_blocks
from lookalike.services.search import Stopwatch
from lookalike.services.vector_set import Skipped, VectorSet

MAX_DEPTH: Final = 5000
"""Where a class has more other pictures than this, R-precision and MAP@R are left out."""

WORST = 12
"""Queries that are shown one by one."""

PAIRS = 20
"""Most confused pairs of classes that are shown."""

Column = tuple[str, int | None]
"""The name of a metric and its cut-off, see `Metric`."""

_TITLES = {
    "precision": "Precision",
    "hit_rate": "Hit rate",
    "recall": "Recall",
    "map": "mAP",
    "ndcg": "nDCG",
    "r_precision": "R-precision",
    "map_at_r": "MAP@R",
    "mrr": "MRR",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A mean over queries with its interval, all in [0, 1]."""

    # one of `precision`, `hit_rate`, `recall`, `map`, `ndcg`, `mrr`, `r_precision`, `map_at_r`; see
    # `lookalike.evaluation.metrics`
    name: str
    k: int | None  # the ranks that were looked at; None where each query has its own cut-off R
    value: float  # the mean
    low: float  # lower end of its 95% interval
    high: float  # upper end

    def __post_init__(self) -> None:
        """Checks the name and the ranges; raises ValueError."""
        if self.name not in _TITLES:
            raise ValueError(f"no metric {self.name!r}; there are: {', '.join(_TITLES)}")
        if not 0 <= self.low <= self.value <= self.high <= 1:
            raise ValueError(f"{self.name}: {self.low} <= {self.value} <= {self.high} is not so")

    @property
    def title(self) -> str:
        """For people, e.g. `Precision@10`."""
        title = _TITLES[self.name]
        return title if self.k is None else f"{title}@{self.k}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassResult:
    """One class's queries."""

    label: str  # the class
    pictures: int  # in the whole set
    queries: int  # at least 1
    precision: Metric  # precision@k over them
    average_precision: Metric  # mAP@k over them


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedMatch:
    """One match of a query."""

    rank: int  # 1 for the best
    position: int  # in the set
    id: str  # the picture's
    name: str  # for display
    label: str | None  # its class, or None where there are no labels
    score: float  # cosine similarity in [-1, 1]
    relevant: bool | None  # whether it has the query's label, or None where there are no labels


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryResult:
    """One query and its k matches, best first."""

    position: int  # in the set
    id: str  # the picture's
    name: str  # for display
    label: str | None  # its class, or None where there are no labels
    # the share of the k matches that are relevant; None where there are no labels, or no other
    # picture has the query's
    precision: float | None
    average_precision: float | None  # over the ranks that were looked at; None as above
    matches: tuple[RankedMatch, ...]  # the k best


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfusedPair:
    """Two classes of which one is found for the other."""

    asked: str  # class of the queries
    found: str  # class of the matches
    share: float  # of the first k matches of the queries of `asked`, in (0, 1]
    query: int  # position of a query of the highest-scored such match
    match: RankedMatch  # that match


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Confusion:
    """Shares of classes among the first k matches, without the pairs that never occurred."""

    names: tuple[str, ...]  # the C classes
    asked: NDArray[np.int64]  # (P,) int64, the class of the queries; with `found`, ascending
    found: NDArray[np.int64]  # (P,) int64, the class of the matches
    shares: NDArray[np.float64]  # (P,) float64 in (0, 1]; those of one asked class add up to 1

    def matrix(self) -> NDArray[np.float64]:
        """(C, C): row i, column j is the share of class j in the matches of class i's queries.

        NaN in the rows of classes that had no query.
        """
        size = len(self.names)
        dense = np.full((size, size), np.nan)
        dense[self.asked] = 0.0
        dense[self.asked, self.found] = self.shares
        return dense

    def rows(self) -> list[list[float] | None]:
        """As `matrix`, None for a row without queries."""
        return [None if np.isnan(row).any() else row.tolist() for row in self.matrix()]

    def by_name(self) -> dict[tuple[str, str], float]:
        """Shares by the labels of query and match; pairs that never occurred are missing."""
        asked, found = self.asked.tolist(), self.found.tolist()
        return {
            (self.names[row], self.names[column]): share
            for row, column, share in zip(asked, found, self.shares.tolist(), strict=True)
        }

    def most_confused(self, count: int) -> list[tuple[int, int, float]]:
        """Pairs of different classes by falling share: asked, found, share; at most `count`."""
        wrong = np.flatnonzero(self.asked != self.found)
        order = wrong[np.argsort(-self.shares[wrong], kind="stable")[:count]]
        return [
            (int(self.asked[pair]), int(self.found[pair]), float(self.shares[pair]))
            for pair in order
        ]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """How well the pictures of a labelled set find each other.

    Each query is ranked against all other pictures of the set (leave one out).
    """

    dataset: str  # its name
    dataset_sha256: str  # over ids, contents and labels: the same for the same pictures
    spec: ModelSpec  # what made the vectors
    provenance: Mapping[str, str]  # recorded beside it
    pictures: int  # in the set
    classes: int  # different labels
    queries: int  # that were asked
    left_out: int  # pictures that cannot be queries, since no other has their label
    skipped: tuple[Skipped, ...]  # pictures that could not be read
    k: int  # cut-off of classes, confusion and worst queries
    ks: tuple[int, ...]  # cut-offs of the metrics, ascending; k is among them
    depth: int  # ranks that were looked at
    asked: int | None  # how many random queries were wanted; None for all
    seed: int  # of the choice of queries and of the intervals
    chance: float  # precision that a random order would have
    metrics: tuple[Metric, ...]  # means over all queries
    values: NDArray[np.float64]  # (M, Q) float64, each metric of each query
    positions: Positions  # (Q,) of the queries in the set, ascending
    per_class: tuple[ClassResult, ...]  # classes that had queries, in the order of their labels
    confusion: Confusion  # among the first k matches
    confused_pairs: tuple[ConfusedPair, ...]  # the most confused ones, worst first
    worst: tuple[QueryResult, ...]  # the queries with the lowest average precision, worst first
    notes: tuple[str, ...]  # what was left out of this evaluation and why, in sentences
    seconds: Mapping[str, float]  # by stage
    versions: Mapping[str, str]  # of what took part
    created_at: str  # ISO 8601 in UTC
    index: str = "Flat"  # the index type in the store's words; ranks are always exact

    def metric(self, name: str, k: int | None = None) -> Metric:
        """The metric of this name and cut-off; raises KeyError."""
        for metric in self.metrics:
            if (metric.name, metric.k) == (name, k):
                return metric
        raise KeyError(f"{name} at {k}")


def evaluate(
    vectors: VectorSet,
    *,
    k: int = 10,
    ks: Sequence[int] = (1, 5, 10),
    queries: int | None = None,
    seed: int = 0,
    max_depth: int = MAX_DEPTH,
    progress: Progress = NO_PROGRESS,
) -> Evaluation:
    """Ranks all other pictures for each query and measures how many of its class come first.

    Pictures that are alone in their class are searched, but are no queries. The ranks reach as
    far as the largest class among the queries, so that R-precision and MAP@R are exact; beyond
    `max_depth` the two are left out, and `notes` says so.

    Args:
        vectors: A labelled set.
        k: Cut-off of classes, confusion and worst queries; from 1 to N - 1.
        ks: Further cut-offs of the metrics; those above N - 1 are left out, and `notes` says so.
        queries: How many pictures to ask, chosen at random; all unless given.
        seed: Of the choice and of the intervals.
        max_depth: Most ranks that R-precision and MAP@R may need.
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
    if most <= max_depth:
        depth = max(depth, most)
        columns += [(name, None) for name in AT_R]
    else:
        notes.append(
            f"R-precision and MAP@R are left out: they would need {most} ranks for the largest "
            f"class, and {max_depth} are the most that are looked at for them."
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
        positions=chosen,
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


def mean_metrics(
    columns: Sequence[Column], values: NDArray[np.float64], *, seed: int
) -> tuple[Metric, ...]:
    """Means over queries with intervals; `values` is (M, Q), a row for each name and cut-off."""
    low, high = mean_intervals(values, seed=seed)
    figures = np.stack([values.mean(axis=1), low, high], axis=1).tolist()
    return tuple(
        Metric(name=name, k=k, value=value, low=start, high=end)
        for (name, k), (value, start, end) in zip(columns, figures, strict=True)
    )


def confuse(classes: Classes, *, queries: Positions, positions: Positions) -> Confusion:
    """Counts classes among the matches: of queries, (Q,), at `positions`, (Q, k).

    Takes memory for the pairs that occur, so that thousands of classes are no trouble.
    """
    size = len(classes.names)
    own = classes.codes[queries]
    pairs, times = np.unique(
        own[:, np.newaxis] * size + classes.codes[positions], return_counts=True
    )
    asked, found = np.divmod(pairs, size)
    matches = np.bincount(own, minlength=size) * positions.shape[1]  # of each class's queries
    return Confusion(names=classes.names, asked=asked, found=found, shares=times / matches[asked])


def class_results(
    classes: Classes, values: NDArray[np.float64], *, queries: Positions, k: int, seed: int
) -> tuple[ClassResult, ...]:
    """Means over the queries of each class; `values` has their precision and mAP at k, (2, Q)."""
    own, pictures = classes.codes[queries], classes.counts()
    columns = [("precision", k), ("map", k)]
    results = []
    for code in np.unique(own).tolist():
        group = np.flatnonzero(own == code)
        precision, average_precision = mean_metrics(columns, values.take(group, axis=1), seed=seed)
        results.append(
            ClassResult(
                label=classes.names[code],
                pictures=int(pictures[code]),
                queries=len(group),
                precision=precision,
                average_precision=average_precision,
            )
        )
    return tuple(results)


def confused_pairs(
    vectors: VectorSet, classes: Classes, confusion: Confusion, top: Ranking, *, count: int
) -> tuple[ConfusedPair, ...]:
    """The most confused pairs of classes, each with its highest-scored pair of pictures.

    Of equal scores the lowest query, then the best rank, stands for the pair. `confusion` is that
    of `top`, the first k matches of all queries.
    """
    own, found = classes.codes[top.queries], classes.codes[top.positions]
    pairs = []
    for asked, other, share in confusion.most_confused(count):
        rows, places = np.nonzero((own == asked)[:, np.newaxis] & (found == other))
        best = int(np.argmax(top.scores[rows, places]))
        row, place = int(rows[best]), int(places[best])
        pairs.append(
            ConfusedPair(
                asked=classes.names[asked],
                found=classes.names[other],
                share=share,
                query=int(top.queries[row]),
                match=_match(vectors, top, row, place),
            )
        )
    return tuple(pairs)


def query_result(
    vectors: VectorSet, ranking: Ranking, *, row: int, average_precision: float | None
) -> QueryResult:
    """One row of a ranking, with what the set knows of its pictures.

    `average_precision` is None where the query has nothing to find, or there are no labels.
    """
    position = int(ranking.queries[row])
    matches = tuple(
        _match(vectors, ranking, row, place) for place in range(ranking.positions.shape[1])
    )
    right = sum(bool(match.relevant) for match in matches)
    return QueryResult(
        position=position,
        id=vectors.ids[position],
        name=vectors.names[position],
        label=None if vectors.labels is None else vectors.labels[position],
        precision=None if average_precision is None else right / len(matches),
        average_precision=average_precision,
        matches=matches,
    )


def _match(vectors: VectorSet, ranking: Ranking, row: int, place: int) -> RankedMatch:
    position, labels = int(ranking.positions[row, place]), vectors.labels
    label = None if labels is None else labels[position]
    return RankedMatch(
        rank=place + 1,
        position=position,
        id=vectors.ids[position],
        name=vectors.names[position],
        label=label,
        score=float(ranking.scores[row, place]),
        relevant=None if labels is None else label == labels[int(ranking.queries[row])],
    )
