"""The saved index is a cache: used where it is whole and fits, made again where not."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lookalike.files import artifacts
from lookalike.store.local.index import building, indexes
from lookalike.store.local.index.indexes import LiveIndex
from lookalike.store.local.index.policy import IndexPolicy, Limits
from lookalike.store.local.index.segments import ExactSegment
from lookalike.store.local.store import LocalStore
from tests.store.helpers import answers, fill, new_image, put, search, unit_vectors
from tests.waiting import wait_for

QUERIES = unit_vectors(3, seed=42)


def saved(folder: Path) -> Path:
    """The one manifest of the one collection."""
    manifest = folder / "index" / "1" / "manifest.json"
    assert manifest.exists()
    return manifest


def content(manifest: Path) -> Path:
    """The folder of the files that a manifest names."""
    return manifest.parent / str(json.loads(manifest.read_text())["content"])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + bytes(32))


def edit(key: str, value: object) -> Callable[[Path], None]:
    def change(manifest: Path) -> None:
        held = json.loads(manifest.read_text())
        (held if key in held else held["facts"])[key] = value
        manifest.write_text(json.dumps(held))

    return change


def on(name: str, change: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda manifest: change(content(manifest) / name)


BREAKS: dict[str, Callable[[Path], object]] = {
    "vectors flipped": on("vectors", flip),
    "vectors truncated": on("vectors", truncate),
    "vectors too long": on("vectors", lengthen),
    "vectors missing": on("vectors", Path.unlink),
    "seqs flipped": on("seqs", flip),
    "seqs truncated": on("seqs", truncate),
    "seqs missing": on("seqs", Path.unlink),
    "manifest missing": Path.unlink,
    "manifest truncated": truncate,
    "manifest empty": lambda manifest: manifest.write_text(""),
    "manifest a list": lambda manifest: manifest.write_text("[]"),
    "manifest without checksums": edit("files", {}),
    "other spec": edit("spec", "0" * 16),
    "other vector space": edit("embedding", 2),
    "other dim": edit("dim", 9),
    "other count": edit("count", 3),
    "other format": edit("version", 1),
    "other kind": edit("kind", "head"),
    "other last seq": edit("last_seq", 999),
    "folder gone": lambda manifest: shutil.rmtree(manifest.parent),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_generation_is_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    store = LocalStore(tmp_path)
    fill(store, 50)
    store.delete("default", "i3")
    expected = answers(search(store, QUERIES))
    store.close()
    BREAKS[name](saved(tmp_path))
    store = LocalStore(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert answers(search(store, QUERIES)) == expected
    assert "from 49 stored vectors" in caplog.text
    store.close()
    assert saved(tmp_path).exists()


def test_a_whole_generation_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = LocalStore(tmp_path)
    fill(store, 50)
    expected = answers(search(store, QUERIES))
    store.close()
    before = saved(tmp_path).read_bytes()
    with caplog.at_level(logging.WARNING):
        store = LocalStore(tmp_path)
        store.load()
        assert store.describe()["collections"]["default"]["bytes"] == 50 * 8 * 4
        assert answers(search(store, QUERIES)) == expected
        store.close()
    assert caplog.text == ""
    assert saved(tmp_path).read_bytes() == before, "nothing changed, nothing is saved"


def test_a_generation_is_brought_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = LocalStore(tmp_path)
    fill(store, 50)
    store.close()
    store = LocalStore(tmp_path)
    put(store, [new_image("i0", content="other"), new_image("new")], unit_vectors(2, seed=1))
    store.delete("default", "i49")
    expected = answers(search(store, QUERIES, k=60))
    with monkeypatch.context() as patch:
        patch.setattr(LiveIndex, "close", lambda _: None)
        store.close()
    store = LocalStore(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert answers(search(store, QUERIES, k=60)) == expected
    assert caplog.text == ""
    store.close()


def test_an_index_of_another_catalog_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A catalog restored from a backup gives seqs again that the saved index knows."""
    store = LocalStore(tmp_path / "data")
    fill(store, 20)
    store.close()
    shutil.copy(tmp_path / "data" / "catalog.db", tmp_path / "backup.db")
    store = LocalStore(tmp_path / "data")
    put(store, [new_image(f"a{n}") for n in range(9)], unit_vectors(9, seed=1))
    store.close()
    shutil.copytree(tmp_path / "data" / "index", tmp_path / "index")
    shutil.copy(tmp_path / "backup.db", tmp_path / "data" / "catalog.db")
    store = LocalStore(tmp_path / "data")
    assert "is not of this catalog" not in caplog.text
    assert len(search(store, QUERIES, k=60)[0]) == 20
    assert "is not of this catalog" in caplog.text
    put(store, [new_image(f"b{n}") for n in range(9)], unit_vectors(9, seed=2))
    expected = answers(search(store, QUERIES, k=60))
    store.close()
    shutil.rmtree(tmp_path / "data" / "index")
    shutil.copytree(tmp_path / "index", tmp_path / "data" / "index")
    caplog.clear()
    store = LocalStore(tmp_path / "data")
    assert answers(search(store, QUERIES, k=60)) == expected
    assert "is not of this catalog" in caplog.text
    store.close()


def test_many_changes_save_and_compact(tmp_path: Path) -> None:
    limits = Limits(saved_changes=60, compacted_rows=20)
    store = LocalStore(tmp_path, policy=IndexPolicy(limits=limits))
    fill(store, 50)
    assert not (tmp_path / "index" / "1").exists()
    fill(store, 50, seed=1, on_conflict="replace")
    put(store, [new_image(f"i{n}", content=f"x{n}") for n in range(30)], unit_vectors(30, seed=2))
    assert json.loads(saved(tmp_path).read_text())["facts"]["count"] == 50
    assert store.describe()["collections"]["default"]["tombstones"] == 0
    assert len(search(store, QUERIES, k=60)[0]) == 50
    store.close()


def test_a_save_that_fails_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = LocalStore(tmp_path)
    fill(store, 50)
    store.close()
    before = saved(tmp_path)
    store = LocalStore(tmp_path)
    put(store, [new_image("new")], unit_vectors(1, seed=1))
    expected = answers(search(store, QUERIES, k=60))

    def fail(_: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "sync", fail)
        store.close()
    assert "was not saved" in caplog.text
    assert {path.name for path in before.parent.iterdir()} == {before.name, content(before).name}
    assert {path.name for path in content(before).iterdir()} == {"seqs", "vectors"}
    store = LocalStore(tmp_path)
    assert answers(search(store, QUERIES, k=60)) == expected
    store.close()


@pytest.mark.parametrize(
    ("owner", "name"), [(ExactSegment, "added"), (indexes, "np")], ids=["adding", "preparing"]
)
def test_an_index_that_does_not_follow_is_loaded_anew(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    owner: Any,
    name: str,
) -> None:
    store = LocalStore(tmp_path)
    fill(store, 10)

    def fail(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail if owner is ExactSegment else SimpleNamespace(array=fail))
        assert put(store, [new_image("new")], unit_vectors(1, seed=1))[0].status == "created"
    assert "did not follow" in caplog.text
    assert search(store, unit_vectors(1, seed=1), k=1)[0][0].record.id == "new"
    store.close()


def test_the_loaded_vectors_are_the_stored_ones(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    vectors = fill(store, 300)
    store.close()
    store = LocalStore(tmp_path)
    store.load()
    row = store._catalog.collection("default")
    assert row is not None
    live = store._indexes.get(row)
    assert live is not None
    assert np.array_equal(np.concatenate([v for _, v in live._index.blocks()]), vectors)
    store.close()


CUT = """
import os, sys
from dataclasses import replace
from pathlib import Path
from lookalike.records import Effort
from lookalike.store.local.index import building
from lookalike.store.local.index.policy import IndexPolicy, Limits
from lookalike.store.local.store import LocalStore
from tests.store.helpers import answers, fill, search, unit_vectors
from tests.store.test_generations import content, saved
from tests.waiting import wait_for

folder, kind, name, when = Path(sys.argv[1]), *sys.argv[2:]
building._CHECKED_BYTES = 0
limits = Limits(min_rows=100, calibrated_k=(10,), mapped_bytes=1, scored_rows=0, poll_s=3600)
store = LocalStore(folder, policy=IndexPolicy(index_type=kind, limits=limits))
if not store.collections():
    fill(store, 6000)
store.load()
facts = lambda: store.describe()["collections"]["default"]
wait_for(lambda: facts()["mapped_bytes"] > 0 and facts()["type"] == kind)
queries, exact = unit_vectors(3, seed=42), Effort(exact=True)
expected = answers(search(store, queries, effort=exact))
path = content(saved(folder)) / name
if when == "before a search":
    os.truncate(path, 100)
if when == "amid a search":
    index = store._indexes.get(store._catalog.collection("default"))._index
    os.truncate(path, 100)
    index.search(queries, k=10)
search(store, queries)
assert answers(search(store, queries, effort=exact)) == expected
store.close()
print("closed")
"""


def run_cut(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CUT, str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("kind", "name"), [("Flat", "vectors"), ("HNSW8", "vectors"), ("HNSW8", "candidates")]
)
def test_an_index_file_that_is_cut_under_a_service(tmp_path: Path, kind: str, name: str) -> None:
    ended = run_cut(tmp_path, kind, name, "before a search")
    assert (ended.returncode, ended.stdout) == (0, "closed\n"), ended.stderr
    assert "A file of the index of 'default' was cut while it was in use" in ended.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="other systems cut files in another way")
def test_a_service_that_a_cut_file_killed_starts_right(tmp_path: Path) -> None:
    ended = run_cut(tmp_path, "Flat", "vectors", "amid a search")
    assert (ended.returncode, ended.stdout) == (-signal.SIGBUS, ""), ended.stderr
    path = content(saved(tmp_path)) / "vectors"
    os.truncate(path, 4 * 8 * 6000)  # only its content says that it was cut
    ended = run_cut(tmp_path, "Flat", "vectors", "never")
    assert (ended.returncode, ended.stdout) == (0, "closed\n"), ended.stderr
    assert "The last process ended amid the index of 'default'" in ended.stderr
    assert "Building the index of 'default' from 6000 stored vectors" in ended.stderr
    ended = run_cut(tmp_path, "Flat", "vectors", "never")
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_large_index_file_is_read_in_the_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(building, "_CHECKED_BYTES", 0)
    policy = IndexPolicy(limits=Limits(mapped_bytes=1, scored_rows=0))
    store = LocalStore(tmp_path, policy=policy)
    fill(store, 500)
    wait_for(lambda: store.describe()["collections"]["default"]["mapped_bytes"] > 0)
    expected = answers(search(store, QUERIES, k=500))
    store.close()
    path = content(saved(tmp_path)) / "vectors"
    data = bytearray(path.read_bytes())
    data[4 * 8 * 77 + 3] ^= 2  # a row that is not compared with the catalog at the start
    path.write_bytes(data)
    store = LocalStore(tmp_path, policy=policy)
    store.load()
    wait_for(lambda: "Building the index" in caplog.text and not path.exists())
    assert "The saved index of 'default' cannot be used: the checksum of vectors" in caplog.text
    assert answers(search(store, QUERIES, k=500)) == expected
    store.close()
