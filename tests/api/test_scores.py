"""Calibrated scores and feedback over HTTP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx2 import Response

from lookalike.models.head import save_head
from tests.api.conftest import ADMIN, picture
from tests.services.moving import make_head
from tests.services.test_calibrating import draw
from tests.waiting import wait_for


@pytest.fixture
def filled(client: TestClient, tmp_path: Path) -> TestClient:
    """A service with 48 pictures, whose ids are p0 to p47 and whose labels are k0 to k7."""
    paths = sorted(draw(tmp_path / "pictures", 48).rglob("*.png"), key=lambda path: int(path.stem))
    sent = client.post(
        "/index",
        headers=ADMIN,
        files=[("files", (path.name, path.read_bytes())) for path in paths],
        data={
            "ids": json.dumps([f"p{path.stem}" for path in paths]),
            "metadata": json.dumps([{"label": path.parent.name} for path in paths]),
        },
    )
    assert sent.json()["created"] == 48, sent.text
    return client


def calibrate(client: TestClient, **asked: Any) -> dict[str, Any]:
    begun = client.post("/collections/default/calibration", headers=ADMIN, json=asked)
    assert begun.status_code == 202
    where = begun.headers["Location"]

    def ended() -> bool:
        return client.get(where, headers=ADMIN).json()["finished_at"] is not None

    wait_for(ended)
    found: dict[str, Any] = client.get(where, headers=ADMIN).json()
    return found


def judge(
    client: TestClient, match: str, *, right: bool, query: str = "", file: bytes | None = None
) -> Response:
    form = {"match": match, "right": str(right).lower(), "query": query}
    parts: dict[str, Any] = {name: (None, value) for name, value in form.items()}
    if file is not None:
        parts["file"] = ("x.png", file)
    return client.post("/feedback", headers=ADMIN, files=parts)


def test_a_calibration_is_made_shown_and_forgotten(filled: TestClient) -> None:
    path = "/collections/default/calibration"
    assert filled.get(path).json()["code"] == "calibration_not_found"
    job = calibrate(filled, label_field="label", sample=40)
    assert job["state"] == "done", job
    assert "ECE" in str(job["message"])
    found = filled.get(path).json()
    assert found["options"] == {
        "label_field": "label",
        "false_alarms": 0.05,
        "sample": 40,
        "seed": 0,
    }
    assert found["no_match"]["by"] == "labels"
    assert filled.delete(path, headers=ADMIN).status_code == 204
    assert filled.get(path).status_code == 404
    assert filled.delete(path, headers=ADMIN).status_code == 404


def test_a_calibration_that_cannot_be(client: TestClient, filled: TestClient) -> None:
    job = calibrate(filled, label_field="none")
    assert job["state"] == "failed"
    assert "'none'" in str(job["message"])
    path = "/collections/default/calibration"
    for asked in ({"sample": 5}, {"false_alarms": 0}, {"label": "x"}, {"label_field": "\x00"}):
        assert filled.post(path, headers=ADMIN, json=asked).status_code == 422, asked
    assert filled.post("/collections/nowhere/calibration", headers=ADMIN).status_code == 404


def test_feedback_is_kept_once_for_each_pair(filled: TestClient) -> None:
    first = judge(filled, "p1", right=True, query="p0")
    assert first.status_code == 201
    same = judge(filled, "p1", right=True, query="p0")
    assert (same.status_code, same.json()) == (200, first.json())
    other = judge(filled, "p1", right=False, query="p0")
    assert (other.status_code, other.json()["id"]) == (201, first.json()["id"])
    listed = filled.get("/feedback").json()
    assert [(one["query"], one["match"], one["right"]) for one in listed["judgements"]] == [
        ("p0", "p1", False)
    ]
    path = f"/feedback/{first.json()['id']}"
    assert filled.delete(path, headers=ADMIN).status_code == 204
    assert filled.delete(path, headers=ADMIN).json()["code"] == "judgement_not_found"
    entries = filled.get("/audit", headers=ADMIN).json()["entries"]
    assert [one["call"] for one in entries[:2]] == ["delete_feedback", "delete_feedback"]
    assert {"match": "p1", "right": True}.items() <= entries[-2]["details"].items()


def test_feedback_on_a_new_picture(filled: TestClient) -> None:
    sent = judge(filled, "p3", right=True, file=picture())
    assert sent.status_code == 201, sent.text
    assert sent.json()["query"] is None
    again = judge(filled, "p3", right=True, file=picture())
    assert (again.status_code, again.json()["id"]) == (200, sent.json()["id"])


def test_feedback_on_a_picture_that_is_stored_under_its_usual_id(client: TestClient) -> None:
    files = [("files", ("a.png", picture())), ("files", ("b.png", picture("fish")))]
    items = client.post("/index", headers=ADMIN, files=files).json()["items"]
    sent = judge(client, items[1]["id"], right=True, file=picture())
    assert sent.json()["query"] == items[0]["id"]


def test_feedback_that_is_refused(filled: TestClient) -> None:
    for match, query, file, status, code in (
        ("p1", "", None, 422, "invalid_parameter"),
        ("p1", "p0", b"x", 422, "invalid_parameter"),
        ("p1", "p1", None, 422, "invalid_parameter"),
        ("p1", "/", None, 422, "invalid_id"),
        ("nothing", "p0", None, 404, "image_not_found"),
        ("p1", "nothing", None, 404, "image_not_found"),
        ("p1", "", b"no picture", 415, "not_an_image"),
    ):
        answer = judge(filled, match, right=True, query=query, file=file)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert filled.get("/feedback").json()["judgements"] == []


def test_feedback_of_a_collection_that_is_not_there(client: TestClient) -> None:
    assert client.get("/feedback?collection=none").json()["code"] == "collection_not_found"
    form = {"match": "a", "right": "true", "query": "b", "collection": "none"}
    parts: Any = {name: (None, value) for name, value in form.items()}
    answer = client.post("/feedback", headers=ADMIN, files=parts)
    assert answer.json()["code"] == "collection_not_found"


def test_a_move_is_rolled_back(filled: TestClient, tmp_path: Path) -> None:
    head = save_head(make_head(7), tmp_path / "head.safetensors")
    path = "/collections/default"
    refused = filled.post(f"{path}/rollback", headers=ADMIN)
    assert refused.json()["code"] == "embedding_set_not_found"

    def active() -> str:
        sets = filled.get(f"{path}/vectors").json()["vectors"]
        return str(next(one["passport"]["digest"] for one in sets if one["active"]))

    before = active()
    filled.post(f"{path}/reembed", headers=ADMIN, json={"head": str(head)})
    wait_for(lambda: active() != before)
    assert filled.post(f"{path}/rollback", headers=ADMIN, json={}).status_code == 202
    wait_for(lambda: active() == before)
    wrong = filled.post(f"{path}/rollback", headers=ADMIN, json={"digest": "0" * 16})
    assert wrong.status_code == 404
