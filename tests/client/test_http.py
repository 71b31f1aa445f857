"""What an `HttpClient` makes of answers that no service of ours gives, and of none."""

from __future__ import annotations

import httpx2
import pytest

from lookalike import HttpClient
from lookalike.errors import (
    ConflictError,
    ImportsDisabledError,
    MissingFileError,
    QueueFullError,
    ServerError,
)


def answering(*answers: httpx2.Response) -> HttpClient:
    """A client whose calls are answered one after the other."""
    client, left = HttpClient("http://service"), list(answers)
    client._http = httpx2.Client(
        base_url="http://service", transport=httpx2.MockTransport(lambda _: left.pop(0))
    )
    return client


def problem(status: int, code: str) -> httpx2.Response:
    return httpx2.Response(
        status, json={"code": code, "detail": "Why"}, headers={"Retry-After": "0"}
    )


def test_a_code_names_the_class_of_the_error() -> None:
    with pytest.raises(ImportsDisabledError, match=r"Why \(imports_disabled\)") as caught:
        answering(problem(403, "imports_disabled")).index_folder("/mnt")
    assert isinstance(caught.value, ServerError)
    assert (caught.value.code, caught.value.passing) == ("imports_disabled", False)
    for code in ("made_up", "internal_error", "server_error"):
        with pytest.raises(ServerError) as other:
            answering(problem(500, code)).info()
        assert type(other.value) is ServerError
    with pytest.raises(ConflictError):
        answering(problem(409, "image_exists")).info()


def test_a_busy_service_is_asked_again() -> None:
    busy = problem(503, "queue_full")
    assert answering(busy, busy, httpx2.Response(200, json={"version": "1"})).info()["version"]
    with pytest.raises(QueueFullError) as caught:
        answering(*[busy] * 8).info()
    assert isinstance(caught.value, ServerError)
    assert caught.value.passing


def test_what_is_no_service() -> None:
    for answer in (httpx2.Response(200, text="<html>"), httpx2.Response(404, text="nothing")):
        with pytest.raises(ServerError, match="is it a Lookalike service"):
            answering(answer).info()
    with pytest.raises(ServerError, match="write http://localhost"):
        HttpClient("localhost")


def test_an_archive_that_is_not_there() -> None:
    with pytest.raises(MissingFileError, match=r"none\.zip"):
        answering().index_archive("none.zip")
