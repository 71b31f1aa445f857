"""How good ranks are: pure functions, one number for each query, and intervals of their means.

Every metric takes a `Relevance` and gives (Q,) float64 in [0, 1]; the mean over queries is the
figure that papers report. Rank 1 is the best match; R is how many relevant pictures a query has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InvalidParameterError

Values = NDArray[np.float64]
"""One number for each query, (Q,) float64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Classes:
    """Labels as numbers."""

    names: tuple[str, ...]  # the C different labels, sorted
    codes: NDArray[np.int64]  # (N,) int64, each picture's place in `names`

    def counts(self) -> NDArray[np.int64]:
        """Pictures in each class: (C,) int64."""
        return np.bincount(self.codes, minlength=len(self.names)).astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Relevance:
    """Which matches were right, and how many there were to find."""

    ranked: NDArray[np.bool_]  # (Q, K) bool, best match first; the query itself is not among them
    # (Q,) int64, at least 1: relevant pictures in the whole set, the query left out. Queries
    # without any have no recall, and must be left out before.
    relevant_total: NDArray[np.int64]

    def __post_init__(self) -> None:
        """Checks shapes and counts; raises ValueError."""
        if self.ranked.ndim != 2 or self.ranked.dtype != np.bool_ or not self.ranked.shape[1]:
            raise ValueError(
                f"ranked is {self.ranked.dtype} {self.ranked.shape}; (Q, K) bool was expected"
            )
        if self.relevant_total.shape != (len(self.ranked),):
            raise ValueError(
                f"relevant_total has the shape {self.relevant_total.shape}, ranked "
                f"{self.ranked.shape}: one number for each query was expected"
            )
        if np.any(self.relevant_total < np.maximum(1, self.ranked.sum(axis=1))):
            raise ValueError("a query has no relevant picture, or fewer than were found")

    @property
    def depth(self) -> int:
        """K: how many ranks are known."""
        return int(self.ranked.shape[1])


def encode_labels(labels: Sequence[str] | None) -> Classes:
    """Numbers the different labels in sorted order.

    Raises:
        InvalidParameterError: There are no labels.
    """
    if labels is None:
        raise InvalidParameterError(
            "The pictures have no labels, so right matches cannot be told from wrong ones: use a "
            "dataset with one folder for each class (of a single class, with --kind folder), or "
            "store a label with each picture"
        )
    names = tuple(sorted(set(labels)))
    place = {name: code for code, name in enumerate(names)}
    codes = np.fromiter((place[label] for label in labels), dtype=np.int64, count=len(labels))
    return Classes(names=names, codes=codes)


def judge(
    classes: Classes, *, queries: NDArray[np.int64], positions: NDArray[np.int64]
) -> Relevance:
    """A match is relevant where it has its query's label.

    `queries` are (Q,) positions, and `positions` (Q, K) those of their ranked matches.

    Raises:
        ValueError: A query is alone in its class.
    """
    own = classes.codes[queries]
    return Relevance(
        ranked=classes.codes[positions] == own[:, np.newaxis],
        relevant_total=classes.counts()[own] - 1,
    )


def precision_at(relevance: Relevance, k: int) -> Values:
    """Precision@K: the share of the first k matches that are relevant.

    Raises:
        InvalidParameterError: k is not from 1 to the ranks that are known; so for all below.
    """
    return _ratio(_first(relevance, k).sum(axis=1), k)


def recall_at(relevance: Relevance, k: int) -> Values:
    """Recall@K: the share of the R relevant pictures that are among the first k matches.

    At most k / R. What metric learning calls Recall@K is `hit_at`.
    """
    return _ratio(_first(relevance, k).sum(axis=1), relevance.relevant_total)


def hit_at(relevance: Relevance, k: int) -> Values:
    """Hit rate@K, also top-K accuracy: 1 where a relevant picture is among the first k."""
    return _ratio(_first(relevance, k).max(axis=1), 1)


def average_precision_at(relevance: Relevance, k: int) -> Values:
    """Average precision over the first k ranks; its mean is mAP@K.

    The sum of precision@i over those i up to k whose match is relevant, divided by min(R, k), so
    that a perfect ranking gets 1 at any k (Weyand et al., Google Landmarks Dataset v2, CVPR 2020,
    use it with k = 100). Others divide by R. With all ranks known the two are the same.
    """
    found = _first(relevance, k)
    return _ratio(_precision_at_hits(found).sum(axis=1), np.minimum(relevance.relevant_total, k))


def average_precision_at_r(relevance: Relevance) -> Values:
    """Average precision over the first R ranks; its mean is MAP@R.

    Musgrave, Belongie and Lim, A Metric Learning Reality Check, ECCV 2020.

    Raises:
        InvalidParameterError: A query has more relevant pictures than ranks are known.
    """
    found = relevance.ranked & _first_r(relevance)
    return _ratio(_precision_at_hits(found).sum(axis=1), relevance.relevant_total)


def r_precision(relevance: Relevance) -> Values:
    """R-precision: the share of the first R matches that are relevant.

    Manning, Raghavan and Schuetze, Introduction to Information Retrieval, 2008, section 8.4.

    Raises:
        InvalidParameterError: A query has more relevant pictures than ranks are known.
    """
    found = relevance.ranked & _first_r(relevance)
    return _ratio(found.sum(axis=1), relevance.relevant_total)


def reciprocal_rank(relevance: Relevance, k: int) -> Values:
    """1 / rank of the first relevant match, 0 where there is none up to rank k; its mean is MRR@K.

    Voorhees, The TREC-8 Question Answering Track Report, 1999.
    """
    found = _first(relevance, k)
    return np.where(found.any(axis=1), 1.0 / (1 + found.argmax(axis=1)), 0.0)


def ndcg_at(relevance: Relevance, k: int) -> Values:
    """nDCG@K: the sum of 1 / log2(1 + rank) over relevant matches, as a share of the best possible.

    Jaervelin and Kekaelaeinen, Cumulated gain-based evaluation of IR techniques, ACM TOIS 20(4),
    2002, with gain 1 or 0, and the discount log2(1 + rank) that has become usual since: theirs
    does not discount rank 2. The best possible ranking has min(R, k) relevant matches in front.
    """
    found = _first(relevance, k)
    discount = 1.0 / np.log2(np.arange(2, k + 2))  # (k,)
    ideal = np.cumsum(discount)[np.minimum(relevance.relevant_total, k) - 1]
    gained = np.cumsum(found * discount, axis=1)[:, -1]  # added up as the ideal is: 1 is exact
    return _ratio(gained, ideal)


AT_K: Mapping[str, Callable[[Relevance, int], Values]] = {
    "precision": precision_at,
    "hit_rate": hit_at,
    "recall": recall_at,
    "map": average_precision_at,
    "ndcg": ndcg_at,
}
"""The metrics with a cut-off, by the name that reports use."""

AT_R: Mapping[str, Callable[[Relevance], Values]] = {
    "r_precision": r_precision,
    "map_at_r": average_precision_at_r,
}
"""The metrics whose cut-off is each query's own R."""


def values_of(relevance: Relevance, name: str, k: int | None) -> Values:
    """A metric of each query, (Q,): one of `AT_K`, of `AT_R` with k None, or `mrr`."""
    if k is None:
        return AT_R[name](relevance)
    return reciprocal_rank(relevance, k) if name == "mrr" else AT_K[name](relevance, k)


def _first(relevance: Relevance, k: int) -> NDArray[np.bool_]:
    if not 1 <= k <= relevance.depth:
        raise InvalidParameterError(
            f"k is {k}, but {relevance.depth} ranks are known: choose from 1 to that, or rank more"
        )
    return relevance.ranked[:, :k]


def _first_r(relevance: Relevance) -> NDArray[np.bool_]:
    """(Q, K), true up to each query's own R."""
    most = int(relevance.relevant_total.max(initial=0))
    if most > relevance.depth:
        raise InvalidParameterError(
            f"A query has {most} relevant pictures, but {relevance.depth} ranks are known: rank "
            f"at least {most}"
        )
    ranks = np.arange(1, relevance.depth + 1)
    return ranks <= relevance.relevant_total[:, np.newaxis]


def _ratio(found: NDArray[Any], possible: NDArray[Any] | int) -> Values:
    shares: Values = found / possible
    return shares


def _precision_at_hits(found: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Precision@i at each rank i with a relevant match, 0 at the others: (Q, K)."""
    ranks = np.arange(1, found.shape[1] + 1)
    hits: NDArray[np.float64] = np.cumsum(found, axis=1) * found / ranks
    return hits


RESAMPLES: Final = 1000
"""How many sets of queries are drawn."""

CONFIDENCE: Final = 0.95
"""The share of the drawn means that lie inside an interval."""


def mean_intervals(
    values: NDArray[np.float64], *, seed: int, resamples: int = RESAMPLES, block: int = 2**17
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bootstrap percentile intervals of means over queries.

    Q queries are drawn with replacement, `resamples` times; the interval reaches from the 2.5th to
    the 97.5th percentile of the means (Efron and Tibshirani, An Introduction to the Bootstrap,
    1993, chapter 13). It says how much the mean depends on which queries were asked, and nothing
    of how it depends on the pictures that were searched. All metrics see the same draws.

    Args:
        values: (M, Q), one row for each metric; Q at least 1, all finite.
        seed: The same seed gives the same intervals.
        resamples: At least 1.
        block: Draws made at a time, which should fit into the cache.

    Returns:
        Lower and upper ends, (M,) each; the mean lies between them.
    """
    if values.ndim != 2 or not values.shape[1] or not np.isfinite(values).all():
        raise ValueError(
            f"finite values (M, Q) of one query or more are needed, not {values.shape}"
        )
    queries = values.shape[1]
    rng = np.random.default_rng(seed)
    means = np.empty((resamples, len(values)))
    step = max(1, block // queries)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(0, queries, size=(rows, queries))
        drawn += np.arange(rows)[:, np.newaxis] * queries
        times = np.bincount(drawn.ravel(), minlength=rows * queries).reshape(rows, queries)
        means[start : start + rows] = times.astype(np.float64) @ values.T / queries
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    mean = values.mean(axis=1)
    return np.minimum(low, mean), np.maximum(high, mean)  # sums in another order round otherwise
