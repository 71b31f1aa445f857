"""Reading archives: good ones as Python's own readers do, hostile ones within bounds."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import struct
import tarfile
import tracemalloc
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lookalike.errors import ArchiveError, NotAnArchiveError
from lookalike.media import archives
from lookalike.media.archives import Archive, ArchiveLimits, Member, in_ascii
from lookalike.media.sources import SUFFIXES
from lookalike.services.feeds import archive_label
from lookalike.services.jobs import CanceledError
from tests.services.archive_maker import KINDS, write_archive
from tests.services.hostile_archives import million

LIMIT = 1000
LIMITS = ArchiveLimits(file_bytes=LIMIT)


def read(path: Path, limits: ArchiveLimits = LIMITS, *, start: int = 0) -> list[Member]:
    with Archive(path, limits, folder=path.parent) as archive:
        return list(archive.members(start=start))


def contents(members: Iterable[Member]) -> list[tuple[str, bytes | None]]:
    """Names and bytes, None where there is an error; closes what was read."""
    found = []
    for member in members:
        data = None
        if member.source.file is not None:
            with member.source.file as file:
                data = file.read()
            assert len(data) == member.source.size
        found.append((member.path, data))
    return found


def until(path: Path, limits: ArchiveLimits = LIMITS) -> tuple[list[tuple[str, bytes | None]], str]:
    """Names and bytes, read one after the other, and the error that ended it, or nothing."""
    found: list[tuple[str, bytes | None]] = []
    try:
        with Archive(path, limits, folder=path.parent) as archive:
            for member in archive.members():
                found += contents([member])
    except ArchiveError as exc:
        return found, str(exc)
    return found, ""


def plainly(path: Path) -> Iterator[tuple[str, bytes | None]]:
    """What Python's own readers give, written down plainly."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            files = [(i.filename, archive.read(i)) for i in archive.infolist() if not i.is_dir()]
    else:
        with tarfile.open(path) as archive:
            files = [(i.name, archive.extractfile(i).read()) for i in archive if i.isfile()]  # type: ignore[union-attr]
    for name, data in files:
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
        inside = [part for part in parts if part != ".."]
        passed = (part.startswith(".") or part.lower() == "__macosx" for part in inside)
        if any(passed) or not inside:
            continue
        if Path(inside[-1].rstrip(" .")).suffix.lower() not in SUFFIXES:
            continue
        yield in_ascii(name), None if ".." in parts or len(data) > LIMIT else data


PART = st.one_of(
    st.sampled_from(
        ["..", ".", "", "a", "cat", ".hidden", "__MACOSX", "C:", "a\\b", "é", "\x1b[2J"]
    ),
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=8),
)
ENDING = st.sampled_from([".jpg", ".PNG", ".txt", ".zip", ".jpg/", "", ".jpg\\", ".tiff"])
NAME = st.builds(
    lambda slash, parts, last, end: f"{slash}{'/'.join([*parts, last])}{end}",
    st.sampled_from(["", "/", "//"]),
    st.lists(PART, max_size=4),
    PART,
    ENDING,
)
DATA = st.one_of(st.binary(max_size=40), st.integers(0, 3 * LIMIT).map(bytes))


@given(files=st.lists(st.tuples(NAME, DATA), max_size=8), kind=st.sampled_from(KINDS))
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_members_are_those_that_the_plain_readers_give(
    tmp_path: Path, files: list[tuple[str, bytes]], kind: str
) -> None:
    named = [(name, data) for name, data in files if kind != "zip" or name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # names that repeat
        path = write_archive(tmp_path / f"made.{kind}", named)
    members = read(path)
    assert contents(members) == list(plainly(path))
    with Archive(path, LIMITS, folder=tmp_path) as archive:
        assert archive.count() == len(members)
    for member in members:
        assert member.path.isascii()
        assert member.path.isprintable()
        assert "\0" not in member.source.filename + member.folder
    if members:
        half = members[len(members) // 2].position
        rest = read(path, start=half)
        assert [m.position for m in rest] == [m.position for m in members if m.position >= half]
        contents(rest)
    assert sorted(tmp_path.iterdir()) == [path]
    path.unlink()


@given(
    data=st.binary(max_size=600),
    head=st.sampled_from(
        [b"", b"PK\3\4", b"PK\5\6", b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"]
    ),
)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_bytes_that_are_no_archive_are_refused(tmp_path: Path, data: bytes, head: bytes) -> None:
    path = tmp_path / "some.bin"
    path.write_bytes(head + data)
    assert until(path)[1]


@given(
    kind=st.sampled_from(KINDS), at=st.floats(0, 1), change=st.integers(1, 255), cut=st.booleans()
)
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_damage_is_an_error_and_nothing_else(
    tmp_path: Path, kind: str, at: float, change: int, cut: bool
) -> None:
    files = [(f"{n}.jpg", bytes(range(n, n + 100)) * 3) for n in range(5)]
    path = write_archive(tmp_path / f"damaged.{kind}", files)
    data = bytearray(path.read_bytes())
    place = int(at * (len(data) - 1))
    if cut:
        del data[place:]
    else:
        data[place] = (data[place] + change) % 256
    path.write_bytes(bytes(data))
    found, error = until(path)
    assert error.isascii()
    if cut and kind == "tar":
        assert len([data for _, data in found if data is not None]) <= (len(data) + 212) // 1024
    if kind == "zip":  # the others say what a member's bytes amount to at their end, or never
        good = {bytes_ for _, bytes_ in files}
        assert all(bytes_ is None or bytes_ in good for _, bytes_ in found)
    elif kind != "tar" and not error:
        assert found == files


@pytest.mark.parametrize(
    ("data", "kind", "says"),
    [
        (b"", NotAnArchiveError, "is empty"),
        (b"no archive", NotAnArchiveError, "send a zip"),
        (b"Rar!\x1a\7\0" * 99, NotAnArchiveError, "send a zip"),
    ],
)
def test_what_is_no_archive_says_what_is(
    tmp_path: Path, data: bytes, kind: type[ArchiveError], says: str
) -> None:
    path = tmp_path / "some.zip"
    path.write_bytes(data)
    with pytest.raises(kind, match=says) as raised:
        read(path)
    assert type(raised.value) is kind


def test_a_zip_file_without_its_end_is_truncated_and_not_unknown(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "cut.zip", [(f"{n}.jpg", b"x" * 50) for n in range(5)])
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ArchiveError, match=r"truncated.*send it again") as raised:
        read(path)
    assert not isinstance(raised.value, NotAnArchiveError)


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_a_tar_file_that_ends_behind_a_member_is_truncated(tmp_path: Path, kind: str) -> None:
    whole = write_archive(tmp_path / "whole.tar", [(f"{n}.jpg", b"x") for n in range(5)])
    data = whole.read_bytes()[: 3 * 1024]
    path = tmp_path / f"cut.{kind}"
    path.write_bytes(gzip.compress(data) if kind == "tar.gz" else data)
    found, error = until(path)
    assert len(found) == 3
    assert "truncated" in error


def test_a_header_that_is_damaged_is_no_end(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "header.tar", [(f"{n}.jpg", b"x") for n in range(5)])
    data = bytearray(path.read_bytes())
    data[3 * 1024 + 100] ^= 1
    path.write_bytes(bytes(data))
    found, error = until(path)
    assert len(found) == 3
    assert "truncated" in error


def test_a_large_member_waits_on_the_disk_without_a_name(tmp_path: Path) -> None:
    data = bytes(range(256)) * 8000
    path = write_archive(tmp_path / "large.zip", [("a/b/large.jpg", data)])
    (member,) = read(path, ArchiveLimits(file_bytes=len(data)))
    assert (member.source.filename, member.folder, member.source.size) == (
        "large.jpg",
        "b",
        len(data),
    )
    assert contents([member]) == [("a/b/large.jpg", data)]
    assert sorted(tmp_path.iterdir()) == [path]


def test_links_devices_and_sparse_files_are_named_and_not_read(tmp_path: Path) -> None:
    path = tmp_path / "links.tar"
    kinds = {
        "sym.jpg": tarfile.SYMTYPE,
        "hard.jpg": tarfile.LNKTYPE,
        "null.jpg": tarfile.CHRTYPE,
        "disk.jpg": tarfile.BLKTYPE,
        "pipe.jpg": tarfile.FIFOTYPE,
        "folder.jpg": tarfile.DIRTYPE,
    }
    with tarfile.open(path, "w") as archive:
        for name, kind in kinds.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        member = tarfile.TarInfo("sparse.jpg")
        member.pax_headers = {
            "GNU.sparse.map": "0,1",
            "GNU.sparse.size": "5",
            "GNU.sparse.major": "0",
        }
        archive.addfile(member)
    members = read(path)
    assert {m.path for m in members} == {*kinds, "sparse.jpg"} - {"folder.jpg"}
    assert all(m.source.file is None and "link" in str(m.source.error) for m in members)
    linked = tmp_path / "link.zip"
    info = zipfile.ZipInfo("sym.jpg")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(linked, "w") as packed:
        packed.writestr(info, "/etc/passwd")
    (only,) = read(linked)
    assert "link" in str(only.source.error)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_cannot_be_bounded_are_not_unpacked(tmp_path: Path, method: int) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("bomb.jpg", bytes(50_000_000))
    data = bytearray(path.read_bytes())
    declared = struct.pack("<L", 50_000_000)
    path.write_bytes(bytes(data).replace(declared, struct.pack("<L", 10)))
    tracemalloc.start()
    (member,) = read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "method" in str(member.source.error)
    assert peak < 5_000_000


def test_encrypted_members_are_named(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "secret.zip", [("a.jpg", b"x" * 20), ("b.jpg", b"y")])
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(mark) + offset] |= 1
    path.write_bytes(bytes(data))
    first, second = read(path)
    assert "encrypted" in str(first.source.error)
    assert contents([second]) == [("b.jpg", b"y")]


def test_a_size_that_lies_is_found_out(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "lies.zip", [("a.jpg", bytes(100_000))])
    path.write_bytes(path.read_bytes().replace(struct.pack("<L", 100_000), struct.pack("<L", 10)))
    (member,) = read(path)
    assert "CRC" in str(member.source.error)


def test_members_that_share_their_bytes_cannot_cost_more_than_the_bound(tmp_path: Path) -> None:
    data = bytes(200_000)
    path = write_archive(tmp_path / "overlap.zip", [("0.jpg", data)])
    content = path.read_bytes()
    start = content.index(b"PK\1\2")
    end = content.index(b"PK\5\6")
    many = 400
    record = content[start:end]
    tail = bytearray(content[end:])
    struct.pack_into("<HHL", tail, 8, many, many, many * len(record))
    path.write_bytes(content[:start] + record * many + bytes(tail))
    limits = ArchiveLimits(file_bytes=len(data), total_bytes=10 * len(data))
    with Archive(path, limits, folder=tmp_path) as archive:
        assert archive.count() == many
    found, error = until(path, limits)
    assert "far more" in error
    assert len(found) == 10


def test_what_an_archive_unpacks_to_is_bounded_by_its_own_size(tmp_path: Path) -> None:
    limits = ArchiveLimits(file_bytes=30_000, spare_bytes=100_000)
    for kind in KINDS:
        files = [(f"{n}.jpg", bytes(30_000)) for n in range(40)]
        path = write_archive(tmp_path / f"bomb.{kind}", files)
        allowed = 100_000 + limits.ratio * path.stat().st_size
        found, error = until(path, limits)
        assert (len(found) == 40) == (error == "")
        assert error == "" or "far more" in error
        assert 30_000 * len(found) <= allowed
        assert (len(found) == 40) == (allowed > 40 * 30_000 + 60_000), kind


def test_what_is_passed_over_is_bounded_too(tmp_path: Path) -> None:
    limits = replace(LIMITS, spare_bytes=1_000_000)
    path = write_archive(
        tmp_path / "over.tar.gz", [("zeros.bin", bytes(50_000_000)), ("a.jpg", b"1")]
    )
    with (
        Archive(path, limits, folder=tmp_path) as archive,
        pytest.raises(ArchiveError, match="far more"),
    ):
        archive.count()


def test_the_work_can_be_ended_wherever_an_archive_is_read(tmp_path: Path) -> None:
    """Also while one large member is passed over."""
    files = [("a.png", b"1"), ("large.bin", bytes(20 * 2**16)), ("b.png", b"2")]
    for kind in KINDS:
        path = write_archive(tmp_path / f"some.{kind}", files)
        calls: list[int] = []
        with Archive(path, LIMITS, folder=tmp_path) as archive:
            archive.count(lambda calls=calls: calls.append(1))  # type: ignore[misc]
        assert len(calls) >= (20 if "." in kind else 3), kind
        for at in range(len(calls)):
            left = iter(range(at))

            def step(left: Iterator[int] = left) -> None:
                if next(left, None) is None:
                    raise CanceledError

            with Archive(path, LIMITS, folder=tmp_path) as archive, pytest.raises(CanceledError):
                contents(archive.members(start=2, step=step))


def test_members_are_counted(tmp_path: Path) -> None:
    for kind in KINDS:
        path = write_archive(tmp_path / f"many.{kind}", [(f"{n}.txt", b"") for n in range(11)])
        limits = ArchiveLimits(file_bytes=LIMIT, members=10)
        with (
            pytest.raises(ArchiveError, match="10 members"),
            Archive(path, limits, folder=tmp_path) as archive,
        ):
            archive.count()


def test_a_zip_directory_with_too_many_members_is_not_taken_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_archive(tmp_path / "many.zip", [(f"{n}.jpg", b"") for n in range(11)])
    made: list[str] = []

    class Counted(zipfile.ZipInfo):
        def __init__(self, filename: str = "x") -> None:
            made.append(filename)
            super().__init__(filename)

    monkeypatch.setattr(zipfile, "ZipInfo", Counted)
    with pytest.raises(ArchiveError, match="10 members"):
        read(path, ArchiveLimits(file_bytes=LIMIT, members=10))
    assert made == []
    assert len(contents(read(path, ArchiveLimits(file_bytes=LIMIT, members=11)))) == 11


def test_a_zip_file_with_a_million_members_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "million.zip"
    path.write_bytes(million(random.Random()))
    tracemalloc.start()
    try:
        for limits in (LIMITS, replace(LIMITS, directory_bytes=10**9)):
            with pytest.raises(ArchiveError, match=r"directory|300,000 members"):
                read(path, limits)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 120_000_000


def test_a_directory_too_large_is_not_read(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "long.zip", [(f"{n}{'x' * 200}.jpg", b"") for n in range(1000)])
    with pytest.raises(ArchiveError, match="directory"):
        read(path, replace(LIMITS, directory_bytes=100_000))


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
@pytest.mark.parametrize("packed", ["tar", "tar.gz", "tar.xz"])
def test_headers_take_no_memory(tmp_path: Path, kind: bytes, packed: str) -> None:
    header = tarfile.TarInfo("long")
    header.type, header.size = kind, 40_000_000
    block = header.tobuf()
    good = tarfile.TarInfo("a.jpg").tobuf()
    data = good + block + bytes(header.size) + bytes(1024)
    pack = {"tar": lambda b: b, "tar.gz": gzip.compress, "tar.xz": lzma.compress}[packed]
    path = tmp_path / f"headers.{packed}"
    path.write_bytes(pack(data))
    tracemalloc.start()
    found, error = until(path)
    assert "headers" in error
    assert found == [("a.jpg", b"")]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 15_000_000  # xz itself takes 8 million


def test_global_headers_do_not_pile_up(tmp_path: Path) -> None:
    blocks = b""
    for number in range(archives.MAX_GLOBAL_HEADERS + 2):
        info = tarfile.TarInfo(f"{number}.jpg")
        blocks += info.create_pax_global_header({f"key{number}": "value"}) + info.tobuf()
    path = tmp_path / "global.tar"
    path.write_bytes(blocks + bytes(1024))
    found, error = until(path)
    assert "global headers" in error
    assert len(found) == archives.MAX_GLOBAL_HEADERS


def test_streams_of_xz_and_bzip2_that_follow_each_other(tmp_path: Path) -> None:
    plain = write_archive(tmp_path / "plain.tar", [("a.jpg", b"1" * 900), ("b.jpg", b"2" * 900)])
    data = plain.read_bytes()
    parts = [data[:700], data[700:2100], data[2100:]]
    for name, pack in (
        ("x.tar.xz", lzma.compress),
        ("x.tar.bz2", bz2.compress),
        ("x.tar.gz", gzip.compress),
    ):
        padding = bytes(8) if pack is lzma.compress else b""
        path = tmp_path / name
        path.write_bytes(padding.join(pack(part) for part in parts) + padding)
        assert contents(read(path)) == [("a.jpg", b"1" * 900), ("b.jpg", b"2" * 900)]


def test_xz_that_asks_for_much_memory_is_refused(tmp_path: Path) -> None:
    plain = write_archive(tmp_path / "plain.tar", [("a.jpg", b"1")])
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 2**20}]
    data = bytearray(lzma.compress(plain.read_bytes(), filters=filters))
    # The block header starts at 12: its length, flags, filter 0x21, 1, and the dictionary's size.
    end = 12 + (data[12] + 1) * 4
    assert data[14:17] == b"\x21\x01\x10"
    data[16] = 0x26  # 2 GiB
    struct.pack_into("<L", data, end - 4, zlib.crc32(data[12 : end - 4]))
    path = tmp_path / "greedy.tar.xz"
    path.write_bytes(bytes(data))
    with pytest.raises(ArchiveError, match=r"[Mm]emory"):
        read(path)


def test_a_zip_file_inside_a_tar_file_is_not_opened(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("inner.jpg", b"1")
    path = write_archive(
        tmp_path / "outer.tar", [("outer.jpg", b"2"), ("inner.zip", inner.getvalue())]
    )
    assert contents(read(path)) == [("outer.jpg", b"2")]


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("photos.zip", "photos"),
        ("a/b/Photos.TAR.GZ", "Photos"),
        ("C:\\x\\y.tgz", "y"),
        ("фото.zip", "фото"),
        ("z", "z"),
    ],
)
def test_an_archive_stands_for_a_folder(name: str, label: str) -> None:
    assert archive_label(name) == label


@pytest.mark.parametrize("encoding", ["latin-1", "cp866", "cp932"])
def test_names_of_a_tar_file_that_are_no_utf_8_stay_apart(tmp_path: Path, encoding: str) -> None:
    names = {"latin-1": "äöü", "cp866": "Летом", "cp932": "夏海空"}[encoding]
    how: dict[str, Any] = {"format": tarfile.GNU_FORMAT, "encoding": encoding}
    with tarfile.open(tmp_path / "a.tar", "w", **how) as tar:
        for name in names:
            info = tarfile.TarInfo(f"{name}/{name}.png")
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    members = read(tmp_path / "a.tar")
    for known in ("inside", "folder"):
        assert len({getattr(member, known) for member in members}) == len(names)
    shown = members[0].source.filename
    assert shown == names[0].encode(encoding).decode("ascii", "backslashreplace") + ".png"
    for member in members:
        member.inside.encode()  # can be stored
        assert member.source.file is not None
        member.source.file.close()
