"""Embedding sets in memory: the plain definition of `EmbeddingSets`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InvalidParameterError
from lookalike.records import ImageRecord, ModelSpec
from lookalike.store.base import unknown_collection
from lookalike.store.embedding_sets import EmbeddingSet, Missing, Recipe, active_set, no_such_set
from lookalike.store.memory_rows import Held, HeldCollection, HeldSet, own
from lookalike.store.names import decode_cursor, encode_cursor
from lookalike.store.vectors import Vectors, check_vectors


class MemorySets:
    """`EmbeddingSets` over what a memory store keeps."""

    def __init__(self, held: Held) -> None:
        self._held = held

    def all(self, collection: str) -> list[EmbeddingSet]:
        """All sets, see `EmbeddingSets.all`."""
        with self._held.lock:
            held = self._collection(collection)
            return [_described(held, one) for one in held.sets]

    def begin(
        self,
        collection: str,
        spec: ModelSpec,
        *,
        provenance: Mapping[str, str],
        recipe: Recipe | None = None,
    ) -> EmbeddingSet:
        """Makes an empty set or finds it, see `EmbeddingSets.begin`."""
        with self._held.lock:
            held = self._collection(collection)
            found = _find(held, spec)
            if found is None:
                found = HeldSet(spec, dict(provenance))
                held.sets.append(found)
            if recipe is not None:
                found.recipe = dict(recipe)
            return _described(held, found)

    def missing(
        self, collection: str, spec: ModelSpec, *, limit: int, cursor: str | None = None
    ) -> Missing:
        """Pictures without a vector, see `EmbeddingSets.missing`."""
        after = decode_cursor(cursor)
        if limit < 1:
            raise InvalidParameterError("limit must be at least 1")
        with self._held.lock:
            held, one = self._set(collection, spec)
            rows = [
                row for row in held.passing(None) if row.seq > after and row.seq not in one.vectors
            ][:limit]
            last = rows[-1].seq if rows else after
            return Missing([own(row.record) for row in rows], encode_cursor(last))

    def vectors(
        self, collection: str, spec: ModelSpec, records: Sequence[ImageRecord]
    ) -> dict[str, NDArray[np.float32]]:
        """Vectors by id, see `EmbeddingSets.vectors`."""
        with self._held.lock:
            held, one = self._set(collection, spec)
            seqs = {record.id: _seq(held, record) for record in records}
            return {
                image_id: one.vectors[seq].copy()
                for image_id, seq in seqs.items()
                if seq in one.vectors
            }

    def add(
        self,
        collection: str,
        spec: ModelSpec,
        records: Sequence[ImageRecord],
        vectors: Vectors,
    ) -> int:
        """Adds vectors, see `EmbeddingSets.add`."""
        rows = check_vectors(vectors, count=len(records), dim=spec.dim)
        added = 0
        with self._held.lock:
            held, one = self._set(collection, spec)
            for record, vector in zip(records, rows, strict=True):
                seq = _seq(held, record)
                if seq and seq not in one.vectors:
                    one.vectors[seq] = vector.copy()
                    added += 1
        return added

    def prepared(self, collection: str, spec: ModelSpec) -> AbstractContextManager[None]:
        """Everything is in memory already."""
        with self._held.lock:
            self._set(collection, spec)
        return nullcontext()

    def activate(self, collection: str, spec: ModelSpec) -> bool:
        """Switches where the set is complete, see `EmbeddingSets.activate`."""
        with self._held.lock:
            held, one = self._set(collection, spec)
            if any(row.seq not in one.vectors for row in held.rows.values()):
                return False
            held.active = one
            return True

    def discard(self, collection: str, spec: ModelSpec) -> None:
        """Removes a set, see `EmbeddingSets.discard`."""
        with self._held.lock:
            held, one = self._set(collection, spec)
            if one is held.active:
                raise active_set(collection)
            held.sets.remove(one)

    def _collection(self, name: str) -> HeldCollection:
        held = self._held.collections.get(name)
        if held is None:
            raise unknown_collection(name)
        return held

    def _set(self, name: str, spec: ModelSpec) -> tuple[HeldCollection, HeldSet]:
        held = self._collection(name)
        found = _find(held, spec)
        if found is None:
            raise no_such_set(name, spec)
        return held, found


def _find(held: HeldCollection, spec: ModelSpec) -> HeldSet | None:
    return next((one for one in held.sets if one.spec.digest == spec.digest), None)


def _seq(held: HeldCollection, record: ImageRecord) -> int:
    """The number of the row that still has a record's content; 0 where none has."""
    row = held.rows.get(record.id)
    return row.seq if row and row.record.sha256 == record.sha256 else 0


def _described(held: HeldCollection, one: HeldSet) -> EmbeddingSet:
    return EmbeddingSet(
        spec=one.spec,
        provenance=dict(one.provenance),
        recipe=None if one.recipe is None else dict(one.recipe),
        count=len(one.vectors),
        active=one is held.active,
    )
