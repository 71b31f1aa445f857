"""The extractors that are live, each behind its batcher."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from lookalike.errors import ConfigurationError, PassportMismatchError
from lookalike.models.base import Extractor
from lookalike.models.batcher import Batcher
from lookalike.records import Passport


@dataclass(frozen=True, slots=True)
class LiveExtractor:
    """An extractor, and the queue that leads to it."""

    extractor: Extractor
    batcher: Batcher

    @property
    def passport(self) -> Passport:
        """What makes its vectors."""
        return self.extractor.passport


class Extractors:
    """All live extractors, found by passport; several models can be live at once.

    Args:
        default: For new collections.
        others: For collections made by other models.
        max_batch: As in `Batcher`.
        queue_size: As in `Batcher`, for each extractor.
        on_batch: As in `Batcher`.
    """

    def __init__(
        self,
        default: Extractor,
        *others: Extractor,
        max_batch: int = 32,
        queue_size: int = 256,
        on_batch: Callable[[int, float], None] | None = None,
    ) -> None:
        self._max_batch = max_batch
        self._queue_size = queue_size
        self._on_batch = on_batch
        self._lock = threading.Lock()
        self._closed = False
        self._live: dict[str, LiveExtractor] = {}
        self._default = self.add(default)
        for extractor in others:
            self.add(extractor)

    @property
    def default(self) -> LiveExtractor:
        """The one for new collections."""
        return self._default

    @property
    def live(self) -> list[LiveExtractor]:
        """All of them, the default one first."""
        with self._lock:
            return list(self._live.values())

    def for_passport(self, passport: Passport) -> LiveExtractor:
        """Finds the extractor whose vectors can be compared with a collection's.

        Raises:
            PassportMismatchError: None can; the text names what differs from the default one,
                and what to do.
        """
        with self._lock:
            found = self._live.get(passport.digest)
        if found is None:
            raise PassportMismatchError(_mismatch(passport, self._default.passport))
        return found

    def add(self, extractor: Extractor) -> LiveExtractor:
        """Makes an extractor live; one with the same passport that is live already stays.

        Raises:
            ConfigurationError: The extractors are closed.
        """
        with self._lock:
            if self._closed:
                raise ConfigurationError("The extractors are closed: no model can be added")
            digest = extractor.passport.digest
            if digest not in self._live:
                batcher = Batcher(
                    extractor,
                    max_batch=self._max_batch,
                    queue_size=self._queue_size,
                    on_batch=self._on_batch,
                )
                self._live[digest] = LiveExtractor(extractor, batcher)
            return self._live[digest]

    def remove(self, passport: Passport) -> None:
        """Retires an extractor once what waits for it is done; unknown ones are ignored.

        Raises:
            ConfigurationError: It is the default one.
        """
        if passport.digest == self._default.passport.digest:
            raise ConfigurationError("The default model cannot be removed")
        with self._lock:
            retired = self._live.pop(passport.digest, None)
        if retired is not None:
            retired.batcher.close()

    def close(self) -> None:
        """Finishes what waits and ends all threads; may be called again."""
        with self._lock:
            self._closed = True
        for live in self.live:
            live.batcher.close()


def _mismatch(passport: Passport, default: Passport) -> str:
    """Says what keeps a collection's passport from the default one, and what to do."""
    differences = "; ".join(
        f"{name} is {theirs} there and {ours} here"
        for name, (theirs, ours) in passport.differences(default).items()
    )
    return (
        f"the collection was made with other settings than the service runs with: {differences}. "
        "Move the collection to these settings (lookalike reembed --collection NAME, or "
        "POST /collections/NAME/reembed), or start the service with the collection's"
    )
