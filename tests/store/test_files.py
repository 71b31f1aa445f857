"""Originals and thumbnails on the disk."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest

from lookalike.errors import StorageError, StorageFullError, UnreadableImageError
from lookalike.files.disk import LocalFiles

DATA = b"picture" * 1000
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def files(tmp_path: Path) -> LocalFiles:
    return LocalFiles(tmp_path / "data")


def everything(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def make_old(folder: Path) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (1, time.time() - 7200))


def nothing(_: Iterable[str]) -> set[str]:
    return set()


def test_an_original_is_kept_under_its_digest(files: LocalFiles, tmp_path: Path) -> None:
    assert files.path(DIGEST, "image/jpeg") is None
    source = io.BytesIO(DATA)
    source.read(10)
    files.put(source, DIGEST, "image/jpeg")
    path = files.path(DIGEST, "image/jpeg")
    assert path == tmp_path / "data" / "images" / DIGEST[:2] / DIGEST[2:4] / f"{DIGEST}.jpg"
    assert path.read_bytes() == DATA
    files.put(io.BytesIO(DATA), DIGEST, "image/jpeg")
    assert len(everything(tmp_path)) == 1
    files.put(io.BytesIO(DATA), DIGEST, "image/x-unknown")
    assert everything(tmp_path)[0].endswith(".bin")


def test_other_bytes_than_promised_are_refused(files: LocalFiles, tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match="changed while it was read"):
        files.put(io.BytesIO(b"other"), DIGEST, "image/png")
    assert everything(tmp_path) == []


def test_a_source_that_cannot_be_read_is_no_error_of_the_disk(
    files: LocalFiles, tmp_path: Path
) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(UnreadableImageError, match="Input/output error; index it again"):
        files.put(Broken(DATA), DIGEST, "image/png")
    assert everything(tmp_path) == []


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 64 + "\n"])
def test_only_digests_name_files(files: LocalFiles, digest: str) -> None:
    for call in (
        lambda: files.put(io.BytesIO(DATA), digest, "image/png"),
        lambda: files.path(digest, "image/png"),
        lambda: files.put_thumbnail(digest, DATA),
        lambda: files.open_thumbnail(digest),
    ):
        with pytest.raises(ValueError, match="no SHA-256"):
            call()


def test_thumbnails(files: LocalFiles, tmp_path: Path) -> None:
    assert files.open_thumbnail(DIGEST) is None
    files.put_thumbnail(DIGEST, b"small")
    files.put_thumbnail(DIGEST, b"smaller")
    file = files.open_thumbnail(DIGEST)
    assert file is not None
    with file:
        assert file.read() == b"smaller"
    assert len(everything(tmp_path)) == 1


def test_a_put_reaches_the_disk_in_order(
    files: LocalFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file before its name, the name before the answer; new folders as well."""
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def traced_fsync(handle: int) -> None:
        name = Path(f"/proc/self/fd/{handle}").readlink().name
        steps.append("fsync upload" if name.endswith(".part") else f"fsync {name}")
        fsync(handle)

    def traced_replace(path: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(Path, "replace", traced_replace)
    files.put(io.BytesIO(DATA), DIGEST, "image/png")
    one, two = DIGEST[:2], DIGEST[2:4]
    assert steps == ["fsync upload", "fsync images", f"fsync {one}", "rename", f"fsync {two}"]


@pytest.mark.parametrize("failing", ["fsync", "replace", "open"])
@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.ENOSPC, StorageFullError), (errno.EDQUOT, StorageFullError), (errno.EIO, StorageError)],
)
def test_a_disk_that_fails_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failing: str,
    number: int,
    expected: type[StorageError],
) -> None:
    files = LocalFiles(tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os if failing == "fsync" else Path, failing, fail)
        with pytest.raises(StorageError) as caught:
            files.put(io.BytesIO(DATA), DIGEST, "image/png")
    assert type(caught.value) is expected
    assert everything(tmp_path) == []
    files.put(io.BytesIO(DATA), DIGEST, "image/png")
    assert files.path(DIGEST, "image/png") is not None


def test_a_sweep_removes_what_no_row_names(files: LocalFiles, tmp_path: Path) -> None:
    kept = hashlib.sha256(b"kept").hexdigest()
    files.put(io.BytesIO(DATA), DIGEST, "image/png")
    files.put_thumbnail(DIGEST, b"small")
    files.put(io.BytesIO(b"kept"), kept, "image/png")
    files.put_thumbnail(kept, b"small")
    (tmp_path / "data" / "tmp" / "left.part").write_bytes(b"left behind")
    assert files.sweep(nothing) == 0, "young files stay"
    make_old(tmp_path)
    assert files.sweep(lambda digests: set(digests) & {kept}) == 3
    assert {Path(name).stem for name in everything(tmp_path)} == {kept}
    assert len(everything(tmp_path)) == 2


def test_a_put_beside_a_sweep_keeps_its_file(files: LocalFiles, tmp_path: Path) -> None:
    files.put(io.BytesIO(DATA), DIGEST, "image/png")
    make_old(tmp_path)

    def put_meanwhile(digests: Iterable[str]) -> set[str]:
        assert set(digests) == {DIGEST}
        files.put(io.BytesIO(DATA), DIGEST, "image/png")
        return set()

    assert files.sweep(put_meanwhile) == 0
    assert files.path(DIGEST, "image/png") is not None


def names_nothing(asked: list[int], digests: Iterable[str]) -> set[str]:
    """Notes how many digests a sweep asks about together; no row names any."""
    asked.append(len(set(digests)))
    return set()


def test_a_sweep_asks_in_batches(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path / "data", swept_together=2)
    put_five(files)
    make_old(tmp_path)
    asked: list[int] = []
    assert files.sweep(partial(names_nothing, asked)) == 5
    assert asked == [2, 2, 1]


def test_a_sweep_that_is_stopped_leaves_the_rest(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path / "data", swept_together=2)
    put_five(files)
    make_old(tmp_path)
    asked: list[int] = []
    ask = partial(names_nothing, asked)
    assert files.sweep(ask, stop=lambda: bool(asked)) == 2
    assert asked == [2]
    assert files.sweep(ask, stop=lambda: True) == 0
    assert asked == [2]
    assert files.sweep(ask) == 3


def test_a_sweep_can_be_stopped_where_it_finds_nothing(files: LocalFiles, tmp_path: Path) -> None:
    """Young files and empty folders make a long walk, too."""
    put_five(files)
    times = 0

    def stop() -> bool:
        nonlocal times
        times += 1
        return False

    assert files.sweep(nothing, stop=stop) == 0
    assert times >= 10
    for path in (tmp_path / "data" / "images").glob("*/*/*"):
        path.unlink()
    times = 0
    assert files.sweep(nothing, stop=stop) == 0
    assert times >= 5


def put_five(files: LocalFiles) -> None:
    for n in range(5):
        data = str(n).encode()
        files.put(io.BytesIO(data), hashlib.sha256(data).hexdigest(), "image/png")


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(StorageError, match="Cannot use the folder"):
        LocalFiles(tmp_path / "data")
