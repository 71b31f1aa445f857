"""Bounds on what is under way: places in the queue, bodies that are still coming, and reads.

All are shared among clients: one client gets at most a part.
"""

from __future__ import annotations

import asyncio
import threading
import time
from asyncio import Future, TimerHandle
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lookalike.api.addresses import Proxies
from lookalike.api.audit import SAFE
from lookalike.api.errors import answer
from lookalike.api.monitoring import PROBES
from lookalike.errors import MalformedRequestError, QueueFullError, UploadStalledError

READS_AT_ONCE = 2  # more would keep searches from the interpreter, and take no less time
READS_WAITING = 512  # of all clients; a quarter of them for one
LONG_S = 0.1  # after which a read lets the next one begin
LONG_READS = 4  # that go on meanwhile; half of them for one client
MOST_REST_S = 0.05  # after a read, before the next one begins while pictures are being handled

STALL_S = 10.0  # of waiting, in which a body must bring `STALL_BYTES`, or its last bytes
STALL_BYTES = 10_000
SPARED_S = 0.5  # after its begin, in which a body is given up only if all others are as new
LEAST_AGE_S = 0.1  # that a body's rate is reckoned from
FAST = 100_000  # bytes a second, from which on a body is never given up


class Share:
    """Counts what each client holds, of a number of things; one may hold a `part`-th of them.

    `None` stands for clients that cannot be told apart, which have no bound of their own.
    """

    def __init__(self, most: int, *, part: int = 2) -> None:
        self.most = most
        self.of_one = max(1, most // part)
        self.held = 0
        self._by_client: Counter[str] = Counter()

    @property
    def is_full(self) -> bool:
        """Whether all clients together hold as many as there are."""
        return self.held >= self.most

    def is_spent(self, client: str | None, count: int = 1) -> bool:
        """Whether a client that takes so many more would hold more than one may."""
        return client is not None and self._by_client[client] + count > self.of_one

    def add(self, client: str | None, count: int) -> None:
        """Counts what a client takes, or gives back."""
        self.held += count
        if client is not None:
            self._by_client[client] += count
            if not self._by_client[client]:
                del self._by_client[client]


class Admission:
    """Limits how many requests are served at once.

    Refuses while all places are taken, or while as many pictures wait as there are places.
    """

    def __init__(
        self, places: int, waiting: Callable[[], int] = lambda: 0, *, what: str = "pictures"
    ) -> None:
        self._lock = threading.Lock()
        self._share = Share(places)
        self._waiting = waiting
        self._what = what

    @property
    def is_busy(self) -> bool:
        """Whether a place is held."""
        return self._share.held > 0

    def check(self, client: str | None = None) -> None:
        """Raises `QueueFullError` if no place is free; asked before a body is read."""
        with self._lock:
            self._check(client)

    @contextmanager
    def place(self, client: str | None = None, count: int = 1) -> Iterator[None]:
        """Holds places inside the block, at most all that one client may have, and at least one.

        Raises `QueueFullError` if so many are not free.
        """
        count = max(1, min(count, self._share.of_one))
        with self._lock:
            self._check(client, count)
            self._share.add(client, count)
        try:
            yield
        finally:
            with self._lock:
                self._share.add(client, -count)

    def _check(self, client: str | None, count: int = 1) -> None:
        share = self._share
        if share.is_spent(client, count):
            raise QueueFullError(
                f"{share.of_one} {self._what} from your address wait already, as many as one "
                "address may have; try again in a moment"
            )
        if share.held + count > share.most or self._waiting() >= share.most:
            raise QueueFullError(f"Too many {self._what} wait already; try again in a moment")


class Turns:
    """Lets reads begin a few at a time, one of each client in turn; used on the event loop.

    A read that takes long lets the next one begin while it goes on. Few may do so, and a client
    with half of them gets no turn until one ends. While the service `is_busy` with pictures, a
    turn rests four times as long as it was held, so that reads take a fifth of the time.
    """

    def __init__(self, is_busy: Callable[[], bool] = lambda: False) -> None:
        self._is_busy = is_busy
        self._free = READS_AT_ONCE
        self._long = Share(LONG_READS)
        self._places = Share(READS_WAITING, part=4)
        self._waiting: dict[str | None, deque[Future[None]]] = {}  # the next client first

    @asynccontextmanager
    async def turn(self, client: str | None) -> AsyncIterator[None]:
        """Holds a turn inside the block. Raises `QueueFullError` if too many wait for one."""
        if self._places.is_full or self._places.is_spent(client):
            raise QueueFullError("Too many requests wait already; try again in a moment")
        loop, is_long = asyncio.get_running_loop(), False
        timer: TimerHandle | None = None
        turn = loop.create_future()
        self._waiting.setdefault(client, deque()).append(turn)
        self._places.add(client, 1)
        self._give()

        def pass_on() -> None:
            nonlocal is_long, timer
            if self._long.is_full or self._long.is_spent(client):
                timer = loop.call_later(LONG_S, pass_on)
            else:
                is_long = True
                self._long.add(client, 1)
                self._pass_on()

        began = loop.time()
        try:
            await turn
            began = loop.time()
            timer = loop.call_later(LONG_S, pass_on)
            yield
        finally:
            if timer is not None:
                timer.cancel()
            if is_long:
                self._long.add(client, -1)
                self._give()
            elif not turn.cancelled():
                held_s = loop.time() - began
                rest_s = min(4 * held_s, MOST_REST_S) if self._is_busy() else 0.0
                loop.call_later(rest_s, self._pass_on)

    def _pass_on(self) -> None:
        self._free += 1
        self._give()

    def _give(self) -> None:
        """Gives turns to those who wait, while there are any."""
        while (
            self._free
            and (
                client := next((one for one in self._waiting if not self._long.is_spent(one)), ...)
            )
            is not ...
        ):
            turns = self._waiting.pop(client)
            turn = turns.popleft()
            self._places.add(client, -1)
            if turns:
                self._waiting[client] = turns  # again after all others
            if not turn.cancelled():
                self._free -= 1
                turn.set_result(None)


class InTurn:
    """Has requests that only read wait for their turn, but for those that ask how it goes.

    A turn ends where the answer begins: a client may take its time to read it.
    """

    def __init__(
        self, app: ASGIApp, *, proxies: Proxies, is_busy: Callable[[], bool] = lambda: False
    ) -> None:
        self._app = app
        self._proxies = proxies
        self._turns = Turns(is_busy)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection, as ASGI asks."""
        if scope["type"] != "http" or not _only_reads(scope):
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        async with AsyncExitStack() as turn:

            async def send_on(message: Message) -> None:
                await turn.aclose()
                await send(message)

            try:
                client = self._proxies.client_of(request)
                await turn.enter_async_context(self._turns.turn(client))
            except QueueFullError as exc:
                await asyncio.sleep(exc.retry_after_s)  # else they would be back at once
                await answer(request, exc)(scope, receive, send)
                return
            if not await request.is_disconnected():
                await self._app(scope, receive, send_on)


_EMBEDS = {"/explain"}  # waits for the network, and takes a place as searches do


def _only_reads(scope: Scope) -> bool:
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    return scope["method"] in SAFE and path not in PROBES | _EMBEDS


class Bodies:
    """The bodies that are coming, bounded by their number and their bytes; they hold no places.

    Where a bound is reached, the slowest body is given up for the others, so that bodies which
    trickle in never keep out those that come at once. If none is slow, the newest is refused.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self.most = most
        self._share = Share(most)
        self._most_bytes = most_bytes
        self._bytes = 0
        self._coming: dict[Body, None] = {}

    @contextmanager
    def coming(self, client: str | None) -> Iterator[Body]:
        """Counts a body inside the block. Raises `QueueFullError` if there is no room for it."""
        spent = self._share.is_spent(client)
        if spent or self._share.is_full:
            self._make_room(client if spent else None)
        body = Body(self, client)
        self._coming[body] = None
        self._share.add(client, 1)
        try:
            yield body
        finally:
            self._remove(body)

    def received(self, count: int) -> None:
        """Counts bytes of a body. Raises `QueueFullError` if all together have too many."""
        self._bytes += count
        while self._bytes > self._most_bytes:
            self._make_room()

    def _make_room(self, client: str | None = None) -> None:
        """Gives up the slowest body, of one client if it is named; one that just began last."""
        now = time.monotonic()
        slow = [
            body
            for body in self._coming
            if (client is None or body.client == client) and body.rate(now) < FAST
        ]
        if not slow:
            whose = "from your address " if client else ""
            raise QueueFullError(f"Too many bodies {whose}come at once; try again in a moment")
        slowest = min(slow, key=lambda body: (now - body.began < SPARED_S, body.rate(now)))
        self._remove(slowest)
        slowest.give_up()

    def _remove(self, body: Body) -> None:
        if body in self._coming:
            del self._coming[body]
            self._share.add(body.client, -1)
            self._bytes -= body.received


class Body:
    """A request's body while it comes."""

    def __init__(self, bodies: Bodies, client: str | None = None) -> None:
        self.client = client
        self.received = 0  # bytes
        self._bodies = bodies
        self.began = time.monotonic()
        self._reading: asyncio.Timeout | None = None
        self._given_up = False

    def rate(self, now: float) -> float:
        """Bytes a second until now; the first bytes say little, since they come together."""
        return self.received / max(now - self.began, LEAST_AGE_S)

    def is_given_up(self) -> bool:
        """Whether it was ended for another body."""
        return self._given_up

    def give_up(self) -> None:
        """Ends it: its reader gets `QueueFullError`. Called on the event loop."""
        self._given_up = True
        if self._reading is not None and not self._reading.expired():
            self._reading.reschedule(0.0)

    async def chunks(self, request: Request, *, body_s: float) -> AsyncIterator[bytes]:
        """Yields the body as it arrives. Only time spent waiting for the client counts.

        Raises:
            UploadStalledError: It comes too slowly, or is not complete after `body_s` seconds.
            MalformedRequestError: The connection ended before the body did.
            QueueFullError: It was given up for another body.
        """
        chunks = aiter(request.stream())
        waited, brought, now = 0.0, 0, time.monotonic()
        while not self.is_given_up():
            asked = now
            try:
                async with asyncio.timeout(
                    min(STALL_S - waited, self.began + body_s - asked)
                ) as self._reading:
                    chunk = await anext(chunks)
            except StopAsyncIteration:
                return
            except TimeoutError as exc:
                if self.is_given_up():
                    break
                raise UploadStalledError(
                    f"The body came too slowly: {STALL_S:.0f} s brought less than "
                    f"{STALL_BYTES:,} bytes, or it was not complete after {body_s:,.0f} s; send "
                    "the request again"
                ) from exc
            except ClientDisconnect as exc:
                raise MalformedRequestError("The connection ended before the body did") from exc
            finally:
                self._reading = None
            if self.is_given_up():
                break
            self.received += len(chunk)
            self._bodies.received(len(chunk))
            waited, brought = waited + time.monotonic() - asked, brought + len(chunk)
            if brought >= STALL_BYTES:
                waited, brought = 0.0, 0
            yield chunk
            now = time.monotonic()
        raise QueueFullError(
            "Too many bodies come at once, and yours was the slowest; send the request again in a "
            "moment"
        )
