"""Keys on the disk: several processes, damage, a disk that is full."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from lookalike.errors import ConflictError, DataFolderError, KeyNotFoundError
from lookalike.records import Access, utc_now
from lookalike.store import access
from lookalike.store.access import AccessKey, AccessStore

CHILD = """
import sys
from contextlib import closing
from pathlib import Path
from tests.store.test_access import AccessStore, key
with closing(AccessStore(Path(sys.argv[1]))) as store:
    for number in range(20):
        store.add(key(f"{sys.argv[2]}-{number}"))
        if number % 2:
            store.remove(f"{sys.argv[2]}-{number}")
"""


def key(name: str) -> AccessKey:
    digest, now = b"d" * 32, utc_now()
    return AccessKey(id=name[::-1], name=name, scope=Access.WRITE, digest=digest, created_at=now)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AccessStore]:
    with closing(AccessStore(tmp_path / "access.db")) as made:
        yield made


def test_the_file_is_made_with_the_first_key(store: AccessStore, tmp_path: Path) -> None:
    assert store.all() == []
    with pytest.raises(KeyNotFoundError):
        store.remove("a1")
    assert list(tmp_path.iterdir()) == []
    first = key("a1")
    store.add(first)
    assert store.all() == [first]
    with closing(AccessStore(tmp_path / "access.db")) as again:
        assert again.all() == [first]
        assert again.remove(first.id) == first
    assert store.all() == []


def test_names_and_ids_are_one_space(store: AccessStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add(key("a1"))
    for taken in ("a1", "1a"):
        with pytest.raises(ConflictError):
            store.add(key(taken))
    monkeypatch.setattr(access, "MOST_KEYS", 2)
    store.add(key("b2"))
    with pytest.raises(ConflictError, match="revoke one"):
        store.add(key("c3"))


def test_processes_that_begin_together_share_one_file(tmp_path: Path) -> None:
    path = tmp_path / "access.db"
    children = [
        subprocess.Popen([sys.executable, "-c", CHILD, str(path), who]) for who in ("a", "b", "c")
    ]
    assert [child.wait() for child in children] == [0, 0, 0]
    with closing(AccessStore(path)) as store:
        names = {one.name for one in store.all()}
    assert names == {f"{who}-{number}" for who in ("a", "b", "c") for number in range(0, 20, 2)}


@pytest.mark.parametrize(
    "harm", ["UPDATE keys SET scope = 'root'", "UPDATE keys SET digest = 'text'"]
)
def test_a_key_that_cannot_be_read_is_named_as_damage(
    store: AccessStore, tmp_path: Path, harm: str
) -> None:
    store.add(key("a1"))
    with closing(sqlite3.connect(tmp_path / "access.db")) as file:
        file.execute(harm)
        file.commit()
    with pytest.raises(DataFolderError, match=r"access\.db is damaged"):
        store.all()


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "access.db").write_bytes(b"no database " * 1000)
    with closing(AccessStore(tmp_path / "access.db")) as store, pytest.raises(DataFolderError):
        store.all()
