"""Removes in the background what dropped collections leave in the catalog."""

from __future__ import annotations

import logging
import sqlite3

from lookalike.errors import StorageError
from lookalike.store.local.catalog.background import Background
from lookalike.store.local.catalog.connections import Connections
from lookalike.store.local.catalog.field_builder import FieldBuilder

TOGETHER = 500
"""Rows that one step removes: many small transactions keep the WAL small."""

_DROPPED = "SELECT id FROM collections WHERE name IS NULL LIMIT 1"

log = logging.getLogger(__name__)


class Purger:
    """Removes the rows of collections that have no name any more, a few at a time.

    What a shutdown or a crash leaves is removed after the next start.

    Args:
        connections: The catalog's.
        fields: Told of every collection that is gone, as its fields may go then, too.
    """

    def __init__(self, connections: Connections, fields: FieldBuilder) -> None:
        self._connections = connections
        self._fields = fields
        self._background = Background(
            "purge", self._step, undone="Rows of a dropped collection stay for now"
        )

    def begin(self) -> None:
        """Takes up what was left before this start."""
        with self._connections.read() as connection:
            left = connection.execute(_DROPPED).fetchone()
        if left:
            self.wake()

    def wake(self) -> None:
        """Has the background look for something to remove."""
        self._background.wake()

    def finish(self) -> None:
        """Removes all there is, now; what the disk refuses is left to the background."""
        try:
            while self._step():
                pass
        except StorageError as exc:
            log.warning("Rows of a dropped collection stay for now: %s", exc)

    def close(self) -> None:
        """Stops after the step that is under way."""
        self._background.close()

    def _step(self) -> bool:
        """Removes some rows, and with the last ones their collection; False where all is gone."""
        with self._connections.write() as connection:
            found = connection.execute(_DROPPED).fetchone()
            last = found is not None and _remove_some(connection, *found)
        if last:
            self._fields.wake()
        self._connections.give_room_back()  # where nothing was found: what failed the last time
        return found is not None


def _remove_some(connection: sqlite3.Connection, number: int) -> bool:
    """Removes rows of a collection; where those were the last, all else of it, and says so."""
    some = (
        "DELETE FROM images WHERE seq IN"
        " (SELECT seq FROM images WHERE collection = ? ORDER BY seq LIMIT ?)"
    )
    if connection.execute(some, (number, TOGETHER)).rowcount == TOGETHER:
        return False
    connection.execute("UPDATE collections SET embedding = NULL WHERE id = ?", (number,))
    connection.execute("DELETE FROM embeddings WHERE collection = ?", (number,))
    connection.execute("DELETE FROM collections WHERE id = ?", (number,))
    return True
