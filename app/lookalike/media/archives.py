"""Reading zip and tar files that may be hostile, one member at a time.

Nothing is extracted to a name of the archive's own. What can be had of an archive is bounded:
bytes of each member by what is read and not by what is claimed, bytes in all, members, and the
memory that its directory or its headers take.
"""

from __future__ import annotations

import re
import stat
import tarfile
import zipfile
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
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
from lookalike.media.archive_streams import (
    BoundedFile,
    ForwardReader,
    too_many,
    too_much,
    unpacked,
)
from lookalike.media.sources import PictureSource, Selection
from lookalike.media.zip_names import names_of
from lookalike.progress import TaskEndedError
from lookalike.records import nfc

MAX_MEMBERS = 1_000_000
"""Most members of an archive."""

MAX_ZIP_MEMBERS = 300_000
"""Most members of a zip file: Python keeps 500 bytes and the name of each while it is read."""

MAX_HEADER_BYTES = 1_000_000
"""Most bytes of the headers between two members of a tar file."""

MAX_GLOBAL_HEADERS = 100
"""Most global headers of a tar file."""

_READ_AHEAD = 2**18  # bytes of a member that are read at once
_SPOOLED = 1_000_000
_MAX_NAME = 255
_BYTES = re.compile("[\udc80-\udcff]")
_MAX_PATH = 4096
_ZIP_START = b"PK\3\4"
_ENCRYPTED = 1
_READ_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
"""Python's readers of the others take as much memory as a hostile member asks for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveLimits:
    """How much is read.

    Attributes:
        file_bytes: Of one member.
        total_bytes: Of all members together, unpacked; None: by the archive's own size alone.
        members: Members, pictures or not.
        directory_bytes: Of a zip file's directory; about 130 for each picture.
        ratio: How many times its own size an archive may unpack to, beyond `spare_bytes`.
        spare_bytes: What an archive may unpack to whatever its own size is.
    """

    file_bytes: int
    total_bytes: int | None = None
    members: int = MAX_MEMBERS
    directory_bytes: int = 50_000_000
    ratio: int = 100
    spare_bytes: int = 100_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A member that is a picture by its name.

    Attributes:
        position: Its place among all members, from 0.
        path: Its whole name as it stands in the archive, in ASCII, other characters escaped.
        inside: The same as it can be stored, with `/` between the folders.
        folder: The name of the folder it lies in; empty at the top.
        source: Its bytes, the reader's to close, or why they cannot be had; its file name is the
            last part of `path`, for display, never to be used as a path.
    """

    position: int
    path: str
    inside: str
    folder: str
    source: PictureSource


@dataclass(frozen=True, slots=True)
class _Entry:
    """A member as its archive names it, not read yet; `refused` says why it never is."""

    name: str
    size: int
    refused: str | None
    open: Callable[[], Any]


class Archive:
    """A zip file, or a tar file that is plain or packed with gzip, bzip2 or xz; read once.

    A member counts as a picture by its name, as a file in a folder does: see `Selection`.
    Archives inside are not opened. Members above 1 MB wait in `folder`, without a name.

    Raises:
        ArchiveError: It is no archive, or cannot be read.
    """

    def __init__(
        self,
        path: Path,
        limits: ArchiveLimits,
        *,
        folder: Path,
        selection: Selection | None = None,
    ) -> None:
        self._limits = limits
        self._selection = selection or Selection()
        self._folder = folder
        self._opened = ExitStack()
        with self._opened, _errors_as(_broken):
            size = path.stat().st_size
            total = limits.spare_bytes + limits.ratio * size
            self._left = total if limits.total_bytes is None else min(total, limits.total_bytes)
            members = min(limits.members, MAX_ZIP_MEMBERS)
            file = self._opened.enter_context(
                BoundedFile(path, most=limits.directory_bytes, members=members)
            )
            self._entries = self._open(file)
            self._opened = self._opened.pop_all()

    def __enter__(self) -> Self:
        """Opens the archive."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the file."""
        self._opened.close()

    def count(self, step: Callable[[], None] = lambda: None) -> int:
        """How many members are pictures by their names; the archive is then at its end.

        `step` is called for every member, and often in between; it may raise to end the work.

        Raises:
            ArchiveError: The archive is broken, or beyond a bound.
        """
        return sum(1 for _ in self._pictures(step))

    def members(
        self, *, start: int = 0, step: Callable[[], None] = lambda: None
    ) -> Iterator[Member]:
        """The pictures from position `start` on, each read and ready; `step` as of `count`.

        Raises:
            ArchiveError: The archive is broken from here on, or beyond a bound.
            StorageError: The disk refuses what waits there.
        """
        for position, entry in self._pictures(step):
            if position >= start:
                yield self._read(position, entry)

    def _open(self, file: BoundedFile) -> Iterator[_Entry | None]:
        """Every member in order; None for one that is no file."""
        stream = self._opened.enter_context(unpacked(file))
        forward = self._stream = ForwardReader(stream, most=self._left)
        head = forward.peek()
        if _is_tar(head):  # first, since the last member of a tar file may be a zip file
            forward.allow(MAX_HEADER_BYTES)
            tar = tarfile.open(fileobj=cast("Any", forward), mode="r:")  # noqa: SIM115
            return self._tar_entries(self._opened.enter_context(tar))
        if not head.strip(b"\0") and forward.only_zeros():  # a tar file without members
            return iter(())
        if zipfile.is_zipfile(file):
            return _zip_entries(self._opened.enter_context(zipfile.ZipFile(file)))
        raise _no_archive(head)

    def _tar_entries(self, file: Any) -> Iterator[_Entry | None]:
        """Reads from the start of a tar file to its end, and to the end of what it is packed in."""
        with _errors_as(_broken):
            while (info := self._next_tar(file)) is not None:
                refused = _refused_name(info.name)
                if not info.isreg() or info.issparse():
                    refused = "It is a link, a device or a sparse file, not a plain file"
                opened = partial(file.extractfile, info)
                yield None if info.isdir() else _Entry(info.name, info.size, refused, opened)
            if self._stream.last != bytes(tarfile.BLOCKSIZE):  # that of the end
                raise ArchiveError("The archive is broken or truncated; send it again")
            self._stream.finish()

    def _next_tar(self, file: Any) -> tarfile.TarInfo | None:
        self._stream.allow(MAX_HEADER_BYTES)
        info: tarfile.TarInfo | None = file.next()
        file.members.clear()  # else it keeps every one
        if len(file.pax_headers) > MAX_GLOBAL_HEADERS:
            raise ArchiveError("The archive has too many global headers")
        self._stream.allow(self._limits.file_bytes + _READ_AHEAD)
        return info

    def _pictures(self, step: Callable[[], None]) -> Iterator[tuple[int, _Entry]]:
        self._stream.step = step
        for position, entry in enumerate(self._entries):
            step()
            if position >= self._limits.members:
                raise too_many(self._limits.members)
            if entry is not None and self._is_picture(entry.name):
                yield position, entry

    def _is_picture(self, name: str) -> bool:
        parts = [as_text(part) for part in _name_parts(name) if part != ".."]
        return bool(parts) and self._selection.takes_member(parts)

    def _read(self, position: int, entry: _Entry) -> Member:
        *folders, name = parts = [as_text(part) for part in _name_parts(entry.name)]
        try:
            content, size = self._content(entry)
            source = PictureSource(filename=name, size=size, file=content)
        except (ImageTooLargeError, UnreadableImageError) as exc:
            source = PictureSource(filename=name, size=0, error=exc)
        folder = folders[-1] if folders else ""
        inside = "/".join(parts)[-_MAX_PATH:]
        path = in_ascii(entry.name)
        return Member(position=position, path=path, inside=inside, folder=folder, source=source)

    def _content(self, entry: _Entry) -> tuple[BinaryIO, int]:
        """A member's bytes, read from their start to their end, and how many."""
        limit = self._limits.file_bytes
        if entry.refused is not None:
            raise UnreadableImageError(entry.refused)
        if entry.size > limit:
            raise _too_large(limit)
        size = 0
        with ExitStack() as undo:
            spool = SpooledTemporaryFile(max_size=_SPOOLED, dir=str(self._folder))  # noqa: SIM115
            undo.callback(spool.close)
            for block in undo.enter_context(closing(_blocks(entry))):
                size += len(block)
                self._left -= len(block)
                if self._left < 0:
                    raise too_much()
                if size > limit:
                    raise _too_large(limit)
                with disk_errors("unpack a picture"):
                    spool.write(block)
            undo.pop_all()
        spool.seek(0)
        return cast("BinaryIO", spool), size


def _zip_entries(file: zipfile.ZipFile) -> Iterator[_Entry | None]:
    with _errors_as(_broken):
        members = file.infolist()
        for info, name in zip(members, names_of(members), strict=True):
            refused = _refused_name(name)
            if info.flag_bits & _ENCRYPTED:
                refused = "It is encrypted; send it unprotected"
            elif stat.S_ISLNK(info.external_attr >> 16):
                refused = "It is a link, not a file"
            elif info.compress_type not in _READ_METHODS:
                refused = "It is packed by a method that is not read here; use stored or deflated"
            opened = partial(file.open, info)
            yield None if info.is_dir() else _Entry(name, info.file_size, refused, opened)


def _blocks(entry: _Entry) -> Generator[bytes]:
    with _errors_as(_broken_member), entry.open() as source:
        while block := source.read(_READ_AHEAD):
            yield block


def _is_tar(head: bytes) -> bool:
    """Whether a first block is that of a tar file, by its checksum."""
    try:
        tarfile.TarInfo.frombuf(bytearray(head), "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


@contextmanager
def _errors_as(ours: Callable[[str], LookalikeError]) -> Iterator[None]:
    """Whatever the libraries raise over broken bytes becomes an error of ours."""
    try:
        yield
    except (LookalikeError, TaskEndedError):
        raise
    except Exception as exc:
        raise ours(in_ascii(str(exc) or type(exc).__name__)) from exc


def _broken(why: str) -> ArchiveError:
    return ArchiveError(
        f"The archive is broken or truncated ({why}); make it anew and send it again"
    )


def _broken_member(why: str) -> UnreadableImageError:
    return UnreadableImageError(f"It cannot be unpacked ({why})")


def in_ascii(text: str) -> str:
    """The text on one line of printable ASCII, other characters escaped; at most 300 of them."""
    escaped = text.encode("unicode_escape").decode("ascii").replace("\\\\", "\\")
    return escaped if len(escaped) <= 300 else f"{escaped[:297]}..."


def as_text(name: str) -> str:
    r"""A file's name, or a folder's, as it can be stored and shown: composed (NFC).

    Bytes that are no UTF-8, which come as lone surrogates, are kept as `\xe4`, so that names of
    other bytes stay apart.
    """
    name = _BYTES.sub(lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", name)
    shown = name.encode("utf-8", "replace").decode("utf-8").replace("\0", "?")
    return nfc(shown)[-_MAX_NAME:]


def _name_parts(name: str) -> list[str]:
    """The parts of a member's name; Windows programs write backslashes into some."""
    return [part for part in name.replace("\\", "/").split("/") if part not in {"", "."}]


def _refused_name(name: str) -> str | None:
    return "Its name leads out of the archive" if ".." in _name_parts(name) else None


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
