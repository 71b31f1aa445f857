"""Judgements of the local store: rows of the catalog, which go with the pictures they are about."""

# ruff: noqa: S608 - only constants go into the SQL texts, every value is bound

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Any

from lookalike.errors import (
    InvalidParameterError,
    JudgementNotFoundError,
    LookalikeError,
    VectorSpaceNotFoundError,
)
from lookalike.records import ModelSpec, decode_cursor, encode_cursor, utc_now
from lookalike.store.base import check_vectors, image_not_found
from lookalike.store.judgements import Judgement, NewJudgement
from lookalike.store.local.catalog import Catalog
from lookalike.store.local.rows import (
    IN_LIST,
    CollectionRow,
    read_collection,
    require_collection,
    vector_blob,
    vector_rows,
)
from lookalike.store.local.spaces import find_space
from lookalike.store.sqlite import reads

_JUDGEMENTS = (
    "SELECT judgement, judgements.id, queries.id, query_sha256, matches.id, matches.sha256,"
    " is_right, judged_at, judgements.space, vector FROM judgements"
    " LEFT JOIN images AS queries ON queries.seq = query_seq"
    " JOIN images AS matches ON matches.seq = match_seq"
)
_PUT = (
    "INSERT INTO judgements (collection, id, query_seq, query_sha256, match_seq, is_right,"
    " judged_at, space, vector) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
    " ON CONFLICT (collection, id) DO UPDATE SET is_right = excluded.is_right,"
    " judged_at = excluded.judged_at, space = excluded.space, vector = excluded.vector"
)


class LocalJudgements:
    """`Judgements` in a catalog."""

    def __init__(self, catalog: Catalog) -> None:
        self._connections = catalog.connections

    def put(
        self, collection: str, given: Sequence[NewJudgement]
    ) -> list[tuple[Judgement, bool] | LookalikeError]:
        with self._connections.write() as connection:
            row = require_collection(connection, collection)
            return [_put(connection, row, one) for one in given]

    def page(
        self,
        collection: str,
        *,
        cursor: str | None = None,
        limit: int = 100,
        vectors_of: ModelSpec | None = None,
    ) -> tuple[list[Judgement], str | None]:
        after = decode_cursor(cursor)
        if limit < 1:
            raise InvalidParameterError("limit must be at least 1")
        sql = (
            f"{_JUDGEMENTS} WHERE judgements.collection = ? AND judgement > ?"
            " ORDER BY judgement LIMIT ?"
        )
        with self._connections.read() as connection:
            row = require_collection(connection, collection)
            space = None if vectors_of is None else find_space(connection, row, vectors_of)
            rows = connection.execute(sql, (row.id, after, limit + 1)).fetchall()
        found = [_read(one, space) for one in rows[:limit]]
        return found, encode_cursor(rows[limit - 1][0]) if len(rows) > limit else None

    def count(self, collection: str) -> int:
        sql = "SELECT count(*) FROM judgements WHERE collection = ?"
        with self._connections.read() as connection:
            row = read_collection(connection, collection)
            return connection.execute(sql, (row.id,)).fetchone()[0] if row else 0

    def delete(self, collection: str, judgement_id: str) -> None:
        sql = "DELETE FROM judgements WHERE collection = ? AND id = ?"
        with self._connections.write() as connection:
            row = require_collection(connection, collection)
            if not connection.execute(sql, (row.id, judgement_id)).rowcount:
                raise JudgementNotFoundError(
                    f"There is no judgement {judgement_id!r} in the collection {collection!r}"
                )


def _put(
    connection: sqlite3.Connection, row: CollectionRow, given: NewJudgement
) -> tuple[Judgement, bool] | LookalikeError:
    """Writes one judgement, unless the same is there already."""
    wanted = [one for one in (given.query, given.match) if one is not None]
    sql = f"SELECT id, seq, sha256 FROM images WHERE collection = ? AND id {IN_LIST}"
    seqs = {
        image_id: (seq, sha256)
        for image_id, seq, sha256 in connection.execute(sql, (row.id, json.dumps(wanted)))
    }
    if lacking := [one for one in wanted if one not in seqs]:
        return image_not_found(row.name, lacking[0])
    query, sha256 = (None, given.sha256) if given.query is None else seqs[given.query]
    space = blob = None
    if given.spec is not None and given.vector is not None:
        found = find_space(connection, row, given.spec)
        if found is None:
            return VectorSpaceNotFoundError(
                f"The collection {row.name!r} has no vectors under the spec {given.spec.digest}"
            )
        (vector,) = check_vectors(given.vector[None, :], count=1, dim=given.spec.dim)
        space, blob = found.space, vector_blob(vector)
    before = _find(connection, row, given.id)
    same = before is not None and before[0] == given.right and (blob is None or before[1] == space)
    if not same:
        facts = (given.right, given.judged_at or utc_now(), space, blob)
        connection.execute(_PUT, (row.id, given.id, query, sha256, seqs[given.match][0], *facts))
    sql = f"{_JUDGEMENTS} WHERE judgements.collection = ? AND judgements.id = ?"
    now = _read(connection.execute(sql, (row.id, given.id)).fetchone(), None)
    return now, before is None or before[0] != given.right


def _find(
    connection: sqlite3.Connection, row: CollectionRow, judgement_id: str
) -> tuple[bool, int | None] | None:
    """What a pair was judged before, and the space of its query's vector."""
    sql = "SELECT is_right, space FROM judgements WHERE collection = ? AND id = ?"
    found = connection.execute(sql, (row.id, judgement_id)).fetchone()
    return None if found is None else (bool(found[0]), found[1])


@reads("catalog.db")
def _read(row: tuple[Any, ...], space: CollectionRow | None) -> Judgement:
    _, judgement_id, query, query_sha256, match, match_sha256, right, at, held_in, blob = row
    texts = (judgement_id, query or "", query_sha256, match, match_sha256, at)
    if not all(type(text) is str for text in texts) or right not in {0, 1}:
        raise ValueError("a row of judgements")
    vector = None
    if space is not None and blob is not None and held_in == space.space:
        (vector,) = vector_rows([blob], space.spec.dim)
    return Judgement(
        id=judgement_id,
        query=query,
        query_sha256=query_sha256,
        match=match,
        match_sha256=match_sha256,
        right=bool(right),
        judged_at=at,
        vector=vector,
    )
