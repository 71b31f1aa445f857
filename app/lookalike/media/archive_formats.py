"""The streams and members of zip and tar files; each stream bounds what is taken into memory."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, Protocol, cast

from lookalike.errors import ArchiveError, LookalikeError, NotAnArchiveError, UnreadableImageError
from lookalike.progress import TaskEndedError

MAX_EMPTY_BYTES = 2**20
"""Most bytes of an empty tar file: the largest block that tar writes at once."""

_CHUNK = 2**16
_ZIP_MEMBER = b"PK\1\2"
_XZ_MEMORY = 100_000_000  # bytes; `xz -9` asks for 66 million

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


class BoundedFile(io.BufferedReader):
    """A file that refuses to read much at once, as a hostile directory may demand.

    Args:
        path: The file.
        most: Most bytes of one read.
        members: Most members of a zip file's directory, which is one read.
    """

    def __init__(self, path: Path, *, most: int, members: int) -> None:
        super().__init__(io.FileIO(path))
        self._most = most
        self._members = members

    def read(self, size: int | None = -1, /) -> bytes:
        """As usual. Raises `ArchiveError` where too much is asked for, or too many are named."""
        if size is not None and size > self._most:
            raise ArchiveError(
                f"The archive's directory has more than {self._most:,} bytes; send it in parts"
            )
        data = super().read(size)
        if data.count(_ZIP_MEMBER) > self._members:
            raise too_many(self._members)
        return data


class Readable(Protocol):
    """All that is needed of a stream."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""
        ...


class ForwardReader:
    """A stream of unpacked bytes that tarfile reads headers and members from.

    It only goes forward, in small steps where nobody wants the bytes.

    Args:
        stream: The bytes.
        most: Most bytes of the stream in all.
    """

    def __init__(self, stream: IO[bytes], *, most: int) -> None:
        self._stream = stream
        self._most = most
        self._position = 0
        self._allowed = 0
        self._peeked = b""
        self.last = b""
        """What the last read gave."""
        self.step: Callable[[], None] = lambda: None
        """Called for each block that is passed over; may raise to end the work."""

    def allow(self, count: int) -> None:
        """Says how many bytes may be read from now on; those that are passed over do not count."""
        self._allowed = count

    def peek(self) -> bytes:
        """The first block, which stays to be read."""
        if not self._peeked:
            self._peeked = _full(self._stream, tarfile.BLOCKSIZE)
        return self._peeked

    def tell(self) -> int:
        """How far it is, in unpacked bytes."""
        return self._position

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes, fewer at the end. Raises `ArchiveError` beyond what is allowed."""
        if size > self._allowed:
            raise ArchiveError("The archive has headers that are far too long")
        taken, self._peeked = self._peeked[:size], self._peeked[size:]
        self.last = taken + _full(self._stream, size - len(taken))
        self._allowed -= len(self.last)
        self._position += len(self.last)
        self._check(self._position)
        return self.last

    def seek(self, position: int) -> None:
        """Goes forward. Raises `ArchiveError` where that is back, or beyond the bound."""
        if position < self._position:
            raise ArchiveError("The archive's members overlap")
        self._check(position)
        if isinstance(self._stream, BoundedFile):
            self._stream.seek(position)
            self._position = position
            return
        while self._position < position and self._pass_over(position - self._position):
            pass

    def finish(self) -> None:
        """Goes to the end, where a packed stream is compared with its checksum.

        Raises `ArchiveError` beyond the bound, and what the stream raises where it is damaged.
        """
        if isinstance(self._stream, BoundedFile):  # nothing is compared there
            return
        while self._pass_over(_CHUNK):
            pass

    def only_zeros(self) -> bool:
        """Whether all that is left are blocks of zeros, few enough for an empty tar file.

        The stream is then at its end.
        """
        self.allow(MAX_EMPTY_BYTES + 1)
        rest = self.read(MAX_EMPTY_BYTES + 1)
        whole = 0 < len(rest) <= MAX_EMPTY_BYTES and len(rest) % tarfile.BLOCKSIZE == 0
        return whole and rest.count(0) == len(rest)

    def _pass_over(self, most: int) -> bool:
        """Goes on by a few bytes; False at the end."""
        self.step()
        block = self._stream.read(min(_CHUNK, most))
        self._position += len(block)
        self._check(self._position)
        return bool(block)

    def _check(self, position: int) -> None:
        if position > self._most:
            raise too_much()


class XzReader(io.RawIOBase):
    """Unpacks xz files with bounded memory, which `lzma.LZMAFile` does not.

    Args:
        file: The packed bytes.
    """

    def __init__(self, file: Readable) -> None:
        self._file = file
        self._decoder = _xz_decoder()

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes; none at the end. Raises `lzma.LZMAError`, EOFError."""
        while True:
            packed = b""
            if self._decoder.eof:  # another stream may follow, after zeros
                packed = self._decoder.unused_data.lstrip(b"\0")
                while not packed:
                    block = self._file.read(_CHUNK)
                    if not block:
                        return b""
                    packed = block.lstrip(b"\0")
                self._decoder = _xz_decoder()
            elif self._decoder.needs_input:
                packed = self._file.read(_CHUNK)
                if not packed:
                    raise EOFError("it ends in the middle")
            if unpacked_bytes := self._decoder.decompress(packed, size):
                return unpacked_bytes


def unpacked(file: BoundedFile) -> IO[bytes]:
    """The file itself, or what it holds packed with gzip, bzip2 or xz.

    Raises:
        ArchiveError: It is packed by a method that is not read here.
    """
    head = file.read(6)
    file.seek(0)
    if head.startswith(b"\x1f\x8b"):
        return cast("IO[bytes]", gzip.GzipFile(fileobj=file))
    if head.startswith(b"BZh"):
        return cast("IO[bytes]", bz2.BZ2File(file))
    if head.startswith(b"\xfd7zXZ\0"):
        return cast("IO[bytes]", XzReader(file))
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        raise NotAnArchiveError(
            "Archives packed with zstd are not read here; pack it with gzip, or send a zip file"
        )
    return file


def too_much() -> ArchiveError:
    """The error for an archive that is made to fill memory, disk or time."""
    return ArchiveError(
        "The archive unpacks to far more than its own size, as those do that are made to harm; "
        "send its pictures in another way"
    )


def too_many(members: int) -> ArchiveError:
    """The error for an archive with more members than this."""
    return ArchiveError(f"The archive has more than {members:,} members; send it in parts")


def is_tar(head: bytes) -> bool:
    """Whether a first block is that of a tar file, by its checksum."""
    try:
        tarfile.TarInfo.frombuf(bytearray(head), "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _xz_decoder() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)


def _full(stream: Any, size: int) -> bytes:
    """Reads until there are `size` bytes, or no more."""
    parts: list[bytes] = []
    while size > 0 and (block := cast("BinaryIO", stream).read(size)):
        parts.append(block)
        size -= len(block)
    return b"".join(parts)


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
