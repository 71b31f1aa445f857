"""Files on the disk: writes that survive a crash, originals and thumbnails."""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import random
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from lookalike.errors import (
    OriginalDamagedError,
    StorageError,
    StorageFullError,
    UnreadableImageError,
)
from lookalike.files.trash import FULL, Trash
from lookalike.records import ImageRecord, file_sha256, is_digest, sha256_of, utc_text

_KINDS = ("png", "webp", "gif", "bmp", "tiff", "avif", "heic", "heif")
_EXTENSIONS = {f"image/{kind}": kind for kind in _KINDS} | {"image/jpeg": "jpg"}
_CHUNK = 2**20
_RESERVED_BYTES = 8 * 2**20  # the catalog's log takes half of it at most, before it is written back
_RESERVED_SHARE = 4  # of a very small disk: a quarter
log = logging.getLogger(__name__)
_LOCKS = 64
_SPARE_BYTES = 2**30
_SPARE_SHARE = 20
"""With less than 1 GiB and less than a 20th of the disk free, the trash is emptied early."""

YOUNG_S = 3600.0
"""A younger file is never moved to the trash: its row may be on its way."""


@contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Turns an `OSError` inside into ours; `doing` completes "Cannot ...".

    Raises:
        StorageFullError: No room is left, or a quota is used up.
        StorageError: Anything else that the disk refuses.
    """
    try:
        yield
    except OSError as exc:
        if exc.errno in FULL:
            raise StorageFullError(f"Cannot {doing}: the disk is full; make room") from exc
        where = f": {exc.filename}" if isinstance(exc.filename, (str, Path)) else ""
        raise StorageError(f"Cannot {doing}: {exc.strerror or exc}{where}") from exc
    except RuntimeError as exc:
        if not str(exc).startswith("Symlink loop"):  # of `Path.resolve` before Python 3.13
            raise
        raise StorageError(f"Cannot {doing}: {exc}") from exc


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that appears under its name whole, at the end of the block, or not at all.

    The bytes go to a temporary file beside it, which is renamed once it has reached the disk. If
    the block raises, the temporary file is removed and the old file stays. The folder is made if it
    is missing.

    Raises:
        OSError: The disk refuses; see `disk_errors`.
    """
    make_folders(path.parent.absolute())
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Waits until a file's bytes, or the names in a folder, have reached the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folders(folder: Path) -> None:
    """Makes a folder and the missing ones above it, so that they survive a crash."""
    if folder.is_dir():
        return
    make_folders(folder.parent)
    folder.mkdir(exist_ok=True)
    sync(folder.parent)


def has_room(folder: Path) -> bool:
    """Whether a few blocks can be written into the folder right now, quotas included."""
    probe = folder / f".room-{os.getpid()}"
    try:
        with probe.open("wb") as file:
            file.write(b"\1" * 65_536)
            file.flush()
            os.fsync(file.fileno())
    except OSError as exc:
        return exc.errno not in FULL
    finally:
        probe.unlink(missing_ok=True)
    return True


class Reserve:
    """Room that a file holds, and gives back on a full disk so that something can be removed.

    While it is given back, nothing may be added. Raises `StorageFullError`.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "reserve"

    def hold(self) -> None:
        """Takes the room if it is not held; before anything is added. Cheap."""
        if self._path.exists() or not self._path.parent.exists():
            return
        disk = shutil.disk_usage(self._path.parent)
        size = min(_RESERVED_BYTES, disk.total // _RESERVED_SHARE)
        if disk.free < 2 * size:
            raise StorageFullError(
                "The disk is full: what is left is kept for deleting pictures and for starting "
                "again; make room"
            )
        with disk_errors("keep some room for deleting"), atomic_write(self._path) as file:
            file.write(os.urandom(size))  # not zeros, which some disks store as nothing

    def give_back(self) -> None:
        """Gives the room back, if it is held."""
        with disk_errors("give room back"):
            self._path.unlink(missing_ok=True)


def extension_of(media_type: str) -> str:
    """How the name of an original ends, without a dot; `bin` for types that are rare."""
    return _EXTENSIONS.get(media_type, "bin")


class LocalFiles:
    """Originals and thumbnails in a folder; safe to call from many threads.

    ```
    images/ab/cd/<sha256>.<ext>      as sent; durable when `put` returns
    thumbnails/ab/cd/<sha256>.jpg    can be made again, so never waited for
    tmp/                             on their way in
    trash/DATE/                      what a sweep took
    ```

    What is not in its place is looked for in the trash. An original is read whole before it is
    given out, and a thumbnail has its digest behind its last byte, so that damage is noticed.

    Raises:
        StorageError: The folders cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.trash = Trash(folder)
        self._images = folder / "images"
        self._thumbnails = folder / "thumbnails"
        self.tmp = folder / "tmp"
        self._locks = [threading.Lock() for _ in range(_LOCKS)]
        self._damaged: set[Path] = set()
        self._reserve = Reserve(folder)
        with disk_errors(f"use the folder {folder}"):
            for part in (self._images, self._thumbnails, self.tmp):
                make_folders(part)

    def put(self, source: BinaryIO, sha256: str, media_type: str) -> None:
        """Stores an original so that it survives a crash; one that is here and whole stays.

        The bytes are read from the start of `source`, and must amount to `sha256`.

        Raises:
            StorageFullError: There is no room; nothing was kept.
            StorageError: The disk refuses.
            UnreadableImageError: The source cannot be read, or has another digest.
        """
        target = self._image(sha256, media_type)
        self._reserve.hold()
        with disk_errors("store the original"):
            if self._touch(target) and self._is_whole(target):
                return
            with self._incoming() as incoming:
                if _copy(source, incoming) != sha256:
                    raise UnreadableImageError(
                        "The file was changed while it was read; index it again"
                    )
                # One lock over rename and fsync: who finds the name finds it durable.
                with self._lock(target):
                    make_folders(target.parent)
                    incoming.replace(target)
                    sync(target.parent)
                    self._damaged.discard(target)

    def holds(self, sha256: str, media_type: str) -> bool:
        """Whether an original lies in its place, whole or not."""
        return self._image(sha256, media_type).is_file()

    def open(self, record: ImageRecord) -> BinaryIO | None:
        """Opens a picture's original, in place or kept; None if it is in neither.

        Raises:
            OriginalDamagedError: What is kept are other bytes than were sent.
            StorageError: The disk refuses.
        """
        if (in_place := _open_in_place(record)) is not None:
            return in_place
        kept = self.path(record.sha256, record.media_type)
        with disk_errors("read the original"):
            file = _open(kept) if kept else None
        if kept is None or file is None:
            return None
        if not self._is_whole(kept, file):
            file.close()
            raise OriginalDamagedError(
                f"The original of {record.id!r} is damaged: {kept} does not hold the bytes that "
                "were sent. Index the picture again, which heals it, or restore the file from a "
                "backup"
            )
        return file

    def exists(self, record: ImageRecord) -> bool:
        """Whether a picture's original is here, in place or kept, and not damaged."""
        try:
            file = self.open(record)
        except OriginalDamagedError:
            return False
        if file is not None:
            file.close()
        return file is not None

    def size(self, record: ImageRecord) -> int | None:
        """The bytes of a picture's original, in place or kept; None if it is in neither."""
        kept = self.path(record.sha256, record.media_type)
        for path in (Path(record.source) if record.source else None, kept):
            with suppress(OSError):
                if path is not None and path.is_file():
                    return path.stat().st_size
        return None

    def changed_at(self, record: ImageRecord) -> str | None:
        """When the first of the files that a row refers to was changed last; None if unknown."""
        times = []
        paths = {record.source, *(place.location for place in record.places)}
        for path in paths if record.source else ():
            with suppress(OSError, ValueError, OverflowError):  # gone, or a time out of range
                found = Path(path or "").stat()
                if found.st_size == record.bytes:
                    times.append(utc_text(datetime.fromtimestamp(found.st_mtime, UTC)))
        return min(times, default=None)

    def verify(self) -> Iterator[int]:
        """Reads all kept originals, from somewhere in the middle on; yields how many, by folder.

        The log names those that are damaged, and `damaged` does. Raises `StorageError`.
        """
        with disk_errors("look through the originals"):
            folders = sorted(self._images.glob("??/??"))
            start = random.randrange(len(folders) or 1)  # noqa: S311 - so that no start forgets some
            for folder in folders[start:] + folders[:start]:
                yield sum(map(self._verify, folder.glob("*")))

    @property
    def damaged(self) -> list[Path]:
        """Originals that were found damaged and have not been healed or removed since."""
        return [path for path in sorted(self._damaged) if path.is_file()]

    def _verify(self, path: Path) -> bool:
        """Reads one original past the system's cache; False where it is gone or is none."""
        file = _open(path) if is_digest(path.stem) else None
        if file is None:
            return False
        with file:
            self._is_whole(path, file)
            if hasattr(os, "posix_fadvise"):  # what is read once should not push out what is hot
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return True

    def _is_whole(self, path: Path, file: BinaryIO | None = None) -> bool:
        """Whether an original's bytes are those that its name says; leaves the file at its start.

        A file that the disk cannot read is damaged, too. Raises `OSError`.
        """
        with ExitStack() as opened:
            file = file or opened.enter_context(path.open("rb"))
            try:
                whole = sha256_of(file) == path.stem
                file.seek(0)
            except OSError as exc:
                if exc.errno != errno.EIO:
                    raise
                whole = False
        if whole:
            self._damaged.discard(path)
        elif path not in self._damaged:
            self._damaged.add(path)
            log.error("the original %s is damaged: its bytes are not those that were sent", path)
        return whole

    def path(self, sha256: str, media_type: str) -> Path | None:
        """Where an original lies; None where it is not kept."""
        path = self._image(sha256, media_type)
        return path if path.is_file() else self.trash.find(path)

    def put_thumbnail(self, sha256: str, data: bytes) -> None:
        """Stores a picture's thumbnail, whole or not at all; raises as `put`."""
        target = _path_in(self._thumbnails, sha256, "jpg")
        with disk_errors("store the thumbnail"), self._incoming() as incoming:
            incoming.write_bytes(data + _seal(data))
            target.parent.mkdir(parents=True, exist_ok=True)
            incoming.replace(target)

    def thumbnail_path(self, sha256: str) -> Path | None:
        """Where a thumbnail lies; None where there is none."""
        path = _path_in(self._thumbnails, sha256, "jpg")
        return path if path.is_file() else self.trash.find(path)

    def open_thumbnail(self, sha256: str) -> BinaryIO | None:
        """Opens a thumbnail; None where there is none, or it is damaged."""
        found = self.thumbnail_path(sha256)
        with suppress(OSError):  # it can be made again
            data = found.read_bytes() if found else b""
            return io.BytesIO(sound) if (sound := _unsealed(data)) else None
        return None

    def set_aside(
        self, sha256s: Iterable[str], *, needless: bool = True, older_than_s: float = YOUNG_S
    ) -> set[str]:
        """Moves originals and thumbnails to the trash.

        Args:
            sha256s: Digests that no row names.
            needless: Whether the store noted them, see `Trash.take`.
            older_than_s: Younger files stay, in seconds: their row may be on its way.

        Returns:
            The digests with a file that is young.

        Raises:
            StorageError: The disk refuses.
        """
        limit, young = time.time() - older_than_s, set()
        with disk_errors("move files to the trash"):
            for sha256 in sha256s:
                folder = _path_in(self._images, sha256, "*").parent
                paths = [*folder.glob(f"{sha256}.*"), _path_in(self._thumbnails, sha256, "jpg")]
                there = [path for path in paths if path.is_file()]
                moved = [self._take_old(path, limit, needless=needless) for path in there]
                if not all(moved):
                    young.add(sha256)
        return young

    def digests(self) -> Iterator[list[str]]:
        """Digests of originals and thumbnails, folder by folder; of young files none."""
        limit = time.time() - YOUNG_S
        for top in (self._images, self._thumbnails):
            for folder in sorted(top.glob("??/??")):
                names = {path.stem for path in folder.iterdir() if _older(path, limit)}
                if held := sorted(name for name in names if is_digest(name)):
                    yield held

    def originals(self) -> Iterator[Path]:
        """All originals in their places, young ones too."""
        for folder in sorted(self._images.glob("??/??")):
            yield from (path for path in sorted(folder.iterdir()) if is_digest(path.stem))

    def put_back(self, record: ImageRecord) -> None:
        """Moves a picture's files back from the trash, where they are missing or not whole."""
        sha256 = record.sha256
        original = self._image(sha256, record.media_type)
        with disk_errors("put files back from the trash"):
            kept = self.trash.find(original)
            if kept and not _has_digest(original, sha256) and _has_digest(kept, sha256):
                self.trash.put_back(kept)
            thumbnail = _path_in(self._thumbnails, sha256, "jpg")
            if not thumbnail.is_file() and (kept := self.trash.find(thumbnail)) is not None:
                self.trash.put_back(kept)

    def tidy(
        self,
        referenced: Callable[[Iterable[str]], set[str]],
        *,
        days: int,
        older_than_s: float = YOUNG_S,
        stop: Callable[[], bool] = lambda: False,
    ) -> int:
        """Moves uploads that were left behind to the trash, and deletes what lay there for `days`.

        A file in the trash that some row names, as `referenced` says, is put back instead. Once
        `stop` says so, what is left is for the next time. Returns how many files were deleted;
        raises `StorageError`.
        """
        limit = time.time() - older_than_s
        with disk_errors("empty the trash"):
            for path in self.tmp.glob("*.part"):
                self._take_old(path, limit, needless=True)
            return self.trash.empty(referenced, days=days, stop=stop, short=self._is_short)

    def _is_short(self) -> bool:
        """Whether the trash is emptied early."""
        disk = shutil.disk_usage(self.tmp)
        return disk.free < min(_SPARE_BYTES, disk.total // _SPARE_SHARE) or not has_room(self.tmp)

    def _image(self, sha256: str, media_type: str) -> Path:
        return _path_in(self._images, sha256, extension_of(media_type))

    def _lock(self, path: Path) -> threading.Lock:
        """One lock for all files whose names begin alike, so for all below `images/ab`."""
        return self._locks[hash(path.name[:2]) % _LOCKS]

    def _touch(self, target: Path) -> bool:
        """Makes a file young, so that a sweep leaves it; False where there is none."""
        with self._lock(target):
            with suppress(FileNotFoundError):
                os.utime(target)
                return True
            return False

    def _take_old(self, path: Path, limit: float, *, needless: bool) -> bool:
        """Moves one file to the trash, unless it is young or a put made it young meanwhile."""
        with self._lock(path):
            if not _older(path, limit):
                return False
            self.trash.take(path, needless=needless)
            return True

    @contextmanager
    def _incoming(self) -> Iterator[Path]:
        path = self.tmp / f"{uuid.uuid4().hex}.part"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)


_SEAL = b"\nlookalike sha256 "


def _seal(data: bytes) -> bytes:
    """What is written behind a thumbnail: viewers of JPEG ignore what follows a picture's end."""
    return _SEAL + hashlib.sha256(data).hexdigest().encode()


def _unsealed(data: bytes) -> bytes:
    """A thumbnail without its seal; nothing where it is damaged."""
    picture, seal, _ = data.rpartition(_SEAL)
    if seal:
        return picture if data == picture + _seal(picture) else b""
    # Written before there were seals: at least its beginning and its end must be there.
    return data if data.startswith(b"\xff\xd8\xff") and data.endswith(b"\xff\xd9") else b""


def _open_in_place(record: ImageRecord) -> BinaryIO | None:
    """Opens the file that a row refers to in place, if it still has the same bytes."""
    if record.source is None:
        return None
    path = Path(record.source)
    with suppress(OSError):  # it cannot be looked at, or went just now
        if path.is_file() and path.stat().st_size == record.bytes:
            with ExitStack() as undo:
                file = undo.enter_context(path.open("rb"))
                if sha256_of(file) == record.sha256:
                    file.seek(0)
                    undo.pop_all()
                    return file
    return None


def _has_digest(path: Path, sha256: str) -> bool:
    with suppress(FileNotFoundError):
        return file_sha256(path) == sha256
    return False


def _open(path: Path) -> BinaryIO | None:
    """Opens a file to read; None where there is none."""
    try:
        return path.open("rb")
    except FileNotFoundError:
        return None


def _path_in(top: Path, sha256: str, extension: str) -> Path:
    if not is_digest(sha256):
        raise ValueError(f"{sha256!r} is no SHA-256 in lower-case hex")
    return top / sha256[:2] / sha256[2:4] / f"{sha256}.{extension}"


def some_digests(folder: Path, *, most: int) -> list[str]:
    """Digests of some originals of a data folder, or else of thumbnails, from all over the tree."""
    for top in (folder / "images", folder / "thumbnails"):
        each = max(1, most // 256)
        found = [one for part in top.glob("??") for one in islice(part.glob("??/*"), each)]
        if digests := [path.stem for path in found if is_digest(path.stem)]:
            return digests
    return []


def _copy(source: BinaryIO, target: Path) -> str:
    """Copies to the disk proper and gives the digest of what was copied."""
    digest = hashlib.sha256()
    with target.open("xb") as file:
        for chunk in _chunks(source):
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _chunks(source: BinaryIO) -> Iterator[bytes]:
    """All bytes of a source; where it cannot be read, that is no error of our disk."""
    try:
        source.seek(0)
        while chunk := source.read(_CHUNK):
            yield chunk
    except OSError as exc:
        raise UnreadableImageError(
            f"The file cannot be read: {exc.strerror or exc}; index it again"
        ) from exc


def _older(path: Path, limit: float) -> bool:
    with suppress(FileNotFoundError):
        return path.is_file() and path.stat().st_mtime < limit
    return False
