"""Removes in the background what dropped collections leave in the catalog."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time

from app.errors import StorageError
from app.store.local.catalog.connections import Connections
from app.store.local.catalog.field_builder import FieldBuilder

TOGETHER = 500
"""Rows that one step removes: many small transactions keep the WAL small."""

RETRY_S = 60.0
"""Seconds until what the disk refused is tried again."""

_DROPPED = "SELECT id FROM collections WHERE name IS NULL LIMIT 1"

log = logging.getLogger(__name__)


class Purger:
    """Removes the rows of collections that have no name any more, a few at a time.

    Its thread starts when there is first something to remove. What a shutdown or a crash leaves is
    removed after the next start.

    Args:
        connections: The catalog's.
        fields: Told of every collection that is gone, as its fields may go then, too.
    """

    def __init__(self, connections: Connections, fields: FieldBuilder) -> None:
        self._connections = connections
        self._fields = fields
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._due = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Takes up what was left before this start."""
        with self._connections.read() as connection:
            left = connection.execute(_DROPPED).fetchone()
        if left:
            self.wake()

    def wake(self) -> None:
        """Has the background look for something to remove."""
        self._due.set()
        with self._lock:
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._run, name="purge", daemon=True)
                self._thread.start()

    def finish(self) -> None:
        """Removes all there is, now; what the disk refuses is left to the background."""
        try:
            while self._step():
                pass
        except StorageError as exc:
            log.warning("Rows of a dropped collection stay for now: %s", exc)

    def close(self) -> None:
        """Stops after the step that is under way."""
        self._stop.set()
        self._due.set()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._due.wait()
            self._due.clear()
            self._work()

    def _work(self) -> None:
        """Goes on until all is removed, and leaves at least half of the time to others."""
        work = True
        while work and not self._stop.is_set():
            started = time.perf_counter()
            try:
                work = self._step()
            except Exception as exc:  # the thread must live: rows would stay until the next start
                log.warning("Rows of a dropped collection stay for now: %s", exc)
                self._stop.wait(RETRY_S)
            else:
                self._stop.wait(time.perf_counter() - started)

    def _step(self) -> bool:
        """Removes some rows, and with the last ones their collection; False where all is gone."""
        with self._connections.write() as connection:
            found = connection.execute(_DROPPED).fetchone()
            if found is None:
                return False
            last = _remove_some(connection, *found)
        self._connections.give_room_back()
        if last:
            self._fields.wake()
        return True


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
