"""What /openapi.json promises, tried with generated requests: every answer as documented."""

from __future__ import annotations

import io

import jsonschema  # type: ignore[import-untyped]
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from PIL import Image
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from lookalike.api.main import create_app
from lookalike.api.routers.search import _FIELDS
from tests.api.conftest import picture
from tests.servers import ADMIN_KEY, Server
from tests.settings import make_settings

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


def _pictures() -> st.SearchStrategy[bytes]:
    """Files as they come: pictures, small or broken, and what is none."""

    def flat(color: tuple[int, int, int]) -> bytes:
        out = io.BytesIO()
        Image.new("RGB", (8, 8), color).save(out, "PNG")
        return out.getvalue()

    channel = st.integers(0, 255)
    whole = st.tuples(channel, channel, channel).map(flat)
    return st.one_of(whole, whole.map(lambda data: data[:40]), st.binary(max_size=64))


schemathesis.openapi.media_type("application/octet-stream", _pictures())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    """A running service that holds a few pictures."""
    made = Server(tmp_path_factory.mktemp("openapi") / "data")
    answer = made.http.post(
        "/index",
        files=[("files", (f"{n}.png", picture("mug", n))) for n in range(3)],
        data={"ids": ["0", "1", "2"]},
    )
    assert answer.status_code == 201
    yield made
    made.close()


_application = create_app(
    make_settings(
        model="color",
        admin_key=ADMIN_KEY,
    )
)
schema = schemathesis.openapi.from_dict(_application.openapi())


@schema.parametrize()
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_as_documented(case, server):
    key = {"X-API-Key": ADMIN_KEY}
    case.call_and_validate(base_url=server.url, headers=key, checks=CHECKS)


def test_the_document_describes_every_error_and_no_framework_default(server):
    document = server.http.get("/openapi.json").json()
    assert "HTTPValidationError" not in str(document)
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["operationId"], (path, method)
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    assert list(answer["content"]) == ["application/problem+json"], (path, status)


def bodies(document):
    """What each call takes as its body, and the path of the call."""
    for path, methods in document["paths"].items():
        for method, call in methods.items():
            for kind, content in call.get("requestBody", {}).get("content", {}).items():
                for one in (content["schema"], *content["schema"].get("anyOf", ())):
                    if "$ref" in one:
                        name = one["$ref"].rpartition("/")[2]
                        yield method, path, kind, document["components"]["schemas"][name]


def test_only_what_must_be_sent_has_to_be(server):
    """A generator of clients takes a field with a default for one that must be sent."""
    for _, path, _, body in bodies(server.http.get("/openapi.json").json()):
        for name, field in body["properties"].items():
            assert "default" not in field, (path, name)
    (search,) = [
        body
        for _, path, _, body in bodies(server.http.get("/openapi.json").json())
        if path == "/search"
    ]
    assert "required" not in search  # one of four is, see test_queries.py
    assert search["properties"]["k"]["description"] == "How many matches; default: 10"


def test_every_example_is_right_and_runs(server):
    document = server.http.get("/openapi.json").json()
    refused = {"fetching_disabled", "imports_disabled", "backups_disabled"}  # by a setting
    refused.add("embedding_set_not_found")  # there are no vectors to go back to
    files = {"files": ("a.png", picture("lamp"))}
    assert server.http.post("/index", files=files, data={"ids": "lamp"}).is_success
    server.http.delete("/keys/photo-import")  # which another test may have made
    seen = 0
    for method, path, kind, body in bodies(document):
        for field in body["properties"].values():
            for example in field.get("examples", ()):
                jsonschema.validate(example, {**field, "components": document["components"]})
        if kind != "application/json":
            continue
        (example,) = body["examples"]
        jsonschema.validate(example, {**body, "components": document["components"]})
        address = path.replace("{image_id}", "lamp").replace("{name}", "default")
        address = address.replace("{alias}", "latest")
        answer = server.http.request(method, address, json=example)
        assert answer.is_success or answer.json()["code"] in refused, (path, answer.text)
        seen += 1
    assert seen >= 5
    assert server.http.delete("/aliases/latest").is_success


def test_a_form_as_it_is_filled_in_answers_like_an_empty_one(server):
    document = server.http.get("/openapi.json").json()
    for _, path, kind, body in bodies(document):
        if path != "/search" or kind == "application/json":
            continue
        fields = {
            name: example if isinstance(example, list) else str(example).replace("False", "false")
            for name, field in body["properties"].items()
            if name != "file" and (example := field["examples"][0]) is not ...
        }
        assert set(fields) == set(_FIELDS) - {"file"}
        answers = [
            server.http.post("/search", files={"file": ("q.png", picture("mug"))}, data=data).json()
            for data in (fields, {})
        ]
        assert answers[0]["matches"] == answers[1]["matches"] != []
