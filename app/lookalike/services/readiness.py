"""Whether the service really works: a canary picture goes through the whole line."""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lookalike.errors import LookalikeError, NotReadyError, SpecMismatchError
from lookalike.models.encoders import Encoders, LiveEncoder
from lookalike.records import DEFAULT_COLLECTION
from lookalike.store.base import Store, spec_of

TOLERANCE = 0.05
"""How far `1 - cosine` may stray from the first answer before the canary is called ill."""


class Canary:
    """Embeds and searches a drawn picture, and compares its vector with the first one.

    A good answer is kept for a moment, and callers that come meanwhile share it, so that frequent
    probes cost nothing.

    Args:
        encoders: The live encoders; the default one is asked.
        store: Searched in the default collection.
        timeout_s: Seconds that a check may take.
        kept_s: Seconds that a good answer is kept.
    """

    def __init__(
        self, encoders: Encoders, store: Store, *, timeout_s: float = 10.0, kept_s: float = 1.0
    ) -> None:
        self._encoders = encoders
        self._store = store
        self._timeout_s = timeout_s
        self.kept_s = kept_s
        self._lock = threading.Lock()
        self._first: NDArray[np.float32] | None = None
        self._checked_at = float("-inf")

    def check(self) -> None:
        """Raises `NotReadyError` with the reason if the service does not work."""
        if not self._lock.acquire(timeout=self._timeout_s):
            raise NotReadyError(f"The canary did not come back within {self._timeout_s:g} s")
        try:
            if time.monotonic() - self._checked_at < self.kept_s:
                return
            self._run(self._encoders.default)
            self._checked_at = time.monotonic()
        finally:
            self._lock.release()

    def _run(self, live: LiveEncoder) -> None:
        try:
            prepared = live.encoder.prepare(_draw_canary())
            waiting: Future[NDArray[np.float32]] = live.batcher.submit(prepared, urgent=True)
            vector = waiting.result(timeout=self._timeout_s)
            spec = spec_of(self._store, DEFAULT_COLLECTION)
            if spec is None or not spec.differences(live.spec):
                with contextlib.suppress(SpecMismatchError):  # it has just moved to another
                    self._store.search(
                        DEFAULT_COLLECTION, vector[np.newaxis, :], k=1, spec=live.spec
                    )
        except FutureTimeoutError as exc:
            raise NotReadyError(
                f"Embedding one picture took more than {self._timeout_s:g} s"
            ) from exc
        except LookalikeError as exc:
            raise NotReadyError(f"The canary failed: {exc}") from exc
        if self._first is None:
            self._first = vector
        elif 1.0 - float(vector @ self._first) > TOLERANCE:
            raise NotReadyError("The canary's vector is not what it was at start; restart")


def _draw_canary() -> Image.Image:
    """A fixed 64 x 64 picture: two gradients and a checkered blue."""
    y, x = np.mgrid[0:64, 0:64].astype(np.uint8)
    blue = ((x // 16 + y // 16) % 2 * 255).astype(np.uint8)
    return Image.fromarray(np.stack([x * 4, y * 4, blue], axis=-1))
