"""One collection's index while the store is open: loaded, followed, saved, made smaller."""

from __future__ import annotations

import logging

import numpy as np

from app.errors import StorageError
from app.store.local.catalog import Catalog
from app.store.local.catalog_rows import CollectionRow
from app.store.local.coalescer import Coalescer
from app.store.local.faiss_index import FlatIndex, Found
from app.store.local.generations import Generations
from app.store.local.rwlock import ReadWriteLock
from app.store.vectors import Seqs, Vectors

_SAMPLED = 16  # vectors that a saved index is compared with the catalog by
_SAVE_AFTER = 20_000  # changes, and at least half of the rows
_SAVE_AT_CLOSE = 0.01  # changes as a part of the rows; fewer are cheaper to add again
_COMPACT_AFTER = 1_000  # tombstones, and at least a quarter of the rows
_JOINED_K = 100  # searches for more matches would slow those that they join

log = logging.getLogger(__name__)


class LiveIndex:
    """An index that searches share and changes exclude.

    Whoever calls `apply`, `tidy` or `save` holds the store's change lock, so that seqs arrive in
    order and a save sees no change; `search` needs no lock from its caller.

    Attributes:
        row: The collection it belongs to.
    """

    def __init__(self, row: CollectionRow, generations: Generations, index: FlatIndex) -> None:
        self.row = row
        self._generations = generations
        self._index = index
        self._lock = ReadWriteLock()
        self._joined = Coalescer(self._search_all)
        self._changes = 0

    @classmethod
    def load(cls, catalog: Catalog, row: CollectionRow, generations: Generations) -> LiveIndex:
        """The newest saved index that fits, brought up to date; else one built from the catalog."""
        held = catalog.embedded(row)
        index = generations.load(row)
        if index and not _agree(index, catalog, row, held):
            log.warning("The saved index of %r is not of this catalog", row.name)
            generations.discard()
            index = None
        if index is None and len(held):
            log.warning("Building the index of %r from %d stored vectors", row.name, len(held))
        live = cls(row, generations, index or FlatIndex(row.passport.dim))
        live._catch_up(catalog, held)
        return live

    @classmethod
    def build(cls, catalog: Catalog, row: CollectionRow, generations: Generations) -> LiveIndex:
        """An index of what is in the catalog now, whatever was saved before."""
        generations.discard()
        live = cls(row, generations, FlatIndex(row.passport.dim))
        live._catch_up(catalog, catalog.embedded(row))
        return live

    def catch_up(self, catalog: Catalog) -> bool:
        """Follows all changes since it was loaded, before the first search.

        False where vectors came that belong before those it has: it must be loaded anew.
        """
        held = catalog.embedded(self.row)
        self._catch_up(catalog, held)
        return len(self._index) - self._index.dead == len(held)

    def _catch_up(self, catalog: Catalog, held: Seqs) -> None:
        gone = np.setdiff1d(self._index.seqs, held, assume_unique=True)
        self._index.remove(gone)
        self._changes += len(gone)
        for seqs, vectors in catalog.vectors_after(self.row, self._index.last_seq):
            self._index.add(seqs, vectors)
            self._changes += len(seqs)
        self.tidy()

    def search(
        self, queries: Vectors, *, k: int, among: Seqs | None, without: Seqs | None
    ) -> list[Found] | None:
        """The k best rows of each query, see `FlatIndex.search`; with seqs for positions.

        None where `among` or `without` name rows that are not here: the catalog is ahead of the
        index, or behind it, for a moment.
        """
        if among is None and without is None and k <= _JOINED_K:
            return self._joined.search(queries, k)
        with self._lock.read():
            index = self._index
            allowed = None if among is None else index.locate(among)
            left_out = None if without is None else index.locate(without)
            for asked, here in ((among, allowed), (without, left_out)):
                if asked is not None and here is not None and len(asked) != len(here):
                    return None
            return index.search(queries, k=k, among=allowed, without=left_out)

    def _search_all(self, queries: Vectors, k: int) -> list[Found]:
        with self._lock.read():
            return self._index.search(queries, k=k)

    def apply(self, seqs: Seqs, vectors: Vectors, *, removed: Seqs) -> None:
        """Adds and removes rows as one change."""
        with self._lock.write():
            self._index.add(seqs, vectors)
            self._index.remove(removed)
        self._changes += len(seqs) + len(removed)

    def tidy(self) -> None:
        """Drops tombstones where they pile up, and saves after many changes."""
        index = self._index
        if index.dead > _COMPACT_AFTER and index.dead > len(index) // 4:
            smaller = index.compacted()
            with self._lock.write():
                self._index = smaller
        if self._changes > _SAVE_AFTER and self._changes > len(index) // 2:
            self.save()

    def save(self) -> None:
        """Saves a generation; where the disk refuses, the log says so and nothing is lost."""
        try:
            self._generations.save(self._index, self.row)
        except StorageError as exc:
            log.warning("The index of %r was not saved: %s", self.row.name, exc)
        self._changes = 0

    def close(self) -> None:
        """Saves what would be tedious to add again."""
        if self._changes and self._changes >= _SAVE_AT_CLOSE * len(self._index):
            self.save()

    @property
    def tombstones(self) -> int:
        """Rows that are gone but still held."""
        return self._index.dead

    @property
    def bytes(self) -> int:
        """Memory that the vectors take, tombstones included."""
        return 4 * self._index.dim * len(self._index)


def _agree(index: FlatIndex, catalog: Catalog, row: CollectionRow, held: Seqs) -> bool:
    """Whether a saved index was made of this catalog, and not e.g. of a later one.

    A catalog that was restored from a backup gives seqs again that the index knows; a few vectors
    are compared to see it.
    """
    covered = held[held <= index.last_seq]
    if index.last_seq > catalog.last_seq() or len(index.locate(covered)) != len(covered):
        return False
    picked = covered[:: max(1, len(covered) // _SAMPLED)]
    seqs, vectors = catalog.vectors_at(row, picked.tolist())
    return np.array_equal(index.vectors(index.locate(seqs)), vectors)
