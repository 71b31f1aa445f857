"""The store in a data folder: every change is committed to SQLite, then followed by FAISS."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import ImageNotFoundError, InvalidParameterError
from lookalike.records import (
    CollectionInfo,
    ImageRecord,
    Match,
    Metadata,
    ModelSpec,
    NewImage,
    OnConflict,
    Page,
    PutOutcome,
)
from lookalike.store.base import ScanBlock, require_same_spec
from lookalike.store.effort import Effort
from lookalike.store.embedding_sets import EmbeddingSets
from lookalike.store.filters import Filter
from lookalike.store.jobs import JobStore
from lookalike.store.local.catalog.catalog import Catalog
from lookalike.store.local.catalog.connections import FILTER_S
from lookalike.store.local.folder_lock import FolderLock
from lookalike.store.local.index.indexes import Indexes
from lookalike.store.local.index.policy import IndexPolicy
from lookalike.store.local.local_sets import LocalSets
from lookalike.store.local.scan import scan_catalog
from lookalike.store.local.search import Searcher
from lookalike.store.local.store_facts import collection_infos, store_facts
from lookalike.store.metadata import MAX_METADATA_BYTES, check_metadata, merge_patch
from lookalike.store.names import decode_cursor, encode_cursor
from lookalike.store.outcomes import settle_known
from lookalike.store.vectors import Vectors, check_vectors


class LocalStore:
    """A `Store` in a folder that this process owns until `close`.

    A change is committed, then the index follows, under one change lock; so the index sees seqs in
    order, and whatever it misses through a crash it gets from the catalog at the next start. An
    index is loaded when its collection is first searched or written to.
    """

    def __init__(
        self,
        folder: Path,
        *,
        policy: IndexPolicy | None = None,
        filter_fields: Sequence[str] = (),
        filter_s: float = FILTER_S,
        read_only: bool = False,
    ) -> None:
        """Opens a data folder, made where it does not exist.

        Args:
            folder: The data folder.
            policy: What indexes are built; exact ones unless given.
            filter_fields: Metadata fields that the catalog indexes in every collection.
            filter_s: Seconds that a filter may take.
            read_only: Change nothing; then another process may own the folder, and what it
                changes later may not be seen by searches.

        Raises:
            DataFolderInUseError: Another process owns the folder.
            DataFolderError: The catalog is damaged, or was written by a newer version.
            StorageError: The disk refuses.
        """
        self._folder = folder
        self._policy = policy or IndexPolicy()
        self._change = threading.RLock()
        with contextlib.ExitStack() as undo:
            if not read_only:
                undo.callback(FolderLock(folder).release)
            self._catalog = Catalog(
                folder / "catalog.db", fields=filter_fields, filter_s=filter_s, read_only=read_only
            )
            undo.callback(self._catalog.close)
            self._indexes = Indexes(
                self._catalog,
                folder / "index",
                policy=self._policy,
                change=self._change,
                read_only=read_only,
            )
            self._searcher = Searcher(self._catalog, self._indexes, change=self._change)
            self._sets = LocalSets(self._catalog, self._indexes, change=self._change)
            self._owned = undo.pop_all()

    @property
    def sets(self) -> EmbeddingSets:
        """The embedding sets of all collections."""
        return self._sets

    @property
    def jobs(self) -> JobStore:
        """Long work, its progress and its end."""
        return self._catalog.jobs

    def close(self) -> None:
        """Saves the indexes and lets go of the folder; may be called twice."""
        self._indexes.stop()
        with self._change:
            self._indexes.close()
            self._owned.close()

    def load(self) -> None:
        """Loads the index of every collection now, so that the first search need not wait."""
        for row, _ in self._catalog.collections():
            self._indexes.get(row)

    def collections(self) -> list[CollectionInfo]:
        """All collections, by name."""
        return collection_infos(self._catalog, self._policy)

    def spec(self, collection: str) -> ModelSpec | None:
        """The spec of the active embedding set; None where there is no collection."""
        row = self._catalog.collection(collection)
        return row.spec if row else None

    def count(self, collection: str) -> int:
        """Pictures in the collection; 0 where there is no such collection."""
        return self._catalog.count(collection)

    def drop(self, collection: str) -> int:
        """Removes a collection; its rows follow in the background, see `Store.drop`."""
        with self._change:
            row, count = self._catalog.drop(collection)
            self._indexes.drop(row)
        self._catalog.purger.wake()
        return count

    def purge(self) -> None:
        """Removes the rows of dropped collections now, see `Store.purge`."""
        self._catalog.purger.finish()

    # Rows

    def get(self, collection: str, image_id: str) -> ImageRecord:
        """One picture's row. Raises `ImageNotFoundError`."""
        found = self._catalog.find(collection, [image_id])
        if image_id not in found:
            raise ImageNotFoundError(f"No picture {image_id!r} in the collection {collection!r}")
        return found[image_id]

    def find(self, collection: str, image_ids: Sequence[str]) -> dict[str, ImageRecord]:
        """Those of the ids that exist, with their rows."""
        return self._catalog.find(collection, image_ids)

    def vector(self, collection: str, image_id: str) -> NDArray[np.float32]:
        """One picture's active vector, (dim,) float32. Raises `ImageNotFoundError`."""
        return self._catalog.vectors.of(collection, image_id)

    def page(
        self,
        collection: str,
        *,
        cursor: str | None = None,
        limit: int = 100,
        where: Filter | None = None,
    ) -> Page:
        """A stretch of pictures, oldest first, see `Store.page`."""
        after = decode_cursor(cursor)
        if limit < 1:
            raise InvalidParameterError("limit must be at least 1")
        rows = self._catalog.page(collection, after=after, limit=limit + 1, where=where)
        more = len(rows) > limit
        records = [record for _, record in rows[:limit]]
        return Page(records, encode_cursor(rows[limit - 1][0]) if more else None)

    def scan(
        self, collection: str, *, cursor: str | None = None, where: Filter | None = None
    ) -> Iterator[ScanBlock]:
        """Rows with their vectors, oldest first, see `Store.scan`."""
        return scan_catalog(self._catalog, collection, after=decode_cursor(cursor), where=where)

    def references(self, sha256s: Iterable[str]) -> set[str]:
        """Those of the digests that some row of any collection names."""
        return self._catalog.references(sha256s)

    # Changes

    def put(
        self,
        collection: str,
        images: Sequence[NewImage],
        vectors: Vectors,
        *,
        spec: ModelSpec,
        provenance: Mapping[str, str],
        on_conflict: OnConflict = OnConflict.REPLACE,
    ) -> list[PutOutcome]:
        """Adds or replaces pictures, see `Store.put`."""
        rows = check_vectors(vectors, count=len(images), dim=spec.dim)
        if not images:
            return []
        with self._change:
            row = self._catalog.collection(collection)
            if row:
                require_same_spec(collection, row.spec, spec)
                self._indexes.get(row)  # loaded before the commit, which it would find there
            written = self._catalog.put(
                collection,
                images,
                rows,
                spec=spec,
                provenance=provenance,
                on_conflict=on_conflict,
            )
            self._indexes.follow_put(written, rows)
            return written.outcomes

    def put_known(
        self, collection: str, image: NewImage, *, on_conflict: OnConflict
    ) -> PutOutcome | None:
        """Does what `put` would do, where that needs no vector, see `Store.put_known`."""
        with self._change:
            return settle_known(self, collection, image, on_conflict)

    def patch_metadata(
        self,
        collection: str,
        image_id: str,
        patch: Metadata,
        *,
        max_bytes: int = MAX_METADATA_BYTES,
    ) -> ImageRecord:
        """Merges into a picture's metadata, see `Store.patch_metadata`."""

        def merge(old: Metadata) -> Metadata:
            return check_metadata(merge_patch(old, patch), max_bytes)

        with self._change:
            return self._catalog.change_metadata(collection, image_id, merge)

    def set_metadata(self, collection: str, image_id: str, metadata: Metadata) -> ImageRecord:
        """Replaces a picture's metadata. Raises `ImageNotFoundError`."""
        with self._change:
            return self._catalog.change_metadata(collection, image_id, lambda _: metadata)

    def refer(self, collection: str, image: NewImage) -> None:
        """Notes where a picture's file lies by now, see `Store.refer`."""
        self._catalog.refer(collection, image)

    def delete(self, collection: str, image_id: str) -> None:
        """Removes one picture. Raises `ImageNotFoundError`."""
        with self._change:
            row, seq = self._catalog.delete(collection, image_id)
            self._indexes.follow_delete(row, seq)

    # Search

    def search(
        self,
        collection: str,
        queries: Vectors,
        *,
        k: int,
        spec: ModelSpec,
        where: Filter | None = None,
        exclude: Sequence[str] = (),
        effort: Effort | None = None,
    ) -> list[list[Match]]:
        """The k best matches of each query, see `Store.search`."""
        return self._searcher.search(
            collection,
            queries,
            k=k,
            spec=spec,
            where=where,
            exclude=exclude,
            effort=effort,
        )

    def is_exact(self, collection: str) -> bool:
        """Whether searches score every picture, see `Store.is_exact`."""
        row = self._catalog.collection(collection)
        return row is None or self._indexes.is_exact(row)

    def rebuild(self, collection: str) -> bool:
        """Builds the index anew where that is due, without waiting for the background to do it.

        False where it was not, or could not be built.
        """
        row = self._catalog.collection(collection)
        return row is not None and self._indexes.rebuild(row)

    def describe(self) -> dict[str, Any]:
        """Facts for `GET /info`: versions, and what each index holds; bytes of memory."""
        return store_facts(self._folder, self._catalog, self._indexes, self._policy)
