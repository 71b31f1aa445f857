"""Embedding sets in the catalog: rows of `embeddings`, and their vectors."""

# ruff: noqa: S608 - only constants go into the SQL texts, every value is bound

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import CollectionNotFoundError
from lookalike.records import ImageRecord, ModelSpec
from lookalike.store.embedding_sets import EmbeddingSet, Recipe, active_set, no_such_set
from lookalike.store.local.catalog.connections import Connections
from lookalike.store.local.catalog.rows import (
    IN_LIST,
    RECORD_COLUMNS,
    CollectionRow,
    count_images,
    read_collection,
    read_images,
    record,
    vector_blob,
    vector_rows,
)
from lookalike.store.vectors import Vectors

_REMOVED_TOGETHER = 500


class CatalogSets:
    """What `EmbeddingSets` needs of the catalog. Raises as that does."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def all(self, name: str) -> list[EmbeddingSet]:
        """All sets, in the order they were made."""
        with self._connections.read() as connection:
            row = _collection(connection, name)
            found = connection.execute(
                "SELECT id FROM embeddings WHERE collection = ? ORDER BY id", (row.id,)
            ).fetchall()
            return [_described(connection, row, embedding) for (embedding,) in found]

    def begin(
        self,
        name: str,
        spec: ModelSpec,
        *,
        provenance: Mapping[str, str],
        recipe: Recipe | None,
    ) -> EmbeddingSet:
        """Makes an empty set, or finds the one that is there."""
        with self._connections.write() as connection:
            row = _collection(connection, name)
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

    def row(self, name: str, spec: ModelSpec) -> CollectionRow:
        """The collection as it would be were this set the active one."""
        with self._connections.read() as connection:
            return _row(connection, name, spec)

    def missing(
        self, name: str, spec: ModelSpec, *, after: int, limit: int
    ) -> list[tuple[int, ImageRecord]]:
        """Up to `limit` rows behind the seq `after` without a vector in the set, by seq."""
        sql = (
            f"SELECT seq, {RECORD_COLUMNS} FROM images WHERE collection = ? AND seq > ?"
            " AND NOT EXISTS (SELECT 1 FROM vectors WHERE embedding = ? AND seq = images.seq)"
            " ORDER BY seq LIMIT ?"
        )
        with self._connections.read() as connection:
            row = _row(connection, name, spec)
            rows = connection.execute(sql, (row.id, after, row.embedding, limit))
            return [(seq, record(name, rest)) for seq, *rest in rows]

    def vectors(
        self, name: str, spec: ModelSpec, records: Sequence[ImageRecord]
    ) -> dict[str, NDArray[np.float32]]:
        """Vectors of the set by id, of those records whose content is still the same."""
        sql = (
            "SELECT id, sha256, vector FROM vectors JOIN images USING (seq)"
            f" WHERE embedding = ? AND collection = ? AND id {IN_LIST}"
        )
        wanted = {one.id: one.sha256 for one in records}
        with self._connections.read() as connection:
            row = _row(connection, name, spec)
            found = connection.execute(sql, (row.embedding, row.id, json.dumps(list(wanted))))
            return {
                image_id: vector_rows([blob], row.spec.dim)[0]
                for image_id, sha256, blob in found
                if wanted[image_id] == sha256
            }

    def add(
        self, name: str, spec: ModelSpec, records: Sequence[ImageRecord], vectors: Vectors
    ) -> int:
        """Adds vectors in one transaction; gives how many."""
        added = 0
        with self._connections.write() as connection:
            row = _row(connection, name, spec)
            held = read_images(connection, row, [one.id for one in records])
            for one, vector in zip(records, vectors, strict=True):
                seq, stored = held.get(one.id, (0, None))
                if stored is not None and stored.sha256 == one.sha256:
                    values = (row.embedding, seq, vector_blob(vector))
                    sql = "INSERT OR IGNORE INTO vectors VALUES (?, ?, ?)"
                    added += connection.execute(sql, values).rowcount
        return added

    def complete(self, row: CollectionRow) -> bool:
        """Whether every picture has a vector in the set."""
        with self._connections.read() as connection:
            return _complete(connection, row)

    def activate(self, row: CollectionRow) -> CollectionRow | None:
        """Makes the set active where it is complete; gives what was active before, or None."""
        with self._connections.write() as connection:
            before = _row(connection, row.name, row.spec)
            if before.embedding != row.embedding or not _complete(connection, row):
                return None
            before = _collection(connection, row.name)
            sql = "UPDATE collections SET embedding = ? WHERE id = ?"
            connection.execute(sql, (row.embedding, row.id))
            return before

    def discard(self, name: str, spec: ModelSpec) -> None:
        """Removes a set, in many small transactions that keep the WAL small."""
        some = (
            "DELETE FROM vectors WHERE rowid IN"
            " (SELECT rowid FROM vectors WHERE embedding = ? LIMIT ?)"
        )
        gone = _REMOVED_TOGETHER
        while gone:
            with self._connections.write() as connection:
                row = _row(connection, name, spec)
                if row.embedding == _collection(connection, name).embedding:
                    raise active_set(name)
                values = (row.embedding, _REMOVED_TOGETHER)
                gone = connection.execute(some, values).rowcount
                if not gone:
                    connection.execute("DELETE FROM embeddings WHERE id = ?", (row.embedding,))
            self._connections.give_room_back()


def _collection(connection: sqlite3.Connection, name: str) -> CollectionRow:
    row = read_collection(connection, name)
    if row is None:
        raise CollectionNotFoundError(f"There is no collection {name!r}")
    return row


def _find(connection: sqlite3.Connection, row: CollectionRow, spec: ModelSpec) -> int | None:
    """The number of a collection's set under a spec; None where it has none."""
    sql = "SELECT id, spec FROM embeddings WHERE collection = ?"
    for embedding, text in connection.execute(sql, (row.id,)):
        if ModelSpec.from_json(text).digest == spec.digest:
            return int(embedding)
    return None


def _row(connection: sqlite3.Connection, name: str, spec: ModelSpec) -> CollectionRow:
    row = _collection(connection, name)
    embedding = _find(connection, row, spec)
    if embedding is None:
        raise no_such_set(name, spec)
    described = _described(connection, row, embedding)
    return replace(
        row,
        embedding=embedding,
        spec=described.spec,
        provenance=described.provenance,
    )


def _complete(connection: sqlite3.Connection, row: CollectionRow) -> bool:
    # A set has vectors of this collection's pictures alone, so that equal numbers say it.
    return _count(connection, row.embedding) == count_images(connection, row)


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
