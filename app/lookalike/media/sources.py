"""Pictures on their way in: one file or upload, and the picture files below folders."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from lookalike.errors import (
    ConfigurationError,
    LookalikeError,
    MissingFileError,
    UnreadableImageError,
)
from lookalike.records import Metadata, Place, sha256_of

log = logging.getLogger(__name__)

_ENDINGS = (
    "jpg jpeg jpe jfif mpo png gif webp avif heic heif bmp dib tif tiff jp2 j2k ico ppm pgm pbm "
    "pnm qoi"
)
SUFFIXES = frozenset(f".{ending}" for ending in _ENDINGS.split())


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
        place: Where it lies, to be noted; None if nobody said.
        error: Why it cannot be opened, where that is known already.
    """

    filename: str
    size: int
    file: BinaryIO | None = None
    path: Path | None = None
    id: str | None = None
    metadata: Metadata | None = None
    place: Place | None = None
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
        size = facts.st_size
        return cls(filename=_name(path), size=size, path=path, id=id, metadata=metadata)

    @classmethod
    def found(cls, found: Found, *, metadata: Metadata | None = None) -> PictureSource:
        """What `walk` found; what cannot be read says so when it is opened, not now."""
        if found.error is not None:
            return cls.refused(found.path, found.error, metadata=metadata)
        try:
            source = cls.from_path(found.path, metadata=metadata)
        except UnreadableImageError as exc:
            return cls.refused(found.path, exc, metadata=metadata)
        return replace(source, place=found.place)

    @classmethod
    def refused(
        cls, path: Path, error: LookalikeError, *, metadata: Metadata | None = None
    ) -> PictureSource:
        """A path that is never opened; the error says why."""
        return cls(filename=_name(path), size=0, path=path, metadata=metadata, error=error)

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The bytes, from the start. Raises `error`, or `UnreadableImageError` if it is gone."""
        if self.error is not None:
            raise self.error
        if self.file is not None:
            self.file.seek(0)
            yield self.file
            return
        assert self.path is not None
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
        """Where the file lies, links followed; raises `UnreadableImageError` if that is no text."""
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


@dataclass(frozen=True, slots=True)
class Found:
    """A file to index, or a folder that cannot be read.

    Attributes:
        path: The file, or that folder.
        folder: The name of the folder it lies in, as it can be stored.
        place: Where it lies below the folder that is walked, as it can be stored.
        error: Why the folder cannot be read; None for files.
    """

    path: Path
    folder: str
    place: Place
    error: UnreadableImageError | None = None


def walk(paths: Iterable[Path], step: Callable[[], None] = lambda: None) -> Iterator[Found]:
    """Picture files, by name; a file that is named itself is taken whatever its suffix.

    Hidden files and folders are passed over. A folder that cannot be read stands, with its error,
    where its pictures would. `step` is called for every folder; it may raise to end the work.

    Raises:
        MissingFileError: A path does not exist.
        ConfigurationError: A path cannot be looked at.
    """
    for path in paths:
        try:
            is_folder, exists = path.is_dir(), path.exists()
        except OSError as exc:
            raise ConfigurationError(f"{path} cannot be read: {exc.strerror}") from exc
        if is_folder:
            yield from _walk_folder(path, step)
        elif exists:
            parent = path.parent.resolve()
            yield Found(path, _name(path.resolve().parent), Place(_text(parent), _name(path)))
        else:
            raise MissingFileError(f"{path} does not exist")


def readable(found: Iterable[Found]) -> Iterator[Found]:
    """The files alone; folders that cannot be read are said in the log."""
    for one in found:
        if one.error is None:
            yield one
        else:
            log.warning("%s is left out: %s", one.path, one.error)


def _walk_folder(top: Path, step: Callable[[], None]) -> Iterator[Found]:
    refused: list[OSError] = []
    root = _text(top.resolve())

    def place(path: Path) -> Place:
        return Place(root, _text(path.relative_to(top)))

    for folder, subfolders, names in os.walk(top, onerror=refused.append):
        step()
        yield from _unreadable(refused, place)
        subfolders[:] = sorted(name for name in subfolders if not _hidden(name))
        inside = Path(folder)
        label = _name(inside.resolve())
        for name in sorted(names):
            if is_picture_name([name]):
                yield Found(inside / name, label, place(inside / name))
    yield from _unreadable(refused, place)


def _unreadable(refused: list[OSError], place: Callable[[Path], Place]) -> Iterator[Found]:
    """The folders that could not be read since this was asked last."""
    while refused:
        error = refused.pop(0)
        path = Path(os.fsdecode(error.filename))
        why = f"The folder cannot be read: {error.strerror}; make it readable and index it again"
        yield Found(path, _name(path.parent), place(path), UnreadableImageError(why))


def is_gone(place: Place) -> bool:
    """Whether a place was a file of this machine that is not there any more.

    Where its root is missing with the folder above it, or that is empty, a disk may not be
    mounted, or the place may be another machine's: then it is not gone. Nor is a name that is no
    UTF-8, which cannot be looked up.
    """
    root = Path(place.root)
    if not root.is_absolute() or "\\x" in place.location or os.path.lexists(place.location):
        return False
    there = root if os.path.lexists(root) else root.parent
    try:
        return any(True for _ in there.iterdir())
    except OSError:
        return False


def _text(path: Path) -> str:
    r"""A whole path as it can be stored: bytes that are no UTF-8 as `\xff`."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def _name(path: Path) -> str:
    """The last part of a path, as it can be stored."""
    return os.fsencode(path.name).decode("utf-8", "replace")


def is_picture_name(parts: Sequence[str]) -> bool:
    """Whether a file in a folder is taken, by the parts of its name below that folder."""
    if not parts or any(_hidden(part) for part in parts):
        return False
    return Path(parts[-1]).suffix.lower() in SUFFIXES


def _hidden(name: str) -> bool:
    return name.startswith(".")
