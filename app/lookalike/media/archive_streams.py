"""The streams that archives are read from; each bounds what is taken into memory."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast

from lookalike.errors import ArchiveError, NotAnArchiveError

MAX_EMPTY_BYTES = 2**20
"""Most bytes of an empty tar file: the largest block that tar writes at once."""

_CHUNK = 2**16
_ZIP_MEMBER = b"PK\1\2"
_XZ_MEMORY = 100_000_000  # bytes; `xz -9` asks for 66 million


class BoundedFile(io.BufferedReader):
    """A file that refuses to read much at once, as a hostile directory may demand.

    One read gives at most `most` bytes, and of a zip file's directory, which is one read, at most
    so many members.
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


class ForwardReader:
    """A stream of unpacked bytes that tarfile reads headers and members from.

    It only goes forward, in small steps where nobody wants the bytes, and `most` bytes in all.
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
        """Sets how many bytes may be read from now on, skipped ones not counted."""
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
        """Reads the rest; True if it is zeros only, and few enough for an empty tar file."""
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
    """Unpacks xz files with bounded memory, which `lzma.LZMAFile` does not."""

    def __init__(self, file: BoundedFile) -> None:
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
    """The file itself, or what it holds packed with gzip, bzip2 or xz; refuses zstd."""
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


def _xz_decoder() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)


def _full(stream: IO[bytes], size: int) -> bytes:
    """Reads until there are `size` bytes, or no more."""
    parts: list[bytes] = []
    while size > 0 and (block := stream.read(size)):
        parts.append(block)
        size -= len(block)
    return b"".join(parts)
