"""The saved index is a cache: used where it is whole and fits, made again where not."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lookalike.files import artifacts
from lookalike.store.local.index import indexes
from lookalike.store.local.index.indexes import LiveIndex
from lookalike.store.local.index.policy import IndexPolicy, Limits
from lookalike.store.local.index.segments import ExactSegment
from lookalike.store.local.store import LocalStore
from tests.store.helpers import answers, fill, new_image, put, search, unit_vectors

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
