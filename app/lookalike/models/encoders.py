"""The encoders that are loaded, each behind a queue: items that wait together are a batch."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import (
    ConfigurationError,
    EmbeddingFailedError,
    NotReadyError,
    QueueFullError,
    SpecMismatchError,
)
from lookalike.models.base import Encoder, Features, Vectors
from lookalike.progress import caller
from lookalike.records import ModelSpec

Vector = NDArray[np.float32]
"""One unit vector: (dim,) float32."""

ATTEMPTS = 10
"""Attempts of one request; each switch of its collection to another model costs one."""

_log = logging.getLogger(__name__)


class Encoders:
    """All live encoders, found by spec; several models can be live at once.

    Args:
        default: The one for new collections.
        queues: `max_batch`, `queue_size` and `on_batch` of each `LiveEncoder`.
    """

    def __init__(self, default: Encoder, **queues: Any) -> None:
        self._queues = queues
        self._lock = threading.Lock()
        self._closed = False
        self._live: dict[str, LiveEncoder] = {}
        self.failures: dict[str, str] = {}
        """Why an encoder that a collection needs cannot be built, by the spec's digest."""
        self.default = self.add(default)

    @property
    def live(self) -> list[LiveEncoder]:
        """All of them, the default one first."""
        with self._lock:
            return list(self._live.values())

    def for_spec(self, spec: ModelSpec) -> LiveEncoder:
        """The encoder of these vectors; raises `SpecMismatchError`, which says what to do."""
        with self._lock:
            found = self._live.get(spec.digest)
        if found is None:
            failure = self.failures.get(spec.digest)
            raise SpecMismatchError(failure or _mismatch(spec, self.default.spec))
        return found

    def following(self, read_spec: Callable[[], ModelSpec | None]) -> LiveEncoder | None:
        """As `for_spec`, for a collection that may switch to another model meanwhile.

        `read_spec` reads what made the collection's vectors; None if there are none.
        """
        for left in reversed(range(ATTEMPTS)):
            spec = read_spec()
            try:
                return None if spec is None else self.for_spec(spec)
            except SpecMismatchError:  # perhaps retired between the two calls, after a switch
                if not left:
                    raise
        raise AssertionError("unreachable")

    def add(self, encoder: Encoder) -> LiveEncoder:
        """Makes an encoder live; one with the same spec that is live already stays."""
        with self._lock:
            if self._closed:
                raise ConfigurationError("The encoders are closed: no model can be added")
            digest = encoder.spec.digest
            if digest not in self._live:
                self._live[digest] = LiveEncoder(encoder, **self._queues)
            return self._live[digest]

    def remove(self, spec: ModelSpec) -> None:
        """Retires an encoder once what waits for it is done; the default one is refused."""
        if spec.digest == self.default.spec.digest:
            raise ConfigurationError("The default model cannot be removed")
        with self._lock:
            retired = self._live.pop(spec.digest, None)
        if retired is not None:
            retired.close()

    def close(self) -> None:
        """Finishes what waits and ends all threads; may be called again."""
        with self._lock:
            self._closed = True
        for live in self.live:
            live.close()


def _mismatch(spec: ModelSpec, default: ModelSpec) -> str:
    differences = "; ".join(
        f"{name} is {theirs} there and {ours} here"
        for name, (theirs, ours) in spec.differences(default).items()
    )
    return (
        f"the collection was made with other settings than the service runs with: {differences}. "
        "Move the collection to these settings (lookalike reembed --collection NAME, or "
        "POST /collections/NAME/reembed), or start the service with the collection's"
    )


class LiveEncoder:
    """An encoder behind a bounded queue, and the one thread that calls it.

    The thread takes whatever waits, up to `max_batch`, and never waits for more: an idle device
    starts at once. A batch that fails fails its callers, never the thread.

    Args:
        encoder: Called by that thread alone.
        max_batch: Most items in one call of the encoder.
        queue_size: Most items that wait.
        on_batch: Called after each call of the encoder that succeeded: items, seconds.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        max_batch: int = 32,
        queue_size: int = 256,
        on_batch: Callable[[int, float], None] | None = None,
    ) -> None:
        if max_batch < 1 or queue_size < 1:
            raise ValueError("max_batch and queue_size must be at least 1")
        self.encoder = encoder
        self.spec = encoder.spec
        self.queue_size = queue_size
        self._max_batch = max_batch
        self._on_batch = on_batch
        self._waiting: deque[tuple[Features, Future[Vector]]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._worker = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._worker.start()

    @property
    def queue_length(self) -> int:
        """Items that wait now; those inside the network are not counted."""
        return len(self._waiting)

    def submit(self, item: Features, *, wait: bool = False, urgent: bool = False) -> Future[Vector]:
        """Puts a prepared item in the queue.

        Args:
            item: What the encoder's `prepare` returned.
            wait: Wait for room instead of raising if there is none, as bulk work does. Bulk work
                fills at most half of the queue, so that others find room.
            urgent: Go before everything that waits, even if the queue is full, as the canary does.

        Returns:
            A future of the vector, (dim,) float32. Cancelling it while it waits drops the item.
            It fails with `EmbeddingFailedError` if the network fails.

        Raises:
            QueueFullError: `queue_size` items wait, and `wait` is false.
            NotReadyError: It is closed.
        """
        with self._changed:
            bulk_size = max(1, self.queue_size // 2)
            while wait and not self._closed and len(self._waiting) >= bulk_size:
                self._changed.wait()
            if self._closed:
                raise NotReadyError("The service is shutting down: try again later")
            if len(self._waiting) >= self.queue_size and not urgent:
                raise QueueFullError(
                    f"{self.queue_size} pictures wait already, as many as the queue holds: "
                    "try again in a moment"
                )
            future: Future[Vector] = Future()
            put = self._waiting.appendleft if urgent else self._waiting.append
            put((item, future))
            self._changed.notify_all()
        return future

    def embed(self, item: Features) -> Vector:
        """Submits an item and waits for its vector, (dim,) float32; raises as `submit`.

        Gives the place in the queue back if the caller leaves; raises `ClientGoneError` then.
        """
        return self._result(self.submit(item))

    def embed_all(self, items: Sequence[Features]) -> list[Vector]:
        """As `embed` for several items, at most half of the queue at a time; raises as `submit`."""
        vectors: list[Vector] = []
        step = max(1, self.queue_size // 2)
        for start in range(0, len(items), step):
            futures: list[Future[Vector]] = []
            try:
                futures.extend(self.submit(item) for item in items[start : start + step])
                vectors += [self._result(future) for future in futures]
            finally:
                for future in futures:
                    self._withdraw(future)
        return vectors

    def _result(self, future: Future[Vector]) -> Vector:
        with caller.get().on_leave(partial(self._withdraw, future)):
            return future.result()

    def _withdraw(self, future: Future[Vector]) -> None:
        """Takes an item out of the queue if it still waits."""
        with self._changed:
            if future.cancel():
                self._waiting = deque(item for item in self._waiting if item[1] is not future)
                self._changed.notify_all()

    def close(self) -> None:
        """Takes no more items, finishes those that wait, and ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if threading.current_thread() is not self._worker:
            self._worker.join()

    def _work(self) -> None:
        while batch := self._take():
            alive = [item for item in batch if item[1].set_running_or_notify_cancel()]
            if alive:
                self._run(alive)
            # Held on to, the last batch and its vectors would stay until the next one.
            del batch, alive

    def _take(self) -> list[tuple[Features, Future[Vector]]]:
        """Waits for items and takes up to `max_batch`; an empty list means the end."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            count = min(self._max_batch, len(self._waiting))
            batch = [self._waiting.popleft() for _ in range(count)]
            self._changed.notify_all()
        return batch

    def _run(self, batch: list[tuple[Features, Future[Vector]]]) -> None:
        try:
            vectors = self._encode([item for item, _ in batch])
        except BaseException as exc:  # nothing that the network raises may end the thread
            if len(batch) > 1:
                _log.warning("a batch of %d failed, trying one by one: %s", len(batch), exc)
                for item in batch:
                    self._run([item])
            elif isinstance(exc, EmbeddingFailedError):
                batch[0][1].set_exception(exc)
            else:
                why = f"The network failed on this item ({exc or type(exc).__name__})"
                error = EmbeddingFailedError(why)
                error.__cause__ = exc
                batch[0][1].set_exception(error)
            return
        for (_, future), vector in zip(batch, vectors, strict=True):
            future.set_result(vector.copy())  # a row alone, not a view that keeps the batch

    def _encode(self, items: list[Features]) -> Vectors:
        started = time.perf_counter()
        vectors = self.encoder.encode(items)
        seconds = time.perf_counter() - started
        if vectors.shape != (len(items), self.encoder.spec.dim):
            raise EmbeddingFailedError(f"The network answered with shape {vectors.shape}")
        if self._on_batch is not None:
            try:
                self._on_batch(len(items), seconds)
            except Exception:
                _log.exception("on_batch failed")
        return vectors
