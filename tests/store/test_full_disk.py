"""A disk without room: an error that says so, nothing half-done, and work again afterwards."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lookalike.errors import StorageFullError
from lookalike.files.disk import LocalFiles, has_room
from lookalike.records import NewImage
from lookalike.store.base import count_of
from lookalike.store.local.store import LocalStore
from tests.store.helpers import new_image, put, search, unit_vectors, vector_of

MIB = 2**20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)]
    if not mount or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield folder
    subprocess.run([shutil.which("umount") or "umount", "-l", str(folder)], check=True)


def fill_disk(folder: Path) -> Path:
    """Takes what room there is."""
    ballast = folder / "ballast"
    with ballast.open("ab", buffering=0) as file:
        for size in (MIB, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return ballast


def large(n: int) -> NewImage:
    return new_image(f"i{n}", metadata={"text": "x" * 30_000})


def put_until_full(store: LocalStore) -> int:
    """Puts pictures until there is no room; gives how many were acknowledged."""
    for n in range(10_000):
        try:
            put(store, [large(n)], unit_vectors(1, seed=n))
        except StorageFullError:
            return n
    raise AssertionError("the disk did not fill")


def test_a_full_disk_refuses_and_recovers(small_disk: Path) -> None:
    store = LocalStore(small_disk)
    put(store, [new_image("first")], unit_vectors(1, seed=99))
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 2 * MIB)
    kept = put_until_full(store)
    assert kept > 5
    for _ in range(3):
        with pytest.raises(StorageFullError, match="make room"):
            put(store, [large(kept)], unit_vectors(1, seed=kept))
    assert count_of(store, "default") == kept + 1
    assert len(search(store, unit_vectors(1), k=10_000)[0]) == kept + 1
    ballast.unlink()
    put(store, [large(kept)], unit_vectors(1, seed=kept))
    found = search(store, unit_vectors(1, seed=kept), k=10_000)[0]
    assert (found[0].record.id, len(found)) == (f"i{kept}", kept + 2)
    store.close()
    store = LocalStore(small_disk)
    assert len(search(store, unit_vectors(1), k=10_000)[0]) == kept + 2
    assert np.array_equal(vector_of(store, "default", f"i{kept}"), unit_vectors(1, seed=kept)[0])
    store.close()


def test_a_full_disk_can_be_read_closed_and_opened(small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(b"x" * 65_536)  # as much as opening again needs
    store = LocalStore(small_disk)
    kept = put_until_full(store)
    fill_disk(small_disk)
    assert len(search(store, unit_vectors(1), k=10_000)[0]) == kept
    assert len(store.scroll("default", limit=1000).records) == min(kept, 1000)
    store.close()
    (small_disk / "ballast").unlink()
    store = LocalStore(small_disk)
    assert len(search(store, unit_vectors(1), k=10_000)[0]) == kept
    store.close()


def test_a_full_disk_can_be_opened_and_emptied(small_disk: Path) -> None:
    mount = shutil.which("mount") or "mount"
    subprocess.run([mount, "-o", "remount,size=36m", str(small_disk)], check=True)
    store = LocalStore(small_disk / "data")
    kept = put_until_full(store)
    ballast = fill_disk(small_disk)
    for n in range(kept // 2):
        store.delete("default", f"i{n}")
    with pytest.raises(StorageFullError, match="make room"):
        put(store, [large(kept)], unit_vectors(1, seed=kept))
    assert len(search(store, unit_vectors(1), k=10_000)[0]) == kept - kept // 2
    store.close()
    store = LocalStore(small_disk / "data")
    assert len(search(store, unit_vectors(1), k=10_000)[0]) == kept - kept // 2
    for n in range(kept // 2, kept - 1):
        store.delete("default", f"i{n}")
    assert store.drop("default", wait=True) == 1
    ballast.unlink()
    put(store, [large(0)], unit_vectors(1))
    assert (small_disk / "data" / "reserve").stat().st_size == 8 * MIB
    store.close()


def test_a_full_disk_is_no_obstacle_to_opening(small_disk: Path) -> None:
    store = LocalStore(small_disk / "data")
    put(store, [new_image("first")], unit_vectors(1))
    store.close()  # which removes the write-ahead log
    fill_disk(small_disk)
    store = LocalStore(small_disk / "data")
    assert len(search(store, unit_vectors(1), k=1)[0]) == 1
    store.delete("default", "first")
    store.close()


def test_a_folder_on_a_full_disk_says_so(small_disk: Path) -> None:
    assert has_room(small_disk)
    ballast = fill_disk(small_disk)
    assert not has_room(small_disk)
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]
    with pytest.raises(StorageFullError):
        LocalStore(small_disk / "data")
    ballast.unlink()
    LocalStore(small_disk / "data").close()


def test_an_original_without_room_leaves_nothing(small_disk: Path) -> None:
    files = LocalFiles(small_disk)
    data = b"x" * 8 * MIB
    sha256 = hashlib.sha256(data).hexdigest()
    with pytest.raises(StorageFullError, match="disk is full"):
        files.put(io.BytesIO(data), sha256, "image/png")
    with pytest.raises(StorageFullError):
        files.put_thumbnail(sha256, data)
    assert [path.name for path in small_disk.rglob("*") if path.is_file()] == ["reserve"]
    files.put(io.BytesIO(b"small"), hashlib.sha256(b"small").hexdigest(), "image/png")


def test_deleting_pictures_makes_room_on_a_full_disk(small_disk: Path) -> None:
    files, store, digests = LocalFiles(small_disk), LocalStore(small_disk), []
    for n in range(20):
        data = bytes([n]) * (MIB // 8)
        digests.append(hashlib.sha256(data).hexdigest())
        store.expect(digests[-1:])
        files.put(io.BytesIO(data), digests[-1], "image/png")
        image = replace(new_image(f"i{n}"), sha256=digests[-1])
        put(store, [image], unit_vectors(1, seed=n))
    for n in range(10):
        store.delete("default", f"i{n}")
    fill_disk(small_disk)
    for batch in store.unnamed():
        files.set_aside(batch, older_than_s=-1)
    assert files.tidy(store.references, days=7) == 10
    assert shutil.disk_usage(small_disk).free >= MIB
    assert len([d for d in digests if files.path(d, "image/png")]) == 10
    for batch in store.unnamed():  # the notes stayed, for want of room
        assert not files.set_aside(batch, older_than_s=-1)
    assert list(store.unnamed()) == []
    store.close()
