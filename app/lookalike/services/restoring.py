"""Restoring a backup into a new data folder. A backup may come from a stranger.

All files go into `.restoring` inside the folder, and to their places once all of them were checked,
the catalog last. So a folder with `.restoring` in it holds half of a backup, and is never served.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import tarfile
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from lookalike.errors import (
    BackupError,
    ConfigurationError,
    LookalikeError,
    StorageError,
    StorageFullError,
)
from lookalike.files.data_folder import MARKER, RESTORING, lock_folder, mark_folder
from lookalike.files.disk import disk_errors, make_folders, sync
from lookalike.media.archive_streams import BoundedFile, ForwardReader, unpacked
from lookalike.progress import Progress, TaskEndedError
from lookalike.records import file_sha256, sha256_of
from lookalike.services.backup_format import (
    CATALOG,
    HEADER,
    KEYS,
    MANIFEST,
    SHARED,
    SUMS,
    VERSIONS,
    Backup,
    Sums,
    read_header,
    read_sums,
    versions_of,
)
from lookalike.store.base import Snapshots

_PART = "[A-Za-z0-9][A-Za-z0-9._-]{0,199}"
_NAMES = re.compile(
    rf"catalog\.db|admin\.key|access\.db|heads/{_PART}|models/{_PART}(/{_PART}){{1,2}}"
    r"|(?P<kind>images|thumbnails)/(?P<a>[0-9a-f]{2})/(?P<b>[0-9a-f]{2})"
    r"/(?P<sha256>(?P=a)(?P=b)[0-9a-f]{60})\.[a-z0-9]{1,8}"
)
"""All names that a backup holds, as the data folder will; none leads out of it."""

_EMPTY = {MARKER, "lock", "lock.owner", "lost+found", RESTORING}
"""What an empty folder may hold."""
_PLACES = {CATALOG, *KEYS, "heads", "images", "models", "thumbnails"}
"""Where files settle: beside `RESTORING`, which nobody opens, they are of a restore that died."""

_MADE = ".made"  # the list of files as they came
_MOST_JSON = 1_000_000  # bytes of a manifest
_MOST_HEADERS = 1_000_000
_RATIO = 100  # times its own size that a backup may unpack to, beyond `_SPARE`
_SPARE = 100_000_000
_CHUNK = 2**20
_LEFT_FREE = 10_000_000
_SHOWN = 20
_MB = 1_000_000


@dataclass(frozen=True, slots=True)
class _Found:
    """A file of a backup, open at its start."""

    name: str
    size: int
    file: IO[bytes] | None  # None if it is missing
    sha256: str | None = None  # as a list says; None if the list comes later


def restore(
    source: Path, folder: Path, *, snapshots: Snapshots, progress: Progress, at: str | None = None
) -> Backup:
    """Restores a tar file, or a version of a backup folder, into an empty or a new data folder.

    Returns what is in it. Its `errors` name the originals and thumbnails that are damaged in the
    backup, which are left out; any other damage raises, and nothing is left.

    Raises:
        MissingFileError: There is no such backup.
        BackupError: The backup is broken, half, newer than this version, or none at all.
        ConfigurationError: The folder is not empty, or there is no version `at`.
        StorageFullError: There is no room; nothing is left.
        StorageError: The disk refuses.
    """
    with disk_errors(f"restore into {folder}"):
        _require_empty(folder)
        make_folders(folder.absolute())
        with lock_folder(folder):
            _require_empty(folder)  # still, now that nobody else may use it
            mark_folder(folder, "data folder")
            _clear(folder)
            work = folder / RESTORING
            work.mkdir()
            sync(folder)
            try:
                backup = _copied(source, work, at, progress)
                _check(work, backup, snapshots)
                os.sync()
                _settle(work, folder)
            except BaseException:
                _clear(folder)
                raise
    return backup


def _clear(folder: Path) -> None:
    """Removes what a restore that ended early left in a folder that was empty before."""
    for name in (*sorted(_PLACES), RESTORING):  # which says whose the others are
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _require_empty(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigurationError(f"{folder} is a file; name an empty folder, or a new one")
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set[str]()
    if left := found - _EMPTY - (_PLACES if RESTORING in found else set()):
        raise ConfigurationError(
            f"{folder} is not empty ({min(left)} is in it): a backup is restored into an empty "
            "folder or a new one. Name another one, or move away what is there"
        )


def _copied(source: Path, work: Path, at: str | None, progress: Progress) -> Backup:
    """Copies all files into `work` and compares them with what the backup says of itself."""
    with ExitStack() as opened:
        found = opened.enter_context(_opened(source, at))
        with closing(_Receiver(work, progress)) as receiver:
            for one in found.files(progress):
                progress.check()
                receiver.receive(one)
            backup = found.backup
            receiver.compare(backup)
    backup.damaged += len(receiver.damaged)
    backup.errors = [f"{name} is damaged in the backup" for name in receiver.damaged][:_SHOWN]
    return backup


@dataclass(eq=False)
class _Receiver:
    """Writes files into a folder, each once, and reads along what they hold."""

    work: Path
    progress: Progress
    files: int = 0
    damaged: list[str] = field(default_factory=list)  # pictures that were left out

    def __post_init__(self) -> None:
        self._sums = Sums(self.work / _MADE)

    def close(self) -> None:
        """Closes the list of files."""
        self._sums.close()

    def receive(self, found: _Found) -> None:
        """Writes a file. Raises `BackupError` if it may not be there, is damaged or comes twice."""
        if found.name == SUMS:
            self._write(found, self.work / SUMS)
            return
        match = _NAMES.fullmatch(found.name)
        if match is None:
            raise BackupError(f"The backup holds {_shown(found.name)}, which no backup holds")
        promised = match["sha256"] if match["kind"] == "images" else found.sha256
        target = self.work / found.name
        digest = self._write(found, target)
        if promised is not None and promised != digest:
            if match["kind"] is None:
                raise BackupError(f"{found.name} is damaged in the backup, or missing from it")
            target.unlink(missing_ok=True)
            self.damaged.append(found.name)
        elif found.name in KEYS:
            target.chmod(0o600)
        self.files += 1
        self._sums.add(promised or digest, found.name)

    def compare(self, backup: Backup) -> None:
        """Compares all files with the backup's own list; thumbnails that differ are left out."""
        made, named = self.work / _MADE, self.work / SUMS
        same = self._sums.end() == backup.sums
        if self.files != backup.files or not (same or _digest_of(named) == backup.sums):
            raise BackupError(
                "The backup is damaged: its files are not those that its manifest names"
            )
        if not same:
            self._leave_out_thumbnails(made, named)
        for path in (made, named):
            path.unlink(missing_ok=True)

    def _leave_out_thumbnails(self, made: Path, named: Path) -> None:
        for (digest, name), (promised, also) in zip(read_sums(made), read_sums(named), strict=True):
            if name != also or (digest != promised and not name.startswith("thumbnails/")):
                raise BackupError(f"{name} is damaged in the backup")
            if digest != promised:
                (self.work / name).unlink()
                self.damaged.append(name)

    def _write(self, found: _Found, target: Path) -> str:
        """Writes a file; returns its digest, an empty text if it is missing."""
        if found.file is None:
            return ""
        self._require_room(found.size)
        target.parent.mkdir(parents=True, exist_ok=True)
        digest, size = hashlib.sha256(), 0
        try:
            with target.open("xb") as out:
                for block in _blocks(found.name, found.file):
                    self.progress.check()
                    digest.update(block)
                    size += len(block)
                    out.write(block)
        except FileExistsError as exc:
            raise BackupError(f"The backup holds {found.name} twice") from exc
        if size != found.size:
            raise BackupError(f"The backup is cut off in {found.name}; use another one")
        return digest.hexdigest()

    def _require_room(self, size: int) -> None:
        free = shutil.disk_usage(self.work).free
        if size + _LEFT_FREE > free:
            raise StorageFullError(
                f"A file of the backup has {size:,} bytes, and {free:,} are free in "
                f"{self.work.parent}; make room there"
            )


def _digest_of(path: Path) -> str:
    with suppress(FileNotFoundError):
        return file_sha256(path)
    return ""


def _blocks(name: str, file: IO[bytes]) -> Iterator[bytes]:
    with _reading(name):
        while block := file.read(_CHUNK):
            yield block


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Whatever a broken backup makes the libraries raise becomes an error of ours."""
    try:
        yield
    except (BackupError, StorageError, TaskEndedError, GeneratorExit):
        raise
    except OSError as exc:
        raise StorageError(f"The backup cannot be read: {exc.strerror or exc}") from exc
    except Exception as exc:  # ArchiveError, tarfile.TarError, zlib.error, EOFError, ...
        raise BackupError(
            f"The backup is damaged or cut off at {_shown(name)} ({_shown(str(exc))}); use another"
        ) from exc


def _check(work: Path, backup: Backup, snapshots: Snapshots) -> None:
    """Refuses a catalog that is damaged, or not the one of the manifest."""
    if not (work / CATALOG).is_file():
        raise BackupError("The backup holds no catalog")
    try:
        snapshots.check(work / CATALOG)
        collections = snapshots.collections(work / CATALOG)
    except LookalikeError as exc:
        raise BackupError(f"The backup cannot be used: {exc}") from exc
    if collections != backup.collections:
        raise BackupError("The backup's catalog and its manifest name other collections")


def _settle(work: Path, folder: Path) -> None:
    """Moves the files to their places, the catalog last."""
    for path in sorted(work.iterdir(), key=lambda path: path.name == CATALOG):
        path.rename(folder / path.name)
    sync(folder)
    work.rmdir()
    sync(folder)


# Where the files come from


@contextmanager
def _opened(source: Path, at: str | None) -> Iterator[_Tar | _Folder]:
    if source.is_dir():
        yield _Folder.find(source, at)
        return
    if at is not None:
        raise ConfigurationError(f"{source} is one backup, without versions; leave --at out")
    if not source.exists():
        raise ConfigurationError(f"There is no backup {source}")
    with _reading(source.name), BoundedFile(source, most=2**26, members=1) as file:
        yield _Tar(file, source)


class _Tar:
    """A tar file, plain or packed, that is read once."""

    def __init__(self, file: BoundedFile, source: Path) -> None:
        size = source.stat().st_size
        self._file, self._megabytes = file, size // _MB
        self._stream = ForwardReader(unpacked(file), most=_SPARE + _RATIO * size)
        self.backup = Backup()

    def files(self, progress: Progress) -> Iterator[_Found]:
        """All files between the header and the manifest, which is read into `backup`."""
        self._stream.allow(_MOST_HEADERS)
        tar: Any = tarfile.open(fileobj=cast("Any", self._stream), mode="r:")  # noqa: SIM115
        started = ended = False
        while (info := self._next(tar)) is not None:
            if info.isdir():
                continue
            if not info.isreg() or info.issparse():
                raise BackupError(f"The backup holds {_shown(info.name)}, which is no plain file")
            name = info.name.removeprefix("./")
            if ended or not (started or name == HEADER):
                raise BackupError("This is no backup of Lookalike")
            if name == HEADER and not started:
                read_header(self._json(tar, info))
                started = True
            elif name == MANIFEST:
                self.backup, ended = Backup.read(self._json(tar, info)), True
            else:
                self._stream.allow(info.size + tarfile.BLOCKSIZE)
                yield _Found(name, info.size, tar.extractfile(info))
            progress.report(min(self._file.tell() // _MB, self._megabytes), self._megabytes)
        if not ended:
            raise BackupError(
                "The backup is not whole: its end is missing, since it was cut off or its disk was "
                "full. Use another one"
            )

    def _next(self, tar: Any) -> tarfile.TarInfo | None:
        self._stream.allow(_MOST_HEADERS)
        info: tarfile.TarInfo | None = tar.next()
        tar.members.clear()  # else it keeps every one
        return info

    def _json(self, tar: Any, info: tarfile.TarInfo) -> bytes:
        if info.size > _MOST_JSON:
            raise BackupError(f"{info.name} is far too long")
        self._stream.allow(info.size + tarfile.BLOCKSIZE)
        content: bytes = tar.extractfile(info).read()
        return content


@dataclass(eq=False)
class _Folder:
    """A version in a backup folder, or a tar that was unpacked."""

    top: Path
    version: Path
    backup: Backup

    @classmethod
    def find(cls, top: Path, at: str | None) -> _Folder:
        """The version `at`, or the newest. Raises `BackupError` if there is none."""
        versions = [top] if (top / MANIFEST).is_file() and at is None else versions_of(top)
        names = [one.name for one in versions]
        if not versions:
            half = ", only one that is half" if versions_of(top, whole=False) else ""
            raise BackupError(f"{top} holds no backup{half}; name the folder or the file of one")
        if at is not None and at not in names:
            raise ConfigurationError(f"{top} has no version {at!r}; it has {', '.join(names)}")
        version = versions[-1] if at is None else top / VERSIONS / at
        with _open(top, version / MANIFEST) as file:
            return cls(top, version, Backup.read(file.read(_MOST_JSON)))

    def files(self, progress: Progress) -> Iterator[_Found]:
        """All files that the version names."""
        with _open(self.top, self.version / SUMS) as file:
            if sha256_of(file) != self.backup.sums:
                raise BackupError(f"{self.version / SUMS} is damaged; use another version")
        for number, (digest, name) in enumerate(read_sums(self.version / SUMS)):
            if _NAMES.fullmatch(name) is None:
                raise BackupError(f"The backup holds {_shown(name)}, which no backup holds")
            place = self.top if name.startswith(SHARED) else self.version
            with ExitStack() as opened:
                try:
                    file = opened.enter_context(_open(self.top, place / name))
                except BackupError:
                    yield _Found(name, 0, None, digest)
                else:
                    yield _Found(name, os.fstat(file.fileno()).st_size, file, digest)
            progress.report(number + 1, self.backup.files)


@contextmanager
def _open(top: Path, path: Path) -> Generator[BinaryIO]:
    """Opens a plain file of a backup folder; a link out of the folder is none.

    Raises `BackupError` if it is missing or no plain file.
    """
    try:
        if not path.parent.resolve().is_relative_to(top.resolve()):
            raise BackupError(f"{path} leads out of the backup")
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError as exc:
        raise BackupError(f"{path} is missing from the backup") from exc
    except OSError as exc:
        raise BackupError(f"{path} cannot be read: {exc.strerror}") from exc
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise BackupError(f"{path} is no plain file")
    with os.fdopen(handle, "rb") as file:
        yield file


def _shown(name: str) -> str:
    return name.encode("unicode_escape").decode("ascii")[:100]
