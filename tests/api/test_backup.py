"""GET /backup and POST /backup."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from lookalike.bootstrap import restore_backup
from lookalike.progress import NO_PROGRESS
from tests.api.conftest import ADMIN, picture
from tests.api.test_jobs import finished


@pytest.fixture
def held(index: Any) -> None:
    index(*((f"{n}.png", picture("mug", n)) for n in range(3)))


@pytest.mark.parametrize("packed", [False, True])
def test_a_download_is_a_whole_backup(client, settings, held, tmp_path, packed):
    answer = client.get("/backup", headers=ADMIN, params={"packed": packed})
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/x-tar"
    ending = ".tar.gz" if packed else ".tar"
    assert answer.headers["Content-Disposition"].endswith(f'{ending}"')
    if not packed:
        assert abs(int(answer.headers["X-Backup-Bytes"]) - len(answer.content)) < 10_000
    (tmp_path / "b.tar").write_bytes(answer.content)
    restored = restore_backup(tmp_path / "b.tar", tmp_path / "new", at=None, progress=NO_PROGRESS)
    assert (restored.collections, restored.originals) == ({"default": 3}, 3)
    assert not list((settings.data_dir / "tmp").iterdir())


def test_keys_are_in_it_only_if_asked(client, held, tmp_path):
    made = client.post("/keys", headers=ADMIN, json={"name": "reader", "scope": "read"})
    assert made.status_code == 201, made.text
    names = []
    for keys in (False, True):
        answer = client.get("/backup", headers=ADMIN, params={"keys": keys})
        (tmp_path / f"{keys}.tar").write_bytes(answer.content)
        with tarfile.open(tmp_path / f"{keys}.tar") as tar:
            names.append(set(tar.getnames()))
    assert names[1] - names[0] == {"access.db"}  # the admin key is a setting here
    restore_backup(tmp_path / "True.tar", tmp_path / "new", at=None, progress=NO_PROGRESS)
    assert (tmp_path / "new" / "access.db").stat().st_mode & 0o777 == 0o600


def test_one_backup_is_sent_at_a_time(client, held):
    backups = client.app.state.parts.services.backups
    sending = backups.tar(client.app.state.parts.services.files.tmp)
    try:
        answer = client.get("/backup", headers=ADMIN)
        assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    finally:
        sending.close()
    assert client.get("/backup", headers=ADMIN).status_code == 200


def test_a_job_brings_the_folder_of_the_service_up_to_date(clients, settings, tmp_path):
    to = tmp_path / "of_the_service"
    client: TestClient = clients(settings.model_copy(update={"backup_dir": to, "backup_keep": 2}))
    files = [("files", ("a.png", picture("mug", 1)))]
    assert client.post("/index", headers=ADMIN, files=files).status_code == 201
    for _ in range(3):
        answer = client.post("/backup", headers=ADMIN)
        assert answer.status_code == 202
        job = finished(client, answer.headers["Location"])
        assert (job["state"], job["kind"], job["done"]) == ("done", "backup", 3)
        assert "1 picture in" in job["message"]
    assert len(list((to / "versions").iterdir())) == 2
    (original,) = (settings.data_dir / "images").rglob("*.png")
    original.write_bytes(b"damaged")
    answer = client.post("/backup", headers=ADMIN, json={"keys": True})
    job = finished(client, answer.headers["Location"])
    assert (job["state"], job["errors"]) == ("done", 1)
    assert original.name in job["error_texts"][0]
    restored = restore_backup(to, tmp_path / "new", at=None, progress=NO_PROGRESS)
    assert (restored.keys, restored.damaged) == (True, 1)


def test_what_is_asked_wrongly(client, held):
    answer = client.post("/backup", headers=ADMIN)
    assert (answer.status_code, answer.json()["code"]) == (403, "backups_disabled")
    assert client.post("/backup", headers=ADMIN, json={"key": True}).status_code == 422
    assert client.get("/backup", headers=ADMIN, params={"keys": "x"}).status_code == 422
    for call in (client.get, client.post):
        assert call("/backup").status_code == 401


def test_the_folder_may_not_lie_in_the_data_folder(clients, settings):
    inside = settings.model_copy(update={"backup_dir": Path(settings.data_dir) / "backups"})
    client = clients(inside)
    answer = client.post("/backup", headers=ADMIN)
    job = finished(client, answer.headers["Location"])
    assert job["state"] == "failed"
    assert "lies in the data folder" in job["message"]
