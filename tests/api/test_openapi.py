"""What /openapi.json promises, tried with generated requests: every answer as documented."""

from __future__ import annotations

import io

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
