"""SQLite files: opened, checked for their format, and SQLite's errors in this project's words."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lookalike.errors import DataFolderError, LookalikeError, StorageError, StorageFullError
from lookalike.files.disk import has_room

VERSION = sqlite3.sqlite_version

_REFUSED = {
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_TOOBIG,
}
_NEW = ("PRAGMA page_size = 4096", "PRAGMA auto_vacuum = INCREMENTAL")
_SETTINGS = (
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
)


@dataclass(frozen=True, slots=True)
class Schema:
    """The tables of one kind of file.

    Attributes:
        application: SQLite's `application_id`: which kind of file this is.
        version: SQLite's `user_version`: raised whenever the tables change.
        statements: Make the tables of a new file.
        remedy: What to do about a file of an older version; completes a sentence.
        journal: SQLite's journal mode. With `WAL`, many can read while one writes; `DELETE` needs
            no further files, and no room to open the file.
    """

    application: int
    version: int
    statements: Sequence[str]
    remedy: str
    journal: str = "WAL"


def open_writer(path: Path, schema: Schema) -> sqlite3.Connection:
    """Opens a file for writing, and makes its tables where it is new.

    Raises:
        DataFolderError: The file was written by another version, or is of another kind.
        sqlite3.Error: SQLite cannot open it.
    """
    writer = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        is_new = not writer.execute("SELECT 1 FROM sqlite_master").fetchone()
        if not is_new:
            require_schema(writer, path, schema)  # before a setting that changes the file
        settings = (f"PRAGMA journal_mode = {schema.journal}", *_SETTINGS)
        for setting in (*_NEW, *settings) if is_new else settings:
            writer.execute(setting)
        if is_new:
            writer.execute("BEGIN IMMEDIATE")
            for statement in schema.statements:
                writer.execute(statement)
            writer.execute(f"PRAGMA application_id = {schema.application}")
            writer.execute(f"PRAGMA user_version = {schema.version}")
            writer.execute("COMMIT")
    except BaseException:
        writer.close()
        raise
    return writer


def open_reader(path: Path) -> sqlite3.Connection:
    """Opens a file that is there, for reading only. Raises `sqlite3.Error`."""
    address = f"{path.resolve().as_uri()}?mode=ro"
    return sqlite3.connect(address, uri=True, isolation_level=None, check_same_thread=False)


def require_schema(connection: sqlite3.Connection, path: Path, schema: Schema) -> None:
    """Raises `DataFolderError` where a file has other tables than this version makes."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application == schema.application and version > schema.version:
        raise DataFolderError(
            f"{path} was written by a newer version of Lookalike (its format is {version}, this "
            f"version knows {schema.version}); use that version or a later one"
        )
    if (application, version) != (schema.application, schema.version):
        raise DataFolderError(
            f"{path} was written by an older version of Lookalike or by another program; "
            f"{schema.remedy}"
        )


def primary_code(exc: sqlite3.Error) -> int:
    """SQLite's code without what extends it; 0 where it has none."""
    return int(getattr(exc, "sqlite_errorcode", 0)) & 0xFF


def translated(exc: sqlite3.Error, path: Path) -> LookalikeError | None:
    """What an error on a file means for its user; None where it is a fault of ours."""
    code = primary_code(exc)
    if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
        return DataFolderError(
            f"{path} is damaged ({exc}); restore it from a backup, or move it away "
            "and index the pictures again"
        )
    out_of_room = code in {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN} and not has_room(
        path.parent
    )
    if code == sqlite3.SQLITE_FULL or out_of_room:
        return StorageFullError("The disk of the data folder is full; make room")
    return StorageError(f"{path} cannot be used: {exc}") if code in _REFUSED else None


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
