"""What was measured of index types, which one to use, and how recall is counted."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from lookalike.records import Effort


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What an index must achieve: a recall in [0, 1], and at most so many bytes, unless None."""

    recall: float = 0.99
    memory: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One way to search an index."""

    effort: Effort
    recall: float  # share of the true matches that are found, mean over queries, in [0, 1]
    ms: float  # milliseconds a query on one core, median over queries sent one by one


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """An index type that was tried."""

    index: str  # the type that was built, of the rows measured
    setting: str  # the type for the whole collection, which may have more lists
    bytes: int = 0  # size of an index of the whole collection, estimated
    build_s: float = 0.0  # seconds that the build took
    points: tuple[Point, ...] = ()  # in the order tried; none if it could not be built
    problem: str | None = None  # why it could not be built

    @property
    def grows(self) -> bool:
        """True if latency is linear in the number of rows (no HNSW, fixed list count)."""
        if "IVF" in self.setting:
            return self.index == self.setting
        return "HNSW" not in self.setting

    def fastest(self, recall: float) -> Point | None:
        """The fastest way to search that reaches a recall; None if none does."""
        enough = [point for point in self.points if point.recall >= recall]
        return min(enough, key=lambda point: point.ms) if enough else None

    def surest(self) -> Point | None:
        """The point with the highest recall, the fastest of equal ones; None if there is none."""
        return max(self.points, key=lambda point: (point.recall, -point.ms), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """The index types that were tried on a collection; the first trial is exact search.

    Of the `rows` in the collection, `measured` were indexed for the trials.
    """

    rows: int
    measured: int
    dim: int
    k: int
    queries: int
    trials: tuple[Trial, ...]

    @property
    def exact_ms(self) -> float:
        """Milliseconds that an exact query took."""
        return self.trials[0].points[0].ms

    @property
    def extrapolated(self) -> list[str]:
        """Settings whose milliseconds `for_all` multiplies; none if all rows were measured."""
        if self.measured == self.rows:
            return []
        return [trial.setting for trial in self.trials if trial.points and trial.grows]

    def for_all(self) -> Tuning:
        """The same with milliseconds for the whole collection, if they are linear in its rows."""
        trials = []
        for trial in self.trials:
            times = self.rows / self.measured if trial.grows else 1
            points = [replace(point, ms=point.ms * times) for point in trial.points]
            trials.append(replace(trial, points=tuple(points)))
        return replace(self, trials=tuple(trials))

    def recommended(self, goal: Goal) -> Trial | None:
        """The fastest type that reaches the recall within the memory; None if there is none."""

        def ms(trial: Trial) -> float:
            point = trial.fastest(goal.recall)
            fits = goal.memory is None or trial.bytes <= goal.memory
            return point.ms if point and fits else math.inf

        best = min(self.trials, key=ms)
        return best if ms(best) < math.inf else None


def pareto(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats in both speed and recall, fastest first."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda one: (one.ms, -one.recall)):
        if not kept or point.recall > kept[-1].recall:
            kept.append(point)
    return kept


Ranked = Sequence[tuple[Hashable, float]]
"""What a search found: keys, each once, with their scores; best first."""

TIE = 1e-6
"""Scores that differ by no more than this are equal: it is the rounding of a float32 cosine."""


def recall_at_k(found: Ranked, exact: Ranked) -> float:
    """The share of the k best rows of all, `exact`, that a search found, in [0, 1].

    Of several rows with the score of the last true match, any counts as found for any other; none
    counts for a row with a better score.
    """
    right = {key for key, _ in exact}
    seen = {key for key, _ in found}
    last = exact[-1][1]
    missed_ties = sum(key not in seen and score <= last + TIE for key, score in exact)
    other_ties = sum(key not in right and score >= last - TIE for key, score in found)
    return (len(right & seen) + min(missed_ties, other_ties)) / len(exact)
