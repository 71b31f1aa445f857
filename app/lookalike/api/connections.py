"""The HTTP server, with bounds on what each connection may keep it waiting for.

uvicorn reads and writes HTTP with h11. `Connections` knows all open connections; once a second it
looks at each and ends those that stay in one state for too long.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import re
import resource
import socket
import time
import uuid
from collections import Counter
from contextlib import AbstractContextManager, nullcontext, suppress
from fcntl import ioctl
from functools import partial
from http import HTTPStatus
from itertools import cycle, islice
from struct import unpack
from termios import TIOCOUTQ
from typing import Any, cast

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from lookalike.api.addresses import Proxies, group
from lookalike.api.errors import MEDIA_TYPE, problem_body
from lookalike.api.monitoring import Metrics
from lookalike.errors import MalformedRequestError, QueueFullError

SILENT_S = 30.0  # before the first byte
HEAD_S = 10.0  # for a request's head, from its first byte
KEEP_ALIVE_S = 75  # between two requests; longer than proxies keep their connections
LAST_ANSWERS_S = 15  # for the requests under way when the service is asked to end
REST_S = 5.0  # for the rest of a body after the answer
ANSWER_S = 20.0  # in which a client must take `ANSWER_STEP` bytes of an answer, or its last bytes
ANSWER_STEP = 10_000

MAX_HEAD_BYTES = 16_384
MAX_HEADERS = 100
FEW_CHUNKS = 1_000  # chunks of a body that may be small
LEAST_CHUNK = 64  # bytes that the others have on average

MOST_CONNECTIONS, LEAST_CONNECTIONS = 8_192, 32
ENOUGH_FILES = 65_536  # descriptors: no more are asked for
SPARE_FILES = 128  # descriptors that are neither connections nor files of requests
ROOM = 8  # connections that are closed at once for new ones
STALLED_S = 2.0  # without taking anything of an answer, after which a connection is one of them
ACCEPTED_AT_ONCE = 100  # before the connections that are open get a turn
BACKLOG = 2_048  # connections that the system may keep until they are accepted

REASONS = {
    "silent": "nothing was sent",
    "head": "the head of a request came too slowly",
    "rest": "the rest of a body that was refused did not come",
    "answer": "the answer was not read",
    "malformed": "what was sent is no valid HTTP",
    "room": "it was idle, and others needed the room",
    "refused": "there are too many",
}

TURNS = 10  # a tenth of the connections is looked at in each tenth of a second
_turns = cycle(range(TURNS))
_INT = bytes(4)
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%!$&'()*+,;=-]*)(:[0-9]{0,5})?")


log = logging.getLogger("lookalike.connections")


class StrictConnection(h11.Connection):
    """h11 without what it lets pass and other parsers read differently."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEAD_BYTES)
        self.complaint = ""  # what was wrong with the request that was refused
        self.is_fresh = True  # no request has come yet
        self._chunks = self._chunked_bytes = 0

    def next_event(self) -> Any:
        """As h11's; raises `RemoteProtocolError` also for what is refused here."""
        try:
            event = super().next_event()
            if type(event) is h11.Request:
                self.is_fresh = False
                self._check(event)
                self._chunks = self._chunked_bytes = 0
            elif type(event) is h11.Data:
                self._count(event)
        except h11.RemoteProtocolError as exc:
            self.complaint = str(exc)[:200]
            raise
        return event

    def _check(self, request: h11.Request) -> None:
        headers = request.headers.raw_items()
        named = {name.lower(): value for name, value in headers}
        size = len(request.target) + sum(len(name) + len(value) for name, value in headers)
        for wrong, text in (
            (request.http_version not in (b"1.0", b"1.1"), "HTTP version is neither 1.0 nor 1.1"),
            (size > MAX_HEAD_BYTES, f"the head has more than {MAX_HEAD_BYTES:,} bytes"),
            (len(headers) > MAX_HEADERS, f"there are more than {MAX_HEADERS} headers"),
            (not request.target.startswith(b"/"), "the target is no path"),
            (not _HOST.fullmatch(named.get(b"host", b"")), "the header Host is no host"),
            (
                b"transfer-encoding" in named
                and (b"content-length" in named or request.http_version == b"1.0"),
                "Transfer-Encoding beside Content-Length, or in HTTP 1.0",
            ),
        ):
            if wrong:
                raise h11.RemoteProtocolError(text)

    def _count(self, data: h11.Data) -> None:
        self._chunks += data.chunk_start
        self._chunked_bytes += len(data.data)
        if self._chunks > FEW_CHUNKS and self._chunked_bytes < self._chunks * LEAST_CHUNK:
            raise h11.RemoteProtocolError("the body comes in chunks that are too small")


class Connection(H11Protocol):
    """One connection."""

    conn: StrictConnection

    def __init__(self, connections: Connections, **of_uvicorn: Any) -> None:
        super().__init__(**of_uvicorn)
        self.conn = StrictConnection()
        self.turn = next(_turns)  # when it is looked at
        self._connections = connections
        self._resumed = 0  # times that writing went on: each time, the client took some
        self._state: tuple[object, ...] = ()  # at the last look
        self._since = time.monotonic()  # the time of the first look that found this state

    def connection_made(self, transport: Any) -> None:
        """Is counted; refused if there is no room."""
        super().connection_made(transport)
        if not self._connections.add(self, self.client[0] if self.client else ""):
            self.refuse(503, QueueFullError.code, "Too many connections; try again in a moment")

    def connection_lost(self, exc: Exception | None) -> None:
        """Is no longer counted."""
        self._connections.remove(self)
        super().connection_lost(exc)

    def resume_writing(self) -> None:
        """Notes that the client took some of its answer."""
        self._resumed += 1
        super().resume_writing()

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way, and no answer."""
        return self.conn.their_state is h11.IDLE and not self._unsent()

    def stalled_s(self, now: float) -> float:
        """Seconds for which the client has not taken its answer."""
        return now - self._since if self._state[:1] == ("answer",) else 0.0

    def look(self, now: float) -> None:
        """Ends the connection if it has been in one state for too long."""
        bound, *state = self._find_state()
        if tuple(state) != self._state:
            self._state, self._since = tuple(state), now
        elif now - self._since > bound:
            self.end(str(state[0]))

    def _find_state(self) -> tuple[Any, ...]:
        """How long the state may last, its name, and what changes as the client goes on."""
        theirs, ours = self.conn.their_state, self.conn.our_state
        if unsent := self._unsent():
            return ANSWER_S, "answer", self.cycle, self._resumed, unsent // ANSWER_STEP
        if theirs is h11.IDLE and self.conn.trailing_data[0]:
            return HEAD_S, "head", self.cycle
        if self.conn.is_fresh:
            return SILENT_S, "silent"
        if theirs is h11.SEND_BODY and ours not in (h11.SEND_RESPONSE, h11.SEND_BODY):
            return REST_S, "rest", self.cycle
        return float("inf"), "working", self.cycle

    def _unsent(self) -> int:
        """Bytes of answers that the client has not taken: those kept here and by the system."""
        if self.conn.is_fresh:
            return 0
        size: int = self.transport.get_write_buffer_size()
        with suppress(OSError, ValueError):  # closed meanwhile
            size += unpack("i", ioctl(self.transport.get_extra_info("socket"), TIOCOUTQ, _INT))[0]
        return size

    def end(self, why: str) -> None:
        """Ends the connection: says why if the client waits for an answer, then closes."""
        self._connections.count(why)
        if why == "head":
            self.refuse(408, "upload_stalled", "The head of the request came too slowly")
        elif why == "answer":
            self.transport.abort()
        else:
            self.transport.close()

    def refuse(self, status: int, code: str, detail: str) -> None:
        """Answers without the application, and closes."""
        self.transport.write(_answer(status, code, detail))
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Refuses a malformed request, and closes; uvicorn calls this."""
        self._connections.count("malformed")
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            detail = f"The request is no valid HTTP: {self.conn.complaint or msg}"
            self.refuse(400, MalformedRequestError.code, detail)
        else:  # its answer has begun already
            self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """Says nothing: the request is answered as if it asked for no upgrade."""


class Connections:
    """All open connections, at most `most`; a quarter of them for one address.

    A few idle ones, the oldest, are closed for a new one where there is no room.
    """

    def __init__(self, most: int, proxies: Proxies, metrics: Metrics) -> None:
        self._most = most
        self._most_of_one = max(1, most // 4)
        self._proxies = proxies
        self._metrics = metrics
        self._open: dict[Connection, str | None] = {}  # the oldest first, with its client
        self._by_client: Counter[str | None] = Counter()
        self._may_give_way = True
        self._full: set[str | None] = set()  # clients, and None for all, that have none to close

    def add(self, connection: Connection, host: str) -> bool:
        """Counts a connection; whether there is room for it."""
        client = None if self._proxies.trusts(host) else group(host)
        of_one = client is not None and self._by_client[client] >= self._most_of_one
        if of_one or len(self._open) >= self._most:
            whose = client if of_one else None
            if whose in self._full or not self._make_room(whose, ROOM):
                self._full.add(whose)
                self.count("refused")
                return False
        self._open[connection] = client
        self._by_client[client] += 1
        self._metrics.connections.inc()
        return True

    def remove(self, connection: Connection) -> None:
        """Forgets a connection; may be called twice."""
        if connection in self._open:
            client = self._open.pop(connection)
            self._by_client[client] -= 1
            if not self._by_client[client]:
                del self._by_client[client]
            self._metrics.connections.dec()

    def count(self, why: str) -> None:
        """Counts and logs that the service ended a connection."""
        self._metrics.connections_ended.labels(why).inc()
        log.warning("connection ended: %s", REASONS[why])

    def look(self, turn: int) -> None:
        """Ends those of a tenth of the connections that are overdue; called ten times a second."""
        self._full.clear()
        self._may_give_way = True
        now = time.monotonic()
        for connection in [one for one in self._open if one.turn == turn % TURNS]:
            connection.look(now)

    def give_way(self) -> None:
        """Closes a quarter of the connections, if so many are idle; at most once between looks.

        Called where none can be accepted because the process may open no more files.
        """
        if self._may_give_way:
            self._may_give_way = False
            self._make_room(None, len(self._open) // 4 + 1)

    def _make_room(self, client: str | None, count: int) -> bool:
        """Closes idle connections, or some whose answers stall; whether there were any."""
        now = time.monotonic()
        found = [one for one, of in self._open.items() if client in (None, of)]
        victims = list(islice((one for one in found if one.is_idle), count))
        victims = victims or [one for one in found if one.stalled_s(now) > STALLED_S][:count]
        for connection in victims:
            self.count("room")
            self.remove(connection)
            connection.transport.abort()
        return bool(victims)


class Server(uvicorn.Server):
    """uvicorn's server for an application, with `Connections` around it."""

    def __init__(self, app: FastAPI, listening: socket.socket, *, most_files: int) -> None:
        parts = app.state.parts
        self._listening = listening
        self._connections = Connections(
            most_connections(most_files, parts.bodies.most), parts.proxies, parts.metrics
        )
        super().__init__(
            uvicorn.Config(
                app,
                http=cast("Any", partial(Connection, self._connections)),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,  # api/addresses.py reads them
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=LAST_ANSWERS_S,
                backlog=ACCEPTED_AT_ONCE,
            )
        )

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        """Leaves signals to `lookalike serve`, which sets `should_exit`."""
        return nullcontext()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens; the system keeps more connections than are accepted at once."""
        asyncio.get_running_loop().set_exception_handler(self._on_error)
        await super().startup(sockets)
        self._listening.listen(BACKLOG)

    def _on_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Closes idle connections where none can be accepted for want of descriptors."""
        if getattr(context.get("exception"), "errno", None) in {errno.EMFILE, errno.ENFILE}:
            self._connections.give_way()
        loop.default_exception_handler(context)

    async def on_tick(self, counter: int) -> bool:
        """Looks at a tenth of the connections; uvicorn calls this ten times a second."""
        self._connections.look(counter)
        return await super().on_tick(counter)


def most_connections(files: int, bodies: int) -> int:
    """How many connections a process may have that may open so many files.

    Each may have a file open that is sent, and each body may be a file of its own.
    """
    return min(MOST_CONNECTIONS, max(LEAST_CONNECTIONS, (files - bodies - SPARE_FILES) // 2))


def raise_file_limit() -> int:
    """Lets the process open as many files as the system allows; returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH_FILES if hard == resource.RLIM_INFINITY else min(hard, ENOUGH_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # a system with a bound of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return ENOUGH_FILES if soft == resource.RLIM_INFINITY else soft


def _answer(status: int, code: str, detail: str) -> bytes:
    """A whole answer in the form of every other error."""
    request_id = uuid.uuid4().hex
    body = json.dumps(problem_body(status, code, detail, request_id)).encode()
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        f"Content-Type: {MEDIA_TYPE}",
        f"Content-Length: {len(body)}",
        f"X-Request-ID: {request_id}",
        "Connection: close",
        *(["Retry-After: 1"] if status == 503 else []),
    )
    return "\r\n".join([*head, "\r\n"]).encode() + body
