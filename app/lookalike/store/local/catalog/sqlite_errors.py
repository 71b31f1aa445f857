"""SQLite's errors in our words."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from lookalike.errors import DataFolderError, LookalikeError, StorageError, StorageFullError
from lookalike.files.disk import has_room

_REFUSED = {
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_TOOBIG,
}


def primary_code(exc: sqlite3.Error) -> int:
    """SQLite's code without what extends it; 0 where it has none."""
    return int(getattr(exc, "sqlite_errorcode", 0)) & 0xFF


def translated(exc: sqlite3.Error, path: Path) -> LookalikeError | None:
    """What an error on a catalog file means for its user; None where it is a fault of ours."""
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
