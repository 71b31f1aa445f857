"""`lookalike rebuild`: rows for originals that have none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any

from lookalike.errors import (
    LookalikeError,
    OriginalNotKeptError,
    StorageError,
    UnreadableImageError,
)
from lookalike.media.sources import PictureSource
from lookalike.progress import Progress
from lookalike.records import (
    DEFAULT_COLLECTION,
    ImageRecord,
    OnConflict,
    PutStatus,
    read_utc,
    utc_now,
)
from lookalike.services.exchange import read_record
from lookalike.services.indexing import IndexingService, IndexItem, Originals
from lookalike.services.pipeline import grouped
from lookalike.store.base import Store

_TEXTS = 20  # errors whose text is kept


@dataclass(slots=True, kw_only=True)
class Rebuilt:
    """What a rebuild did."""

    named: int = 0  # pictures with the id, collection and metadata that they had
    unnamed: int = 0  # pictures made from originals alone
    missing: int = 0  # pictures that were known and have no original here
    failed: int = 0  # originals that are damaged or no pictures
    errors: list[str] = field(default_factory=list)  # the first few texts of both
    replaced: str | None = None  # the name of the old catalog's file, if there was one

    def fail(self, text: str, *, missing: bool = False) -> None:
        """Counts a picture that was not made."""
        if missing:
            self.missing += 1
        else:
            self.failed += 1
        if len(self.errors) < _TEXTS:
            self.errors.append(text)


@dataclass(eq=False)
class Rebuild:
    """Indexes originals that no row names; rows that are there stay as they are."""

    store: Store
    indexing: IndexingService
    _: KW_ONLY
    original: Callable[[str, str], Path | None]  # where one lies, by digest and media type
    originals: Callable[[], Iterable[Path]]  # all of them
    progress: Progress

    def __post_init__(self) -> None:
        self.rebuilt = Rebuilt()
        self._done, self._total = 0, 0

    def run(self, records: Callable[[], Iterable[ImageRecord]], *, left_out: set[str]) -> Rebuilt:
        """Makes rows for `records`, which is called repeatedly, and then for all other originals.

        Those whose digests are in `left_out` get none, unless a record names them.
        """
        collections = dict.fromkeys(record.collection for record in records())
        self._total = sum(1 for _ in self.originals())
        for name in collections:
            for kind in (Originals.KEEP, Originals.REFERENCE):
                self.indexing.originals = kind  # of a file that a record refers to in place
                for item in self._index(self._sources(records(), name, kind), name):
                    self.rebuilt.named += item.status is PutStatus.CREATED
        self.indexing.originals = Originals.KEEP
        for item in self._index(self._others(left_out), DEFAULT_COLLECTION):
            self.rebuilt.unnamed += item.status is PutStatus.CREATED
        return self.rebuilt

    def _index(self, sources: Iterator[PictureSource], collection: str) -> Iterator[IndexItem]:
        skip = OnConflict.SKIP
        for item in self.indexing.index(sources, collection=collection, on_conflict=skip):
            self._done += 1
            self.progress.report(self._done, max(self._done, self._total))
            self.progress.check()
            if isinstance(item.error, StorageError):
                raise item.error  # all others would fail, too; the next rebuild goes on
            if item.error is not None:
                missing = isinstance(item.error, OriginalNotKeptError)
                where = f"{collection}/{item.id or item.source.filename}"
                self.rebuilt.fail(f"{where}: {item.error}", missing=missing)
            yield item

    def _sources(
        self, records: Iterable[ImageRecord], collection: str, kind: Originals
    ) -> Iterator[PictureSource]:
        for record in records:
            if record.collection != collection:
                continue
            path = self.original(record.sha256, record.media_type)
            if (kind is Originals.KEEP) == (path is not None or record.source is None):
                yield from _sources_of(
                    record, path or (Path(record.source) if record.source else None)
                )

    def _others(self, left_out: set[str]) -> Iterator[PictureSource]:
        """Originals that no row names."""
        for paths in grouped(self.originals(), 500):
            named = self.store.references(path.stem for path in paths) | left_out
            for path in paths:
                if path.stem not in named:
                    yield _source_of(path, path.stem)


def salvaged(rows: Callable[[], Iterable[dict[str, Any]]]) -> Iterator[ImageRecord]:
    """The rows that are pictures; others are left out. A time that cannot be read becomes now."""
    now = utc_now()
    for values in rows():
        for name in ("created_at", "updated_at"):
            try:
                read_utc(values[name])
            except (TypeError, ValueError):
                values[name] = now
        with suppress(LookalikeError):
            yield read_record(values)


def _sources_of(record: ImageRecord, path: Path | None) -> Iterator[PictureSource]:
    """One for each place where the bytes were seen; the first makes the row."""
    if path is None or not path.is_file():
        error = OriginalNotKeptError(f"{record.filename} has no original here; index it again")
        source = PictureSource.refused(Path(record.filename), error)
    else:
        source = _source_of(path, record.sha256)
    source = replace(source, id=record.id, metadata=record.metadata, filename=record.filename)
    source = replace(source, created_at=record.created_at, updated_at=record.updated_at)
    yield replace(source, place=record.place)
    for place in () if source.error else record.others:
        yield replace(source, place=place)


def _source_of(path: Path, sha256: str) -> PictureSource:
    """A file, with an error if it holds other bytes than its digest says."""
    try:
        source = PictureSource.from_path(path)
        if source.sha256() == sha256:
            return source
        error: LookalikeError = UnreadableImageError(
            "The original holds other bytes than were indexed; index the picture again"
        )
    except LookalikeError as exc:
        error = exc
    return PictureSource.refused(path, error)
