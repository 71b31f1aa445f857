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
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from fcntl import ioctl
from functools import partial
from http import HTTPStatus
from itertools import islice, takewhile
from struct import unpack
from termios import TIOCOUTQ
from typing import Any, cast

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from lookalike.api.addresses import Proxies, group
from lookalike.api.admission import Share
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
SMALL_PIECE = 1_000  # bytes that come at once
FEW_PIECES = 20  # of a request that may be small
PIECES_S = 0.5  # between the others
LEAST_CHUNK = 64  # bytes that the others have on average

MOST_CONNECTIONS, LEAST_CONNECTIONS = 8_192, 32
ENOUGH_FILES = 65_536  # descriptors: no more are asked for
SPARE_FILES = 128  # descriptors that are neither connections nor files of requests
ROOM = 16  # connections that are closed at once for new ones
LONG_IDLE_S = 2.0  # that lets a connection give way to files that are to be opened
STALLED_S = 2.0  # without taking anything of an answer, after which a connection is one of them
ACCEPTED_AT_ONCE = 16  # before the connections that are open get a turn
MOST_REST_S = 0.05  # between those, while the event loop is busy for a fifth of the time
MOST_ENDED = 200  # silent connections in one look: more would keep the others waiting
RETRY_S = 0.1  # before others are accepted where none could be
NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
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

    def __init__(
        self, connections: Connections, of: str | None, config: uvicorn.Config, state: ServerState
    ) -> None:
        super().__init__(config, state, app_state={})
        self.conn = StrictConnection()
        self.of = of  # the client that it counts for
        self._connections = connections
        self._small_pieces = 0  # of this request
        self._resumed = 0  # times that writing went on: each time, the client took some
        self._state: tuple[object, ...] = ()  # at the last look
        self._since = time.monotonic()  # the time of the first look that found this state

    def connection_made(self, transport: Any) -> None:
        """Is looked at from now on."""
        super().connection_made(transport)
        self._connections.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Is no longer counted."""
        self._connections.closed(self)
        super().connection_lost(exc)

    def resume_writing(self) -> None:
        """Notes that the client took some of its answer."""
        self._resumed += 1
        super().resume_writing()

    def on_response_complete(self) -> None:
        """Notes that an answer is complete."""
        self._connections.answered(self)
        self._small_pieces = 0
        super().on_response_complete()

    def data_received(self, data: bytes) -> None:
        """Reads what came; after many small pieces, waits until more is there."""
        super().data_received(data)
        if len(data) < SMALL_PIECE and self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self._small_pieces += 1
            if self._small_pieces > FEW_PIECES and not self.transport.is_closing():
                self.transport.pause_reading()
                self.loop.call_later(PIECES_S, self._read_on)

    def _read_on(self) -> None:
        if not self.flow.read_paused:
            self.transport.resume_reading()

    def idle_s(self, now: float) -> float:
        """Seconds without a request or an answer; -1 if one is under way."""
        is_idle = self.conn.their_state is h11.IDLE and not self._unsent()
        return now - self._since if is_idle else -1.0

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
        if self.conn.is_fresh:
            return HEAD_S, "head", self.cycle
        theirs, ours = self.conn.their_state, self.conn.our_state
        if unsent := self._unsent():
            return ANSWER_S, "answer", self.cycle, self._resumed, unsent // ANSWER_STEP
        if theirs is h11.IDLE and self.conn.trailing_data[0]:
            return HEAD_S, "head", self.cycle
        if theirs is h11.SEND_BODY and ours not in (h11.SEND_RESPONSE, h11.SEND_BODY):
            return REST_S, "rest", self.cycle
        return float("inf"), "working", self.cycle

    def _unsent(self) -> int:
        """Bytes of answers that the client has not taken: those kept here and by the system."""
        size: int = self.transport.get_write_buffer_size()
        with suppress(OSError, ValueError):  # closed meanwhile
            size += unpack("i", ioctl(self.transport.get_extra_info("socket"), TIOCOUTQ, _INT))[0]
        return size

    def end(self, why: str) -> None:
        """Closes the connection; what the client has not read by now is dropped."""
        self._connections.tell(why)
        if why == "answer":
            self.transport.abort()
        else:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Refuses a malformed request, and closes; uvicorn calls this."""
        self._connections.tell("malformed")
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # no answer has begun
            detail = f"The request is no valid HTTP: {self.conn.complaint or msg}"
            self.transport.write(_answer(400, MalformedRequestError.code, detail))
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """Says nothing: the request is answered as if it asked for no upgrade."""


class Connections:
    """All connections, at most `most`; a quarter of them for one client.

    A few are closed for new ones where there is no room: those that never sent anything, else
    those that never sent a whole request, else those that sent none for longest, else those that
    take nothing of their answer.
    """

    def __init__(self, most: int, proxies: Proxies, metrics: Metrics) -> None:
        self._share = Share(most, part=4)
        self._proxies = proxies
        self._metrics = metrics
        self._silent: dict[socket.socket, tuple[str | None, float]] = {}  # the oldest first
        self._turns: list[set[Connection]] = [set() for _ in range(TURNS)]
        self._open: dict[Connection, set[Connection]] = {}  # with its turn; the last used last
        self._full: set[str | None] = set()  # clients, and None for all, that have none to close
        self._may_give_way = True
        metrics.connections.set_function(lambda: self._share.held)

    # Connections that have sent nothing: sockets alone, which cost next to nothing

    def accept(self, accepted: socket.socket, host: str) -> bool:
        """Counts a connection, if there is room for it."""
        client = None if self._proxies.trusts(host) else group(host)
        spent = self._share.is_spent(client)
        if spent or self._share.is_full:
            whose = client if spent else None
            if whose in self._full or not self._make_room(whose, ROOM, idle_s=0.0):
                self._full.add(whose)
                self.tell("refused")
                return False
        self._silent[accepted] = client, time.monotonic()
        self._share.add(client, 1)
        return True

    def begins(self, accepted: socket.socket) -> str | None:
        """Takes a connection out of the silent ones; returns its client."""
        client, _ = self._silent.pop(accepted)
        return client

    def drop(self, accepted: socket.socket) -> None:
        """Closes a connection that has sent nothing."""
        asyncio.get_running_loop().remove_reader(accepted.fileno())
        self.gone(self.begins(accepted))
        accepted.close()

    def gone(self, client: str | None) -> None:
        """Counts a connection no longer."""
        self._share.add(client, -1)

    # Connections that have sent something

    def opened(self, connection: Connection) -> None:
        """Looks at a connection from now on."""
        turn = self._open[connection] = min(self._turns, key=len)
        turn.add(connection)

    def answered(self, connection: Connection) -> None:
        """Notes that a connection was just used."""
        if connection in self._open:
            self._open[connection] = self._open.pop(connection)

    def closed(self, connection: Connection) -> None:
        """Forgets a connection; may be called twice."""
        turn = self._open.pop(connection, None)
        if turn is not None:
            turn.remove(connection)
            self.gone(connection.of)

    # All of them

    def tell(self, why: str, count: int = 1) -> None:
        """Counts and logs that the service ended connections."""
        self._metrics.connections_ended.labels(why).inc(count)
        log.warning("connections ended: %d, %s", count, REASONS[why])

    def look(self, turn: int) -> None:
        """Ends those of a tenth of the connections that are overdue; called ten times a second."""
        self._full.clear()
        self._may_give_way = True
        now = time.monotonic()
        too_long = takewhile(lambda one: now - self._silent[one][1] > SILENT_S, self._silent)
        if overdue := list(islice(too_long, MOST_ENDED)):
            self.tell("silent", len(overdue))
            for accepted in overdue:
                self.drop(accepted)
        for connection in list(self._turns[turn % TURNS]):
            connection.look(now)

    def give_way(self) -> None:
        """Closes a quarter of the connections, if so many are idle; at most once between looks.

        Called where none can be accepted because the process may open no more files.
        """
        if self._may_give_way:
            self._may_give_way = False
            self._make_room(None, self._share.held // 4 + 1, idle_s=LONG_IDLE_S)

    def close(self) -> None:
        """Closes those that have sent nothing; uvicorn closes the others."""
        for accepted in list(self._silent):
            self.drop(accepted)

    def _make_room(self, client: str | None, count: int, *, idle_s: float) -> bool:
        """Closes connections that were idle for so long, or whose answers stall, if any."""
        now = time.monotonic()
        silent = (one for one, (of, _) in self._silent.items() if client in (None, of))

        def those(may_go: Callable[[Connection], bool]) -> Iterator[Connection]:
            return (one for one in self._open if client in (None, one.of) and may_go(one))

        kinds: tuple[Iterator[socket.socket | Connection], ...] = (
            silent,
            those(lambda one: one.conn.is_fresh),
            those(lambda one: one.idle_s(now) >= idle_s),
            those(lambda one: one.stalled_s(now) > STALLED_S),
        )
        for found in kinds:
            if victims := list(islice(found, count)):
                self.tell("room", len(victims))
                for victim in victims:
                    if isinstance(victim, Connection):
                        self.closed(victim)
                        victim.transport.abort()
                    else:
                        self.drop(victim)
                return True
        return False


class Acceptor:
    """Accepts connections, a few at a time; uvicorn's protocol begins at the first byte."""

    def __init__(
        self, listening: socket.socket, connections: Connections, make: Callable[..., Connection]
    ) -> None:
        self._listening = listening
        self._connections = connections
        self._make = make
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepted_at = self._worked = 0.0  # when, and CPU seconds of this thread by then
        listening.setblocking(False)
        listening.listen(BACKLOG)
        self._loop.add_reader(listening, self._accept)

    def close(self) -> None:
        """Accepts no more; uvicorn calls this."""
        self._loop.remove_reader(self._listening)
        self._connections.close()

    async def wait_closed(self) -> None:
        """Returns at once: `close` has closed everything."""

    def _accept(self) -> None:
        """Accepts a few, unless what came with those before leaves too little time for others."""
        now, worked = time.monotonic(), time.thread_time()
        rest = min(4 * (worked - self._worked), MOST_REST_S) - (now - self._accepted_at)
        if rest > 0:
            self._pause(rest)
            return
        self._accepted_at, self._worked = now, worked
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                accepted, (host, *_) = self._listening.accept()
            except OSError as exc:
                if exc.errno in NO_ROOM:
                    log.warning("no connection can be accepted: %s", exc.strerror)
                    self._connections.give_way()
                    self._pause(RETRY_S)
                return
            accepted.setblocking(False)
            first = _first_byte(accepted)
            if first == b"":
                accepted.close()
            elif not self._connections.accept(accepted, host):
                _refuse(accepted)
            elif first is None:
                # By its number: asyncio would put a socket's addresses into a text each time.
                self._loop.add_reader(accepted.fileno(), self._begin, accepted)
            else:
                self._hand_over(accepted)

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._listening)
        self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        if self._listening.fileno() >= 0:  # not closed meanwhile
            self._loop.add_reader(self._listening, self._accept)

    def _begin(self, accepted: socket.socket) -> None:
        if _first_byte(accepted):
            self._loop.remove_reader(accepted.fileno())
            self._hand_over(accepted)
        else:
            self._connections.drop(accepted)

    def _hand_over(self, accepted: socket.socket) -> None:
        task = self._loop.create_task(self._open(accepted, self._connections.begins(accepted)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self, accepted: socket.socket, client: str | None) -> None:
        try:
            await self._loop.connect_accepted_socket(partial(self._make, client), accepted)
        except OSError:  # closed meanwhile
            accepted.close()
            self._connections.gone(client)


class Server(uvicorn.Server):
    """uvicorn's server for an application, with `Connections` around it."""

    def __init__(self, app: FastAPI, *, most_files: int) -> None:
        parts = app.state.parts
        self._connections = Connections(
            most_connections(most_files, parts.bodies.most), parts.proxies, parts.metrics
        )
        super().__init__(
            uvicorn.Config(
                app,
                http=H11Protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,  # api/addresses.py reads them
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=LAST_ANSWERS_S,
            )
        )

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        """Leaves signals to `lookalike serve`, which sets `should_exit`."""
        return nullcontext()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens on each socket; uvicorn calls this."""

        def make(client: str | None) -> Connection:
            return Connection(self._connections, client, self.config, self.server_state)

        self.servers = [
            cast("Any", Acceptor(listening, self._connections, make)) for listening in sockets or []
        ]
        for listening in sockets or []:
            host, port = listening.getsockname()[:2]
            log.info("listening on http://%s:%d", host, port)
        self.started = True

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


def _first_byte(accepted: socket.socket) -> bytes | None:
    """The first byte that was sent, left where it is; None if there is none yet, b"" at the end."""
    try:
        return accepted.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def _refuse(accepted: socket.socket) -> None:
    """Answers without reading a request, and closes."""
    detail = "Too many connections are open; try again in a moment"
    with suppress(OSError):
        accepted.send(_answer(503, QueueFullError.code, detail))
    accepted.close()


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
