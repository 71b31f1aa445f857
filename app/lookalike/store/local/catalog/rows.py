"""Rows of the catalog as objects, and back."""

# ruff: noqa: S608 - only constants go into the SQL texts, every value is bound

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lookalike.errors import DataFolderError, ImageNotFoundError
from lookalike.records import ImageRecord, ModelSpec
from lookalike.store.metadata import canonical_json
from lookalike.store.vectors import Seqs, Vectors

IN_LIST = "IN (SELECT value FROM json_each(?))"
"""Any number of values in one question mark: a JSON list."""

COLLECTIONS = (
    "SELECT collections.id, name, created_at, embedding, spec, provenance FROM collections"
    " JOIN embeddings ON embeddings.id = embedding WHERE name IS NOT NULL"
)
"""What `collection_row` reads, in its order."""

RECORD_COLUMNS = (
    "images.id, sha256, filename, media_type, width, height, bytes, "
    "images.created_at, updated_at, source, metadata"
)
"""What `record` reads, in its order."""


@dataclass(frozen=True, slots=True)
class CollectionRow:
    """A collection and its active embedding set.

    Attributes:
        id: Its number, never used again.
        name: Its name.
        created_at: ISO 8601 in UTC.
        embedding: The active embedding set's number, never used again.
        spec: What made the active vectors.
        provenance: Recorded beside the spec.
    """

    id: int
    name: str
    created_at: str
    embedding: int
    spec: ModelSpec
    provenance: Mapping[str, str]


def collection_row(row: tuple[Any, ...]) -> CollectionRow:
    """Reads id, name, created_at, embedding, spec, provenance."""
    number, name, created_at, embedding, spec, provenance = row
    return CollectionRow(
        number, name, created_at, embedding, ModelSpec.from_json(spec), json.loads(provenance)
    )


def read_collection(connection: sqlite3.Connection, name: str) -> CollectionRow | None:
    """One collection; None where there is none of this name."""
    found = connection.execute(f"{COLLECTIONS} AND name = ?", (name,)).fetchone()
    return collection_row(found) if found else None


def read_images(
    connection: sqlite3.Connection, row: CollectionRow, ids: Iterable[str]
) -> dict[str, tuple[int, ImageRecord]]:
    """Those of the ids that exist: id -> (seq, row)."""
    sql = f"SELECT seq, {RECORD_COLUMNS} FROM images WHERE collection = ? AND id {IN_LIST}"
    rows = connection.execute(sql, (row.id, json.dumps(list(ids))))
    return {rest[0]: (seq, record(row.name, rest)) for seq, *rest in rows}


def count_images(connection: sqlite3.Connection, row: CollectionRow) -> int:
    """Pictures in a collection."""
    sql = "SELECT images FROM collections WHERE id = ?"
    return int(connection.execute(sql, (row.id,)).fetchone()[0])


def last_seq(connection: sqlite3.Connection) -> int:
    """The highest seq ever given."""
    found = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'images'").fetchone()
    return int(found[0]) if found else 0


def record(collection: str, row: Sequence[Any]) -> ImageRecord:
    """Reads `RECORD_COLUMNS`."""
    return ImageRecord(
        collection=collection,
        id=row[0],
        sha256=row[1],
        filename=row[2],
        media_type=row[3],
        width=row[4],
        height=row[5],
        bytes=row[6],
        created_at=row[7],
        updated_at=row[8],
        source=row[9],
        metadata=json.loads(row[10]),
    )


def insert_image(connection: sqlite3.Connection, collection: int, row: ImageRecord) -> int:
    """Adds a row and gives its seq, one never used before."""
    cursor = connection.execute(
        "INSERT INTO images (collection, id, sha256, filename, media_type, width, height, bytes,"
        " created_at, updated_at, source, metadata) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            collection,
            row.id,
            row.sha256,
            row.filename,
            row.media_type,
            row.width,
            row.height,
            row.bytes,
            row.created_at,
            row.updated_at,
            row.source,
            canonical_json(row.metadata),
        ),
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def seq_array(rows: Iterable[tuple[int]]) -> Seqs:
    """One column of seqs as (N,) int64."""
    return np.fromiter((seq for (seq,) in rows), dtype=np.int64)


def vector_blob(vector: Vectors) -> bytes:
    """One (dim,) float32 vector as stored: little-endian float32."""
    return vector.astype("<f4").tobytes()


def vector_rows(blobs: list[bytes], dim: int) -> Vectors:
    """Stored vectors as (N, dim) float32. Raises `DataFolderError` where one is damaged."""
    if any(len(blob) != 4 * dim for blob in blobs):
        raise DataFolderError(
            "A stored vector has the wrong length: the catalog is damaged; restore it from a backup"
        )
    return np.frombuffer(b"".join(blobs), dtype="<f4").astype(np.float32).reshape(-1, dim)


def image_not_found(name: str, image_id: str) -> ImageNotFoundError:
    """The error for an id that a collection does not have."""
    return ImageNotFoundError(f"No picture {image_id!r} in the collection {name!r}")
