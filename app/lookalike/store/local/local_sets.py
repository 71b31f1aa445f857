"""Embedding sets of the local store: the catalog switches, the index is there before."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InvalidParameterError
from lookalike.records import ImageRecord, ModelSpec
from lookalike.store.embedding_sets import EmbeddingSet, Missing, Recipe
from lookalike.store.local.catalog.catalog import Catalog
from lookalike.store.local.index.indexes import Indexes
from lookalike.store.local.index.live_index import LiveIndex
from lookalike.store.names import decode_cursor, encode_cursor
from lookalike.store.vectors import Vectors, check_vectors


class LocalSets:
    """`EmbeddingSets` over a catalog and its indexes.

    Args:
        catalog: Where the sets are.
        indexes: Follows the switch.
        change: The store's change lock.
    """

    def __init__(self, catalog: Catalog, indexes: Indexes, *, change: threading.RLock) -> None:
        self._catalog = catalog
        self._indexes = indexes
        self._change = change
        self._switching = threading.Lock()
        self._prepared: dict[int, LiveIndex] = {}

    def all(self, collection: str) -> list[EmbeddingSet]:
        """All sets, see `EmbeddingSets.all`."""
        return self._catalog.sets.all(collection)

    def begin(
        self,
        collection: str,
        spec: ModelSpec,
        *,
        provenance: Mapping[str, str],
        recipe: Recipe | None = None,
    ) -> EmbeddingSet:
        """Makes an empty set or finds it, see `EmbeddingSets.begin`."""
        return self._catalog.sets.begin(collection, spec, provenance=provenance, recipe=recipe)

    def missing(
        self, collection: str, spec: ModelSpec, *, limit: int, cursor: str | None = None
    ) -> Missing:
        """Pictures without a vector, see `EmbeddingSets.missing`."""
        after = decode_cursor(cursor)
        if limit < 1:
            raise InvalidParameterError("limit must be at least 1")
        rows = self._catalog.sets.missing(collection, spec, after=after, limit=limit)
        last = rows[-1][0] if rows else after
        return Missing([record for _, record in rows], encode_cursor(last))

    def vectors(
        self, collection: str, spec: ModelSpec, records: Sequence[ImageRecord]
    ) -> dict[str, NDArray[np.float32]]:
        """Vectors by id, see `EmbeddingSets.vectors`."""
        return self._catalog.sets.vectors(collection, spec, records)

    def add(
        self,
        collection: str,
        spec: ModelSpec,
        records: Sequence[ImageRecord],
        vectors: Vectors,
    ) -> int:
        """Adds vectors, see `EmbeddingSets.add`."""
        rows = check_vectors(vectors, count=len(records), dim=spec.dim)
        with self._change:  # so that nothing comes between an index and the switch to it
            return self._catalog.sets.add(collection, spec, records, rows)

    @contextmanager
    def prepared(self, collection: str, spec: ModelSpec) -> Iterator[None]:
        """Builds the set's index before the switch, see `EmbeddingSets.prepared`."""
        row = self._catalog.sets.row(collection, spec)
        with self._switching:
            if self._active(collection) != row.embedding:
                self._prepared[row.embedding] = self._indexes.build(row)
        try:
            yield
        finally:
            with self._switching:
                self._prepared.pop(row.embedding, None)

    def activate(self, collection: str, spec: ModelSpec) -> bool:
        """Switches where the set is complete, see `EmbeddingSets.activate`.

        The index is built while changes go on, if it was not `prepared`; under the change lock it
        is only brought up to date.
        """
        with self._switching:
            row = self._catalog.sets.row(collection, spec)
            if not self._catalog.sets.complete(row):
                return False
            if self._active(collection) == row.embedding:
                return True
            built = self._prepared.get(row.embedding) or self._indexes.build(row)
            with self._change:
                built = self._indexes.caught_up(built)
                before = self._catalog.sets.activate(row)
                if before is None:
                    return False
                self._prepared.pop(row.embedding, None)
                self._indexes.switch(before, built)
            return True

    def discard(self, collection: str, spec: ModelSpec) -> None:
        """Removes a set, see `EmbeddingSets.discard`."""
        row = self._catalog.sets.row(collection, spec)
        self._catalog.sets.discard(collection, spec)
        with self._change:
            self._indexes.drop(row)

    def _active(self, collection: str) -> int:
        row = self._catalog.collection(collection)
        return row.embedding if row else 0
