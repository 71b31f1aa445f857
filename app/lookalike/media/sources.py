"""A picture on its way in, wherever it comes from."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from lookalike.errors import LookalikeError, UnreadableImageError
from lookalike.records import Metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureSource:
    """A file that waits to be indexed: an open upload or a path that is opened when needed.

    Attributes:
        filename: For display, and stored with the picture.
        size: Bytes.
        file: The open upload; None where `path` is given.
        path: A file on this machine; None for uploads.
        id: The caller's id, or None for one made from the content.
        metadata: The caller's metadata, or None to keep what is stored.
        error: Why it cannot be opened, where that is known already.
    """

    filename: str
    size: int
    file: BinaryIO | None = None
    path: Path | None = None
    id: str | None = None
    metadata: Metadata | None = field(default=None)
    error: LookalikeError | None = None

    @classmethod
    def from_path(
        cls, path: Path, *, id: str | None = None, metadata: Metadata | None = None
    ) -> PictureSource:
        """A file on this machine, kept closed until its turn comes."""
        try:
            facts = path.stat()
        except OSError as exc:
            raise UnreadableImageError(f"{path} cannot be read: {exc.strerror}") from exc
        if not stat.S_ISREG(facts.st_mode):
            raise UnreadableImageError(f"{path} cannot be read: it is no regular file")
        name = os.fsencode(path.name).decode("utf-8", "replace")
        return cls(filename=name, size=facts.st_size, path=path, id=id, metadata=metadata)

    @classmethod
    def try_path(cls, path: Path, *, metadata: Metadata | None = None) -> PictureSource:
        """As `from_path`; one that cannot be read says so when it is opened, not now."""
        try:
            return cls.from_path(path, metadata=metadata)
        except UnreadableImageError as exc:
            return cls.refused(path, exc, metadata=metadata)

    @classmethod
    def refused(
        cls, path: Path, error: LookalikeError, *, metadata: Metadata | None = None
    ) -> PictureSource:
        """A path that is never opened; the error says why."""
        name = os.fsencode(path.name).decode("utf-8", "replace")
        return cls(filename=name, size=0, path=path, metadata=metadata, error=error)

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The bytes, from the start. Raises `error`, or `UnreadableImageError` if it is gone."""
        if self.error is not None:
            raise self.error
        if self.file is not None:
            self.file.seek(0)
            yield self.file
            return
        if self.path is None:
            raise UnreadableImageError(f"{self.filename} has neither a file nor a path")
        try:
            file = self.path.open("rb")
        except OSError as exc:
            raise UnreadableImageError(f"{self.path} cannot be read: {exc.strerror}") from exc
        with file:
            yield file

    def lies_at(self, path: str | None) -> bool:
        """Whether this is the file at a path that `resolved_path` returned."""
        return self.path is not None and str(self.path.resolve()) == path

    def resolved_path(self) -> str:
        """Where the file lies, its links followed, as it can be stored.

        Raises:
            UnreadableImageError: Its name, or a folder's, is no text.
        """
        assert self.path is not None
        path = str(self.path.resolve())
        try:
            path.encode()
        except UnicodeEncodeError as exc:
            shown = os.fsencode(path).decode("ascii", "backslashreplace")
            raise UnreadableImageError(
                f"{shown} cannot be referred to in place: the name of the file or of a folder is "
                "no UTF-8; rename it, or have copies kept with LOOKALIKE_ORIGINALS=keep"
            ) from exc
        return path

    def close(self) -> None:
        """Closes the open file, where there is one."""
        if self.file is not None:
            self.file.close()

    def sha256(self) -> str:
        """Hex digest of the bytes, read as a stream."""
        with self.open() as file:
            return sha256_of(file)


def sha256_of(file: BinaryIO) -> str:
    """Hex digest of everything from where the file stands."""
    digest = hashlib.sha256()
    while block := file.read(2**18):
        digest.update(block)
    return digest.hexdigest()
