"""Rebuilds that end early spoil nothing."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from lookalike.errors import StorageError, StorageFullError
from lookalike.files.data_folder import take_rebuilt
from lookalike.files.disk import LocalFiles
from lookalike.store.local.store import LocalStore
from lookalike.store.local.unswept import Known, Unswept
from tests.test_rebuild_catalog import data, opened, rebuilt, rows, template  # noqa: F401


def originals(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "images").rglob("*") if path.is_file()}


def sweep(folder: Path) -> None:
    """As the service does, hours later."""
    past = time.time() - 7200
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (past, past))
    store, files = LocalStore(folder), LocalFiles(folder)
    for digests in store.unnamed():
        files.set_aside(digests)
    store.close()


@pytest.mark.parametrize("lost", [False, True])
def test_a_rebuild_that_ends_early_leaves_all_originals_to_the_next(data, monkeypatch, lost):  # noqa: F811
    before, upsert = originals(data), LocalStore.upsert
    with opened(data) as client:  # rows that went without a note, as with an older catalog
        ids = [one.id for one in client.list()][:3]
        for one in ids:
            client.delete(one)
    for name in ("unswept", "unswept.old"):
        (data / name).unlink(missing_ok=True)
    if lost:
        (data / "catalog.db").unlink()

    def full(*_: object, **__: object) -> None:
        raise StorageFullError("full")

    monkeypatch.setattr(LocalStore, "upsert", full)
    with pytest.raises(StorageFullError):
        rebuilt(data)
    monkeypatch.setattr(LocalStore, "upsert", upsert)
    if not lost:
        sweep(data)
    assert originals(data) == before
    rebuilt(data)
    assert {row[1] for row in rows(data).values()} == before


def test_a_new_catalog_that_is_not_written_back_is_not_taken(tmp_path: Path) -> None:
    made = tmp_path / "rebuilt"
    made.mkdir()
    for name in ("catalog.db", "rebuilt/catalog.db", "rebuilt/catalog.db-wal"):
        (tmp_path / name).write_bytes(name.encode())
    with pytest.raises(StorageError, match="make room and rebuild again"):
        take_rebuilt(tmp_path)
    assert (tmp_path / "catalog.db").read_bytes() == b"catalog.db"
    assert (made / "catalog.db-wal").exists()


def test_half_a_rebuild_is_forgotten_once_the_folder_is_in_use_again(data: Path) -> None:  # noqa: F811
    (data / "rebuilt").mkdir()
    opened(data, read_only=True).close()
    assert (data / "rebuilt").exists()
    opened(data).close()
    assert not (data / "rebuilt").exists()


def test_notes_of_another_catalog_are_dropped_on_a_full_disk_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unswept").write_text(f"catalog 1\nseq 5\n{'a' * 64}\n")
    with monkeypatch.context() as full:
        full.setattr(Unswept, "_begin", refuse)
        notes = Unswept(tmp_path, Known(2, 3), keep=False)
    assert list(notes.batches(lambda _: set())) == []
    notes.close()


def refuse(_: Unswept) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
