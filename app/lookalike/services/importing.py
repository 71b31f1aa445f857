"""Archives and folders of this machine, indexed as jobs."""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lookalike.errors import (
    ArchiveError,
    ImportsDisabledError,
    InvalidParameterError,
    LookalikeError,
    PathNotAllowedError,
    StorageFullError,
)
from lookalike.files.disk import (
    disk_errors,
    has_room,
    make_folders,
    sync,
)
from lookalike.media.archives import Archive, ArchiveLimits, as_text, in_ascii
from lookalike.records import DEFAULT_COLLECTION, Metadata, OnConflict
from lookalike.services.import_run import (
    ArchiveFeed,
    Feed,
    FolderFeed,
    ImportRun,
    Journal,
    is_inside,
)
from lookalike.services.indexing import IndexingService
from lookalike.services.jobs import (
    ARCHIVE_KIND,
    FOLDER_KIND,
    IMPORT_KINDS,
    Handler,
    JobRun,
    JobService,
    JobStatus,
)
from lookalike.store.filters import check_metadata
from lookalike.store.jobs import Job

EXPANSION = 4
"""An archive's pictures may have this many times the bytes that an archive may have."""

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
            sync(spool)
            spool.replace(kept)
            sync(self._folder)
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
        if job.kind in IMPORT_KINDS:
            self._journal(job.id).remove()
        if job.kind == ARCHIVE_KIND:
            self._archive(job.parameters).unlink(missing_ok=True)

    def sweep(self, unfinished: Iterable[Job]) -> None:
        """Removes what no unfinished job needs: to be called before the first import begins.

        Raises:
            StorageError: The disk refuses.
        """
        jobs = [job for job in unfinished if job.kind in IMPORT_KINDS]
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
        run = ImportRun(self._indexing, feed, self._journal(job.job.id), job)
        summary = run.run(options.collection, options.on_conflict)
        source = parameters["path"] if "path" in parameters else parameters["filename"]
        return f"{in_ascii(source) or 'the archive'}: {summary}"

    def _archive(self, parameters: Mapping[str, Any]) -> Path:
        return self._folder / f"{parameters['archive']}.archive"

    def _journal(self, job_id: str) -> Journal:
        return Journal(self._folder / f"{job_id}.journal")
