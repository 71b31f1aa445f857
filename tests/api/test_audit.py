"""What the audit log says of changes over HTTP and on the data folder."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import pytest
from fastapi.testclient import TestClient

from lookalike import Client
from lookalike.records import Access
from tests.api.conftest import ADMIN, picture
from tests.api.test_service import JOB, ROUTES
from tests.waiting import wait_for


def entries(client: TestClient, **query: Any) -> list[dict[str, Any]]:
    answer = client.get("/audit", headers=ADMIN, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()["entries"]


def test_every_call_that_changes_something_is_noted(client):
    operations = {
        (method.upper(), path): operation["operationId"]
        for path, methods in client.get("/openapi.json").json()["paths"].items()
        for method, operation in methods.items()
    }
    changing = [route for route in ROUTES if route[0] != "GET" and route[2] != "read"]
    assert len(changing) >= 11
    for method, path, _ in changing:
        answer = client.request(method, path, headers=ADMIN)
        entry = entries(client, limit=1)[0]
        (call,) = {
            name
            for (verb, template), name in operations.items()
            if verb == method and fits(template, path)
        }
        assert entry["call"] == call
        outcome = "done" if answer.is_success else answer.json()["code"]
        assert entry["outcome"] == outcome
        assert entry["who"] == "admin key"
        assert entry["details"]["request_id"] == answer.headers["x-request-id"]
    assert len(entries(client)) == len(changing)


def fits(template: str, path: str) -> bool:
    parts, given = template.split("/"), path.split("/")
    return len(parts) == len(given) and all(
        part == own or (part.startswith("{") and own in {"x", JOB})
        for part, own in zip(parts, given, strict=True)
    )


def test_what_reads_or_was_refused_a_key_is_not_noted(client, index):
    client.post("/search", files={"file": picture()})
    client.post("/index", files={"files": picture()})
    client.delete("/images/x", headers={"X-API-Key": "wrong-key"})
    client.get("/jobs", headers=ADMIN)
    assert entries(client) == []


def test_an_entry_says_who_did_what_and_how_it_ended(client, index):
    made = client.post("/keys", headers=ADMIN, json={"name": "ci", "scope": "write"}).json()
    key = {"X-API-Key": made["key"]}
    files = [("files", ("a.png", picture())), ("files", ("b.png", b"no picture"))]
    answer = client.post("/index", headers=key, files=files, data={"ids": ["a", "b"]})
    assert answer.status_code == 207
    client.patch("/images/a", headers=key, json={"metadata": {"label": "cat"}})
    client.delete("/images/a", headers=key, params={"collection": "default"})
    client.delete("/images/a", headers=key)
    client.delete("/collections/default", headers=key)
    client.delete("/keys/ci", headers=ADMIN)
    told = [
        (one["call"], one["who"], one["key"], one["outcome"]) for one in reversed(entries(client))
    ]
    assert told == [
        ("create_key", "admin key", None, "done"),
        ("index", "ci", made["id"], "done"),
        ("patch_image", "ci", made["id"], "done"),
        ("delete_image", "ci", made["id"], "done"),
        ("delete_image", "ci", made["id"], "image_not_found"),
        ("delete_collection", "ci", made["id"], "forbidden"),
        ("revoke_key", "admin key", None, "done"),
    ]
    newest_last = [one["details"] for one in reversed(entries(client))]
    for details in newest_last:
        assert details.pop("request_id")
    assert newest_last[0] == {"name": "ci", "scope": "write", "id": made["id"]}
    assert newest_last[1] == {
        "collection": "default",
        "created": 1,
        "failed": 1,
        "ids": ["a", "b"],
    }
    assert newest_last[2] == {"collection": "default", "image_id": "a", "fields": ["label"]}
    assert newest_last[3] == {"collection": "default", "image_id": "a"}
    assert {one["address"] for one in entries(client)} == {"testclient"}
    pages = entries(client, limit=3)
    assert pages == entries(client)[:3]


def test_a_job_is_noted_when_it_is_asked_for_and_when_it_ends(client):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.png", picture())
    answer = client.post(
        "/index/archive", headers=ADMIN, files={"file": ("pictures.zip", packed.getvalue())}
    )
    job = answer.json()["id"]
    wait_for(lambda: len(entries(client)) == 2)
    ended, asked = entries(client)
    assert (asked["call"], asked["details"]["job"]) == ("index_archive", job)
    assert asked["details"]["filename"] == "pictures.zip"
    assert (ended["who"], ended["call"], ended["outcome"]) == ("job", "index_archive", "done")
    assert (ended["details"]["job"], ended["details"]["done"]) == (job, 1)


def test_changes_on_the_data_folder_are_noted_too(tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    with Client(tmp_path / "data", model="color") as client:
        (done,) = client.index(tmp_path / "a.png")
        assert done.id is not None
        client.update(done.id, {"label": "cat"})
        client.delete(done.id)
        client.drop("default")
        key = client.create_key("ci", Access.READ)
        client.revoke_key(key.key)
        told = [(one.call, one.outcome) for one in reversed(client.audit())]
        details = client.audit(limit=7)[5].details
        everyone = {one.who for one in client.audit()}
    assert told == [
        ("index", "begun"),
        ("index", "done"),
        ("patch_image", "done"),
        ("delete_image", "done"),
        ("delete_collection", "done"),
        ("create_key", "done"),
        ("revoke_key", "done"),
    ]
    assert everyone == {"local"}
    assert details["created"] == 1
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*.jsonl"))
    assert written
    assert key.key[12:].encode() not in written


@pytest.mark.parametrize("scope", ["read", "write"])
def test_the_log_needs_an_admin(client, scope):
    made = client.post("/keys", headers=ADMIN, json={"name": "x", "scope": scope}).json()
    assert client.get("/audit", headers={"X-API-Key": made["key"]}).status_code == 403
    assert client.get("/audit").status_code == 401
