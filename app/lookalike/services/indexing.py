"""Adding pictures: one, several, or a whole folder as a stream."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

import numpy as np

from lookalike.errors import (
    ImageExistsError,
    ImageTooLargeError,
    LookalikeError,
    NotReadyError,
    SpecMismatchError,
)
from lookalike.media.decode import ImageDecoder, make_thumbnail
from lookalike.media.sources import PictureSource
from lookalike.models.encoders import ATTEMPTS, Encoders, LiveEncoder
from lookalike.records import (
    DEFAULT_COLLECTION,
    ImageRecord,
    Metadata,
    NewImage,
    OnConflict,
    PutOutcome,
    PutStatus,
    check_collection_name,
    check_id,
)
from lookalike.services.pipeline import (
    Pipeline,
    Prepared,
    PutGate,
    Result,
    Vector,
    grouped,
    reading,
)
from lookalike.store.base import BlobStore, Store, decide, spec_of
from lookalike.store.filters import check_metadata

ID_LENGTH = 16
"""Hex digits of the sha256 that make an id if the caller gives none."""

_KEEPERS = 8
"""Threads that write files. They wait for the disk, so several files become durable at once."""


class Originals(StrEnum):
    """Whether the files of indexed pictures are kept, or referred to where they lie."""

    KEEP = "keep"
    REFERENCE = "reference"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexItem:
    """What became of one picture: its status and id, or the error that stopped it."""

    source: PictureSource
    status: PutStatus | None = None
    id: str | None = None
    error: LookalikeError | None = None

    @property
    def failed(self) -> bool:
        """Whether the picture is not in the collection as it was sent."""
        return self.error is not None


@dataclass(frozen=True, slots=True)
class _Picture:
    """A picture between its source and its row.

    `embedder` makes its vector; it is None if the same bytes seem to be stored already.
    """

    source: PictureSource
    image: NewImage
    embedder: LiveEncoder | None = None
    thumbnail: bytes = b""

    def failed(self, error: LookalikeError) -> IndexItem:
        return IndexItem(source=self.source, id=self.image.id, error=error)


@dataclass(slots=True)
class _Task:
    """What one call of `index` fixes for its pictures.

    `live` changes if the collection moves to another model meanwhile. `check` is called right
    before each commit and may raise to end the work.
    """

    collection: str
    on_conflict: OnConflict
    live: LiveEncoder
    check: Callable[[], None]


_Embedded = dict[int, tuple[_Picture, Vector]]
"""Pictures with their vectors, by their position in a group."""


class IndexingService:
    """Decodes, embeds and stores pictures.

    Pictures are decoded on `cores` threads while the network works on earlier ones, files are
    written several at a time, and rows are committed in groups. A picture that fails answers with
    its own error and affects no other.

    Args:
        encoders: The live encoders.
        store: Where rows and vectors go.
        files: Where originals and thumbnails go.
        decoder: Decodes within the limits.
        originals: Whether originals are kept.
        max_metadata_bytes: Upper bound of one picture's metadata, as JSON.
        cores: Threads that decode.
        group: Most pictures committed together.
        gate: Closed for a moment while a collection switches to another model.
    """

    def __init__(
        self,
        encoders: Encoders,
        store: Store,
        files: BlobStore,
        decoder: ImageDecoder,
        *,
        originals: Originals = Originals.KEEP,
        max_metadata_bytes: int = 16_384,
        cores: int = 2,
        group: int = 32,
        gate: PutGate | None = None,
    ) -> None:
        self._encoders = encoders
        self._store = store
        self._files = files
        self._decoder = decoder
        self._originals = originals
        self._max_metadata_bytes = max_metadata_bytes
        self._group = group
        self.gate = gate or PutGate()
        self._pipeline = Pipeline(threads=cores, window=3 * group + cores)
        self._keepers = ThreadPoolExecutor(_KEEPERS, thread_name_prefix="keep")

    def index(
        self,
        sources: Iterable[PictureSource],
        *,
        collection: str = DEFAULT_COLLECTION,
        on_conflict: OnConflict = OnConflict.REPLACE,
    ) -> Iterator[IndexItem]:
        """Indexes pictures as a stream and yields what became of each, in order.

        What has been yielded as created, replaced or updated is on the disk.

        Raises:
            InvalidCollectionNameError: Before anything is read.
            SpecMismatchError: The collection was made by a model that is not live.
        """
        groups = self.index_groups(sources, collection=collection, on_conflict=on_conflict)
        return _flat(groups)

    def index_groups(
        self,
        sources: Iterable[PictureSource],
        *,
        collection: str = DEFAULT_COLLECTION,
        on_conflict: OnConflict = OnConflict.REPLACE,
        check: Callable[[], None] = lambda: None,
    ) -> Generator[list[IndexItem], None, None]:
        """As `index`, but yields what was committed together as one list. Raises as it does.

        `check` is called right before each commit and may raise to end the work.
        """
        self.require(collection)
        return self._index(sources, _Task(collection, on_conflict, self._live(collection), check))

    def require(self, collection: str) -> None:
        """Checks that pictures can be added to a collection; raises as `index` does."""
        check_collection_name(collection)
        self._live(collection)

    def close(self) -> None:
        """Stops the threads after what they are doing."""
        self._pipeline.close()
        self._keepers.shutdown(wait=True)

    def _index(
        self, sources: Iterable[PictureSource], task: _Task
    ) -> Generator[list[IndexItem], None, None]:
        with closing(self._pipeline.run(sources, partial(self._prepare, task))) as results:
            kept = ((result, self._keepers.submit(self._keep, result)) for result in results)
            for group in grouped(kept, self._group):
                yield self._store_group(group, task)

    # Before the network, on the pipeline's threads

    def _prepare(self, task: _Task, source: PictureSource) -> Prepared[_Picture]:
        """Checks a picture, looks up its bytes, and decodes and queues it if they are new."""
        with reading(source.filename):
            metadata = self._check(source)
            sha256 = source.sha256()
            image_id = source.id or sha256[:ID_LENGTH]
            existing = self._store.find(task.collection, [image_id]).get(image_id)
            if existing is not None:
                known = self._as_stored(existing, source, sha256, metadata)
                if decide(existing, known, task.on_conflict) is not PutStatus.REPLACED:
                    return _Picture(source, known), None
            return self._embed(source, sha256, image_id, metadata, task)

    def _check(self, source: PictureSource) -> Metadata | None:
        """Raises if a picture's id, metadata or size are out of bounds; returns its metadata."""
        if source.id is not None:
            check_id(source.id)
        metadata = source.metadata
        if metadata is not None:
            metadata = check_metadata(metadata, max_bytes=self._max_metadata_bytes)
        if source.size > (limit := self._decoder.limits.max_bytes):
            raise ImageTooLargeError(
                f"{source.filename} has {source.size:,} bytes; the limit is {limit:,}. "
                "Send a smaller file, or raise LOOKALIKE_MAX_FILE_BYTES"
            )
        return metadata

    def _as_stored(
        self, existing: ImageRecord, source: PictureSource, sha256: str, metadata: Metadata | None
    ) -> NewImage:
        """A picture that seems to be stored already: the row tells what decoding it would."""
        same = existing.sha256 == sha256
        return NewImage(
            id=existing.id,
            sha256=sha256,
            filename=existing.filename,
            media_type=existing.media_type,
            width=existing.width,
            height=existing.height,
            bytes=existing.bytes,
            metadata=metadata,
            source=self._moved(source, existing) if same else None,
        )

    def _embed(
        self,
        source: PictureSource,
        sha256: str,
        image_id: str,
        metadata: Metadata | None,
        task: _Task,
    ) -> tuple[_Picture, Future[Vector]]:
        """Decodes a picture and puts it in the network's queue, waiting for room.

        Raises:
            InvalidImageError: The picture cannot be read.
            NotReadyError: The service is shutting down.
        """
        for attempt in range(1, ATTEMPTS + 1):
            live = task.live
            path = source.resolved_path() if self._refers_to(source) else None
            with source.open() as file:
                decoded = self._decoder.decode(file, decode_size=live.encoder.decode_size)
            try:
                vector = live.batcher.submit(live.encoder.prepare(decoded.image), wait=True)
            except NotReadyError:  # retired after a switch, or the service is shutting down
                task.live = self._live(task.collection)
                if task.live is live or attempt == ATTEMPTS:
                    raise
                continue
            image = NewImage(
                id=image_id,
                sha256=sha256,
                filename=source.filename,
                media_type=decoded.media_type,
                width=decoded.width,
                height=decoded.height,
                bytes=source.size,
                metadata=metadata,
                source=path,
            )
            return _Picture(source, image, live, make_thumbnail(decoded.image)), vector
        raise AssertionError("unreachable")

    def _live(self, collection: str) -> LiveEncoder:
        """The encoder of a collection; raises `SpecMismatchError` if it is not live."""
        read_spec = partial(spec_of, self._store, collection)
        return self._encoders.following(read_spec) or self._encoders.default

    def _refers_to(self, source: PictureSource) -> bool:
        """Whether a picture's file is used where it lies, without a copy."""
        return self._originals is Originals.REFERENCE and source.path is not None

    def _moved(self, source: PictureSource, record: ImageRecord) -> str | None:
        """The new path of a stored picture's file, if another file with its bytes is sent.

        None if the recorded file still exists, so the first copy wins. Raises
        `UnreadableImageError` if the new path cannot be recorded.
        """
        if not self._refers_to(source) or source.lies_at(record.source):
            return None
        return None if self._has_original(record) else source.resolved_path()

    def _has_original(self, record: ImageRecord) -> bool:
        file = self._files.open(record)
        if file is not None:
            file.close()
        return file is not None

    # After the network

    def _keep(self, result: Result[PictureSource, _Picture]) -> None:
        """Writes the original and the thumbnail of a picture that was embedded."""
        picture = result.value
        if result.error is None and picture is not None and picture.embedder is not None:
            self._keep_files(picture)

    def _keep_files(self, picture: _Picture) -> None:
        self._keep_original(picture.source, picture.image)
        self._files.put_thumbnail(picture.image.sha256, picture.thumbnail)

    def _keep_original(self, source: PictureSource, image: NewImage) -> None:
        """Copies the original, unless it is used in place, is not wanted, or is there already."""
        if self._originals is Originals.NONE or self._refers_to(source):
            return
        with source.open() as file:
            self._files.put(file, image.sha256, image.media_type)

    def _store_group(
        self, group: list[tuple[Result[PictureSource, _Picture], Future[None]]], task: _Task
    ) -> list[IndexItem]:
        """Commits a group's rows and returns its items in order."""
        items: dict[int, IndexItem] = {}
        ready: _Embedded = {}
        for position, (result, kept) in enumerate(group):
            picture, vector = result.value, result.vector
            if picture is None or result.error is not None:
                image_id = result.item.id if picture is None else picture.image.id
                items[position] = IndexItem(source=result.item, id=image_id, error=result.error)
                continue
            try:
                if vector is None:
                    if any(one.image.id == picture.image.id for one, _ in ready.values()):
                        items |= self._put(ready, task)
                        ready = {}
                    outcome = self._put_known(picture, task)
                    if outcome is not None:
                        items[position] = _item(picture.source, outcome)
                        continue
                    picture, vector = self._embed_again(picture, task)
                    self._keep_files(picture)
                kept.result()
                ready[position] = picture, vector
            except LookalikeError as exc:
                items[position] = picture.failed(exc)
        items |= self._put(ready, task)
        return [items[position] for position in range(len(group))]

    def _put_known(self, picture: _Picture, task: _Task) -> PutOutcome | None:
        """Stores a picture that needs no vector; None if by now it does need one."""
        image = picture.image
        outcome = self._store.upsert_known(task.collection, image, on_conflict=task.on_conflict)
        if outcome is not None and outcome.record.sha256 == image.sha256:
            self._keep_original(picture.source, image)
            if image.source is not None and not self._has_original(outcome.record):
                self._store.refer(task.collection, image)
        return outcome

    def _embed_again(self, picture: _Picture, task: _Task) -> tuple[_Picture, Vector]:
        """A picture with its vector by the model that the collection is on now."""
        image = picture.image
        with reading(picture.source.filename):
            fresh, vector = self._embed(
                picture.source, image.sha256, image.id, image.metadata, task
            )
        return fresh, vector.result()

    def _put(self, ready: _Embedded, task: _Task) -> dict[int, IndexItem]:
        """Stores pictures with their vectors, made anew if the collection switched its model."""
        items: dict[int, IndexItem] = {}
        error: LookalikeError = SpecMismatchError(
            f"The collection {task.collection!r} moves from model to model; try again in a moment"
        )
        for _ in range(ATTEMPTS):
            items |= self._replace_stale(ready, task)
            if not ready:
                return items
            live = task.live
            if any(picture.embedder is not live for picture, _ in ready.values()):
                continue  # it switched again meanwhile
            try:
                return items | self._commit(ready, live, task)
            except SpecMismatchError as exc:
                error = exc
            except LookalikeError as exc:
                error = exc
                break
            try:
                task.live = self._live(task.collection)
            except SpecMismatchError:
                break
        return items | {position: picture.failed(error) for position, (picture, _) in ready.items()}

    def _replace_stale(self, ready: _Embedded, task: _Task) -> dict[int, IndexItem]:
        """Makes vectors anew that are not by the collection's model; returns what failed."""
        failed: dict[int, IndexItem] = {}
        for position, (picture, _) in list(ready.items()):
            if picture.embedder is task.live:
                continue
            try:
                ready[position] = self._embed_again(picture, task)
            except LookalikeError as exc:
                del ready[position]
                failed[position] = picture.failed(exc)
        return failed

    def _commit(self, ready: _Embedded, live: LiveEncoder, task: _Task) -> dict[int, IndexItem]:
        pictures = [picture for picture, _ in ready.values()]
        with self.gate.passing(task.collection):
            task.check()
            outcomes = self._store.upsert(
                task.collection,
                [picture.image for picture in pictures],
                np.stack([vector for _, vector in ready.values()]),  # (N, dim)
                spec=live.spec,
                provenance=live.encoder.provenance,
                on_conflict=task.on_conflict,
            )
        return {
            position: _item(picture.source, outcome)
            for position, picture, outcome in zip(ready, pictures, outcomes, strict=True)
        }


def _flat(groups: Generator[list[IndexItem], None, None]) -> Iterator[IndexItem]:
    """The items of the groups one by one; closes them if it is closed."""
    with closing(groups):
        for group in groups:
            yield from group


def _item(source: PictureSource, outcome: PutOutcome) -> IndexItem:
    image_id = outcome.record.id
    if outcome.status is not PutStatus.CONFLICT:
        return IndexItem(source=source, status=outcome.status, id=image_id)
    error = ImageExistsError(
        f"The id {image_id!r} is taken by another picture or other metadata; send "
        "on_conflict=replace to replace it, or choose another id"
    )
    return IndexItem(source=source, id=image_id, error=error)
