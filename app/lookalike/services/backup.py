"""Making backups of a data folder that is in use; `backup_format` says what they are."""

from __future__ import annotations

import os
import re
import shutil
import tarfile
import tempfile
import threading
import zlib
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from heapq import merge
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from lookalike.errors import (
    BackupError,
    BackupsDisabledError,
    ConfigurationError,
    ConflictError,
    StorageError,
    StorageFullError,
)
from lookalike.files.data_folder import folder_kind, mark_folder
from lookalike.files.disk import LocalFiles, disk_errors, make_folders, sync
from lookalike.models.openvino.networks import open_network
from lookalike.progress import NO_PROGRESS, Progress
from lookalike.records import file_sha256, is_digest, sha256_of, utc_now
from lookalike.services.backup_format import (
    CATALOG,
    HEADER,
    KEPT_VERSIONS,
    KEYS,
    MANIFEST,
    SHARED,
    SUMS,
    VERSIONS,
    Backup,
    Sums,
    is_tar,
    read_sums,
    require_no_other,
    versions_of,
)
from lookalike.services.jobs import BACKUP_KIND, JobRun, JobService, JobStatus
from lookalike.store.base import Snapshots

_CHUNK = 2**20
_SPARE = 10_000_000  # bytes that must stay free
_SHOWN = 20  # errors whose text the manifest keeps
_SCRATCH = ".lookalike-backup-"
_MOMENT = "%Y%m%dT%H%M%S%f"


@dataclass(frozen=True, slots=True)
class _Item:
    """A file to copy."""

    name: str  # in the data folder
    path: Path
    sha256: str | None = None  # that its name promises


@dataclass(eq=False)
class _Snapshot:
    """A catalog's copy in a folder for this backup alone, and what is to be copied beside it."""

    folder: Path
    data: Path
    files: LocalFiles
    snapshots: Snapshots
    keys: bool
    backup: Backup

    @property
    def catalog(self) -> Path:
        return self.folder / CATALOG

    def items(self, count: Backup) -> Iterator[_Item]:
        """All files in the order of the backup; notes in `count` what has no file."""
        yield _Item(CATALOG, self.catalog)
        for name in KEYS if self.keys else ():
            if (self.folder / name).is_file():
                yield _Item(name, self.folder / name)
        for path in (*_plain_files(self.data / "heads"), *self._networks()):
            yield _Item(path.relative_to(self.data).as_posix(), path)
        for content in self.snapshots.contents(self.catalog):
            place = f"{content.sha256[:2]}/{content.sha256[2:4]}"
            original = self.files.path(content.sha256, content.media_type)
            if original is not None:
                yield _Item(f"images/{place}/{original.name}", original, content.sha256)
            else:
                count.in_place += content.in_place
                count.missing += not content.in_place
            if (thumbnail := self.files.thumbnail_path(content.sha256)) is not None:
                yield _Item(f"thumbnails/{place}/{content.sha256}.jpg", thumbnail)

    def _networks(self) -> Iterator[Path]:
        """The files of int8 networks, whose calibration cannot be done again."""
        models = self.data / "models"
        for home in sorted(models.glob("*/")) if models.is_dir() else ():
            if (kept := open_network(models, home.name)) is not None:
                yield home / MANIFEST
                yield from _plain_files(kept.xml.parent)

    @contextmanager
    def verified(
        self, item: _Item, backup: Backup, progress: Progress
    ) -> Iterator[tuple[BinaryIO, str] | None]:
        """A file, open at its start, with its digest; None if it is gone or damaged."""
        with ExitStack() as opened:
            try:
                file = opened.enter_context(self._open(item))
                digest = sha256_of(file)
                file.seek(0)
            except OSError as exc:
                if not item.name.startswith(SHARED):
                    raise
                gone = isinstance(exc, FileNotFoundError)
                why = (
                    "went while the backup was made" if gone else f"cannot be read ({exc.strerror})"
                )
            else:
                if item.sha256 in (None, digest):
                    yield file, digest
                    return
                gone, why = False, "has other bytes than it had when it was indexed"
        if item.sha256 is not None:
            backup.missing += gone
            backup.damaged += not gone
        text = f"{item.name} {why}"
        progress.error(text)
        backup.errors = [*backup.errors, text][:_SHOWN]
        yield None

    def _open(self, item: _Item) -> BinaryIO:
        """Opens a file; one that a sweep moved just now is looked for in the other place, too."""
        with suppress(FileNotFoundError):
            return item.path.open("rb")
        place = self.data / item.name
        return (place if place.is_file() else self.files.trash.find(place) or place).open("rb")


@dataclass(eq=False)
class BackupService:
    """Makes backups of a data folder, which this or another process may own."""

    folder: Path
    files: LocalFiles
    snapshots: Snapshots
    to: Path | None = None  # the folder that jobs bring up to date
    keep: int = KEPT_VERSIONS

    def __post_init__(self) -> None:
        self._sending = threading.Lock()

    def start(self, jobs: JobService, *, keys: bool = False) -> JobStatus:
        """Begins to bring the folder `to` up to date. Raises `BackupsDisabledError`."""
        if self.to is None:
            raise BackupsDisabledError
        return jobs.start(BACKUP_KIND, {"keys": keys})

    def as_job(self, parameters: Mapping[str, Any], run: JobRun) -> str:
        """What such a job does; begun again, it copies what is not there yet."""
        if self.to is None:
            raise BackupsDisabledError
        return str(self.write(self.to, keys=parameters["keys"], keep=self.keep, progress=run))

    def write(
        self,
        to: Path,
        *,
        keys: bool = False,
        keep: int = KEPT_VERSIONS,
        progress: Progress = NO_PROGRESS,
    ) -> Backup:
        """Writes a tar file if the name ends like one, or brings a folder up to date.

        Raises:
            ConfigurationError: `to` lies in the data folder, or is a folder of something else.
            StorageFullError: There is no room; the old file, or the old versions, stay.
            ConflictError: Another backup into the folder is under way.
            StorageError: The disk refuses, or the catalog is damaged.
        """
        if to.resolve().is_relative_to(self.folder.resolve()):
            raise ConfigurationError(
                f"{to} lies in the data folder, with which it would be lost; name another place"
            )
        if is_tar(to):
            return self._write_file(to, keys=keys, progress=progress)
        return self._update(to, keys=keys, keep=keep, progress=progress)

    def tar(
        self,
        scratch: Path,
        *,
        keys: bool = False,
        packed: bool = False,
        progress: Progress = NO_PROGRESS,
    ) -> TarBackup:
        """Begins a backup that is read as the bytes of a tar file, packed with gzip if asked.

        The catalog is copied into `scratch` before this returns. Raises as `write`; one at a time.
        """
        if not self._sending.acquire(blocking=False):
            raise ConflictError("Another backup is being read; wait for its end")
        with ExitStack() as undo, disk_errors("make a backup"):
            undo.callback(self._sending.release)
            folder = undo.enter_context(_scratch(scratch))
            snapshot = self._take(folder, keys=keys, progress=progress)
            return TarBackup(snapshot, packed=packed, progress=progress, owned=undo.pop_all())

    def _take(self, folder: Path, *, keys: bool, progress: Progress) -> _Snapshot:
        """Copies what changes while it is read: the catalog, and the keys."""
        self.snapshots.take(folder / CATALOG, progress.stage("copying the catalog"))
        self.snapshots.check(folder / CATALOG)
        for name in KEYS if keys else ():
            source, target = self.folder / name, folder / name
            if source.is_file():
                target.touch(0o600)
                copy = self.snapshots.copy if name.endswith(".db") else shutil.copyfile
                copy(source, target)
        backup = Backup(keys=keys, collections=self.snapshots.collections(folder / CATALOG))
        return _Snapshot(folder, self.folder, self.files, self.snapshots, keys, backup)

    def _write_file(self, to: Path, *, keys: bool, progress: Progress) -> Backup:
        parent = to.absolute().parent
        if to.is_dir():
            raise ConfigurationError(f"{to} is a folder; name a file, or a folder without .tar")
        packed = not to.name.endswith(".tar")
        with disk_errors(f"write {to}"):
            require_no_other(to)
            make_folders(parent)
            with closing(self.tar(parent, keys=keys, packed=packed, progress=progress)) as tar:
                _require_room(parent, tar.size)
                part = tar.folder / "part"
                with part.open("xb") as file:
                    part.chmod(0o600)
                    for block in tar:
                        file.write(block)
                    file.flush()
                    os.fsync(file.fileno())
                part.replace(to)
                sync(parent)
                return tar.backup

    # A folder

    def _update(self, to: Path, *, keys: bool, keep: int, progress: Progress) -> Backup:
        with disk_errors(f"write the backup {to}"), _locked(to):
            for old in versions_of(to, whole=False):
                shutil.rmtree(old)
            moment = _moment(versions_of(to))
            version = to / VERSIONS / moment
            make_folders(version.absolute())
            try:
                snapshot = self._take(version, keys=keys, progress=progress)
                snapshot.backup.version = moment
                _FolderWriter(to, version, snapshot, progress).run()
            except BaseException:
                shutil.rmtree(version, ignore_errors=True)
                raise
            _forget(to, keep, snapshot.backup)
            return snapshot.backup


class TarBackup:
    """A backup as the bytes of a tar file, to be read once and closed."""

    def __init__(
        self, snapshot: _Snapshot, *, packed: bool, progress: Progress, owned: ExitStack
    ) -> None:
        self._snapshot, self._packed, self._progress, self._owned = (
            snapshot,
            packed,
            progress,
            owned,
        )
        self.folder = snapshot.folder
        self.backup = snapshot.backup
        sizes = [0, 0]
        for item in snapshot.items(Backup()):
            progress.check()
            sizes[0] += 1
            sizes[1] += _size(item) + 1024
        self._total, self.size = sizes

    def close(self) -> None:
        """Removes the copy of the catalog."""
        self._owned.close()

    def __iter__(self) -> Iterator[bytes]:
        """The blocks of the file. Raises `StorageError`: what came before is then no backup."""
        blocks = self._blocks()
        return _gathered(_gzipped(blocks) if self._packed else blocks)

    def _blocks(self) -> Generator[bytes]:
        yield from _member(HEADER, Backup(created_at=self.backup.created_at).manifest())
        with closing(Sums(self.folder / SUMS)) as sums, disk_errors("read a file for the backup"):
            for number, item in enumerate(self._snapshot.items(self.backup)):
                self._progress.check()
                self._progress.report(number, self._total, stage="files")
                with self._snapshot.verified(item, self.backup, self._progress) as found:
                    if found is not None:
                        file, digest = found
                        size = os.fstat(file.fileno()).st_size
                        yield from _member_of(item.name, file, size)
                        sums.add(digest, item.name)
                        _count(self.backup, item, size)
            self._progress.report(self._total, self._total, stage="files")
            self.backup.sums = sums.end()
            with sums.path.open("rb") as file:
                yield from _member_of(SUMS, file, sums.path.stat().st_size)
        yield from _member(MANIFEST, self.backup.manifest())
        yield bytes(2 * tarfile.BLOCKSIZE)


@dataclass(eq=False)
class _FolderWriter:
    """Writes one version into a folder; files that an earlier one has are not read again."""

    to: Path
    version: Path
    snapshot: _Snapshot
    progress: Progress

    def __post_init__(self) -> None:
        whole = [(one / MANIFEST).stat().st_mtime for one in versions_of(self.to)]
        self._whole_until = max(whole, default=0.0)

    def run(self) -> None:
        backup = self.snapshot.backup
        total = self._require_room()
        tmp = self.to / "tmp"
        shutil.rmtree(tmp, ignore_errors=True)
        tmp.mkdir()
        with (
            closing(Sums(self.version / SUMS)) as sums,
            closing(_known(self.to, self.version)) as known,
        ):
            for number, item in enumerate(self.snapshot.items(backup)):
                self.progress.check()
                self.progress.report(number, total, stage="files")
                target = self._target(item)
                digest = self._there(item, target, known)
                if digest is None:
                    digest = self._copy(item, target, tmp / "part")
                if digest is not None:
                    sums.add(digest, item.name)
                    _count(backup, item, target.stat().st_size)
            self.progress.report(total, total, stage="files")
            backup.sums = sums.end()
        os.sync()  # all of them, before the manifest says that they are there
        part = self.version / f".{MANIFEST}"
        with part.open("wb") as file:
            file.write(backup.manifest())
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.version / MANIFEST)
        sync(self.version)

    def _target(self, item: _Item) -> Path:
        return (self.to if item.name.startswith(SHARED) else self.version) / item.name

    def _there(self, item: _Item, target: Path, known: Known) -> str | None:
        """The digest of a file that the folder has already; None if it is to be copied."""
        is_thumbnail = item.sha256 is None and item.name.startswith(SHARED)
        if not target.is_file():
            return None
        if item.sha256 is not None:
            return item.sha256 if self._is_whole(target, item) else None
        if is_thumbnail and (digest := known.find(item.name)) is not None:
            return digest
        if is_thumbnail or item.path == target:  # the catalog was copied to its place
            return file_sha256(target)  # a thumbnail that is there is of some older version
        return None

    def _is_whole(self, target: Path, item: _Item) -> bool:
        """Whether an original is there; one that no whole version may have seen is read."""
        facts = target.stat()
        if facts.st_size != _size(item):
            return False
        if facts.st_mtime <= self._whole_until:
            return True
        # A power cut may have ended the backup that wrote it.
        return file_sha256(target) == item.sha256

    def _copy(self, item: _Item, target: Path, part: Path) -> str | None:
        with self.snapshot.verified(item, self.snapshot.backup, self.progress) as found:
            if found is None:
                return None
            file, digest = found
            with part.open("wb") as out:
                shutil.copyfileobj(file, out, _CHUNK)
            target.parent.mkdir(parents=True, exist_ok=True)
            part.replace(target)
            return digest

    def _require_room(self) -> int:
        """Raises `StorageFullError` where what is new has no room; returns how many files."""
        count = new = 0
        for item in self.snapshot.items(Backup()):
            self.progress.check()
            count += 1
            if item.path != self._target(item) and not self._target(item).is_file():
                new += _size(item)
        _require_room(self.to, new)
        return count


def _count(backup: Backup, item: _Item, size: int) -> None:
    backup.files += 1
    backup.size += size
    backup.originals += item.sha256 is not None


class Known:
    """Digests that an earlier version recorded, asked for in the order of the list."""

    def __init__(self, lines: Generator[tuple[str, str]]) -> None:
        self._lines = lines
        self._now: tuple[str, str] | None = next(lines, None)

    def find(self, name: str) -> str | None:
        """The digest of a file; None if it has none."""
        while self._now is not None and Path(self._now[1]).stem < Path(name).stem:
            self._now = next(self._lines, None)
        return self._now[0] if self._now is not None and self._now[1] == name else None

    def close(self) -> None:
        """Closes the list."""
        self._lines.close()


def _known(to: Path, version: Path) -> Known:
    """What the newest whole version before `version` recorded of thumbnails."""
    before = [one for one in versions_of(to) if one != version]
    lines = read_sums(before[-1] / SUMS) if before else _no_lines()
    return Known((digest, name) for digest, name in lines if name.startswith("thumbnails/"))


def _no_lines() -> Generator[tuple[str, str]]:
    yield from ()


def _forget(to: Path, keep: int, backup: Backup) -> None:
    """Removes the oldest versions beyond `keep`, and the files that none of the others names.

    An old version stays if all that are kept have less than half of its pictures, or of its
    originals: the data folder may have been emptied, or its disk not mounted, for long. Nothing is
    removed if a manifest or a list of files is damaged.
    """
    versions = versions_of(to)
    if not versions[:-keep]:
        return
    try:
        held = {one: Backup.read((one / MANIFEST).read_bytes()) for one in versions}
        kept = versions[-keep:]
        for version in reversed(versions[:-keep]):
            old = held[version]
            if not any(_has_half(held[one], old) for one in kept):
                kept.append(version)
                backup.errors.append(
                    f"Version {version.name} was kept: it has {old.pictures:,} pictures and "
                    f"{old.originals:,} originals, and newer ones have less than half of either. "
                    f"If that is right, delete {version}"
                )
        lists = [_digests(one) for one in kept]
        for version in set(versions) - set(kept):
            (version / MANIFEST).unlink()
            shutil.rmtree(version)
    except BackupError as exc:
        backup.errors.append(f"No old files were removed: {exc}")
        return
    named = merge(*lists)
    wanted = next(named, None)
    for path in _walk(to):
        if not is_digest(path.stem):
            continue  # a file server left it there
        while wanted is not None and wanted < path.stem:
            wanted = next(named, None)
        if wanted != path.stem:
            path.unlink(missing_ok=True)


def _moment(versions: list[Path]) -> str:
    """The name of a new version, which sorts behind the others even if the clock was set back."""
    now = re.sub(r"[-:.]", "", utc_now())
    if not versions or versions[-1].name < now:
        return now
    last = datetime.strptime(f"{versions[-1].name[:-1]}000", _MOMENT)
    return f"{last + timedelta(milliseconds=1):{_MOMENT}}"[:-3] + "Z"


def _has_half(kept: Backup, old: Backup) -> bool:
    return 2 * kept.pictures >= old.pictures and 2 * kept.originals >= old.originals


def _digests(version: Path) -> Iterator[str]:
    """The digests of the pictures of a version, ascending. Raises `BackupError`."""
    backup = Backup.read((version / MANIFEST).read_bytes())
    if file_sha256(version / SUMS) != backup.sums:
        raise BackupError(f"{version / SUMS} is damaged")
    return (Path(name).stem for _, name in read_sums(version / SUMS) if name.startswith(SHARED))


def _walk(to: Path) -> Iterator[Path]:
    """The files that versions share, by digest."""
    tops = [to / name for name in SHARED]
    for pair in sorted({path.relative_to(top) for top in tops for path in top.glob("??/??")}):
        paths = [path for top in tops for path in (top / pair).glob("*")]
        yield from sorted(paths, key=lambda path: path.stem)


@contextmanager
def _locked(to: Path) -> Iterator[None]:
    """Makes this process the only one that writes into a backup folder; makes it if missing."""
    if to.exists() and not to.is_dir():
        raise ConfigurationError(f"{to} is a file; name a folder, or a file that ends in .tar")
    others = to.is_dir() and folder_kind(to) != "backup"
    if others and any(path.name != "lost+found" for path in to.iterdir()):
        raise ConfigurationError(
            f"{to} is not empty, and no backup; name an empty folder, a new one, or that of an "
            "earlier backup"
        )
    make_folders(to.absolute())
    mark_folder(to, "backup")
    lock = FileLock(to / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as exc:
        raise ConflictError(f"Another backup into {to} is under way; wait for its end") from exc
    with lock:
        yield


@contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    """A new folder in another, for this backup alone; removes those that killed ones left."""
    for left in parent.glob(f"{_SCRATCH}*"):
        with suppress(Timeout, OSError), FileLock(left / "lock", timeout=0):
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=parent))
    try:
        with FileLock(folder / "lock", thread_local=False):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _plain_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_file() and path.name[0] != ".")


def _size(item: _Item) -> int:
    with suppress(FileNotFoundError):
        return item.path.stat().st_size
    return 0


def _require_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + _SPARE:
        raise StorageFullError(
            f"The backup needs {needed:,} bytes in {folder}, and {free:,} are free; make room there"
        )


def _member(name: str, content: bytes) -> Iterator[bytes]:
    yield _tar_header(name, len(content))
    yield content + bytes(-len(content) % tarfile.BLOCKSIZE)


def _member_of(name: str, file: BinaryIO, size: int) -> Iterator[bytes]:
    yield _tar_header(name, size)
    left = size
    while left and (block := file.read(min(_CHUNK, left))):
        left -= len(block)
        yield block
    if left:
        raise StorageError(f"{name} became shorter while it was read; make the backup again")
    yield bytes(-size % tarfile.BLOCKSIZE)


def _tar_header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    return info.tobuf(tarfile.PAX_FORMAT)


def _gathered(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in blocks that are not small."""
    held = bytearray()
    for block in blocks:
        held += block
        if len(held) >= _CHUNK:
            yield bytes(held)
            held.clear()
    yield bytes(held)


def _gzipped(blocks: Iterable[bytes]) -> Iterator[bytes]:
    packer = zlib.compressobj(level=1, wbits=31)
    for block in blocks:
        if packed := packer.compress(block):
            yield packed
    yield packer.flush()
