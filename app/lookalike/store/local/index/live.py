"""The index of one vector space while the store is open: searched, followed, saved, replaced."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lookalike.errors import StorageError
from lookalike.records import Effort
from lookalike.store.base import Seqs, Vectors
from lookalike.store.local.catalog import Catalog, CollectionRow
from lookalike.store.local.index.building import IndexBuilding
from lookalike.store.local.index.exact import ExactSegment, Found
from lookalike.store.local.index.generations import Generations
from lookalike.store.local.index.policy import EXACT, IndexPolicy
from lookalike.store.local.index.segments import Segments, in_memory

_SAVED_SHARE = 0.01  # changes as a part of the rows; fewer are cheaper to add again
_JOINED_K = 100  # searches for more matches would slow those that they join

log = logging.getLogger(__name__)


class ReadWriteLock:
    """Readers share it, a writer has it alone; a waiting writer holds back new readers.

    Not reentrant: a reader that reads again inside may wait for a writer that waits for it.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readers = 0
        self._writing = False
        self._waiting_writers = 0

    @contextmanager
    def read(self) -> Iterator[None]:
        """Shares the lock with other readers."""
        with self._changed:
            self._changed.wait_for(lambda: not self._writing and not self._waiting_writers)
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    @contextmanager
    def write(self) -> Iterator[None]:
        """Has the lock alone."""
        with self._changed:
            self._waiting_writers += 1
            try:
                self._changed.wait_for(lambda: not self._writing and not self._readers)
            finally:
                self._waiting_writers -= 1
                self._changed.notify_all()
            self._writing = True
        try:
            yield
        finally:
            with self._changed:
                self._writing = False
                self._changed.notify_all()


@dataclass(slots=True, eq=False)
class _Ticket:
    queries: Vectors
    k: int
    result: Future[list[Found]] = field(default_factory=Future)


class Coalescer:
    """Searches for the queries of many threads together: a batch costs little more than one query.

    A few searches run side by side, each on its caller's thread. If more arrive, they wait for one
    caller that searches for all who wait, while the next ones gather.

    Args:
        search: Takes (Q, dim) queries and k; returns Q results. Called on callers' threads.
        apart: Searches at a time that are not worth joining.
    """

    def __init__(self, search: Callable[[Vectors, int], list[Found]], *, apart: int = 2) -> None:
        self._search = search
        self._apart = apart
        self._changed = threading.Condition()
        self._inside = 0
        self._leading = False
        self._waiting: list[_Ticket] = []

    def search(self, queries: Vectors, k: int) -> list[Found]:
        """Returns what `search` returns, and raises what it raises for the batch."""
        with self._changed:
            self._inside += 1
            crowded = self._inside > self._apart
        try:
            return self._join(_Ticket(queries, k)) if crowded else self._search(queries, k)
        finally:
            with self._changed:
                self._inside -= 1

    def _join(self, ticket: _Ticket) -> list[Found]:
        with self._changed:
            self._waiting.append(ticket)
            self._changed.wait_for(lambda: ticket.result.done() or not self._leading)
            if ticket.result.done():
                return ticket.result.result()
            self._leading = True
            batch, self._waiting = self._waiting, []
        try:
            self._search_batch(batch)
        finally:
            with self._changed:
                self._leading = False
                self._changed.notify_all()
        return ticket.result.result()

    def _search_batch(self, batch: list[_Ticket]) -> None:
        try:
            queries = np.concatenate([ticket.queries for ticket in batch])
            found = self._search(queries, max(ticket.k for ticket in batch))
        except BaseException as exc:
            for ticket in batch:
                ticket.result.set_exception(exc)
            return
        start = 0
        for ticket in batch:
            own = found[start : start + len(ticket.queries)]
            start += len(ticket.queries)
            ticket.result.set_result([(s[: ticket.k], seqs[: ticket.k]) for s, seqs in own])


class LiveIndex:
    """An index that searches share and changes exclude.

    Callers of `apply`, `tidy` and `save` hold the store's change lock, so that seqs arrive in order
    and a save sees no change; `search` and `rebuild` need no lock from their caller.

    Args:
        catalog: What it is made from.
        row: The collection and vector space that it belongs to.
        generations: Where it is saved.
        policy: What is built, and how it is searched.

    Attributes:
        row: As given.
    """

    def __init__(
        self, catalog: Catalog, row: CollectionRow, generations: Generations, policy: IndexPolicy
    ) -> None:
        self.row = row
        self._catalog = catalog
        self._generations = generations
        self._policy = policy
        self._building = IndexBuilding(catalog, row, generations, policy)
        self._index = in_memory(ExactSegment(row.spec.dim, limits=policy.limits))
        self._lock = ReadWriteLock()
        self._joined = Coalescer(self._search_all)
        self._rebuilding = threading.Lock()
        self._changes = 0

    def load(self) -> None:
        """Takes the saved index, synced with the catalog, or makes one from the catalog."""
        self._index, self._changes = self._building.load()
        self.tidy()

    def make(self) -> None:
        """Makes an exact index of a set that nobody searches yet."""
        self._index, self._changes = self._building.make()

    def sync(self) -> bool:
        """Follows all changes since it was loaded; searches wait.

        Returns:
            False if vectors were added below its last seq: it must be loaded anew.
        """
        with self._lock.write():
            self._changes += self._building.sync(self._index)
            return self._index.live_rows == len(self._catalog.embedded(self.row))

    def search(
        self,
        queries: Vectors,
        *,
        k: int,
        allowed: Seqs | None,
        excluded: Seqs | None,
        effort: Effort | None = None,
    ) -> list[Found] | None:
        """The k best rows of each query, best first, equal scores by seq.

        Args:
            queries: (Q, dim) float32, C-contiguous.
            k: At least 1.
            allowed: Seqs that may be found, each once; None for all.
            excluded: Seqs that are left out.
            effort: How hard to look; what is not given is set or calibrated.

        Returns:
            None if `allowed` or `excluded` names rows that are not here: for a moment, the catalog
            is ahead of the index, or behind it.
        """
        before, exact = self._index, self.is_exact
        plain = allowed is None and excluded is None and k <= _JOINED_K
        if plain and (effort is None or exact):
            found = self._joined.search(queries, k)
            if effort is None or self._index is before:  # it was not replaced meanwhile
                return found
        effort = (effort or Effort()).over(self._policy.effort)
        with self._lock.read():
            index = self._index
            positions = [None if one is None else index.locate(one) for one in (allowed, excluded)]
            for asked, here in zip((allowed, excluded), positions, strict=True):
                if asked is not None and here is not None and len(asked) != len(here):
                    return None
            prepared = index.prepare(queries, *positions, k=k)
        return index.finish(queries, prepared, k=k, effort=effort)

    def _search_all(self, queries: Vectors, k: int) -> list[Found]:
        with self._lock.read():
            index = self._index
            prepared = index.prepare(queries, None, None, k=k)
        return index.finish(queries, prepared, k=k, effort=self._policy.effort)

    def apply(self, seqs: Seqs, vectors: Vectors, *, removed: Seqs) -> None:
        """Adds and removes rows as one change."""
        with self._lock.write():
            self._index.add(seqs, vectors)
            self._index.remove(removed)
        self._changes += len(seqs) + len(removed)

    def tidy(self) -> None:
        """Drops tombstones once they pile up, and saves after many changes."""
        limits, index = self._policy.limits, self._index
        if len(index.sealed):
            return  # rows added since it was built are in the catalog
        if index.dead > limits.compacted_rows and index.dead > len(index) // 4:
            index = in_memory(index.growing.compacted())
            with self._lock.write():
                self._index = index
        # A large one is built anew in the background, with a mapped file.
        large = index.bytes >= limits.mapped_bytes
        if not large and self._changes > max(limits.saved_changes, len(index) // 2):
            self.save()

    def save(self) -> None:
        """Saves it; if the disk refuses, the log says so and nothing is lost."""
        if not self._rebuilding.acquire(blocking=False):
            return  # a newer one is being built
        try:
            self._generations.save(self._index.blocks(), self.row)
            self._generations.remove_older()
        except StorageError as exc:
            log.warning("The index of %r was not saved: %s", self.row.name, exc)
        finally:
            self._rebuilding.release()
        self._changes = 0

    def close(self) -> None:
        """Saves what would take long to add again."""
        worth_it = self._changes >= max(1, _SAVED_SHARE * len(self._index))
        if worth_it and not len(self._index.sealed):
            self.save()

    @property
    def due(self) -> bool:
        """True if it should be built anew."""
        return self._building.due(self._index) is not None

    @property
    def waiting(self) -> bool:
        """True if a build was interrupted, and will be due again after some time."""
        return self._building.retries.waiting

    def stop(self) -> None:
        """Ends a build that is under way: nobody needs the index any more."""
        self._building.progress.stopped.set()

    def rebuild(self, change: threading.RLock) -> bool:
        """Builds what is due while searches and changes go on, and takes it in one step.

        Args:
            change: The store's change lock; held only to follow the last changes and to replace
                the index.

        Raises:
            TaskEndedError: `stop` was called.
        """
        with self._rebuilding:
            plan = self._building.due(self._index)
            if plan is None:
                return False
            built = self._building.build(plan, self._index.live_rows)
            if built is None:
                return False
            self._building.sync(built)
            with change:
                self._building.sync(built)
                before = self._replace(built)
                self._changes = 0
            del before  # freed, and its files removed, while nobody waits for a lock
            self._generations.remove_older()
            log.info(
                "The index of %r is %s now: %s", self.row.name, plan.factory or EXACT, plan.reason
            )
            return True

    def _replace(self, built: Segments) -> Segments:
        with self._lock.write():
            before, self._index = self._index, built
        return before

    @property
    def is_exact(self) -> bool:
        """True if every row is scored, so that none of the best can be missed."""
        return self._index.factory is None

    def describe(self) -> dict[str, Any]:
        """Facts for `GET /info`; bytes of memory and of mapped files."""
        index = self._index
        rows = index.live_rows
        facts: dict[str, Any] = {
            "type": index.factory or EXACT,
            "reason": self._policy.explain(index),
            "bytes": index.bytes,
            "mapped_bytes": index.mapped_bytes,
            "bytes_per_picture": round(index.bytes / rows, 1) if rows else 0,
            "tombstones": index.dead,
            "since_build": len(index.growing) if len(index.sealed) else 0,
        }
        if index.approximate:
            facts["calibration"] = [
                {"k": x.k, "parameters": str(x.effort), "recall": x.recall, "ms": round(x.ms, 3)}
                for x in index.approximate.calibration.levels
            ]
        if self._building.failure:
            facts["failure"] = self._building.failure
        if now := self._building.progress.now:  # read once: the build goes on
            facts["building"] = dict(zip(("stage", "done", "total"), now, strict=True))
        return facts
