"""One put inside one transaction of the catalog."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lookalike.records import ModelSpec, NewImage, OnConflict, PutOutcome, PutStatus
from lookalike.store.base import require_same_spec, utc_now
from lookalike.store.local.catalog.fields import register_fields
from lookalike.store.local.catalog.rows import (
    CollectionRow,
    insert_image,
    read_collection,
    read_images,
    vector_blob,
)
from lookalike.store.metadata import canonical_json
from lookalike.store.outcomes import put_outcome
from lookalike.store.vectors import Vectors


@dataclass(slots=True)
class Written:
    """What a put changed.

    Attributes:
        row: The collection as it is now.
        new: Whether the put made it.
        outcomes: One for each picture, in order.
        added: seq -> position in the call, of the vectors that are there afterwards; ascending.
        removed: Seqs that were there before and are gone.
    """

    row: CollectionRow
    new: bool
    outcomes: list[PutOutcome] = field(default_factory=list)
    added: dict[int, int] = field(default_factory=dict)
    removed: list[int] = field(default_factory=list)


def put_images(
    connection: sqlite3.Connection,
    name: str,
    images: Sequence[NewImage],
    vectors: Vectors,
    *,
    spec: ModelSpec,
    provenance: Mapping[str, str],
    on_conflict: OnConflict,
    fields: Sequence[str] = (),
) -> Written:
    """Writes pictures in order, an id that is given twice as two calls would.

    Args:
        connection: In a transaction that writes.
        name: The collection, made where it does not exist.
        images: N rows.
        vectors: (N, dim) float32.
        spec: What made the vectors.
        provenance: Recorded where the collection is made.
        on_conflict: What to do with ids that exist.
        fields: Metadata fields that are indexed where the collection is made.

    Raises:
        SpecMismatchError: The collection's vectors were made by something else.
    """
    now = utc_now()
    row = read_collection(connection, name)
    if row:
        require_same_spec(name, row.spec, spec)
    written = Written(row or _make(connection, name, spec, provenance, now), new=row is None)
    if written.new:
        register_fields(connection, written.row.id, fields, empty=True)
    held = read_images(connection, written.row, [image.id for image in images])
    for position, image in enumerate(images):
        seq, existing = held.get(image.id, (0, None))
        outcome = put_outcome(name, existing, image, on_conflict=on_conflict, now=now)
        written.outcomes.append(outcome)
        if outcome.status in {PutStatus.CREATED, PutStatus.REPLACED}:
            if seq:
                _remove(connection, written, seq)
            seq = insert_image(connection, written.row.id, outcome.record)
            values = (written.row.embedding, seq, vector_blob(vectors[position]))
            connection.execute("INSERT INTO vectors VALUES (?, ?, ?)", values)
            written.added[seq] = position
        elif outcome.status is PutStatus.UPDATED:
            connection.execute(
                "UPDATE images SET metadata = ?, updated_at = ? WHERE seq = ?",
                (canonical_json(outcome.record.metadata), now, seq),
            )
        held[image.id] = (seq, outcome.record)
    return written


def _remove(connection: sqlite3.Connection, written: Written, seq: int) -> None:
    connection.execute("DELETE FROM images WHERE seq = ?", (seq,))
    if written.added.pop(seq, None) is None:
        written.removed.append(seq)


def _make(
    connection: sqlite3.Connection,
    name: str,
    spec: ModelSpec,
    provenance: Mapping[str, str],
    now: str,
) -> CollectionRow:
    made = "INSERT INTO collections (name, created_at) VALUES (?, ?)"
    number = connection.execute(made, (name, now)).lastrowid
    made = "INSERT INTO embeddings (collection, spec, provenance) VALUES (?, ?, ?)"
    values = (number, spec.to_json(), json.dumps(dict(provenance)))
    embedding = connection.execute(made, values).lastrowid
    connection.execute("UPDATE collections SET embedding = ? WHERE id = ?", (embedding, number))
    row = read_collection(connection, name)
    assert row is not None
    return row
