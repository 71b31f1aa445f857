"""One collection's index while the store is open: searched, followed, saved, exchanged."""

from __future__ import annotations

import logging
import threading
from typing import Any

from lookalike.errors import StorageError
from lookalike.store.effort import Effort
from lookalike.store.local.catalog import Catalog, CollectionRow
from lookalike.store.local.index.building import IndexBuilding, follow
from lookalike.store.local.index.coalescer import Coalescer
from lookalike.store.local.index.facts import index_facts
from lookalike.store.local.index.flat_index import FlatIndex, Found
from lookalike.store.local.index.flat_rows import MAPPED_BYTES
from lookalike.store.local.index.generations import Generations
from lookalike.store.local.index.index_types import EXACT
from lookalike.store.local.index.policy import Index, IndexPolicy
from lookalike.store.local.index.rwlock import ReadWriteLock
from lookalike.store.vectors import Seqs, Vectors

_SAVE_AFTER = 20_000  # changes, and at least half of the rows
_SAVE_AT_CLOSE = 0.01  # changes as a part of the rows; fewer are cheaper to add again
_COMPACT_AFTER = 1_000  # tombstones, and at least a quarter of the rows
_JOINED_K = 100  # searches for more matches would slow those that they join

log = logging.getLogger(__name__)


class LiveIndex:
    """An index that searches share and changes exclude.

    Whoever calls `apply`, `tidy` or `save` holds the store's change lock, so that seqs arrive in
    order and a save sees no change; `search` and `rebuild` need no lock from their caller.

    Args:
        row: The collection and embedding set that it belongs to.
        generations: Where it is saved.
        policy: What is built, and how it is searched.

    Attributes:
        row: As given.
    """

    def __init__(self, row: CollectionRow, generations: Generations, policy: IndexPolicy) -> None:
        self.row = row
        self._generations = generations
        self._policy = policy
        self._building = IndexBuilding(row, generations, policy)
        self._index: Index = FlatIndex(row.spec.dim)
        self._lock = ReadWriteLock()
        self._joined = Coalescer(self._search_all)
        self._rebuilding = threading.Lock()
        self._changes = 0

    def load(self, catalog: Catalog) -> None:
        """Takes what was saved, brought up to date; else builds from the catalog."""
        self._index, self._changes = self._building.load(catalog)
        self.tidy()

    def make(self, catalog: Catalog) -> None:
        """Makes an exact index of a set that nobody searches yet."""
        self._index, self._changes = self._building.make(catalog)

    def catch_up(self, catalog: Catalog) -> bool:
        """Follows all changes since it was loaded; searches wait.

        False where vectors came that belong before those it has: it must be loaded anew.
        """
        with self._lock.write():
            held = catalog.embedded(self.row)
            self._changes += follow(self._index, catalog, self.row, held)
            return len(self._index) - self._index.dead == len(held)

    def search(
        self,
        queries: Vectors,
        *,
        k: int,
        among: Seqs | None,
        without: Seqs | None,
        effort: Effort | None = None,
    ) -> list[Found] | None:
        """The k best rows of each query, see `FlatIndex.search`; with seqs for positions.

        None where `among` or `without` name rows that are not here: the catalog is ahead of the
        index, or behind it, for a moment.
        """
        before, exact = self._index, self.is_exact
        plain = among is None and without is None and k <= _JOINED_K
        if plain and (effort is None or exact):
            found = self._joined.search(queries, k)
            if effort is None or self._index is before:  # no other took its place meanwhile
                return found
        how = (effort or Effort()).over(self._policy.effort)
        with self._lock.read():
            index = self._index
            allowed = None if among is None else index.locate(among)
            left_out = None if without is None else index.locate(without)
            for asked, here in ((among, allowed), (without, left_out)):
                if asked is not None and here is not None and len(asked) != len(here):
                    return None
            finish = index.begin_search(queries, k=k, among=allowed, without=left_out, effort=how)
        return finish()

    def _search_all(self, queries: Vectors, k: int) -> list[Found]:
        with self._lock.read():
            finish = self._index.begin_search(
                queries, k=k, among=None, without=None, effort=self._policy.effort
            )
        return finish()

    def apply(self, seqs: Seqs, vectors: Vectors, *, removed: Seqs) -> None:
        """Adds and removes rows as one change."""
        with self._lock.write():
            self._index.add(seqs, vectors)
            self._index.remove(removed)
        self._changes += len(seqs) + len(removed)

    def tidy(self) -> None:
        """Drops tombstones where they pile up, and saves after many changes."""
        index = self._index
        if not isinstance(index, FlatIndex):
            return  # what came since it was built is in the catalog
        if index.dead > _COMPACT_AFTER and index.dead > len(index) // 4:
            smaller = index.compacted()
            with self._lock.write():
                self._index = smaller
        large = index.bytes >= MAPPED_BYTES  # built anew in the background, with a mapped file
        if not large and self._changes > _SAVE_AFTER and self._changes > len(index) // 2:
            self.save()

    def save(self) -> None:
        """Saves a generation; where the disk refuses, the log says so and nothing is lost."""
        if not self._rebuilding.acquire(blocking=False):
            return  # a newer one is on its way
        try:
            self._generations.save(self._index.blocks(), self.row)
            self._generations.keep_newest()
        except StorageError as exc:
            log.warning("The index of %r was not saved: %s", self.row.name, exc)
        finally:
            self._rebuilding.release()
        self._changes = 0

    def close(self) -> None:
        """Saves what would be tedious to add again."""
        worth_it = self._changes >= max(1, _SAVE_AT_CLOSE * len(self._index))
        if isinstance(self._index, FlatIndex) and worth_it:
            self.save()

    @property
    def due(self) -> bool:
        """Whether it should be built anew."""
        return self._building.due(self._index) is not None

    @property
    def waiting(self) -> bool:
        """Whether a build was interrupted, and is due again after some time."""
        return self._building.waiting

    def stop(self) -> None:
        """Ends a build that is under way: nobody needs the index any more."""
        self._building.stop.set()

    def rebuild(self, catalog: Catalog, change: threading.RLock) -> bool:
        """Builds what is due while searches and changes go on, and takes it in one step.

        Args:
            catalog: What it is built of.
            change: The store's change lock, held for the last changes and the exchange alone.

        Raises:
            BuildStoppedError: `stop` was called.
        """
        with self._rebuilding:
            plan = self._building.due(self._index)
            if plan is None:
                return False
            rows = len(self._index) - self._index.dead
            built = self._building.build(catalog, plan, rows)
            if built is None:
                return False
            follow(built, catalog, self.row, catalog.embedded(self.row))
            with change:
                follow(built, catalog, self.row, catalog.embedded(self.row))
                before = self._exchange(built)
                self._changes = 0
            del before  # freed, and its files removed, while nobody waits for a lock
            self._generations.keep_newest()
            log.info(
                "The index of %r is %s now: %s", self.row.name, plan.factory or EXACT, plan.reason
            )
            return True

    def _exchange(self, built: Index) -> Index:
        with self._lock.write():
            before, self._index = self._index, built
        return before

    @property
    def is_exact(self) -> bool:
        """Whether every row is scored, so that none of the best can be missed."""
        index = self._index
        return isinstance(index, FlatIndex) or index.factory is None

    def describe(self) -> dict[str, Any]:
        """Facts about it; bytes of memory and of mapped files."""
        facts = index_facts(self._index, self._policy)
        if self._building.failure:
            facts["failure"] = self._building.failure
        if under_way := self._building.stage:  # read once: the build goes on
            stage, done, total = under_way
            facts["building"] = {"stage": stage, "done": done, "total": total}
        return facts
