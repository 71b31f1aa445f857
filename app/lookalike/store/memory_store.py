"""A store in memory: the plain definition that every other store is compared with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InvalidParameterError
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
    PutStatus,
)
from lookalike.store.base import (
    ScanBlock,
    image_not_found,
    require_same_spec,
    unknown_collection,
    utc_now,
)
from lookalike.store.effort import Effort
from lookalike.store.embedding_sets import EmbeddingSets
from lookalike.store.filters import Filter
from lookalike.store.memory_rows import Held, HeldCollection, HeldSet, Row, own
from lookalike.store.memory_sets import MemorySets
from lookalike.store.metadata import MAX_METADATA_BYTES, check_metadata, merge_patch
from lookalike.store.names import decode_cursor, encode_cursor
from lookalike.store.outcomes import put_outcome, settle_known
from lookalike.store.vectors import Vectors, best_first, check_vectors, exact_scores


class MemoryStore:
    """A `Store` that forgets: NumPy brute force over plain dictionaries, behind one lock."""

    def __init__(self) -> None:
        self._held = Held()
        self._lock = self._held.lock
        self._collections = self._held.collections
        self._sets = MemorySets(self._held)

    @property
    def sets(self) -> EmbeddingSets:
        """The embedding sets of all collections."""
        return self._sets

    def collections(self) -> list[CollectionInfo]:
        """All collections, by name."""
        with self._lock:
            return [
                CollectionInfo(
                    name=name,
                    count=len(held.rows),
                    spec=held.active.spec,
                    provenance=dict(held.active.provenance),
                    index="Flat",
                    created_at=held.created_at,
                )
                for name, held in sorted(self._collections.items())
            ]

    def spec(self, collection: str) -> ModelSpec | None:
        """The spec of the collection's vectors; None where there is no collection."""
        with self._lock:
            held = self._collections.get(collection)
            return held.active.spec if held else None

    def count(self, collection: str) -> int:
        """Pictures in the collection; 0 where there is no such collection."""
        with self._lock:
            held = self._collections.get(collection)
            return len(held.rows) if held else 0

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
        now = utc_now()
        with self._lock:
            held = self._collections.get(collection)
            if held:
                require_same_spec(collection, held.active.spec, spec)
            else:
                active = HeldSet(spec, dict(provenance))
                held = HeldCollection(now, active, [active])
                self._collections[collection] = held
            outcomes = []
            for image, vector in zip(images, rows, strict=True):
                old = held.rows.get(image.id)
                outcome = put_outcome(
                    collection, old.record if old else None, image, on_conflict=on_conflict, now=now
                )
                self._keep(held, outcome, vector)
                outcomes.append(PutOutcome(outcome.status, own(outcome.record)))
            return outcomes

    def _keep(self, held: HeldCollection, outcome: PutOutcome, vector: NDArray[np.float32]) -> None:
        record = own(outcome.record)
        if outcome.status is PutStatus.REPLACED:
            held.remove(record.id)
        if outcome.status in {PutStatus.CREATED, PutStatus.REPLACED}:
            self._held.last_seq += 1
            held.rows[record.id] = Row(self._held.last_seq, record)
            held.active.vectors[self._held.last_seq] = vector.copy()
        elif outcome.status is PutStatus.UPDATED:
            held.rows[record.id] = replace(held.rows[record.id], record=record)

    def get(self, collection: str, image_id: str) -> ImageRecord:
        """One picture's row. Raises `ImageNotFoundError`."""
        with self._lock:
            return own(self._row(collection, image_id).record)

    def find(self, collection: str, image_ids: Sequence[str]) -> dict[str, ImageRecord]:
        """Those of the ids that exist, with their rows."""
        with self._lock:
            held = self._collections.get(collection)
            rows = held.rows if held else {}
            return {key: own(rows[key].record) for key in image_ids if key in rows}

    def vector(self, collection: str, image_id: str) -> NDArray[np.float32]:
        """One picture's vector, (dim,) float32. Raises `ImageNotFoundError`."""
        with self._lock:
            row = self._row(collection, image_id)
            return self._collections[collection].active.vectors[row.seq].copy()

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
        with self._lock:
            held = self._collections.get(collection)
            rows = [row for row in held.passing(where) if row.seq > after] if held else []
            more = len(rows) > limit
            records = [own(row.record) for row in rows[:limit]]
            return Page(records, encode_cursor(rows[limit - 1].seq) if more else None)

    def scan(
        self, collection: str, *, cursor: str | None = None, where: Filter | None = None
    ) -> Iterator[ScanBlock]:
        """Rows with their vectors, oldest first, see `Store.scan`; all in one block."""
        after = decode_cursor(cursor)
        with self._lock:
            held = self._collections.get(collection)
            rows = [row for row in held.passing(where) if row.seq > after] if held else []
            if held is None or not rows:
                return iter(())
            vectors = np.stack([held.active.vectors[row.seq] for row in rows])
        records = [own(row.record) for row in rows]
        return iter([ScanBlock(records, vectors, encode_cursor(rows[-1].seq))])

    def put_known(
        self, collection: str, image: NewImage, *, on_conflict: OnConflict
    ) -> PutOutcome | None:
        """Does what `put` would do, where that needs no vector, see `Store.put_known`."""
        with self._lock:
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
        with self._lock:
            old = self._row(collection, image_id).record.metadata
            merged = check_metadata(merge_patch(old, patch), max_bytes)
            return self.set_metadata(collection, image_id, merged)

    def set_metadata(self, collection: str, image_id: str, metadata: Metadata) -> ImageRecord:
        """Replaces a picture's metadata. Raises `ImageNotFoundError`."""
        with self._lock:
            row = self._row(collection, image_id)
            record = own(replace(row.record, metadata=metadata, updated_at=utc_now()))
            self._collections[collection].rows[image_id] = replace(row, record=record)
            return own(record)

    def refer(self, collection: str, image: NewImage) -> None:
        """Notes where a picture's file lies by now, see `Store.refer`."""
        self._held.refer(collection, image)

    def delete(self, collection: str, image_id: str) -> None:
        """Removes one picture. Raises `ImageNotFoundError`."""
        with self._lock:
            self._row(collection, image_id)
            self._collections[collection].remove(image_id)

    def drop(self, collection: str) -> int:
        """Removes a collection. Raises `CollectionNotFoundError`."""
        with self._lock:
            if collection not in self._collections:
                raise unknown_collection(collection)
            return len(self._collections.pop(collection).rows)

    def purge(self) -> None:
        """Does nothing: nothing is left of a collection that was dropped."""

    def search(
        self,
        collection: str,
        queries: Vectors,
        *,
        k: int,
        spec: ModelSpec,
        where: Filter | None = None,
        exclude: Sequence[str] = (),
        effort: Effort | None = None,  # noqa: ARG002 - always exact
    ) -> list[list[Match]]:
        """The k best matches of each query, see `Store.search`."""
        asked = check_vectors(queries, count=None, dim=spec.dim)
        if k < 1:
            raise InvalidParameterError("k must be at least 1")
        with self._lock:
            held = self._collections.get(collection)
            if held:
                require_same_spec(collection, held.active.spec, spec)
            rows = [r for r in held.passing(where) if r.record.id not in exclude] if held else []
            vectors = [held.active.vectors[row.seq] for row in rows] if held else []
            return [_rank(rows, vectors, query, k) for query in asked]

    def references(self, sha256s: Iterable[str]) -> set[str]:
        """Those of the digests that some row of any collection names."""
        with self._lock:
            held = self._collections.values()
            return set(sha256s) & {row.record.sha256 for c in held for row in c.rows.values()}

    def describe(self) -> dict[str, Any]:
        """Facts for `GET /info`."""
        with self._lock:
            sizes = {
                name: {
                    "index": "Flat",
                    "count": len(c.rows),
                    "bytes": 4 * c.active.spec.dim * len(c.rows),
                }
                for name, c in sorted(self._collections.items())
            }
            return {"kind": "memory", "collections": sizes}

    def is_exact(self, collection: str) -> bool:  # noqa: ARG002 - all of them are
        """Always: every picture is scored."""
        return True

    def load(self) -> None:
        """Everything is in memory already."""

    def close(self) -> None:
        """Nothing to let go of."""

    def _row(self, collection: str, image_id: str) -> Row:
        held = self._collections.get(collection)
        row = held.rows.get(image_id) if held else None
        if row is None:
            raise image_not_found(collection, image_id)
        return row


def _rank(
    rows: list[Row], vectors: list[NDArray[np.float32]], query: NDArray[np.float32], k: int
) -> list[Match]:
    if not rows:
        return []
    scores = exact_scores(np.stack(vectors), query)
    seqs = np.array([row.seq for row in rows], dtype=np.int64)
    order = best_first(scores, seqs, k)
    return [
        Match(rank, float(scores[i]), own(rows[i].record)) for rank, i in enumerate(order, start=1)
    ]
