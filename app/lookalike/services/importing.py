"""Archives and folders of this machine, indexed as jobs."""

from __future__ import annotations

import json
import logging
import os
import shutil
import uuid
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lookalike.errors import (
    ArchiveError,
    EmbeddingFailedError,
    ImageExistsError,
    ImportsDisabledError,
    InvalidImageError,
    InvalidParameterError,
    InvalidRequestError,
    LookalikeError,
    PathNotAllowedError,
    StorageError,
    StorageFullError,
)
from lookalike.files.disk import (
    atomic_write,
    disk_errors,
    has_room,
    make_folders,
    sync_file,
    sync_folder,
)
from lookalike.media.archive_formats import as_text, in_ascii
from lookalike.media.archives import Archive, ArchiveLimits
from lookalike.media.sources import PictureSource
from lookalike.progress import Progress
from lookalike.records import DEFAULT_COLLECTION, Metadata, OnConflict
from lookalike.services.import_feeds import (
    ArchiveFeed,
    Cursor,
    Feed,
    FolderFeed,
    Picture,
    is_inside,
)
from lookalike.services.indexing import IndexingService, IndexItem
from lookalike.services.jobs import CanceledError, Handler, JobRun, JobService, JobStatus
from lookalike.store.jobs import Job
from lookalike.store.metadata import check_metadata

ARCHIVE_KIND = "index_archive"
FOLDER_KIND = "index_folder"

EXPANSION = 4
"""An archive's pictures may have this many times the bytes that an archive may have."""

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

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """What is done with the pictures of an import.

    Attributes:
        collection: Where they go.
        on_conflict: What to do with ids that exist.
        metadata: The metadata of each; None keeps what is stored.
        folder_field: A metadata field that takes the name of the picture's folder.
    """

    collection: str = DEFAULT_COLLECTION
    on_conflict: OnConflict = OnConflict.REPLACE
    metadata: Metadata | None = None
    folder_field: str | None = None

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> ImportOptions:
        """Those of a job."""
        return cls(
            collection=parameters["collection"],
            on_conflict=OnConflict(parameters["on_conflict"]),
            metadata=parameters["metadata"],
            folder_field=parameters["folder_field"],
        )

    def parameters(self) -> dict[str, Any]:
        """As a job keeps them."""
        return {
            "collection": self.collection,
            "on_conflict": self.on_conflict.value,
            "metadata": self.metadata,
            "folder_field": self.folder_field,
        }

    def describe(self, folder: str) -> dict[str, Any] | None:
        """The metadata of a picture in a folder of this name."""
        if self.folder_field is None:
            return None if self.metadata is None else dict(self.metadata)
        return {**(self.metadata or {}), self.folder_field: folder}


class ImportService:
    """Begins imports, and does the work of their jobs.

    ```
    imports/<id>.part      an archive that is being sent
    imports/<id>.archive   one whose job has not ended
    imports/<job>.journal  how far a job is
    ```

    Args:
        indexing: Indexes the pictures.
        folder: Where archives wait and journals lie; made when it is needed.
        tmp: Where large members of archives wait.
        max_archive_bytes: Of an archive that is sent.
        max_file_bytes: Of one picture.
        max_metadata_bytes: Of one picture's metadata.
        dirs: Folders of this machine that may be read.
    """

    def __init__(
        self,
        indexing: IndexingService,
        *,
        folder: Path,
        tmp: Path,
        max_archive_bytes: int,
        max_file_bytes: int,
        max_metadata_bytes: int,
        dirs: Iterable[Path] = (),
    ) -> None:
        self._indexing = indexing
        self._folder = folder
        self._tmp = tmp
        self._limits = ArchiveLimits(
            file_bytes=max_file_bytes, total_bytes=EXPANSION * max_archive_bytes
        )
        self._max_metadata_bytes = max_metadata_bytes
        self._dirs = [path.expanduser().resolve() for path in dirs]

    @property
    def handlers(self) -> dict[str, Handler]:
        """What a `JobService` calls for each kind of import."""
        return {ARCHIVE_KIND: self._index_archive, FOLDER_KIND: self._index_folder}

    def spool(self, size: int) -> Path:
        """A name for an archive that is about to be sent.

        Args:
            size: Its bytes, as far as they are known.

        Raises:
            StorageFullError: There is no room for it.
            StorageError: The disk refuses.
        """
        with disk_errors("keep the archive"):
            make_folders(self._folder)
            free = shutil.disk_usage(self._folder).free
        if size > free or not has_room(self._folder):
            raise StorageFullError(
                f"There is no room for an archive of {size:,} bytes; make room, or send it in parts"
            )
        return self._folder / f"{uuid.uuid4().hex}.part"

    def begin_archive(
        self, spool: Path, filename: str, options: ImportOptions, jobs: JobService
    ) -> JobStatus:
        """Begins to index an archive that was sent.

        Args:
            spool: The file, as `spool` named it; it is the job's from now on.
            filename: As it was sent.
            options: What to do with the pictures.
            jobs: Where the work is done.

        Raises:
            ArchiveError: It is no archive that can be read.
            LookalikeError: The options cannot be used, or the disk refuses.
        """
        self._check(options)
        with Archive(spool, self._limits, folder=self._tmp):
            pass
        kept = spool.with_suffix(".archive")
        with disk_errors("keep the archive"):
            sync_file(spool)
            spool.replace(kept)
            sync_folder(self._folder)
        own = {"archive": spool.stem, "filename": as_text(filename)}
        try:
            return jobs.start(ARCHIVE_KIND, {**options.parameters(), **own})
        except BaseException:
            kept.unlink(missing_ok=True)
            raise

    def begin_folder(self, path: str, options: ImportOptions, jobs: JobService) -> JobStatus:
        """Begins to index a folder of this machine; the same again gives the job under way.

        Raises:
            ImportsDisabledError: No folder may be read.
            PathNotAllowedError: This one may not be read.
            InvalidParameterError: It is no folder, or cannot be read.
            LookalikeError: The options cannot be used.
        """
        self._check(options)
        top = self._allowed(path)
        return jobs.start(FOLDER_KIND, {**options.parameters(), "path": str(top)})

    def ended(self, job: Job) -> None:
        """Removes what a job that ended leaves behind; to be called for every job."""
        if job.kind in self.handlers:
            self._journal(job.id).remove()
        if job.kind == ARCHIVE_KIND:
            self._archive(job.parameters).unlink(missing_ok=True)

    def sweep(self, unfinished: Iterable[Job]) -> None:
        """Removes what no unfinished job needs: to be called before the first import begins.

        Raises:
            StorageError: The disk refuses.
        """
        jobs = [job for job in unfinished if job.kind in self.handlers]
        needed = {f"{job.id}.journal" for job in jobs}
        needed |= {self._archive(job.parameters).name for job in jobs if job.kind == ARCHIVE_KIND}
        if not self._folder.is_dir():
            return
        with disk_errors("sweep the folder of imports"):
            for path in self._folder.iterdir():
                if path.name not in needed and path.is_file():  # no lost+found
                    path.unlink()
                    log.info("removed %s, which no import needs", path.name)

    def _check(self, options: ImportOptions) -> None:
        """Refuses what would fail for every picture."""
        self._indexing.require(options.collection)
        if options.metadata is not None or options.folder_field is not None:
            check_metadata(options.describe("folder"), max_bytes=self._max_metadata_bytes)

    def _allowed(self, path: str) -> Path:
        """The folder at a path, its links followed."""
        if not self._dirs:
            raise ImportsDisabledError
        if not Path(path).is_absolute() or not is_inside(Path(path), self._dirs):
            raise PathNotAllowedError(
                f"{in_ascii(path)} is not below a folder of LOOKALIKE_IMPORT_DIRS; give the whole "
                "path of a folder that is"
            )
        try:
            top = Path(path).resolve()
            if not top.is_dir():
                raise InvalidParameterError(f"{in_ascii(path)} is no folder of the server")
            os.scandir(top).close()
        except OSError as exc:
            raise InvalidParameterError(
                f"{in_ascii(path)} cannot be read: {exc.strerror}; name another folder, or let the "
                "service's user read it"
            ) from exc
        return top

    def _index_archive(self, parameters: Mapping[str, Any], job: JobRun) -> str:
        options = ImportOptions.of(parameters)
        feed = ArchiveFeed(
            self._archive(parameters),
            self._limits,
            folder=self._tmp,
            name=parameters["filename"],
            describe=options.describe,
        )
        try:
            return self._run(parameters, options, feed, job)
        except ArchiveError:  # says itself what to send
            raise
        except LookalikeError as exc:
            raise type(exc)(
                f"{exc}; then send the archive again; what is stored is skipped"
            ) from exc

    def _index_folder(self, parameters: Mapping[str, Any], job: JobRun) -> str:
        options = ImportOptions.of(parameters)
        top = self._allowed(parameters["path"])
        feed = FolderFeed(top, inside=self._dirs, describe=options.describe)
        return self._run(parameters, options, feed, job)

    def _run(
        self, parameters: Mapping[str, Any], options: ImportOptions, feed: Feed, job: JobRun
    ) -> str:
        run = ImportRun(self._indexing, feed, self._journal(job.job_id), job)
        summary = run.run(options.collection, options.on_conflict)
        source = parameters["path"] if "path" in parameters else parameters["filename"]
        return f"{in_ascii(source) or 'the archive'}: {summary}"

    def _archive(self, parameters: Mapping[str, Any]) -> Path:
        return self._folder / f"{parameters['archive']}.archive"

    def _journal(self, job_id: str) -> Journal:
        return Journal(self._folder / f"{job_id}.journal")


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


def parse_dirs(text: str | None) -> list[Path]:
    """Folders in one text, separated by commas or as in PATH."""
    parts = (text or "").replace(os.pathsep, ",").split(",")
    return [Path(part.strip()) for part in parts if part.strip()]
