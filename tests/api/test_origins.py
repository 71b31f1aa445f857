"""Pages of other origins (CORS), and a service below a path of a proxy."""

from __future__ import annotations

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lookalike import HttpClient
from lookalike.api.main import create_app
from lookalike.config import load_settings
from lookalike.errors import ConfigurationError
from tests.api.conftest import ADMIN, ADMIN_KEY, picture
from tests.servers import Server
from tests.settings import make_settings

SHOP, OTHER = "https://shop.example", "https://other.example"


@pytest.fixture
def of_origins(clients, settings):
    """Makes applications for pages of the origins named, with a read key."""

    def make(origins: str | None):
        with_key = make_settings(**settings.model_dump(exclude_none=True), read_key="read-key-1")
        return clients(with_key.model_copy(update={"cors_origins": origins}))

    return make


def preflight(client, origin: str, method: str = "POST", headers: str = "x-api-key"):
    asked = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers}
    return client.options("/search", headers={"Origin": origin, **asked})


def test_only_the_origins_named_may_call(of_origins):
    client = of_origins(f"{SHOP}, http://localhost:5173")
    for origin in (SHOP, "http://localhost:5173"):
        for method in ("GET", "HEAD", "POST", "PATCH", "DELETE"):
            allowed = preflight(client, origin, method, "x-api-key,content-type,if-none-match")
            assert allowed.status_code == 200
            assert allowed.headers["Access-Control-Allow-Origin"] == origin
            assert allowed.headers["Access-Control-Allow-Credentials"] == "true"
    for origin in (OTHER, "https://shop.example:8443", "http://shop.example", "null"):
        refused = preflight(client, origin)
        assert refused.status_code == 400
        assert "Access-Control-Allow-Origin" not in refused.headers
        answer = client.get("/images", headers={"Origin": origin, **ADMIN})
        assert "Access-Control-Allow-Origin" not in answer.headers
    assert preflight(client, SHOP, headers="x-other").status_code == 400
    assert preflight(client, SHOP, method="TRACE").status_code == 400


def test_a_page_may_read_answers_errors_and_the_headers_it_needs(of_origins):
    client = of_origins(SHOP)
    files = [("files", ("mug.png", picture()))]
    assert client.post("/index", headers=ADMIN, files=files, data={"ids": "mug"}).is_success
    known = client.get("/images/mug/file", headers=ADMIN).headers["ETag"]
    for path, sent, status in (
        ("/images/mug/file", ADMIN, 200),
        ("/images/mug/file", {**ADMIN, "Range": "bytes=0-3"}, 206),
        ("/images/mug/file", {**ADMIN, "If-None-Match": known}, 304),
        ("/images", {}, 401),
        ("/images/none", ADMIN, 404),
        ("/images?zzz=1", ADMIN, 422),
        ("/keys", {"X-API-Key": "read-key-1"}, 403),
        ("/nothing", ADMIN, 404),
    ):
        answer = client.get(path, headers={"Origin": SHOP, **sent})
        assert answer.status_code == status
        assert answer.headers["Access-Control-Allow-Origin"] == SHOP
        shown = set(answer.headers["Access-Control-Expose-Headers"].split(", "))
        assert {"ETag", "Location", "Retry-After", "X-Request-ID", "Content-Range"} <= shown
        assert "Origin" in answer.headers["Vary"]


def test_every_origin_may_call_but_without_cookies(of_origins):
    client = of_origins("*")
    for answer in (
        preflight(client, OTHER),
        client.get("/images", headers={"Origin": OTHER, "Cookie": "a=b", **ADMIN}),
    ):
        assert answer.status_code == 200
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert "Access-Control-Allow-Credentials" not in answer.headers


def test_without_the_setting_there_is_no_word_of_origins(of_origins):
    client = of_origins(None)
    assert preflight(client, SHOP).status_code == 405
    headers = client.get("/images", headers={"Origin": SHOP, **ADMIN}).headers
    assert not [name for name in headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "text", ["shop.example", "https://shop.example/", "https://shop.example/a", "https://*.example"]
)
def test_what_is_no_origin_is_refused(text):
    with pytest.raises(ConfigurationError, match=r"CORS_ORIGINS.*is no origin"):
        load_settings(cors_origins=f"{SHOP},{text}")


@pytest.mark.parametrize("text", ["lookalike", "/a b", "/a?b", "https://example.com/a", "/a//b"])
def test_what_is_no_root_path_is_refused(text):
    with pytest.raises(ConfigurationError, match="ROOT_PATH"):
        load_settings(root_path=text)


def test_a_root_path_may_end_with_a_slash_and_be_none_of_the_services_own():
    assert load_settings(root_path="/a/b/").root_path == "/a/b"
    assert load_settings(root_path="/").root_path is None
    with pytest.raises(ConfigurationError, match="/images is a path of the service itself"):
        create_app(make_settings(model="color", root_path="/images"))


class Proxy(ThreadingHTTPServer):
    """Shows a service below `/lookalike` as proxies do; may take that path away, or not."""

    daemon_threads = True

    def __init__(self, port: int, *, strips: bool) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_any(self) -> None:
                path = self.path.removeprefix("/lookalike") if strips else self.path
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                behind = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                fields = {name: text for name, text in self.headers.items() if name != "Connection"}
                fields |= {"X-Forwarded-Proto": "https", "Host": "behind.internal"}
                behind.request(self.command, path, body or None, fields)
                answer = behind.getresponse()
                content = answer.read()
                self.send_response(answer.status)
                for name, text in answer.getheaders():
                    if name.lower() not in {"content-length", "connection", "transfer-encoding"}:
                        self.send_header(name, text)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
                behind.close()

            do_GET = do_HEAD = do_POST = do_PATCH = do_DELETE = do_any  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self._thread = threading.Thread(target=self.serve_forever)
        self._thread.start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join(timeout=30)


@pytest.fixture(scope="module")
def below(tmp_path_factory: pytest.TempPathFactory):
    data = tmp_path_factory.mktemp("below") / "data"
    server = Server(data, root_path="/lookalike", read_key="read-key-1")
    yield server
    server.close()


@pytest.mark.parametrize("strips", [True, False])
def test_a_service_below_a_path_of_a_proxy(below, strips, tmp_path):
    proxy = Proxy(below.port, strips=strips)
    try:
        outside = f"{proxy.url}/lookalike"
        (tmp_path / "mug.png").write_bytes(picture())
        with HttpClient(outside, ADMIN_KEY) as client:
            client.index(tmp_path / "mug.png")
            (match,) = client.search(tmp_path / "mug.png", k=1).matches
        for link in (match.image_url, match.thumbnail_url):
            assert link.startswith(f"/lookalike/images/{match.id}/")
            assert below.http.get(proxy.url + link, headers={"X-API-Key": ""}).status_code == 401
            plain = http.client.HTTPConnection("127.0.0.1", proxy.server_port, timeout=60)
            plain.request("GET", link)
            assert plain.getresponse().status == 200  # no key: the link is signed
            plain.close()
        ask = below.http
        redirected = ask.get(f"{outside}/images/?limit=1")
        assert redirected.status_code == 307
        assert redirected.headers["Location"] == "/lookalike/images?limit=1"
        job = ask.post(f"{outside}/collections/default/reembed")
        assert job.status_code == 202
        assert job.headers["Location"] == f"/lookalike/jobs/{job.json()['id']}"
        assert ask.get(proxy.url + job.headers["Location"]).status_code == 200
        page = ask.get(f"{outside}/docs").text
        for named in ("/lookalike/openapi.json", "/lookalike/static-offline-docs/swagger-ui.css"):
            assert named in page
            assert ask.get(proxy.url + named).status_code == 200
        servers = ask.get(f"{outside}/openapi.json").json()["servers"]
        assert servers == [{"url": "/lookalike"}]
        assert (
            ask.get(f"{outside}/nothing")
            .json()["detail"]
            .startswith("There is nothing at /lookalike/nothing")
        )
    finally:
        proxy.stop()
    assert below.http.get("/health/live").status_code == 200  # a probe goes past the proxy
