"""The encoders that are live, each behind its batcher."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from lookalike.errors import ConfigurationError, SpecMismatchError
from lookalike.models.base import Encoder
from lookalike.models.batcher import Batcher
from lookalike.records import ModelSpec


@dataclass(frozen=True, slots=True)
class LiveEncoder:
    """An encoder, and the queue that leads to it."""

    encoder: Encoder
    batcher: Batcher

    @property
    def spec(self) -> ModelSpec:
        """What makes its vectors."""
        return self.encoder.spec


class Encoders:
    """All live encoders, found by spec; several models can be live at once.

    Args:
        default: For new collections.
        others: For collections made by other models.
        max_batch: As in `Batcher`.
        queue_size: As in `Batcher`, for each encoder.
        on_batch: As in `Batcher`.
    """

    def __init__(
        self,
        default: Encoder,
        *others: Encoder,
        max_batch: int = 32,
        queue_size: int = 256,
        on_batch: Callable[[int, float], None] | None = None,
    ) -> None:
        self._max_batch = max_batch
        self._queue_size = queue_size
        self._on_batch = on_batch
        self._lock = threading.Lock()
        self._closed = False
        self._live: dict[str, LiveEncoder] = {}
        self._default = self.add(default)
        for encoder in others:
            self.add(encoder)

    @property
    def default(self) -> LiveEncoder:
        """The one for new collections."""
        return self._default

    @property
    def live(self) -> list[LiveEncoder]:
        """All of them, the default one first."""
        with self._lock:
            return list(self._live.values())

    def for_spec(self, spec: ModelSpec) -> LiveEncoder:
        """Finds the encoder whose vectors can be compared with a collection's.

        Raises:
            SpecMismatchError: None can; the text names what differs from the default one,
                and what to do.
        """
        with self._lock:
            found = self._live.get(spec.digest)
        if found is None:
            raise SpecMismatchError(_mismatch(spec, self._default.spec))
        return found

    def add(self, encoder: Encoder) -> LiveEncoder:
        """Makes an encoder live; one with the same spec that is live already stays.

        Raises:
            ConfigurationError: The encoders are closed.
        """
        with self._lock:
            if self._closed:
                raise ConfigurationError("The encoders are closed: no model can be added")
            digest = encoder.spec.digest
            if digest not in self._live:
                batcher = Batcher(
                    encoder,
                    max_batch=self._max_batch,
                    queue_size=self._queue_size,
                    on_batch=self._on_batch,
                )
                self._live[digest] = LiveEncoder(encoder, batcher)
            return self._live[digest]

    def remove(self, spec: ModelSpec) -> None:
        """Retires an encoder once what waits for it is done; unknown ones are ignored.

        Raises:
            ConfigurationError: It is the default one.
        """
        if spec.digest == self._default.spec.digest:
            raise ConfigurationError("The default model cannot be removed")
        with self._lock:
            retired = self._live.pop(spec.digest, None)
        if retired is not None:
            retired.batcher.close()

    def close(self) -> None:
        """Finishes what waits and ends all threads; may be called again."""
        with self._lock:
            self._closed = True
        for live in self.live:
            live.batcher.close()


def _mismatch(spec: ModelSpec, default: ModelSpec) -> str:
    """Says what keeps a collection's spec from the default one, and what to do."""
    differences = "; ".join(
        f"{name} is {theirs} there and {ours} here"
        for name, (theirs, ours) in spec.differences(default).items()
    )
    return (
        f"the collection was made with other settings than the service runs with: {differences}. "
        "Move the collection to these settings (lookalike reembed --collection NAME, or "
        "POST /collections/NAME/reembed), or start the service with the collection's"
    )
