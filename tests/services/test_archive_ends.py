"""The ends of tar files: where packed streams say whether they are whole, and empty archives."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lookalike.errors import ArchiveError, NotAnArchiveError
from lookalike.media.archives import Archive, ArchiveLimits
from lookalike.services.jobs import CanceledError
from tests.services.archive_maker import KINDS, write_archive

LIMITS = ArchiveLimits(file_bytes=5_000)
PACK: dict[str, Callable[[bytes], bytes]] = {
    "tar.gz": gzip.compress,
    "tar.bz2": bz2.compress,
    "tar.xz": lzma.compress,
}
PACKED = tuple(PACK)
FILES = [(f"{n}.jpg", random.Random(n).randbytes(200)) for n in range(3)]


def count(
    path: Path, step: Callable[[], None] = lambda: None, *, limits: ArchiveLimits = LIMITS
) -> int:
    with Archive(path, limits, folder=path.parent) as archive:
        return archive.count(step)


def members(path: Path) -> list[tuple[str, bytes]]:
    found = []
    with Archive(path, LIMITS, folder=path.parent) as archive:
        for member in archive.members():
            assert member.source.file is not None, member.source.error
            with member.source.file as file:
                found.append((member.path, file.read()))
    return found


def plain_tar(folder: Path) -> bytes:
    return write_archive(folder / "plain.tar", FILES).read_bytes()


@pytest.mark.parametrize("kind", PACKED)
def test_one_flipped_bit_fails_or_changes_nothing(tmp_path: Path, kind: str) -> None:
    whole = write_archive(tmp_path / f"whole.{kind}", FILES).read_bytes()
    path, missed, passed = tmp_path / f"flipped.{kind}", [], 0
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        path.write_bytes(bytes(data))
        try:
            assert count(path) == len(FILES)
            passed += 1
            if members(path) != FILES:
                missed.append(place)
        except ArchiveError:
            continue
    assert missed == []
    assert passed < 30  # in the header of gzip: its time, its file's name


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("lost", [1, 5, 9])
def test_a_packed_stream_without_its_end_is_truncated(tmp_path: Path, kind: str, lost: int) -> None:
    whole = write_archive(tmp_path / f"whole.{kind}", FILES).read_bytes()
    path = tmp_path / f"cut.{kind}"
    path.write_bytes(whole[:-lost])
    for read in (count, members):
        with pytest.raises(ArchiveError, match="broken or truncated"):
            read(path)


@pytest.mark.parametrize("kind", ["tar", *PACKED])
def test_what_may_follow_the_end(tmp_path: Path, kind: str) -> None:
    pack = PACK.get(kind, bytes)
    short = plain_tar(tmp_path)[: len(FILES) * 1024]
    path = tmp_path / f"some.{kind}"
    for padding in (bytes(512), bytes(1024), bytes(10_240 - len(short)), bytes(100_000)):
        path.write_bytes(pack(short + padding))
        assert count(path) == len(FILES)
        assert members(path) == FILES
    for rest in (b"no tar", plain_tar(tmp_path)):  # tar itself looks no further than its end
        path.write_bytes(pack(short + bytes(1024) + rest))
        assert members(path) == FILES
    for parts in ([short, bytes(1024)], [short + bytes(1024), bytes(9_000)]):
        path.write_bytes(b"".join(map(pack, parts)))
        assert members(path) == FILES


@pytest.mark.parametrize(
    ("kind", "behind", "taken"),
    [
        ("tar", b"garbage", True),
        ("tar.gz", bytes(700), True),
        ("tar.gz", b"garbage", False),
        ("tar.bz2", b"garbage", True),
        ("tar.xz", bytes(8), True),
        ("tar.xz", b"garbage", False),
    ],
)
def test_what_follows_the_packed_stream_is_taken_as_by_pythons_readers(
    tmp_path: Path, kind: str, behind: bytes, taken: bool
) -> None:
    path = write_archive(tmp_path / f"some.{kind}", FILES)
    path.write_bytes(path.read_bytes() + behind)
    if taken:
        assert count(path) == len(FILES)
        assert members(path) == FILES
        return
    with pytest.raises(ArchiveError):
        count(path)


@pytest.mark.parametrize("kind", PACKED)
def test_the_way_to_the_end_is_bounded_takes_no_memory_and_can_be_ended(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / f"long.{kind}"
    path.write_bytes(PACK[kind](plain_tar(tmp_path) + bytes(40_000_000)))
    steps: list[int] = []
    tracemalloc.start()
    assert count(path, lambda: steps.append(1)) == len(FILES)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 15_000_000  # xz itself takes 8 million
    assert len(steps) > 100

    left: Iterator[int] = iter(range(50))

    def step() -> None:
        if next(left, None) is None:
            raise CanceledError

    with pytest.raises(CanceledError):
        count(path, step)
    with pytest.raises(ArchiveError, match="far more"):
        count(path, limits=replace(LIMITS, spare_bytes=1_000_000, ratio=1))


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_archive_has_no_pictures(tmp_path: Path, kind: str) -> None:
    path = write_archive(tmp_path / f"empty.{kind}", [])
    assert count(path) == 0
    assert members(path) == []


@pytest.mark.parametrize("size", [512, 1024, 10_240, 512_000])
def test_an_empty_tar_file_is_nothing_but_zero_blocks(tmp_path: Path, size: int) -> None:
    path = tmp_path / "some.tar"
    for pack in (bytes, gzip.compress):
        path.write_bytes(pack(bytes(size)))
        assert count(path) == 0
        for other in (bytes(size + 1), bytes(size) + b"x" * 512, bytes(size)[1:]):
            path.write_bytes(pack(other))
            with pytest.raises(NotAnArchiveError):
                count(path)


def test_many_zeros_are_no_archive_and_are_not_read_to_their_end(tmp_path: Path) -> None:
    path = tmp_path / "zeros.tar"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(NotAnArchiveError):
        count(path)


def test_a_damaged_empty_archive_is_broken(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "empty.tar.gz", [])
    data = bytearray(path.read_bytes())
    data[-6] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ArchiveError, match="broken"):
        count(path)


def test_a_zip_file_may_stand_behind_zeros(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("a.jpg", b"1")
    path = tmp_path / "late.zip"
    path.write_bytes(bytes(2 * tarfile.BLOCKSIZE) + inner.getvalue())
    assert members(path) == [("a.jpg", b"1")]
