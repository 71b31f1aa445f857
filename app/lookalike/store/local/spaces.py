"""Embedding sets of the local store: rows of `embeddings`, their vectors, and the switch."""

# ruff: noqa: S608 - only constants go into the SQL texts, every value is bound

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InvalidParameterError
from lookalike.records import ImageRecord, ModelSpec
from lookalike.store.embedding_sets import EmbeddingSet, Missing, Recipe, active_set, no_such_set
from lookalike.store.local.catalog import (
    IN_LIST,
    RECORD_COLUMNS,
    Catalog,
    CollectionRow,
    read_images,
    record,
    require_collection,
    vector_blob,
    vector_rows,
)
from lookalike.store.local.index.indexes import Indexes
from lookalike.store.local.index.live import LiveIndex
from lookalike.store.names import decode_cursor, encode_cursor
from lookalike.store.vectors import Vectors, check_vectors

_REMOVED_TOGETHER = 500


class LocalSets:
    """`EmbeddingSets` over a catalog and its indexes.

    Args:
        catalog: Where the sets are.
        indexes: Follows the switch.
        change: The store's change lock.
    """

    def __init__(self, catalog: Catalog, indexes: Indexes, *, change: threading.RLock) -> None:
        self._connections = catalog.connections
        self._catalog = catalog
        self._indexes = indexes
        self._change = change
        self._switching = threading.Lock()
        self._prepared: dict[int, LiveIndex] = {}

    def all(self, collection: str) -> list[EmbeddingSet]:
        """All sets, see `EmbeddingSets.all`."""
        with self._connections.read() as connection:
            row = require_collection(connection, collection)
            found = connection.execute(
                "SELECT id FROM embeddings WHERE collection = ? ORDER BY id", (row.id,)
            ).fetchall()
            return [_described(connection, row, embedding) for (embedding,) in found]

    def begin(
        self,
        collection: str,
        spec: ModelSpec,
        *,
        provenance: Mapping[str, str],
        recipe: Recipe | None = None,
    ) -> EmbeddingSet:
        """Makes an empty set or finds it, see `EmbeddingSets.begin`."""
        with self._connections.write() as connection:
            row = require_collection(connection, collection)
            embedding = _find(connection, row, spec)
            if embedding is None:
                made = connection.execute(
                    "INSERT INTO embeddings (collection, spec, provenance) VALUES (?, ?, ?)",
                    (row.id, spec.to_json(), json.dumps(dict(provenance))),
                )
                assert made.lastrowid is not None
                embedding = made.lastrowid
            if recipe is not None:
                connection.execute(
                    "UPDATE embeddings SET recipe = ? WHERE id = ?",
                    (json.dumps(dict(recipe)), embedding),
                )
            return _described(connection, row, embedding)

    def missing(
        self, collection: str, spec: ModelSpec, *, limit: int, cursor: str | None = None
    ) -> Missing:
        """Pictures without a vector, see `EmbeddingSets.missing`."""
        after = decode_cursor(cursor)
        if limit < 1:
            raise InvalidParameterError("limit must be at least 1")
        sql = (
            f"SELECT seq, {RECORD_COLUMNS} FROM images WHERE collection = ? AND seq > ?"
            " AND NOT EXISTS (SELECT 1 FROM vectors WHERE embedding = ? AND seq = images.seq)"
            " ORDER BY seq LIMIT ?"
        )
        with self._connections.read() as connection:
            row = _row(connection, collection, spec)
            rows = connection.execute(sql, (row.id, after, row.embedding, limit)).fetchall()
        records = [record(collection, rest) for _, *rest in rows]
        return Missing(records, encode_cursor(rows[-1][0] if rows else after))

    def vectors(
        self, collection: str, spec: ModelSpec, records: Sequence[ImageRecord]
    ) -> dict[str, NDArray[np.float32]]:
        """Vectors by id, see `EmbeddingSets.vectors`."""
        sql = (
            "SELECT id, sha256, vector FROM vectors JOIN images USING (seq)"
            f" WHERE embedding = ? AND collection = ? AND id {IN_LIST}"
        )
        wanted = {one.id: one.sha256 for one in records}
        with self._connections.read() as connection:
            row = _row(connection, collection, spec)
            found = connection.execute(sql, (row.embedding, row.id, json.dumps(list(wanted))))
            return {
                image_id: vector_rows([blob], row.spec.dim)[0]
                for image_id, sha256, blob in found
                if wanted[image_id] == sha256
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
        # Under the change lock, so that nothing comes between an index and the switch to it.
        with self._change, self._connections.write() as connection:
            row = _row(connection, collection, spec)
            held = read_images(connection, row, [one.id for one in records])
            for one, vector in zip(records, rows, strict=True):
                seq, stored = held.get(one.id, (0, None))
                if stored is not None and stored.sha256 == one.sha256:
                    values = (row.embedding, seq, vector_blob(vector))
                    sql = "INSERT OR IGNORE INTO vectors VALUES (?, ?, ?)"
                    added += connection.execute(sql, values).rowcount
        return added

    @contextmanager
    def prepared(self, collection: str, spec: ModelSpec) -> Iterator[None]:
        """Builds the set's index before the switch, see `EmbeddingSets.prepared`."""
        row = self._row(collection, spec)
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
            row = self._row(collection, spec)
            with self._connections.read() as connection:
                if not _is_complete(connection, row):
                    return False
            if self._active(collection) == row.embedding:
                return True
            built = self._prepared.get(row.embedding) or self._indexes.build(row)
            with self._change:
                built = self._indexes.synced(built)
                before = self._switch(row)
                if before is None:
                    return False
                self._prepared.pop(row.embedding, None)
                self._indexes.switch(before, built)
            return True

    def discard(self, collection: str, spec: ModelSpec) -> None:
        """Removes a set, see `EmbeddingSets.discard`.

        It does so in many small transactions, which keep the write-ahead log small. Whatever a
        crash leaves of the set is an incomplete set, which can be discarded again.
        """
        some = (
            "DELETE FROM vectors WHERE rowid IN"
            " (SELECT rowid FROM vectors WHERE embedding = ? LIMIT ?)"
        )
        row, gone = self._row(collection, spec), _REMOVED_TOGETHER
        while gone:
            with self._connections.write() as connection:
                if row.embedding == require_collection(connection, collection).embedding:
                    raise active_set(collection)
                values = (row.embedding, _REMOVED_TOGETHER)
                gone = connection.execute(some, values).rowcount
                if not gone:
                    connection.execute("DELETE FROM embeddings WHERE id = ?", (row.embedding,))
            self._connections.give_room_back()
        with self._change:
            self._indexes.drop(row)

    def _switch(self, row: CollectionRow) -> CollectionRow | None:
        """Makes the set active where it is complete; gives what was active before, or None."""
        with self._connections.write() as connection:
            now = _row(connection, row.name, row.spec)
            if now.embedding != row.embedding or not _is_complete(connection, row):
                return None
            before = require_collection(connection, row.name)
            sql = "UPDATE collections SET embedding = ? WHERE id = ?"
            connection.execute(sql, (row.embedding, row.id))
            return before

    def _row(self, collection: str, spec: ModelSpec) -> CollectionRow:
        """The collection as it would be were this set the active one."""
        with self._connections.read() as connection:
            return _row(connection, collection, spec)

    def _active(self, collection: str) -> int:
        row = self._catalog.collection(collection)
        return row.embedding if row else 0


def _find(connection: sqlite3.Connection, row: CollectionRow, spec: ModelSpec) -> int | None:
    """The number of a collection's set under a spec; None where it has none."""
    sql = "SELECT id, spec FROM embeddings WHERE collection = ?"
    for embedding, text in connection.execute(sql, (row.id,)):
        if ModelSpec.from_json(text).digest == spec.digest:
            return int(embedding)
    return None


def _row(connection: sqlite3.Connection, name: str, spec: ModelSpec) -> CollectionRow:
    row = require_collection(connection, name)
    embedding = _find(connection, row, spec)
    if embedding is None:
        raise no_such_set(name, spec)
    sql = "SELECT spec, provenance FROM embeddings WHERE id = ?"
    text, provenance = connection.execute(sql, (embedding,)).fetchone()
    return replace(
        row,
        embedding=embedding,
        spec=ModelSpec.from_json(text),
        provenance=json.loads(provenance),
    )


def _is_complete(connection: sqlite3.Connection, row: CollectionRow) -> bool:
    # A set has vectors of this collection's pictures alone, so that equal numbers say it.
    return _count(connection, row.embedding) == _images(connection, row)


def _images(connection: sqlite3.Connection, row: CollectionRow) -> int:
    sql = "SELECT images FROM collections WHERE id = ?"
    return int(connection.execute(sql, (row.id,)).fetchone()[0])


def _count(connection: sqlite3.Connection, embedding: int) -> int:
    sql = "SELECT count(*) FROM vectors WHERE embedding = ?"
    return int(connection.execute(sql, (embedding,)).fetchone()[0])


def _described(connection: sqlite3.Connection, row: CollectionRow, embedding: int) -> EmbeddingSet:
    sql = "SELECT spec, provenance, recipe FROM embeddings WHERE id = ?"
    spec, provenance, recipe = connection.execute(sql, (embedding,)).fetchone()
    return EmbeddingSet(
        spec=ModelSpec.from_json(spec),
        provenance=json.loads(provenance),
        recipe=json.loads(recipe) if recipe else None,
        count=_count(connection, embedding),
        active=embedding == row.embedding,
    )
