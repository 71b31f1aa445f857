"""What happens before a body is read: the key, room in the queue, and limits while it streams."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, cast

from anyio import current_time, fail_after
from fastapi import Request, Response
from fastapi.routing import APIRoute
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from lookalike.api.security import Access
from lookalike.api.upload_limits import BODY_S, UploadLimits
from lookalike.errors import (
    LookalikeError,
    MalformedRequestError,
    MetadataTooLargeError,
    QueueFullError,
    RequestTooLargeError,
    UploadStalledError,
)

IDLE_S = 10.0
"""Seconds without a byte after which a body has stalled."""

OTHER_FIELDS = 16
"""Most fields beside files and their ids."""


class Admission:
    """Counts the requests that hold a place; decides before a body is read.

    Args:
        places: Most requests inside at once.
        waiting: Tells how many pictures wait in the queue now.
        what: What the places are for, in messages.
    """

    def __init__(
        self, places: int, waiting: Callable[[], int] = lambda: 0, *, what: str = "pictures"
    ) -> None:
        self._places = places
        self._waiting = waiting
        self._what = what
        self._inside = 0
        self._lock = threading.Lock()

    @contextmanager
    def place(self) -> Iterator[None]:
        """Holds a place inside the block. Raises `QueueFullError` at once where none is free."""
        with self._lock:
            if self._inside >= self._places or self._waiting() >= self._places:
                raise QueueFullError(f"Too many {self._what} wait already; try again in a moment")
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1


class LimitedParser(MultiPartParser):
    """Starlette's parser with a limit for each file and a folder of our own for spooled files."""

    def __init__(
        self, headers: Headers, stream: AsyncIterator[bytes], limits: UploadLimits
    ) -> None:
        super().__init__(
            headers,
            cast("Any", stream),
            max_files=limits.files,
            max_fields=limits.files + OTHER_FIELDS,
            max_part_size=limits.field_bytes,
        )
        self._limits = limits
        self._file_bytes = 0

    def on_part_begin(self) -> None:
        """A new part starts: its bytes are counted from zero."""
        super().on_part_begin()
        self._file_bytes = 0

    def on_headers_finished(self) -> None:
        """The part's headers are read: files beyond 1 MB go to our folder."""
        if self._current_files >= self._limits.files and self._next_is_file():
            raise self._limits.too_many_files()
        super().on_headers_finished()
        if (upload := self._current_part.file) is not None:
            upload.file.close()
            upload.file = self._limits.spool()
            self._files_to_close_on_error[-1] = cast("Any", upload.file)

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        """Bytes of a part arrive. Raises `ImageTooLargeError`, `MetadataTooLargeError`."""
        size = end - start
        if self._current_part.file is None:
            if len(self._current_part.data) + size > self._limits.field_bytes:
                name = self._current_part.field_name
                kind = MetadataTooLargeError if name == "metadata" else RequestTooLargeError
                raise kind(f"The field {name!r} has more than {self._limits.field_bytes:,} bytes")
        else:
            self._file_bytes += size
            if self._file_bytes > self._limits.file_bytes:
                raise self._limits.file_too_large(self._current_part.file.filename)
        super().on_part_data(data, start, end)

    def _next_is_file(self) -> bool:
        _, options = parse_options_header(self._current_part.content_disposition)
        return b"filename" in options


async def read_form(request: Request, limits: UploadLimits) -> FormData:
    """Reads a multipart body within limits, its files spooled to disk.

    Raises:
        MalformedRequestError: It is no multipart body, or a broken one.
        InvalidImageError, InvalidRequestError: It goes beyond a limit.
    """
    content_type = request.headers.get("Content-Type", "")
    if not content_type.lower().startswith("multipart/form-data"):
        raise limits.no_form()
    try:
        return await LimitedParser(request.headers, _stream(request, limits), limits).parse()
    except MultiPartException as exc:
        raise MalformedRequestError(f"The multipart body is broken: {exc.message}") from exc


async def _stream(request: Request, limits: UploadLimits) -> AsyncIterator[bytes]:
    received = 0
    async for chunk in unstalled(request, body_s=limits.body_s):
        received += len(chunk)
        if received > limits.body_bytes:
            raise limits.body_too_large()
        yield chunk


async def unstalled(request: Request, *, body_s: float = BODY_S) -> AsyncIterator[bytes]:
    """The body as it comes, within limits of time.

    Raises:
        UploadStalledError: Nothing came for `IDLE_S`, or it was not complete after `body_s`.
        MalformedRequestError: The connection ended before the body did.
    """
    deadline = current_time() + body_s
    chunks = aiter(request.stream())
    while True:
        try:
            with fail_after(min(IDLE_S, deadline - current_time())):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        except TimeoutError as exc:
            raise UploadStalledError("The body stopped coming; send the request again") from exc
        except ClientDisconnect as exc:
            raise MalformedRequestError("The connection ended before the body did") from exc
        yield chunk


class UploadRoute(APIRoute):
    """A route that takes pictures: key, then room, then the body within limits."""

    access = Access.READ
    one_file = True

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wraps FastAPI's handler, which would read the body first of all."""
        handle = super().get_route_handler()

        async def limited(request: Request) -> Response:
            state = request.app.state
            state.keys.check(request, self.access)
            limits: UploadLimits = state.search_limits if self.one_file else state.index_limits
            if announced_bytes(request) > limits.body_bytes:
                raise limits.body_too_large()
            with state.admission.place():
                request._form = await read_form(request, limits)  # FastAPI finds it read
                return await handle(request)

        return limited


class JsonRoute(APIRoute):
    """A route whose changes come as JSON: the key first, then a body within limits."""

    too_large: type[LookalikeError] = MetadataTooLargeError

    def admit(self, request: Request) -> None:
        """Decides before a body is read. Raises what the answer shall say."""
        request.app.state.keys.check(request, Access.ADMIN)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wraps FastAPI's handler, which would read the body first of all."""
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def limited(request: Request) -> Response:
            self.admit(request)
            limit = request.app.state.search_limits.field_bytes
            body = bytearray()
            async for chunk in unstalled(request):
                body += chunk
                if len(body) > limit:
                    raise self.too_large(f"The body has more than {limit:,} bytes")
            request._body = bytes(body)  # FastAPI finds it read
            return await handle(request)

        return limited


class IndexRoute(UploadRoute):
    """A route that takes many pictures and changes the collection."""

    access = Access.ADMIN
    one_file = False


def upload_size(upload: UploadFile) -> int:
    """Bytes of an upload."""
    return upload.size or 0


def announced_bytes(request: Request) -> int:
    """Bytes of the body as its header says; 0 where it says nothing."""
    try:
        return int(request.headers.get("Content-Length", 0))
    except ValueError as exc:
        raise MalformedRequestError("The header Content-Length is no number") from exc
