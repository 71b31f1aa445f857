"""Reading zip and tar files that may be hostile, one member at a time.

Nothing is extracted to a name of the archive's own. What can be had of an archive is bounded:
bytes of each member by what is read and not by what is claimed, bytes in all, members, and the
memory that its directory or its headers take.
"""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any, BinaryIO, Self, cast

from lookalike.errors import (
    ArchiveError,
    ImageTooLargeError,
    LookalikeError,
    NotAnArchiveError,
    UnreadableImageError,
)
from lookalike.files.disk import disk_errors
from lookalike.media.archive_formats import (
    MAX_HEADER_BYTES,
    READ_AHEAD,
    BoundedFile,
    EmptyReader,
    Entry,
    ForwardReader,
    Reader,
    TarReader,
    ZipReader,
    archive_errors,
    as_text,
    in_ascii,
    is_tar,
    leads_up,
    member_errors,
    name_parts,
    too_many,
    too_much,
    unpacked,
)
from lookalike.media.sources import is_picture_name

MAX_MEMBERS = 1_000_000
"""Most members of an archive."""

MAX_DIRECTORY_BYTES = 100_000_000
"""Most bytes of a zip file's directory; about 130 for each picture."""

SPARE_BYTES = 100_000_000
"""What an archive may unpack to whatever its own size is, in bytes."""

MAX_RATIO = 100
"""How many times its own size an archive may unpack to, beyond `SPARE_BYTES`."""

_SPOOLED = 1_000_000
_ZIP_START = b"PK\3\4"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveLimits:
    """How much is read.

    Attributes:
        file_bytes: Of one member.
        total_bytes: Of all members together, unpacked; None: by the archive's own size alone.
        members: Members, pictures or not.
    """

    file_bytes: int
    total_bytes: int | None = None
    members: int = MAX_MEMBERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A member that is a picture by its name.

    Attributes:
        position: Its place among all members, from 0.
        path: Its whole name as it stands in the archive, in ASCII, other characters escaped.
        filename: The last part of its name, for display; never to be used as a path.
        folder: The name of the folder it lies in; empty at the top.
        size: Bytes, where it was read.
        content: Its bytes; the reader's to close. None where there is an error.
        error: Why it cannot be had.
    """

    position: int
    path: str
    filename: str
    folder: str
    size: int = 0
    content: BinaryIO | None = None
    error: LookalikeError | None = None


class Archive:
    """A zip file, or a tar file that is plain or packed with gzip, bzip2 or xz.

    A member counts as a picture by its name, as a file in a folder does: by its suffix, and
    unless it or a folder above it is hidden. Archives inside are not opened.

    Args:
        path: The file.
        limits: How much is read.
        folder: Where members above 1 MB wait, without a name.

    Raises:
        ArchiveError: It is no archive, or cannot be read.
    """

    def __init__(self, path: Path, limits: ArchiveLimits, *, folder: Path) -> None:
        self._limits = limits
        self._folder = folder
        self._opened = ExitStack()
        with self._opened, archive_errors():
            size = path.stat().st_size
            total = SPARE_BYTES + MAX_RATIO * size
            self._left = total if limits.total_bytes is None else min(total, limits.total_bytes)
            file = self._opened.enter_context(
                BoundedFile(path, most=MAX_DIRECTORY_BYTES, members=limits.members)
            )
            self._reader = self._open(file)
            self._opened = self._opened.pop_all()

    def __enter__(self) -> Self:
        """Ready to be read, once."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the file."""
        self._opened.close()

    def count(self, step: Callable[[], None] = lambda: None) -> int:
        """How many members are pictures by their names; the archive is then at its end.

        Args:
            step: Called for every member, and often in between; may raise to end the work.

        Raises:
            ArchiveError: The archive is broken, or beyond a bound.
        """
        return sum(1 for _ in self._pictures(step))

    def members(
        self, *, start: int = 0, step: Callable[[], None] = lambda: None
    ) -> Iterator[Member]:
        """The pictures in the order of the archive, each read and ready.

        Args:
            start: The first position to read.
            step: As of `count`.

        Raises:
            ArchiveError: The archive is broken from here on, or beyond a bound.
            StorageError: The disk refuses what waits there.
        """
        for position, entry in self._pictures(step):
            if position >= start:
                yield self._read(position, entry)

    def _open(self, file: BoundedFile) -> Reader:
        stream = self._opened.enter_context(unpacked(file))
        forward = self._stream = ForwardReader(stream, most=self._left)
        head = forward.peek()
        if is_tar(head):  # first, since the last member of a tar file may be a zip file
            forward.allow(MAX_HEADER_BYTES)
            tar = tarfile.open(fileobj=cast("Any", forward), mode="r:")  # noqa: SIM115
            return TarReader(self._opened.enter_context(tar), forward, most=self._limits.file_bytes)
        if not head.strip(b"\0") and forward.only_zeros():
            return EmptyReader()
        if zipfile.is_zipfile(file):
            return ZipReader(self._opened.enter_context(zipfile.ZipFile(file)))
        raise _no_archive(head)

    def _pictures(self, step: Callable[[], None]) -> Iterator[tuple[int, Entry]]:
        self._stream.step = step
        entries = self._reader.entries()
        position = 0
        while True:
            step()
            with archive_errors():
                try:
                    entry = next(entries)
                except StopIteration:
                    return
            if position >= self._limits.members:
                raise too_many(self._limits.members)
            if entry is not None and _is_picture(entry.name):
                yield position, entry
            position += 1

    def _read(self, position: int, entry: Entry) -> Member:
        parts = name_parts(entry.name)
        content, size, error = None, 0, None
        try:
            content, size = self._content(entry)
        except (ImageTooLargeError, UnreadableImageError) as exc:
            error = exc
        return Member(
            position=position,
            path=in_ascii(entry.name),
            filename=as_text(parts[-1]),
            folder=as_text(parts[-2]) if len(parts) > 1 else "",
            size=size,
            content=content,
            error=error,
        )

    def _content(self, entry: Entry) -> tuple[BinaryIO, int]:
        """A member's bytes, read from their start to their end, and how many."""
        limit = self._limits.file_bytes
        if entry.refused is not None:
            raise UnreadableImageError(entry.refused)
        if entry.size > limit:
            raise _too_large(limit)
        with ExitStack() as undo:
            spool = SpooledTemporaryFile(max_size=_SPOOLED, dir=str(self._folder))  # noqa: SIM115
            undo.callback(spool.close)
            size = 0
            with member_errors():
                source = undo.enter_context(entry.open())
            while True:
                with member_errors():
                    block = source.read(READ_AHEAD)
                if not block:
                    break
                size += len(block)
                self._spend(len(block))
                if size > limit:
                    raise _too_large(limit)
                with disk_errors("unpack a picture"):
                    spool.write(block)
            undo.pop_all()
        source.close()
        spool.seek(0)
        return cast("BinaryIO", spool), size

    def _spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise too_much()


def _is_picture(name: str) -> bool:
    """By its name, as `lookalike.media.sources` decides."""
    return is_picture_name([part for part in name_parts(name) if not leads_up(part)])


def _no_archive(head: bytes) -> ArchiveError:
    """The error for a file that starts like this and is neither a tar nor a whole zip file."""
    if head.startswith(_ZIP_START):
        return ArchiveError("The zip file is truncated: its end is missing; send it again")
    if not head:
        return NotAnArchiveError("The file is empty; send a zip or tar file")
    return NotAnArchiveError(
        "The file is no archive that can be read here; send a zip file, or a tar file, plain or "
        "packed with gzip, bzip2 or xz"
    )


def _too_large(limit: int) -> ImageTooLargeError:
    return ImageTooLargeError(
        f"It has more than {limit:,} bytes; make it smaller, or raise LOOKALIKE_MAX_FILE_BYTES"
    )
