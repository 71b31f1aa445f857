"""The field index in SQLite: for each key of a field the seqs of the rows that have it.

A row of `field_values` holds the seqs of one key within one block of `_BLOCK` seqs. Its blob is the
block's first seq, or the only seq, as 8 bytes; then the offsets of the seqs as 2 bytes each, or,
where that is no longer, one bit for each seq of the block. All numbers are little-endian.
"""

# ruff: noqa: S608 - only constants go into the SQL texts, every value is bound

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterable, Sequence

import numpy as np

from lookalike.store.local.catalog.field_spans import Key, Lookup
from lookalike.store.vectors import Seqs

_BLOCK = 4096
_HEAD = 8
_BITS = _HEAD + _BLOCK // 8

Posting = tuple[int, Key]
"""A field's number and a key."""

_AT = "FROM field_values WHERE field = ? AND kind = ? AND value = ? AND base = ?"


def write_postings(
    connection: sqlite3.Connection,
    *,
    added: Iterable[tuple[Posting, int]] = (),
    removed: Iterable[tuple[Posting, int]] = (),
) -> None:
    """Adds and removes seqs; those that are there already, or are not, are left alone."""
    changes: dict[tuple[Posting, int], tuple[set[int], set[int]]] = {}
    for side, pairs in enumerate((added, removed)):
        for posting, seq in pairs:
            base = seq - seq % _BLOCK
            changes.setdefault((posting, base), (set(), set()))[side].add(seq - base)
    for ((field, (kind, value)), base), (come, go) in sorted(changes.items(), key=_place):
        place = (field, kind, value, base)
        found = connection.execute(f"SELECT seqs {_AT}", place).fetchone()
        blob = _blob(base, _changed(found[0] if found else None, come, go))
        if blob is not None:
            sql = "INSERT OR REPLACE INTO field_values VALUES (?, ?, ?, ?, ?)"
            connection.execute(sql, (*place, blob))
        elif found:
            connection.execute(f"DELETE {_AT}", place)


def read_postings(connection: sqlite3.Connection, lookup: Lookup) -> Seqs:
    """The seqs of all rows that a lookup finds, ascending: (N,) int64."""
    parts: list[Seqs] = []
    for span in lookup.spans:
        where, values = span.sql(lookup.field)
        # A million single seqs as one text: several times faster than as a million rows.
        sql = f"SELECT group_concat(hex(seqs), '') FROM field_values WHERE {where}"
        (text,) = connection.execute(f"{sql} AND length(seqs) = {_HEAD}", values).fetchone()
        if text:
            parts.append(np.frombuffer(bytes.fromhex(text), "<i8"))
        sql = f"SELECT seqs FROM field_values WHERE {where} AND length(seqs) > {_HEAD}"
        blobs = [blob for (blob,) in connection.execute(sql, values)]
        parts.append(_from_lists([blob for blob in blobs if len(blob) < _BITS]))
        parts.append(_from_bits([blob for blob in blobs if len(blob) == _BITS]))
    seqs = np.concatenate(parts) if parts else np.empty(0, np.int64)
    return seqs if np.all(seqs[1:] > seqs[:-1]) else np.sort(seqs)


def count_postings(connection: sqlite3.Connection, lookup: Lookup, limit: int) -> int:
    """How many rows of `field_values` a lookup reads, counted up to `limit`."""
    count = 0
    for span in lookup.spans:
        if count < limit:
            where, values = span.sql(lookup.field)
            sql = f"SELECT count(*) FROM (SELECT 1 FROM field_values WHERE {where} LIMIT ?)"
            count += connection.execute(sql, (*values, limit - count)).fetchone()[0]
    return count


def remove_postings(connection: sqlite3.Connection, field: int, limit: int) -> int:
    """Deletes up to `limit` rows of a field; gives how many."""
    sql = "SELECT field, kind, value, base FROM field_values WHERE field = ? LIMIT ?"
    places = connection.execute(sql, (field, limit)).fetchall()
    # One by one: SQLite searches for a list of places by their first columns alone.
    connection.executemany(f"DELETE {_AT}", places)
    return len(places)


def _place(change: tuple[tuple[Posting, int], object]) -> tuple[Posting, int]:
    """Where a change is in the table, so that neighbors are written one after the other."""
    return change[0]


def _changed(blob: bytes | None, come: set[int], go: set[int]) -> list[int]:
    """The offsets in a blob after a change, ascending."""
    if blob is None:
        return sorted(come)
    if len(blob) == _HEAD:
        return sorted({int.from_bytes(blob, "little") % _BLOCK} - go | come)
    if len(blob) < _BITS:
        held = struct.unpack_from(f"<{(len(blob) - _HEAD) // 2}H", blob, _HEAD)
        return sorted(set(held) - go | come)
    bits = np.unpackbits(np.frombuffer(blob, np.uint8, offset=_HEAD), bitorder="little")
    bits[list(go)] = 0
    bits[list(come)] = 1
    offsets: list[int] = np.flatnonzero(bits).tolist()
    return offsets


def _blob(base: int, offsets: Sequence[int]) -> bytes | None:
    if not offsets:
        return None
    if len(offsets) == 1:
        return struct.pack("<q", base + offsets[0])
    if _HEAD + 2 * len(offsets) < _BITS:
        return struct.pack(f"<q{len(offsets)}H", base, *offsets)
    bits = np.zeros(_BLOCK, bool)
    bits[offsets] = True
    return struct.pack("<q", base) + np.packbits(bits, bitorder="little").tobytes()


def _bases(blobs: Sequence[bytes]) -> Seqs:
    return np.frombuffer(b"".join(blob[:_HEAD] for blob in blobs), "<i8")


def _from_lists(blobs: Sequence[bytes]) -> Seqs:
    counts = [(len(blob) - _HEAD) // 2 for blob in blobs]
    offsets = np.frombuffer(b"".join(blob[_HEAD:] for blob in blobs), "<u2")
    seqs: Seqs = np.repeat(_bases(blobs), counts) + offsets
    return seqs


def _from_bits(blobs: Sequence[bytes]) -> Seqs:
    packed = np.frombuffer(b"".join(blob[_HEAD:] for blob in blobs), np.uint8)
    places = np.flatnonzero(np.unpackbits(packed, bitorder="little"))
    shifts = _bases(blobs) - _BLOCK * np.arange(len(blobs))
    seqs: Seqs = places + shifts[places // _BLOCK]
    return seqs
