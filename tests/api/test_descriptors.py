"""A process that may open no more files: those that are connected are served, and it recovers."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.api.conftest import ADMIN, picture, solid
from tests.api.test_uploads import END, FORM, part
from tests.servers import Server
from tests.waiting import PATIENCE_S, wait_for

HALF_A_BODY = (
    b"POST /search HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    b"Content-Length: 9999\r\n\r\n--b\r\n"
)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path / "data", log_level="warning")
    try:
        files = {"files": ("good.png", picture())}
        assert made.http.post("/index", files=files, data={"ids": "good"}).status_code == 201
        assert made.http.post("/search", files={"file": picture()}).status_code == 200
        yield made
    finally:
        made.close()


@contextmanager
def connected(port: int, count: int, sent: bytes = b"") -> Iterator[None]:
    """Holds connections on which something was sent."""
    with ExitStack() as stack:
        for _ in range(count):
            made = stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))
            made.sendall(sent)
        yield


def get(client: HTTPConnection, path: str, picture: bytes = b"") -> int:
    """The status of a GET, or of a POST with a picture."""
    body = part("file", "a.bmp", picture) + END if picture else None
    client.request("POST" if body else "GET", path, body, {**ADMIN, **(FORM if body else {})})
    answer = client.getresponse()
    answer.read()
    return answer.status


def test_at_the_limit_of_descriptors_the_service_goes_on(server: Server) -> None:
    client = HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    assert get(client, "/images/good/thumbnail") == 200
    most = server.descriptors + 10
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (most, most))
    with connected(server.port, 60, HALF_A_BODY):  # none of them is idle
        wait_for(lambda: "no connection can be accepted" in server.log.read_text())
        for path in ("/health/live", "/images/good", "/images", "/images/good/thumbnail") * 5:
            assert get(client, path) in {200, 503}
        large = solid((9, 9, 9), (800, 800), "BMP")  # it is spooled to a file
        assert {get(client, "/search", large) for _ in range(5)} <= {200, 503}
        assert get(client, "/images/good") == 200
    assert get(client, "/search", large) == 200
    wait_for(lambda: get(client, "/images/good/thumbnail") == 200)
    assert server.http.post("/search", files={"file": picture()}).status_code == 200
    with connected(server.port, 60):  # they are idle, and closed for the next one
        assert server.http.get("/health/ready").status_code == 200
    client.close()
    assert server.log.stat().st_size < 20_000
