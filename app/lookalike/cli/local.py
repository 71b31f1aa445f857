"""The commands on a data folder."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Self

from lookalike import __version__
from lookalike.bootstrap import (
    Services,
    build_pictures,
    build_services,
    move_request,
    open_jobs,
    open_store,
)
from lookalike.cli.backends import Ask, DuplicatesAsk, Job, Line
from lookalike.config import Settings
from lookalike.cores import limit_openmp
from lookalike.errors import FetchingDisabledError
from lookalike.files.data_folder import make_data_folder
from lookalike.media.archives import ArchiveLimits
from lookalike.media.sources import PictureSource
from lookalike.progress import Progress
from lookalike.records import OnConflict
from lookalike.schemas import CollectionOut, DuplicatesOut, DuplicatesRunning, ImageOut, SearchOut
from lookalike.services.collections import CollectionService
from lookalike.services.duplicates import (
    MAX_LIMIT,
    THRESHOLD,
    DuplicateOptions,
    DuplicateService,
    Unfinished,
)
from lookalike.services.import_run import ArchiveFeed, Picture
from lookalike.services.importing import ImportOptions
from lookalike.services.indexing import IndexItem
from lookalike.services.jobs import JobService
from lookalike.services.pictures import PictureService
from lookalike.services.search import SearchOptions
from lookalike.services.switching import PutGate
from lookalike.store.base import Store
from lookalike.store.filters import parse_filter


class LocalBackend:
    """A data folder while a command runs; loads the network only where it is needed.

    Args:
        settings: What was asked for.
        read_only: Change nothing; then a service may own the folder meanwhile.
    """

    def __init__(self, settings: Settings, *, read_only: bool = False) -> None:
        self._settings = settings
        self._read_only = read_only
        limit_openmp()
        make_data_folder(settings.data_dir)
        self._store: Store = open_store(settings, read_only=read_only)

    def __enter__(self) -> Self:
        """Ready to work."""
        return self

    def __exit__(self, *_: object) -> None:
        """Saves and lets go of the data folder."""
        if "_duplicates" in self.__dict__:
            self._duplicates.close()
        if "_services" in self.__dict__:
            self._services.close()
        self._store.close()

    @cached_property
    def _services(self) -> Services:
        return build_services(self._settings, store=self._store, read_only=self._read_only)

    @cached_property
    def _pictures(self) -> PictureService:
        """Needs no network."""
        return build_pictures(self._settings, self._store)

    @cached_property
    def _duplicates(self) -> DuplicateService:
        return DuplicateService(self._store, self._pictures, wait_s=0.2)

    def index(
        self, jobs: Sequence[Job], *, collection: str, on_conflict: OnConflict
    ) -> Iterator[Line]:
        """Indexes files and yields what became of each."""
        sources = (PictureSource.try_path(job.path, metadata=job.metadata) for job in jobs)
        items = self._services.indexing.index(
            sources, collection=collection, on_conflict=on_conflict
        )
        for item in items:
            assert item.source.path is not None
            yield _line(item.source.path, item)

    def open_archive(self, path: Path, options: ImportOptions) -> ArchiveFeed:
        """The pictures of an archive."""
        return ArchiveFeed(
            path,
            ArchiveLimits(file_bytes=self._settings.max_file_bytes),
            folder=self._services.files.tmp,
            name=path.name,
            describe=options.describe,
        )

    def index_archive(
        self, path: Path, feed: ArchiveFeed, options: ImportOptions
    ) -> Iterator[Line]:
        """Indexes the pictures of an archive and yields what became of each.

        Raises:
            ArchiveError: The archive is broken from here on.
        """
        under_way: deque[Picture] = deque()

        def sources() -> Iterator[PictureSource]:
            for picture in feed.pictures(None):
                under_way.append(picture)
                yield picture.source

        items = self._services.indexing.index(
            sources(), collection=options.collection, on_conflict=options.on_conflict
        )
        try:
            for item in items:
                picture = under_way.popleft()
                picture.source.close()
                yield _line(path / picture.name, item)
        finally:
            for picture in under_way:
                picture.source.close()

    def search(self, image: Path, ask: Ask) -> SearchOut:
        """Searches with a picture file."""
        options = _options(ask)
        with PictureSource.from_path(image).open() as file:
            return SearchOut.of(self._services.search.search(file, options))

    def search_url(self, url: str, ask: Ask, *, keep: Callable[[BinaryIO], object]) -> SearchOut:
        """Searches with the picture at an address, fetched from here."""
        options = _options(ask)
        if not self._settings.fetch_urls:  # before the network is loaded
            raise FetchingDisabledError
        return SearchOut.of(self._services.search.search_url(url, options, keep=keep))

    def info(self) -> dict[str, Any]:
        """What is stored; no network is loaded for it."""
        return {
            "version": __version__,
            "collections": [
                CollectionOut.of(info, searchable=True).model_dump(exclude={"searchable"})
                for info in self._store.collections()
            ],
            "store": self._store.describe(),
        }

    def images(self, collection: str, *, where: str | None) -> Iterator[ImageOut]:
        """All pictures of a collection, oldest first."""
        pictures = self._pictures
        passing = parse_filter(where)
        cursor: str | None = None
        while True:
            page = pictures.page(collection, cursor=cursor, limit=1000, where=passing)
            yield from map(ImageOut.of, page.records)
            if (cursor := page.next_cursor) is None:
                return

    def duplicates(self, ask: DuplicatesAsk) -> DuplicatesOut | DuplicatesRunning:
        """A page of groups, or how far the search for them is."""
        options = DuplicateOptions(
            collection=ask.collection,
            kind=ask.kind,
            threshold=THRESHOLD if ask.threshold is None else ask.threshold,
            limit=MAX_LIMIT,
            cursor=ask.cursor,
        )
        found = self._duplicates.find(options)
        if isinstance(found, Unfinished):
            return DuplicatesRunning.of(found)
        return DuplicatesOut.of(found)

    def reembed(self, collection: str, model: Mapping[str, Any], progress: Progress) -> str:
        """Moves a collection to another model, here and now; says how it ended."""
        pictures = self._pictures  # refuses an unknown collection before the network is loaded
        pictures.page(collection, limit=1)
        request = move_request(self._settings, model)
        return self._services.reembedding.run(collection, request, progress)

    def thumbnail(self, collection: str, image_id: str) -> bytes:
        """A small JPEG of a picture."""
        return self._pictures.thumbnail(collection, image_id).read_bytes()

    def delete(self, collection: str, image_id: str) -> None:
        """Deletes one picture."""
        self._pictures.delete(collection, image_id)

    def drop(self, collection: str) -> None:
        """Deletes a collection, and ends the imports into it that a service left."""
        with closing(open_jobs(self._settings)) as kept:
            CollectionService(self._store, JobService(kept, {}), PutGate()).drop(collection)
        self._store.purge()  # the background ends with the command


def _line(path: Path, item: IndexItem) -> Line:
    return Line(
        path=path,
        status=item.status.value if item.status else "failed",
        id=item.id,
        reason=str(item.error) if item.error else None,
    )


def _options(ask: Ask) -> SearchOptions:
    return SearchOptions(
        collection=ask.collection,
        k=ask.k,
        min_score=ask.min_score,
        where=parse_filter(ask.filter),
        group_by=ask.group_by,
        effort=ask.effort,
    )
