"""How requests survive that their collection switches to another model meanwhile."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from lookalike.errors import SpecMismatchError
from lookalike.models.encoders import Encoders, LiveEncoder
from lookalike.store.base import Store, spec_of

ATTEMPTS = 5
"""Attempts of one request; each switch that it meets costs one."""


def live_encoder(encoders: Encoders, store: Store, collection: str) -> LiveEncoder | None:
    """The encoder that made the collection's active vectors; None if there are none.

    Raises:
        SpecMismatchError: That encoder is not live.
    """
    for attempt in range(1, ATTEMPTS + 1):
        spec = spec_of(store, collection)
        if spec is None:
            return None
        try:
            return encoders.for_spec(spec)
        except SpecMismatchError:  # perhaps retired between the two calls, after a switch
            if attempt == ATTEMPTS:
                raise
    raise AssertionError("unreachable")


class PutGate:
    """A gate for each collection: commits pass it together, and wait while it is closed.

    While it is closed, no picture is added to the collection. Re-embedding uses that to make the
    last few vectors and switch.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside: Counter[str] = Counter()
        self._closed: set[str] = set()

    @contextmanager
    def passing(self, collection: str) -> Iterator[None]:
        """Waits until the gate is open, and keeps it open inside the block."""
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
        """Closes the gate once those inside have left; one caller at a time."""
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
