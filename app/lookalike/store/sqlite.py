"""SQLite files: their format, their connections, and SQLite's errors in this project's words."""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

from lookalike.errors import DataFolderError, LookalikeError, StorageError, StorageFullError
from lookalike.files.disk import disk_errors, has_room, make_folders

VERSION = sqlite3.sqlite_version

_REFUSED = {
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_TOOBIG,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_PROTOCOL,
}
# An index that lacks a row shows as a constraint that fails.
_DAMAGED = {
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_FORMAT,
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_SCHEMA,
}
_SAYS_DAMAGE = re.compile(
    r"malformed|unsupported file format|no such (table|column|collation|function|index)"
    r"|could not decode|has no column|foreign key mismatch|integer overflow",
    re.IGNORECASE,
)
_NEW = ("PRAGMA page_size = 4096", "PRAGMA auto_vacuum = INCREMENTAL")
_SETTINGS = ("PRAGMA synchronous = FULL", "PRAGMA foreign_keys = ON")


@dataclass(frozen=True, slots=True)
class Schema:
    """The tables of one kind of file."""

    application: int  # SQLite's `application_id`: which kind of file this is
    version: int  # SQLite's `user_version`: raised whenever the tables change
    statements: Sequence[str]  # that make the tables of a new file
    remedy: str  # what to do about a file of an older version; completes a sentence
    # With `WAL`, many read while one writes; `DELETE` needs no more files, and no room to open.
    journal: str = "WAL"
    # By version: the statements that make the next version of it, without losing anything.
    migrations: Mapping[int, Sequence[str]] = field(default_factory=dict)
    # By version: temporary tables for a reader of that version, in place of those that it lacks.
    stand_ins: Mapping[int, Sequence[str]] = field(default_factory=dict)


def open_writer(path: Path, schema: Schema) -> sqlite3.Connection:
    """Opens a file for writing, and makes its tables where it is new.

    A file of an older version is brought to this one in one transaction. Raises `DataFolderError`
    if it is of another version or kind, or `sqlite3.Error`.
    """
    writer = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        is_new = not writer.execute("SELECT 1 FROM sqlite_master").fetchone()
        if not is_new:
            version = require_schema(writer, path, schema)  # before a setting that changes it
        settings = (f"PRAGMA journal_mode = {schema.journal}", *_SETTINGS)
        for setting in (*_NEW, *settings) if is_new else settings:
            writer.execute(setting)
        if is_new:
            with transaction(writer):
                if not writer.execute("SELECT 1 FROM sqlite_master").fetchone():
                    _make_tables(writer, schema)  # no other process has made them meanwhile
            require_schema(writer, path, schema)
        elif version < schema.version:
            _migrate(writer, schema, version)
            log.info("%s is of format %d now, it was %d", path, schema.version, version)
    except BaseException:
        writer.close()
        raise
    return writer


def is_blank(path: Path) -> bool:
    """True if a file is missing, empty or without tables. Raises `sqlite3.Error`."""
    if not path.is_file() or not path.stat().st_size:
        return True
    with closing(open_reader(path)) as reader:
        return not reader.execute("SELECT 1 FROM sqlite_master").fetchone()


def _make_tables(writer: sqlite3.Connection, schema: Schema) -> None:
    for statement in schema.statements:
        writer.execute(statement)
    writer.execute(f"PRAGMA application_id = {schema.application}")
    writer.execute(f"PRAGMA user_version = {schema.version}")


def _migrate(writer: sqlite3.Connection, schema: Schema, version: int) -> None:
    with transaction(writer):
        for older in range(version, schema.version):
            for statement in schema.migrations[older]:
                writer.execute(statement)
        writer.execute(f"PRAGMA user_version = {schema.version}")


def open_reader(path: Path, schema: Schema | None = None) -> sqlite3.Connection:
    """Opens a file that is there, for reading only; one of an older version as it is.

    Raises `DataFolderError` if it is of another version or kind than `schema`, or `sqlite3.Error`.
    """
    address = f"{path.resolve().as_uri()}?mode=ro"
    reader = sqlite3.connect(address, uri=True, isolation_level=None, check_same_thread=False)
    try:
        if schema is not None:
            for older in range(require_schema(reader, path, schema), schema.version):
                for statement in schema.stand_ins.get(older, ()):
                    reader.execute(statement)
    except BaseException:
        reader.close()
        raise
    return reader


_NAMED_ERRORS = 20


def find_damage(path: Path, *, quick: bool) -> list[str]:
    """What SQLite finds wrong with a file, the first few; `quick` leaves out its indexes.

    Raises `StorageError` if it cannot be read.
    """
    check = "quick_check" if quick else "integrity_check"
    with sqlite_errors(path), closing(open_reader(path)) as reader:
        try:
            rows = reader.execute(f"PRAGMA {check}({_NAMED_ERRORS})").fetchall()
        except sqlite3.DatabaseError as exc:
            if not isinstance(translated(exc, path), DataFolderError):
                raise
            return [str(exc)]
    return [text for (text,) in rows if text != "ok"]


def require_schema(connection: sqlite3.Connection, path: Path, schema: Schema) -> int:
    """The version of a file, this one or one that can be migrated; else `DataFolderError`."""
    application, version = refuse_newer(connection, path, schema)
    known = {schema.version, *schema.migrations}
    if application != schema.application or version not in known:
        raise DataFolderError(
            f"{path} was written by an older version of Lookalike or by another program; "
            f"{schema.remedy}"
        )
    return version


def refuse_newer(connection: sqlite3.Connection, path: Path, schema: Schema) -> tuple[int, int]:
    """The application and the version of a file; `DataFolderError` if the version is newer."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application == schema.application and version > schema.version:
        raise DataFolderError(
            f"{path} was written by a newer version of Lookalike (its format is {version}, this "
            f"version knows {schema.version}); use that version or a later one"
        )
    return application, version


def damaged(path: Path | str, why: object) -> DataFolderError:
    """The error for a file that does not hold what was written to it."""
    remedy = "move it away"
    if Path(path).name == "catalog.db":
        remedy = "make the catalog again from the originals with `lookalike rebuild`"
    return DataFolderError(f"{path} is damaged ({why}); restore it from a backup, or {remedy}")


def translated(exc: sqlite3.Error, path: Path) -> LookalikeError | None:
    """Our error for an error of SQLite; None for one that is a bug."""
    code = int(getattr(exc, "sqlite_errorcode", 0)) & 0xFF  # without what extends it
    # Errors of SQL have one code, and those of texts that are no UTF-8 have none.
    if code in _DAMAGED or (code in {0, sqlite3.SQLITE_ERROR} and _SAYS_DAMAGE.search(str(exc))):
        return damaged(path, exc)
    out_of_room = code in {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN} and not has_room(
        path.parent
    )
    if code == sqlite3.SQLITE_FULL or out_of_room:
        return StorageFullError("The disk of the data folder is full; make room")
    return StorageError(f"{path} cannot be used: {exc}") if code in _REFUSED else None


_MISREAD = (
    *(ValueError, TypeError, KeyError, IndexError, AttributeError),
    *(OverflowError, RecursionError),
)
Reading = TypeVar("Reading", bound=Callable[..., Any])


def reads(file: str) -> Callable[[Reading], Reading]:
    """Decorates a function that reads stored values: one that cannot be read is damage of `file`.

    The function raises `DataFolderError` then.
    """

    def decorated(function: Reading) -> Reading:
        @wraps(function)
        def reading(*arguments: Any, **named: Any) -> Any:
            try:
                return function(*arguments, **named)
            except _MISREAD as exc:
                what = str(exc) or type(exc).__name__
                raise damaged(file, f"a value is not what was written: {what}") from exc

        return cast("Reading", reading)

    return decorated


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


read_json = json.JSONDecoder(parse_constant=_refuse_constant).decode
"""Reads stored JSON. Raises ValueError, for NaN and infinity too."""


def read_object(text: str) -> dict[str, Any]:
    """Reads a stored JSON object. Raises ValueError."""
    found = read_json(text)
    if type(found) is not dict:
        raise ValueError("no JSON object")
    return found


@contextmanager
def sqlite_errors(path: Path) -> Iterator[None]:
    """Turns SQLite's errors inside into ours; what is a fault of ours stays as it is."""
    try:
        yield
    except sqlite3.Error as exc:
        ours = translated(exc, path)
        if ours is None:
            raise
        raise ours from exc
    except UnicodeDecodeError as exc:  # SQLite's own message quotes what is damaged
        raise damaged(path, exc) from exc


def _in_place(path: Path) -> InPlace:
    with disk_errors(f"use {path}"):
        return InPlace(path)


class InPlace:
    """Notices that a file or its folder is no longer what lies at its path, until `close`."""

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._held = [one.stat() for one in self._paths]
        # Held open, because some network disks number a file anew that nobody holds. `O_PATH`
        # leaves the locks alone that SQLite has on the file.
        flag = getattr(os, "O_PATH", None)
        self._open = [] if flag is None else [os.open(one, flag) for one in self._paths]

    @property
    def _paths(self) -> tuple[Path, Path]:
        return self._path.parent, self._path

    def close(self) -> None:
        """Lets go of them; may be called twice."""
        opened, self._open = self._open, []
        for one in opened:
            os.close(one)

    def require(self) -> None:
        """Raises `DataFolderError` if changes would go into files that nobody finds again."""
        try:
            held = [os.fstat(one) for one in self._open] or self._held
            same = all(map(os.path.samestat, held, [one.stat() for one in self._paths]))
        except OSError:
            same = False
        if not same:
            raise DataFolderError(
                f"{self._path} is not the file any more that the service opened: its folder was "
                "moved, deleted, replaced or unmounted. Nothing is changed; put the folder back, "
                "or restart the service"
            )

    def require_writable(self) -> None:
        """As `require`; raises `StorageError` too, if nothing may be written there."""
        self.require()
        if not os.access(self._path.parent, os.W_OK) or not os.access(self._path, os.W_OK):
            raise StorageError(
                f"{self._path.parent} can no longer be written to: its disk was made read-only, or "
                "its permissions were changed. Searches go on; changes are refused"
            )


@contextmanager
def transaction(writer: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """One transaction: on the disk when the block ends, undone where it raises."""
    writer.execute("BEGIN IMMEDIATE")
    try:
        yield writer
        writer.execute("COMMIT")
    except BaseException:
        if writer.in_transaction:  # a full disk may have rolled it back already
            writer.execute("ROLLBACK")
        raise


_READERS = 4
_LOG_BYTES = 2**26  # of the write-ahead log; a longer one is written back and emptied
_CUT_EVERY_S = 5.0  # at most, because another process that reads may prevent it
_VACUUMED_PAGES = 500  # in one step
_CUT_MS = 500  # for which emptying the log waits for reads
_BUSY_MS = 5000  # for which any other statement waits

log = logging.getLogger(__name__)


class Connections:
    """SQLite connections to one file; safe to use from many threads.

    One connection makes every write and checkpoint: SQLite before 3.51.3 can damage a WAL
    database that several connections write. With `read_only`, another process may write. Raises
    `DataFolderError` if the file is damaged or of another version, else `StorageError`.
    """

    def __init__(self, path: Path, schema: Schema, *, read_only: bool = False) -> None:
        self._path, self._schema = path, schema
        self._wal = path.with_name(f"{path.name}-wal")
        self._cut_at = 0.0
        self._write_lock = threading.Lock()
        self._closed = False
        self._idle: queue.LifoQueue[sqlite3.Connection | None] = queue.LifoQueue()
        for _ in range(_READERS):
            self._idle.put(None)
        self._writer: sqlite3.Connection | None = None
        if read_only:
            with self.read():  # which looks at the file
                pass
        else:
            with sqlite_errors(path):
                self._writer = open_writer(path, schema)
                self._in_place = _in_place(path)
                self._writer.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """One transaction: on the disk when the block ends, undone where it raises."""
        with self._write_lock, sqlite_errors(self._path):
            writer = self._require_writer()
            self._in_place.require_writable()
            with transaction(writer):
                yield writer
            self._in_place.require()  # moved meanwhile: nobody must take this for done
            self._cut_log(writer)

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A read-only connection that sees one moment of the catalog until the block ends."""
        connection = self._idle.get()
        try:
            self._require_open()
            with sqlite_errors(self._path):
                if connection is None:
                    if self._writer is not None:
                        self._in_place.require()  # else two catalogs would be mixed
                    connection = open_reader(self._path, self._schema)
                connection.execute("BEGIN")
                try:
                    yield connection
                finally:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
        finally:
            self._idle.put(connection)

    def check(self) -> None:
        """Raises `StorageError` if changes cannot reach the disk, see `InPlace`."""
        if self._writer is not None:
            self._in_place.require_writable()

    def give_room_back(self) -> None:
        """Hands free pages back to the disk."""
        # In steps, which a full disk has room for.
        free, before = 0, 1  # pages
        while free != before:
            before = free
            with self._write_lock, sqlite_errors(self._path):
                writer = self._require_writer()
                # Not `execute`, which stops at the first page.
                writer.executescript(f"PRAGMA incremental_vacuum({_VACUUMED_PAGES})")
                (free,) = writer.execute("PRAGMA freelist_count").fetchone()

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
                self._in_place.close()
        for _ in range(_READERS):
            self._idle.put(None)

    def _cut_log(self, writer: sqlite3.Connection) -> None:
        """Writes the log back and empties it once it is long, waiting for reads that go on.

        SQLite itself begins the log anew only when nobody reads: overlapping reads prevent that.
        """
        try:
            is_long = self._wal.stat().st_size > _LOG_BYTES
        except OSError:
            return
        if not is_long or time.monotonic() < self._cut_at:
            return
        self._cut_at = time.monotonic() + _CUT_EVERY_S
        self._empty_log(writer)

    def empty_log(self) -> None:
        """Writes the log back and empties it, which gives its room back to the disk."""
        with self._write_lock, sqlite_errors(self._path):
            self._empty_log(self._require_writer())

    def _empty_log(self, writer: sqlite3.Connection) -> None:
        try:
            writer.execute(f"PRAGMA busy_timeout = {_CUT_MS}")
            writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error as exc:
            log.warning("The catalog's write-ahead log was not emptied: %s", exc)
        finally:
            writer.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")

    def _require_open(self) -> None:
        if self._closed:
            raise StorageError("The store is closed")

    def _require_writer(self) -> sqlite3.Connection:
        self._require_open()
        if self._writer is None:
            raise StorageError("The data folder was opened for reading only")
        return self._writer


class OneConnection:
    """One connection, for a file with few rows; safe to use from many threads.

    The file is made where it does not exist, with its folder; with `read_only`, a file that does
    not exist counts as empty. Raises as `Connections`.
    """

    def __init__(self, path: Path, schema: Schema, *, read_only: bool = False) -> None:
        self._path = path
        self._read_only = read_only
        self._lock = threading.Lock()
        self._closed = False
        if not read_only:
            with disk_errors(f"use the folder {path.parent}"):
                make_folders(path.parent.resolve())
        with sqlite_errors(path):
            if not read_only:
                self._connection = open_writer(path, schema)
                self._in_place = _in_place(path)
            elif path.exists():
                self._connection = open_reader(path, schema)
            else:
                self._connection = open_writer(Path(":memory:"), schema)

    def close(self) -> None:
        """Lets go of the file; may be called twice."""
        with self._lock:
            self._closed = True
            self._connection.close()
            if not self._read_only:
                self._in_place.close()

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """The connection, which no other thread uses until the block ends."""
        with self._lock, sqlite_errors(self._path):
            if self._closed:
                raise StorageError("The store is closed")
            yield self._connection

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """One transaction: on the disk when the block ends, undone where it raises."""
        with self.read() as connection:
            if self._read_only:
                raise StorageError("The data folder was opened for reading only")
            self._in_place.require_writable()
            with transaction(connection):
                yield connection
            self._in_place.require()
