"""HEAD, `If-None-Match`, `Cache-Control`, and what a call does not take in its address."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx2 import Response

from lookalike.api.main import create_app
from tests.api.conftest import ADMIN, ADMIN_KEY, picture
from tests.servers import Server
from tests.settings import make_settings
from tests.waiting import wait_for

FILE, THUMBNAIL = "/images/mug/file", "/images/mug/thumbnail"
RECORDS = ["/images", "/images/mug", "/collections", "/collections/default/vectors"]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory):
    """One application for all: no test changes more than it puts back."""
    folder = tmp_path_factory.mktemp("caching") / "data"
    settings = make_settings(data_dir=folder, model="color", admin_key=ADMIN_KEY)
    with TestClient(create_app(settings), raise_server_exceptions=False) as made:
        put(made, picture())
        yield made


def put(client: TestClient, content: bytes) -> None:
    files = [("files", ("mug.png", content))]
    assert client.post("/index", headers=ADMIN, files=files, data={"ids": "mug"}).is_success


def gets() -> list[str]:
    paths = create_app(make_settings(model="color")).openapi()["paths"]
    return sorted(path for path, methods in paths.items() if "get" in methods)


@pytest.mark.parametrize("path", [FILE, THUMBNAIL, *RECORDS])
def test_what_the_client_has_is_not_sent_again(client, path):
    first = client.get(path)
    etag = first.headers["ETag"]
    bare = etag.removeprefix("W/")
    for known in (etag, f"W/{bare}", "*", f'"other", {bare}', f'W/"a,b" , W/{bare},"c"'):
        for method in ("GET", "HEAD"):
            again = client.request(method, path, headers={"If-None-Match": known})
            assert again.status_code == 304, known
            assert again.content == b""
            for name in ("ETag", "Cache-Control"):
                assert again.headers[name] == first.headers[name]
            assert not {"content-length", "content-range", "content-type"} & set(again.headers)
    for other in ('"other"', bare.strip('"'), f'"{bare.strip(chr(34))[:-1]}"', ""):
        again = client.get(path, headers={"If-None-Match": other})
        assert again.status_code == 200, other
        assert again.content == first.content


def test_a_change_is_sent(client):
    before = {path: client.get(path).headers["ETag"] for path in [FILE, THUMBNAIL, "/images/mug"]}
    put(client, picture("clock", 3))
    for path, etag in before.items():
        assert client.get(path, headers={"If-None-Match": etag}).status_code == 200
    put(client, picture())
    assert client.get("/images/none", headers={"If-None-Match": "*"}).status_code == 404


def test_what_is_unchanged_counts_before_a_range(client):
    whole = client.get(FILE)
    headers = {"Range": "bytes=0-9", "If-None-Match": whole.headers["ETag"]}
    assert client.get(FILE, headers=headers).status_code == 304
    headers["If-None-Match"] = '"other"'
    part = client.get(FILE, headers=headers)
    assert (part.status_code, part.content) == (206, whole.content[:10])
    head = client.head(FILE, headers=headers)
    assert (head.status_code, head.content) == (206, b"")
    assert head.headers["Content-Range"] == part.headers["Content-Range"]


def test_a_link_names_its_content_and_is_kept(client):
    record = client.get("/images/mug").json()
    for link in (record["image_url"], record["thumbnail_url"]):
        assert client.get(link).headers["Cache-Control"] == "public, max-age=31536000, immutable"
        other = link.replace(record["sha256"][:16], "0" * 16)
        assert client.get(other).headers["Cache-Control"] == "public, no-cache"
    assert client.get(FILE).headers["Cache-Control"] == "public, no-cache"
    assert client.get(FILE).headers.get("Vary") is None
    assert client.get("/images").headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize("guard", [{"read_key": "read-key-1"}, {"require_key": True}])
def test_what_a_key_opened_is_kept_by_nobody_else(clients, settings, guard):
    client = clients(make_settings(**settings.model_dump(exclude_none=True) | guard))
    put(client, picture())
    link = client.get("/images/mug", headers=ADMIN).json()["image_url"].split("&expires")[0]
    wanted = {
        link: "private, max-age=31536000, immutable",
        THUMBNAIL: "private, no-cache",
        "/images/mug": "private, no-cache",
        "/metrics": "private, no-cache",
        "/images/none": "no-store",
        "/images/none/file": "no-store",
        "/keys": "no-store",
        "/audit": "no-store",
        "/jobs": "no-store",
        "/health/live": "no-cache",
        "/nothing": "no-store",
    }
    for path, control in wanted.items():
        answer = client.get(path, headers=ADMIN)
        assert answer.headers["Cache-Control"] == control, path
        varies = "X-API-Key" in answer.headers.get("Vary", "")
        assert varies == control.startswith("private"), path
    refused = client.get(link)
    assert (refused.status_code, refused.headers["Cache-Control"]) == (401, "no-store")


def _done(answer: Response) -> Response | None:
    return None if answer.status_code == 202 else answer


@pytest.mark.parametrize("path", [*gets(), "/docs", "/openapi.json"])
def test_head_is_answered_wherever_get_is(client, path):
    of_a_picture = path.replace("{image_id}", "mug").replace("{name}", "default")
    asked = of_a_picture.replace("{job_id}", "0" * 16)
    seen = client.get(asked, headers=ADMIN)
    if seen.status_code == 202:  # a search for duplicates that takes long
        seen = wait_for(lambda: _done(client.get(asked, headers=ADMIN)))
    head = client.head(asked, headers=ADMIN)
    assert head.status_code == seen.status_code
    assert head.content == b""
    changing = {"x-request-id", "x-backup-bytes", "content-disposition"}
    if path.endswith("/similar") or path in {"/info", "/metrics"}:  # what goes on is in these
        changing |= {"etag", "content-length"}
    assert set(head.headers) == set(seen.headers)
    for name in set(seen.headers) - changing:
        assert head.headers[name] == seen.headers[name], name


def test_head_over_a_real_connection(tmp_path):
    server = Server(tmp_path / "data")
    try:
        files = [("files", ("mug.png", picture()))]
        assert server.http.post("/index", files=files, data={"ids": "mug"}).is_success
        for path in (FILE, THUMBNAIL, "/images", "/health/live", "/backup", "/docs"):
            head = server.http.head(path)
            assert (head.status_code, head.content) == (200, b""), path
            assert server.http.get("/images/mug").json()["id"] == "mug"  # on the same connection
        etag = server.http.head(FILE).headers["ETag"]
        unchanged = server.http.get(FILE, headers={"If-None-Match": etag})
        assert (unchanged.status_code, unchanged.content) == (304, b"")
        assert server.http.get(FILE).content == picture()
    finally:
        server.close()


def test_other_methods_are_refused_with_those_there_are(client):
    for method, path, allowed in (
        ("HEAD", "/search", "POST"),
        ("PUT", "/images/mug", "GET, HEAD, PATCH, DELETE"),
        ("POST", "/health/live", "GET, HEAD"),
        ("DELETE", "/backup", "GET, HEAD, POST"),
    ):
        answer = client.request(method, path, headers=ADMIN)
        assert (answer.status_code, answer.headers["Allow"]) == (405, allowed), path


@pytest.mark.parametrize(
    ("method", "path", "sent", "meant"),
    [
        ("GET", "/images", "colection", "collection"),
        ("GET", "/images/mug", "colection", "collection"),
        ("GET", "/images/mug/file", "collecton", "collection"),
        ("GET", "/images/mug/similar", "n_probe", "nprobe"),
        ("GET", "/images/mug/similar", "minscore", "min_score"),
        ("HEAD", "/images", "filters", "filter"),
        ("GET", "/duplicates", "treshold", "threshold"),
        ("GET", "/jobs", "courser", "cursor"),
        ("GET", "/audit", "limits", "limit"),
        ("GET", "/backup", "key", "keys"),
        ("PATCH", "/images/mug", "colection", "collection"),
        ("DELETE", "/images/mug", "colection", "collection"),
    ],
)
def test_a_parameter_that_a_call_does_not_know_is_refused(client, method, path, sent, meant):
    body: dict[str, Any] = {"json": {"metadata": {}}} if method == "PATCH" else {}
    answer = client.request(method, path, params={sent: "1"}, headers=ADMIN, **body)
    assert answer.status_code == 422
    if method != "HEAD":
        assert answer.json()["code"] == "invalid_parameter"
        assert f"{sent}: no such parameter; did you mean {meant}?" in answer.json()["detail"]
    assert client.get("/images/mug").status_code == 200


def test_monitors_may_add_what_keeps_caches_away(client):
    for path in ("/health/live", "/health/ready", "/docs"):
        assert client.get(path, params={"_": "123"}).status_code == 200


@pytest.mark.parametrize("path", [path for path in gets() if not path.startswith("/health/")])
def test_no_call_ignores_a_parameter(client, path):
    answer = client.get(path.replace("{image_id}", "mug"), params={"zzz": "1"}, headers=ADMIN)
    assert answer.status_code == 422
    assert "zzz: no such parameter. This call takes" in answer.json()["detail"]


def test_a_form_and_a_body_of_json_name_the_nearest_field_too(client):
    file = {"file": ("a.png", picture())}
    form = client.post("/search", files=file, data={"colection": "default"})
    assert "colection: no such field; did you mean collection?" in form.json()["detail"]
    body = client.patch("/images/mug", headers=ADMIN, json={"metadata": {}, "metdata": {}})
    assert "metdata: no such field; did you mean metadata?" in body.json()["detail"]
    for answer in (
        client.post("/search?k=5", files=file),
        client.post("/search/url?k=5", json={"url": "https://example.com/a.jpg"}),
        client.post("/keys?name=a", headers=ADMIN, json={"name": "a", "scope": "read"}),
    ):
        assert answer.status_code in {422, 403}
    assert "takes nothing in its address" in client.post("/search?k=5", files=file).json()["detail"]
    assert client.delete("/jobs?a=1").status_code == 405


def test_a_valid_key_without_the_right_is_forbidden(clients, settings):
    client = clients(settings.model_copy(update={"require_key": True}))
    made = client.post("/keys", headers=ADMIN, json={"name": "page", "scope": "read"}).json()
    for headers, statuses in (
        ({}, (401, 401)),
        ({"X-API-Key": "wrong-wrong"}, (401, 401)),
        ({"X-API-Key": made["key"]}, (200, 403)),
        ({"Authorization": f"Bearer {made['key']}"}, (200, 403)),
        (ADMIN, (200, 204)),
    ):
        read, dropped = client.get("/images", headers=headers), client.delete("/keys/x", headers={})
        assert read.status_code == statuses[0]
        assert dropped.status_code == 401
        changed = client.get("/keys", headers=headers)
        assert changed.status_code == (200 if statuses[1] == 204 else statuses[1])
        for answer in (read, changed):
            assert ("WWW-Authenticate" in answer.headers) == (answer.status_code == 401)
