"""What an evaluation found: frozen, plain, and enough to repeat it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lookalike.records import ModelSpec
from lookalike.services.vector_set import Skipped

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
    """A mean over queries with its interval, all in [0, 1].

    Attributes:
        name: One of `precision`, `hit_rate`, `recall`, `map`, `ndcg`, `mrr`, `r_precision`,
            `map_at_r`; see `lookalike.evaluation.metrics`.
        k: The ranks that were looked at; None where each query has its own cut-off R.
        value: The mean.
        low: Lower end of its 95% interval.
        high: Upper end.
    """

    name: str
    k: int | None
    value: float
    low: float
    high: float

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
    """One class's queries.

    Attributes:
        label: The class.
        pictures: In the whole set.
        queries: At least 1.
        precision: Precision@k over them.
        average_precision: mAP@k over them.
    """

    label: str
    pictures: int
    queries: int
    precision: Metric
    average_precision: Metric


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedMatch:
    """One match of a query.

    Attributes:
        rank: 1 for the best.
        position: In the set.
        id: The picture's.
        name: For display.
        label: Its class, or None where there are no labels.
        score: Cosine similarity in [-1, 1].
        relevant: Whether it has the query's label, or None where there are no labels.
    """

    rank: int
    position: int
    id: str
    name: str
    label: str | None
    score: float
    relevant: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryResult:
    """One query and its k matches, best first.

    Attributes:
        position: In the set.
        id: The picture's.
        name: For display.
        label: Its class, or None where there are no labels.
        precision: The share of the k matches that are relevant; None where there are no labels,
            or no other picture has the query's.
        average_precision: Over the ranks that were looked at; None as above.
        matches: The k best.
    """

    position: int
    id: str
    name: str
    label: str | None
    precision: float | None
    average_precision: float | None
    matches: tuple[RankedMatch, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfusedPair:
    """Two classes of which one is found for the other.

    Attributes:
        asked: Class of the queries.
        found: Class of the matches.
        share: Of the first k matches of the queries of `asked`, in (0, 1].
        query: Position of a query of the highest-scored such match.
        match: That match.
    """

    asked: str
    found: str
    share: float
    query: int
    match: RankedMatch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Confusion:
    """Shares of classes among the first k matches, without the pairs that never occurred.

    Attributes:
        names: The C classes.
        asked: (P,) int64, the class of the queries; with `found`, ascending.
        found: (P,) int64, the class of the matches.
        shares: (P,) float64 in (0, 1]; those of one asked class add up to 1.
    """

    names: tuple[str, ...]
    asked: NDArray[np.int64]
    found: NDArray[np.int64]
    shares: NDArray[np.float64]

    def matrix(self) -> NDArray[np.float64]:
        """(C, C): row i, column j is the share of class j in the matches of class i's queries.

        NaN in the rows of classes that had no query.
        """
        size = len(self.names)
        dense = np.full((size, size), np.nan)
        dense[self.asked] = 0.0
        dense[self.asked, self.found] = self.shares
        return dense

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

    Attributes:
        dataset: Its name.
        dataset_sha256: Over ids, contents and labels: the same for the same pictures.
        spec: What made the vectors.
        provenance: Recorded beside it.
        pictures: In the set.
        classes: Different labels.
        queries: That were asked.
        left_out: Pictures that cannot be queries, since no other has their label.
        skipped: Pictures that could not be read.
        k: Cut-off of classes, confusion and worst queries.
        ks: Cut-offs of the metrics, ascending; k is among them.
        depth: Ranks that were looked at.
        asked: How many random queries were wanted; None for all.
        seed: Of the choice of queries and of the intervals.
        chance: Precision that a random order would have.
        metrics: Means over all queries.
        per_class: Classes that had queries, in the order of their labels.
        confusion: Among the first k matches.
        confused_pairs: The most confused ones, worst first.
        worst: The queries with the lowest average precision, worst first.
        notes: What was left out of this evaluation and why, in sentences.
        seconds: By stage.
        versions: Of what took part.
        created_at: ISO 8601 in UTC.
    """

    dataset: str
    dataset_sha256: str
    spec: ModelSpec
    provenance: Mapping[str, str]
    pictures: int
    classes: int
    queries: int
    left_out: int
    skipped: tuple[Skipped, ...]
    k: int
    ks: tuple[int, ...]
    depth: int
    asked: int | None
    seed: int
    chance: float
    metrics: tuple[Metric, ...]
    per_class: tuple[ClassResult, ...]
    confusion: Confusion
    confused_pairs: tuple[ConfusedPair, ...]
    worst: tuple[QueryResult, ...]
    notes: tuple[str, ...]
    seconds: Mapping[str, float]
    versions: Mapping[str, str]
    created_at: str

    @property
    def index(self) -> str:
        """The index type in the store's words; ranks are always exact."""
        return "Flat"

    def metric(self, name: str, k: int | None = None) -> Metric:
        """The metric of this name and cut-off; raises KeyError."""
        for metric in self.metrics:
            if (metric.name, metric.k) == (name, k):
                return metric
        raise KeyError(f"{name} at {k}")
