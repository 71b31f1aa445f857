"""A data folder that another process owns can be read."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from lookalike.errors import DataFolderError, StorageError
from lookalike.store.base import scan, spec_of
from lookalike.store.filters import Filter
from lookalike.store.local.store import LocalStore
from tests.store.helpers import SPEC, fill, ids, new_image, put, search, unit_vectors
from tests.waiting import PATIENCE_S

READER = """
import sys
from contextlib import closing
from pathlib import Path
from lookalike.store.base import scan, spec_of
from lookalike.store.local.store import LocalStore
with closing(LocalStore(Path(sys.argv[1]), read_only=True)) as store:
    blocks = list(scan(store, "default"))
    print([record.id for block in blocks for record in block.records])
    vectors = blocks[0].vectors
    found = store.search("default", vectors[:1], k=2, spec=spec_of(store, "default"))
    print([match.record.id for match in found[0]])
"""


def read_elsewhere(folder: Path) -> list[str]:
    command = [sys.executable, "-c", READER, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_another_process_reads_beside_the_owner(tmp_path: Path) -> None:
    with closing(LocalStore(tmp_path)) as owner:
        fill(owner, 3)
        first = [record.id for record in owner.scroll("default").records]
        assert read_elsewhere(tmp_path)[0] == str(first)
        put(owner, [new_image("later")], unit_vectors(1, seed=9))
        ids, found = read_elsewhere(tmp_path)
        assert ids == str([*first, "later"])
        nearest = search(owner, unit_vectors(3)[:1], k=2)
        assert found == str([match.record.id for match in nearest[0]])


def test_a_reader_changes_nothing(tmp_path: Path) -> None:
    with closing(LocalStore(tmp_path)) as owner:
        fill(owner, 200)
    saved = sorted(path.relative_to(tmp_path) for path in (tmp_path / "index").rglob("*"))
    assert saved, "the owner saved its index"
    strange = tmp_path / "index" / "77"
    strange.mkdir()
    with closing(LocalStore(tmp_path, read_only=True)) as reader:
        reader.load()
        with pytest.raises(StorageError, match="reading only"):
            put(reader, [new_image("no")], unit_vectors(1))
        with pytest.raises(StorageError, match="reading only"):
            reader.delete("default", "i0")
        assert search(reader, unit_vectors(1), k=1)[0][0].score == pytest.approx(1.0)
    assert strange.exists(), "only the owner tidies up"
    strange.rmdir()
    assert sorted(path.relative_to(tmp_path) for path in (tmp_path / "index").rglob("*")) == saved


def test_a_reader_keeps_a_broken_saved_index(tmp_path: Path) -> None:
    with closing(LocalStore(tmp_path)) as owner:
        fill(owner, 200)
    broken = next((tmp_path / "index").rglob("vectors"))
    broken.write_bytes(b"torn")
    with closing(LocalStore(tmp_path, read_only=True)) as reader:
        assert search(reader, unit_vectors(1), k=1)[0][0].score == pytest.approx(1.0)
    assert broken.exists(), "the owner may be writing it just now"


def test_a_reader_wants_a_catalog_that_is_there_and_up_to_date(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be used"):
        LocalStore(tmp_path, read_only=True)
    with closing(LocalStore(tmp_path)):
        pass
    import sqlite3

    with closing(sqlite3.connect(tmp_path / "catalog.db")) as catalog:
        catalog.execute("PRAGMA user_version = 0")
        catalog.commit()
    with pytest.raises(DataFolderError, match="older version"):
        LocalStore(tmp_path, read_only=True)


def test_what_is_read_is_what_was_stored(tmp_path: Path) -> None:
    vectors = unit_vectors(5)
    with closing(LocalStore(tmp_path)) as owner:
        fill(owner, 5)
    with closing(LocalStore(tmp_path, read_only=True)) as reader:
        blocks = list(scan(reader, "default"))
    assert np.array_equal(np.concatenate([block.vectors for block in blocks]), vectors)
    assert reader_spec(tmp_path) == SPEC


def reader_spec(folder: Path) -> object:
    with closing(LocalStore(folder, read_only=True)) as reader:
        return spec_of(reader, "default")


def test_a_reader_searches_on_beside_changes(tmp_path: Path) -> None:
    with closing(LocalStore(tmp_path)) as owner:
        vectors = fill(owner, 50)
        with closing(LocalStore(tmp_path, read_only=True)) as reader:
            assert ids(search(reader, vectors[7:8], k=1)[0]) == ["i7"]
            owner.delete("default", "i7")
            assert search(reader, vectors[7:8], k=3) == search(owner, vectors[7:8], k=3)
            put(owner, [new_image("new", metadata={"n": 3})], vectors[7:8])
            where = Filter.parse({"n": 3})
            assert ids(search(reader, vectors[7:8], k=3, where=where)[0]) == ["new", "i3"]
            owner.update_metadata("default", "new", {"n": 4})
            assert ids(search(reader, vectors[7:8], k=3, where=where)[0]) == ["i3"]


def test_a_reader_searches_on_while_pictures_come_and_go(tmp_path: Path) -> None:
    vectors = unit_vectors(400)
    stop = threading.Event()
    with closing(LocalStore(tmp_path)) as owner:
        put(owner, [new_image(f"i{n}", metadata={"n": 0}) for n in range(200)], vectors[:200])

        def change() -> None:
            for n in itertools.cycle(range(200)):
                if stop.is_set():
                    return
                owner.delete("default", f"i{n}")
                put(owner, [new_image(f"i{n}", metadata={"n": 0})], vectors[200 + n : 201 + n])

        with closing(LocalStore(tmp_path, read_only=True)) as reader, ThreadPoolExecutor(1) as pool:
            changing = pool.submit(change)
            try:
                for n in range(60):
                    where = Filter.parse({"n": 0}) if n % 2 else None
                    found = search(reader, vectors[n : n + 1], k=5, where=where)
                    assert len(found[0]) == 5
            finally:
                stop.set()
            changing.result(PATIENCE_S)
