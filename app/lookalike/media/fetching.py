"""Fetching the picture at an address, within limits and from nowhere private.

Every connection is opened by `GuardedNetwork`, those of redirects too, which are followed by hand.
httpcore2, the lower half of httpx2, is used directly, since it adds nothing of its own: no cookies,
no credentials, no proxies of the environment, no decompression.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any, BinaryIO, Final, cast

import httpcore2
import httpx2

from lookalike import __version__
from lookalike.errors import FetchError, FetchTimeoutError, ImageTooLargeError, QueueFullError
from lookalike.files.disk import disk_errors
from lookalike.media.fetch_guard import FetchGuard

MAX_ADDRESSES: Final = 4
"""Most addresses of one host that are tried."""

Resolve = Callable[[str, int], list[str]]
"""Gives all IP addresses of a host for a port; raises `OSError` where it has none."""

MAX_REDIRECTS: Final = 5
"""Most redirects that are followed."""

_REDIRECTS = {301, 302, 303, 307, 308}
_SPOOLED_BYTES = 1_000_000
_MAX_VALIDATOR = 500  # characters
_HEADERS = [
    (b"User-Agent", f"Lookalike/{__version__}".encode("ascii")),
    (b"Accept", b"image/*"),
    (b"Accept-Encoding", b"identity"),
    (b"Connection", b"close"),
]


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

    `places` bounds them, those included that nobody waits for any more.
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


class Fetcher:
    """Fetches pictures from addresses, at most `places` at once; safe to call from many threads.

    One picture has at most `max_bytes`, and waits in `folder` if it has more than 1 MB. It takes at
    most `timeout_s` seconds, from DNS to the last byte, redirects included.
    """

    def __init__(
        self,
        guard: FetchGuard,
        *,
        folder: Path,
        max_bytes: int,
        timeout_s: float,
        places: int,
        resolve: Resolve = system_addresses,
    ) -> None:
        self._guard = guard
        self._folder = folder
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._places = threading.BoundedSemaphore(places)
        self._resolver = Resolver(resolve, places=2 * places)

    @contextmanager
    def fetch(self, address: str) -> Iterator[BinaryIO]:
        """Fetches a picture; the file is open inside the block, and gone after it.

        What the bytes are is not looked at: only a decoder can say.

        Raises:
            UrlNotAllowedError: The address, or one that it leads to, is not fetched.
            FetchError: It cannot be reached, or answers with something else than a file.
            FetchTimeoutError: It takes too long.
            ImageTooLargeError: It has more bytes than the limit allows.
            QueueFullError: Too many addresses are being fetched.
            StorageError: The spool folder cannot be written to.
        """
        file, _ = self.download(address)
        assert file is not None
        with file:
            yield file

    def download(
        self, address: str, *, validator: str | None = None
    ) -> tuple[BinaryIO | None, str | None]:
        """As `fetch`; the file is gone when the caller closes it.

        Returns the file with its validator: the header with which a later call asks the server
        whether it changed, None if it offers none. With one, no file if it did not change.
        """
        spool = SpooledTemporaryFile(_SPOOLED_BYTES, dir=str(self._folder))  # noqa: SIM115
        file = cast("BinaryIO", spool)
        try:
            with self._place():
                found = self._follow(address, file, validator)
            file.seek(0)
        except BaseException:
            file.close()
            raise
        if found.unchanged:
            file.close()
        return None if found.unchanged else file, found.validator

    @contextmanager
    def _place(self) -> Iterator[None]:
        if not self._places.acquire(blocking=False):
            raise QueueFullError(
                "Too many addresses are being fetched already; send this again in a moment"
            )
        try:
            yield
        finally:
            self._places.release()

    def _follow(self, address: str, file: BinaryIO, validator: str | None) -> _Answer:
        deadline = Deadline(self._timeout_s)
        first = url = self._guard.read(address)
        for _ in range(MAX_REDIRECTS + 1):
            # Only the first address is asked: what a redirect leads to may be another by now.
            found = self._get(url, file, deadline, validator if url is first else None)
            if found.location is None:
                return found if url is first else _Answer()
            url = self._guard.follow(url, found.location)
        raise FetchError(
            f"The address leads on more than {MAX_REDIRECTS} times; send the one where the "
            "picture itself is"
        )

    def _get(
        self, url: httpx2.URL, file: BinaryIO, deadline: Deadline, validator: str | None
    ) -> _Answer:
        """One request: puts the picture into the file, if it has one."""
        target = httpcore2.URL(
            scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
        )
        network = GuardedNetwork(self._guard, self._resolver, deadline)
        sent = [(b"Host", url.netloc), *_HEADERS]
        if validator is not None:
            name, _, value = validator.encode("ascii").partition(b": ")
            sent.append((name, value))
        with (
            _translated(deadline),
            httpcore2.HTTPConnection(
                target.origin, ssl_context=self._tls, network_backend=network
            ) as connection,
            connection.stream("GET", target, headers=sent) as answer,
        ):
            headers = httpx2.Headers(answer.headers)
            if answer.status in _REDIRECTS and "Location" in headers:
                return _Answer(location=headers["Location"])
            if answer.status == 304 and validator is not None:
                return _Answer(unchanged=True)
            self._check_head(answer.status, headers)
            self._receive(answer.iter_stream(), file)
        return _Answer(validator=_validator(headers))

    def _check_head(self, status: int, headers: httpx2.Headers) -> None:
        if status != 200:
            raise FetchError(f"The address answered {status} instead of a picture")
        if headers.get("Content-Encoding", "identity").strip().lower() not in {"", "identity"}:
            raise FetchError(
                "The address answered with a compressed body, which was not asked for; download "
                "the picture and send it to POST /search"
            )
        announced = headers.get("Content-Length", "")  # a hint: `_receive` counts
        if announced.isascii() and announced.isdigit() and int(announced) > self._max_bytes:
            raise self._too_large()

    def _receive(self, chunks: Iterable[bytes], file: BinaryIO) -> None:
        received = 0
        for chunk in chunks:
            received += len(chunk)
            if received > self._max_bytes:
                raise self._too_large()
            with disk_errors("keep the picture that was fetched"):
                file.write(chunk)

    def _too_large(self) -> ImageTooLargeError:
        return ImageTooLargeError(
            f"The picture at the address has more than {self._max_bytes:,} bytes; use a smaller "
            "one, or raise LOOKALIKE_MAX_FILE_BYTES"
        )

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        """Checks certificates and host names; made once, since reading the authorities is slow."""
        return httpx2.create_ssl_context()


@dataclass(frozen=True, slots=True)
class _Answer:
    location: str | None = None  # where a redirect leads
    unchanged: bool = False  # the file is the one that the validator was of
    validator: str | None = None


def _validator(headers: httpx2.Headers) -> str | None:
    """The header that asks whether a file changed; an entity tag before a date."""
    for name, sent in (("ETag", "If-None-Match"), ("Last-Modified", "If-Modified-Since")):
        value = headers.get(name, "").strip()
        if value and value.isascii() and value.isprintable() and len(value) <= _MAX_VALIDATOR:
            return f"{sent}: {value}"
    return None


@contextmanager
def _translated(deadline: Deadline) -> Iterator[None]:
    """Turns httpcore2's errors into ours; nothing of what the other side sent is repeated."""
    try:
        yield
    except httpcore2.TimeoutException as exc:
        raise deadline.missed() from exc
    except (httpcore2.NetworkError, httpcore2.ProtocolError) as exc:
        raise FetchError(
            "The address could not be fetched: its host refused or broke the connection, or did "
            "not answer in HTTP; check that it opens in a browser"
        ) from exc
