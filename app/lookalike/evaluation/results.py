"""What an evaluation found: metrics, classes, confused pairs, single queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lookalike.evaluation.metrics import Classes, mean_intervals
from lookalike.evaluation.ranking import Positions, Ranking
from lookalike.records import ModelSpec
from lookalike.services.vector_set import Skipped, VectorSet

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
    """Counts classes among the matches.

    Takes memory for the pairs that occur, so that thousands of classes are no trouble.

    `queries` are (Q,) positions, and `positions` (Q, k) those of their ranked matches.
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

    Of equal scores the lowest query, then the best rank, stands for the pair.

    `confusion` is that of `top`, the first k matches of all queries.
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
