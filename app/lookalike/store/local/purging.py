"""Removes in the background what dropped collections leave in the catalog."""

from __future__ import annotations

import logging
import sqlite3

from lookalike.errors import StorageError
from lookalike.store.sqlite import Connections
from lookalike.worker import Worker

RETRY_S = 60.0
"""Seconds until what failed, on a full disk perhaps, is tried again."""

TOGETHER = 500
"""Rows that one step removes: many small transactions keep the WAL small."""

_DROPPED = "SELECT id FROM collections WHERE name IS NULL LIMIT 1"

log = logging.getLogger(__name__)


class Purger:
    """Removes the rows of collections that have no name any more, a few at a time.

    At least half of the time is left to others. What a shutdown or a crash leaves is removed after
    the next start.

    Args:
        connections: The catalog's.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._worker = Worker(
            "purge",
            self._step,
            failure="Rows of a dropped collection stay for now",
            share=0.5,
            retry_s=RETRY_S,
        )

    def begin(self) -> None:
        """Takes up what was left before this start."""
        with self._connections.read() as connection:
            left = connection.execute(_DROPPED).fetchone()
        if left:
            self._worker.wake()

    def wake(self) -> None:
        """Has the background look for something to remove."""
        self._worker.wake()

    def finish(self) -> None:
        """Removes all there is, now; what the disk refuses is left to the background."""
        try:
            while self._step():
                pass
        except StorageError as exc:
            log.warning("Rows of a dropped collection stay for now: %s", exc)

    def close(self) -> None:
        """Stops after the step that is under way; may be called twice."""
        self._worker.close()

    def _step(self) -> bool:
        """Removes some rows, and with the last ones their collection; False where all is gone."""
        with self._connections.write() as connection:
            found = connection.execute(_DROPPED).fetchone()
            if found is not None:
                _remove_some(connection, *found)
        self._connections.give_room_back()  # where nothing was found: what failed the last time
        return found is not None


def _remove_some(connection: sqlite3.Connection, number: int) -> None:
    """Removes rows of a collection; where those were the last, all else of it."""
    some = (
        "DELETE FROM images WHERE seq IN"
        " (SELECT seq FROM images WHERE collection = ? ORDER BY seq LIMIT ?)"
    )
    if connection.execute(some, (number, TOGETHER)).rowcount == TOGETHER:
        return
    connection.execute("UPDATE collections SET space = NULL WHERE id = ?", (number,))
    connection.execute("DELETE FROM spaces WHERE collection = ?", (number,))
    connection.execute("DELETE FROM collections WHERE id = ?", (number,))
