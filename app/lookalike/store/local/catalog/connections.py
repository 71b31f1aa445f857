"""The catalog's connections: one that writes, a few that read, and SQLite's errors in our words."""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from lookalike.errors import DataFolderError, FilterTooSlowError, StorageError
from lookalike.store.base import utc_now
from lookalike.store.local.catalog.fields import NOTE, FieldChanges
from lookalike.store.local.catalog.filters import FUNCTION, holds
from lookalike.store.local.catalog.migrations import FRESH, MIGRATIONS
from lookalike.store.local.catalog.slow_reads import SlowReads
from lookalike.store.local.catalog.sqlite_errors import primary_code, translated

VERSION = sqlite3.sqlite_version
_READERS = 4
_SLOW_READERS = 2  # at most, so that short reads need not wait for filters
_STEPS = 20_000  # of SQLite's machine between two looks at the clock: some milliseconds
_LOG_BYTES = 2**26  # of the write-ahead log; a longer one is written back and cut
_CUT_EVERY_S = 5.0  # at most, as another process that reads may stand in the way
_CUT_MS = 500  # that short reads which go on are waited for
_BUSY_MS = 5000  # that anything else is

log = logging.getLogger(__name__)

FILTER_S = 30.0
"""Seconds that a filter may take unless it is set."""
_WRITER_SETTINGS = (
    *FRESH,
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
    f"PRAGMA journal_size_limit = {_LOG_BYTES}",
    "PRAGMA trusted_schema = ON",  # triggers call FieldChanges.note
)


class Connections:
    """SQLite connections to one catalog file; safe to use from many threads.

    One connection makes every write and checkpoint: SQLite before 3.51.3 can damage a WAL
    database that several connections write.

    Opened for reading only, another process may be the one that writes.

    Args:
        path: The file.
        filter_s: Seconds that a filter may take.
        read_only: Whether to change nothing.

    Raises:
        DataFolderError: The file is damaged, or was written by another version.
        StorageError: The disk refuses.
    """

    def __init__(self, path: Path, *, filter_s: float = FILTER_S, read_only: bool = False) -> None:
        self._path = path
        self._wal = path.with_name(f"{path.name}-wal")
        self._filter_s = filter_s
        self._slow = SlowReads(_SLOW_READERS, pause=self._cut_log)
        self._cut_at = 0.0
        self._write_lock = threading.Lock()
        self._changes = FieldChanges()
        self._closed = False
        self._idle: queue.LifoQueue[sqlite3.Connection | None] = queue.LifoQueue()
        for _ in range(_READERS):
            self._idle.put(None)
        self._writer: sqlite3.Connection | None = None
        if read_only:
            self._require_migrated()
        else:
            with self._errors():
                self._open_writer()

    def _open_writer(self) -> None:
        self._writer = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        try:
            self._writer.create_function(NOTE, 4, self._changes.note)
            for setting in _WRITER_SETTINGS:
                self._writer.execute(setting)
            self._migrate(self._writer)
        except BaseException:
            self._writer.close()
            raise

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """One transaction: on the disk when the block ends, undone where it raises."""
        with self._write_lock, self._errors():
            writer = self._require_writer()
            writer.execute("BEGIN IMMEDIATE")
            try:
                yield writer
                self._changes.settle(writer)
                writer.execute("COMMIT")
            except BaseException:
                self._changes.forget()
                if writer.in_transaction:  # a full disk may have rolled it back already
                    writer.execute("ROLLBACK")
                raise
        if self._log_is_long():
            self._slow.pause()

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A read-only connection that sees one moment of the catalog until the block ends."""
        connection = self._idle.get()
        try:
            self._require_open()
            with self._errors():
                connection = connection or self._open_reader()
                connection.execute("BEGIN")
                try:
                    yield connection
                finally:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
        finally:
            self._idle.put(connection)

    @contextmanager
    def read_filtered(self, *, placed: bool = False) -> Iterator[sqlite3.Connection]:
        """As `read`, for a filter that may look at every picture; few at a time.

        Args:
            placed: Whether it needs no place of its own: the caller holds one, or looks at little.

        Raises:
            FilterTooSlowError: It took, or waited for others, longer than a filter may.
        """
        with nullcontext() if placed else self.filter_place(), self.read() as connection:
            end = time.monotonic() + self._filter_s
            connection.set_progress_handler(lambda: time.monotonic() > end, _STEPS)
            try:
                yield connection
            finally:
                connection.set_progress_handler(None, 0)

    @contextmanager
    def filter_place(self) -> Iterator[None]:
        """A place among the few filters at a time that may look at every picture.

        Raises:
            FilterTooSlowError: Others took longer than a filter may.
        """
        if not self._slow.enter(wait_s=self._filter_s):
            raise self._too_slow()
        try:
            yield
        finally:
            self._slow.leave()

    def _log_is_long(self) -> bool:
        try:
            length = self._wal.stat().st_size
        except OSError:
            return False
        return length > _LOG_BYTES and time.monotonic() >= self._cut_at

    def _cut_log(self) -> None:
        """Writes the log back and empties it, while no long read stands in the way.

        SQLite itself begins the log anew only when nobody reads of it, and long reads that
        overlap leave no such moment.
        """
        self._cut_at = time.monotonic() + _CUT_EVERY_S
        with self._write_lock:
            if self._closed or self._writer is None:
                return
            try:
                self._writer.execute(f"PRAGMA busy_timeout = {_CUT_MS}")
                self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            except sqlite3.Error as exc:
                log.warning("The catalog's write-ahead log was not cut: %s", exc)
            finally:
                self._writer.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")

    def _too_slow(self) -> FilterTooSlowError:
        return FilterTooSlowError(
            f"The filter takes longer than {self._filter_s:g} s on a collection of this size. Name "
            "its fields in LOOKALIKE_FILTER_FIELDS, use fewer conditions, or raise "
            "LOOKALIKE_FILTER_TIMEOUT"
        )

    def give_room_back(self) -> None:
        """Hands free pages back to the disk."""
        with self._write_lock, self._errors():
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

    def _require_open(self) -> None:
        if self._closed:
            raise StorageError("The store is closed")

    def _require_writer(self) -> sqlite3.Connection:
        self._require_open()
        if self._writer is None:
            raise StorageError("The data folder was opened for reading only")
        return self._writer

    def _require_migrated(self) -> None:
        with self.read() as connection:
            if self._missing(connection):
                raise DataFolderError(
                    f"{self._path} was written by an older version of Lookalike; start the service "
                    "on it once, which brings it up to date"
                )

    def _open_reader(self) -> sqlite3.Connection:
        address = f"{self._path.resolve().as_uri()}?mode=ro"
        reader = sqlite3.connect(address, uri=True, isolation_level=None, check_same_thread=False)
        reader.create_function(FUNCTION, 2, holds, deterministic=True)
        reader.create_function(NOTE, 4, self._changes.note)  # writes are refused, as such
        return reader

    def _migrate(self, writer: sqlite3.Connection) -> None:
        writer.execute(
            "CREATE TABLE IF NOT EXISTS migrations"
            " (name TEXT PRIMARY KEY, applied_at TEXT NOT NULL)"
        )
        missing = self._missing(writer)
        for name, statements in MIGRATIONS:
            if name in missing:
                with self.write() as connection:
                    for statement in statements:
                        connection.execute(statement)
                    connection.execute("INSERT INTO migrations VALUES (?, ?)", (name, utc_now()))

    def _missing(self, connection: sqlite3.Connection) -> set[str]:
        """The migrations still to be made; raises where there are some that are not known."""
        applied = {name for (name,) in connection.execute("SELECT name FROM migrations")}
        unknown = applied - {name for name, _ in MIGRATIONS}
        if unknown:
            raise DataFolderError(
                f"{self._path} was written by a newer version of Lookalike "
                f"({', '.join(sorted(unknown))}); use that version or a later one"
            )
        return {name for name, _ in MIGRATIONS} - applied

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as exc:
            interrupted = primary_code(exc) == sqlite3.SQLITE_INTERRUPT
            ours = self._too_slow() if interrupted else translated(exc, self._path)
            if ours is None:
                raise
            raise ours from exc
