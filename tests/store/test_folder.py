"""Who owns a data folder, and what is refused in one."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from lookalike.errors import (
    ConfigurationError,
    DataFolderError,
    DataFolderInUseError,
    StorageError,
    StorageFullError,
)
from lookalike.store import sqlite
from lookalike.store.base import count_of
from lookalike.store.filters import Filter
from lookalike.store.local import catalog
from lookalike.store.local.index.policy import IndexPolicy
from lookalike.store.local.store import LocalStore
from lookalike.store.sqlite import Connections
from tests.store.helpers import fill, search, unit_vectors, vector_of
from tests.waiting import PATIENCE_S, wait_for

OPENER = """
import sys
from contextlib import closing
from pathlib import Path
from lookalike.errors import DataFolderInUseError
from lookalike.store.local.store import LocalStore
try:
    LocalStore(Path(sys.argv[1])).close()
except DataFolderInUseError as exc:
    print(exc)
    sys.exit(3)
"""


def open_elsewhere(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", OPENER, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    refused = open_elsewhere(tmp_path)
    assert refused.returncode == 3, refused.stderr
    assert f"process {os.getpid()} on " in refused.stdout
    assert "--server URL" in refused.stdout
    store.close()
    assert (tmp_path / "lock").exists(), "removing it would let two processes in"
    assert open_elsewhere(tmp_path).returncode == 0


def test_a_second_store_in_this_process_is_refused(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    with pytest.raises(DataFolderInUseError):
        LocalStore(tmp_path)
    (tmp_path / "lock.owner").write_text("scrambled")
    with pytest.raises(DataFolderInUseError, match="another process"):
        LocalStore(tmp_path)
    store.close()
    LocalStore(tmp_path).close()


def test_a_newer_catalog_is_refused(tmp_path: Path) -> None:
    LocalStore(tmp_path).close()
    with sqlite3.connect(tmp_path / "catalog.db") as connection:
        connection.execute("PRAGMA user_version = 999")
    connection.close()
    for _ in range(2):
        with pytest.raises(DataFolderError, match=r"newer version.*999"):
            LocalStore(tmp_path)


@pytest.mark.parametrize(
    "statement",
    [
        "PRAGMA user_version = 0",
        "PRAGMA application_id = 0",
    ],
)
def test_an_older_or_foreign_catalog_is_refused(tmp_path: Path, statement: str) -> None:
    LocalStore(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / "catalog.db")) as connection:
        connection.execute(statement)
    for read_only in (False, True):
        with pytest.raises(DataFolderError, match=r"older version.*index the pictures again"):
            LocalStore(tmp_path, read_only=read_only)


def test_a_file_that_is_no_catalog_is_refused(tmp_path: Path) -> None:
    (tmp_path / "catalog.db").write_bytes(b"no database at all" * 1000)
    with pytest.raises(DataFolderError, match="damaged"):
        LocalStore(tmp_path)


def test_a_damaged_catalog_says_so(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    fill(store, 2000)
    store.close()
    path = tmp_path / "catalog.db"
    data = bytearray(path.read_bytes())
    data[4096 * 3 :] = b"\xff" * len(data[4096 * 3 :])
    path.write_bytes(data)
    with pytest.raises(DataFolderError, match="damaged"), closing(LocalStore(tmp_path)) as broken:
        broken.scroll("default", limit=5000)


def test_a_damaged_vector_says_so(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    fill(store, 3)
    store.close()
    with sqlite3.connect(tmp_path / "catalog.db") as connection:
        connection.execute("UPDATE vectors SET vector = x'00' WHERE seq = 2")
    connection.close()
    store = LocalStore(tmp_path)
    with pytest.raises(DataFolderError, match="wrong length"):
        vector_of(store, "default", "i1")
    store.close()


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(StorageError, match="Cannot use the data folder"):
        LocalStore(tmp_path / "data")


def test_other_index_types_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="Use Flat"):
        LocalStore(tmp_path, policy=IndexPolicy(index_type="Nonsense"))
    LocalStore(tmp_path).close()


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    fill(store, 1)
    store.close()
    for call in (
        lambda: count_of(store, "default"),
        lambda: search(store, unit_vectors(1)),
        lambda: store.delete("default", "i0"),
    ):
        with pytest.raises(StorageError, match="closed"):
            call()


def test_the_catalog_is_set_up_as_designed(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    fill(store, 1)
    with store._catalog.connections.write() as connection:
        settings = {
            name: connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "auto_vacuum", "page_size", "foreign_keys")
        }
    assert settings == {
        "journal_mode": "wal",
        "synchronous": 2,
        "auto_vacuum": 2,
        "page_size": 4096,
        "foreign_keys": 1,
    }
    with (
        pytest.raises(StorageError, match="readonly"),
        store._catalog.connections.read() as connection,
    ):
        connection.execute("DELETE FROM images")
    store.close()


def test_a_dropped_collection_gives_its_room_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "PURGED_TOGETHER", 100)
    store = LocalStore(tmp_path)
    fill(store, 1050)
    fill(store, 1, collection="other")
    assert store.drop("default", wait=True) == 1050
    store.close()
    without = LocalStore(tmp_path / "without")
    fill(without, 1, collection="other")
    without.close()
    folders = (tmp_path, tmp_path / "without")
    size, least = ((each / "catalog.db").stat().st_size for each in folders)
    assert size < 1.2 * least
    assert [folder.name for folder in (tmp_path / "index").iterdir()] == ["2"]


class Held:
    """Lets the background remove rows step by step."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.begun = threading.Event()
        self.free = threading.Event()
        give_room_back = Connections.give_room_back

        def wait(connections: Connections) -> None:
            self.begun.set()
            assert self.free.wait(PATIENCE_S)
            give_room_back(connections)

        patch.setattr(Connections, "give_room_back", wait)
        patch.setattr(catalog, "PURGED_TOGETHER", 3)


def left(store: LocalStore) -> dict[str, int]:
    """Rows of the tables that a dropped collection is removed from."""
    tables = ("collections", "spaces", "images", "vectors")
    with store._catalog.connections.read() as connection:
        return {t: connection.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in tables}


def test_a_collection_can_be_made_anew_while_its_rows_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    with closing(LocalStore(tmp_path, filter_fields=["n"])) as store:
        fill(store, 10)
        assert store.drop("default") == 10
        assert not held.free.is_set(), "the answer does not wait for the rows to go"
        assert held.begun.wait(PATIENCE_S)
        assert store.collections() == []
        fill(store, 2)
        assert left(store)["images"] == 10 - 3 + 2
        assert count_of(store, "default") == 2
        assert len(search(store, unit_vectors(1), k=100)[0]) == 2
        everything = Filter.parse({"n": {"gte": 0}})
        assert [one.id for one in store.scroll("default", where=everything).records] == ["i0", "i1"]
        held.free.set()
        wait_for(lambda: set(left(store).values()) == {1, 2})
        assert count_of(store, "default") == 2


def test_closing_waits_for_no_more_rows_to_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        held = Held(patch)
        store = LocalStore(tmp_path)
        fill(store, 10)
        store.drop("default")
        assert held.begun.wait(PATIENCE_S)
        closing_ = threading.Thread(target=store.close)
        closing_.start()
        wait_for(store._purger.closing.is_set)
        held.free.set()
        closing_.join(PATIENCE_S)
        assert not closing_.is_alive()
    with closing(LocalStore(tmp_path, read_only=True)) as reader:
        assert left(reader)["images"] == 7
    with closing(LocalStore(tmp_path)) as store:
        wait_for(lambda: not any(left(store).values()))


def test_a_start_does_not_wait_for_what_was_dropped_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(LocalStore(tmp_path)) as store, monkeypatch.context() as patch:
        patch.setattr(catalog.Purger, "wake", lambda _: None)  # as if killed right behind the drop
        fill(store, 10)
        store.drop("default")
    held = Held(monkeypatch)
    with closing(LocalStore(tmp_path)) as store:
        assert held.begun.wait(PATIENCE_S)
        assert store.collections() == []
        assert left(store)["images"] == 7
        held.free.set()
        wait_for(lambda: not any(left(store).values()))


def test_rows_and_seqs_are_never_used_again(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    fill(store, 3)
    store.drop("default")
    store.close()
    store = LocalStore(tmp_path)
    fill(store, 3)
    assert store._catalog.last_seq() == 6
    assert len(search(store, unit_vectors(1), where=Filter.parse({"n": {"gte": 1}}))[0]) == 2
    store.close()


@pytest.mark.parametrize(("room", "expected"), [(True, StorageError), (False, StorageFullError)])
def test_an_input_output_error_tells_whether_room_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: bool, expected: type[StorageError]
) -> None:
    """SQLite names a used-up quota so, and a full disk where it maps memory."""
    monkeypatch.setattr(sqlite, "has_room", lambda _: room)
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_WRITE
    with closing(LocalStore(tmp_path)) as store:
        connections = store._catalog.connections
        with pytest.raises(StorageError) as caught, connections.write():
            raise error
        assert type(caught.value) is expected
        assert fill(store, 1).shape == (1, 8)


def test_a_drop_on_a_failing_disk_is_still_a_drop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> None:
        raise StorageError("the disk is failing")

    monkeypatch.setattr(catalog, "PURGE_RETRY_S", 0.01)
    monkeypatch.setattr(catalog, "PURGED_TOGETHER", 3)
    with closing(LocalStore(tmp_path, filter_fields=["n"])) as store:
        fill(store, 10)
        with monkeypatch.context() as patch:
            patch.setattr(Connections, "give_room_back", fail)
            assert store.drop("default", wait=True) == 10
            wait_for(lambda: "the disk is failing" in caplog.text)
            wait_for(lambda: not any(left(store).values()))
        assert store.collections() == []
        wait_for(lambda: counted(store, "PRAGMA freelist_count") == 0)


def counted(store: LocalStore, sql: str) -> int:
    with store._catalog.connections.read() as connection:
        count: int = connection.execute(sql).fetchone()[0]
    return count
