"""Reads that may last: few at a time, and now and then none."""

from __future__ import annotations

import threading
from collections.abc import Callable


class SlowReads:
    """Places for reads that may last, and moments without any.

    Args:
        places: How many there are.
        pause: What needs a moment in which no such read goes on; it is called by the thread that
            ends the last one, and must not raise.
    """

    def __init__(self, places: int, *, pause: Callable[[], None]) -> None:
        self._places = places
        self._pause = pause
        self._inside = 0
        self._pausing = False
        self._changed = threading.Condition()

    def enter(self, *, wait_s: float) -> bool:
        """Takes a place, to be given back by `leave`; False where none became free in time.

        Args:
            wait_s: How long it waits for one, in seconds.
        """
        with self._changed:
            found = self._changed.wait_for(self._has_room, timeout=wait_s)
            self._inside += found
        return found

    def leave(self) -> None:
        """Gives a place back."""
        with self._changed:
            self._inside -= 1
            last = self._pausing and not self._inside
            self._changed.notify_all()
        if last:
            self._pause_now()

    def pause(self) -> None:
        """Has `pause` called as soon as nobody has a place; until then nobody gets one."""
        with self._changed:
            if self._pausing:
                return
            self._pausing = True
            if self._inside:
                return
        self._pause_now()

    def _has_room(self) -> bool:
        return self._inside < self._places and not self._pausing

    def _pause_now(self) -> None:
        try:
            self._pause()
        finally:
            with self._changed:
                self._pausing = False
                self._changed.notify_all()
