"""A catalog of an earlier version becomes one of this version, whole or not at all."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import fields
from pathlib import Path

import pytest

from lookalike.errors import DataFolderError
from lookalike.records import NewImage, OnConflict, Place
from lookalike.store.local.catalog import Catalog
from lookalike.store.local.rows import SCHEMA
from lookalike.store.local.store import LocalStore
from tests.store.helpers import new_image, put, unit_vectors

OLD = Path(__file__).parents[1] / "formats" / "v1" / "exact.zip"
# BEGIN, the statements, the version, COMMIT
STEPS = 1 + sum(map(len, SCHEMA.migrations.values())) + 2
CHILD = """
import sys
from tests.store.test_migration import open_and_die
open_and_die(sys.argv[1], int(sys.argv[2]))
"""


class Mortal(sqlite3.Connection):
    """Ends the process before some statement of a transaction."""

    left: int | None = None

    def execute(self, sql: str, *args: object) -> sqlite3.Cursor:
        if sql.startswith("BEGIN IMMEDIATE"):
            Mortal.left = Mortal.left if Mortal.left is not None else int(sys.argv[2])
        if Mortal.left is not None:
            if Mortal.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            Mortal.left -= 1
        return super().execute(sql, *args)  # type: ignore[arg-type]


def open_and_die(path: str, _: int) -> None:
    connect = sqlite3.connect
    sqlite3.connect = lambda *a, **k: connect(*a, **k, factory=Mortal)  # type: ignore[assignment]
    Catalog(Path(path))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    shutil.unpack_archive(OLD, tmp_path / "data")
    return tmp_path / "data"


def version(path: Path) -> int:
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


@pytest.mark.parametrize("step", range(STEPS))
def test_a_migration_that_is_killed_leaves_the_old_catalog(data: Path, step: int) -> None:
    path = data / "catalog.db"
    command = [sys.executable, "-c", CHILD, str(path), str(step)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert version(path) == 1
    with closing(Catalog(path, read_only=True)) as catalog:
        (row,) = catalog.collections()
        rows = catalog.page(row, after=0, limit=100)
        assert len(rows) == row.images == 40
        assert not any(one.places for one in rows.values())
    with closing(Catalog(path)) as catalog, catalog.connections.read() as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA foreign_key_check").fetchone() is None
        assert catalog.page(row, after=0, limit=100) == rows
    assert version(path) == SCHEMA.version


def test_an_old_folder_takes_places(data: Path) -> None:
    with closing(LocalStore(data)) as store:
        (first, *_) = store.scroll("default").records
        sent = {one.name: getattr(first, one.name) for one in fields(NewImage)}
        for path in ("a.png", "b.png"):
            image = NewImage(**sent | {"metadata": {"kind": path}, "place": Place("/p", path)})
            store.upsert_known("default", [image], on_conflict=OnConflict.REPLACE)
        record = store.get("default", first.id)
    assert (record.path, record.copies, record.metadata) == ("a.png", ["b.png"], {"kind": "a.png"})


def test_a_reader_beside_a_service_of_the_first_version_sees_no_places(data: Path) -> None:
    with closing(LocalStore(data, read_only=True)) as reader:
        before = reader.scroll("default").records
        LocalStore(data).close()  # the service starts again, with this version
        assert reader.scroll("default").records == before
        assert reader.places("default", [before[0].id]) == {}
    assert version(data / "catalog.db") == SCHEMA.version


def test_tables_of_a_migrated_catalog_are_those_of_a_new_one(data: Path, tmp_path: Path) -> None:
    def tables(path: Path) -> list[tuple[str, str]]:
        Catalog(path).close()
        with closing(sqlite3.connect(path)) as connection:
            sql = "SELECT name, sql FROM sqlite_master WHERE sql NOT NULL ORDER BY name"
            return connection.execute(sql).fetchall()

    assert tables(data / "catalog.db") == tables(tmp_path / "new.db")


def test_a_version_that_nothing_migrates_is_refused(data: Path) -> None:
    path = data / "catalog.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 0")
    for read_only in (True, False):
        with pytest.raises(DataFolderError, match="older version"):
            Catalog(path, read_only=read_only)


def test_nothing_is_written_where_nothing_changes(tmp_path: Path) -> None:
    def changes(store: LocalStore) -> int:
        with store._catalog.connections.write() as connection:
            return connection.total_changes

    with closing(LocalStore(tmp_path)) as store:
        images = [new_image("i", place=Place("/p", path)) for path in ("a", "b")]
        put(store, images, unit_vectors(2))
        before = changes(store)
        for image in images:
            store.upsert_known("default", [image], on_conflict=OnConflict.REPLACE)
        put(store, images, unit_vectors(2))
        assert changes(store) == before
