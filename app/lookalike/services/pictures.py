"""Stored pictures with their originals and thumbnails, and collections as a whole."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any, BinaryIO

from PIL import Image

from lookalike.errors import (
    ConflictError,
    FilterTooSlowError,
    InvalidIdError,
    InvalidParameterError,
    LookalikeError,
    OriginalNotKeptError,
    QueueFullError,
    VectorSpaceNotFoundError,
)
from lookalike.media.decoder import ImageDecoder
from lookalike.models.base import Encoder
from lookalike.progress import Worker
from lookalike.records import (
    DEFAULT_COLLECTION,
    MOST_CHANGED,
    SHOWN,
    CollectionInfo,
    Facets,
    ImageRecord,
    Metadata,
    Preprocess,
    check_collection_name,
    check_id,
)
from lookalike.services.jobs import IMPORT_KINDS, REEMBED_KIND, JobService
from lookalike.services.pipeline import PutGate
from lookalike.services.syncing import let_go
from lookalike.store.base import (
    BlobStore,
    Page,
    Store,
    VectorSpace,
    count_of,
    image_not_found,
    real_name,
    spec_of,
    unknown_collection,
)
from lookalike.store.filters import (
    MAX_NAMED_FIELDS,
    Filter,
    Kind,
    check_metadata,
    doubts,
    field_name,
    kinds_of,
    value_of,
)

log = logging.getLogger(__name__)

THUMBNAIL_SIZE = 256  # the longest side, in pixels
MAX_VALUES = 100  # of each field, in facets
_WITNESSES = 10  # pictures that are looked at before a store is asked for kinds


def warnings_of(
    store: Store,
    collection: str,
    where: Filter | None,
    *,
    fields: Sequence[str] = (),
    seen: Sequence[ImageRecord] = (),
) -> list[str]:
    """What of a filter cannot match in a collection, see `doubts`; nothing of an empty one.

    `fields` are further fields that were asked for. The store is not asked where the pictures
    `seen` have all that is looked for.
    """
    names = [*(where.fields if where else ()), *fields]
    if not names:
        return []
    witnesses = [record.metadata for record in seen[:_WITNESSES]]
    kinds: Mapping[str, Collection[Kind]] = {
        name: set().union(*(kinds_of(value_of(one, name)) for one in witnesses)) for name in names
    }
    if not doubts(where, kinds, others=fields) or not count_of(store, collection):
        return []
    return doubts(where, store.kinds(collection, names), others=fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Which pictures of a collection are changed at once: by ids, by a filter, or all of them.

    Raises:
        InvalidParameterError: It is none or several of the three; there are more than
            `MOST_CHANGED` ids; or the filter asks for nothing, which would take every picture.
    """

    collection: str = DEFAULT_COLLECTION
    ids: Sequence[str] | None = None
    where: Filter | None = None
    everything: bool = False
    cursor: str | None = None  # goes on behind an earlier call's, by a filter or with all

    def __post_init__(self) -> None:
        """Checks it."""
        check_collection_name(self.collection)
        if (self.ids is not None) + (self.where is not None) + self.everything != 1:
            raise InvalidParameterError(
                'Say which pictures: "ids": [...], "filter": {...} or "all": true, one of them'
            )
        if self.where is not None and self.where.is_open:
            raise InvalidParameterError(
                'The filter asks for nothing, so that every picture would pass; write "all": true '
                "if that is meant"
            )
        if len(self.ids or ()) > MOST_CHANGED:
            raise InvalidParameterError(
                f"{len(self.ids or ()):,} ids are named; name at most {MOST_CHANGED:,} in one call"
            )
        if self.ids is not None and self.cursor is not None:
            raise InvalidParameterError("A cursor goes on with a filter or with all, not with ids")


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """What one change of many pictures did, or what it would do."""

    matched: int  # pictures that were chosen, when it began
    ids: Sequence[str]  # those that were changed, in the order named, or oldest first
    failed: Mapping[str, LookalikeError]  # by id
    first: Sequence[ImageRecord]  # of a dry run: a few of the pictures, as they are
    next_cursor: str | None  # goes on with the rest, if any
    warnings: Sequence[str]


@dataclass(eq=False)
class PictureService:
    """Reads, changes and deletes stored pictures; needs no vector."""

    store: Store
    files: BlobStore
    decoder: ImageDecoder
    max_metadata_bytes: int

    def get(self, collection: str, image_id: str) -> ImageRecord:
        """One picture. Raises `ImageNotFoundError`."""
        return self.store.get(check_collection_name(collection), check_id(image_id))

    def page(
        self,
        collection: str,
        *,
        cursor: str | None = None,
        limit: int = 100,
        where: Filter | None = None,
    ) -> Page:
        """A page of a collection's pictures, oldest first. Raises `CollectionNotFoundError`."""
        self._require(collection)
        return self.store.scroll(collection, cursor=cursor, limit=limit, where=where)

    def count(self, collection: str, where: Filter | None = None) -> int:
        """How many pictures pass. Raises `CollectionNotFoundError`."""
        self._require(collection)
        return self.store.count(collection, where)

    def facets(
        self,
        collection: str,
        *,
        fields: Sequence[str] | None = None,
        where: Filter | None = None,
        limit: int = 10,
    ) -> Facets:
        """What pictures have under fields, see `Store.facets`; 1 to 100 values of each.

        Raises:
            CollectionNotFoundError: There is no such collection.
            InvalidParameterError: The limit is out of its range, or more than 64 fields are named.
            InvalidFilterError: A field has no name that can be looked up.
        """
        self._require(collection)
        if not 1 <= limit <= MAX_VALUES:
            raise InvalidParameterError(f"limit is {limit}; choose a number from 1 to {MAX_VALUES}")
        names = list(dict.fromkeys(map(field_name, fields or ())))
        if len(names) > MAX_NAMED_FIELDS:
            text = f"{len(names)} fields are named; at most {MAX_NAMED_FIELDS} can be"
            raise InvalidParameterError(text)
        return self.store.facets(collection, fields=names or None, where=where, limit=limit)

    def warnings(
        self,
        collection: str,
        where: Filter | None,
        *,
        fields: Sequence[str] = (),
        seen: Sequence[ImageRecord] = (),
    ) -> list[str]:
        """See `warnings_of`; none while the fields of a large collection are still being read."""
        with contextlib.suppress(FilterTooSlowError, QueueFullError):
            names = [field_name(field) for field in fields]
            return warnings_of(self.store, collection, where, fields=names, seen=seen)
        return []

    def _require(self, collection: str) -> None:
        check_collection_name(collection)
        if collection != DEFAULT_COLLECTION and spec_of(self.store, collection) is None:
            raise unknown_collection(collection)

    def seen(self, collection: str, root: str) -> dict[str, str]:
        """As `Store.seen`. Raises `CollectionNotFoundError`."""
        self._require(collection)
        return self.store.seen(collection, root)

    def let_go(
        self,
        collection: str,
        root: str,
        *,
        ids: Sequence[str] = (),
        paths: Sequence[str] = (),
        dry_run: bool = False,
    ) -> list[str]:
        """See `syncing.let_go`. Raises `CollectionNotFoundError`."""
        self._require(collection)
        ids = [check_id(one) for one in ids]
        return let_go(self.store, collection, root, ids=ids, paths=paths, dry_run=dry_run)

    def patch_metadata(self, collection: str, image_id: str, patch: Metadata) -> ImageRecord:
        """Merges into a picture's metadata (RFC 7396). Raises `ImageNotFoundError`."""
        check_collection_name(collection)
        patch = check_metadata(patch, max_bytes=self.max_metadata_bytes)
        return self.store.update_metadata(
            collection, check_id(image_id), patch, max_bytes=self.max_metadata_bytes
        )

    def delete(self, collection: str, image_id: str) -> None:
        """Removes one picture; its files go with a later sweep. Raises `ImageNotFoundError`."""
        self.store.delete(check_collection_name(collection), check_id(image_id))

    def delete_many(self, chosen: Chosen, *, dry_run: bool = False) -> Changed:
        """Removes up to `MOST_CHANGED` pictures in one step; a dry run only says which.

        Ids that do not exist fail, and the others are removed. Raises `CollectionNotFoundError`.
        """

        def delete(ids: Sequence[str]) -> Mapping[str, None]:
            return dict.fromkeys(self.store.delete_many(chosen.collection, ids, where=chosen.where))

        return self._change_many(chosen, None if dry_run else delete)

    def update_many(
        self, chosen: Chosen, metadata: Metadata, *, replace: bool = False, dry_run: bool = False
    ) -> Changed:
        """Merges into the metadata of pictures (RFC 7396), or takes its place; as `delete_many`.

        A picture whose metadata would be too large fails and keeps what it has.
        """
        most = self.max_metadata_bytes
        patch = check_metadata(metadata, max_bytes=most)

        def update(ids: Sequence[str]) -> Mapping[str, ImageRecord | LookalikeError]:
            how: dict[str, Any] = {"replace": replace, "max_bytes": most}
            return self.store.update_many(chosen.collection, ids, patch, where=chosen.where, **how)

        return self._change_many(chosen, None if dry_run else update)

    def _change_many(
        self,
        chosen: Chosen,
        change: Callable[[Sequence[str]], Mapping[str, ImageRecord | LookalikeError | None]] | None,
    ) -> Changed:
        """Makes a change of the pictures that are chosen; None: of none of them, a dry run."""
        name, cursor = chosen.collection, None
        self._require(name)
        failed: dict[str, LookalikeError] = {}
        if chosen.ids is not None:
            ids = _usable(chosen.ids, failed)
            records = self.store.find(name, ids)
            matched, warnings = len(records), list[str]()
        else:
            how: dict[str, Any] = {"cursor": chosen.cursor, "limit": MOST_CHANGED}
            page = self.store.scroll(name, where=chosen.where, **how)
            records = {record.id: record for record in page.records}
            ids, cursor = list(records), page.next_cursor
            matched = self.store.count(name, chosen.where)
            warnings = self.warnings(name, chosen.where, seen=page.records)
        changed = change(ids) if change else records
        if chosen.ids is not None:
            failed |= {one: image_not_found(name, one) for one in ids if one not in changed}
        failed |= {key: one for key, one in changed.items() if isinstance(one, LookalikeError)}
        done = [one for one in ids if one in changed and one not in failed]
        return Changed(
            matched=matched,
            ids=done if change else (),
            failed=failed,
            first=() if change else [records[one] for one in done[:SHOWN]],
            next_cursor=cursor if change else None,
            warnings=warnings,
        )

    def original(self, collection: str, image_id: str) -> tuple[ImageRecord, BinaryIO]:
        """A picture's row and its file as it was sent, open. Raises `OriginalNotKeptError`."""
        record = self.get(collection, image_id)
        file = self.files.open(record)
        if file is None:
            raise OriginalNotKeptError(
                f"The original of {image_id!r} is not here: the service runs without originals, "
                "or the file was moved. Index the picture again to keep it"
            )
        return record, file

    def open(self, collection: str, image_id: str, *, size: int) -> Image.Image:
        """A picture to look at: upright RGB, neither side reduced below `size` pixels.

        The thumbnail is used if it is large enough (except for very long pictures), or if there
        is nothing else. Raises as `thumbnail`, and `InvalidImageError`.
        """
        if size > THUMBNAIL_SIZE // 2:
            with contextlib.suppress(OriginalNotKeptError):
                _, original = self.original(collection, image_id)
                with original:
                    return self.decode(original, size=size)
        _, thumbnail = self.thumbnail(collection, image_id)
        with thumbnail:
            return self.decode(thumbnail, size=size)

    def decode(
        self,
        file: BinaryIO,
        *,
        size: int,
        preprocess: Preprocess | None = None,
        bulk: bool = False,
    ) -> Image.Image:
        """As `open`, for a picture that is not stored; the others as `ImageDecoder.decode`.

        Raises `InvalidImageError`.
        """
        decoded = self.decoder.decode(file, decode_size=size, preprocess=preprocess, bulk=bulk)
        return decoded.image

    def thumbnail(self, collection: str, image_id: str) -> tuple[ImageRecord, BinaryIO]:
        """A picture's row and its thumbnail, open; made again if missing. Raises as `original`."""
        record = self.get(collection, image_id)
        if (found := self.files.open_thumbnail(record.sha256)) is not None:
            return record, found
        return self.make_thumbnail(collection, image_id)

    def make_thumbnail(self, collection: str, image_id: str) -> tuple[ImageRecord, BinaryIO]:
        """Makes and keeps a picture's thumbnail anew; as `thumbnail`. Raises as `original`."""
        record, original = self.original(collection, image_id)
        with original:
            decoded = self.decoder.decode(original, decode_size=THUMBNAIL_SIZE, thumbnail=True)
        made = decoded.thumbnail
        assert made is not None
        self.files.put_thumbnail(record.sha256, made)
        return record, BytesIO(made)


def _usable(ids: Sequence[str], failed: dict[str, LookalikeError]) -> list[str]:
    """The ids that a picture can have, each once; the others go to `failed`."""
    usable: list[str] = []
    for one in dict.fromkeys(ids):
        try:
            usable.append(check_id(one))
        except InvalidIdError as exc:
            failed[one] = exc
    return usable


@dataclass(eq=False)
class CollectionService:
    """Makes, renames and deletes collections and their aliases, and deletes their vector sets."""

    store: Store
    jobs: JobService
    gate: PutGate  # holds back what imports are about to commit until they know that they end

    def make(self, collection: str, encoder: Encoder) -> bool:
        """Makes an empty collection for the vectors of an encoder; False if it is there already."""
        name = check_collection_name(collection)
        return self.store.make(name, spec=encoder.spec, provenance=encoder.provenance)

    def rename(self, collection: str, new: str) -> CollectionInfo:
        """Gives a collection another name, in one step; returns what it is by now.

        Raises:
            CollectionNotFoundError: There is no such collection.
            ConflictError: Another one has that name, or a job works on either of them.
        """
        check_collection_name(collection)
        check_collection_name(new)
        with self.gate.closed(collection):
            for name in (collection, new):
                if jobs := self.jobs.unfinished(name):
                    raise ConflictError(
                        f"Job {jobs[0].id} works on the collection {name!r}; wait for its end or "
                        "cancel it, then rename"
                    )
            self.store.rename(collection, new)
            found = self.store.collection(new)
        if found is None:  # dropped at this very moment
            raise unknown_collection(new)
        return found

    def alias(self, alias: str, collection: str) -> CollectionInfo:
        """Makes `alias` another name of a collection, or moves it there; returns the collection.

        Raises:
            CollectionNotFoundError: There is no such collection.
            ConflictError: A collection has that very name, or a job is going to make one.
        """
        check_collection_name(collection)
        with self.gate.closed(check_collection_name(alias)):
            if jobs := self.jobs.unfinished(alias):
                raise ConflictError(
                    f"Job {jobs[0].id} works on a collection {alias!r}; wait for its end or "
                    "cancel it, or choose another alias"
                )
            self.store.alias(alias, collection)
        found = self.store.collection(alias)
        if found is None:  # removed at this very moment
            raise unknown_collection(alias)
        return found

    def unalias(self, alias: str) -> None:
        """Removes an alias; its collection stays. Raises `CollectionNotFoundError`."""
        self.store.unalias(check_collection_name(alias))

    def drop(self, collection: str, *, wait: bool = False) -> int:
        """Removes a collection and ends the imports into it; returns how many pictures it had.

        With `wait`, what it leaves on the disk is removed before this returns.

        Raises:
            CollectionNotFoundError: There is no such collection; imports that may make it go on.
            ConflictError: It has aliases, or `collection` is one.
            StorageError: The disk refuses; the collection is still there, but imports into it may
                have ended.
        """
        check_collection_name(collection)
        with self.gate.closed(collection):
            found = self.store.collection(collection)
            if found is not None and found.name == collection and not found.aliases:
                # First: imports that could not be canceled any more would make it anew.
                why = f"Canceled by the deletion of the collection {collection!r}"
                for job in self.jobs.unfinished(collection):
                    if job.kind in IMPORT_KINDS:
                        self.jobs.cancel(job.id, why=why)
            return self.store.drop(collection, wait=wait)

    def vector_sets(self, collection: str) -> list[VectorSpace]:
        """All vector sets of a collection, in the order made; raises `CollectionNotFoundError`."""
        return self.store.spaces.all(check_collection_name(collection))

    def discard(self, collection: str, digest: str) -> None:
        """Removes the vectors that one model made, by its spec's digest, if they are not in use.

        Raises:
            CollectionNotFoundError: There is no such collection.
            VectorSpaceNotFoundError: It has no vectors under this digest.
            ConflictError: Searches use these vectors, or a job may be making them.
        """
        collection = real_name(self.store, collection)
        sets = self.vector_sets(collection)
        found = next((one for one in sets if one.spec.digest == digest), None)
        if found is None:
            digests = ", ".join(one.spec.digest for one in sets)
            raise VectorSpaceNotFoundError(
                f"The collection {collection!r} has no vectors under {digest!r}; it has {digests}"
            )
        if any(job.kind == REEMBED_KIND for job in self.jobs.unfinished(collection)):
            raise ConflictError(
                f"The collection {collection!r} is being re-embedded; wait for the job's end or "
                "cancel it, then discard the vectors"
            )
        self.store.spaces.discard(collection, found.spec)


def file_sweeper(
    store: Store, files: BlobStore, *, trash_days: int, every_s: float = 3600.0
) -> Worker:
    """A worker that keeps the folder of files clean, now and every hour.

    Files that no row names any more go to the trash, if the store knows of them: their row was
    removed, or never came. What sweeps met there on `trash_days` later days is deleted.
    """

    def sweep() -> bool:
        stop, moved = worker.closing.is_set, 0
        named = partial(store.references, thorough=True)
        deleted = files.tidy(named, days=trash_days, stop=stop)
        for digests in store.unnamed():
            if stop():
                return False
            young = files.set_aside(digests)
            store.expect(young)
            moved += len(digests) - len(young)
        if moved:
            log.info("moved the files of %d pictures that are gone to the trash", moved)
            # On a disk that is short of room, what was moved is deleted here.
            deleted += files.tidy(named, days=trash_days, stop=stop)
        if deleted:
            log.info("deleted %d files from the trash", deleted)
        return False

    failure = "the sweep failed and will be tried again"
    worker = Worker("maintenance", sweep, failure=failure, every_s=every_s, retry_s=every_s)
    worker.wake()
    return worker
