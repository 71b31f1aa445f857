"""Adding pictures: one, several, or a whole folder as a stream."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext, suppress
from dataclasses import KW_ONLY, dataclass, replace
from enum import StrEnum
from functools import partial
from typing import BinaryIO

import numpy as np

from lookalike.errors import (
    ImageExistsError,
    ImageTooLargeError,
    LookalikeError,
    NotReadyError,
    SpecMismatchError,
)
from lookalike.media.decoder import ImageDecoder
from lookalike.media.sources import PictureSource, is_gone, is_here
from lookalike.models.encoders import ATTEMPTS, Encoders, LiveEncoder, Vector
from lookalike.records import (
    DEFAULT_COLLECTION,
    ImageRecord,
    Metadata,
    NewImage,
    OnConflict,
    Place,
    PutOutcome,
    PutStatus,
    check_collection_name,
    check_id,
)
from lookalike.services.pipeline import Pipeline, Prepared, PutGate, Result, grouped, reading
from lookalike.store.base import BlobStore, Store, real_name, spec_of
from lookalike.store.filters import check_metadata
from lookalike.store.outcomes import decide, is_copy

ID_LENGTH = 16  # hex digits of the sha256 that make an id if the caller gives none
_KEEPERS = 8  # threads that write files: they wait for the disk, so several sync at once
_NEEDS_VECTOR = (PutStatus.CREATED, PutStatus.REPLACED)


class Originals(StrEnum):
    """Whether the files of indexed pictures are kept, or referred to where they lie."""

    KEEP = "keep"
    REFERENCE = "reference"
    NONE = "none"


@dataclass(slots=True, kw_only=True)
class IndexItem:
    """What became of one picture: its status and id, or the error that stopped it.

    Attributes:
        copy_of: The path of the first place of the same bytes, if this is another one.
        kept_metadata: Whether it is a copy that came with other metadata, which was not taken.
    """

    source: PictureSource
    id: str | None = None
    status: PutStatus | None = None
    error: LookalikeError | None = None
    copy_of: str | None = None
    kept_metadata: bool = False


@dataclass(slots=True)
class _Picture:
    """A picture between its source and its row."""

    item: IndexItem
    image: NewImage  # what only decoding tells is empty until then
    live: LiveEncoder | None = None  # made the vector; None if the bytes seem to be stored already
    vector: Vector | None = None
    thumbnail: bytes = b""
    gone: Sequence[Place] = ()  # places of the same bytes where no file is any more


@dataclass(slots=True)
class _Task:
    """What one call of `index_groups` fixes for its pictures."""

    collection: str
    on_conflict: OnConflict
    check: Callable[[], None]
    live: LiveEncoder  # changes if the collection moves to another model meanwhile


@dataclass(eq=False)
class IndexingService:
    """Decodes, embeds and stores pictures.

    Pictures are decoded on `cores` threads while the network works on earlier ones, files are
    written several at a time, and rows are committed in groups. A picture that fails answers with
    its own error and affects no other.
    """

    encoders: Encoders
    store: Store
    files: BlobStore
    decoder: ImageDecoder
    _: KW_ONLY
    gate: PutGate  # closed for a moment while a collection switches to another model
    originals: Originals = Originals.KEEP
    max_metadata_bytes: int = 16_384
    cores: int = 2
    group: int = 32

    def __post_init__(self) -> None:
        self._pipeline = Pipeline(threads=self.cores, window=3 * self.group + self.cores)
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
        with closing(groups):
            for group in groups:
                yield from group

    def index_groups(
        self,
        sources: Iterable[PictureSource],
        *,
        collection: str = DEFAULT_COLLECTION,
        on_conflict: OnConflict = OnConflict.REPLACE,
        check: Callable[[], None] = lambda: None,
    ) -> Generator[list[IndexItem], None, None]:
        """As `index`, by the groups that are committed; `check` may raise before each commit."""
        live = self.require(collection)
        task = _Task(real_name(self.store, collection), on_conflict, check, live)
        with closing(self._pipeline.run(sources, partial(self._prepare, task))) as results:
            kept = ((result, self._keepers.submit(self._keep, result)) for result in results)
            for group in grouped(kept, self.group):
                yield self._store_group(group, task)

    def require(self, collection: str) -> LiveEncoder:
        """The encoder for pictures that are added to a collection; raises as `index` does."""
        return self._live(check_collection_name(collection))

    def holds(self, record: ImageRecord) -> bool:
        """Whether a picture's original is here, if originals are kept at all."""
        return self.originals is Originals.NONE or self.files.exists(record)

    def close(self) -> None:
        """Stops the threads after what they are doing."""
        self._pipeline.close()
        self._keepers.shutdown(wait=True)

    # Before the network, on the pipeline's threads

    def _prepare(self, task: _Task, source: PictureSource) -> Prepared[_Picture]:
        """Checks a picture, looks up its bytes, and decodes and queues it if they are new."""
        with reading(source.filename):
            metadata = self._check(source)
            sha256 = source.sha256()
            image = NewImage(
                id=source.id or sha256[:ID_LENGTH],
                sha256=sha256,
                filename=source.filename,
                media_type="",
                width=0,
                height=0,
                bytes=source.size,
                metadata=metadata,
                place=source.place,
                created_at=source.created_at,
                updated_at=source.updated_at,
            )
            picture = _Picture(IndexItem(source=source, id=image.id), image)
            existing = self.store.find(task.collection, [image.id]).get(image.id)
            if decide(existing, image, task.on_conflict) in _NEEDS_VECTOR:
                return picture, self._embed(picture, task)
            if existing is not None and existing.sha256 == sha256:
                picture.image = replace(image, source=self._moved(source, existing))
                if existing.others or is_copy(existing, image):
                    picture.gone = self._gone(source, existing)
            return picture, None

    def _check(self, source: PictureSource) -> Metadata | None:
        """Raises if a picture's id, metadata or size are out of bounds; returns its metadata."""
        if source.id is not None:
            check_id(source.id)
        metadata = source.metadata
        if metadata is not None:
            metadata = check_metadata(metadata, max_bytes=self.max_metadata_bytes)
        if source.size > (limit := self.decoder.limits.max_bytes):
            raise ImageTooLargeError(
                f"{source.filename} has {source.size:,} bytes; the limit is {limit:,}. "
                "Send a smaller file, or raise LOOKALIKE_MAX_FILE_BYTES"
            )
        return metadata

    def _embed(self, picture: _Picture, task: _Task) -> Future[Vector]:
        """Decodes a picture and puts it in the network's queue, waiting for room."""
        source = picture.item.source
        while True:
            live = task.live
            path = source.resolved_path() if self._refers_to(source) else None
            with source.open() as file:
                decoded = self.decoder.decode(
                    file,
                    decode_size=live.encoder.decode_size,
                    preprocess=live.spec.preprocess,
                    thumbnail=True,
                    bulk=True,
                )
            try:
                vector = live.submit(live.encoder.prepare(decoded.image), wait=True)
                break
            except NotReadyError:  # retired after a switch, or the service is shutting down
                task.live = self._live(task.collection)
                if task.live is live:
                    raise
        assert decoded.thumbnail is not None
        picture.live, picture.thumbnail = live, decoded.thumbnail
        picture.image = replace(
            picture.image,
            media_type=decoded.media_type,
            width=decoded.width,
            height=decoded.height,
            source=path,
        )
        return vector

    def _live(self, collection: str) -> LiveEncoder:
        """The encoder of a collection; raises `SpecMismatchError` if it is not live."""
        read_spec = partial(spec_of, self.store, collection)
        return self.encoders.following(read_spec) or self.encoders.default

    def _refers_to(self, source: PictureSource) -> bool:
        """Whether a picture's file is used where it lies, without a copy."""
        return self.originals is Originals.REFERENCE and source.path is not None

    def _gone(self, source: PictureSource, record: ImageRecord) -> list[Place]:
        """Places of a stored picture where no file is any more, if another file has its bytes."""
        if source.path is None or source.place is None or not is_here(source.place):
            return []
        return [place for place in record.places if is_gone(place)]

    def _moved(self, source: PictureSource, record: ImageRecord) -> str | None:
        """The new path of a stored picture's file, if another file with its bytes is sent.

        None if the recorded file still exists, so the first copy wins. Raises
        `UnreadableImageError` if the new path cannot be recorded.
        """
        if not self._refers_to(source) or source.lies_at(record.source):
            return None
        return None if self.files.exists(record) else source.resolved_path()

    # After the network

    def _keep(self, result: Result[PictureSource, _Picture]) -> None:
        """Writes the original and the thumbnail of a picture that was embedded."""
        if result.value is not None and result.vector is not None:
            self._keep_files(result.value)

    def _keep_files(self, picture: _Picture) -> None:
        source = picture.item.source
        with source.open() if self._copies(source) else nullcontext() as original:
            self.keep(picture.image, original, picture.thumbnail)

    def keep(
        self, image: NewImage, original: BinaryIO | None, thumbnail: bytes | None = None
    ) -> None:
        """Stores the files of a picture whose row is to come; a sweep takes them if it does not.

        Raises as `BlobStore.put`.
        """
        if not self.files.holds(image.sha256, image.media_type):  # else it is not ours to sweep
            self.store.expect([image.sha256])
        if original is not None:
            self.files.put(original, image.sha256, image.media_type)
        if thumbnail is not None:
            self.files.put_thumbnail(image.sha256, thumbnail)

    def _copies(self, source: PictureSource) -> bool:
        """Whether an original is copied: it is wanted, and not used in place."""
        return self.originals is not Originals.NONE and not self._refers_to(source)

    def _store_group(
        self, group: list[tuple[Result[PictureSource, _Picture], Future[None]]], task: _Task
    ) -> list[IndexItem]:
        """Commits a group's rows and returns its items in order."""
        items: list[IndexItem] = []
        ready: list[_Picture] = []
        known: list[_Picture] = []
        for result, kept in group:
            picture = result.value
            item = picture.item if picture else IndexItem(source=result.item, id=result.item.id)
            items.append(item)
            if picture is None or result.error is not None:
                item.error = result.error
                continue
            picture.vector = result.vector
            if picture.vector is None:
                if any(one.image.id == picture.image.id for one in ready):
                    self._put_known(known, ready, task)
                    self._put(ready, task)
                    known, ready = [], []
                known.append(picture)
                continue
            try:
                kept.result()
                ready.append(picture)
            except LookalikeError as exc:
                item.error = exc
        self._put_known(known, ready, task)
        self._put(ready, task)
        return items

    def _put_known(self, known: list[_Picture], ready: list[_Picture], task: _Task) -> None:
        """Stores pictures that need no vector; those that by now do join the `ready` ones."""
        if not known:
            return
        images = [picture.image for picture in known]
        try:
            if gone := [place for picture in known for place in picture.gone]:
                self.store.forget(task.collection, gone)
            outcomes = self.store.upsert_known(
                task.collection, images, on_conflict=task.on_conflict
            )
        except LookalikeError as exc:
            for picture in known:
                picture.item.error = exc
            return
        for picture, outcome in zip(known, outcomes, strict=True):
            try:
                if outcome is None:
                    self._embed_again(picture, task)
                    self._keep_files(picture)
                    ready.append(picture)
                else:
                    self._settle_known(picture, outcome, task)
            except LookalikeError as exc:
                picture.item.error = exc

    def _settle_known(self, picture: _Picture, outcome: PutOutcome, task: _Task) -> None:
        image = picture.image
        if outcome.record.sha256 == image.sha256:
            source = picture.item.source
            if self._copies(source) and source.digest is None:  # which heals what is damaged
                with source.open() as file:
                    self.files.put(file, image.sha256, outcome.record.media_type)
            if image.source is not None:  # unless a twin was referred to just now
                row = self.store.find(task.collection, [image.id]).get(image.id)
                if row is not None and not self.files.exists(row):
                    self.store.refer(task.collection, image)
        _settle(picture, outcome)

    def _embed_again(self, picture: _Picture, task: _Task) -> None:
        """Makes a picture's vector by the model that the collection is on now."""
        with reading(picture.item.source.filename):
            vector = self._embed(picture, task)
        picture.vector = vector.result()

    def _put(self, ready: list[_Picture], task: _Task) -> None:
        """Stores pictures with their vectors, made anew if the collection switched its model."""
        error: LookalikeError = SpecMismatchError(
            f"The collection {task.collection!r} moves from model to model; try again in a moment"
        )
        for _ in range(ATTEMPTS):
            for picture in ready:
                if picture.live is not task.live:
                    try:
                        self._embed_again(picture, task)
                    except LookalikeError as exc:
                        picture.item.error = exc
            ready = [picture for picture in ready if picture.item.error is None]
            live = task.live
            if any(picture.live is not live for picture in ready):
                continue  # it switched again meanwhile
            try:
                self._commit(ready, live, task)
            except SpecMismatchError as exc:
                error = exc
                with suppress(SpecMismatchError):  # then the next attempt fails as this one did
                    task.live = self._live(task.collection)
            except LookalikeError as exc:
                error = exc
                break
            else:
                return
        for picture in ready:
            picture.item.error = error

    def _commit(self, ready: list[_Picture], live: LiveEncoder, task: _Task) -> None:
        if not ready:
            return
        vectors = [picture.vector for picture in ready if picture.vector is not None]
        with self.gate.passing(task.collection):
            task.check()
            outcomes = self.store.upsert(
                task.collection,
                [picture.image for picture in ready],
                np.stack(vectors),  # (N, dim)
                spec=live.spec,
                provenance=live.encoder.provenance,
                on_conflict=task.on_conflict,
            )
        for picture, outcome in zip(ready, outcomes, strict=True):
            _settle(picture, outcome)


def _settle(picture: _Picture, outcome: PutOutcome) -> None:
    """Notes what became of a picture."""
    item = picture.item
    if is_copy(outcome.record, picture.image):
        item.copy_of, item.kept_metadata = outcome.record.path, outcome.kept_metadata
    settle(item, outcome)


def settle(item: IndexItem, outcome: PutOutcome) -> None:
    """Notes the status of a picture, or that its id is taken."""
    if outcome.status is not PutStatus.CONFLICT:
        item.status = outcome.status
        return
    item.error = ImageExistsError(
        f"The id {item.id!r} is taken by another picture or other metadata; send "
        "on_conflict=replace to replace it, or choose another id"
    )
