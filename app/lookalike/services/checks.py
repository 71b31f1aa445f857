"""What checks the service while it runs: canary, recall of searches, originals on the disk."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial

import numpy as np
from PIL import Image

from lookalike.errors import LookalikeError, NotReadyError, SpecMismatchError
from lookalike.media.decoder import ImageDecoder
from lookalike.models.encoders import Encoders, LiveEncoder, Vector
from lookalike.progress import Worker, log_failure
from lookalike.records import DEFAULT_COLLECTION, Effort, Match, ModelSpec
from lookalike.store.base import BlobStore, Store, spec_of
from lookalike.store.filters import Filter
from lookalike.store.tuning import recall_at_k

WINDOW = 200  # searches of a collection that the mean is taken over: the last so many
MAX_WAITING = 8  # searches that wait to be repeated; more are dropped
TOLERANCE = 0.05  # how far `1 - cosine` may stray from the canary's first answer
log = logging.getLogger(__name__)

_FAILURE = "A search could not be repeated to measure recall"

Search = Callable[..., list[list[Match]]]
"""A search for one query, as it was asked; takes another `effort`."""


@dataclass(eq=False)
class Canary:
    """Decodes, embeds and searches a drawn picture, and compares its vector with the first one.

    It looks first whether changes could be kept: the data folder may be gone. The default encoder
    and collection are asked.
    """

    encoders: Encoders
    store: Store
    decoder: ImageDecoder
    _: KW_ONLY
    timeout_s: float = 10.0
    kept_s: float = 1.0  # a good answer is kept, so that frequent probes cost nothing

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._first: Vector | None = None
        self._checked_at = float("-inf")

    def check(self) -> None:
        """Raises `NotReadyError` with the reason if the service does not work."""
        if not self._lock.acquire(timeout=self.timeout_s):
            raise NotReadyError(f"The canary did not come back within {self.timeout_s:g} s")
        try:
            if time.monotonic() - self._checked_at < self.kept_s:
                return
            self._run(self.encoders.default)
            self._checked_at = time.monotonic()
        finally:
            self._lock.release()

    def _run(self, live: LiveEncoder) -> None:
        try:
            self.store.check()
            decoded = self.decoder.decode(
                _canary(), decode_size=live.encoder.decode_size, urgent_s=self.timeout_s
            )
            prepared = live.encoder.prepare(decoded.image)
            vector = live.submit(prepared, urgent=True).result(timeout=self.timeout_s)
            spec = spec_of(self.store, DEFAULT_COLLECTION)
            if spec is None or not spec.differences(live.spec):
                with contextlib.suppress(SpecMismatchError):  # it has just moved to another
                    query = vector[np.newaxis, :]  # (1, dim)
                    self.store.search(DEFAULT_COLLECTION, query, k=1, spec=live.spec)
        except TimeoutError as exc:
            text = f"Embedding one picture took more than {self.timeout_s:g} s"
            raise NotReadyError(text) from exc
        except LookalikeError as exc:
            raise NotReadyError(f"The canary failed: {exc}") from exc
        if self._first is None:
            self._first = vector
        elif 1.0 - float(vector @ self._first) > TOLERANCE:
            raise NotReadyError("The canary's vector is not what it was at start; restart")


@functools.cache
def _canary() -> bytes:
    """A PNG of a fixed 64 x 64 picture: two gradients and a checkered blue."""
    y, x = np.mgrid[0:64, 0:64].astype(np.uint8)
    blue = ((x // 16 + y // 16) % 2 * 255).astype(np.uint8)
    target = io.BytesIO()
    Image.fromarray(np.stack([x * 4, y * 4, blue], axis=-1)).save(target, "PNG")
    return target.getvalue()


@dataclass(slots=True, kw_only=True)
class RecallFigures:
    """What was measured on one collection since the start.

    Searches are skipped that were repeated but could not be compared: images changed meanwhile,
    nothing was to be found, or the search failed.
    """

    samples: int = 0  # searches that were compared
    mean: float | None = None  # recall of the last `WINDOW` of them, in [0, 1]
    dropped: int = 0  # searches that were chosen while too many waited already
    skipped: int = 0


@dataclass(eq=False)
class RecallMeter:
    """Repeats a share of the searches exactly, on one thread of its own.

    A share of the searches is offered. Later the thread searches three times: as the index does,
    exactly, and as the index does. If the first and the last answer differ, images changed
    meanwhile, and the sample is skipped: an image that only the exact search saw is no miss.
    """

    store: Store
    _: KW_ONLY
    share: float = 0.01  # of the searches, 0 to 1; with 0 no thread starts
    busy: float = 0.05  # share of the time that the thread works, above 0 to 1

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._figures: dict[str, RecallFigures] = {}
        self._recalls: dict[str, deque[float]] = {}
        self._waiting: deque[tuple[str, Search]] = deque()
        self._worker = Worker("recall-meter", self._step, failure=_FAILURE, share=self.busy)

    def offer(
        self,
        collection: str,
        vector: Vector,
        *,
        k: int,
        spec: ModelSpec,
        where: Filter | None = None,
        exclude: Sequence[str] = (),
        effort: Effort | None = None,
    ) -> None:
        """Takes a search to repeat, as `Store.search` was asked; returns at once.

        A search with an effort of its own says nothing about the index as it is set, and is not
        measured; nor is one of an exact index. `vector` is (dim,) float32, of length 1.
        """
        if self._worker.closing.is_set():
            return
        found = self.store.collection(collection)
        if effort is not None or found is None or found.exact:
            return
        query = vector[np.newaxis, :]  # (1, dim)
        search = partial(
            self.store.search, found.name, query, k=k, spec=spec, where=where, exclude=exclude
        )
        with self._lock:
            if len(self._waiting) >= MAX_WAITING:
                self._of(found.name).dropped += 1
                return
            self._waiting.append((found.name, search))
        self._worker.wake()

    def figures(self) -> dict[str, RecallFigures]:
        """What was measured, by collection; only those that a search was chosen from."""
        with self._lock:
            figures = {name: replace(one) for name, one in sorted(self._figures.items())}
        return {n: one for n, one in figures.items() if spec_of(self.store, n) is not None}

    def close(self) -> None:
        """Ends after the current search and drops the waiting ones. May be called twice."""
        self._worker.closing.set()
        with self._lock:
            self._waiting.clear()
        self._worker.close()

    def _step(self) -> bool:
        with self._lock:
            if not self._waiting:
                return False
            collection, search = self._waiting.popleft()
        recall = _measure(search)
        with self._lock:
            figures = self._of(collection)
            if recall is None:
                figures.skipped += 1
            else:
                recalls = self._recalls.setdefault(collection, deque(maxlen=WINDOW))
                recalls.append(recall)
                figures.mean = sum(recalls) / len(recalls)
                figures.samples += 1
        return True

    def _of(self, collection: str) -> RecallFigures:
        return self._figures.setdefault(collection, RecallFigures())


@dataclass(eq=False)
class OriginalsCheck:
    """Reads every kept original again and again, slowly, so that damage is noticed early."""

    files: BlobStore
    _: KW_ONLY
    busy: float = 0.02  # share of the time that the thread reads, above 0 to 1
    every_s: float = 86_400.0  # after the end of a round, when the next one begins

    def __post_init__(self) -> None:
        self._round: Iterator[int] | None = None
        self.checked = 0
        """Originals that were read since the start."""
        self.rounds = 0
        """How often all of them were read."""
        failure = "The originals could not be checked"
        self._worker = Worker(
            "originals", self._step, failure=failure, share=self.busy, every_s=self.every_s
        )

    def begin(self) -> None:
        """Starts the first round; returns at once."""
        self._worker.wake()

    @property
    def damaged(self) -> Sequence[str]:
        """The files that were found damaged and have not been healed or removed since."""
        return [str(one) for one in self.files.damaged]

    def close(self) -> None:
        """Ends after the file that is being read; may be called twice."""
        self._worker.close()

    def _step(self) -> bool:
        self._round = self._round or self.files.verify()
        try:
            found = next(self._round, None)
        except Exception:
            self._round = None  # a generator that raised has ended
            raise
        if found is not None:
            self.checked += found
            return True
        self._round = None
        self.rounds += 1
        log.info("all originals were read: %d of them are damaged", len(self.damaged))
        return False


def _measure(search: Search) -> float | None:
    """Recall of one search; None if nothing can be said."""
    try:
        (found,), (exact,), (again,) = search(), search(effort=Effort(exact=True)), search()
    except Exception as exc:  # perhaps the collection was dropped; the next one may be measured
        log_failure(exc, _FAILURE)
        return None
    if not exact or _versions(found) != _versions(again):
        return None
    return recall_at_k(_ranked(found), _ranked(exact))


def _ranked(matches: Sequence[Match]) -> list[tuple[str, float]]:
    return [(match.record.id, match.score) for match in matches]


def _versions(matches: Sequence[Match]) -> set[tuple[str, str]]:
    """Which images, and when each was last changed."""
    return {(match.record.id, match.record.updated_at) for match in matches}
