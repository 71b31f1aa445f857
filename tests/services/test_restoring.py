"""Backups that are damaged, or that a stranger made to harm."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import sqlite3
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lookalike import Client
from lookalike.errors import (
    BackupError,
    ConfigurationError,
    DataFolderError,
    LookalikeError,
    StorageError,
    StorageFullError,
)
from lookalike.files.data_folder import MARKER, RESTORING
from lookalike.services import restoring
from tests.services.backups import answers, backup, fill, restore

TESTS = int(os.environ.get("LOOKALIKE_TEST_DAMAGED_BACKUPS", "30"))
"""Damaged backups of each kind; 5000 for a thorough run."""


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder, and a backup of it in every form."""
    folder = tmp_path_factory.mktemp("backups")
    fill(folder / "data", 1, 2, 3)
    for form in ("b.tar", "b.tar.gz", "folder"):
        backup(folder / "data", folder / form)
    return folder


Member = tuple[tarfile.TarInfo, bytes]


def members(path: Path) -> list[Member]:
    with tarfile.open(path) as tar:
        found = []
        for info in tar:
            file = tar.extractfile(info)
            assert file is not None
            found.append((info, file.read()))
        return found


def write(path: Path, content: list[Member]) -> Path:
    with tarfile.open(path, "w") as tar:
        for info, data in content:
            info.size = len(data) if info.isreg() else info.size
            tar.addfile(info, io.BytesIO(data))
    return path


def refused(source: Path, new: Path, match: str | None = None) -> None:
    """A restore fails with an error of ours, and leaves nothing that could be served."""
    with pytest.raises((BackupError, StorageError), match=match):
        restore(source, new)
    left = {path.name for path in new.iterdir()} if new.exists() else set()
    assert left <= {"lock", "lock.owner", ".lookalike"}


def same(new: Path, top: Path) -> bool:
    return answers(new) == answers(top / "data")


PARTS = ("images", "thumbnails", "catalog.db")  # in the order in which they settle


@pytest.mark.parametrize("settled", range(len(PARTS) + 1))
def test_a_restore_that_died_while_it_put_files_in_place_is_made_again(top, tmp_path, settled):
    new = tmp_path / "new"
    restore(top / "b.tar", new)
    (new / RESTORING).mkdir()
    for name in PARTS[settled:]:
        (new / name).rename(new / RESTORING / name)
    with pytest.raises(DataFolderError, match="half of a backup"):
        Client(new, model="color")
    restore(top / "b.tar", new)
    assert same(new, top)


@pytest.mark.parametrize("number", range(1, len(PARTS) + 1))
def test_an_interrupted_restore_leaves_nothing(top, tmp_path, number, monkeypatch):
    rename, done = Path.rename, list[str]()

    def interrupted(self: Path, target: Path) -> Path:
        if self.parent.name == RESTORING:
            done.append(self.name)
            if len(done) == number:
                raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            restore(top / "b.tar", tmp_path / "new")
    assert len(done) == number
    assert {path.name for path in (tmp_path / "new").iterdir()} <= {"lock", "lock.owner", MARKER}
    restore(top / "b.tar", tmp_path / "new")
    assert same(tmp_path / "new", top)


def test_what_else_lies_in_a_half_restored_folder_stays(top, tmp_path):
    new = tmp_path / "new"
    (new / RESTORING).mkdir(parents=True)
    (new / "images").mkdir()
    (new / "notes.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match=r"not empty \(notes\.txt is in it\)"):
        restore(top / "b.tar", new)
    assert (new / "images").is_dir()
    assert (new / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("form", ["b.tar", "b.tar.gz"])
def test_a_backup_that_was_cut_off_is_refused_wherever_it_ends(top, tmp_path, form):
    whole = (top / form).read_bytes()
    ends = [*range(0, len(whole) - 2048, max(1, len(whole) // 40)), 1, 511, 512, 513]
    for number, end in enumerate(ends):
        (tmp_path / form).write_bytes(whole[:end])
        refused(tmp_path / form, tmp_path / f"new{number}")


@settings(
    max_examples=TESTS, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
@pytest.mark.parametrize("form", ["b.tar", "b.tar.gz"])
def test_changed_bytes_are_refused_or_told_or_change_nothing(top, tmp_path_factory, form, data):
    work = tmp_path_factory.mktemp("changed")
    content = bytearray((top / form).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    (work / form).write_bytes(content)
    try:
        restored = restore(work / form, work / "new")
    except (BackupError, StorageError):
        assert not (work / "new" / "catalog.db").exists()
    else:
        catalog = (work / "new" / "catalog.db").read_bytes()
        assert catalog == members(top / "b.tar")[1][1]
        kept = [*(work / "new").glob("images/*/*/*"), *(work / "new").glob("thumbnails/*/*/*")]
        assert len(kept) + len(restored.errors) == 6
        left = {path.name for path in (work / "new").iterdir()}
        assert left <= {"lock", "lock.owner", ".lookalike", "catalog.db", "images", "thumbnails"}
    shutil.rmtree(work)


@settings(
    max_examples=TESTS, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.binary(max_size=3000), packed=st.booleans())
def test_any_other_bytes_are_no_backup(tmp_path_factory, content, packed):
    work = tmp_path_factory.mktemp("bytes")
    (work / "b.tar").write_bytes(gzip.compress(content) if packed else content)
    refused(work / "b.tar", work / "new")
    shutil.rmtree(work)


def plain(name: str, data: bytes = b"x") -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info, data


def link(kind: bytes, name: str, to: str) -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info, b""


def huge(name: str) -> Member:
    info = tarfile.TarInfo(name)
    info.size = 2**50
    return info, b""


@pytest.mark.parametrize(
    "hostile",
    [
        plain("../outside"),
        plain("/tmp/outside"),
        plain("images/../../outside"),
        plain("images/../../../../" + "0" * 64 + ".png"),
        plain("images/ab/cd/" + "ef" * 32 + ".png"),
        plain("heads/../../outside"),
        plain("heads/.hidden"),
        plain("index/1/manifest.json"),
        plain("lock"),
        plain("jobs.db"),
        plain("catalog.db-wal"),
        plain("imports/x.archive"),
        plain("h\u00e9ads/x"),
        plain("heads/" + "x" * 300),
        plain("heads/a\nb"),
        link(tarfile.SYMTYPE, "heads/a", "/etc"),
        link(tarfile.LNKTYPE, "heads/a", "catalog.db"),
        link(tarfile.CHRTYPE, "heads/a", ""),
        link(tarfile.FIFOTYPE, "heads/a", ""),
        plain("backup.json"),
        plain("manifest.json"),
    ],
    ids=lambda one: one[0].name[:30].encode("unicode_escape").decode(),
)
@pytest.mark.parametrize("place", [1, 3, -1, 99])
def test_a_member_that_no_backup_holds_is_refused(top, tmp_path, hostile, place):
    content = members(top / "b.tar")
    content.insert(place if place >= 0 else len(content) + place, hostile)
    refused(write(tmp_path / "b.tar", content), tmp_path / "sub" / "new")
    assert not (tmp_path / "outside").exists()
    assert not Path("/tmp/outside").exists()
    assert not (tmp_path / "sub" / "outside").exists()


def test_a_member_that_claims_to_be_huge_is_refused(top, tmp_path):
    content = members(top / "b.tar")
    (tmp_path / "b.tar").write_bytes(b"")
    with (tmp_path / "b.tar").open("wb") as out:
        for info, data in content[:1]:
            out.write(info.tobuf(tarfile.PAX_FORMAT) + data + bytes(-len(data) % 512))
        out.write(huge("catalog.db")[0].tobuf(tarfile.PAX_FORMAT))
        out.write(b"x" * 5000)
    with pytest.raises(StorageFullError, match="make room"):
        restore(tmp_path / "b.tar", tmp_path / "new")


def test_a_backup_that_unpacks_to_far_more_is_refused(top, tmp_path, monkeypatch):
    monkeypatch.setattr(restoring, "_SPARE", 1_000_000)
    content = members(top / "b.tar")
    zeros = bytes(15_000_000)
    content.insert(1, plain("heads/zeros", zeros))
    write(tmp_path / "b.tar", content)
    packed = gzip.compress((tmp_path / "b.tar").read_bytes(), 1)
    assert len(packed) < 100_000
    (tmp_path / "b.tar.gz").write_bytes(packed)
    (tmp_path / "b.tar").unlink()
    refused(tmp_path / "b.tar.gz", tmp_path / "new", "made to harm|damaged")


Change = Callable[[list[Member]], Any]


def without(name: str) -> Change:
    return lambda content: content.remove(next(one for one in content if name in one[0].name))


def twice(name: str) -> Change:
    return lambda content: content.insert(2, next(one for one in content if name in one[0].name))


def manifest(**changes: Any) -> Change:
    def change(content: list[Member]) -> None:
        info, data = content[-1]
        content[-1] = (info, json.dumps(json.loads(data) | changes).encode())

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (without("manifest.json"), "its end is missing"),
        (without("catalog.db"), "not those that its manifest names"),
        (without(".png"), "not those that its manifest names"),
        (without("backup.json"), "no backup of Lookalike"),
        (twice(".png"), "twice"),
        (twice("catalog.db"), "twice"),
        (manifest(format=2, product="9.0"), "made by Lookalike 9.0"),
        (manifest(kind="other"), "no backup of Lookalike"),
        (manifest(sums="0" * 64), "not those that its manifest names"),
        (manifest(sums=7), "manifest is damaged"),
        (manifest(files=3), "not those that its manifest names"),
        (manifest(collections={"default": 4}), "other collections"),
        (manifest(collections=[]), "manifest is damaged"),
        (manifest(originals="x" * 2_000_000), "far too long"),
        (lambda content: content.reverse(), "no backup of Lookalike"),
        (list.clear, "no backup of Lookalike|its end is missing"),
    ],
)
def test_a_backup_that_is_not_as_its_manifest_says_is_refused(top, tmp_path, change, match):
    content = members(top / "b.tar")
    change(content)
    refused(write(tmp_path / "b.tar", content), tmp_path / "new", match)


def other_catalog(content: list[Member], catalog: bytes) -> None:
    """Puts another catalog into a backup, with a manifest that fits."""
    content[1] = (content[1][0], catalog)
    lines = "".join(
        f"{hashlib.sha256(data).hexdigest()}  {info.name}\n" for info, data in content[1:-2]
    )
    manifest(sums=hashlib.sha256(lines.encode()).hexdigest())(content)


@pytest.mark.parametrize(
    ("sql", "match"),
    [
        ("CREATE TRIGGER t AFTER INSERT ON images BEGIN SELECT 1; END", "no catalog holds"),
        ("CREATE VIEW v AS SELECT 1", "no catalog holds"),
        ("PRAGMA user_version = 99", "newer version"),
        ("PRAGMA application_id = 7", "another program"),
        ("DROP TABLE collections", "lacks"),
        ("DROP TABLE vectors", "lacks"),
        ("ALTER TABLE images RENAME COLUMN sha256 TO other", "cannot be used"),
        ("UPDATE collections SET images = 7", "other collections"),
    ],
)
def test_a_catalog_that_is_none_is_refused(top, tmp_path, sql, match):
    content = members(top / "b.tar")
    (tmp_path / "catalog.db").write_bytes(content[1][1])
    with closing(sqlite3.connect(tmp_path / "catalog.db")) as catalog:
        catalog.execute(sql)
        catalog.commit()
    other_catalog(content, (tmp_path / "catalog.db").read_bytes())
    refused(write(tmp_path / "b.tar", content), tmp_path / "new", match)


def test_a_catalog_that_is_no_database_is_refused(top, tmp_path):
    for number, catalog in enumerate([b"", b"no database" * 100, bytes(8192)]):
        content = members(top / "b.tar")
        other_catalog(content, catalog)
        refused(write(tmp_path / "b.tar", content), tmp_path / f"new{number}")


def test_a_damaged_original_of_a_tar_is_told_and_the_rest_restored(top, tmp_path):
    content = members(top / "b.tar")
    place = next(n for n, (info, _) in enumerate(content) if info.name.endswith(".png"))
    info, data = content[place]
    content[place] = (info, bytes(len(data)))
    place = next(n for n, (other, _) in enumerate(content) if other.name.startswith("thumb"))
    thumbnail, data = content[place]
    content[place] = (thumbnail, bytes(len(data)))
    restored = restore(write(tmp_path / "b.tar", content), tmp_path / "new")
    names = [info.name, thumbnail.name]
    assert restored.errors == [f"{name} is damaged in the backup" for name in names]
    assert not (tmp_path / "new" / thumbnail.name).exists()
    with Client(tmp_path / "new", model="color") as client:
        assert len(list(client.list())) == 3
    assert len(list((tmp_path / "new" / "images").rglob("*.png"))) == 2


@pytest.mark.parametrize("how", ["changed", "missing", "link", "folder", "pipe"])
def test_a_damaged_original_of_a_folder_is_told_and_the_rest_restored(top, tmp_path, how):
    shutil.copytree(top / "folder", tmp_path / "b")
    bad = next((tmp_path / "b" / "images").rglob("*.png"))
    kept = bad.read_bytes()
    bad.unlink()
    if how == "changed":
        bad.write_bytes(kept[::-1])
    elif how == "link":
        (tmp_path / "elsewhere").write_bytes(kept)
        bad.symlink_to(tmp_path / "elsewhere")
    elif how == "folder":
        bad.mkdir()
    elif how == "pipe":
        os.mkfifo(bad)
    restored = restore(tmp_path / "b", tmp_path / "new")
    assert len(restored.errors) == 1
    assert bad.name in restored.errors[0]
    assert len(list((tmp_path / "new" / "images").rglob("*.png"))) == 2


@pytest.mark.parametrize("name", ["catalog.db", "SHA256SUMS", "manifest.json"])
@pytest.mark.parametrize("how", ["changed", "missing", "link"])
def test_a_damaged_version_of_a_folder_is_refused(top, tmp_path, name, how):
    shutil.copytree(top / "folder", tmp_path / "b")
    bad = next((tmp_path / "b" / "versions").glob(f"*/{name}"))
    if how == "changed":
        content = bytearray(bad.read_bytes())
        content[len(content) // 2] ^= 1
        bad.write_bytes(content)
    else:
        bad.rename(tmp_path / "elsewhere")
        if how == "link":
            bad.symlink_to(tmp_path / "elsewhere")
    refused(tmp_path / "b", tmp_path / "new")


def test_a_folder_that_leads_out_of_a_backup_is_not_read(top, tmp_path):
    shutil.copytree(top / "folder", tmp_path / "b")
    (tmp_path / "b" / "images").rename(tmp_path / "elsewhere")
    (tmp_path / "b" / "images").symlink_to(tmp_path / "elsewhere")
    assert len(restore(tmp_path / "b", tmp_path / "new").errors) == 3  # and no thumbnail
    version = next((tmp_path / "b" / "versions").iterdir())
    lines = f"{'0' * 64}  ../../../../../etc/passwd\n".encode()
    (version / "SHA256SUMS").write_bytes(lines)
    held = json.loads((version / "manifest.json").read_text())
    held["sums"] = hashlib.sha256(lines).hexdigest()
    (version / "manifest.json").write_text(json.dumps(held))
    refused(tmp_path / "b", tmp_path / "other", "no backup holds")


def test_what_is_no_backup_is_named(top, tmp_path):
    with pytest.raises(ConfigurationError, match="There is no backup"):
        restore(tmp_path / "none.tar", tmp_path / "new")
    with pytest.raises(BackupError, match="holds no backup"):
        restore(top / "data", tmp_path / "new")
    with pytest.raises(ConfigurationError, match="leave --at out"):
        restore(top / "b.tar", tmp_path / "new", at="20200101T000000000Z")
    photo = next((top / "photos").iterdir())
    with pytest.raises(BackupError):
        restore(photo, tmp_path / "new")


def test_only_an_empty_folder_or_a_new_one_is_taken(top, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "mount").mkdir()
    (tmp_path / "mount" / "lost+found").mkdir()
    for folder, why in [(tmp_path / "file", "is a file"), (tmp_path / "full", "mine.txt is in it")]:
        with pytest.raises(ConfigurationError, match=why):
            restore(top / "b.tar", folder)
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"
    restore(top / "b.tar", tmp_path / "mount")
    restore(top / "b.tar", tmp_path / "deep" / "er")
    assert same(tmp_path / "mount", top)
    with Client(top / "data", model="color"), pytest.raises(LookalikeError):
        restore(top / "b.tar", top / "data")
