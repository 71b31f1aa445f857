"""What a repair must never take away."""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.test_check import check, client, data, template  # noqa: F401


def originals(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "images").rglob("*") if path.is_file()}


def empty_index(folder: Path, *, keep: int = 0) -> None:
    """Takes all entries but the first few out of the index of digests, which no schema shows."""
    sql = "UPDATE sqlite_master SET sql = ? WHERE name = 'images_by_sha256'"
    whole = "CREATE INDEX images_by_sha256 ON images (sha256)"
    for statement in (f"{whole} WHERE seq <= {keep}", whole):
        with closing(sqlite3.connect(folder / "catalog.db")) as rows:
            rows.execute("PRAGMA writable_schema = ON")
            rows.execute(sql, (statement,))
            rows.commit()
        if "WHERE" in statement:
            with closing(sqlite3.connect(folder / "catalog.db")) as rows:
                rows.execute("REINDEX images_by_sha256")
                rows.commit()


def make_old(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (1, 1))


def make_orphan(folder: Path) -> None:
    """Deletes a picture, and the note that would let a sweep take its file."""
    with client(folder) as opened:
        opened.delete(next(one.id for one in opened.list() if one.filename == "5.png"))
    for name in ("unswept", "unswept.old"):
        (folder / name).unlink(missing_ok=True)


@pytest.mark.parametrize("quick", [False, True])
def test_a_damaged_catalog_takes_no_file_to_the_trash(data: Path, quick: bool) -> None:  # noqa: F811
    before = originals(data)
    empty_index(data)
    make_old(data)
    check(data, quick=quick, repair=True)
    assert originals(data) == before


def test_orphans_stay_while_a_database_is_damaged(data: Path) -> None:  # noqa: F811
    make_orphan(data)
    before = originals(data)
    empty_index(data, keep=6)  # too few would make it another folder's catalog
    make_old(data)
    assert "orphan" in {one.kind for one in check(data, repair=True).findings}
    assert originals(data) == before


def test_vectors_whose_model_is_lost_stay(data: Path) -> None:  # noqa: F811
    with closing(sqlite3.connect(data / "catalog.db")) as rows:
        (count,) = rows.execute("SELECT count(*) FROM vectors").fetchone()
        rows.execute("DELETE FROM spaces WHERE id = (SELECT min(space) FROM collections)")
        rows.commit()
    check(data, repair=True)
    with closing(sqlite3.connect(data / "catalog.db")) as rows:
        assert rows.execute("SELECT count(*) FROM vectors").fetchone() == (count,)


def test_orphans_stay_where_the_trash_has_no_room(data: Path, monkeypatch) -> None:  # noqa: F811
    make_orphan(data)
    make_old(data)
    before = originals(data)
    mkdir = Path.mkdir

    def full(self: Path, *args: Any, **named: Any) -> None:
        if "trash" in self.parts:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        mkdir(self, *args, **named)

    monkeypatch.setattr(Path, "mkdir", full)
    assert "orphan" in {one.kind for one in check(data, repair=True).findings}
    assert originals(data) == before
