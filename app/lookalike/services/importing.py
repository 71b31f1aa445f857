"""Imports: the pictures of archives, of folders of this machine and of manifests, as jobs."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookalike.errors import (
    ArchiveError,
    EmbeddingFailedError,
    FetchError,
    FetchingDisabledError,
    ImageExistsError,
    ImportsDisabledError,
    InvalidImageError,
    InvalidParameterError,
    InvalidRequestError,
    LookalikeError,
    PathNotAllowedError,
    StorageError,
    StorageFullError,
    lacks_memory,
)
from lookalike.files.data_folder import owner_of
from lookalike.files.disk import atomic_write, disk_errors, has_room, make_folders, sync
from lookalike.media.archives import Archive, ArchiveLimits, as_text, in_ascii
from lookalike.media.manifests import Manifest
from lookalike.media.sources import PictureSource, Selection, passed_over
from lookalike.progress import Progress
from lookalike.services.feeds import (
    ArchiveFeed,
    Cursor,
    Feed,
    FolderFeed,
    ImportOptions,
    ManifestFeed,
    Picture,
    is_inside,
)
from lookalike.services.indexing import IndexingService, IndexItem
from lookalike.services.jobs import (
    ARCHIVE_KIND,
    FOLDER_KIND,
    IMPORT_KINDS,
    MANIFEST_KIND,
    CanceledError,
    Handler,
    JobRun,
    JobService,
    JobStatus,
)
from lookalike.store.base import Store, real_name
from lookalike.store.filters import check_metadata
from lookalike.store.jobs import Job

if TYPE_CHECKING:
    from lookalike.media.fetching import Fetcher

EXPANSION = 4  # an archive's pictures may have so many times the bytes that an archive may have
KEPT_ERRORS = 20  # whose text is kept
KEPT_CONFLICTS = 5  # copies with other metadata that a job's message names
_JOURNAL_VERSION = 2
_OF_ONE_PICTURE = (
    InvalidImageError,
    InvalidRequestError,
    EmbeddingFailedError,
    ImageExistsError,
    PathNotAllowedError,
    FetchError,
    FetchingDisabledError,
)
"""Errors that concern one picture alone; any other ends the import."""

_SENT = (ARCHIVE_KIND, MANIFEST_KIND)  # kinds of jobs that work on a file that was sent

log = logging.getLogger(__name__)


@dataclass(eq=False, kw_only=True)
class ImportService:
    """Begins imports, and does the work of their jobs.

    ```
    imports/<id>.part      an archive that is being sent
    imports/<id>.archive   one whose job has not ended; or a manifest
    imports/<job>.journal  how far a job is
    ```
    """

    indexing: IndexingService
    folder: Path  # `imports`, made when it is needed
    tmp: Path  # where large members of archives wait
    take: Callable[[Path], None]  # moves a file to the trash
    max_archive_bytes: int  # of one that is sent
    max_file_bytes: int
    max_metadata_bytes: int
    dirs: Sequence[Path] = ()  # folders of this machine that may be read
    fetcher: Fetcher | None = None  # of manifests alone; None if fetching is not turned on

    def __post_init__(self) -> None:
        self.dirs = [path.expanduser().resolve() for path in self.dirs]
        total = EXPANSION * self.max_archive_bytes
        self._limits = ArchiveLimits(file_bytes=self.max_file_bytes, total_bytes=total)

    @property
    def handlers(self) -> dict[str, Handler]:
        """What a `JobService` calls for each kind of import."""
        return {
            ARCHIVE_KIND: self._index_archive,
            FOLDER_KIND: self._index_folder,
            MANIFEST_KIND: self._index_manifest,
        }

    def spool(self, size: int) -> Path:
        """A name for an archive of about `size` bytes that is to be sent; raises `StorageError`."""
        with disk_errors("keep the archive"):
            make_folders(self.folder)
            free = shutil.disk_usage(self.folder).free
        if size > free or not has_room(self.folder):
            raise StorageFullError(
                f"There is no room for an archive of {size:,} bytes; make room, or send it in parts"
            )
        return self.folder / f"{uuid.uuid4().hex}.part"

    def begin_archive(
        self, spool: Path, filename: str, options: ImportOptions, jobs: JobService
    ) -> JobStatus:
        """Begins to index an archive that was sent; the file at `spool` is the job's from now on.

        Raises `ArchiveError`, or `LookalikeError` if the options cannot be used.
        """
        options = self._checked(options)
        with Archive(spool, self._limits, folder=self.tmp):
            pass
        own = {"filename": as_text(filename)}
        return self._begin_sent(ARCHIVE_KIND, spool, asdict(options) | own, jobs)

    def begin_manifest(
        self, spool: Path, filename: str, root: str, options: ImportOptions, jobs: JobService
    ) -> JobStatus:
        """As `begin_archive`, of a manifest; `root` is its path on the sender's machine.

        Raises `InvalidParameterError` if it cannot be read, `FetchingDisabledError` or
        `ImportsDisabledError` if it names addresses or files where none may be read, or as above.
        """
        options = self._checked(options)
        manifest = Manifest(spool, name=filename)
        if manifest.addresses and self.fetcher is None:
            raise FetchingDisabledError
        if manifest.files and not self.dirs:
            raise ImportsDisabledError
        own = {"filename": as_text(filename), "root": root}
        return self._begin_sent(MANIFEST_KIND, spool, asdict(options) | own, jobs)

    def _begin_sent(
        self, kind: str, spool: Path, parameters: dict[str, Any], jobs: JobService
    ) -> JobStatus:
        """Keeps a file that was sent until its job ends, and begins the job."""
        kept = spool.with_suffix(".archive")
        with disk_errors("keep the archive"):
            sync(spool)
            spool.replace(kept)
            sync(self.folder)
        try:
            return jobs.start(kind, parameters | {"archive": spool.stem})
        except BaseException:
            kept.unlink(missing_ok=True)
            raise

    def begin_folder(self, path: str, options: ImportOptions, jobs: JobService) -> JobStatus:
        """Begins to index a folder of this machine; the same again gives the job under way.

        Raises `LookalikeError` if the folder may not be read, or the options cannot be used.
        """
        options = self._checked(options)
        return jobs.start(FOLDER_KIND, asdict(options) | {"path": str(self._allowed(path))})

    def ended(self, job: Job) -> None:
        """Removes what a job that ended leaves behind; to be called for every job."""
        if job.kind in IMPORT_KINDS:
            with disk_errors("remove what an import left"):
                self._journal(job).unlink(missing_ok=True)
        if job.kind in _SENT:
            self._archive(job.parameters).unlink(missing_ok=True)

    def sweep(self, unfinished: Iterable[Job]) -> None:
        """Moves what no unfinished job needs to the trash, before the first import.

        Raises `StorageError`.
        """
        jobs = [job for job in unfinished if job.kind in IMPORT_KINDS]
        needed = {self._journal(job) for job in jobs}
        needed |= {self._archive(job.parameters) for job in jobs if job.kind in _SENT}
        if not self.folder.is_dir():
            return
        with disk_errors("sweep the folder of imports"):
            for path in self.folder.iterdir():
                if path not in needed and path.is_file():  # no lost+found
                    self.take(path)
                    log.info("moved %s, which no import needs, to the trash", path.name)

    def _checked(self, options: ImportOptions) -> ImportOptions:
        """The options with the collection's own name; refuses what would fail for every picture."""
        self.indexing.require(options.collection)
        Selection(options.exclude)
        if options.metadata is not None or options.folder_field is not None:
            check_metadata(options.describe("folder"), max_bytes=self.max_metadata_bytes)
        return replace(options, collection=real_name(self.indexing.store, options.collection))

    def _allowed(self, path: str) -> Path:
        """The folder at a path, its links followed."""
        if not self.dirs:
            raise ImportsDisabledError
        if not Path(path).is_absolute() or not is_inside(Path(path), self.dirs):
            raise PathNotAllowedError(
                f"{in_ascii(path)} is not below a folder of LOOKALIKE_IMPORT_DIRS; give the whole "
                "path of a folder that is"
            )
        try:
            top = Path(path).resolve()
            if not top.is_dir():
                raise InvalidParameterError(f"{in_ascii(path)} is no folder of the server")
            if owner_of(top) is not None:
                raise InvalidParameterError(
                    f"{in_ascii(path)} is a folder of Lookalike itself; name a folder of your own "
                    "pictures"
                )
            os.scandir(top).close()
        except OSError as exc:
            raise InvalidParameterError(
                f"{in_ascii(path)} cannot be read: {exc.strerror}; name another folder, or let the "
                "service's user read it"
            ) from exc
        return top

    def _index_archive(self, parameters: Mapping[str, Any], run: JobRun) -> str:
        options, name = ImportOptions.of(parameters), parameters["filename"]
        archive = self._archive(parameters)
        feed = ArchiveFeed(archive, self._limits, folder=self.tmp, name=name, options=options)
        try:
            summary = ImportRun(self.indexing, feed, self._journal(run.job), run).run()
        except ArchiveError:  # says itself what to send
            raise
        except LookalikeError as exc:
            text = f"{exc}; then send the archive again; what is stored is skipped"
            raise type(exc)(text) from exc
        return f"{in_ascii(name) or 'the archive'}: {summary}"

    def _index_folder(self, parameters: Mapping[str, Any], run: JobRun) -> str:
        options, path = ImportOptions.of(parameters), parameters["path"]
        feed = FolderFeed(self._allowed(path), inside=self.dirs, options=options)
        summary = ImportRun(self.indexing, feed, self._journal(run.job), run).run()
        return f"{in_ascii(path)}: {summary}"

    def _index_manifest(self, parameters: Mapping[str, Any], run: JobRun) -> str:
        root, name = parameters["root"], parameters["filename"]
        manifest = Manifest(self._archive(parameters), home=Path(root).parent, name=name)
        feed = ManifestFeed(
            manifest,
            root,
            ImportOptions.of(parameters),
            indexing=self.indexing,
            fetcher=self.fetcher,
            inside=self.dirs,
        )
        summary = ImportRun(self.indexing, feed, self._journal(run.job), run).run()
        return f"{in_ascii(name)}: {summary}"

    def _archive(self, parameters: Mapping[str, Any]) -> Path:
        return self.folder / f"{parameters['archive']}.archive"

    def _journal(self, job: Job) -> Path:
        return self.folder / f"{job.id}.journal"


@dataclass(eq=False)
class ImportRun:
    """Indexes the pictures of a feed, and resumes if an earlier run was interrupted.

    A picture is noted as settled right after its group was committed. So a crash between the two
    leaves one group in doubt, whose pictures are looked at again and found unchanged.
    """

    indexing: IndexingService
    feed: Feed
    journal: Path  # tells how far an earlier run has come
    progress: Progress

    def __post_init__(self) -> None:
        self._checkpoint = Checkpoint()
        self._broken: LookalikeError | None = None

    def run(self) -> str:
        """Does the work; returns what became of the pictures.

        Raises `CanceledError`, or an error that concerns more than one picture.
        """
        try:
            self._begin()
            pictures = self._pictures()
            groups = index_feed(self.indexing, pictures, self.feed.options, self.progress.check)
            with closing(groups):
                for group in groups:
                    self._settle(group)
                    self.progress.check()
        except CanceledError as exc:
            if str(exc):  # the reason given may be that not everything is kept
                raise
            raise CanceledError(f"Canceled; what was done is kept: {self._summary()}") from exc
        if self._broken is not None:
            raise self._with_summary(self._broken) from self._broken
        return "; ".join(filter(None, (self._summary(), passed_over(self.feed.passed))))

    def _begin(self) -> None:
        """Reads what an earlier run noted, and counts the pictures."""
        self._checkpoint = Checkpoint.read(self.journal)
        failed = self._checkpoint.counts["failed"]
        for text in self._checkpoint.errors + [""] * (failed - len(self._checkpoint.errors)):
            self.progress.error(text)
        if self._checkpoint.total is None:
            self._checkpoint.total = self.feed.count(self.progress)
            self._checkpoint.write(self.journal)
        self._report()

    def _pictures(self) -> Iterator[Picture]:
        """The pictures that are left; if the archive breaks, what came before is still indexed."""
        try:
            yield from self.feed.pictures(self._checkpoint.cursor, self.progress)
        except (ArchiveError, StorageError) as exc:
            self._broken = exc

    def _settle(self, group: list[tuple[Picture, IndexItem]]) -> None:
        """Notes what became of a group that was committed.

        If an error ends the import, the rest of the group is counted but not written: a later run
        looks at the whole group again.
        """
        end: LookalikeError | None = None
        for picture, item in group:
            if item.error is not None and not isinstance(item.error, _OF_ONE_PICTURE):
                end = end or _naming(picture, item.error)
                continue
            self._checkpoint.cursor = picture.cursor
            if item.error is None:
                self._checkpoint.counts[str(item.status)] += 1
                self._checkpoint.copied(item, picture.name)
            else:
                text = f"{picture.name}: {in_ascii(str(item.error))}"
                self._checkpoint.failed(text)
                self.progress.error(text)
        if end is None:
            self._checkpoint.write(self.journal)
        self._report()
        if end is not None:
            raise self._with_summary(end) from end

    def _report(self) -> None:
        done = self._checkpoint.counts.total()
        self.progress.report(done, max(done, self._checkpoint.total or 0))

    def _with_summary(self, error: LookalikeError) -> LookalikeError:
        return type(error)(f"{error} (before that: {self._summary()})")

    def _summary(self) -> str:
        held = self._checkpoint
        counts = ", ".join(f"{count:,} {status}" for status, count in held.counts.items())
        parts = [counts or "no pictures", *copies_text(held.copies, held.kept)]
        if held.conflicts:
            more = ", ..." if held.kept > len(held.conflicts) else ""
            parts[-1] += f" ({', '.join(held.conflicts)}{more})"
        return "; ".join(parts)


def _naming(picture: Picture, error: LookalikeError) -> LookalikeError:
    """The error, with the picture's name where the picture may be what needs too much memory."""
    return type(error)(f"{picture.name}: {error}") if lacks_memory(error) else error


def copies_text(copies: int, kept: int) -> list[str]:
    """What to say of pictures whose bytes came from other paths, too; `kept` of them as below."""
    texts = []
    if copies:
        is_one = copies == 1
        texts.append(f"{copies:,} {'is a copy' if is_one else 'are copies'} of others")
    if kept:
        texts.append(f"{kept:,} of them came with other metadata, and the first file's stays")
    return texts


def index_feed(
    indexing: IndexingService,
    pictures: Iterable[Picture],
    options: ImportOptions,
    check: Callable[[], None] = lambda: None,
) -> Generator[list[tuple[Picture, IndexItem]], None, None]:
    """Indexes pictures as `index_groups` does, and closes them; yields each with its item."""
    under_way: deque[Picture] = deque()

    def sources() -> Iterator[PictureSource]:
        for picture in pictures:
            under_way.append(picture)
            yield picture.source

    groups = indexing.index_groups(
        sources(), collection=options.collection, on_conflict=options.on_conflict, check=check
    )
    try:
        with closing(groups):
            for group in groups:
                settled = [(under_way.popleft(), item) for item in group]
                _note_validators(indexing.store, options.collection, settled)
                for picture, _ in settled:
                    picture.source.close()
                yield settled
    finally:
        for picture in under_way:
            picture.source.close()


def _note_validators(
    store: Store, collection: str, settled: Iterable[tuple[Picture, IndexItem]]
) -> None:
    """Notes what servers said of files that are stored now, so that they are asked the next time.

    An error is only logged: then the files are fetched again.
    """
    noted: dict[str, dict[str, str]] = {}
    for picture, item in settled:
        place = picture.source.place
        if picture.validator is not None and place is not None and item.error is None:
            noted.setdefault(place.root, {})[place.path] = picture.validator
    for root, validators in noted.items():
        try:
            store.validate(collection, root, validators)
        except LookalikeError as exc:
            log.warning("addresses will be fetched again: %s", exc)


@dataclass
class Checkpoint:
    """How far an import has come."""

    total: int | None = None  # pictures in all; None if they were not counted yet
    cursor: Cursor | None = None  # of the last picture that is settled
    counts: Counter[str] = field(default_factory=Counter)  # settled ones, by what became of them
    errors: list[str] = field(default_factory=list)  # the first few
    copies: int = 0  # whose bytes were seen at another path first
    kept: int = 0  # of them, how many came with other metadata, which was not taken
    conflicts: list[str] = field(default_factory=list)  # the first few of those

    @classmethod
    def read(cls, journal: Path) -> Checkpoint:
        """What was written last; the start if the file is missing or broken."""
        try:
            seal, _, text = journal.read_bytes().partition(b"\n")
            if seal != _seal(text):  # a changed cursor would pass over pictures in silence
                return cls()
            held = json.loads(text)
            return cls(**held | {"counts": Counter(held["counts"])})
        except (OSError, ValueError, RecursionError, KeyError, TypeError):
            return cls()

    def write(self, journal: Path) -> None:
        """Writes the file so that it survives a crash. Raises `StorageError`."""
        text = json.dumps(vars(self)).encode("ascii")
        with disk_errors("note how far the import is"), atomic_write(journal) as file:
            file.write(_seal(text) + b"\n" + text)

    def copied(self, item: IndexItem, name: str) -> None:
        """Counts a picture that is stored, if its bytes were seen at another path first."""
        self.copies += item.copy_of is not None
        self.kept += item.kept_metadata
        if item.kept_metadata and len(self.conflicts) < KEPT_CONFLICTS:
            self.conflicts.append(name)

    def failed(self, text: str) -> None:
        """Counts a picture that failed."""
        self.counts["failed"] += 1
        if len(self.errors) < KEPT_ERRORS:
            self.errors.append(text)


def _seal(text: bytes) -> bytes:
    """The first line of a journal."""
    return b"%d %s" % (_JOURNAL_VERSION, hashlib.sha256(text).hexdigest().encode())
