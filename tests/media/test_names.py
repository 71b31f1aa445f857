"""Names as other programs write them: in zip files, and in both forms of Unicode."""

import struct
import unicodedata
import zlib
from pathlib import Path
from typing import Literal

import pytest

from lookalike.media.archives import Archive, ArchiveLimits
from lookalike.media.sources import PictureSource, Selection, walk

UTF8 = 1 << 11
FORMS: list[Literal["NFC", "NFD"]] = ["NFC", "NFD"]


def zip_of(names, *, flag=0, extra=lambda name: b""):
    """A zip file whose member names are these bytes."""
    data = directory = b""
    for name in names:
        more = extra(name)
        common = struct.pack(
            "<HHHHHIIIHH", 20, flag, 0, 0, 0x5821, zlib.crc32(b"x"), 1, 1, len(name), len(more)
        )
        directory += struct.pack("<IH", 0x02014B50, 0x031E) + common
        directory += struct.pack("<HHHII", 0, 0, 0, 0o100644 << 16, len(data)) + name + more
        data += struct.pack("<I", 0x04034B50) + common + name + more + b"x"
    count = len(names)
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, count, count, len(directory), len(data), 0)
    return data + directory + end


def members(tmp_path, data):
    path = tmp_path / "a.zip"
    path.write_bytes(data)
    with Archive(path, ArchiveLimits(file_bytes=100), folder=tmp_path) as archive:
        found = list(archive.members())
    for member in found:
        member.source.close()
    return found


def inside(tmp_path, data):
    return [member.inside for member in members(tmp_path, data)]


WRITTEN = {
    "cp437": ["photos/Café/été.jpg", "Übersicht/Größe.jpg"],
    "cp850": ["Ação/Árvore.jpg", "Årsmøde/blå.jpg", "Müßig.jpg"],
    "cp866": [
        "\u0444\u043e\u0442\u043e/\u041a\u043e\u0442.jpg",
        "\u041d\u043e\u0432\u0430\u044f \u043f\u0430\u043f\u043a\u0430/1.jpg",
    ],
    "cp932": ["写真/猫.jpg", "ソフト/表示.jpg", "あいう.jpg", "東京タワー 2.jpg"],
    "gbk": ["照片/猫.jpg", "新建文件夹/联通.jpg", "微信图片_2023.jpg"],
}


@pytest.mark.parametrize("page", WRITTEN)
def test_names_of_windows_are_read_in_the_code_page_that_they_are_in(tmp_path, page):
    names = WRITTEN[page]
    assert inside(tmp_path, zip_of([name.encode(page) for name in names])) == names
    backward = [name.replace("/", "\\").encode(page) for name in names]
    assert inside(tmp_path, zip_of(backward)) == names


@pytest.mark.parametrize("flag", [0, UTF8])
@pytest.mark.parametrize("form", FORMS)
def test_names_in_utf8_with_and_without_the_flag(tmp_path, form, flag):
    names = ["photos/Café/été.jpg", "写真/ガラス.jpg", "plain.jpg"]
    data = zip_of([unicodedata.normalize(form, name).encode() for name in names], flag=flag)
    found = members(tmp_path, data)
    assert [member.inside for member in found] == names
    assert [member.folder for member in found] == ["Café", "写真", ""]
    assert [member.source.filename for member in found] == ["été.jpg", "ガラス.jpg", "plain.jpg"]


def unicode_path(name, *, of=None):
    body = b"\1" + struct.pack("<I", zlib.crc32(name if of is None else of)) + "été.jpg".encode()
    return b"UT\1\0\0" + struct.pack("<HH", 0x7075, len(body)) + body


def test_the_name_that_info_zip_adds(tmp_path):
    assert inside(tmp_path, zip_of([b"\x82t\x82.jpg"], extra=unicode_path)) == ["été.jpg"]
    stale = zip_of([b"caf\x82.jpg"], extra=lambda name: unicode_path(name, of=b"another"))
    assert inside(tmp_path, stale) == ["café.jpg"]


def test_what_macos_puts_beside_is_passed_over(tmp_path):
    names = [b"a/one.jpg", b"__MACOSX/a/._one.jpg", b"a/.DS_Store", b"a/._two.jpg", b"a/Icon\r"]
    assert inside(tmp_path, zip_of(names)) == ["a/one.jpg"]


def test_names_that_windows_would_not_make(tmp_path):
    assert inside(tmp_path, zip_of([b"C:\\photos \\cat.jpg ", b"dog.jpg."])) == [
        "C:/photos /cat.jpg ",
        "dog.jpg.",
    ]


def test_any_bytes_are_a_name(tmp_path):
    names = [
        bytes([first, second]) + b".jpg"
        for first in range(128, 256, 7)
        for second in (130, 200, 255)
    ]
    assert len(inside(tmp_path, zip_of(names))) == len(names)


def test_both_forms_of_unicode_are_one_label_and_one_glob(tmp_path):
    for number, form in enumerate(FORMS):
        folder = tmp_path / "top" / str(number) / unicodedata.normalize(form, "Café")
        folder.mkdir(parents=True)
        (folder / unicodedata.normalize(form, "été.jpg")).write_bytes(b"x")
    found = list(walk([tmp_path / "top"]))
    assert [one.folder for one in found] == ["Café", "Café"]
    assert {PictureSource.found(one).filename for one in found} == {"été.jpg"}
    assert all(Path(one.place.location).is_file() for one in found)  # as the disk has it
    for form in FORMS:
        selection = Selection([unicodedata.normalize(form, "Café")])
        assert list(walk([tmp_path / "top"], selection=selection)) == []
