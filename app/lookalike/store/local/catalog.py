"""The catalog: collections, rows and vectors in SQLite. The truth of the local store."""

# ruff: noqa: S608 - only constants go into the SQL texts, every value is bound

from __future__ import annotations

import json
import logging
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lookalike.errors import LookalikeError, StorageError
from lookalike.progress import Worker
from lookalike.records import (
    ImageRecord,
    Metadata,
    ModelSpec,
    NewImage,
    OnConflict,
    Place,
    PutOutcome,
    PutStatus,
    canonical_json,
    utc_now,
)
from lookalike.store.base import (
    Seqs,
    Vectors,
    has_aliases,
    is_alias,
    name_taken,
    unknown_alias,
)
from lookalike.store.filters import Filter
from lookalike.store.local.rows import (
    IN_LIST,
    LOCATION,
    RECORD_COLUMNS,
    RECORD_FIELDS,
    SCHEMA,
    CollectionRow,
    read_collection,
    read_collections,
    read_images,
    read_named,
    record,
    require_collection,
    vector_blob,
    vector_rows,
)
from lookalike.store.outcomes import is_upload, put_outcome, without_places
from lookalike.store.sqlite import Connections, read_json, reads

Rows = Sequence[tuple[int, Metadata]]
"""Seqs, ascending, each with the row's metadata."""

_BLOCK_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Changes:
    """What one commit did to the metadata of a collection."""

    added: Rows = ()  # their seqs are higher than all before
    updated: Rows = ()
    removed: Sequence[int] = ()


@dataclass(slots=True)
class Written:
    """What a put changed: the collection as it is now, whether it is new, and its rows."""

    row: CollectionRow
    new: bool
    # One for each picture, in order; None for one that needs a vector where none was given.
    outcomes: list[PutOutcome | None] = field(default_factory=list)
    added: dict[int, int] = field(default_factory=dict)  # seq -> position in the call; ascending
    updated: dict[int, Metadata] = field(default_factory=dict)  # of rows from before, by seq
    removed: list[int] = field(default_factory=list)  # seqs from before
    released: list[str] = field(default_factory=list)  # digests of rows that were replaced

    @property
    def changes(self) -> Changes:
        """The same for the columns of metadata."""
        last = {one.record.id: one.record.metadata for one in self.outcomes if one}
        put = ((seq, self.outcomes[position]) for seq, position in self.added.items())
        added = [(seq, last[one.record.id]) for seq, one in put if one]
        return Changes(added, sorted(self.updated.items()), self.removed)


class Catalog:
    """Rows and vectors in one SQLite file; safe to call from many threads.

    Every method that writes has reached the disk when it returns, and has changed nothing where
    it raises `StorageError`. Raises as `Connections`.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self.connections = Connections(path, SCHEMA, read_only=read_only)

    def close(self) -> None:
        """Closes the file; may be called twice."""
        self.connections.close()

    # Collections

    def collections(self) -> list[CollectionRow]:
        """All collections by name."""
        with self.connections.read() as connection:
            return read_collections(connection)

    def _read(self, sql: str, *values: Any) -> list[Any]:
        with self.connections.read() as connection:
            return connection.execute(sql, values).fetchall()

    def _read_of(self, name: str, sql: str, *values: Any) -> list[Any]:
        """Reads what takes a collection's number first; nothing where there is none."""
        with self.connections.read() as connection:
            row = read_collection(connection, name)
            return connection.execute(sql, (row.id, *values)).fetchall() if row else []

    def collection(self, name: str) -> CollectionRow | None:
        """One collection, by its name or an alias; None where there is none."""
        with self.connections.read() as connection:
            return read_collection(connection, name)

    def make(
        self, name: str, spec: ModelSpec, provenance: Mapping[str, str]
    ) -> CollectionRow | None:
        """Makes an empty collection; None if there is one, or an alias, of this name."""
        with self.connections.write() as connection:
            if read_collection(connection, name) is not None:
                return None
            return _make_collection(connection, name, spec, provenance, utc_now())

    def rename(self, name: str, new: str) -> None:
        """Gives a collection another name, see `Store.rename`."""
        with self.connections.write() as connection:
            row = _require_named(connection, name)
            if name != new and read_collection(connection, new) is not None:
                raise name_taken(new)
            connection.execute("UPDATE collections SET name = ? WHERE id = ?", (new, row.id))

    def alias(self, alias: str, name: str) -> None:
        """Makes or moves an alias, see `Store.alias`."""
        sql = (
            "INSERT INTO aliases VALUES (?, ?)"
            " ON CONFLICT (name) DO UPDATE SET collection = excluded.collection"
        )
        with self.connections.write() as connection:
            if read_named(connection, alias) is not None:
                raise name_taken(alias)
            connection.execute(sql, (alias, require_collection(connection, name).id))

    def unalias(self, alias: str) -> None:
        """Removes an alias, see `Store.unalias`."""
        with self.connections.write() as connection:
            if not connection.execute("DELETE FROM aliases WHERE name = ?", (alias,)).rowcount:
                raise unknown_alias(alias)

    def drop(self, name: str) -> CollectionRow:
        """Removes a collection and gives what it was, see `Store.drop`.

        Its name goes at once; its rows stay, out of sight, until the `Purger` removes them.
        """
        with self.connections.write() as connection:
            row = _require_named(connection, name)
            if row.aliases:
                raise has_aliases(name, row.aliases)
            connection.execute("UPDATE collections SET name = NULL WHERE id = ?", (row.id,))
            return row

    # Rows

    def find(self, name: str, ids: Iterable[str]) -> dict[str, ImageRecord]:
        """Those of the ids that exist, with their rows."""
        with self.connections.read() as connection:
            row = read_collection(connection, name)
            found = read_images(connection, row, ids) if row else {}
        return {image_id: image for image_id, (_, image) in found.items()}

    def at(self, row: CollectionRow, seqs: Iterable[int]) -> dict[int, ImageRecord]:
        """Those of the seqs that exist, with their rows, by seq."""
        return self._records(row, f"seq {IN_LIST} ORDER BY seq", json.dumps(list(seqs)))

    def page(self, row: CollectionRow, *, after: int, limit: int) -> dict[int, ImageRecord]:
        """Up to `limit` rows behind the seq `after`, by seq."""
        return self._records(row, "seq > ? ORDER BY seq LIMIT ?", after, limit)

    def _records(self, row: CollectionRow, where: str, *values: Any) -> dict[int, ImageRecord]:
        sql = f"SELECT seq, {RECORD_COLUMNS} FROM images WHERE collection = ? AND {where}"
        rows = self._read(sql, row.id, *values)
        return {seq: record(row.name, rest) for seq, *rest in rows}

    def seqs_of(self, row: CollectionRow, ids: Iterable[str]) -> Seqs:
        """The seqs of those ids that exist, ascending."""
        # Sorted here: asked to, SQLite would walk the whole collection in order of seq.
        sql = f"SELECT seq FROM images WHERE collection = ? AND id {IN_LIST}"
        return np.sort(_seq_array(self._read(sql, row.id, json.dumps(list(ids)))))

    def references(self, sha256s: Iterable[str], *, thorough: bool = False) -> set[str]:
        """Those of the digests that some row names; `thorough` reads every row, and no index."""
        how = "NOT INDEXED" if thorough else ""
        sql = f"SELECT DISTINCT sha256 FROM images {how} WHERE sha256 {IN_LIST}"
        return {digest for (digest,) in self._read(sql, json.dumps(list(sha256s)))}

    def last_seq(self) -> int:
        """The highest seq ever given."""
        sql = "SELECT seq FROM sqlite_sequence WHERE name = 'images'"
        return next((int(seq) for (seq,) in self._read(sql)), 0)

    def count(self) -> int:
        """How many rows there are, those of dropped collections too."""
        ((rows,),) = self._read("SELECT count(*) FROM images")
        return int(rows)

    # `sqlite_sequence` is a table that SQLite keeps for AUTOINCREMENT, with a row for each table.
    # A row of our own in it changes nothing for any version, and is copied with the catalog.

    def identity(self) -> int | None:
        """A random number that tells this catalog from others; None if it was given none yet."""
        sql = "SELECT seq FROM sqlite_sequence WHERE name = 'catalog identity'"
        return next((int(number) for (number,) in self._read(sql)), None)

    def identify(self) -> int:
        """Its identity; gives it one if it has none."""
        found = self.identity()
        if found is None:
            found = secrets.randbelow(2**62)
            sql = "INSERT INTO sqlite_sequence (name, seq) VALUES ('catalog identity', ?)"
            with self.connections.write() as connection:
                connection.execute(sql, (found,))
        return found

    # Metadata for columns

    def seqs(self, row: CollectionRow) -> tuple[Seqs, int]:
        """All seqs of a collection, ascending, and the change number that they are of."""
        with self.connections.read() as connection:
            return _seqs(connection, row), _counts(connection, row)[1]

    def metadata(self, row: CollectionRow, above: int, upto: int) -> Rows:
        """The metadata of the rows with seqs above one number and up to another, by seq."""
        with self.connections.read() as connection:
            return _metadata(connection, row, "seq > ? AND seq <= ?", above, upto)

    def changes_since(
        self, row: CollectionRow, seqs: Seqs, last_seq: int, number: int
    ) -> tuple[Changes, int]:
        """What happened to a collection's rows since a change number, and the number now."""
        with self.connections.read() as connection:
            added = _metadata(connection, row, "seq > ?", last_seq)
            updated = _metadata(connection, row, "changed > ? AND seq <= ?", number, last_seq)
            count, number = _counts(connection, row)
            removed: list[int] = []
            if count != len(seqs) + len(added):  # seqs are never used again
                gone = np.setdiff1d(seqs, _seqs(connection, row), assume_unique=True)
                removed = gone.tolist()
        return Changes(added, updated, removed), number

    # Vectors

    def embedded(self, row: CollectionRow) -> Seqs:
        """The seqs of all active vectors of a collection, ascending."""
        sql = "SELECT seq FROM vectors WHERE space = ? ORDER BY seq"
        with self.connections.read() as connection:
            return _seq_array(connection.execute(sql, (row.space,)))

    def vectors_at(self, row: CollectionRow, seqs: Iterable[int]) -> tuple[Seqs, Vectors]:
        """Those of the seqs that have an active vector, ascending, and (N, dim) float32."""
        sql = f"SELECT seq, vector FROM vectors WHERE space = ? AND seq {IN_LIST} ORDER BY seq"
        return self._vectors(row, sql, json.dumps(list(seqs)))

    def vectors_after(
        self, row: CollectionRow, seq: int, *, block_bytes: int = _BLOCK_BYTES
    ) -> Iterator[tuple[Seqs, Vectors]]:
        """All active vectors behind a seq: ascending seqs and (N, dim) float32, in short reads."""
        sql = "SELECT seq, vector FROM vectors WHERE space = ? AND seq > ? ORDER BY seq LIMIT ?"
        limit = max(1, block_bytes // (4 * row.spec.dim))
        while True:
            seqs, vectors = self._vectors(row, sql, seq, limit)
            if not len(seqs):
                return
            yield seqs, vectors
            seq = int(seqs[-1])

    def _vectors(self, row: CollectionRow, sql: str, *values: Any) -> tuple[Seqs, Vectors]:
        found = self._read(sql, row.space, *values)
        seqs = _seq_array((seq,) for seq, _ in found)
        return seqs, vector_rows([blob for _, blob in found], row.spec.dim)

    # Changes

    def put(
        self,
        name: str,
        images: Sequence[NewImage],
        vectors: Vectors,
        *,
        spec: ModelSpec,
        provenance: Mapping[str, str],
        on_conflict: OnConflict,
    ) -> Written:
        """Writes pictures in one transaction, see `Store.upsert`."""
        now = utc_now()
        with self.connections.write() as connection:
            row = read_collection(connection, name)
            made = row or _make_collection(connection, name, spec, provenance, now)
            written = Written(made, new=row is None)
            _write_all(connection, written, images, vectors, on_conflict=on_conflict, now=now)
            return written

    def put_known(
        self, name: str, images: Sequence[NewImage], *, on_conflict: OnConflict
    ) -> Written | None:
        """As `put`, without vectors; None if there is no such collection, see `upsert_known`.

        Nothing is written where nothing changes.
        """
        now = utc_now()
        with self.connections.read() as connection:
            row = read_collection(connection, name)
            held = read_images(connection, row, [one.id for one in images]) if row else {}
            noted = _uploads(connection, held)
        if row is None:
            return None
        written, same = Written(row, new=False), True
        for image in images:
            seq, existing = held.get(image.id, (0, None))
            outcome = put_outcome(row.name, existing, image, on_conflict=on_conflict, now=now)
            needs_vector = outcome.status in _NEEDS_VECTOR
            written.outcomes.append(None if needs_vector else outcome)
            is_news = outcome.record is not existing or (
                seq not in noted and is_upload(outcome.record, image, outcome.status)
            )
            same = same and (needs_vector or not is_news)
        if same:
            return written
        with self.connections.write() as connection:
            written = Written(row, new=False)
            _write_all(connection, written, images, None, on_conflict=on_conflict, now=now)
            return written

    def change_metadata(
        self,
        name: str,
        ids: Iterable[str],
        change: Callable[[ImageRecord], Metadata | LookalikeError],
        *,
        where: Filter | None = None,
    ) -> tuple[CollectionRow | None, dict[int, ImageRecord], dict[str, LookalikeError]]:
        """Writes the metadata `change(row)` of pictures that pass, in one transaction.

        Gives the collection, the rows that changed by seq, and why others did not by id.
        """
        failed: dict[str, LookalikeError] = {}
        with self.connections.write() as connection:
            row, held = _passing(connection, name, ids, where)
            now, written = utc_now(), list[str]()
            for seq, old in held.items():
                metadata = change(old)
                if isinstance(metadata, LookalikeError):
                    failed[old.id] = metadata
                elif row is not None:
                    _set_metadata(connection, row, seq, metadata, now)
                    written.append(old.id)
            if row is None or not written:
                return row, {}, failed
            changed = dict(read_images(connection, row, written).values())
            return _count_change(connection, row), changed, failed

    def refer(self, name: str, image: NewImage) -> None:
        """Writes where a picture's file lies by now, see `Store.refer`."""
        sql = "UPDATE images SET source = ? WHERE id = ? AND sha256 = ? AND collection = ?"
        with self.connections.write() as connection:
            row = read_collection(connection, name)
            if row is not None:
                connection.execute(sql, (image.source, image.id, image.sha256, row.id))

    def places(self, name: str, ids: Iterable[str]) -> dict[str, list[Place]]:
        """All places of pictures by id, see `Store.places`."""
        sql = (
            "SELECT images.id, root, path FROM images JOIN places USING (seq)"
            f" WHERE images.collection = ? AND images.id {IN_LIST} ORDER BY place"
        )
        found: dict[str, list[Place]] = {}
        for image_id, root, path in self._read_of(name, sql, json.dumps(list(ids))):
            found.setdefault(image_id, []).append(Place(root, path))
        return found

    def copied(self, name: str) -> list[str]:
        """Ids of the pictures that have two places or more, see `Store.copied`."""
        sql = (
            "SELECT id FROM images WHERE collection = ?"
            " AND seq IN (SELECT seq FROM places GROUP BY seq HAVING COUNT(*) > 1)"
        )
        return [image_id for (image_id,) in self._read_of(name, sql)]

    def seen(self, name: str, root: str) -> dict[str, str]:
        """The paths below a root with the ids of their pictures, see `Store.seen`."""
        below = root.rstrip("/")
        sql = (
            "SELECT path, id FROM places JOIN images USING (seq)"
            f" WHERE places.collection = ? AND {LOCATION} > ? AND {LOCATION} < ? AND root = ?"
        )
        return dict(self._read_of(name, sql, f"{below}/", f"{below}0", root))

    def uploaded(self, name: str, ids: Iterable[str]) -> set[str]:
        """Those of the ids that were put without a place, see `Store.uploaded`."""
        sql = (
            f"SELECT id FROM images JOIN uploads USING (seq) WHERE collection = ? AND id {IN_LIST}"
        )
        return {image_id for (image_id,) in self._read_of(name, sql, json.dumps(list(ids)))}

    def validators(self, name: str, root: str) -> dict[str, str]:
        """What was noted of places below a root, see `Store.validators`."""
        sql = (
            "SELECT path, validator FROM validators JOIN places USING (place)"
            " WHERE collection = ? AND root = ?"
        )
        return dict(self._read_of(name, sql, root))

    def validate(self, name: str, root: str, validators: Mapping[str, str]) -> None:
        """Notes what servers said of files, see `Store.validate`."""
        sql = (
            "INSERT OR REPLACE INTO validators SELECT place, ? FROM places"
            f" WHERE collection = ? AND {LOCATION} = ?"
        )
        with self.connections.write() as connection:
            row = read_collection(connection, name)
            if row is not None:
                places = {Place(root, path).location: text for path, text in validators.items()}
                values = [(text, row.id, location) for location, text in places.items()]
                connection.executemany(sql, values)

    def forget(self, name: str, places: Iterable[Place]) -> None:
        """Removes places, see `Store.forget`."""
        sql = f"DELETE FROM places WHERE collection = ? AND {LOCATION} {IN_LIST}"
        with self.connections.write() as connection:
            row = read_collection(connection, name)
            if row is not None:
                locations = [place.location for place in places]
                connection.execute(sql, (row.id, json.dumps(locations)))

    def delete(
        self, name: str, ids: Iterable[str], *, where: Filter | None = None
    ) -> tuple[CollectionRow | None, dict[int, ImageRecord]]:
        """Removes pictures that pass, in one transaction; gives their rows as they were, by seq."""
        with self.connections.write() as connection:
            row, gone = _passing(connection, name, ids, where)
            if row is None or not gone:
                return row, {}
            connection.execute(f"DELETE FROM images WHERE seq {IN_LIST}", (json.dumps([*gone]),))
            return _count_change(connection, row, images=-len(gone)), gone


def _passing(
    connection: sqlite3.Connection, name: str, ids: Iterable[str], where: Filter | None
) -> tuple[CollectionRow | None, dict[int, ImageRecord]]:
    """A collection, and its rows with these ids that pass, by seq, ascending."""
    row = read_collection(connection, name)
    found = read_images(connection, row, ids).values() if row else ()
    return row, {
        seq: image
        for seq, image in sorted(found, key=lambda one: one[0])
        if where is None or where.matches(image.metadata)
    }


def _require_named(connection: sqlite3.Connection, name: str) -> CollectionRow:
    """A collection by its own name. Raises as `Store.rename`."""
    row = require_collection(connection, name)
    if row.name != name:
        raise is_alias(name, row.name)
    return row


def _make_collection(
    connection: sqlite3.Connection,
    name: str,
    spec: ModelSpec,
    provenance: Mapping[str, str],
    now: str,
) -> CollectionRow:
    made = "INSERT INTO collections (name, created_at) VALUES (?, ?)"
    number = connection.execute(made, (name, now)).lastrowid
    made = "INSERT INTO spaces (collection, spec, provenance) VALUES (?, ?, ?)"
    values = (number, spec.to_json(), json.dumps(dict(provenance)))
    space = connection.execute(made, values).lastrowid
    connection.execute("UPDATE collections SET space = ? WHERE id = ?", (space, number))
    return require_collection(connection, name)


_NEEDS_VECTOR = {PutStatus.CREATED, PutStatus.REPLACED}


def _write_all(
    connection: sqlite3.Connection,
    written: Written,
    images: Sequence[NewImage],
    vectors: Vectors | None,
    *,
    on_conflict: OnConflict,
    now: str,
) -> None:
    """Writes pictures and counts the change; without `vectors`, those that need none."""
    name = written.row.name
    held = read_images(connection, written.row, [one.id for one in images])
    for position, image in enumerate(images):
        seq, existing = held.get(image.id, (0, None))
        outcome = put_outcome(name, existing, image, on_conflict=on_conflict, now=now)
        if outcome.status in _NEEDS_VECTOR and vectors is None:
            written.outcomes.append(None)
            continue
        if existing is not None and outcome.status is PutStatus.REPLACED:
            written.released.append(existing.sha256)
        vector = None if vectors is None else vectors[position]
        seq = _write(connection, written, seq, outcome, vector)
        written.outcomes.append(outcome)
        if is_upload(outcome.record, image, outcome.status):
            connection.execute("INSERT OR IGNORE INTO uploads VALUES (?)", (seq,))
        if image.place is not None and outcome.record is not existing:
            _move_place(connection, written.row.id, seq, image.place, held)
        held[image.id] = (seq, outcome.record)
    if written.added or written.updated or written.removed:
        grown = len(written.added) - len(written.removed)
        written.row = _count_change(connection, written.row, images=grown)


def _uploads(
    connection: sqlite3.Connection, held: Mapping[str, tuple[int, ImageRecord]]
) -> set[int]:
    """Those of the rows that were put without a place."""
    sql = f"SELECT seq FROM uploads WHERE seq {IN_LIST}"
    rows = connection.execute(sql, (json.dumps([seq for seq, _ in held.values()]),))
    return {seq for (seq,) in rows}


def _write(
    connection: sqlite3.Connection,
    written: Written,
    seq: int,
    outcome: PutOutcome,
    vector: Vectors | None,
) -> int:
    """Writes what a put decided about the row `seq`, or 0; gives the seq that the row has now."""
    if outcome.status in _NEEDS_VECTOR and vector is not None:
        if seq:
            connection.execute("DELETE FROM images WHERE seq = ?", (seq,))
            written.updated.pop(seq, None)
            if written.added.pop(seq, None) is None:
                written.removed.append(seq)
        seq = _insert_image(connection, written.row.id, outcome.record)
        values = (written.row.space, seq, vector_blob(vector))
        connection.execute("INSERT INTO vectors VALUES (?, ?, ?)", values)
        written.added[seq] = len(written.outcomes)
    elif outcome.status is PutStatus.UPDATED:
        metadata, now = outcome.record.metadata, outcome.record.updated_at
        _set_metadata(connection, written.row, seq, metadata, now)
        if seq not in written.added:
            written.updated[seq] = metadata
    return seq


def _move_place(
    connection: sqlite3.Connection,
    collection: int,
    seq: int,
    place: Place,
    held: dict[str, tuple[int, ImageRecord]],
) -> None:
    """Gives a row a place, and takes it from the row that had it, in the rows `held` too."""
    location = place.location
    sql = f"SELECT seq FROM places WHERE collection = ? AND {LOCATION} = ?"
    found = connection.execute(sql, (collection, location)).fetchone()
    if found == (seq,):
        return
    if found is not None:
        for key, (number, row) in held.items():
            held[key] = number, without_places(row, {location})
        # With what was noted of it; and so that the place counts as the row's latest.
        sql = f"DELETE FROM places WHERE collection = ? AND {LOCATION} = ?"
        connection.execute(sql, (collection, location))
    sql = "INSERT INTO places (collection, seq, root, path) VALUES (?, ?, ?, ?)"
    connection.execute(sql, (collection, seq, place.root, place.path))


def _insert_image(connection: sqlite3.Connection, collection: int, row: ImageRecord) -> int:
    """Adds a row and gives its seq, one never used before."""
    values = [getattr(row, name) for name in RECORD_FIELDS[:-1]]
    cursor = connection.execute(
        f"INSERT INTO images (collection, {', '.join(RECORD_FIELDS)})"
        f" VALUES (?, {', '.join('?' * len(RECORD_FIELDS))})",
        (collection, *values, canonical_json(row.metadata)),
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def _set_metadata(
    connection: sqlite3.Connection, row: CollectionRow, seq: int, metadata: Metadata, now: str
) -> None:
    sql = "UPDATE images SET metadata = ?, updated_at = ?, changed = ? WHERE seq = ?"
    connection.execute(sql, (canonical_json(metadata), now, row.changes + 1, seq))


def _count_change(
    connection: sqlite3.Connection, row: CollectionRow, *, images: int = 0
) -> CollectionRow:
    """Counts one more change of a collection, and the rows that came or went with it."""
    sql = "UPDATE collections SET images = images + ?, changes = changes + 1 WHERE id = ?"
    connection.execute(sql, (images, row.id))
    return require_collection(connection, row.name)


@reads("catalog.db")
def _counts(connection: sqlite3.Connection, row: CollectionRow) -> tuple[int, int]:
    """A collection's images, -1 if it is gone, and its change number."""
    sql = "SELECT images, changes FROM collections WHERE id = ?"
    images, changes = connection.execute(sql, (row.id,)).fetchone() or (-1, row.changes)
    if type(images) is not int or type(changes) is not int:
        raise ValueError("a number in a row of collections")
    return images, changes


def _seqs(connection: sqlite3.Connection, row: CollectionRow) -> Seqs:
    sql = "SELECT seq FROM images WHERE collection = ? ORDER BY seq"
    return _seq_array(connection.execute(sql, (row.id,)))


@reads("catalog.db")
def _seq_array(rows: Iterable[tuple[int]]) -> Seqs:
    """One column of seqs as (N,) int64."""
    return np.fromiter((seq for (seq,) in rows), dtype=np.int64)


@reads("catalog.db")
def _metadata(connection: sqlite3.Connection, row: CollectionRow, where: str, *values: int) -> Rows:
    """Seqs and metadata of some rows, by seq."""
    sql = f"SELECT seq, metadata FROM images WHERE collection = ? AND {where} ORDER BY seq"
    rows = connection.execute(sql, (row.id, *values)).fetchall()
    # All texts at once, which takes half of the time.
    texts: list[Metadata] = read_json(f"[{','.join(text for _, text in rows)}]")
    if not all(type(one) is dict for one in texts):
        raise ValueError("metadata is no JSON object")
    return [(seq, metadata) for (seq, _), metadata in zip(rows, texts, strict=True)]


PURGE_RETRY_S = 60.0  # until what failed, on a full disk perhaps, is tried again
PURGED_TOGETHER = 500  # rows that one step removes: many small transactions keep the WAL small
_DROPPED = "SELECT id FROM collections WHERE name IS NULL LIMIT 1"

log = logging.getLogger(__name__)


class Purger(Worker):
    """Removes the rows of collections that have no name any more, for half of the time."""

    def __init__(
        self,
        connections: Connections,
        *,
        released: Callable[[list[str]], None],
        removing: Callable[[Callable[[], bool]], bool],
    ) -> None:
        """`released` is told the digests of rows, just before they are removed.

        `removing` runs a change that removes something, on a full disk too.
        """
        failure = "Rows of a dropped collection stay for now"
        super().__init__("purge", self._purge, failure=failure, share=0.5, retry_s=PURGE_RETRY_S)
        self._connections = connections
        self._released = released
        self._removing = removing

    def begin(self) -> None:
        """Takes up what was left before this start."""
        with self._connections.read() as connection:
            left = connection.execute(_DROPPED).fetchone()
        if left:
            self.wake()

    def finish(self) -> None:
        """Removes all there is, now; what the disk refuses is left to the background."""
        try:
            while self._purge():
                pass
        except StorageError as exc:
            log.warning("Rows of a dropped collection stay for now: %s", exc)

    def _purge(self) -> bool:
        """Removes some rows, and with the last ones their collection; False where all is gone."""
        return self._removing(self._purge_some)

    def _purge_some(self) -> bool:
        with self._connections.write() as connection:
            found = connection.execute(_DROPPED).fetchone()
            if found is not None:
                self._remove_some(connection, *found)
        self._connections.give_room_back()  # where nothing was found: what failed the last time
        return found is not None

    def _remove_some(self, connection: sqlite3.Connection, number: int) -> None:
        """Removes rows of a collection; where those were the last, all else of it."""
        some = "SELECT seq, sha256 FROM images WHERE collection = ? ORDER BY seq LIMIT ?"
        rows = connection.execute(some, (number, PURGED_TOGETHER)).fetchall()
        if rows:
            self._released([sha256 for _, sha256 in rows])
            connection.execute(
                "DELETE FROM images WHERE collection = ? AND seq <= ?", (number, rows[-1][0])
            )
        if len(rows) == PURGED_TOGETHER:
            return
        connection.execute("UPDATE collections SET space = NULL WHERE id = ?", (number,))
        connection.execute("DELETE FROM spaces WHERE collection = ?", (number,))
        connection.execute("DELETE FROM collections WHERE id = ?", (number,))
