"""The recall of approximate indexes, measured on a share of the real searches."""

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
from lookalike.records import Effort, Match, ModelSpec
from lookalike.store.base import Store, spec_of
from lookalike.store.filters import Filter
from lookalike.store.tuning import recall_at_k
from lookalike.worker import Worker

log = logging.getLogger(__name__)

WINDOW = 200
"""Searches of a collection that the mean is taken over: the last so many."""

MAX_WAITING = 8
"""Searches that wait to be repeated; more are dropped."""

_LONGEST_REST_S = 60.0  # a slow filter must not silence the meter for an hour


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallFigures:
    """What was measured on one collection since the start.

    Attributes:
        samples: Searches that were compared.
        mean: Mean recall of the last `WINDOW` of them, in [0, 1]; None before the first.
        dropped: Searches that were chosen while too many waited already.
        skipped: Searches that were repeated but could not be compared: images changed meanwhile,
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
    recalls: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def figures(self) -> RecallFigures:
        mean = sum(self.recalls) / len(self.recalls) if self.recalls else None
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
    """Repeats a share of the searches exactly, on one thread of its own.

    The request only draws a number. Later the thread searches three times: as the index does,
    exactly, and as the index does. If the first and the last answer differ, images changed
    meanwhile, and the sample is skipped: an image that only the exact search saw is no miss.

    Args:
        store: Where searches go.
        share: Share of the searches that are repeated, 0 to 1; 0 starts no thread.
        busy: Share of the time that the thread works, above 0 to 1.
    """

    def __init__(self, store: Store, *, share: float = 0.01, busy: float = 0.05) -> None:
        self._store = store
        self._share = share
        self._lock = threading.Lock()
        self._tallies: dict[str, _Tally] = {}
        self._waiting: deque[_Asked] = deque()
        self._worker = Worker(
            "recall-meter",
            self._step,
            failure="A search could not be repeated to measure recall",
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
        """Tells of a search that was answered, as `Store.search` was asked; returns at once.

        A search with an effort of its own says nothing about the index as it is set, and is not
        measured; nor is one of an exact index.

        Args:
            collection: Where it searched.
            vector: (dim,) float32, of length 1.
            k: How many matches.
            spec: What made the vector.
            where: Only images that pass.
            exclude: Ids that are left out.
            effort: The effort that the search asked for, if it did.
        """
        if self._worker.closing.is_set() or random.random() >= self._share:  # noqa: S311 - a sample, no secret
            return
        found = self._store.collection(collection)
        if effort is not None or found is None or found.exact:
            return
        asked = _Asked(
            collection=collection, vector=vector, k=k, spec=spec, where=where, exclude=exclude
        )
        with self._lock:
            if len(self._waiting) >= MAX_WAITING:
                self._tally(collection).dropped += 1
                return
            self._waiting.append(asked)
        self._worker.wake()

    def figures(self) -> dict[str, RecallFigures]:
        """What was measured, by collection; only those that a search was chosen from."""
        with self._lock:
            figures = {name: tally.figures() for name, tally in sorted(self._tallies.items())}
        return {n: one for n, one in figures.items() if spec_of(self._store, n) is not None}

    def close(self) -> None:
        """Ends after the search that is under way; drops what waits. May be called twice."""
        self._worker.closing.set()
        with self._lock:
            self._waiting.clear()
        self._worker.close()

    def _tally(self, collection: str) -> _Tally:
        return self._tallies.setdefault(collection, _Tally())

    def _step(self) -> bool:
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
                tally.recalls.append(recall)
        return True

    def _measure(self, asked: _Asked) -> float | None:
        """Recall of one search; None if nothing can be said."""
        try:
            found = self._search(asked)
            exact = self._search(asked, Effort(exact=True))
            again = self._search(asked)
        except LookalikeError as exc:  # the collection was dropped, or moved to another spec
            log.info("A search could not be repeated to measure recall: %s", exc)
            return None
        except Exception:  # the next one may be measured
            log.exception("A search could not be repeated to measure recall")
            return None
        if not exact or _versions(found) != _versions(again):
            return None
        return recall_at_k(_ranked(found), _ranked(exact))

    def _search(self, asked: _Asked, effort: Effort | None = None) -> list[Match]:
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
    """Which images, and when each was last changed."""
    return {(match.record.id, match.record.updated_at) for match in matches}
