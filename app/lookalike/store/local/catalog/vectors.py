"""The active vectors of collections."""

# ruff: noqa: S608 - only constants go into the SQL texts, every value is bound

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from lookalike.store.local.catalog.connections import Connections
from lookalike.store.local.catalog.rows import (
    IN_LIST,
    CollectionRow,
    image_not_found,
    read_collection,
    seq_array,
    vector_rows,
)
from lookalike.store.vectors import Seqs, Vectors

_SCANNED_BYTES = 8 * 2**20


class CatalogVectors:
    """What is read of the vectors; they are written with their rows.

    Args:
        connections: To the catalog.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def of(self, name: str, image_id: str) -> NDArray[np.float32]:
        """A picture's active vector, (dim,) float32. Raises `ImageNotFoundError`."""
        sql = (
            "SELECT vector FROM vectors JOIN images USING (seq)"
            " WHERE embedding = ? AND collection = ? AND id = ?"
        )
        with self._connections.read() as connection:
            row = read_collection(connection, name)
            key = (row.embedding, row.id, image_id) if row else (0, 0, image_id)
            found = connection.execute(sql, key).fetchone()
            if row is None or found is None:
                raise image_not_found(name, image_id)
            vector: NDArray[np.float32] = vector_rows([found[0]], row.spec.dim)[0]
            return vector

    def embedded(self, row: CollectionRow) -> Seqs:
        """The seqs of all active vectors of a collection, ascending."""
        sql = "SELECT seq FROM vectors WHERE embedding = ? ORDER BY seq"
        with self._connections.read() as connection:
            return seq_array(connection.execute(sql, (row.embedding,)))

    def at(self, row: CollectionRow, seqs: Iterable[int]) -> tuple[Seqs, Vectors]:
        """Those of the seqs that have an active vector, ascending, and (N, dim) float32."""
        sql = f"SELECT seq, vector FROM vectors WHERE embedding = ? AND seq {IN_LIST} ORDER BY seq"
        return self._read(sql, (row.embedding, json.dumps(list(seqs))), row)

    def after(
        self, row: CollectionRow, seq: int, *, block_bytes: int = _SCANNED_BYTES
    ) -> Iterator[tuple[Seqs, Vectors]]:
        """All active vectors behind a seq: ascending seqs and (N, dim) float32, in short reads."""
        sql = "SELECT seq, vector FROM vectors WHERE embedding = ? AND seq > ? ORDER BY seq LIMIT ?"
        limit = max(1, block_bytes // (4 * row.spec.dim))
        while True:
            seqs, vectors = self._read(sql, (row.embedding, seq, limit), row)
            if not len(seqs):
                return
            yield seqs, vectors
            seq = int(seqs[-1])

    def _read(
        self, sql: str, values: tuple[int | str, ...], row: CollectionRow
    ) -> tuple[Seqs, Vectors]:
        with self._connections.read() as connection:
            found = connection.execute(sql, values).fetchall()
        seqs = seq_array((seq,) for seq, _ in found)
        return seqs, vector_rows([blob for _, blob in found], row.spec.dim)
