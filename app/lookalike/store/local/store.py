"""The store in a data folder: every change is committed to SQLite, then followed by FAISS."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lookalike.errors import (
    InvalidParameterError,
    LookalikeError,
    StorageError,
    StorageFullError,
)
from lookalike.files.data_folder import REBUILT, lock_folder
from lookalike.files.disk import Reserve
from lookalike.progress import Progress
from lookalike.records import (
    CollectionInfo,
    Effort,
    Facets,
    Finding,
    ImageRecord,
    Match,
    Metadata,
    ModelSpec,
    NewImage,
    OnConflict,
    Place,
    PutOutcome,
    decode_cursor,
    encode_cursor,
)
from lookalike.store import sqlite
from lookalike.store.base import (
    Capability,
    Page,
    Vectors,
    check_vectors,
    image_not_found,
    require_same_spec,
)
from lookalike.store.filters import MAX_METADATA_BYTES, Filter, Kind
from lookalike.store.local.catalog import Catalog, Changes, Purger
from lookalike.store.local.columns import FILTER_S, Filtering
from lookalike.store.local.fit import open_notes, require_catalog
from lookalike.store.local.index.indexes import Indexes
from lookalike.store.local.index.policy import VERSION as FAISS_VERSION
from lookalike.store.local.index.policy import IndexPolicy
from lookalike.store.local.index.segments import Found
from lookalike.store.local.judgements import LocalJudgements
from lookalike.store.local.rows import CollectionRow
from lookalike.store.local.spaces import LocalSpaces
from lookalike.store.local.unswept import read_noted
from lookalike.store.local.verify import mend, verify
from lookalike.store.outcomes import changed_metadata

Removed = TypeVar("Removed")
_FREE_ATTEMPTS = 3
_ATTEMPTS = 14


class LocalStore:
    """A `Store` in a folder that this process owns until `close`.

    A change is committed, then the index follows, under one change lock; so the index sees seqs in
    order, and whatever it misses through a crash it gets from the catalog at the next start. An
    index is loaded when its collection is first searched or written to.
    """

    capabilities = frozenset(Capability)

    def __init__(
        self,
        folder: Path,
        *,
        policy: IndexPolicy | None = None,
        filter_fields: Sequence[str] = (),
        filter_s: float = FILTER_S,
        read_only: bool = False,
    ) -> None:
        """Opens a data folder, made where it does not exist; exact indexes unless `policy` differs.

        The columns of `filter_fields` are read when a collection is loaded; a filter waits
        `filter_s` seconds for others. With `read_only`, another process may own the folder; else
        that raises `DataFolderInUseError`. See `Connections` for other errors.
        """
        self._folder = folder
        self._policy = policy or IndexPolicy()
        self._change = threading.RLock()
        self._reserve = Reserve(folder)
        try:
            self._open(filter_fields, filter_s, read_only=read_only)
        except StorageFullError:
            if read_only:
                raise
            self._reserve.give_back()
            self._open(filter_fields, filter_s, read_only=read_only)

    def _open(self, filter_fields: Sequence[str], filter_s: float, *, read_only: bool) -> None:
        folder = self._folder
        with contextlib.ExitStack() as undo:
            if not read_only:
                undo.callback(lock_folder(folder).release)
            require_catalog(folder)
            self._catalog = Catalog(folder / "catalog.db", read_only=read_only)
            undo.callback(self._catalog.close)
            self._unswept = open_notes(folder, self._catalog, read_only=read_only)
            if self._unswept is not None:
                undo.callback(self._unswept.close)
            if not read_only:  # what a rebuild left half-done gets old beside a catalog in use
                shutil.rmtree(folder / REBUILT, ignore_errors=True)
            how: dict[str, Any] = {"change": self._change, "read_only": read_only}
            self._indexes = Indexes(self._catalog, folder / "index", policy=self._policy, **how)
            how |= {"fields": filter_fields, "seconds": filter_s}
            self._filtering = Filtering(self._catalog, **how)
            self.spaces = LocalSpaces(self._catalog, self._indexes, change=self._change)
            self.judgements = LocalJudgements(self._catalog)
            self._purger = Purger(
                self._catalog.connections, released=self._note, removing=self._removing
            )
            undo.callback(self._purger.close)
            if not read_only:
                self._purger.begin()
            self._owned = undo.pop_all()

    def close(self) -> None:
        self._indexes.stop()
        with self._change:
            self._indexes.close()
            self._owned.close()

    def load(self) -> None:
        for row in self._catalog.collections():
            self._indexes.get(row)
            self._filtering.load(row)

    def collections(self) -> list[CollectionInfo]:
        return [self._described(row) for row in self._catalog.collections()]

    def collection(self, name: str) -> CollectionInfo | None:
        row = self._catalog.collection(name)
        return self._described(row) if row else None

    def _described(self, row: CollectionRow) -> CollectionInfo:
        return CollectionInfo(
            name=row.name,
            count=row.images,
            spec=row.spec,
            provenance=row.provenance,
            index=self._policy.index_type,
            created_at=row.created_at,
            exact=self._indexes.is_exact(row),
            aliases=row.aliases,
        )

    def _removing(self, remove: Callable[[], Removed]) -> Removed:
        """Runs a change that removes something, on a full disk with the room kept for that."""
        for make_room in (self._reserve.give_back, self._catalog.connections.empty_log):
            try:
                return remove()
            except StorageFullError:
                make_room()
        return remove()

    def make(self, collection: str, *, spec: ModelSpec, provenance: Mapping[str, str]) -> bool:
        self._reserve.hold()
        with self._change:
            row = self._catalog.make(collection, spec, provenance)
            if row is not None:
                self._indexes.made(row)
                self._filtering.made(row)
            return row is not None

    def rename(self, collection: str, new: str) -> None:
        with self._change:
            self._catalog.rename(collection, new)

    def alias(self, alias: str, collection: str) -> None:
        self._catalog.alias(alias, collection)

    def unalias(self, alias: str) -> None:
        self._catalog.unalias(alias)

    def drop(self, collection: str, *, wait: bool = False) -> int:
        with self._change:
            row = self._removing(lambda: self._catalog.drop(collection))
            self._indexes.drop(row)
            self._filtering.drop(row)
        if wait:
            self._purger.finish()
        self._purger.wake()
        return row.images

    # Rows

    def get(self, collection: str, image_id: str) -> ImageRecord:
        found = self._catalog.find(collection, [image_id])
        if image_id not in found:
            raise image_not_found(collection, image_id)
        return found[image_id]

    def find(self, collection: str, image_ids: Sequence[str]) -> dict[str, ImageRecord]:
        return self._catalog.find(collection, image_ids)

    def scroll(
        self,
        collection: str,
        *,
        cursor: str | None = None,
        limit: int = 100,
        where: Filter | None = None,
        vectors_of: ModelSpec | None = None,
    ) -> Page:
        # Images that are replaced or deleted between reading rows and vectors are left out.
        after = decode_cursor(cursor)
        if limit < 1:
            raise InvalidParameterError("limit must be at least 1")
        row = self._catalog.collection(collection)
        found: dict[int, ImageRecord] = {}
        if row and where and where.conditions:
            found = self._filtering.page(row, where, after=after, limit=limit + 1)
        elif row:
            found = self._catalog.page(row, after=after, limit=limit + 1)
        seqs = list(found)[:limit]
        end = encode_cursor(seqs[-1] if seqs else after)
        next_cursor = end if len(found) > limit else None
        vectors = np.empty((0, 0), np.float32)
        if vectors_of is not None:
            space = self.spaces.find(row, vectors_of) if row and seqs else None
            held, vectors = self._catalog.vectors_at(space, seqs) if space else ((), vectors)
            seqs = [int(seq) for seq in held]
        records = [found[seq] for seq in seqs]
        return Page(records=records, next_cursor=next_cursor, end=end, vectors=vectors)

    def count(self, collection: str, where: Filter | None = None) -> int:
        row = self._catalog.collection(collection)
        if row is None or not (where and where.conditions):
            return row.images if row else 0
        return len(self._filtering.passing(row, where))

    def facets(
        self,
        collection: str,
        *,
        fields: Sequence[str] | None = None,
        where: Filter | None = None,
        limit: int = 10,
    ) -> Facets:
        row = self._catalog.collection(collection)
        if row is None:
            return Facets(count=0, fields=len(fields or ()), facets=[])
        return self._filtering.facets(row, fields, where or Filter(), limit=limit)

    def kinds(self, collection: str, fields: Iterable[str]) -> dict[str, frozenset[Kind]]:
        row = self._catalog.collection(collection)
        return self._filtering.kinds(row, fields) if row else dict.fromkeys(fields, frozenset())

    def references(self, sha256s: Iterable[str], *, thorough: bool = False) -> set[str]:
        return self._catalog.references(sha256s, thorough=thorough)

    def expect(self, sha256s: Iterable[str]) -> None:
        self._note(sha256s)

    def _note(self, sha256s: Iterable[str], *, last_seq: int | None = None) -> None:
        if self._unswept is not None:
            self._unswept.note(sha256s, last_seq=last_seq)

    def unnamed(self) -> Iterator[list[str]]:
        return self._unswept.batches(self._catalog.references) if self._unswept else iter(())

    def noted(self) -> Iterator[str]:
        return read_noted(self._folder)

    def verify(self, *, quick: bool, progress: Progress) -> Iterator[Finding]:
        return verify(self._catalog, self._indexes, quick=quick, progress=progress)

    def mend(self) -> None:
        with self._change:
            mend(self._catalog, self._indexes)

    # Changes

    def upsert(
        self,
        collection: str,
        images: Sequence[NewImage],
        vectors: Vectors,
        *,
        spec: ModelSpec,
        provenance: Mapping[str, str],
        on_conflict: OnConflict = OnConflict.REPLACE,
    ) -> list[PutOutcome]:
        rows = check_vectors(vectors, count=len(images), dim=spec.dim)
        if not images:
            return []
        self._reserve.hold()
        with self._change:
            row = self._catalog.collection(collection)
            if row:
                require_same_spec(collection, row.spec, spec)
                self._indexes.get(row)  # loaded before the commit, which it would find there
            written = self._catalog.put(
                collection, images, rows, spec=spec, provenance=provenance, on_conflict=on_conflict
            )
            last_seq = max(written.added, default=None)
            self._note(written.released, last_seq=last_seq)
            if written.new:
                self._indexes.made(written.row)
                self._filtering.made(written.row)
            self._indexes.follow(written.row, written.added, rows, written.removed)
            self._filtering.follow(written.row, written.changes)
            return [one for one in written.outcomes if one is not None]

    def upsert_known(
        self, collection: str, images: Sequence[NewImage], *, on_conflict: OnConflict
    ) -> list[PutOutcome | None]:
        with self._change:
            written = self._catalog.put_known(collection, images, on_conflict=on_conflict)
            if written is None:
                return [None] * len(images)
            if written.updated:
                self._filtering.follow(written.row, written.changes)
            return written.outcomes

    def places(self, collection: str, image_ids: Sequence[str]) -> dict[str, list[Place]]:
        return self._catalog.places(collection, image_ids)

    def copied(self, collection: str) -> list[str]:
        return self._catalog.copied(collection)

    def seen(self, collection: str, root: str) -> dict[str, str]:
        return self._catalog.seen(collection, root)

    def uploaded(self, collection: str, image_ids: Sequence[str]) -> set[str]:
        return self._catalog.uploaded(collection, image_ids)

    def validators(self, collection: str, root: str) -> dict[str, str]:
        return self._catalog.validators(collection, root)

    def validate(self, collection: str, root: str, validators: Mapping[str, str]) -> None:
        self._catalog.validate(collection, root, validators)

    def forget(self, collection: str, places: Sequence[Place]) -> None:
        self._catalog.forget(collection, places)

    def update_metadata(
        self,
        collection: str,
        image_id: str,
        patch: Metadata,
        *,
        max_bytes: int = MAX_METADATA_BYTES,
    ) -> ImageRecord:
        changed = self.update_many(collection, [image_id], patch, max_bytes=max_bytes)
        record = changed.get(image_id, image_not_found(collection, image_id))
        if isinstance(record, LookalikeError):
            raise record
        return record

    def update_many(
        self,
        collection: str,
        image_ids: Sequence[str],
        patch: Metadata,
        *,
        replace: bool = False,
        where: Filter | None = None,
        max_bytes: int = MAX_METADATA_BYTES,
    ) -> dict[str, ImageRecord | LookalikeError]:
        how: dict[str, Any] = {"patch": patch, "replace": replace, "max_bytes": max_bytes}

        def change(old: ImageRecord) -> Metadata | LookalikeError:
            return changed_metadata(old.metadata, **how)

        return self._update(collection, image_ids, change, where=where)

    def update_each(
        self,
        collection: str,
        patches: Mapping[str, Metadata],
        *,
        max_bytes: int = MAX_METADATA_BYTES,
    ) -> dict[str, ImageRecord | LookalikeError]:
        how: dict[str, Any] = {"replace": False, "max_bytes": max_bytes}

        def change(old: ImageRecord) -> Metadata | LookalikeError:
            return changed_metadata(old.metadata, patches[old.id], **how)

        return self._update(collection, list(patches), change)

    def _update(
        self,
        collection: str,
        image_ids: Sequence[str],
        change: Callable[[ImageRecord], Metadata | LookalikeError],
        *,
        where: Filter | None = None,
    ) -> dict[str, ImageRecord | LookalikeError]:
        with self._change:
            row, changed, failed = self._catalog.change_metadata(
                collection, image_ids, change, where=where
            )
            if row is not None and changed:
                updated = [(seq, record.metadata) for seq, record in sorted(changed.items())]
                self._filtering.follow(row, Changes(updated=updated))
            return {record.id: record for record in changed.values()} | failed

    def refer(self, collection: str, image: NewImage) -> None:
        self._catalog.refer(collection, image)

    def delete(self, collection: str, image_id: str) -> None:
        if not self.delete_many(collection, [image_id]):
            raise image_not_found(collection, image_id)

    def delete_many(
        self, collection: str, image_ids: Sequence[str], *, where: Filter | None = None
    ) -> set[str]:
        with self._change:
            delete = partial(self._catalog.delete, collection, image_ids, where=where)
            row, gone = self._removing(delete)
            if row is not None and gone:
                self._note([one.sha256 for one in gone.values()])
                seqs = list(gone)
                self._indexes.follow(row, {}, np.empty((0, row.spec.dim), np.float32), seqs)
                self._filtering.follow(row, Changes(removed=seqs))
            return {one.id for one in gone.values()}

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
        """A search that met a change is done again, because its answer may fit no state.

        At first it is done freely, then while changes of this process wait, then with the catalog
        synced: another process, or a change that failed, may have left index or columns behind.
        """
        queries = check_vectors(queries, count=None, dim=spec.dim)
        if k < 1:
            raise InvalidParameterError("k must be at least 1")
        where = where if where and where.conditions else None
        how: dict[str, Any] = {"where": where, "exclude": exclude, "effort": effort}
        for attempt in range(_ATTEMPTS):
            with self._change if attempt >= _FREE_ATTEMPTS else contextlib.nullcontext():
                if attempt > _FREE_ATTEMPTS:
                    self._refresh(collection)
                found = self._attempt(collection, queries, k=k, spec=spec, **how)
            if found is not None:
                return found
        raise StorageError(
            f"The catalog and the index of {collection!r} disagree; try again, or restart"
        )

    def _attempt(
        self,
        collection: str,
        queries: Vectors,
        *,
        k: int,
        spec: ModelSpec,
        where: Filter | None,
        exclude: Sequence[str],
        effort: Effort | None,
    ) -> list[list[Match]] | None:
        """The k best matches of each query; None if a change came in between.

        The filter is evaluated first and the rows are read last, so that a change in between shows
        as a row that is missing or no longer passes.
        """
        row = self._catalog.collection(collection)
        if row is None:
            return [[] for _ in queries]
        require_same_spec(collection, row.spec, spec)
        allowed = self._filtering.passing(row, where) if where else None
        excluded = self._catalog.seqs_of(row, exclude) if exclude else None
        live = self._indexes.get(row)
        if live is None:
            return None
        found = live.search(queries, k=k, allowed=allowed, excluded=excluded, effort=effort)
        if found is None:
            return None
        seqs = {seq for _, seqs in found for seq in seqs.tolist()}
        records = self._catalog.at(row, seqs)
        fits = len(records) == len(seqs) and not any(
            one.id in exclude or (where and not where.matches(one.metadata))
            for one in records.values()
        )
        return [_matches(one, records) for one in found] if fits else None

    def _refresh(self, collection: str) -> None:
        row = self._catalog.collection(collection)
        if row is not None:
            self._indexes.refresh(row)
            self._filtering.refresh(row)

    def check(self) -> None:
        self._catalog.connections.check()

    def describe(self) -> dict[str, Any]:
        collections = {}
        for row in self._catalog.collections():
            facts = {"index": self._policy.index_type, "count": row.images}
            facts |= self._indexes.describe(row)
            collections[row.name] = facts | {"filter_fields": self._filtering.describe(row)}
        versions = {"sqlite": sqlite.VERSION, "faiss": FAISS_VERSION}
        facts = {"kind": "local", "path": str(self._folder), **versions}
        if self._unswept is not None and self._unswept.warning:
            facts["warning"] = self._unswept.warning
        return facts | {"collections": collections}


def _matches(found: Found, records: dict[int, ImageRecord]) -> list[Match]:
    return [
        Match(rank, score, records[seq])
        for rank, (score, seq) in enumerate(zip(*(part.tolist() for part in found), strict=True), 1)
    ]
