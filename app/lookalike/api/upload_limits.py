"""How much a multipart body may hold, and what is said of one that holds more."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import BinaryIO, cast

from starlette.formparsers import MultiPartParser

from lookalike.errors import (
    ImageTooLargeError,
    LookalikeError,
    MalformedRequestError,
    RequestTooLargeError,
    TooManyFilesError,
)

BODY_S = 120.0
"""Seconds after which a body must be complete."""

FORM_OVERHEAD_BYTES = 64_000
"""Room for boundaries and part headers, for each part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadLimits:
    """How much a multipart body may hold, and where its files wait.

    Attributes:
        file_bytes: Most bytes of one file.
        field_bytes: Most bytes of one field that is no file.
        files: Most files.
        folder: Where files beyond 1 MB are spooled.
        body_s: Seconds after which a body must be complete.
        asked: What is to be sent, and an example of it.
    """

    file_bytes: int
    field_bytes: int
    files: int
    folder: Path
    body_s: float = BODY_S
    asked: str = "the picture as a file; e.g. curl -F file=@photo.jpg"

    @property
    def body_bytes(self) -> int:
        """Most bytes of the whole body."""
        parts = self.files * (self.file_bytes + FORM_OVERHEAD_BYTES)
        return parts + self.field_bytes + FORM_OVERHEAD_BYTES

    def body_too_large(self) -> LookalikeError:
        """The error for a body with too many bytes."""
        if self.files == 1:
            return ImageTooLargeError(
                f"The picture has more than {self.file_bytes:,} bytes; send a smaller file, or "
                "raise LOOKALIKE_MAX_FILE_BYTES"
            )
        return RequestTooLargeError(
            f"The request has more than {self.body_bytes:,} bytes; send fewer or smaller files"
        )

    def file_too_large(self, filename: str | None) -> LookalikeError:
        """The error for a file with too many bytes."""
        return ImageTooLargeError(
            f"{filename!r} has more than {self.file_bytes:,} bytes; send a smaller file, or raise "
            "LOOKALIKE_MAX_FILE_BYTES"
        )

    def too_many_files(self) -> LookalikeError:
        """The error for more files than these."""
        most = "one file" if self.files == 1 else f"{self.files} files"
        return TooManyFilesError(f"More than {most} in one request; send them in several")

    def no_form(self) -> LookalikeError:
        """The error for a body that is no multipart form."""
        return MalformedRequestError(f"The body must be multipart/form-data with {self.asked}")

    def spool(self) -> BinaryIO:
        """A new file for what is sent."""
        spool = SpooledTemporaryFile(  # noqa: SIM115 - closed with the form
            max_size=MultiPartParser.spool_max_size, dir=str(self.folder)
        )
        return cast("BinaryIO", spool)
