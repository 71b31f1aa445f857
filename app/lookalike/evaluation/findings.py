"""What stands out in an evaluation: classes, confused pairs, single queries."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lookalike.evaluation.metrics import Classes, mean_intervals
from lookalike.evaluation.ranking import Positions, Ranking
from lookalike.evaluation.results import (
    ClassResult,
    ConfusedPair,
    Confusion,
    Metric,
    QueryResult,
    RankedMatch,
)
from lookalike.services.vector_set import VectorSet


def confuse(
    classes: Classes, *, queries: NDArray[np.int64], positions: NDArray[np.int64]
) -> Confusion:
    """Counts classes among the matches.

    Takes memory for the pairs that occur, so that thousands of classes are no trouble.

    Args:
        classes: Of the whole set.
        queries: (Q,) positions.
        positions: (Q, k) of the ranked matches.
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
    classes: Classes,
    *,
    queries: Positions,
    k: int,
    precision: NDArray[np.float64],
    average_precision: NDArray[np.float64],
    seed: int,
) -> tuple[ClassResult, ...]:
    """Means over the queries of each class, with intervals.

    Args:
        classes: Of the whole set.
        queries: (Q,) positions.
        k: The cut-off of what follows.
        precision: (Q,) Precision@k.
        average_precision: (Q,) average precision at k.
        seed: Of the intervals.
    """
    own, pictures = classes.codes[queries], classes.counts()
    order = np.argsort(own, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(own[order])) + 1)
    results = []
    for group in groups:
        values = np.stack([precision[group], average_precision[group]])
        low, high = mean_intervals(values, seed=seed)
        found, mean = (
            Metric(name=name, k=k, value=float(value), low=float(start), high=float(end))
            for name, value, start, end in zip(
                ("precision", "map"), values.mean(axis=1), low, high, strict=True
            )
        )
        code = own[group[0]]
        results.append(
            ClassResult(
                label=classes.names[code],
                pictures=int(pictures[code]),
                queries=len(group),
                precision=found,
                average_precision=mean,
            )
        )
    return tuple(results)


def confused_pairs(
    vectors: VectorSet, classes: Classes, confusion: Confusion, top: Ranking, *, count: int
) -> tuple[ConfusedPair, ...]:
    """The most confused pairs of classes, each with its highest-scored pair of pictures.

    Of equal scores the lowest query, then the best rank, stands for the pair.

    Args:
        vectors: A labelled set.
        classes: Its labels.
        confusion: Among `top`.
        top: The first k matches of all queries.
        count: At most so many pairs.
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


def worst_queries(
    vectors: VectorSet, top: Ranking, average_precision: NDArray[np.float64], *, count: int
) -> tuple[QueryResult, ...]:
    """The queries with the lowest average precision, ties by position; at most `count`.

    Args:
        vectors: A labelled set.
        top: The first k matches of all queries, queries ascending.
        average_precision: (Q,) over all ranks that were looked at.
        count: At most so many queries.
    """
    rows = np.argsort(average_precision, kind="stable")[:count]
    return tuple(
        query_result(vectors, top, row=int(row), average_precision=float(average_precision[row]))
        for row in rows
    )


def query_result(
    vectors: VectorSet, ranking: Ranking, *, row: int, average_precision: float | None
) -> QueryResult:
    """One row of a ranking, with what the set knows of its pictures.

    Args:
        vectors: With labels or without.
        ranking: (Q, k).
        row: Which query.
        average_precision: The query's; None where it has nothing to find, or has no labels.
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
    relevant = None
    if labels is not None:
        relevant = labels[position] == labels[int(ranking.queries[row])]
    return RankedMatch(
        rank=place + 1,
        position=position,
        id=vectors.ids[position],
        name=vectors.names[position],
        label=None if labels is None else labels[position],
        score=float(ranking.scores[row, place]),
        relevant=relevant,
    )
