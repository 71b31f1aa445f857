"""The connections to the catalog: one that writes, and a few that read."""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lookalike.errors import StorageError
from lookalike.store.sqlite import (
    Schema,
    open_reader,
    open_writer,
    require_schema,
    sqlite_errors,
    transaction,
)

_READERS = 4
_LOG_BYTES = 2**26  # of the write-ahead log; a longer one is written back and emptied
_CUT_EVERY_S = 5.0  # at most, because another process that reads may prevent it
_CUT_MS = 500  # for which emptying the log waits for reads
_BUSY_MS = 5000  # for which any other statement waits

log = logging.getLogger(__name__)


class Connections:
    """SQLite connections to one file; safe to use from many threads.

    One connection makes every write and checkpoint: SQLite before 3.51.3 can damage a WAL
    database that several connections write.

    Args:
        path: The file.
        schema: Its tables.
        read_only: Whether to change nothing. Then another process may be the one that writes.

    Raises:
        DataFolderError: The file is damaged, or was written by another version.
        StorageError: The disk refuses.
    """

    def __init__(self, path: Path, schema: Schema, *, read_only: bool = False) -> None:
        self._path = path
        self._wal = path.with_name(f"{path.name}-wal")
        self._cut_at = 0.0
        self._write_lock = threading.Lock()
        self._closed = False
        self._idle: queue.LifoQueue[sqlite3.Connection | None] = queue.LifoQueue()
        for _ in range(_READERS):
            self._idle.put(None)
        self._writer: sqlite3.Connection | None = None
        if read_only:
            with self.read() as connection:
                require_schema(connection, path, schema)
        else:
            with sqlite_errors(path):
                self._writer = open_writer(path, schema)
                self._writer.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """One transaction: on the disk when the block ends, undone where it raises."""
        with (
            self._write_lock,
            sqlite_errors(self._path),
            transaction(self._require_writer()) as writer,
        ):
            yield writer
        if self._log_is_long():
            self._cut_log()

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A read-only connection that sees one moment of the catalog until the block ends."""
        connection = self._idle.get()
        try:
            self._require_open()
            with sqlite_errors(self._path):
                connection = connection or open_reader(self._path)
                connection.execute("BEGIN")
                try:
                    yield connection
                finally:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
        finally:
            self._idle.put(connection)

    def give_room_back(self) -> None:
        """Hands free pages back to the disk."""
        with self._write_lock, sqlite_errors(self._path):
            # Not `execute`, which stops at the first page.
            self._require_writer().executescript("PRAGMA incremental_vacuum")

    def close(self) -> None:
        """Closes every connection, the writer last; may be called twice."""
        self._closed = True
        for _ in range(_READERS):
            reader = self._idle.get()
            if reader is not None:
                reader.close()
        with self._write_lock:
            if self._writer is not None:
                self._writer.close()
        for _ in range(_READERS):
            self._idle.put(None)

    def _log_is_long(self) -> bool:
        try:
            length = self._wal.stat().st_size
        except OSError:
            return False
        return length > _LOG_BYTES and time.monotonic() >= self._cut_at

    def _cut_log(self) -> None:
        """Writes the log back and empties it.

        SQLite itself begins the log anew only when nobody reads from it. Short reads that overlap
        all the time leave no such moment, so the checkpoint waits for those that go on.
        """
        self._cut_at = time.monotonic() + _CUT_EVERY_S
        with self._write_lock:
            if self._closed or self._writer is None:
                return
            try:
                self._writer.execute(f"PRAGMA busy_timeout = {_CUT_MS}")
                self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            except sqlite3.Error as exc:
                log.warning("The catalog's write-ahead log was not emptied: %s", exc)
            finally:
                self._writer.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")

    def _require_open(self) -> None:
        if self._closed:
            raise StorageError("The store is closed")

    def _require_writer(self) -> sqlite3.Connection:
        self._require_open()
        if self._writer is None:
            raise StorageError("The data folder was opened for reading only")
        return self._writer
