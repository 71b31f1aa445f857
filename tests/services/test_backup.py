"""Backups: what is in them, what a folder keeps, and that a restored folder answers the same."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from lookalike import Client
from lookalike.errors import (
    BackupError,
    ConfigurationError,
    ConflictError,
    DataFolderError,
    StorageFullError,
)
from lookalike.files.artifacts import save_artifact
from lookalike.files.data_folder import is_ours
from lookalike.files.disk import LocalFiles
from lookalike.progress import Progress, TaskEndedError
from lookalike.records import ModelSpec
from lookalike.services.backup_format import MANIFEST
from tests.services.backups import FORMS, answers, backup, fill, restore


@pytest.fixture
def data(tmp_path: Path) -> Path:
    fill(tmp_path / "data", 1, 2, 3, 4)
    fill(tmp_path / "data", 3, 5, collection="others")
    return tmp_path / "data"


@pytest.mark.parametrize("form", FORMS)
def test_a_restored_folder_answers_the_same(data, tmp_path, form):
    made = backup(data, tmp_path / form)
    assert (made.collections, made.originals) == ({"default": 4, "others": 2}, 5)
    restored = restore(tmp_path / form, tmp_path / "new")
    assert restored == made
    with Client(tmp_path / "new", model="color", read_only=True) as client:
        assert client.check().findings == []  # before anything could make thumbnails again
    assert answers(tmp_path / "new") == answers(data)
    assert is_ours(tmp_path / "new")
    fill(tmp_path / "new", 6)  # it can be written to
    with Client(tmp_path / "new", model="color") as client:
        assert client.search(tmp_path / "photos" / "6.png").matches[0].metadata == {"n": "6"}


def test_a_tar_that_was_unpacked_is_a_backup_too(data, tmp_path):
    backup(data, tmp_path / "b.tar")
    with tarfile.open(tmp_path / "b.tar") as tar:
        assert tar.getnames()[0] == "backup.json"
        assert tar.getnames()[-2:] == ["SHA256SUMS", "manifest.json"]
        tar.extractall(tmp_path / "unpacked", filter="data")
    restore(tmp_path / "unpacked", tmp_path / "new")
    assert answers(tmp_path / "new") == answers(data)


def test_the_list_is_one_that_sha256sum_checks(data, tmp_path):
    backup(data, tmp_path / "b.tar")
    shutil.unpack_archive(tmp_path / "b.tar", tmp_path / "unpacked", filter="data")
    import hashlib

    lines = (tmp_path / "unpacked" / "SHA256SUMS").read_text().splitlines()
    for line in lines:
        digest, name = line.split("  ")
        content = (tmp_path / "unpacked" / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest
    assert len(lines) == 11


def test_a_second_backup_copies_only_what_is_new(data, tmp_path):
    first = backup(data, tmp_path / "b")
    before = {path: path.stat() for path in (tmp_path / "b" / "images").rglob("*.png")}
    fill(data, 7)
    second = backup(data, tmp_path / "b")
    after = {path: path.stat() for path in (tmp_path / "b" / "images").rglob("*.png")}
    assert len(after) == len(before) + 1
    assert all((after[path].st_ino, after[path].st_mtime_ns) == (was.st_ino, was.st_mtime_ns)
               for path, was in before.items())  # fmt: skip
    assert first.version != second.version
    restore(tmp_path / "b", tmp_path / "new")
    assert answers(tmp_path / "new") == answers(data)
    restore(tmp_path / "b", tmp_path / "old", at=first.version)
    with Client(tmp_path / "old", model="color") as client:
        assert {one.metadata["n"] for one in client.list()} == {"1", "2", "3", "4"}
    with pytest.raises(ConfigurationError, match=f"it has {first.version}, {second.version}"):
        restore(tmp_path / "b", tmp_path / "none", at="20200101T000000000Z")


def test_old_versions_go_with_the_files_that_only_they_name(data, tmp_path):
    backup(data, tmp_path / "b", keep=2)
    with Client(data, model="color") as client:
        ids = {one.metadata["n"]: one.id for one in client.list()}
        client.delete(ids["1"])
        client.delete(ids["3"])  # which is in the other collection, too
    pool = tmp_path / "b" / "images"
    for _ in range(2):
        assert len(list(pool.rglob("*.png"))) == 5
        backup(data, tmp_path / "b", keep=2)
    assert len(list((tmp_path / "b" / "versions").iterdir())) == 2
    assert len(list(pool.rglob("*.png"))) == 4
    restore(tmp_path / "b", tmp_path / "new")
    assert answers(tmp_path / "new") == answers(data)


def test_a_thumbnail_that_was_made_again_spoils_no_older_version(data, tmp_path):
    first = backup(data, tmp_path / "b")
    thumbnail = next((data / "thumbnails").rglob("*.jpg"))
    thumbnail.write_bytes(thumbnail.read_bytes() + b"another")
    backup(data, tmp_path / "b")
    for version in (first.version, None):
        assert restore(tmp_path / "b", tmp_path / f"new-{version}", at=version).errors == []


def test_an_emptied_data_folder_takes_no_old_version_away(data, tmp_path):
    backup(data, tmp_path / "b", keep=1)
    with Client(data, model="color") as client:
        client.drop("default")
    last = backup(data, tmp_path / "b", keep=1)
    assert "was kept" in last.errors[0]
    assert len(list((tmp_path / "b" / "versions").iterdir())) == 2
    fill(data, 1, 2, 3, 4)
    backup(data, tmp_path / "b", keep=1)
    assert len(list((tmp_path / "b" / "versions").iterdir())) == 1


@pytest.mark.parametrize("originals", ["none", "reference"])
@pytest.mark.parametrize("form", ["b.tar", "folder"])
def test_pictures_without_an_original_keep_their_thumbnails(tmp_path, form, originals):
    fill(tmp_path / "data", 1, 2, 3, originals=originals)
    for _ in range(2):
        made = backup(tmp_path / "data", tmp_path / form)
    assert made.originals == 0
    assert (made.missing, made.in_place) == ((3, 0) if originals == "none" else (0, 3))
    before = answers(tmp_path / "data")
    shutil.rmtree(tmp_path / "photos")
    restore(tmp_path / form, tmp_path / "new")
    assert answers(tmp_path / "new") == before


def test_keys_are_in_it_only_if_asked(data, tmp_path):
    (data / "admin.key").write_text("a secret key\n")
    for form in FORMS:
        for keys in (False, True):
            made = backup(data, tmp_path / f"{keys}-{form}", keys=keys)
            assert made.keys is keys
            restore(tmp_path / f"{keys}-{form}", new := tmp_path / f"new-{keys}-{form}")
            assert (new / "admin.key").exists() is keys
            if keys:
                assert (new / "admin.key").read_text() == "a secret key\n"
                assert (new / "admin.key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "True-b.tar").stat().st_mode & 0o777 == 0o600


def test_heads_and_int8_networks_are_in_it_and_what_can_be_made_again_is_not(data, tmp_path):
    (data / "heads").mkdir()
    (data / "heads" / f"{'a' * 64}.safetensors").write_bytes(b"head")
    (data / "heads" / f"{'a' * 64}.json").write_bytes(b"{}")
    for int8 in (True, False):
        spec = ModelSpec(model="x", weights="w", weights_sha256="0" * 64, dim=4, int8=int8)
        facts = {"origin": {}, "spec": spec.to_dict(), "openvino": "1"}

        def write(folder: Path) -> None:
            (folder / "network.xml").write_text("<xml/>")
            (folder / "network.bin").write_bytes(b"weights")

        home = data / "models" / spec.digest
        save_artifact(home, kind="network", version=1, facts=facts, write=write)
    (data / "imports").mkdir()
    (data / "imports" / "x.archive").write_bytes(b"archive")
    for form in ("b.tar", "folder"):
        backup(data, tmp_path / form)
        restore(tmp_path / form, new := tmp_path / f"new-{form}")
        assert sorted(path.name for path in (new / "heads").iterdir()) == [
            f"{'a' * 64}.json",
            f"{'a' * 64}.safetensors",
        ]
        (kept,) = (new / "models").iterdir()
        assert json.loads((kept / MANIFEST).read_text())["facts"]["spec"]["int8"] is True
        assert len(list(kept.rglob("network.*"))) == 2
        names = {path.name for path in new.iterdir()} - {"lock", "lock.owner", ".lookalike"}
        assert names == {"catalog.db", "heads", "models", "images", "thumbnails"}


class Told(Progress):
    """Notes errors, and calls a function before each step."""

    def __init__(self, step: Any = lambda: None) -> None:
        super().__init__()
        self.errors: list[str] = []
        self.check = step  # type: ignore[method-assign]

    def error(self, text: str) -> None:
        self.errors.append(text)


@pytest.mark.parametrize("form", ["b.tar", "folder"])
def test_what_a_sweep_takes_meanwhile_is_still_in_it(data, tmp_path, form):
    before, files, steps = answers(data), LocalFiles(data), 0
    digests = {path.stem for path in (data / "images").rglob("*.png")}

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps == 4:  # the catalog is copied
            files.set_aside(digests, older_than_s=-60)
            assert not list((data / "images").rglob("*.png"))

    made = backup(data, tmp_path / form, progress=Told(step))
    assert (made.originals, made.missing, made.damaged) == (5, 0, 0)
    restore(tmp_path / form, tmp_path / "new")
    assert answers(tmp_path / "new") == before


@pytest.mark.parametrize("form", ["b.tar", "folder"])
def test_a_damaged_original_is_told_and_left_out(data, tmp_path, form):
    (bad, *_) = sorted((data / "images").rglob("*.png"))
    size = bad.stat().st_size
    bad.write_bytes(b"x" * size)
    told = Told()
    made = backup(data, tmp_path / form, progress=told)
    assert (made.damaged, made.originals) == (1, 4)
    assert bad.name in told.errors[0]
    assert "1 original left out because of damage" in str(made)
    restored = restore(tmp_path / form, tmp_path / "new")
    assert restored.damaged == 1  # as the manifest says
    assert len(list((tmp_path / "new" / "images").rglob("*.png"))) == 4


@pytest.mark.parametrize("form", ["b.tar", "folder"])
def test_an_end_in_the_middle_leaves_what_was_there(data, tmp_path, form):
    backup(data, tmp_path / form)
    fill(data, 8)
    left = 7

    def step() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise TaskEndedError

    with pytest.raises(TaskEndedError):
        backup(data, tmp_path / form, progress=Told(step))
    assert not list(tmp_path.glob(".lookalike-backup-*"))
    restore(tmp_path / form, tmp_path / "new")
    with Client(tmp_path / "new", model="color") as client:
        assert len(list(client.list())) == 4


def test_a_half_version_is_never_taken_and_goes_with_the_next(data, tmp_path):
    made = backup(data, tmp_path / "b")
    half = tmp_path / "b" / "versions" / "20990101T000000000Z"
    half.mkdir()
    (half / "catalog.db").write_bytes(b"half")
    assert restore(tmp_path / "b", tmp_path / "new").version == made.version
    backup(data, tmp_path / "b")
    assert not half.exists()
    shutil.rmtree(tmp_path / "b" / "versions")
    half.mkdir(parents=True)
    with pytest.raises(BackupError, match="only one that is half"):
        restore(tmp_path / "b", tmp_path / "other")


def test_what_a_killed_backup_left_goes_with_the_next(data, tmp_path):
    left = tmp_path / ".lookalike-backup-abc"
    left.mkdir()
    (left / "lock").touch()
    (left / "catalog.db").write_bytes(b"half")
    backup(data, tmp_path / "b.tar")
    assert not left.exists()


def test_two_backups_into_one_folder_do_not_mix(data, tmp_path):
    refused = []

    def again() -> None:
        with pytest.raises(ConflictError, match="under way"):
            backup(data, tmp_path / "b")
        refused.append(True)

    backup(data, tmp_path / "b", progress=Told(again))
    assert refused


def test_a_place_that_cannot_be_used_is_refused(data, tmp_path):
    (tmp_path / "photos" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "x.tar").mkdir()
    for to, why in [
        (tmp_path / "photos", "is not empty, and no backup"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "x.tar", "is a folder"),
        (data / "backup", "lies in the data folder"),
        (data, "lies in the data folder"),
    ]:
        with pytest.raises(ConfigurationError, match=why):
            backup(data, to)
    assert (tmp_path / "photos" / "notes.txt").read_text() == "mine"


def test_a_damaged_catalog_is_named_and_spoils_no_backup(data, tmp_path):
    made = backup(data, tmp_path / "b")
    content = bytearray((data / "catalog.db").read_bytes())
    content[4096 * 3 : 4096 * 9] = bytes(4096 * 6)
    (data / "catalog.db").write_bytes(content)
    for path in data.glob("catalog.db-*"):
        path.unlink()
    with pytest.raises((BackupError, DataFolderError), match="damaged"):
        backup(data, tmp_path / "b", keep=1)
    assert restore(tmp_path / "b", tmp_path / "new").version == made.version


@pytest.mark.parametrize("form", ["b.tar", "folder"])
def test_room_is_checked_before_anything_is_copied(data, tmp_path, form, monkeypatch):
    backup(data, tmp_path / form)
    fill(data, 9)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000_100))

    def there() -> list[Path]:
        return sorted(path for path in tmp_path.rglob("*") if "catalog.db-" not in path.name)

    before = there()
    with pytest.raises(StorageFullError, match="make room there"):
        backup(data, tmp_path / form)
    assert there() == before


def test_a_data_folder_into_which_one_is_restored_is_never_served(data, tmp_path):
    backup(data, tmp_path / "b.tar")
    new = tmp_path / "new"
    restore(tmp_path / "b.tar", new)
    (new / ".restoring").mkdir()
    for read_only in (False, True):
        with pytest.raises(DataFolderError, match="half of a backup"):
            Client(new, model="color", read_only=read_only)
    for name in ("catalog.db", "images", "thumbnails"):
        (new / name).rename(new / ".restoring" / name)
    restore(tmp_path / "b.tar", new)  # takes the place of the half one
    assert answers(new) == answers(data)
