"""What was measured of index types, and which of them to use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lookalike.store.effort import Effort


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
        effort: How hard it looks.
        recall: Share of the true matches that it finds, mean over queries, in [0, 1].
        ms: Milliseconds a query on one core, median over queries asked one by one.
    """

    effort: Effort
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

    @property
    def grows(self) -> bool:
        """Whether its time grows as the collection: with no graph, and no more lists by then."""
        if "IVF" in self.setting:
            return self.index == self.setting
        return "HNSW" not in self.setting

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

    @property
    def extrapolated(self) -> list[str]:
        """Settings whose milliseconds `for_all` multiplies; none where all rows were measured."""
        if self.measured == self.rows:
            return []
        return [trial.setting for trial in self.trials if trial.points and trial.grows]

    def for_all(self) -> Tuning:
        """The same, with milliseconds for the whole collection where they grow with it."""
        times = self.rows / self.measured

        def grown(trial: Trial) -> Trial:
            points = tuple(replace(point, ms=point.ms * times) for point in trial.points)
            return replace(trial, points=points) if trial.grows else trial

        return replace(self, trials=tuple(grown(trial) for trial in self.trials))

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
