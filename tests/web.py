"""A web server on this machine that answers as badly as a test asks for."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from tests.waiting import PATIENCE_S

Page = bytes | Callable[[socket.socket], None]
"""What is sent for a path: all of it, or whatever a function does with the connection."""


class Web:
    """Serves `pages` by path on a free port; remembers every connection and request.

    Attributes:
        pages: What is sent for each path.
        validators: The header field that each path is sent with, as `ETag: "1"`; who sends its
            value back gets 304 without a body.
        requests: The head of each request that came, as it was sent.
        connections: How many connections were made.
        names: The host names that TLS clients asked for.
    """

    def __init__(
        self, *, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
    ) -> None:
        self.pages: dict[str, Page] = {}
        self.validators: dict[str, str] = {}
        self.requests: list[str] = []
        self.names: list[str | None] = []
        self.connections = 0
        self._tls = tls
        if tls is not None:
            tls.sni_callback = lambda _connection, name, _context: self.names.append(name)
        self._listening = socket.create_server((host, port))
        self.port = self._listening.getsockname()[1]
        self.url = f"{'http' if tls is None else 'https'}://{host}:{self.port}"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._talk, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _talk(self, connection: socket.socket) -> None:
        connection.settimeout(PATIENCE_S)
        with connection, suppress(OSError):
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
            with connection:
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            if not (more := connection.recv(65_536)):
                return
            head += more
        self.requests.append(head.decode("latin-1"))
        path = head.split(b" ")[1].decode()
        page = self.pages.get(path, page_of(b"", status="404 Not Found"))
        if (field := self.validators.get(path)) is not None:
            first, _, rest = bytes(page).partition(b"\r\n")  # type: ignore[arg-type]
            page = b"\r\n".join([first, field.encode(), rest])
            value = field.partition(": ")[2]
            if value and f": {value}\r\n".encode() in head:
                page = page_of(b"", field, status="304 Not Modified")
        if callable(page):
            page(connection)
        else:
            connection.sendall(page)

    def close(self) -> None:
        """Ends all connections and threads."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


def page_of(body: bytes, *fields: str, status: str = "200 OK", length: int | None = None) -> bytes:
    """An answer with header fields and the length of its body, or the length that is claimed."""
    announced = len(body) if length is None else length
    head = [f"HTTP/1.1 {status}", f"Content-Length: {announced}", *fields, "", ""]
    return "\r\n".join(head).encode() + body


def leads_to(location: str, *fields: str, status: str = "302 Found") -> bytes:
    """A redirect."""
    return page_of(b"", f"Location: {location}", *fields, status=status)


def endless(head: bytes, block: bytes) -> Page:
    """The head, then the block over and over until the other side hangs up."""

    def send(connection: socket.socket) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(block)

    return send


def trickling(data: bytes) -> Page:
    """One byte every 20 ms, the last one over and over until the other side hangs up."""

    def send(connection: socket.socket) -> None:
        for n in range(10_000):
            connection.sendall(data[min(n, len(data) - 1)].to_bytes())
            time.sleep(0.02)

    return send


def silent(connection: socket.socket) -> None:
    """Nothing at all, until the other side hangs up."""
    connection.recv(1)
