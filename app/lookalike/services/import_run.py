"""One import while it runs: pictures through the pipeline, and a note after every group."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import closing

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
from lookalike.media.archive_formats import in_ascii
from lookalike.media.sources import PictureSource
from lookalike.records import OnConflict
from lookalike.services.import_feeds import Feed, Picture
from lookalike.services.import_journal import Journal, Progress
from lookalike.services.index_items import IndexItem
from lookalike.services.indexing import IndexingService
from lookalike.services.job_run import CanceledError, Watch

_OF_ONE_PICTURE = (
    InvalidImageError,
    InvalidRequestError,
    EmbeddingFailedError,
    ImageExistsError,
    PathNotAllowedError,
)
"""Errors that are one picture's own; any other ends the import."""


class ImportRun:
    """Indexes the pictures of a feed and goes on where an earlier run was interrupted.

    A picture is noted as settled right after its group was committed. So a crash between the two
    leaves one group in doubt, whose pictures are looked at again and found unchanged.

    Args:
        indexing: Indexes them.
        feed: Where they come from.
        journal: How far an earlier run was.
        watch: Told how far this one is.
    """

    def __init__(
        self, indexing: IndexingService, feed: Feed, journal: Journal, watch: Watch
    ) -> None:
        self._indexing = indexing
        self._feed = feed
        self._journal = journal
        self._watch = watch
        self._progress = Progress()
        self._under_way: deque[Picture] = deque()
        self._broken: LookalikeError | None = None

    def run(self, collection: str, on_conflict: OnConflict) -> str:
        """Does the work; gives what became of the pictures.

        Raises:
            ArchiveError: The archive is broken; the pictures before that are indexed.
            CanceledError: Somebody asked for it.
            LookalikeError: One that is no single picture's own, such as a full disk.
        """
        try:
            self._begin()
            self._index(collection, on_conflict)
        except CanceledError as exc:
            if str(exc):  # why, and then not everything is kept
                raise
            raise CanceledError(f"Canceled; what was done is kept: {self._summary()}") from exc
        if self._broken is not None:
            raise self._with_summary(self._broken) from self._broken
        return self._summary()

    def _index(self, collection: str, on_conflict: OnConflict) -> None:
        """The pictures through the pipeline, up to their end or to where the archive breaks."""
        groups = self._indexing.index_groups(
            self._sources(),
            collection=collection,
            on_conflict=on_conflict,
            check=self._watch.step,
        )
        try:
            with closing(groups):
                for group in groups:
                    self._settle(group)
                    self._watch.step()
        finally:
            for picture in self._under_way:
                picture.source.close()

    def _begin(self) -> None:
        """Takes up what an earlier run noted, and counts what there is."""
        self._progress = self._journal.read()
        failed = self._progress.counts["failed"]
        for text in self._progress.errors + [""] * (failed - len(self._progress.errors)):
            self._watch.error(text)
        if self._progress.total is None:
            self._progress.total = self._feed.count(self._watch.step)
            self._journal.write(self._progress)
        self._tell()

    def _sources(self) -> Iterator[PictureSource]:
        """The pictures' bytes; where the archive breaks, what came before it is still indexed."""
        try:
            for picture in self._feed.pictures(self._progress.place, self._watch.step):
                self._under_way.append(picture)
                yield picture.source
        except (ArchiveError, StorageError) as exc:
            self._broken = exc

    def _settle(self, group: list[IndexItem]) -> None:
        """Notes what became of a group that was committed.

        Where an error ends the import, what else was committed is counted, but not written: a
        later run looks at the whole group again.
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
            self._tell()
            raise self._with_summary(end) from end
        self._journal.write(self._progress)
        self._tell()

    def _note(self, picture: Picture, item: IndexItem) -> None:
        """Counts a picture that is settled."""
        self._progress.place = picture.place
        if item.error is None:
            self._progress.counts[str(item.status)] += 1
            return
        text = f"{picture.name}: {in_ascii(str(item.error))}"
        self._progress.failed(text)
        self._watch.error(text)

    def _tell(self) -> None:
        done = self._progress.done
        self._watch.progress(done, max(done, self._progress.total or 0))

    def _with_summary(self, error: LookalikeError) -> LookalikeError:
        return type(error)(f"{error} (before that: {self._summary()})")

    def _summary(self) -> str:
        counts = self._progress.counts
        return ", ".join(f"{count:,} {status}" for status, count in counts.items()) or "no pictures"
