"""Vector spaces of the local store: rows of `spaces`, their vectors, and the switch."""

# ruff: noqa: S608 - only constants go into the SQL texts, every value is bound

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import ConflictError, InvalidParameterError, VectorSpaceNotFoundError
from lookalike.records import ImageRecord, ModelSpec, decode_cursor, encode_cursor
from lookalike.store.base import (
    Missing,
    Recipe,
    Vectors,
    VectorSpace,
    check_vectors,
)
from lookalike.store.local.catalog import Catalog
from lookalike.store.local.index.indexes import Indexes, LiveIndex
from lookalike.store.local.rows import (
    IN_LIST,
    RECORD_COLUMNS,
    CollectionRow,
    read_images,
    record,
    require_collection,
    vector_blob,
    vector_rows,
)
from lookalike.store.sqlite import read_object, reads

_REMOVED_TOGETHER = 500


class LocalSpaces:
    """`VectorSpaces` over a catalog and its indexes."""

    def __init__(self, catalog: Catalog, indexes: Indexes, *, change: threading.RLock) -> None:
        self._connections = catalog.connections
        self._catalog = catalog
        self._indexes = indexes
        self._change = change
        self._switching = threading.Lock()
        self._prepared: dict[int, LiveIndex] = {}

    def all(self, collection: str) -> list[VectorSpace]:
        with self._connections.read() as connection:
            return _described(connection, require_collection(connection, collection))

    def begin(
        self,
        collection: str,
        spec: ModelSpec,
        *,
        provenance: Mapping[str, str],
        recipe: Recipe | None = None,
    ) -> VectorSpace:
        made = "INSERT INTO spaces (collection, spec, provenance) VALUES (?, ?, ?)"
        with self._connections.write() as connection:
            row = require_collection(connection, collection)
            if find_space(connection, row, spec) is None:
                connection.execute(made, (row.id, spec.to_json(), json.dumps(dict(provenance))))
            if recipe is not None:
                values = (json.dumps(dict(recipe)), _row(connection, collection, spec).space)
                connection.execute("UPDATE spaces SET recipe = ? WHERE id = ?", values)
            found = _described(connection, row)
            return next(one for one in found if one.spec.digest == spec.digest)

    def find(self, row: CollectionRow, spec: ModelSpec) -> CollectionRow | None:
        with self._connections.read() as connection:
            return find_space(connection, row, spec)

    def missing(
        self, collection: str, spec: ModelSpec, *, limit: int, cursor: str | None = None
    ) -> Missing:
        after = decode_cursor(cursor)
        if limit < 1:
            raise InvalidParameterError("limit must be at least 1")
        sql = (
            f"SELECT seq, {RECORD_COLUMNS} FROM images WHERE collection = ? AND seq > ?"
            " AND NOT EXISTS (SELECT 1 FROM vectors WHERE space = ? AND seq = images.seq)"
            " ORDER BY seq LIMIT ?"
        )
        with self._connections.read() as connection:
            row = _row(connection, collection, spec)
            rows = connection.execute(sql, (row.id, after, row.space, limit)).fetchall()
        records = [record(row.name, rest) for _, *rest in rows]
        return Missing(records, encode_cursor(rows[-1][0] if rows else after))

    def vectors(
        self, collection: str, spec: ModelSpec, records: Sequence[ImageRecord]
    ) -> dict[str, NDArray[np.float32]]:
        sql = (
            "SELECT id, sha256, vector FROM vectors JOIN images USING (seq)"
            f" WHERE space = ? AND collection = ? AND id {IN_LIST}"
        )
        wanted = {one.id: one.sha256 for one in records}
        with self._connections.read() as connection:
            row = _row(connection, collection, spec)
            found = connection.execute(sql, (row.space, row.id, json.dumps(list(wanted))))
            return {
                image_id: vector_rows([blob], row.spec.dim)[0]
                for image_id, sha256, blob in found
                if wanted[image_id] == sha256
            }

    def add(
        self, collection: str, spec: ModelSpec, records: Sequence[ImageRecord], vectors: Vectors
    ) -> int:
        rows = check_vectors(vectors, count=len(records), dim=spec.dim)
        added = 0
        # Under the change lock, so that nothing comes between an index and the switch to it.
        with self._change, self._connections.write() as connection:
            row = _row(connection, collection, spec)
            held = read_images(connection, row, [one.id for one in records])
            for one, vector in zip(records, rows, strict=True):
                seq, stored = held.get(one.id, (0, None))
                if stored is not None and stored.sha256 == one.sha256:
                    values = (row.space, seq, vector_blob(vector))
                    sql = "INSERT OR IGNORE INTO vectors VALUES (?, ?, ?)"
                    added += connection.execute(sql, values).rowcount
        current = self._catalog.collection(collection)
        if added and current is not None and current.space == row.space:
            with self._change:  # a repair, whose vectors the index in use does not have
                self._indexes.refresh(current)
        return added

    @contextmanager
    def prepared(self, collection: str, spec: ModelSpec) -> Iterator[None]:
        row = self._row(collection, spec)
        with self._switching:
            current = self._catalog.collection(collection)
            if current and current.space != row.space:
                self._prepared[row.space] = self._indexes.build(row)
        try:
            yield
        finally:
            with self._switching:
                self._prepared.pop(row.space, None)

    def activate(self, collection: str, spec: ModelSpec) -> bool:
        """Builds the index while changes go on, if it was not `prepared`, and then switches."""
        with self._switching:
            row = self._row(collection, spec)
            with self._connections.read() as connection:
                if not _is_complete(connection, row):
                    return False
                if require_collection(connection, collection).space == row.space:
                    return True
            built = self._prepared.get(row.space) or self._indexes.build(row)
            with self._change:
                self._indexes.sync(built)
                with self._connections.write() as connection:
                    now = _row(connection, collection, spec)
                    if now.space != row.space or not _is_complete(connection, row):
                        return False
                    before = require_collection(connection, collection)
                    sql = "UPDATE collections SET space = ? WHERE id = ?"
                    connection.execute(sql, (row.space, row.id))
                self._prepared.pop(row.space, None)
                self._indexes.switch(before, built)
            return True

    def discard(self, collection: str, spec: ModelSpec) -> None:
        """Removes the space in many small transactions, which keep the write-ahead log small.

        A crash leaves an incomplete space, which can be discarded again.
        """
        some = (
            "DELETE FROM vectors WHERE rowid IN (SELECT rowid FROM vectors WHERE space = ? LIMIT ?)"
        )
        row, gone = self._row(collection, spec), _REMOVED_TOGETHER
        while gone:
            with self._connections.write() as connection:
                if row.space == require_collection(connection, collection).space:
                    raise ConflictError(
                        f"These vectors of the collection {collection!r} are in use; re-embed it "
                        "with another model first"
                    )
                values = (row.space, _REMOVED_TOGETHER)
                gone = connection.execute(some, values).rowcount
                if not gone:
                    connection.execute("DELETE FROM spaces WHERE id = ?", (row.space,))
            self._connections.give_room_back()
        with self._change:
            self._indexes.drop(row)

    def calibration(self, collection: str, spec: ModelSpec) -> Mapping[str, Any] | None:
        with self._connections.read() as connection:
            return _calibration(connection, collection, spec)

    def calibrate(
        self, collection: str, spec: ModelSpec, content: Mapping[str, Any] | None
    ) -> None:
        with self._connections.write() as connection:
            row = _row(connection, collection, spec)
            if content is None:
                connection.execute("DELETE FROM calibrations WHERE space = ?", (row.space,))
            else:
                values = (row.space, json.dumps(dict(content), allow_nan=False))
                connection.execute("INSERT OR REPLACE INTO calibrations VALUES (?, ?)", values)

    def _row(self, collection: str, spec: ModelSpec) -> CollectionRow:
        with self._connections.read() as connection:
            return _row(connection, collection, spec)


@reads("catalog.db")
def find_space(
    connection: sqlite3.Connection, row: CollectionRow, spec: ModelSpec
) -> CollectionRow | None:
    """The collection as it would be if this space were active; None if it has no such space."""
    sql = "SELECT id, spec, provenance FROM spaces WHERE collection = ?"
    for space, text, provenance in connection.execute(sql, (row.id,)):
        held = ModelSpec.from_json(text)
        if held.digest == spec.digest:
            return replace(row, space=space, spec=held, provenance=read_object(provenance))
    return None


@reads("catalog.db")
def _calibration(
    connection: sqlite3.Connection, name: str, spec: ModelSpec
) -> dict[str, Any] | None:
    # In one statement, and without the collection's own row: every search of a picture asks.
    sql = (
        "SELECT spec, content FROM spaces JOIN calibrations ON space = spaces.id"
        " WHERE collection = (SELECT id FROM collections WHERE name = ?"
        " UNION ALL SELECT collection FROM aliases WHERE name = ?)"
    )
    for text, content in connection.execute(sql, (name, name)):
        if ModelSpec.from_json(text).digest == spec.digest:
            return read_object(content)
    return None


def _row(connection: sqlite3.Connection, name: str, spec: ModelSpec) -> CollectionRow:
    row = find_space(connection, require_collection(connection, name), spec)
    if row is None:
        raise VectorSpaceNotFoundError(
            f"The collection {name!r} has no vectors under the spec {spec.digest} "
            f"({spec.model}); re-embed it to make them"
        )
    return row


@reads("catalog.db")
def _is_complete(connection: sqlite3.Connection, row: CollectionRow) -> bool:
    # A space has vectors of this collection's pictures alone, so that equal numbers say it.
    sql = (
        "SELECT images = (SELECT count(*) FROM vectors WHERE space = ?)"
        " FROM collections WHERE id = ?"
    )
    return bool(connection.execute(sql, (row.space, row.id)).fetchone()[0])


@reads("catalog.db")
def _described(connection: sqlite3.Connection, row: CollectionRow) -> list[VectorSpace]:
    sql = (
        "SELECT id, spec, provenance, recipe,"
        " (SELECT count(*) FROM vectors WHERE space = spaces.id)"
        " FROM spaces WHERE collection = ? ORDER BY id"
    )
    return [
        VectorSpace(
            spec=ModelSpec.from_json(spec),
            provenance=read_object(provenance),
            recipe=read_object(recipe) if recipe else None,
            count=count,
            active=space == row.space,
        )
        for space, spec, provenance, recipe, count in connection.execute(sql, (row.id,))
    ]
