"""Feeds: the pictures of archives, folders and manifests, in an order that stays the same."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from lookalike.errors import FetchingDisabledError, LookalikeError, PathNotAllowedError
from lookalike.media.archives import Archive, ArchiveLimits, as_text, in_ascii
from lookalike.media.manifests import VERSION, Manifest, Row
from lookalike.media.sources import Found, PictureSource, Selection, is_own_picture, walk
from lookalike.progress import NO_PROGRESS, Progress
from lookalike.records import (
    DEFAULT_COLLECTION,
    ImageRecord,
    Metadata,
    OnConflict,
    Place,
    canonical_json,
    nfc,
)
from lookalike.services.indexing import ID_LENGTH, IndexingService
from lookalike.store.filters import check_metadata

if TYPE_CHECKING:
    from lookalike.media.fetching import Fetcher  # which commands without addresses need not import

ARCHIVE_ENDINGS = (
    ".zip",
    ".tar",
    *(f".tar.{packed}" for packed in ("gz", "bz2", "xz")),
    *(".tgz", ".tbz2", ".tbz", ".txz"),
)
"""How the names of archives that can be read end."""

FETCHES = 8  # addresses of a manifest that are fetched at once


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """What is done with the pictures of an import."""

    collection: str = DEFAULT_COLLECTION
    on_conflict: OnConflict = OnConflict.REPLACE
    metadata: Metadata | None = None  # of each; None keeps what is stored
    folder_field: str | None = None  # metadata field that takes the name of the picture's folder
    exclude: Sequence[str] = ()  # globs of what is passed over, see `Selection`

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> ImportOptions:
        """Those of a job, whose parameters hold them as `asdict` gave them."""
        names = [each.name for each in fields(cls) if each.name in parameters]
        given = {name: parameters[name] for name in names}
        return cls(**given | {"on_conflict": OnConflict(given["on_conflict"])})

    def describe(self, folder: str) -> dict[str, Any] | None:
        """The metadata of a picture in a folder of this name."""
        if self.folder_field is None:
            return None if self.metadata is None else dict(self.metadata)
        return {**(self.metadata or {}), self.folder_field: folder}


Cursor = int | str
"""A picture's position in its feed; a later reading can go on behind it."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of a feed."""

    cursor: Cursor
    name: str  # for messages, in ASCII
    source: PictureSource
    given: str | None = None  # the path or address as a manifest gives it
    validator: str | None = None  # of an address that was fetched, see `Fetcher.download`


@dataclass(eq=False)
class ArchiveFeed:
    """The pictures of an archive, in its order."""

    path: Path
    limits: ArchiveLimits
    folder: Path  # where large members wait
    name: str  # stands for the folder of pictures that lie in none
    options: ImportOptions
    passed: Counter[str] = field(default_factory=Counter)  # over, by kind, in the latest reading

    def count(self, progress: Progress) -> int:
        """How many there are; calls `progress.check` often. Raises `ArchiveError`."""
        with self._open() as archive:
            return archive.count(progress.check)

    def pictures(self, after: Cursor | None, progress: Progress = NO_PROGRESS) -> Iterator[Picture]:
        """All pictures, or those behind a cursor. Raises `ArchiveError` and `StorageError`."""
        start = 0 if after is None else int(after) + 1
        root = as_text(self.name)
        label = archive_label(root)
        with self._open() as archive:
            for member in archive.members(start=start, step=progress.check):
                metadata = self.options.describe(member.folder or label)
                place, file = Place(root, member.inside), member.source.file
                if file is not None and is_own_picture(file):
                    self.passed["ours"] += 1
                    member.source.close()
                    continue
                source = replace(member.source, metadata=metadata, place=place)
                yield Picture(member.position, member.path, source)

    def _open(self) -> Archive:
        selection = Selection(self.options.exclude)
        self.passed = selection.passed
        return Archive(self.path, self.limits, folder=self.folder, selection=selection)


@dataclass(eq=False)
class FolderFeed:
    """The pictures below a folder, in the order of `walk`."""

    top: Path  # resolved
    inside: Sequence[Path]  # resolved; a link that leads to none of these is not followed
    options: ImportOptions
    passed: Counter[str] = field(default_factory=Counter)  # over, by kind, in the latest reading

    def count(self, progress: Progress) -> int:
        """How many there are; calls `progress.check` often."""
        return sum(1 for _ in self._walk(progress))

    def pictures(self, after: Cursor | None, progress: Progress = NO_PROGRESS) -> Iterator[Picture]:
        """All pictures, or those behind a cursor, which is a path below the folder."""
        behind = None if after is None else _order(str(after))
        for found in self._walk(progress):
            name = found.path.relative_to(self.top).as_posix()
            cursor = name if found.error is None else f"{name}/".removeprefix("./")
            if behind is None or _order(cursor) > behind:
                yield Picture(cursor, in_ascii(name), self._source(found))

    def _walk(self, progress: Progress) -> Iterator[Found]:
        selection = Selection(self.options.exclude)
        self.passed = selection.passed
        for found in walk([self.top], progress.check, selection=selection):
            progress.check()
            yield found

    def _source(self, found: Found) -> PictureSource:
        metadata = self.options.describe(found.folder)
        if found.error is not None or is_inside(found.path, self.inside):
            return PictureSource.found(found, metadata=metadata)
        error = PathNotAllowedError("It is a link out of the folders that may be read")
        return PictureSource.refused(found.path, error, metadata=metadata)


Fetched = tuple[PictureSource, str | None]
"""The picture of a row, with the server's validator of what was fetched."""


@dataclass(eq=False)
class ManifestFeed:
    """The pictures that a manifest names, in its order; several addresses are fetched at once."""

    manifest: Manifest
    root: str  # that the places of its pictures are below: the path of the manifest
    options: ImportOptions
    _: KW_ONLY
    indexing: IndexingService
    fetcher: Fetcher | None  # None if fetching is not turned on
    inside: Sequence[Path] | None = None  # resolved; files elsewhere are refused. None: of none
    passed: Counter[str] = field(default_factory=Counter)

    def count(self, progress: Progress) -> int:  # noqa: ARG002 - counted when it was opened
        """How many rows there are."""
        return self.manifest.count

    def pictures(self, after: Cursor | None, progress: Progress = NO_PROGRESS) -> Iterator[Picture]:
        """All rows, or those behind a cursor, which is a line. Raises `InvalidParameterError`."""
        start = 0 if after is None else int(after)
        where = self.options.collection, self.root
        seen, held = self.indexing.store.seen(*where), self.indexing.store.validators(*where)
        window: deque[tuple[Row, Future[Fetched]]] = deque()
        with ThreadPoolExecutor(FETCHES, thread_name_prefix="fetch") as pool:
            try:
                for row in self.manifest.rows(progress.check):
                    if row.line <= start:
                        continue
                    known = seen.get(row.name), held.get(row.name)
                    window.append((row, pool.submit(self._source, row, *known)))
                    if len(window) >= 2 * FETCHES:
                        yield _picture(*window.popleft())
                while window:
                    yield _picture(*window.popleft())
            finally:
                for _, begun in window:
                    if not begun.cancel():
                        begun.result()[0].close()

    def _source(self, row: Row, known: str | None, validator: str | None) -> Fetched:
        """The picture of a row; its address is not fetched again if it did not change.

        `known` is the id of the picture that the address gave, with the server's `validator`.
        """
        source = PictureSource(filename=_filename(row), size=0, id=row.id, error=row.error)
        if row.error is not None:
            return source, None
        try:
            return self._opened(row, known, validator, source)
        except LookalikeError as exc:
            return replace(source, error=exc), None

    def _opened(
        self, row: Row, known: str | None, validator: str | None, source: PictureSource
    ) -> Fetched:
        folder = PurePosixPath(row.given).parent.name
        metadata = self.options.describe(folder)
        if row.metadata is not None:
            metadata = {**(metadata or {}), **row.metadata}
        facts: dict[str, Any] = {"metadata": metadata, "place": Place(self.root, row.name)}
        if row.path is not None:
            if self.inside is not None and not _may_be_read(row.path, self.inside):
                raise PathNotAllowedError("It is not below a folder of LOOKALIKE_IMPORT_DIRS")
            found = PictureSource.from_path(row.path, id=row.id)
            return replace(found, **facts), None
        if self.fetcher is None:
            raise FetchingDisabledError
        stored = self._stored(row, known)
        file = None
        if stored is None or not self._same(stored, metadata):
            asked = None if stored is None else validator
            file, validator = self.fetcher.download(row.given, validator=asked)
        if file is None:
            assert stored is not None
            same: dict[str, Any] = {
                "digest": stored.sha256,
                "size": stored.bytes,
                "filename": stored.filename,
            }
            return replace(source, **facts, **same), None
        size = file.seek(0, 2)
        file.seek(0)
        return replace(source, **facts, file=file, size=size), validator

    def _stored(self, row: Row, known: str | None) -> ImageRecord | None:
        """What is stored whole of an address, under the id that the row would give it."""
        if known is None:
            return None
        record = self.indexing.store.find(self.options.collection, [known]).get(known)
        if record is None or known != (row.id or record.sha256[:ID_LENGTH]):
            return None
        return record if self.indexing.holds(record) else None

    def _same(self, stored: ImageRecord, metadata: Metadata | None) -> bool:
        """Whether the row says that the picture has not changed.

        It does if it has a version, and all of its metadata is stored already.
        """
        if VERSION not in (metadata or {}):
            return False
        checked = check_metadata(metadata or {}, max_bytes=self.indexing.max_metadata_bytes)
        return canonical_json(checked) == canonical_json(stored.metadata)


def _picture(row: Row, fetched: Future[Fetched]) -> Picture:
    name = f"line {row.line}" + (f": {in_ascii(row.given)}" if row.given else "")
    source, validator = fetched.result()
    return Picture(row.line, name, source, given=row.given, validator=validator)


def _filename(row: Row) -> str:
    """The last part of a row's path or address."""
    if row.path is not None or row.error is not None:
        return PurePosixPath(row.given.replace("\\", "/")).name
    try:
        path = urlsplit(row.given).path
    except ValueError:  # which fetching it says, too
        path = row.given
    return nfc(unquote(PurePosixPath(path).name, errors="replace"))


def _may_be_read(path: Path, folders: Sequence[Path]) -> bool:
    return path.is_absolute() and is_inside(path, folders)


Feed = ArchiveFeed | FolderFeed | ManifestFeed
"""Pictures in an order that stays the same whenever they are read."""


def is_inside(path: Path, folders: Sequence[Path]) -> bool:
    """Whether a path, its links followed, is one of the resolved folders or below one."""
    try:
        resolved = path.resolve()
    except (OSError, RuntimeError):  # a loop of links
        return False
    return any(resolved.is_relative_to(folder) for folder in folders)


def archive_label(name: str) -> str:
    """An archive's name without its ending: `photos` for `photos.tar.gz`."""
    base = name.replace("\\", "/").rsplit("/", 1)[-1]
    for ending in ARCHIVE_ENDINGS:
        if base.lower().endswith(ending):
            return base[: -len(ending)]
    return base


def _order(cursor: str) -> list[tuple[int, str]]:
    """Sorts paths as `walk` does: a folder's files before the folders inside.

    A folder that cannot be read ends with a slash, or is empty at the top: it stands at its start.
    """
    *folders, name = cursor.split("/")
    return [*((1, folder) for folder in folders), (0, name)]
