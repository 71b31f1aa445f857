"""What lets a request survive that its collection moves to another embedding set meanwhile."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from lookalike.errors import SpecMismatchError
from lookalike.models.encoders import Encoders, LiveEncoder
from lookalike.store.base import Store

ATTEMPTS = 5
"""How often a request is tried: once more for each switch that it meets."""


def live_encoder(encoders: Encoders, store: Store, collection: str) -> LiveEncoder | None:
    """The encoder whose vectors the collection holds now; None where it holds none.

    Raises:
        SpecMismatchError: That encoder is not live.
    """
    for attempt in range(1, ATTEMPTS + 1):
        spec = store.spec(collection)
        if spec is None:
            return None
        try:
            return encoders.for_spec(spec)
        except SpecMismatchError:  # or it was retired between the two, after a switch
            if attempt == ATTEMPTS:
                raise
    raise AssertionError("unreachable")


class PutGate:
    """A gate for each collection: puts pass together, and wait while it is closed.

    While it is closed, no picture comes into the collection, so that the last few of a new
    embedding set can be made and the switch be done.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside: Counter[str] = Counter()
        self._closed: set[str] = set()

    @contextmanager
    def passing(self, collection: str) -> Iterator[None]:
        """Goes through, once the gate is open."""
        with self._changed:
            self._changed.wait_for(lambda: collection not in self._closed)
            self._inside[collection] += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside[collection] -= 1
                self._inside += Counter()  # forgets what is zero
                self._changed.notify_all()

    @contextmanager
    def closed(self, collection: str) -> Iterator[None]:
        """Holds the gate shut, once those inside are through; one caller at a time."""
        with self._changed:
            self._changed.wait_for(lambda: collection not in self._closed)
            self._closed.add(collection)
            self._changed.wait_for(lambda: not self._inside[collection])
        try:
            yield
        finally:
            with self._changed:
                self._closed.discard(collection)
                self._changed.notify_all()
