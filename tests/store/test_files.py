"""Originals and thumbnails on the disk."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import time
from collections.abc import Iterable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lookalike.errors import StorageError, StorageFullError, UnreadableImageError
from lookalike.files import trash
from lookalike.files.disk import LocalFiles
from lookalike.records import ImageRecord

DATA = b"picture" * 1000
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def files(tmp_path: Path) -> LocalFiles:
    return LocalFiles(tmp_path / "data")


def everything(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "reserve")
    return sorted(str(path.relative_to(folder)) for path in files)


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
    other = b"other"  # makes what is made once
    files.put(io.BytesIO(other), hashlib.sha256(other).hexdigest(), "image/png")
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


def path_of(files: LocalFiles, data: bytes = DATA) -> Path | None:
    return files.path(hashlib.sha256(data).hexdigest(), "image/png")


def test_old_files_are_set_aside_and_found_in_the_trash(files: LocalFiles, tmp_path: Path) -> None:
    data = tmp_path / "data"
    files.put(io.BytesIO(DATA), DIGEST, "image/png")
    files.put_thumbnail(DIGEST, b"small")
    (data / "images" / DIGEST[:2] / DIGEST[2:4] / "notes.txt").write_text("of somebody")
    before = everything(data)
    assert files.set_aside([DIGEST]) == {DIGEST}, "young files stay"
    assert everything(data) == before
    make_old(data)
    assert files.set_aside([DIGEST, "f" * 64]) == set()
    day = f"trash/{datetime.now(UTC):%Y-%m-%d}"
    assert everything(data) == sorted(
        name if name.endswith(".txt") else f"{day}/{name}" for name in before
    )
    record = record_of(DATA)
    assert files.exists(record)
    with closing(files.open(record) or io.BytesIO()) as original:
        assert original.read() == DATA
    with closing(files.open_thumbnail(DIGEST) or io.BytesIO()) as thumbnail:
        assert thumbnail.read() == b"small"


def record_of(data: bytes) -> ImageRecord:
    return ImageRecord(
        collection="default",
        id="a",
        sha256=hashlib.sha256(data).hexdigest(),
        filename="a.png",
        media_type="image/png",
        width=1,
        height=1,
        bytes=len(data),
        created_at="",
        updated_at="",
    )


def test_a_put_beside_a_sweep_keeps_its_file(files: LocalFiles, tmp_path: Path) -> None:
    files.put(io.BytesIO(DATA), DIGEST, "image/png")
    make_old(tmp_path)
    files.put(io.BytesIO(DATA), DIGEST, "image/png")  # the sweep has asked for rows already
    assert files.set_aside([DIGEST]) == {DIGEST}
    assert path_of(files) == tmp_path / "data/images" / DIGEST[:2] / DIGEST[2:4] / f"{DIGEST}.png"


def set_clock(patch: pytest.MonkeyPatch, date: str) -> None:
    patch.setattr(trash, "_today", lambda: date)


def put_in_the_trash(files: LocalFiles, data: bytes = DATA) -> None:
    digest = hashlib.sha256(data).hexdigest()
    files.put(io.BytesIO(data), digest, "image/png")
    assert files.set_aside([digest], older_than_s=-9) == set()


def test_the_trash_is_emptied_after_days(
    files: LocalFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / "data" / "tmp" / f"{'0' * 32}.part"
    left.write_bytes(b"left behind")
    files.put(io.BytesIO(DATA), DIGEST, "image/png")
    assert files.tidy(nothing, days=0) == 0, "young uploads stay"
    make_old(tmp_path)
    (tmp_path / "data" / "tmp" / "somebody's.txt").write_text("not ours")
    set_clock(monkeypatch, "2026-02-25")
    files.set_aside([DIGEST])
    for date in ("2026-02-25", "2026-02-26", "2026-02-27", "2026-02-28", "2026-03-01"):
        set_clock(monkeypatch, date)
        for _ in range(3):
            assert files.tidy(nothing, days=5) == 0
        assert not left.exists()
        assert path_of(files)
    bin_ = tmp_path / "data" / "trash"
    (bin_ / "notes.txt").write_text("of somebody")
    (bin_ / "2026-99-99").write_text("of somebody")
    set_clock(monkeypatch, "2026-03-02")
    assert files.tidy(nothing, days=5) == 2
    assert everything(bin_) == ["2026-99-99", "notes.txt"]
    assert path_of(files) is None
    assert everything(tmp_path / "data" / "tmp") == ["somebody's.txt"]


def test_a_wrong_clock_empties_no_trash(files: LocalFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    put_in_the_trash(files)
    for date in ("2026-02-25", "2099-01-01", "1970-01-01", "2099-01-01", "2026-02-25"):
        set_clock(monkeypatch, date)
        assert files.tidy(nothing, days=7) == 0
        assert path_of(files)


@pytest.mark.parametrize("wrong", ["1970-01-01", "2099-01-01"])
def test_what_was_taken_under_a_wrong_clock_goes_in_time(
    files: LocalFiles, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    set_clock(monkeypatch, wrong)
    put_in_the_trash(files)
    assert files.tidy(nothing, days=7) == 0
    for day in range(1, 7):
        set_clock(monkeypatch, f"2026-02-0{day}")
        assert files.tidy(nothing, days=7) == 0
    set_clock(monkeypatch, wrong)  # once more, after a power cut
    put_in_the_trash(files, b"later")
    for day in range(1, 8):
        assert path_of(files, b"later")
        assert files.tidy(nothing, days=7) == 0
        set_clock(monkeypatch, f"2026-03-0{day}")
    assert files.tidy(nothing, days=7) == 2


def test_a_folder_of_the_trash_whose_age_cannot_be_read_stays(
    files: LocalFiles, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put_in_the_trash(files)
    (day,) = (tmp_path / "data" / "trash").iterdir()
    (day / ".seen").mkdir()
    put_in_the_trash(files, b"other")
    assert files.tidy(nothing, days=1) == 0
    assert f"The age of {day} cannot be noted" in caplog.text
    (day / ".seen").rmdir()
    (day / ".seen").write_bytes(bytes(range(256)) * 9)
    assert files.tidy(nothing, days=1) == 0
    assert path_of(files)


def test_what_a_row_names_again_comes_back_before_the_trash_is_emptied(
    files: LocalFiles, tmp_path: Path
) -> None:
    other = hashlib.sha256(b"other").hexdigest()
    for data in (DATA, b"other"):
        files.put(io.BytesIO(data), hashlib.sha256(data).hexdigest(), "image/png")
    files.put_thumbnail(DIGEST, b"small")
    before = everything(tmp_path / "data" / "images")
    make_old(tmp_path)
    files.set_aside([DIGEST, other])
    files.put(io.BytesIO(b"other"), other, "image/png")  # sent again: the old copy may go
    assert files.tidy(set, days=0) == 1
    assert everything(tmp_path / "data" / "images") == before
    assert len(everything(tmp_path / "data" / "thumbnails")) == 1
    assert everything(tmp_path / "data" / "trash") == []


def test_a_disk_that_is_short_of_room_empties_the_trash_early(
    files: LocalFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(total=2**40, free=2**31)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    put_five(files)
    make_old(tmp_path)
    files.set_aside([path.stem for path in (tmp_path / "data" / "images").rglob("*.png")])
    assert files.tidy(nothing, days=7) == 0
    usage = usage._replace(free=2**29)
    assert files.tidy(nothing, days=7) == 5


def test_emptying_the_trash_can_be_stopped(files: LocalFiles, tmp_path: Path) -> None:
    put_five(files)
    make_old(tmp_path)
    files.set_aside([path.stem for path in (tmp_path / "data" / "images").rglob("*.png")])
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 3

    assert files.tidy(nothing, days=0, stop=stop) == 2
    assert files.tidy(nothing, days=0) == 3


def put_five(files: LocalFiles) -> None:
    for n in range(5):
        data = str(n).encode()
        files.put(io.BytesIO(data), hashlib.sha256(data).hexdigest(), "image/png")


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(StorageError, match="Cannot use the folder"):
        LocalFiles(tmp_path / "data")
