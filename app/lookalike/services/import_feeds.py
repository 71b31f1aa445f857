"""Where the pictures of an import come from: an archive, or a folder of this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lookalike.errors import PathNotAllowedError
from lookalike.media.archive_formats import as_text, in_ascii
from lookalike.media.archives import Archive, ArchiveLimits
from lookalike.media.sources import PictureSource
from lookalike.media.walk import Found, walk
from lookalike.progress import NO_PROGRESS, Progress

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
                source = PictureSource(
                    filename=member.filename,
                    size=member.size,
                    file=member.content,
                    metadata=self._describe(member.folder or self._label),
                    error=member.error,
                )
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


ARCHIVE_ENDINGS = (
    ".zip",
    ".tar",
    *(f".tar.{packed}" for packed in ("gz", "bz2", "xz")),
    *(".tgz", ".tbz2", ".tbz", ".txz"),
)
"""How the names of archives that can be read end."""


def _order(cursor: str) -> list[tuple[int, str]]:
    """Sorts paths as `walk` does: a folder's files before the folders inside.

    A folder that cannot be read ends with a slash, or is empty at the top: it stands at its start.
    """
    *folders, name = cursor.split("/")
    return [*((1, folder) for folder in folders), (0, name)]
