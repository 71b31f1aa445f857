"""The catalog: collections, rows and vectors in SQLite. The truth of the local store."""

# ruff: noqa: S608 - only constants go into the SQL texts, every value is bound

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from lookalike.errors import CollectionNotFoundError
from lookalike.records import ImageRecord, Metadata, ModelSpec, NewImage, OnConflict
from lookalike.store.base import utc_now
from lookalike.store.filters import Filter
from lookalike.store.local.catalog.connections import FILTER_S, Connections
from lookalike.store.local.catalog.field_builder import FieldBuilder
from lookalike.store.local.catalog.fields import abandon_fields
from lookalike.store.local.catalog.jobs import CatalogJobs
from lookalike.store.local.catalog.passing import Passing, passing, read_page
from lookalike.store.local.catalog.purging import Purger
from lookalike.store.local.catalog.put import Written, put_images
from lookalike.store.local.catalog.rows import (
    COLLECTIONS,
    IN_LIST,
    RECORD_COLUMNS,
    CollectionRow,
    collection_row,
    count_images,
    image_not_found,
    last_seq,
    read_collection,
    read_images,
    record,
    seq_array,
)
from lookalike.store.local.catalog.sets import CatalogSets
from lookalike.store.local.catalog.vectors import CatalogVectors
from lookalike.store.metadata import canonical_json
from lookalike.store.vectors import Seqs, Vectors


class Catalog:
    """Rows and vectors in one SQLite file; safe to call from many threads.

    Attributes:
        sets: The embedding sets, active or not.
        jobs: Long work.
        vectors: The active vectors.
        fields: The metadata fields that are indexed.
        purger: Removes what dropped collections leave.

    Every method that writes has reached the disk when it returns, and has changed nothing where
    it raises `StorageError`.

    Raises:
        DataFolderError: The file is damaged, or was written by another version.
        StorageError: The disk refuses.
    """

    def __init__(
        self,
        path: Path,
        *,
        fields: Sequence[str] = (),
        filter_s: float = FILTER_S,
        read_only: bool = False,
    ) -> None:
        self._connections = Connections(path, filter_s=filter_s, read_only=read_only)
        self.sets = CatalogSets(self._connections)
        self.jobs = CatalogJobs(self._connections)
        self.vectors = CatalogVectors(self._connections)
        self.fields = FieldBuilder(self._connections, fields, read_only=read_only)
        self.purger = Purger(self._connections, self.fields)
        if not read_only:
            self.purger.begin()

    def close(self) -> None:
        """Closes the file; may be called twice."""
        self.purger.close()
        self.fields.close()
        self._connections.close()

    # Collections

    def collections(self) -> list[tuple[CollectionRow, int]]:
        """All collections by name, each with its number of pictures."""
        with self._connections.read() as connection:
            rows = [collection_row(r) for r in connection.execute(f"{COLLECTIONS} ORDER BY name")]
            return [(row, count_images(connection, row)) for row in rows]

    def collection(self, name: str) -> CollectionRow | None:
        """One collection; None where there is none of this name."""
        with self._connections.read() as connection:
            return read_collection(connection, name)

    def count(self, name: str) -> int:
        """Pictures in a collection; 0 where there is none of this name."""
        with self._connections.read() as connection:
            row = read_collection(connection, name)
            return count_images(connection, row) if row else 0

    def drop(self, name: str) -> tuple[CollectionRow, int]:
        """Removes a collection and gives what it was, and how many pictures it had.

        Its name goes at once; its rows stay, out of sight, until the `purger` removes them.

        Raises:
            CollectionNotFoundError: There is none of this name.
        """
        with self._connections.write() as connection:
            row = read_collection(connection, name)
            if row is None:
                raise CollectionNotFoundError(f"There is no collection {name!r}")
            count = count_images(connection, row)
            connection.execute("UPDATE collections SET name = NULL WHERE id = ?", (row.id,))
            abandon_fields(connection, row.id)
            return row, count

    # Rows

    def find(self, name: str, ids: Iterable[str]) -> dict[str, ImageRecord]:
        """Those of the ids that exist, with their rows."""
        with self._connections.read() as connection:
            row = read_collection(connection, name)
            found = read_images(connection, row, ids) if row else {}
            return {image_id: image for image_id, (_, image) in found.items()}

    def at(self, row: CollectionRow, seqs: Iterable[int]) -> dict[int, ImageRecord]:
        """Those of the seqs that exist, with their rows."""
        sql = f"SELECT seq, {RECORD_COLUMNS} FROM images WHERE collection = ? AND seq {IN_LIST}"
        with self._connections.read() as connection:
            rows = connection.execute(sql, (row.id, json.dumps(list(seqs))))
            return {seq: record(row.name, rest) for seq, *rest in rows}

    def page(
        self, name: str, *, after: int, limit: int, where: Filter | None
    ) -> list[tuple[int, ImageRecord]]:
        """Up to `limit` rows behind the seq `after` that pass, by seq.

        Raises:
            FilterTooSlowError: The filter takes too long.
        """
        started, where = time.perf_counter(), where or Filter()
        slow = bool(where.conditions)
        read = self._connections.read_filtered if slow else self._connections.read
        with read() as connection:
            row = read_collection(connection, name)
            rows = read_page(connection, row, where, after=after, limit=limit) if row else []
        if row and rows:
            self.fields.took(row, where, time.perf_counter() - started, read=len(rows))
        return rows

    def filter_place(self) -> AbstractContextManager[None]:
        """Lets `passing` in the block begin at once. Raises `FilterTooSlowError`."""
        return self._connections.filter_place()

    def passing(
        self,
        row: CollectionRow,
        where: Filter,
        *,
        before: Passing | None = None,
        placed: bool = False,
    ) -> Passing:
        """Which rows pass now.

        Args:
            row: Their collection.
            where: The filter.
            before: What passed a moment ago; only what came since is then looked at.
            placed: Whether the caller is in a block of `filter_place`.

        Raises:
            FilterTooSlowError: The filter takes too long.
        """
        started = time.perf_counter()
        placed = placed or before is not None
        with self._connections.read_filtered(placed=placed) as connection:
            found = passing(connection, row, where, before)
        if len(found.seqs) and before is None:
            self.fields.took(row, where, time.perf_counter() - started)
        return found

    def seqs_of(self, row: CollectionRow, ids: Iterable[str]) -> Seqs:
        """The seqs of those ids that exist, ascending."""
        # Sorted here: asked to, SQLite would walk the whole collection in order of seq.
        sql = f"SELECT seq FROM images WHERE collection = ? AND id {IN_LIST}"
        with self._connections.read() as connection:
            return np.sort(seq_array(connection.execute(sql, (row.id, json.dumps(list(ids))))))

    def references(self, sha256s: Iterable[str]) -> set[str]:
        """Those of the digests that some row names."""
        sql = f"SELECT DISTINCT sha256 FROM images WHERE sha256 {IN_LIST}"
        with self._connections.read() as connection:
            return {digest for (digest,) in connection.execute(sql, (json.dumps(list(sha256s)),))}

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
        """Writes pictures in one transaction, see `put_images`."""
        with self._connections.write() as connection:
            return put_images(
                connection,
                name,
                images,
                vectors,
                spec=spec,
                provenance=provenance,
                on_conflict=on_conflict,
                fields=self.fields.named,
            )

    def change_metadata(
        self, name: str, image_id: str, change: Callable[[Metadata], Metadata]
    ) -> ImageRecord:
        """Writes `change(metadata)` of a picture. Raises `ImageNotFoundError`."""
        with self._connections.write() as connection:
            row = read_collection(connection, name)
            found = read_images(connection, row, [image_id]) if row else {}
            if row is None or image_id not in found:
                raise image_not_found(name, image_id)
            seq, old = found[image_id]
            connection.execute(
                "UPDATE images SET metadata = ?, updated_at = ? WHERE seq = ?",
                (canonical_json(change(old.metadata)), utc_now(), seq),
            )
            return read_images(connection, row, [image_id])[image_id][1]

    def refer(self, name: str, image: NewImage) -> None:
        """Writes where a picture's file lies by now, see `Store.refer`."""
        sql = (
            "UPDATE images SET source = ? WHERE id = ? AND sha256 = ?"
            " AND collection = (SELECT id FROM collections WHERE name = ?)"
        )
        with self._connections.write() as connection:
            connection.execute(sql, (image.source, image.id, image.sha256, name))

    def delete(self, name: str, image_id: str) -> tuple[CollectionRow, int]:
        """Removes a picture; gives its collection and seq. Raises `ImageNotFoundError`."""
        with self._connections.write() as connection:
            row = read_collection(connection, name)
            found = read_images(connection, row, [image_id]) if row else {}
            if row is None or image_id not in found:
                raise image_not_found(name, image_id)
            seq = found[image_id][0]
            connection.execute("DELETE FROM images WHERE seq = ?", (seq,))
            return row, seq

    def last_seq(self) -> int:
        """The highest seq ever given."""
        with self._connections.read() as connection:
            return last_seq(connection)
