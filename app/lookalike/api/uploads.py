"""Checks a request before its body is read, and limits the body while it streams in."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import shutil
import threading
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any, BinaryIO, cast
from urllib.parse import unquote

from anyio import to_thread
from fastapi import Request, Response
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, Headers
from starlette.formparsers import MultiPartException, MultiPartParser

from lookalike.api.admission import Body
from lookalike.api.deps import Parts, Route, parts_of
from lookalike.api.security import needed_access
from lookalike.errors import (
    ArchiveTooLargeError,
    ImageTooLargeError,
    LookalikeError,
    MalformedRequestError,
    MetadataTooLargeError,
    RequestTooLargeError,
    TooManyFilesError,
)
from lookalike.progress import Caller, caller
from lookalike.records import nfc

BODY_S = 600.0  # after which a body must be complete
ARCHIVE_BODY_S = 6 * 3600.0  # after which an archive must be complete
ARCHIVES_AT_ONCE = 8  # that are sent; they take no places in the queue of searches
MOST_IN_MEMORY = 8  # pictures of more than 1 MB that stay in memory while the disk is full
FORM_OVERHEAD_BYTES = 64_000  # for the boundary and the headers of each part
OTHER_FIELDS = 16  # most fields beside files and their ids
_QUOTED = re.compile(rb'"(?:[^"\\]|\\.)*"')
_EXTENDED = re.compile(rb"(?i);\s*filename\*\s*=\s*([a-z0-9_.-]*)'[^']*'([^;\s]*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadLimits:
    """How much a multipart body may hold, and where its files wait."""

    file_bytes: int  # most bytes of one file
    field_bytes: int  # most bytes of one field that is no file
    files: int  # most files
    folder: Path  # where files beyond 1 MB are spooled
    body_s: float = BODY_S  # seconds after which a body must be complete
    asked: str = "the picture as a file; e.g. curl -F file=@photo.jpg"  # what is to be sent
    all_bytes: int | None = None  # most bytes of all files together; None: each may be the largest
    fields: int = OTHER_FIELDS  # most fields beside files and one for each file
    passing: bool = False  # whether the files are not kept, so that memory will do on a full disk
    archive: bool = False  # whether the one file is an archive
    path: Path | None = None  # the file that an archive is written to

    @property
    def body_bytes(self) -> int:
        """Most bytes of the whole body."""
        files = self.files * self.file_bytes if self.all_bytes is None else self.all_bytes
        return files + self.field_bytes + (self.files + 1) * FORM_OVERHEAD_BYTES

    def too_large(self, filename: str | None = None) -> LookalikeError:
        """The error for too many bytes, of a named file or of the whole body."""
        if self.archive:
            return ArchiveTooLargeError(
                f"The archive has more than {self.file_bytes:,} bytes; send it in parts, or raise "
                "LOOKALIKE_MAX_ARCHIVE_BYTES"
            )
        if filename is None and self.files > 1:
            return RequestTooLargeError(
                f"The request has more than {self.body_bytes:,} bytes; send fewer or smaller files"
            )
        name = "The picture" if filename is None else repr(filename)
        return ImageTooLargeError(
            f"{name} has more than {self.file_bytes:,} bytes; send a smaller file, or raise "
            "LOOKALIKE_MAX_FILE_BYTES"
        )

    def spool(self) -> BinaryIO:
        """Opens a file for one upload."""
        if self.path is not None:
            return self.path.open("x+b")
        return cast("BinaryIO", Spool(self))


class Spool(SpooledTemporaryFile[bytes]):
    """The file of one upload: in memory, or on the disk once it has more than 1 MB.

    A few pictures at a time stay in memory if the disk has no room, so that searches go on.
    """

    _in_memory = threading.BoundedSemaphore(MOST_IN_MEMORY)

    def __init__(self, limits: UploadLimits) -> None:
        super().__init__(max_size=MultiPartParser.spool_max_size, dir=str(limits.folder))
        self._limits = limits
        self._stays = False

    def rollover(self) -> None:
        """Moves what is there to the disk. Raises `OSError` if it has no room."""
        if self._stays:
            return
        limits = self._limits
        try:
            _require_room(limits)
            super().rollover()
        except OSError:
            if not limits.passing or not self._in_memory.acquire(blocking=False):
                raise
            self._stays = True

    def close(self) -> None:
        """Lets go of the file, and of its place in memory; may be called twice."""
        if self._stays and not self.closed:
            self._in_memory.release()
        super().close()


def _require_room(limits: UploadLimits) -> None:
    """Raises `OSError` if the disk has no room for a file: a half-written one cannot be saved."""
    if shutil.disk_usage(limits.folder).free < limits.file_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class LimitedParser(MultiPartParser):
    """Starlette's parser with a limit for each file and a folder of our own for spooled files."""

    def __init__(
        self, headers: Headers, stream: AsyncIterator[bytes], limits: UploadLimits
    ) -> None:
        super().__init__(
            headers,
            cast("Any", stream),
            max_files=limits.files,
            max_fields=limits.files + limits.fields,
            max_part_size=limits.field_bytes,
        )
        self._limits = limits
        self._file_bytes = 0

    def on_part_begin(self) -> None:
        """Starts to count the bytes of a new part."""
        super().on_part_begin()
        self._file_bytes = 0

    def on_headers_finished(self) -> None:
        """Has the part's file, if it is one, named as its sender does and spooled to our folder."""
        part = self._current_part
        extended = extended_name(part.content_disposition or b"")
        if extended is not None:
            part.content_disposition = (part.content_disposition or b"") + b"; filename=x"
        if self._current_files >= self._limits.files and self._next_is_file():
            most = "one file" if self._limits.files == 1 else f"{self._limits.files} files"
            raise TooManyFilesError(f"More than {most} in one request; send them in several")
        super().on_headers_finished()
        if (upload := part.file) is not None:
            plain = (upload.filename or "").replace("%22", '"')  # as browsers write it
            upload.filename = nfc(plain if extended is None else extended)
            upload.file.close()
            upload.file = self._limits.spool()
            self._files_to_close_on_error[-1] = cast("Any", upload.file)

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        """Counts bytes of a part. Raises `ImageTooLargeError` or `MetadataTooLargeError`."""
        size = end - start
        if self._current_part.file is None:
            if len(self._current_part.data) + size > self._limits.field_bytes:
                name = self._current_part.field_name
                kind = MetadataTooLargeError if name == "metadata" else RequestTooLargeError
                raise kind(f"The field {name!r} has more than {self._limits.field_bytes:,} bytes")
        else:
            self._file_bytes += size
            if self._file_bytes > self._limits.file_bytes:
                raise self._limits.too_large(self._current_part.file.filename)
        super().on_part_data(data, start, end)

    def _next_is_file(self) -> bool:
        _, options = parse_options_header(self._current_part.content_disposition)
        return b"filename" in options


def extended_name(disposition: bytes) -> str | None:
    """The `filename*` (RFC 5987) of a Content-Disposition: all that some clients send."""
    found = _EXTENDED.search(_QUOTED.sub(b'""', disposition))
    if found is None:
        return None
    encoding = "latin-1" if found[1].lower() == b"iso-8859-1" else "utf-8"
    name = unquote(found[2].decode("ascii", "replace"), encoding, "replace")
    return re.sub("[\0-\x1f]", "?", name)


async def read_form(request: Request, limits: UploadLimits, body: Body) -> FormData:
    """Reads a multipart body within limits, its files spooled to disk.

    Raises `MalformedRequestError`, or an `InvalidImageError` or `InvalidRequestError` at a limit.
    """
    content_type = request.headers.get("Content-Type", "")
    if not content_type.lower().startswith("multipart/form-data"):
        raise MalformedRequestError(f"The body must be multipart/form-data with {limits.asked}")
    try:
        stream = _stream(request, limits, body)
        return await LimitedParser(request.headers, stream, limits).parse()
    except MultiPartException as exc:
        raise MalformedRequestError(f"The multipart body is broken: {exc.message}") from exc


async def read_json(
    request: Request, parts: Parts, limit: int, too_large: type[LookalikeError]
) -> bytes:
    """Reads a body of at most so many bytes. Raises `too_large` for more."""
    content = bytearray()
    with parts.bodies.coming(parts.proxies.client_of(request)) as body:
        async for chunk in body.chunks(request, body_s=BODY_S):
            content += chunk
            if len(content) > limit:
                raise too_large(f"The body has more than {limit:,} bytes")
    return bytes(content)


async def _stream(request: Request, limits: UploadLimits, body: Body) -> AsyncIterator[bytes]:
    async for chunk in body.chunks(request, body_s=limits.body_s):
        if body.received > limits.body_bytes:
            raise limits.too_large()
        yield chunk


@contextmanager
def leaving(request: Request) -> Iterator[None]:
    """Tells the block's `caller` if the client leaves. The body must have been read."""
    waiting = Caller()

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        waiting.leave()

    token = caller.set(waiting)
    watcher = asyncio.ensure_future(watch())
    try:
        yield
    finally:
        watcher.cancel()
        caller.reset(token)


class LimitedRoute(Route):
    """A route that checks the key and reads the body within limits, before FastAPI would."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wraps FastAPI's handler, which finds the body read."""
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle
        access = needed_access(self.dependencies)
        assert access is not None  # no body is read for all

        async def limited(request: Request) -> Response:
            parts = parts_of(request)
            parts.keys.check(request, access)
            async with self.body_of(request, parts):
                with leaving(request):
                    return await handle(request)

        return limited

    @abstractmethod
    def body_of(self, request: Request, parts: Parts) -> AbstractAsyncContextManager[None]:
        """Reads the body, and holds what the call needs meanwhile."""


class UploadRoute(LimitedRoute):
    """A route that takes pictures to search with. Checks the queue before it reads the body."""

    def limits_of(self, parts: Parts) -> UploadLimits:
        """What the body may hold."""
        return parts.query_limits

    def places_of(self, form: FormData) -> int:
        """How many places a request takes: one for each picture or text that is embedded."""
        return sum(name in {"file", "text"} for name, _ in form.multi_items())

    @asynccontextmanager
    async def body_of(self, request: Request, parts: Parts) -> AsyncIterator[None]:
        """Holds places in the queue once the body is here.

        While there is no place, no body is read.
        """
        limits = self.limits_of(parts)
        announced_bytes(request, limits)
        client = parts.proxies.client_of(request)
        parts.admission.check(client)
        with parts.bodies.coming(client) as body:
            form = await read_form(request, limits, body)
        try:
            with parts.admission.place(client, self.places_of(form)):
                request._form = form
                yield
        finally:
            await form.close()


class IndexRoute(UploadRoute):
    """A route that takes many pictures, which wait in the queue as bulk work does."""

    def limits_of(self, parts: Parts) -> UploadLimits:
        """What the body may hold."""
        return parts.index_limits

    def places_of(self, form: FormData) -> int:  # noqa: ARG002 - as its base
        """One: bulk work leaves room for others by itself."""
        return 1


class BatchRoute(UploadRoute):
    """A route that takes many queries: as JSON, or as the field `queries` of a form with files."""

    def limits_of(self, parts: Parts) -> UploadLimits:
        """What the body may hold."""
        return parts.batch_limits

    @asynccontextmanager
    async def body_of(self, request: Request, parts: Parts) -> AsyncIterator[None]:
        """As its base; JSON becomes the field of a form."""
        if not request.headers.get("Content-Type", "").lower().startswith("application/json"):
            async with super().body_of(request, parts):
                yield
            return
        limit = self.limits_of(parts).field_bytes
        client = parts.proxies.client_of(request)
        parts.admission.check(client)
        content = await read_json(request, parts, limit, RequestTooLargeError)
        request._form = FormData([("queries", content.decode("utf-8", "replace"))])
        with parts.admission.place(client):
            yield


class JsonRoute(LimitedRoute):
    """A route that takes a body of JSON."""

    too_large: type[LookalikeError] = MetadataTooLargeError
    more_bytes = 0  # that the body may have, beyond those of one picture's fields

    def admit(self, parts: Parts, client: str | None) -> None:
        """Raises to refuse a request before its body is read."""

    @asynccontextmanager
    async def body_of(self, request: Request, parts: Parts) -> AsyncIterator[None]:
        """Holds nothing."""
        client = parts.proxies.client_of(request)
        self.admit(parts, client)
        limit = parts.search_limits.field_bytes + self.more_bytes
        request._body = await read_json(request, parts, limit, self.too_large)
        yield


class ArchiveRoute(LimitedRoute):
    """A route that takes one archive, which is written straight into its file.

    The route finds the file's path in `request.state.spool`, and moves it where it is kept.
    """

    @asynccontextmanager
    async def body_of(self, request: Request, parts: Parts) -> AsyncIterator[None]:
        """Holds a place among the archives, and the file."""
        limits = parts.archive_limits
        size = announced_bytes(request, limits)
        client = parts.proxies.client_of(request)
        with parts.archive_admission.place(client), parts.archives.coming(client) as body:
            spool = await to_thread.run_sync(parts.services.imports.spool, size)
            request.state.spool = spool
            try:
                request._form = await read_form(request, replace(limits, path=spool), body)
                yield
            finally:
                spool.unlink(missing_ok=True)


def announced_bytes(request: Request, limits: UploadLimits) -> int:
    """Returns the Content-Length of the body, 0 if there is none; refuses one beyond the limits."""
    try:
        size = int(request.headers.get("Content-Length", 0))
    except ValueError as exc:
        raise MalformedRequestError("The header Content-Length is no number") from exc
    if size > limits.body_bytes:
        raise limits.too_large()
    return size
