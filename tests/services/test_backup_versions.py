"""What a backup folder forgets, and what it never does."""

from __future__ import annotations

import shutil
import tarfile
import threading
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from filelock import FileLock

from lookalike import Client, HttpClient
from lookalike.errors import BackupError, ConfigurationError
from lookalike.files.data_folder import lock_folder
from lookalike.files.disk import LocalFiles
from lookalike.progress import Progress
from lookalike.services import backup as backups
from lookalike.services import restoring
from lookalike.services.backup_format import versions_of
from tests.services.backups import answers, backup, fill, restore


@pytest.fixture
def data(tmp_path: Path) -> Path:
    fill(tmp_path / "data", *range(1, 9))
    return tmp_path / "data"


@pytest.mark.parametrize("name", ["Thumbs.db", "desktop.ini", "@eaDir", "zz.jpg"])
def test_files_that_a_file_server_leaves_between_originals_harm_none(data, tmp_path, name):
    backup(data, tmp_path / "b", keep=1)
    for folder in (tmp_path / "b" / "images").glob("??/??"):
        (folder / name).mkdir() if name == "@eaDir" else (folder / name).write_bytes(b"x")
    backup(data, tmp_path / "b", keep=1)
    assert restore(tmp_path / "b", tmp_path / "new").errors == []
    assert answers(tmp_path / "new") == answers(data)


def test_an_emptied_data_folder_never_takes_the_last_good_version(data, tmp_path):
    good = backup(data, tmp_path / "b", keep=2)
    with Client(data, model="color") as client:
        client.drop("default")
    for _ in range(4):
        last = backup(data, tmp_path / "b", keep=2)
    assert f"Version {good.version} was kept" in last.errors[0]
    assert len(versions_of(tmp_path / "b")) == 3
    assert restore(tmp_path / "b", tmp_path / "new", at=good.version).originals == 8


def test_originals_that_are_away_never_take_those_of_the_backup(data, tmp_path):
    good = backup(data, tmp_path / "b", keep=2)
    shutil.rmtree(data / "images")  # a disk that is not mounted
    for _ in range(4):
        last = backup(data, tmp_path / "b", keep=2)
    assert f"Version {good.version} was kept" in last.errors[0]
    assert restore(tmp_path / "b", tmp_path / "new", at=good.version).errors == []


def test_a_clock_that_was_set_back_makes_no_version_the_older_one(data, tmp_path, monkeypatch):
    monkeypatch.setattr(backups, "utc_now", lambda: "2090-01-01T00:00:00.999Z")
    backup(data, tmp_path / "b", keep=1)
    monkeypatch.undo()
    fill(data, 20)
    last = backup(data, tmp_path / "b", keep=1)
    assert [one.name for one in versions_of(tmp_path / "b")] == [last.version]
    restore(tmp_path / "b", tmp_path / "new")
    assert answers(tmp_path / "new") == answers(data)


class Moving(Progress):
    """Moves all originals to the trash or back, before each file of the backup is read."""

    def __init__(self, data: Path) -> None:
        super().__init__()
        self.files, self.moved = LocalFiles(data), False
        self.digests = {path.stem for path in (data / "images").rglob("*.png")}

    def check(self) -> None:
        if self.moved:
            self.files.tidy(set, days=0)
        else:
            self.files.set_aside(self.digests, older_than_s=-60)
        self.moved = not self.moved


@pytest.mark.parametrize("form", ["b.tar", "folder"])
def test_what_a_sweep_moves_just_before_it_is_read_is_in_it(data, tmp_path, form):
    made = backup(data, tmp_path / form, progress=Moving(data))
    assert (made.originals, made.missing, made.errors) == (8, 0, [])


def test_a_file_that_is_no_backup_is_not_overwritten(data, tmp_path):
    photos = tmp_path / "photos.tar"
    with tarfile.open(photos, "w") as tar:
        tar.add(data.parent / "photos", "photos")
    before = photos.read_bytes()
    with pytest.raises(ConfigurationError, match="is no backup"):
        backup(data, photos)
    assert photos.read_bytes() == before
    photos.write_bytes(b"")
    for _ in range(2):
        assert backup(data, photos).originals == 8


def test_what_a_power_cut_spoiled_in_a_folder_is_copied_again(data, tmp_path):
    backup(data, tmp_path / "b")
    fill(data, 20)
    with Client(data, model="color") as client:
        (sha256,) = {one.sha256 for one in client.list() if one.metadata["n"] == "20"}
    place = f"images/{sha256[:2]}/{sha256[2:4]}/{sha256}.png"
    spoiled = tmp_path / "b" / place  # by a backup that did not come to its end
    spoiled.parent.mkdir(parents=True, exist_ok=True)
    spoiled.write_bytes(bytes((data / place).stat().st_size))
    backup(data, tmp_path / "b")
    assert restore(tmp_path / "b", tmp_path / "new").errors == []
    assert answers(tmp_path / "new") == answers(data)


def test_a_folder_that_is_filled_before_a_restore_owns_it_is_refused(data, tmp_path, monkeypatch):
    backup(data, tmp_path / "b.tar")

    def lock_later(folder: Path) -> FileLock:
        (folder / "catalog.db").write_bytes(b"of a service that ran meanwhile")
        return lock_folder(folder)

    monkeypatch.setattr(restoring, "lock_folder", lock_later)
    with pytest.raises(ConfigurationError, match="is not empty"):
        restore(tmp_path / "b.tar", tmp_path / "new")
    assert (tmp_path / "new" / "catalog.db").read_bytes() == b"of a service that ran meanwhile"


@pytest.mark.parametrize("form", ["b.tar", "b.tar.gz"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_download_that_a_proxy_cut_off_replaces_no_backup(data, tmp_path, form, whole):
    backup(data, tmp_path / form)
    before = (tmp_path / form).read_bytes()
    sent = before if whole else before[: len(before) // 2]

    class Proxy(BaseHTTPRequestHandler):  # of HTTP/1.0: the end of the connection ends the body
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.handle_request, daemon=True).start()
        with HttpClient(f"http://127.0.0.1:{proxy.server_port}") as client:
            expected = nullcontext() if whole else pytest.raises(BackupError, match="cut off")
            with expected:
                client.backup(tmp_path / form)
    assert (tmp_path / form).read_bytes() == before
