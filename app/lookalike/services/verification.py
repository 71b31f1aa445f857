"""`lookalike check`: compares everything that is stored with everything else, and mends it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from functools import partial
from pathlib import Path

from lookalike.errors import (
    InvalidImageError,
    LookalikeError,
    OriginalDamagedError,
    StorageError,
)
from lookalike.models.head import load_head
from lookalike.progress import Progress, TaskEndedError
from lookalike.records import Finding, ImageRecord
from lookalike.services.pictures import PictureService
from lookalike.store.base import BlobStore, Store, scan

_DAMAGED = "the catalog is damaged; restore it from a backup, or make it again"
_THUMBNAIL = 64  # the side that a thumbnail is decoded for


@dataclass(eq=False)
class VerificationService:
    """Finds what is wrong with a store and its files, and makes again what can be made.

    Finding changes nothing, and may go on beside a service that does: what is wrong with a picture
    that changed meanwhile is left out.
    """

    store: Store
    files: BlobStore
    pictures: PictureService
    _: KW_ONLY
    folder: Path  # where the heads lie that models were built from
    databases: Callable[[bool], Iterable[Finding]]  # looks at other databases, quickly or not
    keeps_originals: bool  # whether every picture should have an original
    cores: int = 2

    def find(self, progress: Progress, *, quick: bool = False) -> list[Finding]:
        """Everything that is wrong; `quick` leaves out what reads every vector and every file."""
        found: list[Finding] = []
        for part in (
            self.databases(quick),
            self.store.verify(quick=quick, progress=progress.stage("vectors")),
            self._heads(),
            self._pictures(progress.stage("files"), quick=quick),
            self._orphans(),
        ):
            try:
                found += part
            except TaskEndedError:
                raise
            except Exception as exc:  # whatever reading what is damaged may raise
                text = str(exc) if isinstance(exc, StorageError) else f"{_DAMAGED} ({exc})"
                found.append(Finding(kind="database", text=text))
        return found

    def mend(
        self,
        found: Sequence[Finding],
        progress: Progress,
        *,
        complete: Callable[[str, Progress], None],
    ) -> None:
        """Makes again what it can; `find` then says what is left. Errors are told to `progress`.

        Counters, indexes, vectors, and thumbnails are made again; an original comes back if the
        trash has it; orphans go to the trash. `complete` makes the vectors that a collection lacks.
        """
        if any(one.kind in {"counter", "database", "vector", "index"} for one in found):
            with _told(progress, "the store"):
                self.store.mend()
        for one in found:
            progress.check()
            if one.kind in {"original", "thumbnail"} and one.collection and one.id:
                with _told(progress, one.id):
                    self.files.put_back(self.pictures.get(one.collection, one.id))
                    if one.kind == "thumbnail":
                        self.pictures.make_thumbnail(one.collection, one.id)
        for collection in sorted({one.collection or "" for one in found if one.kind == "vector"}):
            with _told(progress, collection):
                complete(collection, progress.stage("embedding"))
        orphans = {one.id or "" for one in found if one.kind == "orphan"}
        if orphans and any(one.kind == "database" for one in found):
            progress.error(
                f"{len(orphans):,} files that no picture has stay, because a database was damaged; "
                "check once more when it is whole"
            )
        elif orphans:
            with _told(progress, "the trash"):
                self._take(orphans, progress)

    def _heads(self) -> Iterator[Finding]:
        """Heads that models were built from, and that are missing or others by now."""
        for info in self.store.collections():
            for space in self.store.spaces.all(info.name):
                head = (space.recipe or {}).get("head")
                if head is None:
                    continue
                try:
                    same = load_head(self.folder / head).digest == space.spec.head
                    text = None if same else f"{head} is another head than made the vectors"
                except LookalikeError as exc:
                    text = str(exc)
                if text is not None:
                    text = f"the head of the vectors {space.spec.digest} cannot be used: {text}"
                    yield Finding(kind="head", text=text, collection=info.name)

    def _pictures(self, progress: Progress, *, quick: bool) -> Iterator[Finding]:
        """Rows against their files."""
        infos = self.store.collections()
        done, total = 0, sum(info.count for info in infos)
        with ThreadPoolExecutor(self.cores, "check") as threads:
            for info in infos:
                for page in scan(self.store, info.name, vectors=False):
                    progress.check()
                    problems = threads.map(partial(self._problems, quick=quick), page.records)
                    for record, found in zip(page.records, problems, strict=True):
                        if found and self._is_still(record):
                            yield from found
                    done += len(page.records)
                    progress.report(done, max(done, total))

    def _is_still(self, record: ImageRecord) -> bool:
        """Whether a row is there as it was read, so that its files must be, too."""
        now = self.store.find(record.collection, [record.id]).get(record.id)
        return now is not None and now.sha256 == record.sha256

    def _problems(self, record: ImageRecord, *, quick: bool) -> list[Finding]:
        texts = {
            "original": self._original_problem(record, quick=quick),
            "thumbnail": self._thumbnail_problem(record, quick=quick),
        }
        where = {"collection": record.collection, "id": record.id}
        return [Finding(kind=kind, text=text, **where) for kind, text in texts.items() if text]

    def _original_problem(self, record: ImageRecord, *, quick: bool) -> str | None:
        remedy = f"index {record.filename} again under this id, or delete the picture"
        size = self.files.size(record)
        if size is None:
            missing = f"its original is missing: {remedy}"
            return missing if self.keeps_originals else None
        if size != record.bytes:
            return f"its original has another size than it was indexed with: {remedy}"
        if not quick:
            try:
                file = self.files.open(record)
                if file is None:
                    return f"its original holds other bytes than were indexed: {remedy}"
                file.close()
            except OriginalDamagedError as exc:
                return str(exc)
            except StorageError as exc:
                return f"its original cannot be read ({exc}): {remedy}"
        return None

    def _thumbnail_problem(self, record: ImageRecord, *, quick: bool) -> str | None:
        file = self.files.open_thumbnail(record.sha256)
        if file is None:
            return "its thumbnail is missing or damaged"
        with file:
            if not quick:
                try:
                    self.pictures.decode(file, size=_THUMBNAIL)
                except InvalidImageError:
                    return "its thumbnail is damaged"
        return None

    def _orphans(self) -> Iterator[Finding]:
        """Digests of files that no row names and no sweep is going to take."""
        orphans: set[str] = set()
        for digests in self.files.digests():
            orphans |= set(digests) - self.store.references(digests)
        orphans -= {noted for noted in self.store.noted() if noted in orphans}
        for digest in sorted(orphans):
            text = (
                "no picture has this file: `lookalike rebuild` makes one, "
                "`lookalike check --repair` moves the file to the trash"
            )
            yield Finding(kind="orphan", text=text, id=digest)

    def _take(self, taken: set[str], progress: Progress) -> None:
        """Moves orphans to the trash, unless they are more than the pictures."""
        pictures = sum(info.count for info in self.store.collections())
        if len(taken) > pictures:
            progress.error(
                f"{len(taken):,} files that no picture has stay, because there are fewer pictures "
                f"({pictures:,}): the catalog may be the wrong one. Restore the right one, make "
                "pictures of the files with `lookalike rebuild`, or move them away by hand"
            )
            return
        for info in self.store.collections():  # each row: an index may lack some, unnoticed so far
            for page in scan(self.store, info.name, vectors=False):
                taken -= {record.sha256 for record in page.records}
        self.files.set_aside(taken - self.store.references(taken), needless=False)


@contextmanager
def _told(progress: Progress, what: str) -> Iterator[None]:
    """Tells an error inside to `progress`: it ends this repair alone."""
    try:
        yield
    except (LookalikeError, OSError) as exc:
        progress.error(f"{what}: {exc}")
