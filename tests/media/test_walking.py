"""Which files below folders are taken, and how what is passed over is counted."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from lookalike.errors import ConfigurationError, InvalidParameterError
from lookalike.files.data_folder import mark_folder
from lookalike.media.archives import Archive, ArchiveLimits
from lookalike.media.sources import Selection, is_own_picture, passed_over, walk
from lookalike.store.local.store import LocalStore
from lookalike.visualization.contact_sheet import save_picture
from lookalike.visualization.drawing import png_of

TREE = {
    "a.jpg": None,
    "b.CR2": "raw",
    "c.nef": "raw",
    "d.psd": "psd",
    "e.jxl": "jxl",
    "f.svg": "svg",
    "g.pdf": "pdf",
    "h.MOV": "video",
    "notes.txt": "other",
    "Thumbs.db": "other",
    ".DS_Store": "hidden",
    "._a.jpg": "hidden",
    "SYNOFILE_THUMB_M.jpg": "system",
    "deep/er/b.png": None,
    ".thumbnails/x.jpg": "hidden",
    ".Trash-1000/files/x.jpg": "hidden",
    "deep/@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg": "system",
    "#recycle/x.jpg": "system",
    "#snapshot/x.jpg": "system",
    "$RECYCLE.BIN/x.jpg": "system",
    "System Volume Information/x.jpg": "system",
    "lost+found/x.jpg": "system",
    "__MACOSX/x.jpg": "system",
    "@Recently-Snapshot/x.jpg": "system",
    "Lightroom Previews.lrdata/x.jpg": "system",
    "appdata_oc1a2b/preview/x.jpg": "system",
    "@home/c.jpg": None,
    "#1/d.jpg": None,
    "recycle/e.jpg": None,
}
"""Files of a tree, each with why it is passed over."""


def write(top: Path, names: Iterator[str] | list[str]) -> None:
    for name in names:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(b"x")


def taken(*tops: Path, selection: Selection | None = None) -> list[str]:
    return [found.place.path for found in walk(tops, selection=selection)]


def test_what_is_passed_over_is_counted_by_kind(tmp_path: Path) -> None:
    write(tmp_path, list(TREE))
    selection = Selection()
    assert sorted(taken(tmp_path, selection=selection)) == sorted(
        name for name, kind in TREE.items() if kind is None
    )
    kinds = [kind for kind in TREE.values() if kind]
    assert selection.passed == {kind: kinds.count(kind) for kind in kinds}


def test_an_archive_passes_over_the_same(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for name in TREE:
            file.writestr(name, b"x")
    selection = Selection()
    limits = ArchiveLimits(file_bytes=100)
    members: list[str] = []
    with Archive(tmp_path / "a.zip", limits, folder=tmp_path, selection=selection) as archive:
        for member in archive.members():
            members.append(member.inside)
            member.source.close()
    assert members == [name for name, kind in TREE.items() if kind is None]
    kinds = [kind for kind in TREE.values() if kind]
    assert selection.passed == {kind: kinds.count(kind) for kind in kinds}


def test_the_line_is_plain() -> None:
    assert passed_over({}) == ""
    passed = {"psd": 3, "links": 1, "raw": 12_000, "ours": 2, "other": 1}
    line = "passed over: 12,000 raw, 3 psd, 2 of Lookalike itself, 1 link, 1 other file"
    assert passed_over(passed) == line


# Each with what it excludes of `FILES`; git says the same of all of them.
FILES = ["a.jpg", "a.tmp", "b/a.jpg", "b/c/a.jpg", "b/c/x1.jpg", "c/a.jpg", "raw/c/b/d.jpg"]
GLOBS = {
    "*.tmp": ["a.tmp"],
    "a.jpg": ["a.jpg", "b/a.jpg", "b/c/a.jpg", "c/a.jpg"],
    "/a.jpg": ["a.jpg"],
    "c": ["b/c/a.jpg", "b/c/x1.jpg", "c/a.jpg", "raw/c/b/d.jpg"],
    "c/": ["b/c/a.jpg", "b/c/x1.jpg", "c/a.jpg", "raw/c/b/d.jpg"],
    "a.jpg/": [],
    "/c": ["c/a.jpg"],
    "b/c": ["b/c/a.jpg", "b/c/x1.jpg"],
    "b/*": ["b/a.jpg", "b/c/a.jpg", "b/c/x1.jpg"],
    "b/*.jpg": ["b/a.jpg"],
    "**/c/*.jpg": ["b/c/a.jpg", "b/c/x1.jpg", "c/a.jpg"],
    "raw/**/d.jpg": ["raw/c/b/d.jpg"],
    "raw/**": ["raw/c/b/d.jpg"],
    "x[0-9].jpg": ["b/c/x1.jpg"],
    "[!a].jpg": ["raw/c/b/d.jpg"],
    "?.jpg": ["a.jpg", "b/a.jpg", "b/c/a.jpg", "c/a.jpg", "raw/c/b/d.jpg"],
    "A.JPG": [],
    "a": [],
    "\\a.jpg": ["a.jpg", "b/a.jpg", "b/c/a.jpg", "c/a.jpg"],
    "[": [],
    "(a|b).jpg": [],
    "**": FILES,
}


@pytest.mark.parametrize("glob", GLOBS)
def test_globs_exclude_as_git_does(tmp_path: Path, glob: str) -> None:
    write(tmp_path, FILES)
    left = sorted(taken(tmp_path, selection=Selection([glob, "*.tmp"])))
    assert left == sorted(set(FILES) - set(GLOBS[glob]) - {"a.tmp"})


@pytest.mark.parametrize("glob", ["", "/", "!a.jpg", "a\0b"])
def test_what_is_no_glob_is_refused(glob: str) -> None:
    with pytest.raises(InvalidParameterError, match="no glob"):
        Selection([glob])


def test_links_are_followed_once(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    write(tmp_path, ["in/a.jpg", "in/deep/b.jpg", "out/c.jpg", "data/images/d.jpg"])
    mark_folder(tmp_path / "data", "data folder")
    links = {
        "again.jpg": inside / "a.jpg",
        "twice.jpg": inside / "again.jpg",
        "folder": inside / "deep",
        "loop": inside,
        "away": outside,
        "ours.jpg": tmp_path / "data" / "images" / "d.jpg",
        "c.jpg": outside / "c.jpg",
        "nowhere.jpg": outside / "missing.jpg",
        "itself.jpg": inside / "itself.jpg",
    }
    for name, target in links.items():
        (inside / name).symlink_to(target)
    selection = Selection()
    found = taken(inside, selection=selection)
    assert found == ["a.jpg", "c.jpg", "itself.jpg", "nowhere.jpg", "deep/b.jpg"]
    assert selection.passed == {"links": 6}
    assert "c.jpg" not in taken(inside, outside)[:3], "it is walked where it lies"
    (tmp_path / "top").symlink_to(inside)
    assert taken(tmp_path / "top") == found, "a link that is named is followed"


def test_our_folders_are_not_walked_into(tmp_path: Path) -> None:
    LocalStore(tmp_path / "data").close()
    write(tmp_path, ["a.jpg", "data/images/ab/x.jpg", "out/group-001.png", "mine/b.jpg"])
    mark_folder(tmp_path / "out", "output")
    selection = Selection(avoid=[tmp_path / "mine"])
    assert taken(tmp_path, selection=selection) == ["a.jpg"]
    assert selection.passed == {"ours": 3}
    for folder in ("data", "data/images", "data/images/ab", "out"):
        with pytest.raises(ConfigurationError, match="belongs to Lookalike"):
            taken(tmp_path / folder)
    write(tmp_path, ["data/photos/c.jpg"])
    assert taken(tmp_path / "data" / "photos") == ["c.jpg"], "a folder of the user's in it"
    assert taken(tmp_path / "out" / "group-001.png") == ["group-001.png"], "it was named itself"


def test_only_the_parts_of_a_data_folder_among_photos_are_passed_over(tmp_path: Path) -> None:
    LocalStore(tmp_path).close()
    (tmp_path / ".lookalike").unlink()
    write(tmp_path, ["a.jpg", "images/ab/x.jpg", "holiday/b.jpg", "holiday/images/c.jpg"])
    assert taken(tmp_path) == ["a.jpg", "holiday/b.jpg", "holiday/images/c.jpg"]


def test_a_data_folder_in_an_archive_is_passed_over(tmp_path: Path) -> None:
    digest = "ab12" + 60 * "0"
    names = [
        f"data/images/ab/12/{digest}.png",
        f"data/thumbnails/ab/12/{digest}.jpg",
        f"data/trash/2026-01-01/images/ab/12/{digest}.png",
        f"images/ab/12/{digest}.png",
        f"images/{digest}.png",
        "images/ab/12/mug.png",
        f"images/ab/13/{digest}.png",
    ]
    selection = Selection()
    assert [name for name in names if selection.takes_member(name.split("/"))] == names[4:]
    assert selection.passed == {"ours": 4}


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_our_pictures_say_so_and_are_passed_over(tmp_path: Path, suffix: str) -> None:
    sheet, other = tmp_path / f"sheet{suffix}", tmp_path / f"mine{suffix}"
    image = Image.effect_noise((300, 200), 80).convert("RGB")
    save_picture(image, sheet)
    image.save(other)
    assert is_own_picture(sheet)
    with sheet.open("rb") as file:
        file.seek(5)
        assert is_own_picture(file)
        assert file.tell() == 0
    assert taken(tmp_path) == [other.name]
    Image.open(sheet).load()


def test_plots_say_so(tmp_path: Path) -> None:
    path = tmp_path / "plot.png"
    path.write_bytes(png_of(Figure(figsize=(2, 2))))
    assert is_own_picture(path)


@pytest.mark.parametrize("content", [b"", b"\x89PNG", b"RIFF\0\0\0\0WEBPVP8X", b"\xff\xd8"])
def test_anything_else_is_not_ours(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    assert not is_own_picture(path)
    assert not is_own_picture(tmp_path)
    assert not is_own_picture(tmp_path / "missing.png")


def test_pipes_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in (".lookalike", "catalog.db", "a.jpg"):
        os.mkfifo(tmp_path / "in" / name)
    assert taken(tmp_path) == ["in/a.jpg"], "whoever opens it says that it is no file"
