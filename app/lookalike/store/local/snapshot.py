"""A copy of a catalog as it was at one moment, made while its owner goes on; and what it names."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from lookalike.errors import BackupError, DataFolderError, StorageFullError
from lookalike.files.disk import disk_errors, sync
from lookalike.progress import Progress
from lookalike.store.base import Content
from lookalike.store.local.rows import SCHEMA
from lookalike.store.sqlite import open_reader, sqlite_errors

_PAGES = 4096  # copied in one step
_UNSAFE = ("PRAGMA synchronous = OFF", "PRAGMA journal_mode = OFF")  # a crash costs the copy
_KINDS = {"table", "index"}  # all that a catalog is made of
_TABLES = {"collections", "spaces", "images", "vectors"}
_CONTENT = (
    "SELECT sha256, media_type, max(source NOT NULL) FROM images"
    " JOIN collections ON collections.id = images.collection AND name NOT NULL"
    " GROUP BY sha256, media_type ORDER BY sha256"
)


class LocalSnapshots:
    """`Snapshots` of a data folder's catalog. Needs no FAISS, and no ownership of the folder."""

    def __init__(self, catalog: Path) -> None:
        self._catalog = catalog

    def take(self, target: Path, progress: Progress) -> None:
        with disk_errors(f"read {self._catalog}"):
            size = self._catalog.stat().st_size
        self._require_room(target, size)
        with sqlite_errors(self._catalog), closing(open_reader(self._catalog, SCHEMA)) as reader:
            # The transaction keeps one moment through all steps, and holds up no writer.
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM sqlite_master").fetchone()
            with sqlite_errors(target), closing(sqlite3.connect(target)) as copy:
                for setting in _UNSAFE:
                    copy.execute(setting)
                self._copy(reader, copy, progress)
                copy.execute("PRAGMA journal_mode = DELETE")
        with disk_errors(f"write {target}"):
            sync(target)

    def copy(self, source: Path, target: Path) -> None:
        with (
            sqlite_errors(source),
            closing(open_reader(source)) as reader,
            closing(sqlite3.connect(target)) as copy,
        ):
            reader.backup(copy)

    def _copy(
        self, reader: sqlite3.Connection, copy: sqlite3.Connection, progress: Progress
    ) -> None:
        def step(_: int, left: int, total: int) -> None:
            progress.check()
            progress.report(total - left, total)

        reader.backup(copy, pages=_PAGES, progress=step, sleep=0.01)

    def _require_room(self, target: Path, size: int) -> None:
        with disk_errors(f"write {target}"):
            free = shutil.disk_usage(target.parent).free
        if free < size:
            raise StorageFullError(
                f"The copy of the catalog needs {size:,} bytes in {target.parent.resolve()}, and "
                f"{free:,} are free; make room there"
            )

    def collections(self, catalog: Path) -> dict[str, int]:
        with sqlite_errors(catalog), closing(open_reader(catalog, SCHEMA)) as reader:
            found = reader.execute("SELECT name, images FROM collections WHERE name NOT NULL")
            return dict(sorted(found.fetchall()))

    def check(self, catalog: Path) -> None:
        try:
            with closing(open_reader(catalog, SCHEMA)) as reader:
                made_of = reader.execute("SELECT type, name FROM sqlite_master").fetchall()
                ((found,),) = reader.execute("PRAGMA quick_check(1)").fetchall()
                if found == "ok" and {name for _, name in made_of} >= _TABLES:
                    reader.execute(f"{_CONTENT} LIMIT 1").fetchall()
        except (DataFolderError, sqlite3.Error) as exc:
            raise BackupError(f"The catalog cannot be used: {exc}") from exc
        why = "" if found == "ok" else found
        if {kind for kind, _ in made_of} - _KINDS:
            why = "it holds what no catalog holds"
        if lacking := _TABLES - {name for _, name in made_of}:
            why = f"it lacks {min(lacking)}"
        if why:
            raise BackupError(f"The catalog {catalog} is damaged: {why}")

    def contents(self, catalog: Path) -> Iterator[Content]:
        with sqlite_errors(catalog), closing(open_reader(catalog, SCHEMA)) as reader:
            for sha256, media_type, in_place in reader.execute(_CONTENT):
                yield Content(sha256, media_type, bool(in_place))
