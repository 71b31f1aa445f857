"""Re-embedding and jobs over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from lookalike.models.color import ColorEncoder
from lookalike.models.head import Head, HeadSpec, save_head
from tests.api.conftest import ADMIN, picture, solid
from tests.services.moving import make_head
from tests.waiting import wait_for

HEAD = make_head(7)


@pytest.fixture
def head(tmp_path: Path) -> str:
    """A head over the model `color` as files."""
    return str(save_head(HEAD, tmp_path / "head.safetensors"))


@pytest.fixture
def held(index: Any) -> None:
    index(*((f"{n}.png", picture("mug", n)) for n in range(4)), ids=[f"m{n}" for n in range(4)])


def finished(client: TestClient, address: str) -> dict[str, Any]:
    """Follows a job's address to its end."""

    def look() -> dict[str, Any]:
        body: dict[str, Any] = client.get(address, headers=ADMIN).json()
        return body if body["state"] in {"done", "failed", "canceled"} else {}

    return wait_for(look)


def reembed(client: TestClient, *, name: str = "default", **model: Any) -> Any:
    return client.post(f"/collections/{name}/reembed", headers=ADMIN, json=model)


def dim(client: TestClient) -> int:
    found: int = client.get("/collections").json()["collections"][0]["passport"]["dim"]
    return found


def test_there_and_back(client: TestClient, held: None, head: str) -> None:
    answer = reembed(client, head=head)
    body = answer.json()
    assert answer.status_code == 202, body
    assert answer.headers["location"] == f"/jobs/{body['id']}"
    assert (body["kind"], body["parameters"]["collection"]) == ("reembed", "default")
    assert body["parameters"]["recipe"] == {
        "model": "color",
        "weights": "none",
        "pooling": "avg",
        "resize": None,
        "input_size": None,
        "head": head,
        "int8": False,
    }
    done = finished(client, answer.headers["location"])
    assert (done["state"], done["done"], done["total"]) == ("done", 4, 4), done
    assert done["errors"] == 0
    assert dim(client) == 6
    found = client.post("/search", files={"file": picture("mug", 2)}).json()
    assert (found["matches"][0]["id"], found["model"]["dim"]) == ("m2", 6)
    back = reembed(client, head=None)
    assert finished(client, back.headers["location"])["state"] == "done"
    assert dim(client) == 48
    listed = client.get("/jobs", headers=ADMIN).json()
    assert [job["id"] for job in listed["jobs"]] == [back.json()["id"], body["id"]]


def test_no_body_means_the_services_own_model(client: TestClient, held: None) -> None:
    answer = client.post("/collections/default/reembed", headers=ADMIN)
    assert "already" in finished(client, answer.headers["location"])["message"]


def test_jobs_come_in_pages(client: TestClient, held: None, head: str) -> None:
    for one in (head, None, head):
        finished(client, reembed(client, head=one).headers["location"])
    first = client.get("/jobs", headers=ADMIN, params={"limit": 2}).json()
    rest = client.get(
        "/jobs", headers=ADMIN, params={"limit": 2, "cursor": first["next_cursor"]}
    ).json()
    assert len({job["id"] for job in first["jobs"] + rest["jobs"]}) == 3
    assert rest["next_cursor"] is None
    assert client.get("/jobs", headers=ADMIN, params={"cursor": "x"}).status_code == 422


def test_bad_requests(client: TestClient, held: None) -> None:
    unknown = reembed(client, name="nothing")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "collection_not_found")
    model = reembed(client, model="resnet51")
    assert (model.status_code, model.json()["code"]) == (422, "invalid_parameter")
    assert "resnet50" in model.json()["detail"]
    family = reembed(client, model="torchvision/resnet18")
    assert (family.status_code, family.json()["code"]) == (422, "invalid_parameter")
    assert "Did you mean 'resnet18'" in family.json()["detail"]
    bodies: list[Any] = [{"size": 1}, {"input_size": 1}, {"pooling": "max"}, {"head": "a\nb"}, []]
    for body in bodies:
        answer = client.post("/collections/default/reembed", headers=ADMIN, json=body)
        assert answer.status_code == 422, body
    for path in ("/jobs/0123456789abcdef", "/jobs/0123456789abcdef/cancel"):
        method = "POST" if path.endswith("cancel") else "GET"
        answer = client.request(method, path, headers=ADMIN)
        assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")
    assert client.get("/jobs", headers=ADMIN).json() == {"jobs": [], "next_cursor": None}


def test_a_head_that_does_not_fit_is_said_by_the_job(
    client: TestClient, held: None, tmp_path: Path
) -> None:
    missing = finished(client, reembed(client, head="/nowhere/head").headers["location"])
    assert missing["state"] == "failed"
    assert "/nowhere/head" in missing["message"]
    other = ColorEncoder(grid=3)
    spec = HeadSpec(dim_in=other.spec.dim, dim_out=6)
    tensors = {
        name: HEAD.tensors["0.bias"].mean() + 0 * _ones(shape)
        for name, shape in spec.shapes().items()
    }
    path = save_head(Head(spec, tensors, backbone=other.spec), tmp_path / "o.safetensors")
    wrong = finished(client, reembed(client, head=str(path)).headers["location"])
    assert "another network" in wrong["message"]
    path.write_bytes(path.read_bytes()[:50])
    assert (
        finished(client, reembed(client, head=str(path)).headers["location"])["state"] == "failed"
    )
    assert dim(client) == 48


def test_what_keeps_a_collection_from_moving_is_named(
    client: TestClient, held: None, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lookalike import bootstrap

    monkeypatch.setattr(bootstrap, "build_encoder", lambda *_, **__: ColorEncoder(grid=2))
    for path in (settings.data_dir / "images").rglob("*.png"):
        path.unlink()
    done = finished(client, reembed(client, weights="other").headers["location"])
    assert (done["state"], done["errors"]) == ("failed", 4)
    assert done["error_texts"][0].startswith("m0: ")
    assert "Index these pictures again" in done["message"]
    assert client.post("/search", files={"file": picture("mug", 2)}).status_code == 200


def test_a_restart_keeps_the_model_and_the_jobs(clients: Any, settings: Any, head: str) -> None:
    first = clients(settings)
    first.post("/index", headers=ADMIN, files={"files": ("a.png", picture())}, data={"ids": "a"})
    job = finished(first, reembed(first, head=head).headers["location"])
    clients.stop(first)
    second = clients(settings)
    assert second.get(f"/jobs/{job['id']}", headers=ADMIN).json() == job
    found = second.post("/search", files={"file": picture()}).json()
    assert (found["matches"][0]["id"], found["model"]["dim"]) == ("a", 6)
    assert second.get("/health/ready").status_code == 200


def _ones(shape: tuple[int, ...]) -> Any:
    import numpy as np

    return np.ones(shape, dtype=np.float32)


def vectors(client: TestClient, name: str = "default") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get(f"/collections/{name}/vectors").json()["vectors"]
    return found


def discard(client: TestClient, digest: str, *, name: str = "default", headers: Any = ADMIN) -> Any:
    return client.delete(f"/collections/{name}/vectors/{digest}", headers=headers)


def test_the_vectors_of_the_model_before_can_be_deleted(
    client: TestClient, held: None, head: str
) -> None:
    (only,) = vectors(client)
    assert (only["count"], only["active"]) == (4, True)
    assert only["passport"] == client.get("/collections").json()["collections"][0]["passport"]
    finished(client, reembed(client, head=head).headers["location"])
    old, new = vectors(client)
    assert [one["active"] for one in (old, new)] == [False, True]
    assert old["passport"] == only["passport"]
    refused = discard(client, new["passport"]["digest"])
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    assert discard(client, old["passport"]["digest"], headers={}).status_code == 401
    assert discard(client, old["passport"]["digest"]).status_code == 204
    assert vectors(client) == [new]
    gone = discard(client, old["passport"]["digest"])
    assert (gone.status_code, gone.json()["code"]) == (404, "embedding_set_not_found")
    assert new["passport"]["digest"] in gone.json()["detail"]
    finished(client, reembed(client, head=None).headers["location"])
    assert [one["count"] for one in vectors(client)] == [4, 4], "the way back makes them anew"


def test_vectors_of_no_collection(client: TestClient) -> None:
    assert client.get("/collections/nope/vectors").status_code == 404
    assert discard(client, "0" * 16, name="nope").status_code == 404
    assert discard(client, "nonsense").status_code == 422


def test_labels_by_texts(client: TestClient, index: Any) -> None:
    index(("a.png", solid((255, 0, 0))), ("b.png", solid((0, 0, 255))), ids=["a", "b"])
    made = client.post("/keys", headers=ADMIN, json={"name": "labels", "scope": "write"}).json()
    writer = {"X-API-Key": made["key"]}
    asked = {"labels": ["red", "blue"], "field": "color"}
    path = "/collections/default/tag"
    answer = client.post(path, headers=writer, json=asked)
    assert answer.status_code == 202, answer.text
    assert answer.json()["kind"] == "tag"
    done = finished(client, answer.headers["location"])
    assert done["message"].startswith("2 pictures of 'default' were labeled in 'color'")
    assert (done["done"], done["total"], done["errors"]) == (2, 2, 0)
    found = client.get("/images", params={"filter": '{"color.labels": "red"}'}).json()["images"]
    assert [one["id"] for one in found] == ["a"]
    assert found[0]["metadata"]["color"] == {"labels": ["red"], "scores": [1.0]}
    assert client.post(f"{answer.headers['location']}/cancel", headers=writer).status_code == 200


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ({}, "labels"),
        ({"labels": []}, "labels"),
        ({"labels": ["red car"]}, "not 'red car'"),
        ({"labels": ["red", ""]}, "0 characters"),
        ({"labels": ["red"], "templates": ["photo"]}, "lacks {}"),
        ({"labels": ["red"], "field": "a.b"}, "without a dot"),
        ({"labels": ["red"], "k": 0}, "k"),
        ({"labels": ["red"], "min_score": 2}, "min_score"),
        ({"labels": ["red"], "label": 1}, "label"),
    ],
)
def test_labels_that_cannot_be(client: TestClient, held: None, body: Any, part: str) -> None:
    answer = client.post("/collections/default/tag", headers=ADMIN, json=body)
    assert answer.status_code == 422
    assert part in answer.text
    assert client.get("/jobs", headers=ADMIN).json()["jobs"] == []


def test_labels_of_no_collection_and_without_a_key(client: TestClient, held: None) -> None:
    asked = {"labels": ["red"]}
    assert client.post("/collections/x/tag", headers=ADMIN, json=asked).status_code == 404
    assert client.post("/collections/default/tag", json=asked).status_code == 401
