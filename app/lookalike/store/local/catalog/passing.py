"""Which rows pass a filter: by the index of fields where it helps, row by row otherwise."""

# ruff: noqa: S608 - only constants go into the SQL texts, every value is bound

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lookalike.records import ImageRecord
from lookalike.store.filters import Condition, Filter
from lookalike.store.local.catalog.field_postings import count_postings, read_postings
from lookalike.store.local.catalog.field_spans import Lookup, lookups
from lookalike.store.local.catalog.fields import complete_fields
from lookalike.store.local.catalog.filters import filter_sql
from lookalike.store.local.catalog.rows import (
    IN_LIST,
    RECORD_COLUMNS,
    CollectionRow,
    count_images,
    last_seq,
    record,
    seq_array,
)
from lookalike.store.vectors import Seqs

_FIRST_BOUND = 4096  # rows of the field index that are read without a second thought
_NEXT_BOUND = 8  # how many times more at the next attempt
_CHECKED = 16  # rows of the field index that are read in the time that one picture is looked at
_MOST = 0.75  # of a collection: as many candidates are slower than a walk over all
_WALKED = 16  # rows of one stretch for each that a page holds
_MOST_WALKED = 16_384
_FEW = 4  # a stretch that finds no more than one in so many of what a page holds found few
_TOGETHER = 4096

Rows = list[tuple[int, ImageRecord]]


@dataclass(frozen=True, slots=True)
class Passing:
    """Which rows of a collection pass a filter.

    Attributes:
        seqs: Theirs, ascending: (N,) int64.
        upto: The highest seq that had been given.
    """

    seqs: Seqs
    upto: int

    def without(self, seqs: Iterable[int]) -> Passing:
        """The same but for some rows."""
        gone = np.array(sorted(seqs), dtype=np.int64)
        return Passing(np.setdiff1d(self.seqs, gone, assume_unique=True), self.upto)


def passing(
    connection: sqlite3.Connection, row: CollectionRow, where: Filter, before: Passing | None
) -> Passing:
    """Which rows pass now; those that are known to have passed are only looked for."""
    upto = last_seq(connection)
    if before is None:
        return Passing(passing_seqs(connection, row, where), upto)
    sql = "SELECT seq FROM vectors WHERE embedding = ? AND seq <= ? ORDER BY seq"
    held = seq_array(connection.execute(sql, (row.embedding, before.upto)))
    still = before.seqs[np.isin(before.seqs, held, assume_unique=True)]
    return Passing(
        np.concatenate([still, passing_seqs(connection, row, where, after=before.upto)]), upto
    )


def passing_seqs(
    connection: sqlite3.Connection, row: CollectionRow, where: Filter, *, after: int = 0
) -> Seqs:
    """The seqs of all rows of a collection behind `after` that pass, ascending: (N,) int64."""
    found, left = _candidates(connection, row, where)
    if found is None:
        passes, values = filter_sql(where)
        sql = f"SELECT seq FROM images WHERE collection = ? AND seq > ? AND {passes} ORDER BY seq"
        return seq_array(connection.execute(sql, (row.id, after, *values)))
    found = found[found > after]
    if not left:
        return found
    passes, values = filter_sql(Filter(tuple(left)))
    sql = f"SELECT seq FROM images WHERE seq {IN_LIST} AND {passes} ORDER BY seq"
    parts = [
        seq_array(connection.execute(sql, (some, *values))) for some in _groups(found, _TOGETHER)
    ]
    return np.concatenate(parts) if parts else found


def read_page(
    connection: sqlite3.Connection, row: CollectionRow, where: Filter, *, after: int, limit: int
) -> Rows:
    """Up to `limit` rows behind the seq `after` that pass, by seq.

    A filter that many rows pass fills a page within a short walk. The index, whose cost is that of
    all rows that pass, is asked where a stretch of the walk finds few.
    """
    fields = complete_fields(connection, row.id) if where.conditions else {}
    if not lookups(where, fields)[0]:
        return _walk(connection, row, where, after=after, until=None, limit=limit)
    rows: Rows = []
    few = False
    while not few:
        until = _seq_behind(connection, row, after, min(_WALKED * limit, _MOST_WALKED))
        more = _walk(connection, row, where, after=after, until=until, limit=limit - len(rows))
        rows += more
        if until is None or len(rows) == limit:
            return rows
        after, few = until, _FEW * len(more) < limit
    return rows + _look_up(connection, row, where, after=after, limit=limit - len(rows))


def _look_up(
    connection: sqlite3.Connection, row: CollectionRow, where: Filter, *, after: int, limit: int
) -> Rows:
    """The same by the index."""
    found, left = _candidates(connection, row, where)
    if found is None:
        return _walk(connection, row, where, after=after, until=None, limit=limit)
    passes, values = filter_sql(Filter(tuple(left)))
    sql = (
        f"SELECT seq, {RECORD_COLUMNS} FROM images"
        f" WHERE seq {IN_LIST} AND {passes} ORDER BY seq LIMIT ?"
    )
    rows: Rows = []
    for some in _groups(found[found > after], _TOGETHER if left else limit):
        more = connection.execute(sql, (some, *values, limit - len(rows)))
        rows += [(seq, record(row.name, rest)) for seq, *rest in more]
        if len(rows) == limit:
            break
    return rows


def _walk(
    connection: sqlite3.Connection,
    row: CollectionRow,
    where: Filter,
    *,
    after: int,
    until: int | None,
    limit: int,
) -> Rows:
    passes, values = filter_sql(where)
    sql = (
        f"SELECT seq, {RECORD_COLUMNS} FROM images"
        f" WHERE collection = ? AND seq > ? AND seq <= ? AND {passes} ORDER BY seq LIMIT ?"
    )
    last = 2**63 - 1 if until is None else until
    rows = connection.execute(sql, (row.id, after, last, *values, limit))
    return [(seq, record(row.name, rest)) for seq, *rest in rows]


def _seq_behind(
    connection: sqlite3.Connection, row: CollectionRow, after: int, count: int
) -> int | None:
    """The seq of the row `count` rows behind another; None where there are not as many."""
    sql = "SELECT seq FROM images WHERE collection = ? AND seq > ? ORDER BY seq LIMIT 1 OFFSET ?"
    found = connection.execute(sql, (row.id, after, count - 1)).fetchone()
    return found[0] if found else None


def _candidates(
    connection: sqlite3.Connection, row: CollectionRow, where: Filter
) -> tuple[Seqs | None, list[Condition]]:
    """Rows among which are all that pass, ascending, and what must still be asked of them.

    None where the index does not help.
    """
    asked, left = lookups(where, complete_fields(connection, row.id) if where.conditions else {})
    if not asked:
        return None, left
    found, unread = _read(connection, asked)
    left += [
        condition for one in asked if one in unread or not one.exact for condition in one.conditions
    ]
    if left and len(found) > _MOST * count_images(connection, row):
        return None, left
    return found, left


def _read(connection: sqlite3.Connection, asked: Sequence[Lookup]) -> tuple[Seqs, list[Lookup]]:
    """What is in all lookups, the cheapest first, and those not worth reading for what is left."""
    found: Seqs | None = None
    waiting, bound = list(asked), _FIRST_BOUND
    while waiting:
        for one in tuple(waiting):
            last = found is None and len(waiting) == 1
            if last or count_postings(connection, one, bound) < bound:
                seqs = read_postings(connection, one)
                found = seqs if found is None else found[np.isin(found, seqs, assume_unique=True)]
                waiting.remove(one)
        if found is not None and _CHECKED * len(found) < bound:
            break
        bound *= _NEXT_BOUND
    assert found is not None
    return found, waiting


def _groups(seqs: Seqs, size: int) -> Iterator[str]:
    """JSON lists of at most `size` seqs."""
    for start in range(0, len(seqs), size):
        yield json.dumps(seqs[start : start + size].tolist())
