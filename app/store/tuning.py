"""What was measured of index types, and which of them to use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.store.search_parameters import SearchParameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What an index is wanted for.

    Attributes:
        recall: Share of the true matches to find, in [0, 1].
        memory: The most bytes that it may have; None for any number.
    """

    recall: float = 0.99
    memory: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A way to search an index.

    Attributes:
        parameters: How hard it looks.
        recall: Share of the true matches that it finds, mean over queries, in [0, 1].
        ms: Milliseconds a query on one core, median over queries asked one by one.
    """

    parameters: SearchParameters
    recall: float
    ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """An index type that was tried.

    Attributes:
        index: What was built of the rows measured.
        setting: The same for the whole collection, as `LOOKALIKE_INDEX` takes it: it may have
            more lists.
        bytes: Size of the index for the whole collection, estimated from what was built.
        build_s: Seconds that it took to build of the rows measured.
        points: Ways to search it, in the order tried; none where it could not be built.
        problem: Why it could not be built.
    """

    index: str
    setting: str
    bytes: int = 0
    build_s: float = 0.0
    points: tuple[Point, ...] = ()
    problem: str | None = None

    def fastest(self, recall: float) -> Point | None:
        """The fastest way to search that reaches a recall; None where none does."""
        enough = [point for point in self.points if point.recall >= recall]
        return min(enough, key=lambda point: point.ms) if enough else None

    def surest(self) -> Point | None:
        """The way to search that finds most, of equal ones the fastest; None where none works."""
        return max(self.points, key=lambda point: (point.recall, -point.ms), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """All index types that were tried on a collection.

    Attributes:
        rows: Pictures in the collection.
        measured: How many of them were indexed for the trials.
        dim: Numbers in a vector.
        k: Matches asked for.
        queries: How many pictures asked for their neighbors.
        trials: What became of each type; exact search is the first.
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

    def recommended(self, goal: Goal) -> Trial | None:
        """The type that reaches the recall fastest; None where none does in the memory."""
        ways = [
            (point.ms, number)
            for number, trial in enumerate(self.trials)
            if (point := trial.fastest(goal.recall))
            and (goal.memory is None or trial.bytes <= goal.memory)
        ]
        return self.trials[min(ways)[1]] if ways else None


def pareto(points: Sequence[Point]) -> list[Point]:
    """Those that none other beats in both speed and recall, fastest first."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda one: (one.ms, -one.recall)):
        if not kept or point.recall > kept[-1].recall:
            kept.append(point)
    return kept
