"""The tables of a catalog, and how their rows are read."""

# ruff: noqa: S608 - only constants go into the SQL texts, every value is bound

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lookalike.files.data_folder import APPLICATION
from lookalike.records import MAX_COPIES, MAX_SEQ, ImageRecord, ModelSpec, Place
from lookalike.store.base import Vectors, has_unit_length, unknown_collection
from lookalike.store.sqlite import Schema, read_json, read_object, reads

LOCATION = "rtrim(root, '/') || '/' || path"  # what `Place.location` gives

# One row for each file whose bytes were seen, in the order in which they were. `seq` is the picture
# that has these bytes; a file has one place, from whatever root it was indexed.
_PLACES = (
    """
    CREATE TABLE places (
        place INTEGER PRIMARY KEY,
        collection INTEGER NOT NULL,
        seq INTEGER NOT NULL REFERENCES images (seq) ON DELETE CASCADE,
        root TEXT NOT NULL,
        path TEXT NOT NULL
    )
    """,
    f"CREATE UNIQUE INDEX places_by_location ON places (collection, {LOCATION})",
    "CREATE INDEX places_by_seq ON places (seq)",
)

# What people said of matches. A judgement goes with either picture: it is of their bytes. A query
# that is no picture of the collection has its vector here, which goes with the vector space.
_JUDGEMENTS = (
    """
    CREATE TABLE judgements (
        judgement INTEGER PRIMARY KEY AUTOINCREMENT,
        collection INTEGER NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
        id TEXT NOT NULL,
        query_seq INTEGER REFERENCES images (seq) ON DELETE CASCADE,
        query_sha256 TEXT NOT NULL,
        match_seq INTEGER NOT NULL REFERENCES images (seq) ON DELETE CASCADE,
        is_right INTEGER NOT NULL,
        judged_at TEXT NOT NULL,
        space INTEGER REFERENCES spaces (id) ON DELETE CASCADE,
        vector BLOB,
        UNIQUE (collection, id)
    )
    """,
    "CREATE INDEX judgements_by_query ON judgements (query_seq)",
    "CREATE INDEX judgements_by_match ON judgements (match_seq)",
    "CREATE INDEX judgements_by_space ON judgements (space) WHERE space NOT NULL",
    # What the scores of a vector space mean, as JSON.
    """
    CREATE TABLE calibrations (
        space INTEGER PRIMARY KEY REFERENCES spaces (id) ON DELETE CASCADE,
        content TEXT NOT NULL
    )
    """,
)
_NO_JUDGEMENTS = (
    "CREATE TEMP TABLE judgements (judgement, collection, id, query_seq, query_sha256, match_seq,"
    " is_right, judged_at, space, vector)",
    "CREATE TEMP TABLE calibrations (space, content)",
)

# Second names of collections; and what syncs need: rows that also came without a place, and what a
# server said of the file at an address.
_ALIASES = (
    """
    CREATE TABLE aliases (
        name TEXT PRIMARY KEY,
        collection INTEGER NOT NULL REFERENCES collections (id)
    )
    """,
    "CREATE INDEX aliases_by_collection ON aliases (collection)",
    "CREATE TABLE uploads (seq INTEGER PRIMARY KEY REFERENCES images (seq) ON DELETE CASCADE)",
    """
    CREATE TABLE validators (
        place INTEGER PRIMARY KEY REFERENCES places (place) ON DELETE CASCADE,
        validator TEXT NOT NULL
    )
    """,
)
_NO_ALIASES = (
    "CREATE TEMP TABLE aliases (name, collection)",
    "CREATE TEMP TABLE uploads (seq)",
    "CREATE TEMP TABLE validators (place, validator)",
)

SCHEMA = Schema(
    application=APPLICATION,
    version=4,
    statements=(
        # A collection without a name was dropped; its rows are being removed. `images` counts its
        # rows, `changes` the commits that changed them.
        """
        CREATE TABLE collections (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            name TEXT UNIQUE,
            created_at TEXT NOT NULL,
            space INTEGER REFERENCES spaces (id),
            images INTEGER NOT NULL DEFAULT 0,
            changes INTEGER NOT NULL DEFAULT 0
        )
        """,
        # `recipe` says how to make the encoder again; NULL where nobody said.
        """
        CREATE TABLE spaces (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            collection INTEGER NOT NULL REFERENCES collections (id),
            spec TEXT NOT NULL,
            provenance TEXT NOT NULL,
            recipe TEXT
        )
        """,
        "CREATE INDEX spaces_by_collection ON spaces (collection)",
        # `changed` is the collection's `changes` when this row's metadata last changed; NULL where
        # it never did.
        """
        CREATE TABLE images (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            collection INTEGER NOT NULL REFERENCES collections (id),
            id TEXT NOT NULL,
            sha256 TEXT NOT NULL,
            filename TEXT NOT NULL,
            media_type TEXT NOT NULL,
            width INTEGER NOT NULL,
            height INTEGER NOT NULL,
            bytes INTEGER NOT NULL,
            created_at TEXT NOT NULL,
            updated_at TEXT NOT NULL,
            source TEXT,
            metadata TEXT NOT NULL,
            changed INTEGER,
            UNIQUE (collection, id)
        )
        """,
        "CREATE INDEX images_by_collection ON images (collection)",
        "CREATE INDEX images_by_sha256 ON images (sha256)",
        "CREATE INDEX images_changed ON images (collection, changed) WHERE changed NOT NULL",
        """
        CREATE TABLE vectors (
            space INTEGER NOT NULL REFERENCES spaces (id),
            seq INTEGER NOT NULL REFERENCES images (seq) ON DELETE CASCADE,
            vector BLOB NOT NULL,
            PRIMARY KEY (space, seq)
        )
        """,
        "CREATE INDEX vectors_by_seq ON vectors (seq)",
        *_PLACES,
        *_JUDGEMENTS,
        *_ALIASES,
    ),
    remedy="put the right one back from a backup, make it again with `lookalike rebuild`, or index "
    "the pictures again, into another data folder",
    migrations={1: _PLACES, 2: _JUDGEMENTS, 3: _ALIASES},
    stand_ins={
        1: ("CREATE TEMP TABLE places (place, collection, seq, root, path)",),
        2: _NO_JUDGEMENTS,
        3: _NO_ALIASES,
    },
)

IN_LIST = "IN (SELECT value FROM json_each(?))"
"""Any number of values in one question mark: a JSON list."""

RECORD_FIELDS = (
    *("id", "sha256", "filename", "media_type", "width", "height", "bytes"),
    *("created_at", "updated_at", "source", "metadata"),
)
"""The fields of `ImageRecord` that are columns of `images`."""

_SEEN = "FROM places WHERE places.seq = images.seq ORDER BY place LIMIT"
_PLACE_COLUMNS = (  # the first place as it is: nearly all pictures have one, which searches read
    f"(SELECT root {_SEEN} 1)",
    f"(SELECT path {_SEEN} 1)",
    "(SELECT json_group_array(json_array(root, path))"
    f" FROM (SELECT root, path {_SEEN} {MAX_COPIES} OFFSET 1))",
)
RECORD_COLUMNS = ", ".join([*(f"images.{name}" for name in RECORD_FIELDS), *_PLACE_COLUMNS])
"""What `record` reads, in its order."""

_TEXTS = ("id", "sha256", "filename", "media_type", "created_at", "updated_at")
_NUMBERS = ("width", "height", "bytes")
_MOST = 2**48
_KNOWN_BYTES = re.compile(r"[0-9a-f]{64} [a-z]+/[a-z0-9.+-]+")

_COLLECTIONS = (
    "SELECT collections.id, name, created_at, space, spec, provenance, images, changes,"
    " (SELECT json_group_array(aliases.name) FROM aliases"
    " WHERE aliases.collection = collections.id)"
    " FROM collections JOIN spaces ON spaces.id = space WHERE name NOT NULL"
)


@dataclass(frozen=True, slots=True)
class CollectionRow:
    """A collection and its active vector space, as they were when it was read."""

    id: int  # never used again, nor is `space`
    name: str
    created_at: str
    space: int
    spec: ModelSpec
    provenance: Mapping[str, str]
    images: int = 0
    changes: int = 0  # commits that changed its rows
    aliases: tuple[str, ...] = ()


def read_collections(connection: sqlite3.Connection) -> list[CollectionRow]:
    """All collections by name."""
    return [_collection_row(row) for row in connection.execute(f"{_COLLECTIONS} ORDER BY name")]


def read_collection(connection: sqlite3.Connection, name: str) -> CollectionRow | None:
    """One collection, by its name or an alias; None where there is none."""
    row = read_named(connection, name)
    if row is None:
        sql = f"{_COLLECTIONS} AND collections.id = (SELECT collection FROM aliases WHERE name = ?)"
        found = connection.execute(sql, (name,)).fetchone()
        row = _collection_row(found) if found else None
    return row


def read_named(connection: sqlite3.Connection, name: str) -> CollectionRow | None:
    """As `read_collection`, by its own name alone."""
    found = connection.execute(f"{_COLLECTIONS} AND name = ?", (name,)).fetchone()
    return _collection_row(found) if found else None


def require_collection(connection: sqlite3.Connection, name: str) -> CollectionRow:
    """One collection. Raises `CollectionNotFoundError`."""
    row = read_collection(connection, name)
    if row is None:
        raise unknown_collection(name)
    return row


@reads("catalog.db")
def read_images(
    connection: sqlite3.Connection, row: CollectionRow, ids: Iterable[str]
) -> dict[str, tuple[int, ImageRecord]]:
    """Those of the ids that exist: id -> (seq, row)."""
    sql = f"SELECT seq, {RECORD_COLUMNS} FROM images WHERE collection = ? AND id {IN_LIST}"
    rows = connection.execute(sql, (row.id, json.dumps(list(ids))))
    return {rest[0]: (seq, record(row.name, rest)) for seq, *rest in rows}


@reads("catalog.db")
def record(collection: str, row: Sequence[Any]) -> ImageRecord:
    """Reads `RECORD_COLUMNS`."""
    *facts, metadata, root, path, others = row
    values = dict(zip(RECORD_FIELDS[:-1], facts, strict=True))
    values["metadata"] = read_object(metadata)
    if not (
        all(type(values[name]) is str for name in _TEXTS)
        and all(type(values[name]) is int and 0 <= values[name] <= _MOST for name in _NUMBERS)
        and _KNOWN_BYTES.fullmatch(f"{values['sha256']} {values['media_type']}")
        and all(type(text or "") is str for text in (values["source"], root, path))
    ):
        raise ValueError("a row of images")
    if root is not None:
        values["place"] = Place(root, path)
    if others != "[]":
        values["others"] = tuple(Place(str(root), str(path)) for root, path in read_json(others))
    return ImageRecord(collection=collection, **values)


def vector_blob(vector: Vectors) -> bytes:
    """One (dim,) float32 vector as stored: little-endian float32."""
    return vector.astype("<f4").tobytes()


@reads("catalog.db")
def vector_rows(blobs: list[bytes], dim: int) -> Vectors:
    """Stored vectors as (N, dim) float32. Raises `DataFolderError` where one is damaged."""
    if any(len(blob) != 4 * dim for blob in blobs):
        raise ValueError("a vector has the wrong length")
    rows = np.frombuffer(b"".join(blobs), dtype="<f4").astype(np.float32).reshape(-1, dim)
    if not has_unit_length(rows):
        raise ValueError("a vector is not of length 1")
    return rows


@reads("catalog.db")
def _collection_row(row: tuple[Any, ...]) -> CollectionRow:
    number, name, created_at, space, spec, provenance, images, changes, aliases = row
    others = tuple(sorted(map(str, read_json(aliases)))) if aliases != "[]" else ()
    made_by = ModelSpec.from_json(spec), read_object(provenance)
    if type(name) is not str or type(created_at) is not str:
        raise ValueError("a row of collections")
    if not all(
        type(one) is int and 0 <= one <= MAX_SEQ // 2 for one in (number, space, images, changes)
    ):
        raise ValueError("a number in a row of collections")
    return CollectionRow(number, name, created_at, space, *made_by, images, changes, others)
