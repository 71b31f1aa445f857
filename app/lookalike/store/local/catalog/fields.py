"""Which metadata fields the catalog indexes, and what keeps their index in step with the rows."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator

from lookalike.records import Metadata
from lookalike.store.local.catalog.field_postings import Posting, remove_postings, write_postings
from lookalike.store.local.catalog.field_spans import keys_of

NOTE = "note_change"
"""The SQL name of `FieldChanges.note`: triggers call it on every change of a row."""

MAX_AUTOMATIC = 8
"""Most fields of a collection that are indexed without being named."""

STEP = 2000
"""Values that one step of building writes, but for the last row's, and of removing deletes."""

Pairs = Iterator[tuple[Posting, int]]


class FieldChanges:
    """The changes of rows in one transaction, and the index brought up to them at its end."""

    def __init__(self) -> None:
        self._noted: dict[tuple[int, int], tuple[str | None, str | None]] = {}

    def note(self, collection: int, seq: int, old: str | None, new: str | None) -> None:
        """A row came (no old metadata), changed, or went (no new metadata)."""
        before, _ = self._noted.get((collection, seq), (old, None))
        self._noted[collection, seq] = before, new

    def settle(self, connection: sqlite3.Connection) -> None:
        """Writes what was noted into the index; before the transaction's end."""
        noted, self._noted = self._noted, {}
        for collection in {collection for collection, _ in noted}:
            fields = _numbers(connection, collection)
            added: list[tuple[Posting, int]] = []
            removed: list[tuple[Posting, int]] = []
            for (one, seq), (old, new) in noted.items():
                if one == collection:
                    was, now = set(_pairs(fields, seq, old)), set(_pairs(fields, seq, new))
                    added += now - was
                    removed += was - now
            write_postings(connection, added=added, removed=removed)

    def forget(self) -> None:
        """Drops what was noted: the transaction was undone."""
        self._noted.clear()


def complete_fields(connection: sqlite3.Connection, collection: int) -> dict[str, int]:
    """The fields whose index holds every row, by name, with their numbers."""
    sql = "SELECT name, number FROM fields WHERE collection = ? AND complete"
    return dict(connection.execute(sql, (collection,)))


def field_states(connection: sqlite3.Connection, collection: int) -> dict[str, str]:
    """`complete` or `building` for each field that is indexed, by name."""
    sql = "SELECT name, complete FROM fields WHERE collection = ? ORDER BY name"
    found = connection.execute(sql, (collection,))
    return {name: "complete" if complete else "building" for name, complete in found}


def register_fields(
    connection: sqlite3.Connection, collection: int, names: Iterable[str], *, empty: bool = False
) -> None:
    """Has fields indexed that are not yet.

    Args:
        connection: In a transaction that writes.
        collection: The collection's number.
        names: The fields.
        empty: The collection has no rows, so that nothing is to be built.
    """
    sql = "INSERT OR IGNORE INTO fields (collection, name, reached, complete) VALUES (?, ?, 0, ?)"
    connection.executemany(sql, [(collection, name, empty) for name in names])


def register_automatic(
    connection: sqlite3.Connection, collection: int, name: str, *, named: Collection[str]
) -> None:
    """Has one more field indexed, unless `MAX_AUTOMATIC` are that nobody named."""
    known = _numbers(connection, collection)
    alive = connection.execute(
        "SELECT 1 FROM collections WHERE id = ? AND name NOTNULL", (collection,)
    )
    if len(known.keys() - set(named)) < MAX_AUTOMATIC and alive.fetchone():
        register_fields(connection, collection, [name])


def abandon_fields(connection: sqlite3.Connection, collection: int) -> None:
    """Ends the index of a collection that is dropped; its values go in steps, see `advance`."""
    connection.execute("UPDATE fields SET collection = NULL WHERE collection = ?", (collection,))


def unfinished(connection: sqlite3.Connection) -> bool:
    """Whether `advance` has something to do."""
    sql = "SELECT 1 FROM fields WHERE collection IS NULL OR NOT complete LIMIT 1"
    return connection.execute(sql).fetchone() is not None


def advance(connection: sqlite3.Connection) -> None:
    """One step of removing or building: some dozen milliseconds, as long as lists are short."""
    gone = connection.execute("SELECT number FROM fields WHERE collection IS NULL").fetchone()
    if gone:
        if not remove_postings(connection, gone[0], STEP):
            connection.execute("DELETE FROM fields WHERE number = ?", gone)
        return
    sql = "SELECT collection, reached FROM fields WHERE NOT complete ORDER BY reached LIMIT 1"
    next_one = connection.execute(sql).fetchone()
    if next_one:
        _build_some(connection, *next_one)


def _build_some(connection: sqlite3.Connection, collection: int, reached: int) -> None:
    """Indexes the next rows for all fields of a collection that have come equally far."""
    sql = "SELECT name, number FROM fields WHERE collection = ? AND reached = ? AND NOT complete"
    fields = dict(connection.execute(sql, (collection, reached)))
    limit = max(1, STEP // len(fields))
    rows = connection.execute(
        "SELECT seq, metadata FROM images WHERE collection = ? AND seq > ? ORDER BY seq LIMIT ?",
        (collection, reached, limit),
    )
    added: list[tuple[Posting, int]] = []
    count = 0
    for seq, text in rows:
        added += _pairs(fields, seq, text)
        reached, count = seq, count + 1
        if len(added) >= STEP:  # lists have many values
            break
    write_postings(connection, added=added)
    state = (reached, count < limit and len(added) < STEP)
    sql = "UPDATE fields SET reached = ?, complete = ? WHERE number = ?"
    connection.executemany(sql, [(*state, number) for number in fields.values()])


def _numbers(connection: sqlite3.Connection, collection: int) -> dict[str, int]:
    sql = "SELECT name, number FROM fields WHERE collection = ?"
    return dict(connection.execute(sql, (collection,)))


def _pairs(fields: dict[str, int], seq: int, text: str | None) -> Pairs:
    """The postings of one row."""
    metadata: Metadata = {} if text is None else json.loads(text)
    for name in fields.keys() & metadata.keys():
        for key in keys_of(metadata[name]):
            yield (fields[name], key), seq
