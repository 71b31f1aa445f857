"""What imports say at their end, and what is said of bodies that are none."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from lookalike.config import Settings
from lookalike.models.encoders import Encoders
from scripts.samples import write_samples
from tests.api.conftest import ADMIN, Clients, picture
from tests.api.test_import import IN_PAIRS, Gate, archive, done, left, send, send_folder, stored
from tests.api.test_jobs import finished
from tests.services.archive_maker import KINDS, write_archive
from tests.waiting import PATIENCE_S, wait_for


def test_a_canceled_import_says_what_was_done(
    clients: Clients, settings: Settings, tmp_path: Path
) -> None:
    gate = Gate(free=4)
    client = clients(settings.model_copy(update=IN_PAIRS), encoders=Encoders(gate, max_batch=2))
    files = [("bad.jpg", b"no picture")]
    files += [(f"{n}.png", picture("mug", n % 10)) for n in range(12)]
    job = send(client, write_archive(tmp_path / "photos.zip", files)).json()["id"]
    assert gate.reached.wait(PATIENCE_S)
    wait_for(lambda: client.get(f"/jobs/{job}", headers=ADMIN).json()["done"] >= 4)
    client.post(f"/jobs/{job}/cancel", headers=ADMIN)
    gate.open.set()
    ended = finished(client, f"/jobs/{job}")
    assert ended["state"] == "canceled"
    assert (
        ended["message"]
        == f"Canceled; what was done is kept: 1 failed, {ended['done'] - 1} created"
    )
    assert len(stored(client)) == ended["done"] - 1


def test_one_that_is_canceled_before_anything_was_done_says_so(
    clients: Clients, settings: Settings, tmp_path: Path
) -> None:
    gate = Gate()
    client = clients(settings.model_copy(update=IN_PAIRS), encoders=Encoders(gate, max_batch=2))
    job = send(client, archive(tmp_path)).json()["id"]
    assert gate.reached.wait(PATIENCE_S)
    client.post(f"/jobs/{job}/cancel", headers=ADMIN)
    gate.open.set()
    ended = finished(client, f"/jobs/{job}")
    assert (ended["state"], ended["message"]) == (
        "canceled",
        "Canceled; what was done is kept: no pictures",
    )


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_archive_is_done_with_no_pictures(
    client: TestClient, tmp_path: Path, kind: str
) -> None:
    job = done(client, send(client, write_archive(tmp_path / f"empty.{kind}", [])))
    assert (job["state"], job["done"], job["total"]) == ("done", 0, 0)
    assert job["message"] == f"empty.{kind}: no pictures"


@pytest.mark.parametrize("kind", ["tar.gz", "tar.bz2", "tar.xz"])
def test_one_wrong_bit_in_an_archive_adds_nothing(
    client: TestClient, settings: Settings, tmp_path: Path, kind: str
) -> None:
    path = archive(tmp_path, kind)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(bytes(data))
    answer = send(client, path)
    if answer.status_code == 202:  # it was not met in the first blocks
        job = done(client, answer)
        assert (job["state"], job["done"]) == ("failed", 0), job
        assert "send it again" in job["message"]
    else:
        assert answer.json()["code"] in {"invalid_archive", "not_an_archive"}
    assert stored(client) == {}
    wait_for(lambda: left(settings) == [])


def test_a_folder_that_moved_is_referred_to_where_it_is_and_odd_names_fail_alone(
    clients: Clients, settings: Settings, tmp_path: Path
) -> None:
    photos = tmp_path / "mnt" / "photos"
    write_samples(photos, classes=["mug"], instances=2, views=1, size=(96, 72))
    own = {"import_dirs": str(tmp_path / "mnt"), "originals": "reference"}
    client = clients(settings.model_copy(update=own))
    done(client, send_folder(client, photos))
    image = stored(client)["mug-00-0.jpg"]
    sent = client.get(image["image_url"]).content
    shutil.move(photos, tmp_path / "mnt" / "moved")
    assert client.get(image["image_url"]).status_code == 404

    folder = tmp_path / "mnt" / "moved" / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    (folder / "odd.png").write_bytes(picture("car"))
    job = done(client, send_folder(client, tmp_path / "mnt" / "moved"))
    assert job["message"].endswith(": 1 failed, 2 unchanged")
    assert "LOOKALIKE_ORIGINALS=keep" in job["error_texts"][0]
    assert client.get(image["image_url"]).content == sent


def test_a_body_that_is_no_form_is_told_what_this_call_takes(client: TestClient) -> None:
    for path, example in (
        ("/index/archive", "the archive as a file; e.g. curl -F file=@photos.zip"),
        ("/index", "the pictures as files; e.g. curl -F files=@photo.jpg"),
        ("/search", "the picture as a file; e.g. curl -F file=@photo.jpg"),
    ):
        headers = {**ADMIN, "Content-Type": "application/zip"}
        answer = client.post(path, content=b"PK", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")
        assert answer.json()["detail"].endswith(example), path


def test_json_that_is_not_called_json_or_is_no_object_is_told_what_to_send(
    client: TestClient,
) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}  # as curl -d sends it
    for path in ("/images/delete", "/v1/embeddings", "/backup", "/keys"):
        for content, headers in ((b'{"all": true}', form), (b"[1]", {})):
            sent = {"Content-Type": "application/json"} | ADMIN | headers
            answer = client.post(path, content=content, headers=sent)
            assert answer.status_code == 422, path
            assert "curl --json" in answer.json()["detail"], (path, answer.json())


def test_too_many_files_are_counted_in_words_where_it_is_one(
    clients: Clients, settings: Settings, client: TestClient
) -> None:
    two = [("file", ("a.png", picture())), ("file", ("b.png", picture()))]
    answer = client.post("/index/archive", files=two, headers=ADMIN)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_many_files")
    assert answer.json()["detail"].startswith("More than one file in one request; ")
    few = clients(settings.model_copy(update={"max_files": 2, "data_dir": settings.data_dir / "b"}))
    three = [("files", (f"{n}.png", picture())) for n in range(3)]
    answer = few.post("/index", files=three, headers=ADMIN)
    assert answer.json()["detail"].startswith("More than 2 files in one request; ")
