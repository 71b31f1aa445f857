"""How much of the true answer approximate indexes find, measured on real searches."""

from __future__ import annotations

import logging
import random
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import LookalikeError
from lookalike.records import Match, ModelSpec
from lookalike.store.base import Store
from lookalike.store.effort import Effort
from lookalike.store.filters import Filter
from lookalike.store.recall import recall_at_k
from lookalike.worker import Worker

log = logging.getLogger(__name__)

WINDOW = 200
"""Searches that the mean is taken over: the last so many of a collection."""

_WAITING = 8  # searches; more are dropped
_SHARE_OF_A_CORE = 0.05
_LONGEST_REST_S = 60.0  # a slow filter must not silence the meter for an hour


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallFigures:
    """What was measured on one collection since the start.

    Attributes:
        samples: Searches that were compared.
        mean: Mean recall of the last `WINDOW` of them, in [0, 1]; None before the first.
        dropped: Searches that were chosen while too many waited already.
        skipped: Searches that were tried, and could not be compared: pictures changed meanwhile,
            nothing was to be found, or the search failed.
    """

    samples: int = 0
    mean: float | None = None
    dropped: int = 0
    skipped: int = 0


@dataclass(slots=True)
class _Tally:
    samples: int = 0
    dropped: int = 0
    skipped: int = 0
    last: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def figures(self) -> RecallFigures:
        mean = sum(self.last) / len(self.last) if self.last else None
        return RecallFigures(
            samples=self.samples, mean=mean, dropped=self.dropped, skipped=self.skipped
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A search as it was asked; `vector` is (dim,) float32."""

    collection: str
    vector: NDArray[np.float32]
    k: int
    spec: ModelSpec
    where: Filter | None
    exclude: Sequence[str]


class RecallMeter:
    """Does a share of the searches again, exactly, on one thread of its own.

    The request only draws a number. Later the thread searches three times: as the index does,
    exactly, and as the index does. Where the first and the last answer differ, pictures came,
    changed or went meanwhile, and the sample is skipped: a picture that only the exact search
    saw is no miss. After t seconds of work the thread rests for 19 t, a minute at most.

    Args:
        store: Where searches go.
        share: Of the searches that are done again, 0 to 1; 0 measures nothing.
        busy: The most of one core that the thread takes, above 0 to 1.
    """

    def __init__(
        self, store: Store, *, share: float = 0.01, busy: float = _SHARE_OF_A_CORE
    ) -> None:
        self._store = store
        self._share = share
        self._tallies: dict[str, _Tally] = {}
        self._waiting: deque[_Asked] = deque()
        self._lock = threading.Lock()
        self._worker = Worker(
            "recall-meter",
            self._measure_next,
            failure="a search could not be repeated to measure recall",
            share=busy,
            longest_rest_s=_LONGEST_REST_S,
        )

    def offer(
        self,
        collection: str,
        vector: NDArray[np.float32],
        *,
        k: int,
        spec: ModelSpec,
        where: Filter | None = None,
        exclude: Sequence[str] = (),
        effort: Effort | None = None,
    ) -> None:
        """Told of each search that was answered, as `Store.search` was asked; returns at once.

        A search with parameters of its own says nothing of the index as it is set, and is not
        measured; nor is one of an exact index.

        Args:
            collection: Where it searched.
            vector: (dim,) float32, of length 1.
            k: How many matches.
            spec: What made the vector.
            where: Only pictures that pass.
            exclude: Ids that are left out.
            effort: What the search brought; None where it brought none.
        """
        if self._worker.closing.is_set() or random.random() >= self._share:  # noqa: S311 - a sample, no secret
            return
        if effort is not None or self._store.is_exact(collection):
            return
        asked = _Asked(
            collection=collection,
            vector=vector,
            k=k,
            spec=spec,
            where=where,
            exclude=exclude,
        )
        with self._lock:
            if len(self._waiting) >= _WAITING:
                self._tally(collection).dropped += 1
                return
            self._waiting.append(asked)
        self._worker.wake()

    def figures(self) -> dict[str, RecallFigures]:
        """What was measured, by collection; those alone that a search was chosen from."""
        with self._lock:
            figures = {name: tally.figures() for name, tally in sorted(self._tallies.items())}
        return {n: one for n, one in figures.items() if self._store.spec(n) is not None}

    def close(self) -> None:
        """Ends after the search that is under way; what waits is not done. May be called twice."""
        self._worker.closing.set()
        with self._lock:
            self._waiting.clear()
        self._worker.close()

    def _tally(self, collection: str) -> _Tally:
        return self._tallies.setdefault(collection, _Tally())

    def _measure_next(self) -> bool:
        """Measures the search that has waited longest; the worker's step."""
        with self._lock:
            if not self._waiting:
                return False
            asked = self._waiting.popleft()
        recall = self._measure(asked)
        with self._lock:
            tally = self._tally(asked.collection)
            if recall is None:
                tally.skipped += 1
            else:
                tally.samples += 1
                tally.last.append(recall)
            return bool(self._waiting)

    def _measure(self, asked: _Asked) -> float | None:
        """Recall of one search; None where nothing can be said."""
        try:
            found = self._search(asked)
            exact = self._search(asked, effort=Effort(exact=True))
            again = self._search(asked)
        except LookalikeError as exc:  # the collection moved or went meanwhile
            log.info("a search could not be repeated to measure recall: %s", exc)
            return None
        except Exception:  # the next one may be measured
            log.exception("a search could not be repeated to measure recall")
            return None
        if not exact or _versions(found) != _versions(again):
            return None
        return recall_at_k(_ranked(found), _ranked(exact))

    def _search(self, asked: _Asked, *, effort: Effort | None = None) -> list[Match]:
        return self._store.search(
            asked.collection,
            asked.vector[np.newaxis, :],  # (1, dim)
            k=asked.k,
            spec=asked.spec,
            where=asked.where,
            exclude=asked.exclude,
            effort=effort,
        )[0]


def _ranked(matches: Sequence[Match]) -> list[tuple[str, float]]:
    return [(match.record.id, match.score) for match in matches]


def _versions(matches: Sequence[Match]) -> set[tuple[str, str]]:
    """Which pictures, as of when."""
    return {(match.record.id, match.record.updated_at) for match in matches}
