"""One import: the pictures of an archive or a folder, indexed in order and resumable."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from lookalike.errors import (
    ArchiveError,
    EmbeddingFailedError,
    ImageExistsError,
    InvalidImageError,
    InvalidRequestError,
    LookalikeError,
    PathNotAllowedError,
    StorageError,
)
from lookalike.files.disk import atomic_write, disk_errors
from lookalike.media.archives import Archive, ArchiveLimits, as_text, in_ascii
from lookalike.media.sources import Found, PictureSource, walk
from lookalike.progress import NO_PROGRESS, Progress
from lookalike.records import OnConflict
from lookalike.services.indexing import IndexingService, IndexItem
from lookalike.services.jobs import CanceledError

ARCHIVE_ENDINGS = (
    ".zip",
    ".tar",
    *(f".tar.{packed}" for packed in ("gz", "bz2", "xz")),
    *(".tgz", ".tbz2", ".tbz", ".txz"),
)
"""How the names of archives that can be read end."""

KEPT_ERRORS = 20
"""Errors whose text is kept."""

_JOURNAL_VERSION = 1
_OF_ONE_PICTURE = (
    InvalidImageError,
    InvalidRequestError,
    EmbeddingFailedError,
    ImageExistsError,
    PathNotAllowedError,
)
"""Errors that concern one picture alone; any other ends the import."""


class ImportRun:
    """Indexes the pictures of a feed, and resumes if an earlier run was interrupted.

    A picture is noted as settled right after its group was committed. So a crash between the two
    leaves one group in doubt, whose pictures are looked at again and found unchanged.

    Args:
        indexing: Indexes them.
        feed: Where they come from.
        journal: How far an earlier run has come.
        progress: Told how far this one is; may end it.
    """

    def __init__(
        self, indexing: IndexingService, feed: Feed, journal: Journal, progress: Progress
    ) -> None:
        self._indexing = indexing
        self._feed = feed
        self._journal = journal
        self._progress = progress
        self._checkpoint = Checkpoint()
        self._under_way: deque[Picture] = deque()
        self._broken: LookalikeError | None = None

    def run(self, collection: str, on_conflict: OnConflict) -> str:
        """Does the work; returns what became of the pictures.

        Raises:
            ArchiveError: The archive is broken; the pictures before that are indexed.
            CanceledError: Somebody asked for it.
            LookalikeError: An error that concerns more than one picture, such as a full disk.
        """
        try:
            self._begin()
            self._index(collection, on_conflict)
        except CanceledError as exc:
            if str(exc):  # the reason given may be that not everything is kept
                raise
            raise CanceledError(f"Canceled; what was done is kept: {self._summary()}") from exc
        if self._broken is not None:
            raise self._with_summary(self._broken) from self._broken
        return self._summary()

    def _begin(self) -> None:
        """Reads what an earlier run noted, and counts the pictures."""
        self._checkpoint = self._journal.read()
        failed = self._checkpoint.counts["failed"]
        for text in self._checkpoint.errors + [""] * (failed - len(self._checkpoint.errors)):
            self._progress.error(text)
        if self._checkpoint.total is None:
            self._checkpoint.total = self._feed.count(self._progress)
            self._journal.write(self._checkpoint)
        self._report()

    def _index(self, collection: str, on_conflict: OnConflict) -> None:
        """Indexes the pictures up to their end, or to where the archive breaks."""
        groups = self._indexing.index_groups(
            self._sources(),
            collection=collection,
            on_conflict=on_conflict,
            check=self._progress.check,
        )
        try:
            with closing(groups):
                for group in groups:
                    self._settle(group)
                    self._progress.check()
        finally:
            for picture in self._under_way:
                picture.source.close()

    def _sources(self) -> Iterator[PictureSource]:
        """The pictures' bytes; if the archive breaks, what came before is still indexed."""
        try:
            for picture in self._feed.pictures(self._checkpoint.cursor, self._progress):
                self._under_way.append(picture)
                yield picture.source
        except (ArchiveError, StorageError) as exc:
            self._broken = exc

    def _settle(self, group: list[IndexItem]) -> None:
        """Notes what became of a group that was committed.

        If an error ends the import, the rest of the group is counted but not written: a later run
        looks at the whole group again.
        """
        end: LookalikeError | None = None
        for item in group:
            picture = self._under_way.popleft()
            picture.source.close()
            if item.error is None or isinstance(item.error, _OF_ONE_PICTURE):
                self._note(picture, item)
            else:
                end = end or item.error
        if end is not None:
            self._report()
            raise self._with_summary(end) from end
        self._journal.write(self._checkpoint)
        self._report()

    def _note(self, picture: Picture, item: IndexItem) -> None:
        """Counts a picture that is settled."""
        self._checkpoint.cursor = picture.cursor
        if item.error is None:
            self._checkpoint.counts[str(item.status)] += 1
            return
        text = f"{picture.name}: {in_ascii(str(item.error))}"
        self._checkpoint.failed(text)
        self._progress.error(text)

    def _report(self) -> None:
        done = self._checkpoint.done
        self._progress.report(done, max(done, self._checkpoint.total or 0))

    def _with_summary(self, error: LookalikeError) -> LookalikeError:
        return type(error)(f"{error} (before that: {self._summary()})")

    def _summary(self) -> str:
        counts = self._checkpoint.counts
        return ", ".join(f"{count:,} {status}" for status, count in counts.items()) or "no pictures"


@dataclass(slots=True)
class Checkpoint:
    """How far an import has come.

    Attributes:
        total: Pictures in all; None if they were not counted yet.
        cursor: That of the last picture that is settled; None before the first.
        counts: Pictures that are settled, by what became of them.
        errors: The first few errors.
    """

    total: int | None = None
    cursor: Cursor | None = None
    counts: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)

    @property
    def done(self) -> int:
        """Pictures that are settled."""
        return self.counts.total()

    def failed(self, text: str) -> None:
        """Counts a picture that failed."""
        self.counts["failed"] += 1
        if len(self.errors) < KEPT_ERRORS:
            self.errors.append(text)


class Journal:
    """A file that holds a `Checkpoint`; without it, or if it is broken, an import starts over."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Checkpoint:
        """What was written last."""
        try:
            held = json.loads(self._path.read_text(encoding="ascii"))
            if held["version"] != _JOURNAL_VERSION:
                return Checkpoint()
            counts, errors = Counter(held["counts"]), list(held["errors"])
            return Checkpoint(held["total"], held["cursor"], counts, errors)
        except (OSError, ValueError, KeyError, TypeError):
            return Checkpoint()

    def write(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint so that it survives a crash. Raises `StorageError`."""
        held = {
            "version": _JOURNAL_VERSION,
            "total": checkpoint.total,
            "cursor": checkpoint.cursor,
            "counts": checkpoint.counts,
            "errors": checkpoint.errors,
        }
        with disk_errors("note how far the import is"), atomic_write(self._path) as file:
            file.write(json.dumps(held).encode("ascii"))

    def remove(self) -> None:
        """Removes the file. Raises `StorageError`."""
        with disk_errors("remove what an import left"):
            self._path.unlink(missing_ok=True)


Cursor = int | str
"""A picture's position in its feed; a later reading can go on behind it."""

Describe = Callable[[str], Mapping[str, Any] | None]
"""Returns a picture's metadata, given the name of its folder."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of a feed.

    Attributes:
        cursor: Its position.
        name: For messages, in ASCII.
        source: Its bytes, or why they cannot be had.
    """

    cursor: Cursor
    name: str
    source: PictureSource


class Feed(Protocol):
    """Pictures in an order that stays the same whenever they are read."""

    def count(self, progress: Progress) -> int:
        """How many there are; `progress.check` is called often.

        Raises:
            ArchiveError: The archive is broken, or beyond a bound.
        """
        ...

    def pictures(self, after: Cursor | None, progress: Progress = NO_PROGRESS) -> Iterator[Picture]:
        """All pictures, or those behind a cursor; calls `progress.check` often.

        Raises:
            ArchiveError: The archive is broken, or beyond a bound.
            StorageError: The disk refuses what waits there.
        """
        ...


class ArchiveFeed:
    """The pictures of an archive.

    Args:
        path: Its file.
        limits: How much is read.
        folder: Where large members wait.
        name: The archive's own; stands for the folder of pictures that lie in none.
        describe: Gives their metadata.
    """

    def __init__(
        self, path: Path, limits: ArchiveLimits, *, folder: Path, name: str, describe: Describe
    ) -> None:
        self._path = path
        self._limits = limits
        self._folder = folder
        self._label = archive_label(as_text(name))
        self._describe = describe

    def count(self, progress: Progress) -> int:
        """See `Feed.count`."""
        with self._open() as archive:
            return archive.count(progress.check)

    def pictures(self, after: Cursor | None, progress: Progress = NO_PROGRESS) -> Iterator[Picture]:
        """See `Feed.pictures`; cursors are the members' positions."""
        start = 0 if after is None else int(after) + 1
        with self._open() as archive:
            for member in archive.members(start=start, step=progress.check):
                metadata = self._describe(member.folder or self._label)
                source = replace(member.source, metadata=metadata)
                yield Picture(member.position, member.path, source)

    def _open(self) -> Archive:
        return Archive(self._path, self._limits, folder=self._folder)


class FolderFeed:
    """The pictures below a folder, in the order of `walk`.

    Args:
        top: The folder, resolved.
        inside: Resolved folders; a link that leads to none of them is not followed.
        describe: Gives their metadata.
    """

    def __init__(self, top: Path, *, inside: Sequence[Path], describe: Describe) -> None:
        self._top = top
        self._inside = inside
        self._describe = describe

    def count(self, progress: Progress) -> int:
        """See `Feed.count`."""
        return sum(1 for _ in self._walk(progress))

    def pictures(self, after: Cursor | None, progress: Progress = NO_PROGRESS) -> Iterator[Picture]:
        """See `Feed.pictures`; cursors are paths below the folder, in the order of the walk."""
        behind = None if after is None else _order(str(after))
        for found in self._walk(progress):
            name = found.path.relative_to(self._top).as_posix()
            cursor = name if found.error is None else f"{name}/".removeprefix("./")
            if behind is None or _order(cursor) > behind:
                yield Picture(cursor, in_ascii(name), self._source(found))

    def _walk(self, progress: Progress) -> Iterator[Found]:
        for found in walk([self._top], progress.check):
            progress.check()
            yield found

    def _source(self, found: Found) -> PictureSource:
        metadata = self._describe(found.folder)
        if found.error is not None:
            return PictureSource.refused(found.path, found.error, metadata=metadata)
        if is_inside(found.path, self._inside):
            return PictureSource.try_path(found.path, metadata=metadata)
        error = PathNotAllowedError("It is a link out of the folders that may be read")
        return PictureSource.refused(found.path, error, metadata=metadata)


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
