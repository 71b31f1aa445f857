"""Archives and server-side folders over HTTP, as jobs."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from lookalike.api import uploads
from lookalike.api.admission import Admission
from lookalike.config import Settings, parse_dirs
from lookalike.errors import StorageFullError
from lookalike.files.disk import LocalFiles
from lookalike.media.decoder import Lane
from lookalike.models.color import ColorEncoder
from lookalike.models.encoders import Encoders
from lookalike.services.feeds import ImportOptions
from lookalike.store.base import count_of
from lookalike.store.local.store import LocalStore
from scripts.samples import write_samples
from tests.api.conftest import ADMIN, Clients, picture, solid
from tests.api.test_jobs import finished
from tests.services.archive_maker import KINDS, write_archive
from tests.unreadable import refuse
from tests.waiting import PATIENCE_S, wait_for

IN_PAIRS = {"max_batch": 2, "threads": 1}
"""One decodes after the other, so that the batches that a gate lets pass are of the first ones."""


class Gate(ColorEncoder):
    """Lets `free` batches pass, and then waits until opened."""

    def __init__(self, free: int = 0) -> None:
        super().__init__()
        self.open = threading.Event()
        self.reached = threading.Event()
        self.free = free
        self.count = 0

    def encode(self, batch: Any) -> Any:
        self.free -= 1
        if self.free < 0:
            self.reached.set()
            assert self.open.wait(PATIENCE_S)
        self.count += len(batch)
        return super().encode(batch)


def archive(folder: Path, kind: str = "zip", *, count: int = 6, name: str = "photos") -> Path:
    """An archive of drawn pictures in two folders, with files that are none."""
    files = [(f"{'cat' if n % 2 else 'dog'}/{n}.png", picture("mug", n)) for n in range(count)]
    rest = [("__MACOSX/cat/._1.png", b"x"), (".DS_Store", b"x"), ("notes.txt", b"x")]
    return write_archive(folder / f"{name}.{kind}", files + rest)


def send(client: TestClient, path: Path, **fields: Any) -> Any:
    with path.open("rb") as file:
        return client.post(
            "/index/archive", headers=ADMIN, files={"file": (path.name, file)}, data=fields
        )


def send_folder(client: TestClient, path: Path | str, **fields: Any) -> Any:
    return client.post("/index/folder", headers=ADMIN, json={"path": str(path), **fields})


def done(client: TestClient, answer: Any) -> dict[str, Any]:
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == f"/jobs/{answer.json()['id']}"
    return finished(client, answer.headers["location"])


def stored(client: TestClient, collection: str = "default") -> dict[str, dict[str, Any]]:
    found = client.get("/images", params={"collection": collection, "limit": 1000}).json()
    return {image["filename"]: image for image in found.get("images", [])}


def left(settings: Settings) -> list[str]:
    folder = settings.data_dir / "imports"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_is_indexed(
    client: TestClient, settings: Settings, tmp_path: Path, kind: str
) -> None:
    path = archive(tmp_path, kind)
    job = done(
        client, send(client, path, folder_field="label", metadata='{"year": 2026}', collection="c")
    )
    assert (job["state"], job["done"], job["total"], job["errors"]) == ("done", 6, 6, 0), job
    assert job["kind"] == "index_archive"
    passed = "passed over: 1 hidden, 1 other file, 1 system"
    assert job["message"] == f"photos.{kind}: 6 created; {passed}"
    images = stored(client, "c")
    assert set(images) == {f"{n}.png" for n in range(6)}
    assert images["1.png"]["metadata"] == {"label": "cat", "year": 2026}
    assert images["1.png"]["id"] == images["1.png"]["sha256"][:16]
    found = client.post("/search", files={"file": picture("mug", 3)}, data={"collection": "c"})
    assert found.json()["matches"][0]["filename"] == "3.png"
    kept = client.get(found.json()["matches"][0]["image_url"])
    assert kept.content == picture("mug", 3)
    again = done(client, send(client, path, collection="c", on_conflict="error"))
    assert again["message"] == f"photos.{kind}: 6 unchanged; {passed}"
    wait_for(lambda: left(settings) == [])


def test_pictures_at_the_top_are_in_a_folder_of_the_archives_name(
    client: TestClient, tmp_path: Path
) -> None:
    path = write_archive(tmp_path / "cats.tar.gz", [("a.png", picture())])
    done(client, send(client, path, folder_field="label"))
    assert stored(client)["a.png"]["metadata"] == {"label": "cats"}


def test_an_archives_name_is_a_label_as_it_is_and_a_message_in_ascii(
    client: TestClient, tmp_path: Path
) -> None:
    path = write_archive(tmp_path / "фото ü.zip", [("a.png", picture())])
    job = done(client, send(client, path, folder_field="label"))
    assert job["parameters"]["filename"] == "фото ü.zip"
    assert job["message"] == "\\u0444\\u043e\\u0442\\u043e \\xfc.zip: 1 created"
    assert stored(client)["a.png"]["metadata"] == {"label": "фото ü"}


def test_an_archive_needs_no_name(client: TestClient, settings: Settings, tmp_path: Path) -> None:
    services = client.app.state.parts.services  # type: ignore[attr-defined]
    spool = services.imports.spool(0)
    write_archive(tmp_path / "x.zip", [("a.png", picture())]).replace(spool)
    job = services.imports.begin_archive(spool, "", ImportOptions(), services.jobs).job
    ended = finished(client, f"/jobs/{job.id}")
    assert (ended["state"], ended["message"]) == ("done", "the archive: 1 created")


def test_files_that_fail_are_named_and_harm_no_other(client: TestClient, tmp_path: Path) -> None:
    bad = [(f"bad/é\x1b{n}.png", b"no picture") for n in range(30)]
    path = write_archive(tmp_path / "mixed.zip", [*bad, ("../up.png", b""), ("ok.png", picture())])
    job = done(client, send(client, path))
    assert (job["state"], job["done"], job["errors"]) == ("done", 32, 31)
    assert len(job["error_texts"]) == 20
    assert job["error_texts"][0].startswith("bad/\\xe9\\x1b0.png: The file is not a picture")
    assert all(text.isascii() and text.isprintable() for text in job["error_texts"])
    assert job["message"] == "mixed.zip: 31 failed, 1 created"
    assert set(stored(client)) == {"ok.png"}


def test_a_truncated_archive_adds_nothing(
    client: TestClient, settings: Settings, tmp_path: Path
) -> None:
    path = archive(tmp_path, "tar")
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"cat/5.png") + 300])
    job = done(client, send(client, path))
    assert (job["state"], job["done"], job["total"]) == ("failed", 0, None)
    assert "truncated" in job["message"]
    assert client.get("/collections").json()["collections"] == []
    wait_for(lambda: left(settings) == [])


def test_a_bomb_ends_the_job_and_what_came_before_stays(
    clients: Clients, settings: Settings, tmp_path: Path
) -> None:
    client = clients(settings.model_copy(update={"max_archive_bytes": 12_500}))
    files = [(f"{n}.bmp", solid((n, n, n), (64, 64), "BMP")) for n in range(40)]
    path = write_archive(tmp_path / "bomb.zip", files)
    allowed = 4 * 12_500 // len(files[0][1])
    job = done(client, send(client, path))
    assert (job["state"], job["done"]) == ("failed", allowed), job
    assert f"(before that: {allowed} created)" in job["message"]
    assert len(stored(client)) == allowed
    wait_for(lambda: left(settings) == [])


def test_what_is_refused_before_a_job_is_made(
    client: TestClient, settings: Settings, tmp_path: Path
) -> None:
    path = archive(tmp_path)
    text = tmp_path / "notes.zip"
    text.write_text("no archive")
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(archive(tmp_path, "tar.gz").read_bytes()[:40])

    def refused(status: int, code: str, at: Path = path, **fields: Any) -> None:
        answer = send(client, at, **fields)
        assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text

    refused(415, "not_an_archive", text)
    refused(422, "invalid_archive", cut)
    refused(422, "invalid_metadata", metadata="[{}]")
    refused(422, "invalid_metadata", metadata="{")
    refused(422, "invalid_metadata", folder_field="a\0b")
    refused(422, "invalid_parameter", on_conflict="never")
    refused(422, "invalid_parameter", collection="No")
    refused(422, "invalid_parameter", label="cat")
    none = client.post("/index/archive", headers=ADMIN, data={"collection": "c"})
    assert none.status_code in {400, 422}
    assert client.post("/index/archive", files={"file": b"x"}).status_code == 401
    assert client.get("/jobs", headers=ADMIN).json()["jobs"] == []
    wait_for(lambda: left(settings) == [])


def test_limits(clients: Clients, settings: Settings, tmp_path: Path) -> None:
    client = clients(settings.model_copy(update={"max_archive_bytes": 5_000}))
    path = tmp_path / "large.zip"
    path.write_bytes(bytes(5_001))
    answer = send(client, path)
    assert (answer.status_code, answer.json()["code"]) == (413, "archive_too_large")
    assert "LOOKALIKE_MAX_ARCHIVE_BYTES" in answer.json()["detail"]
    path.write_bytes(bytes(1_000_000))
    assert send(client, path).json()["code"] == "archive_too_large"
    wait_for(lambda: left(settings) == [])


def test_a_full_disk(
    client: TestClient, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive(tmp_path)

    class Full:
        free = 0

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: Full)
        answer = send(client, path)
        assert (answer.status_code, answer.json()["code"]) == (507, "storage_full")

    class NoRoom:
        def __init__(self, path: Path) -> None:
            self._file = path.open("x+b")

        def write(self, _: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            self._file.close()

    with monkeypatch.context() as patch:
        limits = uploads.UploadLimits
        patch.setattr(limits, "spool", lambda self: NoRoom(self.path))
        answer = send(client, path)
        assert (answer.status_code, answer.json()["code"]) == (507, "storage_full")
    wait_for(lambda: left(settings) == [])


def test_a_disk_that_fills_up_ends_the_job_and_says_what_was_added(
    clients: Clients, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = clients(settings.model_copy(update={"max_batch": 2}))
    puts = count()
    put = LocalFiles.put

    def filling(self: LocalFiles, *words: Any) -> None:
        if next(puts) >= 4:
            raise StorageFullError("Cannot store the original: the disk is full; make room")
        put(self, *words)

    path = archive(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(LocalFiles, "put", filling)
        job = done(client, send(client, path))
    assert (job["state"], job["done"]) == ("failed", 4)
    assert job["message"].endswith(
        "the disk is full; make room (before that: 4 created); then send the archive again; "
        "what is stored is skipped"
    )
    assert len(stored(client)) == 4
    assert ": 4 unchanged, 2 created; passed over" in done(client, send(client, path))["message"]
    wait_for(lambda: left(settings) == [])


def test_what_was_committed_beside_the_error_that_ends_the_job_is_counted(
    clients: Clients, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = clients(settings.model_copy(update={"max_batch": 4}))
    full, put = hashlib.sha256(picture("mug", 1)).hexdigest(), LocalFiles.put

    def filling(self: LocalFiles, source: Any, sha256: str, media_type: str) -> None:
        if sha256 == full:
            raise StorageFullError("Cannot store the original: the disk is full; make room")
        put(self, source, sha256, media_type)

    monkeypatch.setattr(LocalFiles, "put", filling)
    job = done(client, send(client, archive(tmp_path, count=4)))
    assert (job["state"], job["done"]) == ("failed", 3)
    assert "(before that: 3 created)" in job["message"]
    assert len(stored(client)) == 3


class Hungry(ColorEncoder):
    """Needs too much memory for one picture."""

    def prepare(self, item: Any) -> Any:
        if item.size == (1, 9):
            raise MemoryError
        return super().prepare(item)


def test_a_picture_that_needs_too_much_memory_is_named(
    clients: Clients, settings: Settings, tmp_path: Path
) -> None:
    client = clients(settings, encoders=Encoders(Hungry(), max_batch=2))
    files = [("a.png", picture()), ("huge.png", solid((1, 2, 3), (1, 9)))]
    job = done(client, send(client, write_archive(tmp_path / "photos.zip", files)))
    assert job["state"] == "failed"
    assert job["message"].startswith("huge.png: There is too little memory")


def test_archives_on_their_way_leave_the_places_of_searches(
    client: TestClient, tmp_path: Path
) -> None:
    path = archive(tmp_path)
    done(client, send(client, path))
    admission: Admission = client.app.state.parts.archive_admission  # type: ignore[attr-defined]
    with ExitStack() as on_their_way:
        for _ in range(uploads.ARCHIVES_AT_ONCE):
            on_their_way.enter_context(admission.place())
        refused = send(client, path)
        assert (refused.status_code, refused.json()["code"]) == (503, "queue_full")
        assert "archives" in refused.json()["detail"]
        assert client.post("/search", files={"file": picture("mug", 1)}).status_code == 200
    done(client, send(client, path))


def test_slow_pictures_of_others_do_not_end_an_import(client: TestClient, tmp_path: Path) -> None:
    app: Any = client.app
    decoder = app.state.parts.services.indexing.decoder
    decoder._slow = Lane(1, most_waiting=0)
    with decoder._slow.place():
        files = [("slow.png", solid((9, 99, 9), (2100, 1700))), ("b.png", picture())]
        answer = send(client, write_archive(tmp_path / "photos.zip", files))
        wait_for(
            lambda: (
                decoder._slow._waiting
                or "failed" in client.get(answer.headers["location"], headers=ADMIN).json()["state"]
            )
        )
    assert done(client, answer)["state"] == "done"
    assert set(stored(client)) == {"slow.png", "b.png"}


def test_another_model_is_said_at_once(
    clients: Clients, settings: Settings, tmp_path: Path
) -> None:
    first = clients(settings)
    done(first, send(first, archive(tmp_path)))
    clients.stop(first)
    second = clients(settings, encoders=Encoders(ColorEncoder(grid=2)))
    answer = send(second, archive(tmp_path))
    assert (answer.status_code, answer.json()["code"]) == (409, "passport_mismatch")
    wait_for(lambda: left(settings) == [])


def test_a_restart_goes_on_where_it_was(
    clients: Clients, settings: Settings, tmp_path: Path
) -> None:
    quick = settings.model_copy(update=IN_PAIRS)
    gate = Gate(free=3)
    first = clients(quick, encoders=Encoders(gate, max_batch=2))
    files = [(f"{n}.png", picture("mug", n)) for n in range(12)]
    files.insert(1, ("bad.png", b"no picture"))
    path = write_archive(tmp_path / "photos.tar", files)
    answer = send(first, path)
    assert gate.reached.wait(PATIENCE_S)
    address = answer.headers["location"]
    wait_for(lambda: first.get(address, headers=ADMIN).json()["done"] >= 2)
    gate.open.set()
    clients.stop(first)
    store = LocalStore(settings.data_dir, read_only=True)
    held = count_of(store, "default")
    store.close()
    assert 0 < held < 12, "stopped too late to be a test"
    counting = Gate(free=1000)
    second = clients(quick, encoders=Encoders(counting, max_batch=2))
    job = finished(second, answer.headers["location"])
    assert (job["state"], job["done"], job["total"], job["errors"]) == ("done", 13, 13, 1), job
    assert job["error_texts"][0].startswith("bad.png: ")
    assert job["message"] == "photos.tar: 12 created, 1 failed"
    assert counting.count == 12 - held, "no picture twice"
    assert len(stored(second)) == 12
    wait_for(lambda: left(settings) == [])


def test_a_restart_with_another_model_says_what_to_do(
    clients: Clients, settings: Settings, tmp_path: Path
) -> None:
    quick = settings.model_copy(update=IN_PAIRS)
    gate = Gate(free=3)
    first = clients(quick, encoders=Encoders(gate, max_batch=2))
    address = send(first, archive(tmp_path, count=12)).headers["location"]
    assert gate.reached.wait(PATIENCE_S)
    wait_for(lambda: first.get(address, headers=ADMIN).json()["done"] >= 2)
    gate.open.set()
    clients.stop(first)
    second = clients(quick, encoders=Encoders(ColorEncoder(grid=2)))
    job = finished(second, address)
    assert job["state"] == "failed"
    assert job["message"].endswith("; then send the archive again; what is stored is skipped")
    wait_for(lambda: left(settings) == [])


def test_what_was_deleted_meanwhile_stays_deleted(
    clients: Clients, settings: Settings, tmp_path: Path
) -> None:
    quick = settings.model_copy(update=IN_PAIRS)
    gate = Gate(free=3)
    first = clients(quick, encoders=Encoders(gate, max_batch=2))
    files = [(f"{n}.png", picture("mug", n)) for n in range(12)]
    answer = send(first, write_archive(tmp_path / "photos.zip", files))
    assert gate.reached.wait(PATIENCE_S)
    address = answer.headers["location"]
    wait_for(lambda: first.get(address, headers=ADMIN).json()["done"] >= 2)
    first.delete(f"/images/{stored(first)['0.png']['id']}", headers=ADMIN)
    gate.open.set()
    clients.stop(first)
    second = clients(quick)
    job = finished(second, answer.headers["location"])
    assert (job["state"], job["done"]) == ("done", 12)
    assert set(stored(second)) == {f"{n}.png" for n in range(1, 12)}


def test_cancel_while_running_and_while_queued(
    clients: Clients, settings: Settings, tmp_path: Path
) -> None:
    quick = settings.model_copy(update=IN_PAIRS)
    gate = Gate(free=1)
    client = clients(quick, encoders=Encoders(gate, max_batch=2))
    running = send(client, archive(tmp_path, count=12)).json()["id"]
    queued = send(client, archive(tmp_path, "tar", count=12)).json()["id"]
    assert gate.reached.wait(PATIENCE_S)
    assert len([name for name in left(settings) if name.endswith(".archive")]) == 2
    answer = client.post(f"/jobs/{queued}/cancel", headers=ADMIN)
    assert answer.json()["state"] == "canceled"
    assert len([name for name in left(settings) if name.endswith(".archive")]) == 1
    client.post(f"/jobs/{running}/cancel", headers=ADMIN)
    gate.open.set()
    assert finished(client, f"/jobs/{running}")["state"] == "canceled"
    wait_for(lambda: left(settings) == [])
    assert len(stored(client)) < 12


def test_a_collection_that_is_deleted_stays_deleted(
    clients: Clients, settings: Settings, tmp_path: Path
) -> None:
    quick = settings.model_copy(update=IN_PAIRS)
    gate = Gate(free=2)
    client = clients(quick, encoders=Encoders(gate, max_batch=2))
    path = archive(tmp_path, count=12)
    running, queued, other = (
        send(client, path, collection=name, on_conflict=what).json()["id"]
        for name, what in (("c", "replace"), ("c", "skip"), ("other", "replace"))
    )
    assert client.delete("/collections/none", headers=ADMIN).status_code == 404
    wait_for(lambda: client.get(f"/jobs/{running}", headers=ADMIN).json()["done"] >= 2)
    assert gate.reached.wait(PATIENCE_S)
    assert client.delete("/collections/c", headers=ADMIN).status_code == 204
    assert client.get(f"/jobs/{queued}", headers=ADMIN).json()["state"] == "canceled"
    gate.open.set()
    for job_id in (running, queued):
        job = finished(client, f"/jobs/{job_id}")
        assert (job["state"], job["message"]) == (
            "canceled",
            "Canceled by the deletion of the collection 'c'",
        )
    assert finished(client, f"/jobs/{other}")["state"] == "done"
    found = client.get("/collections").json()["collections"]
    assert [one["name"] for one in found] == ["other"]
    wait_for(lambda: left(settings) == [])


def test_strangers_are_swept_at_start(clients: Clients, settings: Settings) -> None:
    folder = settings.data_dir / "imports"
    folder.mkdir(parents=True)
    for name in ("a.part", "b.archive", "b.journal"):
        (folder / name).write_bytes(b"x")
    (folder / "lost+found").mkdir()
    clients(settings)
    wait_for(lambda: left(settings) == ["lost+found"])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "mnt" / "photos"
    write_samples(folder, classes=["mug", "fish"], instances=2, views=2, size=(96, 72))
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "h.jpg").write_bytes(picture())
    (folder / "notes.txt").write_text("x")
    return folder


@pytest.fixture
def allowing(clients: Clients, settings: Settings, photos: Path) -> TestClient:
    return clients(settings.model_copy(update={"import_dirs": f"/nowhere,{photos.parent}"}))


def test_a_folder_of_the_server(allowing: TestClient, photos: Path) -> None:
    answer = send_folder(allowing, photos, folder_field="label", metadata={"year": 2026})
    job = done(allowing, answer)
    assert (job["state"], job["done"], job["total"], job["errors"]) == ("done", 8, 8, 0), job
    passed = "passed over: 1 hidden, 1 other file"
    assert job["message"] == f"{photos}: 8 created; {passed}"
    assert stored(allowing)["fish-01-1.jpg"]["metadata"] == {"label": "fish", "year": 2026}
    again = done(allowing, send_folder(allowing, photos, on_conflict="skip"))
    assert again["message"].endswith(f"8 skipped; {passed}")


def test_links_must_not_lead_out(allowing: TestClient, photos: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(picture("car"))
    (photos / "out.jpg").symlink_to(secret)
    (photos / "in.jpg").symlink_to(photos / "mug" / "mug-00-0.jpg")
    (photos / "loop.jpg").symlink_to(photos / "loop.jpg")
    (photos.parent / "away").symlink_to(tmp_path)
    job = done(allowing, send_folder(allowing, photos))
    assert (job["done"], job["errors"]) == (10, 2), job
    assert "1 link" in job["message"], "in.jpg is indexed where it leads"
    assert {text.split(":")[0] for text in job["error_texts"]} == {"out.jpg", "loop.jpg"}
    assert "secret" not in str(job)
    for path in (photos.parent / "away", photos / "..", photos / ".." / "..", tmp_path):
        answer = send_folder(allowing, path)
        refused = (answer.status_code, answer.json().get("code"))
        expected = (202, None) if path == photos / ".." else (422, "path_not_allowed")
        assert refused == expected, path


def test_folders_that_cannot_be(allowing: TestClient, photos: Path) -> None:
    for body, status, code in (
        ({"path": str(photos / "none")}, 422, "invalid_parameter"),
        ({"path": str(photos / "notes.txt")}, 422, "invalid_parameter"),
        ({"path": "photos"}, 422, "path_not_allowed"),
        ({"path": "/etc"}, 422, "path_not_allowed"),
        ({"path": "/nowhere-else"}, 422, "path_not_allowed"),
        ({"path": f"{photos.parent}-2"}, 422, "path_not_allowed"),
        ({"path": "a\nb"}, 422, "invalid_parameter"),
        ({"path": str(photos), "collection": "No"}, 422, "invalid_collection_name"),
        ({"path": str(photos), "on_conflict": "x"}, 422, "invalid_parameter"),
        ({"path": str(photos), "other": 1}, 422, "invalid_parameter"),
        ({}, 422, "invalid_parameter"),
    ):
        answer = allowing.post("/index/folder", headers=ADMIN, json=body)
        assert (answer.status_code, answer.json()["code"]) == (status, code), body


def test_folders_inside_that_cannot_be_read_are_errors_of_the_job(
    allowing: TestClient, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, photos / "fish")
    job = done(allowing, send_folder(allowing, photos, folder_field="label"))
    assert (job["state"], job["done"], job["total"], job["errors"]) == ("done", 5, 5, 1), job
    assert "fish: The folder cannot be read: Permission denied" in job["error_texts"][0]
    assert ": 1 failed, 4 created; passed over" in job["message"]


def test_names_that_are_no_utf8(allowing: TestClient, photos: Path) -> None:
    folder = photos / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    (folder / os.fsdecode(b"\xe9.png")).write_bytes(picture("car"))
    job = done(allowing, send_folder(allowing, photos, folder_field="label"))
    assert (job["state"], job["done"], job["errors"]) == ("done", 9, 0), job
    assert stored(allowing)["\ufffd.png"]["metadata"] == {"label": "caf\ufffd"}
    (photos / "cafe").symlink_to(folder)
    job = done(allowing, send_folder(allowing, photos / "cafe"))
    assert job["parameters"]["path"] == f"{photos}/caf?"
    assert job["message"] == f"{photos}/caf\\udce9: 1 unchanged"
    assert len(allowing.get("/jobs", headers=ADMIN).json()["jobs"]) == 2


def test_a_file_that_changes_while_it_is_read_fails_alone(
    allowing: TestClient, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    growing, put = photos / "mug" / "mug-00-0.jpg", LocalFiles.put

    def late(self: LocalFiles, source: Any, *words: str) -> None:
        if getattr(source, "name", None) == str(growing):
            with growing.open("ab") as file:
                file.write(b"more")
        put(self, source, *words)

    monkeypatch.setattr(LocalFiles, "put", late)
    job = done(allowing, send_folder(allowing, photos))
    assert (job["state"], job["done"], job["errors"]) == ("done", 8, 1), job
    (text,) = job["error_texts"]
    assert text.startswith("mug/mug-00-0.jpg: The file was changed while it was read; index it")
    assert len(stored(allowing)) == 7


def test_a_folder_that_cannot_be_looked_at(
    allowing: TestClient, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = send_folder(allowing, photos / ("x" * 300))
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameter")
    assert "cannot be read: File name too long; " in answer.json()["detail"]
    is_dir = Path.is_dir

    def refusing(self: Path) -> bool:
        if self == photos / "fish":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return is_dir(self)

    monkeypatch.setattr(Path, "is_dir", refusing)
    answer = send_folder(allowing, photos / "fish")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameter")
    assert "cannot be read: Permission denied; " in answer.json()["detail"]


def test_a_folder_that_cannot_be_read_is_said_at_once(
    allowing: TestClient, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, photos)
    answer = send_folder(allowing, photos)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameter")
    assert "Permission denied" in answer.json()["detail"]


def test_without_the_setting_no_folder_is_read(client: TestClient, tmp_path: Path) -> None:
    answer = send_folder(client, tmp_path)
    assert (answer.status_code, answer.json()["code"]) == (403, "imports_disabled")
    assert "LOOKALIKE_IMPORT_DIRS" in answer.json()["detail"]


def test_a_folder_can_be_referred_to(clients: Clients, settings: Settings, photos: Path) -> None:
    own = {"import_dirs": str(photos), "originals": "reference"}
    client = clients(settings.model_copy(update=own))
    done(client, send_folder(client, photos))
    assert list((settings.data_dir / "images").rglob("*.jpg")) == []
    image = stored(client)["mug-00-0.jpg"]
    sent = (photos / "mug" / "mug-00-0.jpg").read_bytes()
    assert client.get(image["image_url"]).content == sent


def test_a_twin_that_is_canceled_leaves_the_other_how_far_it_is(
    clients: Clients, settings: Settings, photos: Path
) -> None:
    own = IN_PAIRS | {"import_dirs": str(photos)}
    gate = Gate(free=2)
    client = clients(settings.model_copy(update=own), encoders=Encoders(gate, max_batch=2))
    running = send_folder(client, photos).json()["id"]
    assert gate.reached.wait(PATIENCE_S)
    wait_for(lambda: client.get(f"/jobs/{running}", headers=ADMIN).json()["done"] >= 2)
    send_folder(client, photos, on_conflict="skip")
    twin = send_folder(client, photos).json()["id"]
    assert twin != running
    before = left(settings)
    assert before == [f"{running}.journal"]
    client.post(f"/jobs/{twin}/cancel", headers=ADMIN)
    assert left(settings) == before
    gate.open.set()
    assert finished(client, f"/jobs/{running}")["state"] == "done"


def test_folders_in_one_setting() -> None:
    assert parse_dirs(None) == parse_dirs(" , ") == []
    assert parse_dirs(f"/a, /b{os.pathsep}/c") == [Path("/a"), Path("/b"), Path("/c")]
