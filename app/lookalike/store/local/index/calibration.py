"""How hard an approximate index must look to find what an exact search finds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lookalike.store.effort import LIMITS, Effort
from lookalike.store.local.index.ann import Ann
from lookalike.store.local.index.ann_build import Progress
from lookalike.store.local.index.flat_index import FlatIndex
from lookalike.store.local.index.flat_rows import Positions
from lookalike.store.recall import TIE
from lookalike.store.vectors import Vectors

DEFAULT_RECALL = 0.99
"""Share of the true matches that parameters are to find."""

LEVELS = (10, 32, 100, 320, 1000)
"""Numbers of matches that parameters are found for."""

_QUERIES = 200
_NEIGHBOR = 10  # whose distance queries are moved by
_TIMED = 30  # of them, one by one
_GATHERED_ROWS = 4096  # whose scoring is timed
_MOST_CANDIDATES = 8192
_PATIENCE = 3  # harder looks in a row that may find next to nothing new
_WORTH_IT = 1e-3


@dataclass(frozen=True, slots=True)
class Level:
    """What finds k matches.

    Attributes:
        k: Matches wanted.
        effort: The cheapest ones that reached the recall aimed at, or the best there are.
        recall: Share of the true k best that were found, mean over queries.
        ms: Milliseconds a query on one core, median.
    """

    k: int
    effort: Effort
    recall: float
    ms: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured when an index was built.

    Attributes:
        levels: By ascending k.
        row_ms: Milliseconds that scoring one row exactly takes.
    """

    levels: tuple[Level, ...]
    row_ms: float

    def for_k(self, k: float) -> Level:
        """The level that finds k matches; beyond the last, its parameters grow with k."""
        for level in self.levels:
            if k <= level.k:
                return level
        last = self.levels[-1]
        grown = {
            name: min(limit, int(value * k / last.k))
            for name, limit in LIMITS.items()
            if name != "k_factor" and (value := getattr(last.effort, name)) is not None
        }
        effort = Effort(**grown).over(last.effort)  # type: ignore[arg-type]
        return Level(int(k), effort, last.recall, last.ms * k / last.k)

    def to_json(self) -> dict[str, Any]:
        """As a manifest keeps it."""
        return {
            "row_ms": self.row_ms,
            "levels": [
                {"k": x.k, "parameters": str(x.effort), "recall": x.recall, "ms": x.ms}
                for x in self.levels
            ],
        }

    @classmethod
    def from_json(cls, value: Any) -> Calibration:
        """Reads `to_json`. Raises `KeyError`, `TypeError` or `ValueError` where it is not that."""
        levels = tuple(
            Level(x["k"], Effort.parse(x["parameters"]), x["recall"], x["ms"])
            for x in value["levels"]
        )
        return cls(levels, float(value["row_ms"]))


def calibrate(
    exact: FlatIndex,
    ann: Ann,
    *,
    recall: float,
    seed: int = 0,
    queries: int = _QUERIES,
    on_progress: Progress | None = None,
) -> Calibration:
    """Finds parameters by asking for the neighbors of rows of the index, moved a little.

    It aims halfway between the recall wanted and 1, because a few hundred queries say no more.

    Args:
        exact: The rows, none of them a tombstone.
        ann: Built of the same rows.
        recall: Share of the true matches to find, in (0, 1].
        seed: Chooses the queries.
        queries: How many at most.
        on_progress: Told how far it is.
    """
    tell = on_progress or (lambda *_: None)
    depths = tuple(k for k in LEVELS if k < len(exact)) or (max(1, len(exact) - 1),)
    tell("calibrate", 0, len(depths))
    trial = Trial(exact, ann, k=depths[-1], seed=seed, queries=queries)
    aim = recall + (1 - recall) / 2
    levels = []
    for done, k in enumerate(depths):
        tell("calibrate", done, len(depths))
        levels.append(_level(trial, k, aim))
    return Calibration(tuple(levels), trial.row_ms())


class Trial:
    """Queries with known neighbors: beside random rows of an index, these rows left out.

    Args:
        exact: The rows, none of them a tombstone.
        ann: Built of the same rows.
        k: Most neighbors that are known.
        seed: Chooses the queries.
        queries: How many at most.
    """

    def __init__(self, exact: FlatIndex, ann: Ann, *, k: int, seed: int, queries: int) -> None:
        self.exact = exact
        self.ann = ann
        rng = np.random.default_rng(seed)
        self._asked = np.sort(rng.choice(len(exact), min(queries, len(exact)), replace=False))
        self._vectors = moved_rows(exact, self._asked, rng)
        count = min(_GATHERED_ROWS, len(exact))
        self._gathered = np.sort(rng.choice(len(exact), count, replace=False))
        self._best = []
        for (scores, seqs), own in zip(
            exact.search(self._vectors, k=k + 2), self._asked, strict=True
        ):
            positions = np.searchsorted(exact.seqs, seqs)
            others = positions != own
            self._best.append((scores[others], positions[others]))

    def places(self, effort: Effort, *, k: int, width: int) -> Positions:
        """Where the true k best of all queries are among `width` candidates, likely ones first.

        A query whose k-th neighbor is no nearer than the next one is left out: which of them is
        found says nothing.

        Returns:
            (M,) int64, 0 for the likeliest candidate, `width` where it is none.
        """
        found = self.ann.nearest(self._vectors, width + 1, effort)
        place = np.full(len(self.exact), width)
        places = [np.empty(0, dtype=np.int64)]
        for row, own, (scores, best) in zip(found, self._asked, self._best, strict=True):
            if len(scores) > k and scores[k - 1] - scores[k] <= TIE:
                continue
            candidates = row[(row >= 0) & (row != own)][:width]
            place[candidates] = np.arange(len(candidates))
            places.append(place[best[:k]])
            place[candidates] = width
        return np.concatenate(places)

    def query_ms(self, effort: Effort, k: int) -> float:
        """Median milliseconds of one query on one core: candidates, then their scores."""
        times = []
        for query in self._vectors[:_TIMED]:
            started = time.perf_counter()
            found = self.ann.nearest(query[None, :], k * (effort.k_factor or 1), effort)
            self.exact.best_of(query, found[0][found[0] >= 0], k)
            times.append(time.perf_counter() - started)
        return 1e3 * statistics.median(times)

    def row_ms(self) -> float:
        """Milliseconds that scoring one scattered row exactly takes."""
        times = []
        for query in self._vectors[:3]:
            started = time.perf_counter()
            self.exact.best_of(query, self._gathered, 10)
            times.append(time.perf_counter() - started)
        return 1e3 * statistics.median(times) / len(self._gathered)


def moved_rows(exact: FlatIndex, positions: Positions, rng: np.random.Generator) -> Vectors:
    """Rows, each moved in a random direction by the distance of its 10th neighbor: (N, dim).

    A graph has the neighbors of its own rows one step away: they are found far more easily than
    those of a picture that is not there. Moved rows are as hard as pictures that were held out.
    """
    rows = exact.vectors(positions)
    near = [scores[-1] for scores, _ in exact.search(rows, k=_NEIGHBOR + 1)]
    distances = np.sqrt(np.maximum(0.0, 2.0 - 2.0 * np.array(near)))
    directions = rng.normal(size=rows.shape)
    directions *= (distances / np.linalg.norm(directions, axis=1))[:, np.newaxis]
    moved = rows + directions
    moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    return np.ascontiguousarray(moved, dtype=np.float32)


def _level(trial: Trial, k: int, aim: float) -> Level:
    """The fastest of the first parameters that reach the aim and of the next harder ones."""
    tried: list[Level] = []
    for value in _values(trial.ann, k):
        effort, share = _fewest_candidates(trial, trial.ann.setting(value), k, aim)
        tried.append(Level(k, effort, share, trial.query_ms(effort, k)))
        if len(tried) > 1 and tried[-2].recall >= aim:
            break
        if len(tried) > _PATIENCE and share < tried[-1 - _PATIENCE].recall + _WORTH_IT:
            break
    enough = [level for level in tried if level.recall >= aim]
    return min(enough, key=lambda x: x.ms) if enough else max(tried, key=lambda x: x.recall)


def _values(ann: Ann, k: int) -> Iterator[int]:
    """Values of the knob, each twice the one before.

    FAISS searches a graph no less hard than k.
    """
    value = max(ann.least, min(k, ann.most)) if ann.knob == "ef_search" else ann.least
    while value < ann.most:
        yield value
        value *= 2
    yield ann.most


def _fewest_candidates(trial: Trial, effort: Effort, k: int, aim: float) -> tuple[Effort, float]:
    """The least `k_factor` that reaches the aim, and the recall with it."""
    widest = min(_MOST_CANDIDATES, max(1, len(trial.exact) - 1))
    at_once = trial.ann.knob != "ef_search"
    if not at_once:  # more candidates than `ef_search` raise it: the next value tries that
        widest = min(widest, max(k, effort.ef_search or 1))
    places = trial.places(effort, k=k, width=widest) if at_once else None
    factor = 1
    while True:
        width = min(k * factor, widest)
        held = trial.places(effort, k=k, width=width) if places is None else places
        share = float(np.mean(held < width)) if len(held) else 1.0
        if share >= aim or width == widest or 2 * factor > LIMITS["k_factor"]:
            return replace(effort, k_factor=factor), share
        factor *= 2
