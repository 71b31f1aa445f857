"""The members of zip and tar files, as their archives name them."""

from __future__ import annotations

import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol, cast

from lookalike.errors import ArchiveError, LookalikeError, UnreadableImageError
from lookalike.media.archive_streams import ForwardReader
from lookalike.progress import TaskEndedError

MAX_HEADER_BYTES = 1_000_000
"""Most bytes of the headers between two members of a tar file."""

READ_AHEAD = 2**18
"""Bytes that are read of a member at once."""

MAX_GLOBAL_HEADERS = 100
"""Most global headers of a tar file."""

_MAX_NAME = 255
_ENCRYPTED = 1
_READ_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
"""Python's readers of the others take as much memory as a hostile member asks for."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A member as its archive names it, not read yet; `refused` says why it never is."""

    name: str
    size: int
    refused: str | None
    open: Callable[[], BinaryIO]


class Reader(Protocol):
    """One kind of archive."""

    def entries(self) -> Iterator[Entry | None]:
        """Every member in order; None for one that is no file."""
        ...


class ZipReader:
    """A zip file: its directory names all members."""

    def __init__(self, file: zipfile.ZipFile) -> None:
        self._file = file

    def entries(self) -> Iterator[Entry | None]:
        """See `Reader.entries`."""
        for info in self._file.infolist():
            yield None if info.is_dir() else self._entry(info)

    def _entry(self, info: zipfile.ZipInfo) -> Entry:
        refused = _refused_name(info.filename)
        if info.flag_bits & _ENCRYPTED:
            refused = "It is encrypted; send it unprotected"
        elif stat.S_ISLNK(info.external_attr >> 16):
            refused = "It is a link, not a file"
        elif info.compress_type not in _READ_METHODS:
            refused = "It is packed by a method that is not read here; use stored or deflated"

        def opened() -> BinaryIO:
            return cast("BinaryIO", self._file.open(info))

        return Entry(info.filename, info.file_size, refused, opened)


class EmptyReader:
    """A tar file without members."""

    def entries(self) -> Iterator[Entry | None]:
        """See `Reader.entries`."""
        return iter(())


class TarReader:
    """A tar file: read from its start to its end, and what it is packed in to that one's end."""

    def __init__(self, file: tarfile.TarFile, stream: ForwardReader, *, most: int) -> None:
        self._file = file
        self._stream = stream
        self._most = most

    def entries(self) -> Iterator[Entry | None]:
        """See `Reader.entries`."""
        while (info := self._next()) is not None:
            yield None if info.isdir() else self._entry(info)
        if self._stream.last != bytes(tarfile.BLOCKSIZE):  # that of the end
            raise ArchiveError("The archive is broken or truncated; send it again")
        self._stream.finish()

    def _next(self) -> tarfile.TarInfo | None:
        self._stream.allow(MAX_HEADER_BYTES)
        info = self._file.next()
        cast("Any", self._file).members.clear()  # else it keeps every one
        if len(self._file.pax_headers) > MAX_GLOBAL_HEADERS:
            raise ArchiveError("The archive has too many global headers")
        self._stream.allow(self._most + READ_AHEAD)
        return info

    def _entry(self, info: tarfile.TarInfo) -> Entry:
        refused = _refused_name(info.name)
        if not info.isreg() or info.issparse():
            refused = "It is a link, a device or a sparse file, not a plain file"

        def opened() -> BinaryIO:
            return cast("BinaryIO", self._file.extractfile(info))

        return Entry(info.name, info.size, refused, opened)


@contextmanager
def archive_errors() -> Iterator[None]:
    """Whatever the libraries raise over a broken archive becomes `ArchiveError`."""
    try:
        yield
    except (LookalikeError, TaskEndedError):
        raise
    except Exception as exc:
        raise ArchiveError(
            f"The archive is broken or truncated ({in_ascii(str(exc) or type(exc).__name__)}); "
            "make it anew and send it again"
        ) from exc


@contextmanager
def member_errors() -> Iterator[None]:
    """Whatever the libraries raise over a broken member becomes `UnreadableImageError`."""
    try:
        yield
    except (LookalikeError, TaskEndedError):
        raise
    except Exception as exc:
        why = in_ascii(str(exc) or type(exc).__name__)
        raise UnreadableImageError(f"It cannot be unpacked ({why})") from exc


def in_ascii(text: str) -> str:
    """The text on one line of printable ASCII, other characters escaped; at most 300 of them."""
    escaped = text.encode("unicode_escape").decode("ascii").replace("\\\\", "\\")
    return escaped if len(escaped) <= 300 else f"{escaped[:297]}..."


def as_text(name: str) -> str:
    """A file's name, or a folder's, as it can be stored and shown."""
    shown = name.encode("utf-8", "replace").decode("utf-8").replace("\0", "?")
    return shown[-_MAX_NAME:]


def name_parts(name: str) -> list[str]:
    """The parts of a member's name; Windows programs write backslashes into some."""
    return [part for part in name.replace("\\", "/").split("/") if part not in {"", "."}]


def leads_up(part: str) -> bool:
    """Whether a part of a name stands for the folder above."""
    return part == ".."


def _refused_name(name: str) -> str | None:
    if any(leads_up(part) for part in name_parts(name)):
        return "Its name leads out of the archive"
    return None
