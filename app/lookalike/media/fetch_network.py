"""Connections that lead where the guard allows, and that end when their time is over."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, Final

import httpcore2

from lookalike.errors import FetchError, FetchTimeoutError
from lookalike.media.fetch_guard import FetchGuard

MAX_ADDRESSES: Final = 4
"""Most addresses of one host that are tried."""

Resolve = Callable[[str, int], list[str]]
"""Gives all IP addresses of a host for a port; raises `OSError` where it has none."""


def system_addresses(host: str, port: int) -> list[str]:
    """All IP addresses of a host, as the system's resolver knows them. Raises `OSError`."""
    answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in answers]


class Deadline:
    """The moment by which everything must be done."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    def remaining(self) -> float:
        """Seconds left, more than 0. Raises `FetchTimeoutError`."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise self.missed()
        return left

    def missed(self) -> FetchTimeoutError:
        """The error for what is not done in time."""
        return FetchTimeoutError(
            f"The address did not give its picture within {self._seconds:g} s; try again, or raise "
            "LOOKALIKE_FETCH_TIMEOUT"
        )


class Resolver:
    """Asks DNS on threads of its own, because a thread that asks cannot be interrupted.

    Args:
        resolve: How host names become IP addresses.
        places: Most threads, those included that nobody waits for any more.
    """

    def __init__(self, resolve: Resolve, *, places: int) -> None:
        self._resolve = resolve
        self._places = threading.BoundedSemaphore(places)

    def addresses(self, host: str, port: int, deadline: Deadline) -> list[str]:
        """All different addresses of a host, none where it is not known."""
        if not self._places.acquire(timeout=deadline.remaining()):
            raise deadline.missed()
        answer: Future[list[str]] = Future()
        threading.Thread(
            target=self._ask, args=(host, port, answer), name="resolve", daemon=True
        ).start()
        try:
            return list(dict.fromkeys(answer.result(timeout=deadline.remaining())))
        except TimeoutError as exc:
            raise deadline.missed() from exc
        except OSError:
            return []

    def _ask(self, host: str, port: int, answer: Future[list[str]]) -> None:
        try:
            answer.set_result(self._resolve(host, port))
        except Exception as exc:  # raised again where it is waited for
            answer.set_exception(exc)
        finally:
            self._places.release()


class GuardedNetwork(httpcore2.NetworkBackend):
    """The one place that opens connections for the fetcher.

    A host is resolved once, all its addresses are checked, and one of those very addresses is
    connected to: a name that means something else a moment later (DNS rebinding) changes nothing.

    Args:
        guard: Decides which addresses may be connected to.
        resolver: Turns host names into IP addresses.
        deadline: When every wait ends.
    """

    def __init__(self, guard: FetchGuard, resolver: Resolver, deadline: Deadline) -> None:
        self._guard = guard
        self._resolver = resolver
        self._deadline = deadline
        self._network = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 - the deadline is what counts
        local_address: str | None = None,  # noqa: ARG002 - the system chooses
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,  # noqa: ARG002 - none
    ) -> httpcore2.NetworkStream:
        """Resolves once, checks every address, and connects to the first that answers."""
        answers = self._resolver.addresses(host, port, self._deadline)
        addresses = self._guard.check(host, answers)[:MAX_ADDRESSES]
        for left in range(len(addresses), 1, -1):
            try:
                return self._connect(addresses[-left], port, share=1 / left)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                continue
        return self._connect(addresses[-1], port, share=1)

    def _connect(self, address: str, port: int, *, share: float) -> httpcore2.NetworkStream:
        stream = self._network.connect_tcp(
            address, port, timeout=self._deadline.remaining() * share
        )
        return TimedStream(stream, self._deadline)


class TimedStream(httpcore2.NetworkStream):
    """A connection on which each wait ends with the deadline, however slowly bytes trickle."""

    def __init__(self, stream: httpcore2.NetworkStream, deadline: Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        """Whatever has come."""
        return self._stream.read(max_bytes, timeout=self._deadline.remaining())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        """Sends everything."""
        self._stream.write(buffer, timeout=self._deadline.remaining())

    def close(self) -> None:
        """Closes the connection."""
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> httpcore2.NetworkStream:
        """The same connection under TLS, the certificate checked against the host's name."""
        try:
            stream = self._stream.start_tls(
                ssl_context, server_hostname, timeout=self._deadline.remaining()
            )
        except httpcore2.ConnectError as exc:
            raise FetchError(
                "The address has no certificate that can be trusted for its host, or speaks no "
                "TLS; check that it opens in a browser"
            ) from exc
        except FetchTimeoutError:
            self.close()
            raise
        return TimedStream(stream, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        """What the connection knows of itself."""
        return self._stream.get_extra_info(info)
