"""GET /explain and POST /explain."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from lookalike import HttpClient
from lookalike.api.main import create_app
from lookalike.errors import ImageNotFoundError
from tests.api.conftest import ADMIN, ADMIN_KEY, picture
from tests.servers import Server
from tests.services.test_explaining import SMALL
from tests.settings import make_settings


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """Two pictures by a network with positions."""
    folder = tmp_path_factory.mktemp("explain") / "data"
    settings = make_settings(data_dir=folder, admin_key=ADMIN_KEY, **SMALL)
    with TestClient(create_app(settings), raise_server_exceptions=False) as made:
        files = [("files", (f"{label}.png", picture(label))) for label in ("mug", "fish")]
        fields = {"ids": ["mug", "fish"]}
        assert made.post("/index", headers=ADMIN, files=files, data=fields).status_code == 201
        yield made


def test_the_answer_has_exactly_the_documented_json(service: TestClient) -> None:
    stored = service.get("/explain", params={"query": "mug", "match": "fish"})
    sent = service.post("/explain", files={"file": picture("mug")}, data={"match": "fish"})
    for answer, query_id in ((stored, "mug"), (sent, None)):
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert set(body.pop("took_ms")) == {"decode", "embed", "total"}
        overlay = body.pop("overlay")
        assert overlay.startswith("data:image/png;base64,")
        drawn = Image.open(io.BytesIO(base64.b64decode(overlay.partition(",")[2])))
        assert (drawn.format, drawn.mode) == ("PNG", "RGB")
        assert set(body) == {"collection", "model", "score", "query", "match"}
        for one, own in ((body["query"], query_id), (body["match"], "fish")):
            assert set(one) == {"id", "width", "height", "sha256", "shares", "seen"}
            assert (one["id"], one["width"], one["height"]) == (own, 96, 72)
            assert one["seen"] == [0, 0, 1, 1]
            assert sum(map(sum, one["shares"])) == pytest.approx(body["score"], abs=1e-4)
    assert stored.json()["query"]["sha256"] == sent.json()["query"]["sha256"]


def test_the_drawing_alone(service: TestClient) -> None:
    query = {"query": "mug", "match": "fish", "format": "png"}
    sent = {"match": "fish", "format": "png"}
    for answer in (
        service.get("/explain", params=query),
        service.post("/explain", files={"file": picture("mug")}, data=sent),
    ):
        assert answer.headers["Content-Type"] == "image/png"
        drawn = Image.open(io.BytesIO(answer.content))
        assert drawn.width > 640


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ({"query": "mug", "match": "nobody"}, 404, "image_not_found"),
        ({"query": "nobody", "match": "mug"}, 404, "image_not_found"),
        ({"query": "mug", "match": "mug", "collection": "other"}, 404, "image_not_found"),
        ({"query": "mug"}, 422, "invalid_parameter"),
        ({"query": "mug", "match": "mug", "mach": "x"}, 422, "invalid_parameter"),
        ({"query": "mug", "match": "mug", "format": "gif"}, 422, "invalid_parameter"),
        ({"query": "../mug", "match": "mug"}, 422, "invalid_parameter"),
    ],
)
def test_what_cannot_be_explained(
    service: TestClient, query: dict[str, str], status: int, code: str
) -> None:
    answer = service.get("/explain", params=query)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


def test_a_query_that_is_no_picture(service: TestClient) -> None:
    answer = service.post("/explain", files={"file": b"no picture"}, data={"match": "mug"})
    assert (answer.status_code, answer.json()["code"]) == (415, "not_an_image")
    fields = {"match": "mug", "k": "3"}
    answer = service.post("/explain", files={"file": picture()}, data=fields)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameter")


def test_a_model_without_positions_is_422(client: TestClient, index: Any) -> None:
    index(("cat.png", picture()), ids=["cat"])
    answer = client.get("/explain", params={"query": "cat", "match": "cat"})
    assert (answer.status_code, answer.json()["code"]) == (422, "not_explainable")
    assert "means over positions" in answer.json()["detail"]


def test_an_explanation_takes_a_place_as_a_search_does(service: TestClient) -> None:
    app: Any = service.app
    admission = app.state.parts.admission
    query = {"query": "mug", "match": "fish"}
    most, admission._share.most = admission._share.most, 0
    try:
        answer = service.get("/explain", params=query)
        assert (answer.status_code, answer.json()["code"]) == (503, "queue_full")
        assert service.get("/images").status_code == 200
    finally:
        admission._share.most = most
    assert service.get("/explain", params=query).status_code == 200


def test_the_client_of_a_service(tmp_path_factory: pytest.TempPathFactory) -> None:
    server = Server(tmp_path_factory.mktemp("explain") / "data", **SMALL)
    try:
        with HttpClient(server.url, ADMIN_KEY) as client:
            files = {"files": ("mug.png", picture())}
            assert server.http.post("/index", files=files, data={"ids": "mug"}).status_code == 201
            stored = client.explain("mug", query="mug")
            sent = client.explain("mug", picture=picture())
            assert stored.score == pytest.approx(1, abs=1e-6)
            assert json.loads(stored.model_dump_json())["match"] == stored.match.model_dump(
                mode="json"
            )
            assert np.array(sent.query.shares) == pytest.approx(np.array(stored.query.shares))
            with pytest.raises(ImageNotFoundError):
                client.explain("nobody", query="mug")
    finally:
        server.close()
