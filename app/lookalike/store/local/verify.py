"""A check of the local store: SQLite's file, counters, vectors and saved indexes."""

# ruff: noqa: S608 - only constants go into the SQL texts, every value is bound

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np

from lookalike.progress import Progress
from lookalike.records import Finding
from lookalike.store.base import has_unit_length
from lookalike.store.local.catalog import Catalog
from lookalike.store.local.index.indexes import Indexes
from lookalike.store.local.rows import IN_LIST, CollectionRow
from lookalike.store.sqlite import find_damage

_REMEDY = "restore catalog.db from a backup, or make it again with `lookalike rebuild`"
_COUNTED = "(SELECT count(*) FROM images WHERE collection = collections.id)"
_PARTS = {"vectors", "places"}
"""Tables whose rows are nothing without their picture."""
_SHOWN = 20
_TOGETHER = 1000  # vectors that one read gives


def verify(
    catalog: Catalog, indexes: Indexes, *, quick: bool, progress: Progress
) -> Iterator[Finding]:
    """Yields what is wrong; see `Store.verify`."""
    for text in find_damage(catalog.path, quick=quick):
        yield Finding(kind="database", text=f"catalog.db: {text}; {_REMEDY}")
    for table, number, parent in _dangling(catalog)[:_SHOWN]:
        text = f"catalog.db: row {number} of {table} belongs to no row of {parent}; {_REMEDY}"
        yield Finding(kind="database", text=text)
    yield from _wrong_counts(catalog)
    rows = catalog.collections()
    for done, row in enumerate(rows):
        progress.report(done, len(rows))
        progress.check()
        readable = True
        for bad in () if quick else _bad_vectors(catalog, row):
            readable = False  # so that the index cannot be compared
            for one in catalog.at(row, bad).values():
                text = "its vector is damaged"
                yield Finding(kind="vector", text=text, collection=row.name, id=one.id)
        for image_id in _without_vector(catalog, row):
            text = "it has no vector, so no search finds it"
            yield Finding(kind="vector", text=text, collection=row.name, id=image_id)
        problem = indexes.problem(row, quick=quick) if readable else None
        now = catalog.collection(row.name)
        if problem and now is not None and now.space == row.space:  # else it was just switched
            yield Finding(kind="index", text=f"its saved index: {problem}", collection=row.name)
    progress.report(len(rows), len(rows))


def mend(catalog: Catalog, indexes: Indexes) -> None:
    """Makes again what can be made; see `Store.mend`."""
    dangling = _dangling(catalog)
    with catalog.connections.write() as connection:
        for table, number, parent in dangling:
            if table in _PARTS and parent == "images":
                connection.execute(f"DELETE FROM {table} WHERE rowid = ?", (number,))
        connection.execute(f"UPDATE collections SET images = {_COUNTED}")
    for row in catalog.collections():
        for bad in _bad_vectors(catalog, row):
            with catalog.connections.write() as connection:
                sql = f"DELETE FROM vectors WHERE space = ? AND seq {IN_LIST}"
                connection.execute(sql, (row.space, json.dumps(bad)))
        if indexes.problem(row, quick=False) is not None:
            indexes.remake(row)


def _dangling(catalog: Catalog) -> list[tuple[str, int, str]]:
    """Rows whose parent is missing: the table, the row, and the parent's table."""
    with catalog.connections.read() as connection:
        found = connection.execute("PRAGMA foreign_key_check").fetchall()
    return [(table, number, parent) for table, number, parent, _ in found]


def _wrong_counts(catalog: Catalog) -> Iterator[Finding]:
    sql = f"SELECT name, images, {_COUNTED} FROM collections WHERE name NOT NULL ORDER BY name"
    with catalog.connections.read() as connection:
        counts = connection.execute(sql).fetchall()
    for name, said, counted in counts:
        if said != counted:
            text = f"it says that it has {said:,} pictures, and has {counted:,}"
            yield Finding(kind="counter", text=text, collection=name)


def _without_vector(catalog: Catalog, row: CollectionRow) -> list[str]:
    """The ids of rows that lack an active vector."""
    sql = (
        "SELECT id FROM images WHERE collection = ? AND NOT EXISTS"
        " (SELECT 1 FROM vectors WHERE space = ? AND seq = images.seq) ORDER BY seq"
    )
    with catalog.connections.read() as connection:
        return [image_id for (image_id,) in connection.execute(sql, (row.id, row.space))]


def _bad_vectors(catalog: Catalog, row: CollectionRow) -> Iterator[list[int]]:
    """Seqs of active vectors with another length than the spec's `dim`, or another norm than 1."""
    sql = "SELECT seq, vector FROM vectors WHERE space = ? AND seq > ? ORDER BY seq LIMIT ?"
    dim, last = row.spec.dim, 0
    while True:
        with catalog.connections.read() as connection:
            rows = connection.execute(sql, (row.space, last, _TOGETHER)).fetchall()
        if not rows:
            return
        last = rows[-1][0]
        good = {seq for seq, blob in rows if len(blob) == 4 * dim and _is_unit(blob)}
        if bad := [seq for seq, _ in rows if seq not in good]:
            yield bad


def _is_unit(blob: bytes) -> bool:
    return has_unit_length(np.frombuffer(blob, "<f4")[np.newaxis, :])
