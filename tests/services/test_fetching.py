"""Fetching from real servers on this machine that do whatever a server may do."""

from __future__ import annotations

import gc
import gzip
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpcore2
import pytest

from lookalike import __version__
from lookalike.errors import (
    FetchError,
    FetchTimeoutError,
    ImageTooLargeError,
    QueueFullError,
    StorageError,
    UrlNotAllowedError,
)
from lookalike.media.fetch_guard import FetchGuard
from lookalike.media.fetching import MAX_ADDRESSES, MAX_REDIRECTS, Deadline, Fetcher, TimedStream
from tests.waiting import PATIENCE_S
from tests.web import Web, endless, leads_to, page_of, silent, trickling

PICTURE = bytes(range(256)) * 16
OK = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture(autouse=True)
def _young() -> Iterator[None]:
    """Spares `gc.collect` the objects of before, which are many in a long run."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def web(_young):
    """A server; whatever is not closed in the end is a ResourceWarning, which is an error."""
    made = Web()
    yield made
    made.close()
    gc.collect()


class Fetch:
    """Fetches with a fetcher that may connect to this machine, unless said otherwise."""

    def __init__(self, folder: Path, web: Web) -> None:
        self._folder = folder
        self._web = web

    def fetcher(self, *, allow="127.0.0.0/8", ports=(), **changes) -> Fetcher:
        numbers = ",".join(str(port) for port in (80, 443, self._web.port, *ports))
        options = {"max_bytes": 100_000, "timeout_s": 5.0, "places": 4, **changes}
        guard = FetchGuard.parse(ports=numbers, allow=allow)
        return Fetcher(guard, folder=self._folder, **options)

    def __call__(self, address: str, **changes) -> bytes:
        if address.startswith("/"):
            address = self._web.url + address
        with self.fetcher(**changes).fetch(address) as file:
            return file.read()


@pytest.fixture
def fetch(tmp_path, web):
    return Fetch(tmp_path, web)


def test_a_file_comes_again_only_if_it_changed(web, fetch, tmp_path):
    fetcher = fetch.fetcher()
    web.pages["/a"] = web.pages["/plain"] = page_of(PICTURE)
    for field, name in (
        ('ETag: "1,2"', "If-None-Match"),
        ("Last-Modified: Sat, 28 Nov 2026 01:02:03 GMT", "If-Modified-Since"),
    ):
        web.validators["/a"] = field
        file, validator = fetcher.download(f"{web.url}/a")
        assert file.read() == PICTURE
        file.close()
        assert validator == f"{name}: {field.partition(': ')[2]}"
        assert fetcher.download(f"{web.url}/a", validator=validator)[0] is None
        file, _ = fetcher.download(f"{web.url}/a", validator=f"{name}: other")
        file.close()
    web.pages["/moved"] = leads_to("/a")
    file, validator = fetcher.download(f"{web.url}/moved", validator=validator)
    assert (file.read(), validator) == (PICTURE, None), "a redirect may lead elsewhere by now"
    file.close()
    for field in ('ETag: "\xe9"', "ETag: ", f'ETag: "{"x" * 600}"'):
        web.validators["/plain"] = field
        file, validator = fetcher.download(f"{web.url}/plain")
        file.close()
        assert validator is None
    web.pages["/odd"] = page_of(b"", status="304 Not Modified")
    with pytest.raises(FetchError, match="304"):  # nobody asked
        fetcher.download(f"{web.url}/odd")
    assert list(tmp_path.iterdir()) == []


def test_the_bytes_come_as_they_are(web, fetch, tmp_path):
    web.pages["/a?b=%20c"] = page_of(PICTURE, "Content-Type: text/plain")
    assert fetch("/a?b= c#there") == PICTURE
    assert list(tmp_path.iterdir()) == []


def test_large_pictures_go_through_the_folder(web, fetch, tmp_path):
    web.pages["/large"] = page_of(PICTURE * 512)
    assert fetch("/large", max_bytes=3_000_000) == PICTURE * 512
    shutil.rmtree(tmp_path)
    with pytest.raises(StorageError, match="keep the picture"):
        fetch("/large", max_bytes=3_000_000)


def test_a_request_says_nothing_but_what_is_needed(web, fetch, monkeypatch, tmp_path):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    web.pages["/first"] = leads_to("/second", "Set-Cookie: a=b; Path=/")
    web.pages["/second"] = page_of(PICTURE)
    assert fetch("/first") == PICTURE
    expected = (
        f"Host: 127.0.0.1:{web.port}\r\nUser-Agent: Lookalike/{__version__}\r\nAccept: image/*\r\n"
        "Accept-Encoding: identity\r\nConnection: close\r\n\r\n"
    )
    assert web.requests == [f"GET /{path} HTTP/1.1\r\n{expected}" for path in ("first", "second")]


# Where it may go


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "127.0.0.1.:80"])
def test_this_machine_is_refused_unless_allowed_and_nothing_is_connected_to(web, fetch, host):
    web.pages["/"] = page_of(PICTURE)
    with pytest.raises(UrlNotAllowedError):
        fetch(f"http://{host}:{web.port}/", allow="")
    assert web.connections == 0


@pytest.mark.parametrize("allow", ["127.0.0.1", "10.0.0.0/8, 127.0.0.0/8", "::1,LocalHost"])
def test_what_is_allowed_by_network_or_by_name(web, fetch, allow):
    web.pages["/"] = page_of(PICTURE)

    def resolve(host, port):
        return ["127.0.0.1"]

    assert fetch(f"http://localhost:{web.port}/", allow=allow, resolve=resolve) == PICTURE


def test_unknown_and_private_hosts_get_one_text(fetch):
    def resolve(host, port):
        if host == "unknown.example":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return {"router.example": ["192.168.0.1"], "empty.example": []}[host]

    said = set()
    for host in ("unknown.example", "router.example", "empty.example", "10.1.2.3"):
        with pytest.raises(UrlNotAllowedError) as refused:
            fetch(f"http://{host}/", resolve=resolve if "example" in host else lambda h, p: [h])
        said.add(str(refused.value))
    assert len(said) == 1
    assert "LOOKALIKE_FETCH_ALLOW" in said.pop()


def test_one_private_answer_among_several_refuses_all(web, fetch):
    def resolve(host, port):
        return ["127.0.0.1", "127.0.0.2"]

    with pytest.raises(UrlNotAllowedError):
        fetch(f"http://mixed.test:{web.port}/", allow="127.0.0.1", resolve=resolve)
    assert web.connections == 0


def test_a_name_is_resolved_once_and_the_checked_address_is_connected_to(web, fetch, monkeypatch):
    web.pages["/"] = page_of(PICTURE)
    elsewhere = Web(host="127.0.0.2", port=web.port)
    try:
        answers = [["127.0.0.1"], ["127.0.0.2"]]  # rebinding: checked, then changed
        asked = []
        system = socket.getaddrinfo

        def spy(host, *rest, **options):
            asked.append(host)
            return system(host, *rest, **options)

        monkeypatch.setattr(socket, "getaddrinfo", spy)
        found = fetch(
            f"http://rebinding.test:{web.port}/",
            allow="127.0.0.1",
            resolve=lambda host, port: answers.pop(0),
        )
        assert found == PICTURE
        assert answers == [["127.0.0.2"]]
        assert asked == ["127.0.0.1"]  # as a number: nobody is asked
        assert f"Host: rebinding.test:{web.port}\r\n" in web.requests[0]
        assert elsewhere.connections == 0
    finally:
        elsewhere.close()


def test_a_redirect_is_resolved_and_checked_anew(web, fetch):
    web.pages["/"] = leads_to("/again")
    answers = [["127.0.0.1"], ["127.0.0.2"]]
    with pytest.raises(UrlNotAllowedError):
        fetch(
            f"http://rebinding.test:{web.port}/",
            allow="127.0.0.1",
            resolve=lambda host, port: answers.pop(0),
        )
    assert (answers, web.connections) == ([], 1)


def test_the_next_address_is_tried_where_one_refuses(web, fetch):
    web.pages["/"] = page_of(PICTURE)
    several = ["127.0.0.3", "127.0.0.4", "127.0.0.1"]
    address = f"http://several.test:{web.port}/"
    assert fetch(address, resolve=lambda host, port: several) == PICTURE
    late = [*(f"127.0.0.{n}" for n in range(3, 3 + MAX_ADDRESSES)), "127.0.0.1"]
    with pytest.raises(FetchError, match="refused"):
        fetch(address, resolve=lambda host, port: late)


# Redirects


@pytest.mark.parametrize("status", ["301 x", "302 x", "303 x", "307 x", "308 x"])
@pytest.mark.parametrize("location", ["/b", "b", "//127.0.0.1:{port}/b", "{url}/b#part"])
def test_redirects_are_followed(web, fetch, status, location):
    web.pages["/a"] = leads_to(location.format(port=web.port, url=web.url), status=status)
    web.pages["/b"] = page_of(PICTURE)
    assert fetch("/a") == PICTURE


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.2:{port}/",
        "http://localhost.localdomain:{port}/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::1]:{port}/",
        "http://0x7f.1:{port}/",
        "file:///etc/passwd",
        "gopher://127.0.0.1:{port}/",
        "ftp://127.0.0.1/",
        "data:image/png;base64,AAAA",
        "http://me:secret@127.0.0.1:{port}/",
        "http://127.0.0.1:22/",
        "http://[",
        "/" + "a" * 3000,
    ],
)
def test_redirects_to_where_nothing_is_fetched(web, fetch, location):
    web.pages["/"] = leads_to(location.format(port=web.port))
    with pytest.raises(UrlNotAllowedError):
        fetch("/", allow="127.0.0.1")
    assert web.connections == 1


def test_loops_and_long_ways_end(web, fetch):
    web.pages["/loop"] = leads_to("/loop")
    with pytest.raises(FetchError, match=f"more than {MAX_REDIRECTS} times"):
        fetch("/loop")
    assert web.connections == MAX_REDIRECTS + 1
    for n in range(MAX_REDIRECTS):
        web.pages[f"/{n}"] = leads_to(f"/{n + 1}")
    web.pages[f"/{MAX_REDIRECTS}"] = page_of(PICTURE)
    assert fetch("/0") == PICTURE


@pytest.mark.parametrize("status", ["300 Multiple Choices", "302 Found", "304 Not Modified"])
def test_a_redirect_to_nowhere_is_no_picture(web, fetch, status):
    web.pages["/"] = page_of(b"", status=status)
    with pytest.raises(FetchError, match=status[:3]):
        fetch("/")


# What comes back


@pytest.mark.parametrize("status", ["404 Not Found", "500 x", "206 Partial Content", "204 x"])
def test_other_answers_name_their_status_and_nothing_else(web, fetch, status):
    web.pages["/"] = page_of(b"" if status == "204 x" else b"secret", status=status)
    with pytest.raises(FetchError, match=status[:3]) as refused:
        fetch("/")
    assert "secret" not in str(refused.value)


def test_a_length_beyond_the_limit_is_refused_before_the_body(web, fetch):
    web.pages["/"] = page_of(b"", length=100_001)
    with pytest.raises(ImageTooLargeError, match="100,000"):
        fetch("/")


@pytest.mark.parametrize(
    "page",
    [
        endless(OK + b"\r\n", bytes(4096)),
        endless(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1000\r\n" + bytes(4096) + b"\r\n"),
    ],
    ids=["until it closes", "chunked"],
)
def test_a_body_without_end_is_left_at_the_limit(web, fetch, page):
    web.pages["/"] = page
    with pytest.raises(ImageTooLargeError):
        fetch("/")


@pytest.mark.parametrize("page", [page_of(PICTURE), OK + b"\r\n" + PICTURE])
def test_a_body_at_the_limit_passes(web, fetch, page):
    web.pages["/"] = page
    assert fetch("/", max_bytes=len(PICTURE)) == PICTURE
    with pytest.raises(ImageTooLargeError):
        fetch("/", max_bytes=len(PICTURE) - 1)


def test_a_length_that_is_no_truth(web, fetch):
    web.pages["/short"] = page_of(PICTURE, length=len(PICTURE) + 1)
    with pytest.raises(FetchError, match="broke"):
        fetch("/short")
    web.pages["/long"] = page_of(PICTURE + b"more", length=len(PICTURE))
    assert fetch("/long") == PICTURE
    for n, fields in enumerate((["Content-Length: 3"], ["Content-Length: -1"])):
        web.pages[f"/{n}"] = page_of(PICTURE, *fields)
        with pytest.raises(FetchError):
            fetch(f"/{n}")


@pytest.mark.parametrize("kind", ["gzip", "deflate", "br", "zstd", "x", "identity, gzip"])
def test_compressed_bodies_are_refused_unread(web, fetch, kind):
    bomb = gzip.compress(bytes(50_000_000))
    assert len(bomb) < 100_000
    web.pages["/"] = page_of(bomb, f"Content-Encoding: {kind}")
    with pytest.raises(FetchError, match="compressed"):
        fetch("/")


def test_identity_is_no_compression(web, fetch):
    web.pages["/"] = page_of(PICTURE, "Content-Encoding: Identity")
    assert fetch("/") == PICTURE


@pytest.mark.parametrize(
    "page",
    [
        OK + b"X: " + b"a" * 500_000 + b"\r\n\r\n",
        OK + b"X: a\r\n" * 100_000 + b"\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["a huge field", "many fields", "another protocol", "nothing", "a broken chunk"],
)
def test_what_is_no_http_or_too_much_of_it(web, fetch, page):
    web.pages["/"] = page
    with pytest.raises(FetchError, match="could not be fetched"):
        fetch("/")


def test_nobody_listens(fetch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        with pytest.raises(FetchError, match="refused"):
            fetch(f"http://127.0.0.1:{port}/", ports=[port])


# How long it may take


@pytest.mark.parametrize(
    "page",
    [
        silent,
        trickling(OK + b"X: aaa"),
        trickling(OK + b"Content-Length: 10000\r\n\r\n!"),
        trickling(OK + b"Transfer-Encoding: chunked\r\n\r\n1"),
        endless(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    ],
    ids=["silence", "a slow head", "a slow body", "a slow chunk", "only hints"],
)
def test_everything_ends_with_the_deadline(web, fetch, page):
    web.pages["/"] = page
    started = time.monotonic()
    with pytest.raises(FetchTimeoutError, match=r"0\.3 s"):
        fetch("/", timeout_s=0.3)
    assert time.monotonic() - started < PATIENCE_S


def test_redirects_share_one_deadline(web, fetch):
    def slow(connection: socket.socket) -> None:
        time.sleep(0.15)
        connection.sendall(leads_to("/"))

    web.pages["/"] = slow
    with pytest.raises(FetchTimeoutError):
        fetch("/", timeout_s=0.4)
    assert web.connections <= 3


def test_a_resolver_that_hangs_is_left_and_their_number_is_bounded(web, fetch):
    answer = threading.Event()
    asked = []

    def hanging(host, port):
        asked.append(host)
        assert answer.wait(PATIENCE_S)
        return ["127.0.0.1"]

    fetcher = fetch.fetcher(resolve=hanging, timeout_s=0.1, places=1)
    for _ in range(4):
        with pytest.raises(FetchTimeoutError), fetcher.fetch(f"http://slow.test:{web.port}/"):
            pass
    assert len(asked) == 2
    answer.set()
    for thread in threading.enumerate():
        if thread.name == "resolve":
            thread.join(PATIENCE_S)
    web.pages["/"] = page_of(PICTURE)
    with fetcher.fetch(f"http://slow.test:{web.port}/") as file:
        assert file.read() == PICTURE


def test_only_so_many_at_once(web, fetch):
    reached, go_on = threading.Event(), threading.Event()

    def waiting(connection: socket.socket) -> None:
        reached.set()
        assert go_on.wait(PATIENCE_S)
        connection.sendall(page_of(PICTURE))

    web.pages["/"] = waiting
    fetcher = fetch.fetcher(places=1)
    got = []

    def first() -> None:
        with fetcher.fetch(web.url) as file:
            got.append(file.read())

    thread = threading.Thread(target=first)
    thread.start()
    assert reached.wait(PATIENCE_S)
    with pytest.raises(QueueFullError), fetcher.fetch(web.url):
        pass
    go_on.set()
    thread.join(PATIENCE_S)
    with fetcher.fetch(web.url) as file, fetcher.fetch(web.url):  # no place is held any more
        got.append(file.read())
    assert got == [PICTURE, PICTURE]


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> Path:
    """A certificate of its own authority for pictures.test, with its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not here to make a certificate with")
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    kind = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    named = ["-subj", "/CN=pictures.test", "-addext", "subjectAltName=DNS:pictures.test"]
    subprocess.run(
        [openssl, *kind, *named, "-keyout", path, "-out", path.with_suffix(".crt")],
        check=True,
        capture_output=True,
    )
    with path.open("a") as file:
        file.write(path.with_suffix(".crt").read_text())
    return path


@pytest.fixture
def secure(certificate, _young):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    made = Web(tls=context)
    yield made
    made.close()
    gc.collect()


def test_tls_checks_the_hosts_name(secure, fetch, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    secure.pages["/"] = page_of(PICTURE)
    known = {"ports": [secure.port], "resolve": lambda host, port: ["127.0.0.1"]}
    assert fetch(f"https://pictures.test:{secure.port}/", **known) == PICTURE
    assert secure.names == ["pictures.test"]
    for other in ("other.test", "127.0.0.1"):
        with pytest.raises(FetchError, match="certificate"):
            fetch(f"https://{other}:{secure.port}/", **known)
    assert len(secure.requests) == 1


def test_a_certificate_that_nobody_vouches_for_is_refused(secure, fetch):
    known = {"ports": [secure.port], "resolve": lambda host, port: ["127.0.0.1"]}
    with pytest.raises(FetchError, match="certificate"):
        fetch(f"https://pictures.test:{secure.port}/", **known)
    assert secure.requests == []


def test_from_https_nothing_leads_to_http(secure, web, fetch, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    web.pages["/"] = page_of(PICTURE)
    secure.pages["/"] = leads_to(web.url + "/")
    known = {"ports": [secure.port], "resolve": lambda host, port: ["127.0.0.1"]}
    with pytest.raises(UrlNotAllowedError, match="from https to http"):
        fetch(f"https://pictures.test:{secure.port}/", **known)
    assert web.connections == 0
    web.pages["/up"] = leads_to(f"https://pictures.test:{secure.port}/picture")
    secure.pages["/picture"] = page_of(PICTURE)
    assert fetch("/up", **known) == PICTURE


def test_a_handshake_that_hangs_ends_with_the_deadline(fetch):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        started = time.monotonic()
        with pytest.raises(FetchTimeoutError):
            fetch(f"https://127.0.0.1:{port}/", ports=[port], timeout_s=0.3)
        assert time.monotonic() - started < PATIENCE_S
    gc.collect()


def test_a_connection_that_came_too_late_for_its_handshake_is_closed(web):
    stream = httpcore2.SyncBackend().connect_tcp("127.0.0.1", web.port)
    with pytest.raises(FetchTimeoutError):
        TimedStream(stream, Deadline(0)).start_tls(ssl.create_default_context())
    assert stream.get_extra_info("socket").fileno() == -1


def test_tls_where_none_is_spoken(web, fetch):
    with pytest.raises(FetchError):
        fetch(f"https://127.0.0.1:{web.port}/", timeout_s=1)
