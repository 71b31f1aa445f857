"""Slow, silent and greedy clients on real sockets; a good client beside them gets its answers."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any

import pytest

from lookalike.api import admission, connections
from lookalike.api.connections import Server, most_connections, raise_file_limit
from lookalike.api.main import create_app
from lookalike.api.monitoring import PROBES
from lookalike.config import Settings
from lookalike.models.encoders import Encoders
from lookalike.records import DEFAULT_COLLECTION
from tests.api.conftest import ADMIN, picture
from tests.api.test_service import Gate
from tests.api.test_uploads import BOUNDARY, END, part
from tests.waiting import PATIENCE_S, wait_for

HEAD = b"Host: x\r\nX-API-Key: test-admin-key\r\n"
FORM = b"Content-Type: multipart/form-data; boundary=" + BOUNDARY.encode() + b"\r\n"
STRANGER = "127.0.0.2"  # an address that is no trusted proxy


class Running:
    """The application behind the HTTP server, on a thread of this process."""

    def __init__(self, settings: Settings, *, most_files: int = 2000, **seams: Any) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listening.getsockname()[1]
        self.app = create_app(settings, **seams)
        self.server: Server | None = None
        self._most_files = most_files
        self._made: list[socket.socket] = []
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        wait_for(lambda: self.server is not None and self.server.started)

    async def _run(self) -> None:
        async with self.app.router.lifespan_context(self.app):
            self.server = Server(self.app, most_files=self._most_files)
            self.server.config.timeout_graceful_shutdown = 1
            await self.server.serve(sockets=[self.listening])

    def stop(self) -> None:
        for made in self._made:
            made.close()
        assert self.server is not None
        self.server.should_exit = True
        self._thread.join()

    def connect(self, sent: bytes = b"", *, address: str = "127.0.0.1") -> socket.socket:
        """A connection on which something was sent."""
        made = socket.create_connection(("127.0.0.1", self.port), 10, source_address=(address, 0))
        made.sendall(sent)
        self._made.append(made)
        return made

    def get(self, path: str = "/health/ready") -> int:
        """What a good client gets on a new connection."""
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)) as client:
            client.request("GET", path, headers=ADMIN)
            answer = client.getresponse()
            answer.read()
            return answer.status

    def search(self) -> int:
        """What a good client gets for a picture."""
        body = part("file", "a.png", picture()) + END
        with self.connect(b"POST /search HTTP/1.1\r\n" + HEAD + FORM + length(body) + body) as made:
            return read_answer(made)[0]

    def figure(self, name: str) -> float:
        """One of the figures of `GET /metrics`."""
        found: float | None = self.app.state.parts.metrics.registry.get_sample_value(
            name.split("{", maxsplit=1)[0],
            dict([name[:-1].split("{")[1].split("=")]) if "{" in name else {},
        )
        return found or 0.0

    def ended(self, why: str) -> float:
        """How many connections the service ended."""
        return self.figure(f"lookalike_connections_ended_total{{why={why}}}")


def length(body: bytes) -> bytes:
    return b"Content-Length: %d\r\n\r\n" % len(body)


def read_answer(made: socket.socket) -> tuple[int, bytes]:
    """Status and body of the next answer on a connection; (0, b"") if it was closed without one."""
    answer = HTTPResponse(made)
    try:
        answer.begin()
        return answer.status, answer.read()
    except (HTTPException, OSError):
        return 0, b""
    finally:
        answer.close()


def is_closed(made: socket.socket) -> bool:
    """Whether the service has closed a connection, whatever it said before."""
    made.settimeout(0.001)
    try:
        while made.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


Run = Callable[..., Running]


@pytest.fixture
def run(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Starts the service; clients that have an answer get little time for the rest."""
    monkeypatch.setattr(connections, "REST_S", 0.5)
    monkeypatch.setattr(connections, "STALLED_S", 0.2)
    running: list[Running] = []

    def start(*, most_files: int = 2000, **changes: Any) -> Running:
        encoders = changes.pop("encoders", None)
        changed = settings.model_copy(update=changes)
        running.append(Running(changed, most_files=most_files, encoders=encoders))
        return running[-1]

    yield start
    for service in running:
        service.stop()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives clients little time, on a busy machine good ones, too."""
    for name in ("SILENT_S", "HEAD_S", "ANSWER_S"):
        monkeypatch.setattr(connections, name, 0.75)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(
    ("sent", "why", "status"),
    [
        (b"", "silent", 0),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-Half: ", "head", 0),
        (b"POST /nowhere HTTP/1.1\r\n" + HEAD + b"Content-Length: 99\r\n\r\nsome", "rest", 404),
    ],
    ids=["silent", "half a head", "a body that nobody reads"],
)
def test_connections_that_say_too_little_are_closed(run, sent, why, status):
    service = run()
    silent = [service.connect(sent) for _ in range(20)]
    assert [read_answer(made)[0] for made in silent] == [status] * 20
    wait_for(lambda: all(is_closed(made) for made in silent))
    assert service.ended(why) == 20
    wait_for(lambda: service.figure("lookalike_connections") == 0)
    assert service.get("/health/live") == 200


@pytest.mark.usefixtures("soon")
def test_a_head_that_trickles_in_is_not_waited_for(run):
    service = run()
    with service.connect(b"GET / HTTP/1.1\r\n") as made:
        for _ in range(200):
            try:
                made.sendall(b"X: y\r\n")
            except OSError:
                break
            time.sleep(0.02)
        assert service.ended("head") == 1


@pytest.mark.usefixtures("soon")
def test_connections_may_wait_between_requests_and_for_answers(run):
    gate = Gate()
    service = run(encoders=Encoders(gate))
    body = part("file", "a.png", picture()) + END
    with (
        service.connect(b"POST /search HTTP/1.1\r\n" + HEAD + FORM + length(body) + body) as waits,
        service.connect(b"GET /health/live HTTP/1.1\r\n" + HEAD + b"\r\n") as kept,
    ):
        assert read_answer(kept)[0] == 200
        time.sleep(1.5)
        gate.open.set()
        kept.sendall(b"GET /health/live HTTP/1.1\r\n" + HEAD + b"\r\n")
        assert (read_answer(kept)[0], read_answer(waits)[0]) == (200, 200)


@pytest.mark.usefixtures("soon")
def test_an_answer_that_is_not_read_is_given_up(run):
    """Of a kind that is written at once, and of a file that is sent piece by piece."""
    service = run()
    noise = picture(form="BMP") + bytes(8_000_000)
    body = part("files", "a.bmp", noise) + END
    with service.connect(b"POST /index HTTP/1.1\r\n" + HEAD + FORM + length(body) + body) as made:
        status, said = read_answer(made)
        assert status == 201, said
    name = json.loads(said)["items"][0]["id"]
    request = f"GET /images/{name}/file HTTP/1.1\r\n".encode() + HEAD + b"\r\n"
    unread = [service.connect(request) for _ in range(5)]
    assert service.get() == 200
    wait_for(lambda: service.ended("answer") == 5)
    for made in unread:
        made.close()
    with service.connect(request) as made:  # slow, but reading
        made.settimeout(PATIENCE_S)
        taken = 0
        while taken < len(noise):
            taken += len(made.recv(400_000))
            time.sleep(0.03)
    assert service.ended("answer") == 5


def test_idle_connections_make_room_for_new_ones(run):
    service = run(most_files=connections.SPARE_FILES + 256 + 2 * 40)
    idle = [service.connect() for _ in range(80)]
    assert service.get() == 200
    assert service.search() == 200
    assert service.ended("room") >= 40
    assert service.figure("lookalike_connections") <= 40
    assert not is_closed(idle[-1])


def test_where_no_connection_is_idle_new_ones_are_refused_and_later_taken(run):
    gate = Gate()
    service = run(most_files=connections.SPARE_FILES + 256 + 2 * 32, encoders=Encoders(gate))
    body = part("file", "a.png", picture()) + END
    request = b"POST /search HTTP/1.1\r\n" + HEAD + FORM + length(body) + body
    busy = [service.connect(request) for _ in range(32)]
    wait_for(lambda: service.figure("lookalike_requests_in_progress") == 32)
    with service.connect(b"GET /health/live HTTP/1.1\r\n" + HEAD + b"\r\n") as made:
        status, said = read_answer(made)
    assert status == 503
    assert b"queue_full" in said
    gate.open.set()
    assert [read_answer(made)[0] for made in busy] == [200] * 32
    wait_for(lambda: service.get() == 200)


def test_one_address_gets_a_quarter_of_the_connections(run):
    service = run(most_files=connections.SPARE_FILES + 256 + 2 * 40)
    kept = [service.connect() for _ in range(5)]
    greedy = [service.connect(address=STRANGER) for _ in range(100)]
    wait_for(lambda: sum(not is_closed(made) for made in greedy) <= 10)
    assert not is_closed(greedy[-1])
    assert not any(is_closed(made) for made in kept)


def test_bodies_that_trickle_in_keep_nobody_out(run):
    service = run(queue_size=8)
    start = part("file", "a.png", picture())[:-20]
    head = b"POST /search HTTP/1.1\r\n" + HEAD + FORM + b"Content-Length: 99999\r\n\r\n"
    slow = [service.connect(head + start) for _ in range(40)]
    kept = service.app.state.parts.bodies._coming
    wait_for(lambda: sum(not is_closed(made) for made in slow) == len(kept))
    wait_for(lambda: all(one.rate(time.monotonic()) < admission.FAST for one in list(kept)))
    assert [service.search() for _ in range(5)] == [200] * 5
    assert all(made.send(b"x") for made in slow[-3:])
    assert service.search() == 200


SMUGGLED = b"0\r\n\r\nGET /smuggled HTTP/1.1\r\n" + HEAD + b"\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        b"POST /search HTTP/1.1\r\n" + HEAD + CHUNKED + length(SMUGGLED) + SMUGGLED,
        b"POST /search HTTP/1.1\r\n" + HEAD + b"Content-Length: 5\r\n" + length(b"") + SMUGGLED,
        b"POST /search HTTP/1.1\r\n" + HEAD + CHUNKED + CHUNKED + b"\r\n" + SMUGGLED,
        b"POST /search HTTP/1.0\r\n" + HEAD + CHUNKED + b"\r\n" + SMUGGLED,
        b"POST /search HTTP/1.1\r\n" + HEAD + b"Content-Length: -5\r\n\r\n" + SMUGGLED,
        b"POST /search HTTP/1.1\r\n" + HEAD + FORM + CHUNKED + b"\r\n" + b"1\r\nx\r\n" * 1100,
        b"GET http://x/search HTTP/1.1\r\n" + HEAD + b"\r\n",
        b"GET /search HTTP/1.1\r\nHost: [::1\r\n\r\n",
        b"GET /search HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET /search HTTP/1.1\r\n" + HEAD + b"X: y\r\n" * 100 + b"\r\n",
        b"GET /search HTTP/1.1\r\n" + HEAD + b"X: " + b"y" * 20_000 + b"\r\n\r\n",
        b"GET /search HTTP/0.9\r\n" + HEAD + b"\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_others_could_read_differently_is_refused_and_the_connection_closed(run, sent):
    service = run()
    with service.connect(sent) as made:
        status, said = read_answer(made)
        assert status == 400
        assert json.loads(said)["code"] == "malformed_request"
        wait_for(lambda: is_closed(made))


def test_a_request_in_many_small_pieces_is_read(run):
    """Pieces are waited for, so that each does not cost a turn; the answer is the same."""
    service = run()
    body = part("file", "a.png", picture()) + END
    whole = b"POST /search HTTP/1.1\r\n" + HEAD + FORM + length(body) + body
    with service.connect() as made:
        for start in range(0, len(whole), 100):
            made.sendall(whole[start : start + 100])
            time.sleep(0.002)
        assert read_answer(made)[0] == 200
        made.sendall(b"GET /health/live HTTP/1.1\r\n" + HEAD + b"\r\n")
        assert read_answer(made)[0] == 200


def test_a_client_that_leaves_gives_its_place_back(run):
    gate = Gate()
    service = run(queue_size=2, max_batch=1, encoders=Encoders(gate, max_batch=1, queue_size=8))
    body = part("file", "a.png", picture()) + END
    request = b"POST /search HTTP/1.1\r\n" + HEAD + FORM + length(body) + body
    live = service.app.state.parts.services.encoders.default
    running = service.connect(request)
    wait_for(lambda: gate.taken == 1)
    waiting = service.connect(request)
    wait_for(lambda: live.queue_length == 1)
    assert service.search() == 503
    waiting.close()
    wait_for(lambda: live.queue_length == 0)
    wait_for(lambda: service.figure("lookalike_requests_in_progress") == 1)
    with service.connect(request) as third:
        wait_for(lambda: live.queue_length == 1)
        gate.open.set()
        assert read_answer(third)[0] == 200
    assert read_answer(running)[0] == 200


class SlowReads:
    """Has `GET /images` wait until opened; counts the calls that came so far."""

    def __init__(self, service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        pictures = service.app.state.parts.services.pictures
        self.open = threading.Event()
        self.begun: list[str] = []
        self._asked = 0
        page = pictures.page

        def wait(collection: str, *, limit: int, **options: Any) -> Any:
            self.begun.append(collection)
            self.open.wait(PATIENCE_S)
            return page(DEFAULT_COLLECTION, limit=limit, **options)

        monkeypatch.setattr(pictures, "page", wait)
        self._service = service

    def send(self, name: str, address: str = "127.0.0.1") -> socket.socket:
        """A connection on which one read was asked for."""
        request = f"GET /images?collection={name} HTTP/1.1\r\n".encode() + HEAD + b"\r\n"
        return self._service.connect(request, address=address)

    def ask(self, name: str, address: str = "127.0.0.1") -> socket.socket:
        """As `send`, once the service knows of it, and all other requests have ended."""
        made = self.send(name, address)
        self._asked += 1
        wait_for(lambda: self._service.figure("lookalike_requests_in_progress") == self._asked)
        return made


def test_searches_are_answered_while_reads_have_all_their_turns_and_places(run, monkeypatch):
    monkeypatch.setattr(admission, "READS_WAITING", 16)
    monkeypatch.setattr(admission, "LONG_S", 0.001)
    service = run(queue_size=1)
    reads = SlowReads(service, monkeypatch)
    most = admission.READS_AT_ONCE + admission.LONG_READS
    sent = [reads.ask("one") for _ in range(most)]
    wait_for(lambda: len(reads.begun) == most)
    sent += [reads.ask("two") for _ in range(16)]
    with closing(HTTPConnection("127.0.0.1", service.port, timeout=60)) as client:
        client.request("GET", "/collections", headers=ADMIN)
        refused = client.getresponse()
        assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
        assert json.loads(refused.read())["code"] == "queue_full"
    assert service.search() == 200
    assert [service.get(path) for path in sorted(PROBES)] == [200] * 3
    assert reads.begun == ["one"] * most
    reads.open.set()
    assert [read_answer(made)[0] for made in sent] == [200] * len(sent)


def test_reads_rest_between_their_turns_and_are_answered_while_a_picture_is_handled(run):
    gate = Gate()
    service = run(encoders=Encoders(gate))
    body = part("file", "a.png", picture()) + END
    with service.connect(b"POST /search HTTP/1.1\r\n" + HEAD + FORM + length(body) + body) as first:
        wait_for(lambda: gate.taken == 1)
        for _ in range(2):  # turns come back, and none too many
            request = b"GET /collections HTTP/1.1\r\n" + HEAD + b"\r\n"
            sent = [service.connect(request) for _ in range(3 * admission.READS_AT_ONCE)]
            assert [read_answer(made)[0] for made in sent] == [200] * len(sent)
        gate.open.set()
        assert read_answer(first)[0] == 200


def test_one_address_gets_a_quarter_of_the_places_of_reads(run, monkeypatch):
    monkeypatch.setattr(admission, "READS_WAITING", 8)
    monkeypatch.setattr(admission, "LONG_READS", 0)
    service = run()
    reads = SlowReads(service, monkeypatch)
    sent = [reads.ask("one", STRANGER) for _ in range(2)]
    wait_for(lambda: len(reads.begun) == 2)
    sent += [reads.ask("one", STRANGER) for _ in range(2)]
    assert read_answer(reads.send("one", STRANGER))[0] == 503
    sent.append(reads.ask("two"))
    reads.open.set()
    assert [read_answer(made)[0] for made in sent] == [200] * 5


def test_reads_go_on_beside_those_of_an_address_that_take_long(run, monkeypatch):
    monkeypatch.setattr(admission, "LONG_S", 0.001)
    service = run()
    reads = SlowReads(service, monkeypatch)
    sent = [reads.ask(f"one{number}", STRANGER) for number in range(2)]
    wait_for(lambda: reads.begun == ["one0", "one1"])
    wait_for(lambda: service.get("/collections") == 200)
    sent += [reads.ask("more", STRANGER) for _ in range(20)]
    assert service.get("/collections") == 200
    reads.open.set()
    assert [read_answer(made)[0] for made in sent] == [200] * 22


def test_reads_of_each_address_take_turns_and_those_of_who_left_are_not_begun(run, monkeypatch):
    monkeypatch.setattr(admission, "READS_AT_ONCE", 1)
    monkeypatch.setattr(admission, "LONG_READS", 0)
    service = run()
    reads = SlowReads(service, monkeypatch)
    first = reads.ask("first")
    wait_for(lambda: reads.begun)
    sent = [reads.ask(f"a{number}", "127.0.0.2") for number in range(4)]
    sent += [reads.ask(f"b{number}", "127.0.0.3") for number in range(2)]
    connected = service.figure("lookalike_connections")
    sent.pop(0).close()
    wait_for(lambda: service.figure("lookalike_connections") == connected - 1)
    reads.open.set()
    assert [read_answer(made)[0] for made in (first, *sent)] == [200] * 6
    assert reads.begun == ["first", "b0", "a1", "b1", "a2", "a3"]


def test_a_body_is_not_asked_for_while_the_queue_is_full(run):
    gate = Gate()
    service = run(queue_size=1, encoders=Encoders(gate))
    body = part("file", "a.png", picture()) + END
    head = b"POST /search HTTP/1.1\r\n" + HEAD + FORM
    with service.connect(head + length(body) + body) as first:
        wait_for(lambda: gate.taken == 1)
        with service.connect(head + b"Expect: 100-continue\r\n" + length(body)) as second:
            assert read_answer(second)[0] == 503
        gate.open.set()
        assert read_answer(first)[0] == 200
    with service.connect(head + b"Expect: 100-continue\r\n" + length(body)) as third:
        assert third.recv(100).startswith(b"HTTP/1.1 100")
        third.sendall(body)
        assert read_answer(third)[0] == 200


def test_connections_are_counted_by_what_the_process_may_open():
    assert most_connections(raise_file_limit(), 256) >= 32
    assert most_connections(1024, 256) == 320
    assert most_connections(10**6, 256) == connections.MOST_CONNECTIONS
    assert most_connections(256, 256) == connections.LEAST_CONNECTIONS
