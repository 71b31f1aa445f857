"""A data folder that holds files is opened with the catalog that they belong to, or not at all."""

from __future__ import annotations

import io
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from lookalike import Client
from lookalike.errors import ConfigurationError, DataFolderError, StorageFullError
from lookalike.files.disk import LocalFiles
from lookalike.store.local.store import LocalStore
from lookalike.store.sqlite import Connections
from tests.store.helpers import digest, new_image, put, unit_vectors

COUNT = 12


def fill(folder: Path, count: int = COUNT, *, first: int = 0) -> None:
    """Puts pictures with their originals and thumbnails."""
    files = LocalFiles(folder)
    with closing(LocalStore(folder)) as store:
        names = [f"i{n}" for n in range(first, first + count)]
        for name in names:
            store.expect([digest(name)])
            files.put(io.BytesIO(name.encode()), digest(name), "image/png")
            files.put_thumbnail(digest(name), b"small")
        put(store, [new_image(name) for name in names], unit_vectors(count, seed=first))


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of `COUNT` pictures, to copy."""
    folder = tmp_path_factory.mktemp("filled") / "data"
    fill(folder)
    return folder


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A larger data folder of other pictures."""
    folder = tmp_path_factory.mktemp("another") / "data"
    fill(folder, 3 * COUNT, first=1000)
    return folder


def files_in(folder: Path) -> dict[str, bytes]:
    """Everything but the lock and the notes, with its content."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(("lock", "catalog.db-", "jobs.db"))
    }


def remove(folder: Path) -> None:
    (folder / "catalog.db").unlink()


def empty(folder: Path) -> None:
    (folder / "catalog.db").write_bytes(b"")


def without_tables(folder: Path) -> None:
    remove(folder)
    with closing(sqlite3.connect(folder / "catalog.db")) as made:
        made.execute("PRAGMA journal_mode = WAL")


def of_another_program(folder: Path) -> None:
    remove(folder)
    with closing(sqlite3.connect(folder / "catalog.db")) as made:
        made.execute("CREATE TABLE moz_places (url TEXT)")


def truncated(folder: Path) -> None:
    os.truncate(folder / "catalog.db", 3 * 4096)


def garbage(folder: Path) -> None:
    (folder / "catalog.db").write_bytes(b"\1\2\3\4" * 5000)


def new_and_empty(folder: Path) -> None:
    other = folder.parent / "other"
    LocalStore(other).close()
    shutil.copy(other / "catalog.db", folder / "catalog.db")


def only_the_log(folder: Path) -> None:
    remove(folder)
    (folder / "catalog.db-wal").write_bytes(b"the last changes" * 100)


SPOILT = [remove, empty, without_tables, of_another_program, truncated, garbage]
SPOILT += [new_and_empty, only_the_log]


@pytest.mark.parametrize("spoil", SPOILT)
@pytest.mark.parametrize("read_only", [True, False])
@pytest.mark.parametrize("with_notes", [True, False])
def test_a_wrong_catalog_is_refused_and_nothing_changes(
    filled: Path,
    tmp_path: Path,
    spoil: Callable[[Path], None],
    read_only: bool,
    with_notes: bool,
) -> None:
    folder = shutil.copytree(filled, tmp_path / "data")
    (folder / "catalog.db-wal").unlink(missing_ok=True)
    if not with_notes:  # as in a folder of an earlier version
        (folder / "unswept").unlink()
    spoil(folder)
    before = files_in(folder)
    with pytest.raises(DataFolderError) as caught:
        Client(folder, model="color", read_only=read_only)
    assert "lookalike rebuild" in str(caught.value)
    assert "backup" in str(caught.value)
    if spoil not in {of_another_program, truncated, garbage}:
        assert f"{COUNT} files in images/, {COUNT} files in thumbnails/" in str(caught.value)
    assert files_in(folder) == before


@pytest.mark.parametrize("with_notes", [True, False])
def test_the_catalog_of_another_folder_is_refused(
    filled: Path, another: Path, tmp_path: Path, with_notes: bool
) -> None:
    folder = shutil.copytree(filled, tmp_path / "data")
    shutil.copy(another / "catalog.db", folder / "catalog.db")
    if not with_notes:
        (folder / "unswept").unlink()
    before = files_in(folder)
    with pytest.raises(DataFolderError, match="another data folder's catalog"):
        LocalStore(folder)
    assert files_in(folder) == before


def test_an_older_catalog_is_refused_if_it_knows_few_of_the_files(tmp_path: Path) -> None:
    fill(tmp_path, 5)
    shutil.copy(tmp_path / "catalog.db", tmp_path / "older")
    fill(tmp_path, COUNT, first=100)
    shutil.copy(tmp_path / "older", tmp_path / "catalog.db")
    with pytest.raises(DataFolderError, match="older than the files"):
        LocalStore(tmp_path)
    (tmp_path / "unswept").unlink()
    with pytest.raises(DataFolderError, match="names 5 pictures, and 12 of 17 files"):
        LocalStore(tmp_path, read_only=True)


def test_an_older_catalog_that_knows_most_files_opens_and_no_sweep_takes_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path)
    with closing(LocalStore(tmp_path)) as store:
        store.delete("default", "i0")
    shutil.copy(tmp_path / "catalog.db", tmp_path / "older")
    fill(tmp_path, 5, first=100)
    shutil.copy(tmp_path / "older", tmp_path / "catalog.db")
    with closing(LocalStore(tmp_path)) as store:
        assert "another one than before, or older" in caplog.text
        assert "lookalike check" in store.describe()["warning"]
        assert list(store.unnamed()) == []
        store.delete("default", "i1")
        assert list(store.unnamed()) == [[digest("i1")]]
    caplog.clear()
    LocalStore(tmp_path).close()
    assert not caplog.text


def test_a_collection_that_was_emptied_opens(tmp_path: Path) -> None:
    fill(tmp_path)
    with closing(LocalStore(tmp_path)) as store:
        store.drop("default", wait=True)
    for _ in range(2):
        with closing(LocalStore(tmp_path)) as store:
            ((*gone,),) = store.unnamed()
            assert len(gone) == COUNT
            store.expect(gone)
    (tmp_path / "unswept").unlink()  # as by an earlier version, which made no notes
    with closing(LocalStore(tmp_path)) as store:
        assert list(store.unnamed()) == []


def test_a_first_start_that_was_killed_opens(tmp_path: Path) -> None:
    """Files were put, and no row was committed."""
    LocalStore(tmp_path).close()
    files = LocalFiles(tmp_path)
    with closing(LocalStore(tmp_path)) as store:
        store.expect([digest("a")])
        files.put(io.BytesIO(b"a"), digest("a"), "image/png")
    with closing(LocalStore(tmp_path)) as store:
        assert list(store.unnamed()) == [[digest("a")]]


def test_files_that_were_moved_away_leave_an_empty_folder(tmp_path: Path) -> None:
    fill(tmp_path)
    remove(tmp_path)
    for part in ("images", "thumbnails"):
        (tmp_path / part).rename(tmp_path / f"{part}-before")
    with pytest.raises(DataFolderError, match=r"move index/ out of it"):
        LocalStore(tmp_path)
    shutil.rmtree(tmp_path / "index")
    LocalStore(tmp_path).close()


def test_a_folder_of_pictures_is_not_taken_for_a_data_folder(tmp_path: Path) -> None:
    (tmp_path / "images" / "holiday").mkdir(parents=True)
    (tmp_path / "images" / "holiday" / "1.jpg").write_bytes(b"a picture")
    with pytest.raises(DataFolderError, match=r"is missing.*1 file in images/"):
        Client(tmp_path, model="color")
    with pytest.raises(ConfigurationError, match="no collection"):
        Client(tmp_path / "nowhere", model="color", read_only=True)


@pytest.mark.parametrize("notes", [b"", b"catalog 7", b"\0" * 100, b"catalog 1\nseq x\n"])
def test_notes_that_are_damaged_are_begun_anew(tmp_path: Path, notes: bytes) -> None:
    fill(tmp_path)
    (tmp_path / "unswept").write_bytes(notes)
    with closing(LocalStore(tmp_path)) as store:
        assert list(store.unnamed()) == []
        store.delete("default", "i1")
    with (tmp_path / "unswept").open("ab") as file:
        file.write(digest("i2").encode()[:20])  # cut short by a crash
    with closing(LocalStore(tmp_path)) as store:
        assert list(store.unnamed()) == [[digest("i1")]]


def test_a_catalog_that_cannot_be_named_yet_works_without_notes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Connections) -> None:
        raise StorageFullError("full")

    with monkeypatch.context() as patch:
        patch.setattr(Connections, "write", full)
        LocalStore(tmp_path).close()
    assert not (tmp_path / "unswept").exists()
    fill(tmp_path)
    assert (tmp_path / "unswept").exists()


def test_a_sweep_of_many_notes_ends_early_and_goes_on(tmp_path: Path) -> None:
    names = [digest(str(n)) for n in range(1200)]
    with closing(LocalStore(tmp_path)) as store:
        store.expect(names)
        first = next(store.unnamed())
        store.expect(["f" * 64])
    with closing(LocalStore(tmp_path)) as store:
        assert first == names[:500]
        assert [len(batch) for batch in store.unnamed()] == [500, 500, 200]
        assert list(store.unnamed()) == [["f" * 64]]
        assert list(store.unnamed()) == []


def test_reading_an_empty_folder_beside_its_owner_says_nothing_wrong(tmp_path: Path) -> None:
    with closing(LocalStore(tmp_path)) as owner, closing(LocalStore(tmp_path, read_only=True)):
        put(owner, [new_image("a")], np.asarray(unit_vectors(1)))
        os.utime(tmp_path, (time.time(),) * 2)
        with closing(LocalStore(tmp_path, read_only=True)) as reader:
            assert reader.get("default", "a").filename == "a.png"
