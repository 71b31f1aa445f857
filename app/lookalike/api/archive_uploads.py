"""What happens before the body of POST /index/archive is read, and where it goes."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from anyio import to_thread
from fastapi import Request, Response
from fastapi.routing import APIRoute

from lookalike.api.security import Access
from lookalike.api.upload_limits import UploadLimits
from lookalike.api.uploads import announced_bytes, read_form
from lookalike.errors import ArchiveTooLargeError, LookalikeError
from lookalike.services.importing import ImportService

ARCHIVE_BODY_S = 6 * 3600.0
"""Seconds after which an archive must be complete."""

ARCHIVES_AT_ONCE = 8
"""Most archives on their way; a place of their own each, so that none is a search's for hours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveUploadLimits(UploadLimits):
    """How much an archive may have.

    Attributes:
        path: The file that it is written to.
    """

    path: Path | None = None
    body_s: float = ARCHIVE_BODY_S
    asked: str = "the archive as a file; e.g. curl -F file=@photos.zip"

    def body_too_large(self) -> LookalikeError:
        """The error for an archive with too many bytes."""
        return ArchiveTooLargeError(
            f"The archive has more than {self.file_bytes:,} bytes; send it in parts, or raise "
            "LOOKALIKE_MAX_ARCHIVE_BYTES"
        )

    def file_too_large(self, filename: str | None) -> LookalikeError:  # noqa: ARG002 - as above
        """The error for an archive with too many bytes."""
        return self.body_too_large()

    def spool(self) -> BinaryIO:
        """The file that the archive is written to."""
        assert self.path is not None
        return self.path.open("x+b")


class ArchiveRoute(APIRoute):
    """A route that takes one archive: key, room, and then the body, straight into its file.

    The route finds the file's path in `request.state.spool`, and moves it where it is kept.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wraps FastAPI's handler, which would read the body first of all."""
        handle = super().get_route_handler()

        async def limited(request: Request) -> Response:
            state = request.app.state
            state.keys.check(request, Access.ADMIN)
            limits: ArchiveUploadLimits = state.archive_limits
            size = announced_bytes(request)
            if size > limits.body_bytes:
                raise limits.body_too_large()
            imports: ImportService = state.services.imports
            with state.archive_admission.place():
                spool = await to_thread.run_sync(imports.spool, size)
                request.state.spool = spool
                try:
                    request._form = await read_form(request, replace(limits, path=spool))
                    return await handle(request)
                finally:
                    spool.unlink(missing_ok=True)

        return limited
