"""Keys that open a service's calls: what is kept of them, in a SQLite file of their own."""

# ruff: noqa: S608 - only constants go into the SQL texts, every value is bound

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from lookalike.errors import ConflictError, KeyNotFoundError
from lookalike.records import Access, utc_now
from lookalike.store.sqlite import OneConnection, Schema, damaged

MOST_KEYS = 1000
"""A service holds all keys in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessKey:
    """A key that was made, without the key itself; times are ISO 8601 in UTC."""

    id: str  # 8 hex digits, public: they are a part of the key
    name: str
    scope: Access
    digest: bytes = field(repr=False)  # SHA-256 of the key
    created_at: str
    expires_at: str | None = None

    @property
    def expired(self) -> bool:
        """Whether it opens nothing any more."""
        return self.expires_at is not None and self.expires_at <= utc_now()


_SCHEMA = Schema(
    application=0x4C4B4143,  # "LKAC"
    version=1,
    statements=(
        """
        CREATE TABLE keys (
            id TEXT PRIMARY KEY,
            name TEXT NOT NULL UNIQUE,
            scope TEXT NOT NULL,
            digest BLOB NOT NULL,
            created_at TEXT NOT NULL,
            expires_at TEXT
        )
        """,
    ),
    remedy="move the file away: it holds the keys that lookalike keys made, which are made again",
    journal="DELETE",  # several processes write, which damages a WAL file before SQLite 3.51.3
)
_FIELDS = tuple(one.name for one in fields(AccessKey))
_COLUMNS = ", ".join(_FIELDS)


class AccessStore:
    """Keeps keys in one SQLite file; safe to call from many threads and processes.

    What is written has reached the disk. The file is made with the first key, so that a service
    starts on a full disk. Raises `DataFolderError` if it is damaged or of another version, and
    `StorageError` if the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opening = threading.Lock()
        self._opened: OneConnection | None = None

    def close(self) -> None:
        """Lets go of the file; may be called twice."""
        if self._opened is not None:
            self._opened.close()

    def all(self) -> list[AccessKey]:
        """All keys, in the order made."""
        if self._opened is None and not self._path.exists():
            return []
        with self._file().read() as connection:
            rows = connection.execute(f"SELECT {_COLUMNS} FROM keys ORDER BY rowid").fetchall()
        return [self._key(row) for row in rows]

    def add(self, key: AccessKey) -> None:
        """Keeps a new key. Raises `ConflictError` if its name is taken, or there are too many."""
        sql = f"INSERT INTO keys ({_COLUMNS}) VALUES ({', '.join('?' * len(_FIELDS))})"
        with self._file().write() as connection:
            (count,) = connection.execute("SELECT count(*) FROM keys").fetchone()
            if count >= MOST_KEYS:
                raise ConflictError(f"There are {count:,} keys already; revoke one first")
            taken = "SELECT 1 FROM keys WHERE ? IN (name, id)"
            if connection.execute(taken, (key.name,)).fetchone():
                raise ConflictError(
                    f"There is a key {key.name!r} already; choose another name, or revoke it first"
                )
            connection.execute(sql, tuple(getattr(key, name) for name in _FIELDS))

    def remove(self, name_or_id: str) -> AccessKey:
        """Forgets a key, and gives it. Raises `KeyNotFoundError`."""
        sql = f"DELETE FROM keys WHERE ? IN (id, name) RETURNING {_COLUMNS}"
        rows = []
        if self._opened is not None or self._path.exists():
            with self._file().write() as connection:
                rows = connection.execute(sql, (name_or_id,)).fetchall()
        if not rows:
            raise KeyNotFoundError(
                f"There is no key {name_or_id!r}; lookalike keys list and GET /keys list them"
            )
        return self._key(rows[0])

    def _file(self) -> OneConnection:
        with self._opening:
            if self._opened is None:
                self._opened = OneConnection(self._path, _SCHEMA)
            return self._opened

    def _key(self, row: Sequence[Any]) -> AccessKey:
        """Reads `_COLUMNS`."""
        read = dict(zip(_FIELDS, row, strict=True))
        if not isinstance(read["digest"], bytes) or read["scope"] not in set(Access):
            raise damaged(self._path, "a key in it cannot be read")
        return AccessKey(**read | {"scope": Access(read["scope"])})
