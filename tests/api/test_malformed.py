"""Malformed requests on real sockets, made from a seed: never a 5xx, and nothing grows."""

from __future__ import annotations

import os
import random
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.api.conftest import picture
from tests.servers import ADMIN_KEY, Server

COUNT = int(os.environ.get("LOOKALIKE_TEST_MALFORMED", "150"))

PATIENCE_S = 0.4  # for an answer, before a request counts as one that gets none

PATHS = ("/search", "/index", "/images", "/images/x", "/health/live", "/docs", "/", "/nowhere")
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "get")
BAD = (b"\0", b"\r", b"\n", b"\x0b", b"\x7f", b"\xff", b" ", b"\t", b"\r\n ", b"\xe2\x80\xa8", b":")
ODD = ("%", "%zz", "%00", "%ff", "%2e%2e/", "//", "\\", "?", "#", "[", "]", "@", ";", "é", "*")
KEY = f"X-API-Key: {ADMIN_KEY}\r\n".encode()
PICTURE = picture()


def head(
    method: str | bytes = "GET", target: str | bytes = "/", *lines: bytes, host: bytes = b"x"
) -> bytes:
    """A request's head with the admin key."""
    method = method.encode() if isinstance(method, str) else method
    target = target.encode() if isinstance(target, str) else target
    named = (b"Host: " + host, KEY.strip(), *lines)
    return method + b" " + target + b" HTTP/1.1\r\n" + b"\r\n".join(named) + b"\r\n\r\n"


def form(boundary: bytes, content: bytes, path: str = "/search", *lines: bytes) -> bytes:
    """A request with a multipart body."""
    kind = b"Content-Type: multipart/form-data; boundary=" + boundary
    return head("POST", path, kind, b"Content-Length: %d" % len(content), *lines) + content


def part(boundary: bytes, *lines: bytes, content: bytes = PICTURE) -> bytes:
    """One part of a multipart body."""
    return b"--" + boundary + b"\r\n" + b"\r\n".join(lines) + b"\r\n\r\n" + content + b"\r\n"


FILE = b'Content-Disposition: form-data; name="file"; filename="a.png"'
GOOD = part(b"b", FILE) + b"--b--\r\n"


def framings(pick: random.Random) -> bytes:
    """Where a body ends, said twice, wrongly or not at all."""
    sizes = (b"5", b"-5", b"+5", b"0x5", b"5, 5", b"5, 6", b"5 5", b"", b"9" * 40, b"1e3", b"\xb2")
    codings = (
        b"chunked",
        b"Chunked",
        b"gzip, chunked",
        b"chunked, chunked",
        b"identity",
        b"x",
        b"",
    )
    lines = [b"Content-Length: " + pick.choice(sizes) for _ in range(pick.randint(0, 2))]
    lines += [b"Transfer-Encoding: " + pick.choice(codings) for _ in range(pick.randint(0, 2))]
    pick.shuffle(lines)
    body = pick.choice((b"5\r\nhello\r\n0\r\n\r\n", b"hello", b"", b"0\r\n\r\nGET / HTTP/1.1\r\n"))
    kind = b"Content-Type: " + pick.choice(
        (b"application/json", b"multipart/form-data; boundary=b")
    )
    return head("POST", pick.choice(PATHS), kind, *lines) + body


def chunks(pick: random.Random) -> bytes:
    """Chunks of sizes, extensions and ends that are wrong."""
    sizes = (
        b"5",
        b"-5",
        b"0x5",
        b"f" * 30,
        b"FFFFFFFFFFFFFFFF",
        b"",
        b" 5",
        b"5 ",
        b"5;" + b"a" * 9,
    )
    body = b""
    for _ in range(pick.randint(1, 30)):
        extension = pick.choice((b"", b";a=b", b";" + b"x" * pick.choice((10, 100_000, 2_000_000))))
        end = pick.choice((b"\r\n", b"\n", b"", b"\r", b"xx"))
        body += pick.choice(sizes) + extension + pick.choice((b"\r\n", b"\n")) + b"hello" + end
    body = pick.choice(
        (body, b"1\r\nx\r\n" * 50_000, b"5\r\nhello\r\n" + b"0\r\n" + b"T: t\r\n" * 9000)
    )
    lines = (b"Content-Type: multipart/form-data; boundary=b", b"Transfer-Encoding: chunked")
    return head("POST", pick.choice(PATHS), *lines) + body + b"0\r\n\r\n"


def targets(pick: random.Random) -> bytes:
    """Targets that are no path, long, or oddly escaped."""
    odd = "".join(pick.choice((*ODD, "a", "/images/")) for _ in range(pick.randint(1, 12)))
    target = pick.choice(
        (
            "/" + odd,
            odd,
            "http://x/search",
            "http://[::1/",
            "x:443",
            "*",
            "//evil.example/%2f..",
            "/images/" + "a" * 100_000,
            "/images?filter=" + odd * 50,
            "/images?" + "a=b&" * 3000,
            "/images?limit=" + pick.choice(("-1", "1e9", "9" * 400, "%00", "NaN")),
        )
    )
    return head(pick.choice(METHODS), target)


def hosts(pick: random.Random) -> bytes:
    """The header Host, missing, twice, or no host."""
    odd = (
        b"[::1",
        b"[::1]x",
        b"a b",
        b"x:99999999",
        b"x:-1",
        b"@",
        b"x/y",
        b"\xff",
        b"",
        b"?",
        b"#",
    )
    value = pick.choice(odd)
    again = [b"Host: y"] if pick.random() < 0.2 else []
    return head("GET", pick.choice((*PATHS, "/images/", "/docs/")), *again, host=value)


def headers(pick: random.Random) -> bytes:
    """Headers that are many, large, folded, or hold bytes that do not belong there."""
    name = pick.choice(
        (b"X-Request-ID", b"Accept", b"Range", b"Cookie", b"If-None-Match", b"Content-Type")
    )
    junk = b"".join(pick.choice((*BAD, b"a", b"0-", b"bytes=")) for _ in range(pick.randint(1, 8)))
    line = name + b": " + junk
    lines = pick.choice(
        (
            [line],
            [line] * 1000,
            [name + b" : x"],
            [b": x"],
            [b"no colon"],
            [b" folded: x"],
            [name + b": " + b"x" * pick.choice((10_000, 100_000, 1_000_000))],
            [b"X-Forwarded-For: " + junk, b"X-Forwarded-Proto: " + junk],
            [b"Range: bytes=" + b"0-0," * 3000],
            [b"Accept-Encoding: " + b"gzip;q=1," * 1500],
        )
    )
    return head(pick.choice(("GET", "HEAD")), pick.choice(("/images/good/file", *PATHS)), *lines)


def starts(pick: random.Random) -> bytes:
    """What is no request of HTTP/1.1 at all."""
    return pick.choice(
        (
            b"GET /\r\n\r\n",
            b"GET / HTTP/0.9\r\nHost: x\r\n\r\n",
            b"GET / HTTP/1.0\r\n\r\n",
            b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
            b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + pick.randbytes(300),
            pick.randbytes(pick.randint(1, 3000)),
            b"\r\n" * pick.choice((1, 5, 100_000)),
            b"\n\nGET / HTTP/1.1\nHost: x\n\n",
            b"A" * pick.choice((10_000, 1_000_000)) + b" / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET  /  HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET / HTTP/1.1\rHost: x\r\r",
            b"\0" * 1000,
        )
    )


def wishes(pick: random.Random) -> bytes:
    """Upgrades and expectations."""
    upgrade = pick.choice((b"websocket", b"h2c", b"TLS/1.0", b"\xff", b"websocket, h2c"))
    expect = pick.choice((b"100-continue", b"200-ok", b"100-continue, 100-continue", b"", b"\xff"))
    lines = [
        b"Connection: Upgrade, HTTP2-Settings",
        b"Upgrade: " + upgrade,
        b"HTTP2-Settings: AAAA",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        b"Sec-WebSocket-Version: 13",
        b"Expect: " + expect,
    ]
    pick.shuffle(lines)
    return head(pick.choice(METHODS), pick.choice(PATHS), *lines[: pick.randint(1, 6)]) + b"hello"


def pipelines(pick: random.Random) -> bytes:
    """Several requests at once, the last of them broken."""
    good = pick.choice((head("GET", "/health/live"), head("HEAD", "/images"), form(b"b", GOOD)))
    return good * pick.randint(1, 20) + pick.choice((starts, framings, targets))(pick)


def multiparts(pick: random.Random) -> bytes:
    """Multipart bodies without a boundary, with a huge one, nested, or of too many parts."""
    path = pick.choice(("/search", "/index", "/index/archive"))
    boundary = pick.choice(
        (b"", b'"', b"b" * 1_000_000, b"b" * 300, b"\xff", b"b; charset=rot13", b"b")
    )
    dispositions = (
        FILE,
        b"Content-Disposition: form-data",
        b'Content-Disposition: form-data; name="file"; filename="' + b"\xff/../\\" * 300 + b'"',
        b"Content-Disposition: form-data; name*=utf-16''%ff%fe; filename*=utf-7''%00",
        b'Content-Disposition: attachment; name="metadata"',
        b'Content-Disposition: form-data; name="k"',
        b"Content-Type: multipart/mixed; boundary=c",
        b"X: " + b"y" * 100_000,
    )
    names = lambda: [pick.choice(dispositions) for _ in range(pick.choice((0, 1, 1, 2, 20)))]  # noqa: E731
    content = pick.choice((PICTURE, b"", b"7", b"--b\r\n" * 100, b'{"a": 1e999}', part(b"c", FILE)))
    parts = b"".join(part(b"b", *names(), content=content) for _ in range(pick.randint(0, 5)))
    body = pick.choice(
        (
            parts + b"--b--\r\n",
            parts,
            part(b"b", FILE, content=b"") * 100_000,
            part(b"b", b"", content=b"") * 50_000,
            b"--b\r\n" + b"H: v\r\n" * 100_000 + b"\r\n",
            b"x" * 100_000 + parts,
            GOOD + b"y" * 100_000,
            b"--b\r\n" + FILE + b"\r\n\r\n" + b"\r\n--a" * 100_000,
        )
    )
    return form(boundary, body, path)


def bodies(pick: random.Random) -> bytes:
    """Bodies of JSON that are none, and bodies where none belongs."""
    body = pick.choice(
        (
            b"[" * 100_000,
            b'{"metadata": ' * 2000,
            b'{"metadata": {"a": NaN}}',
            b'{"metadata": {"a": "\\ud800"}}',
            b"\xff\xfe{}",
            b'{"ids": ["' + b"\\u0000" * 10 + b'"]}',
            b'{"a": 1' + b"0" * 10_000 + b"}",
            b"null",
            b"",
        )
    )
    kinds = (b"application/json", b"application/json; charset=x", b"text/plain", b"", b"\xff/\xff")
    lines = (b"Content-Type: " + pick.choice(kinds), b"Content-Length: %d" % len(body))
    return head(pick.choice(METHODS), pick.choice(PATHS), *lines) + body


def mutations(pick: random.Random) -> bytes:
    """A good request with bytes changed, left out, or put in."""
    sent = bytearray(pick.choice((form(b"b", GOOD), head("GET", "/images?k=5"), bodies(pick))))
    for _ in range(pick.randint(1, 6)):
        where = pick.randrange(min(len(sent), 400))
        cut = pick.choice((0, 1, 2, 50))
        sent[where : where + cut] = pick.choice((b"", *BAD, pick.randbytes(3)))
    return bytes(sent)


KINDS: tuple[Callable[[random.Random], bytes], ...] = (
    framings,
    chunks,
    targets,
    hosts,
    headers,
    starts,
    wishes,
    pipelines,
    multiparts,
    bodies,
    mutations,
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("malformed") / "data", log_level="warning")
    try:
        files = {"files": ("good.png", PICTURE)}
        assert made.http.post("/index", files=files, data={"ids": "good"}).status_code == 201
        yield made
    finally:
        made.close()


def send(server: Server, sent: bytes) -> list[int]:
    """Sends bytes, and returns the status of each answer; ends once nothing more comes."""
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) as made:
        said = b""
        try:
            made.sendall(sent)
            while got := made.recv(65536):
                said += got
        except OSError:  # refused in the middle, or nothing more comes
            pass
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3})[^\r\n]*\r\n", said)]


def test_malformed_requests_get_no_5xx_and_leave_nothing_behind(
    server: Server, chance: random.Random
) -> None:
    seeds = [chance.getrandbits(64) for _ in range(COUNT)]
    answers: Counter[int] = Counter()

    def attack(number: int) -> None:
        kind = KINDS[number % len(KINDS)]
        statuses = send(server, kind(random.Random(seeds[number])))
        answers.update(statuses)
        assert max(statuses, default=0) < 500, (kind.__name__, seeds[number], statuses)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(attack, range(COUNT // 3)))
        before, files = server.memory, server.descriptors
        list(pool.map(attack, range(COUNT // 3, COUNT)))
    print(dict(answers), f"{(server.memory - before) / 1e6:.1f} MB more")
    assert server.http.get("/images/good").status_code == 200
    assert server.http.post("/search", files={"file": PICTURE}).status_code == 200
    assert server.memory - before < 50_000_000
    assert server.descriptors <= files + 5
    log = Path(server.log).read_text()
    assert "Traceback" not in log
    assert len(log) < 50_000
