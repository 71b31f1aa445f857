"""Fetching the picture at an address, within limits and from nowhere private.

Every connection is opened by `GuardedNetwork`, those of redirects too, which are followed by hand.
httpcore2, the lower half of httpx2, is used directly, since it adds nothing of its own: no cookies,
no credentials, no proxies of the environment, no decompression.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import BinaryIO, Final, cast

import httpcore2
import httpx2

from lookalike import __version__
from lookalike.errors import FetchError, ImageTooLargeError, QueueFullError
from lookalike.files.disk import disk_errors
from lookalike.media.fetch_guard import FetchGuard
from lookalike.media.fetch_network import (
    Deadline,
    GuardedNetwork,
    Resolve,
    Resolver,
    system_addresses,
)

MAX_REDIRECTS: Final = 5
"""Most redirects that are followed."""

_REDIRECTS = {301, 302, 303, 307, 308}
_SPOOLED_BYTES = 1_000_000
_HEADERS = [
    (b"User-Agent", f"Lookalike/{__version__}".encode("ascii")),
    (b"Accept", b"image/*"),
    (b"Accept-Encoding", b"identity"),
    (b"Connection", b"close"),
]


class Fetcher:
    """Fetches pictures from addresses; safe to call from many threads.

    Args:
        guard: Decides which addresses may be fetched.
        folder: Where pictures beyond 1 MB are spooled.
        max_bytes: Most bytes of a picture.
        timeout_s: Seconds for one picture, from DNS to the last byte, redirects included.
        places: Most pictures fetched at once.
        resolve: How host names become IP addresses.
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
        with SpooledTemporaryFile(_SPOOLED_BYTES, dir=str(self._folder)) as spool:
            file = cast("BinaryIO", spool)
            with self._place():
                self._follow(address, file)
            file.seek(0)
            yield file

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

    def _follow(self, address: str, file: BinaryIO) -> None:
        deadline = Deadline(self._timeout_s)
        url = self._guard.read(address)
        for _ in range(MAX_REDIRECTS + 1):
            location = self._get(url, file, deadline)
            if location is None:
                return
            url = self._guard.follow(url, location)
        raise FetchError(
            f"The address leads on more than {MAX_REDIRECTS} times; send the one where the "
            "picture itself is"
        )

    def _get(self, url: httpx2.URL, file: BinaryIO, deadline: Deadline) -> str | None:
        """One request: puts the picture into the file, or returns where a redirect leads."""
        target = httpcore2.URL(
            scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
        )
        network = GuardedNetwork(self._guard, self._resolver, deadline)
        with (
            _translated(deadline),
            httpcore2.HTTPConnection(
                target.origin, ssl_context=self._tls, network_backend=network
            ) as connection,
            connection.stream("GET", target, headers=[(b"Host", url.netloc), *_HEADERS]) as answer,
        ):
            headers = httpx2.Headers(answer.headers)
            if answer.status in _REDIRECTS and "Location" in headers:
                return headers["Location"]
            self._check_head(answer.status, headers)
            self._receive(answer.iter_stream(), file)
        return None

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
