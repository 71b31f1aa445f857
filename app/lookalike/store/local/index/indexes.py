"""The indexes of all collections: loaded when first needed, following the catalog."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lookalike.errors import StorageError
from lookalike.files.disk import disk_errors, make_folders
from lookalike.progress import TaskEndedError, Worker
from lookalike.records import Effort
from lookalike.store.base import Seqs, Vectors
from lookalike.store.local.catalog import Catalog, CollectionRow, Written
from lookalike.store.local.index.building import IndexBuilding
from lookalike.store.local.index.generations import Generations
from lookalike.store.local.index.policy import EXACT, IndexPolicy
from lookalike.store.local.index.segments import ExactSegment, Found, Segments, in_memory

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

        The store's change lock is held only for the last changes and to replace the index.

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


class Indexes:
    """One `LiveIndex` for each vector space that was asked for.

    Callers of anything but `get`, `build`, `rebuild`, `stop` and `describe` hold the store's change
    lock.

    Raises:
        StorageError: The disk refuses.
    """

    def __init__(
        self,
        catalog: Catalog,
        folder: Path,
        *,
        policy: IndexPolicy,
        change: threading.RLock,
        read_only: bool = False,
    ) -> None:
        self._catalog = catalog
        self._folder = folder
        self._policy = policy
        self._change = change
        self._read_only = read_only
        self._live: dict[int, LiveIndex] = {}
        self._rebuilder = None
        if not read_only:
            self._rebuilder = Rebuilder(change, poll_s=policy.limits.poll_s)
            self._remove_unknown()

    def get(self, row: CollectionRow) -> LiveIndex | None:
        """A collection's index, loaded if it was not; None if the collection was dropped."""
        live = self._live.get(row.space)
        if live is None:
            with self._change:
                live = self._live.get(row.space)
                current = self._catalog.collection(row.name)
                if live is None and current and current.space == row.space:
                    live = self._new(row)
                    live.load()
                    self._live[row.space] = live
                    self._ask_rebuild(live)
        return live

    def describe(self, row: CollectionRow) -> dict[str, Any]:
        """Facts about a collection's index; what is saved of it, if it is not loaded."""
        live = self._live.get(row.space)
        if live is not None:
            return live.describe()
        saved = self._generations(row).saved()
        return {"bytes": 0, "reason": "not loaded yet", "saved": saved}

    def is_exact(self, row: CollectionRow) -> bool:
        """True if searches score every row; an index that is not loaded yet counts as exact."""
        live = self._live.get(row.space)
        return live is None or live.is_exact

    def rebuild(self, row: CollectionRow) -> bool:
        """Builds a collection's index anew if that is due, and waits for it.

        The caller does not hold the change lock.
        """
        live = self.get(row)
        try:
            return live is not None and live.rebuild(self._change)
        except TaskEndedError:  # the collection was dropped
            return False

    def build(self, row: CollectionRow) -> LiveIndex:
        """The index of a set that is not active, unknown to searches until `switch`.

        The caller need not hold the change lock; `synced` follows changes meanwhile.
        """
        live = self._new(row)
        live.make()
        return live

    def synced(self, built: LiveIndex) -> LiveIndex:
        """An index from `build` with all changes since, or an exact one if that cannot be.

        Changes wait meanwhile: what the policy wants beyond that is built in the background.
        """
        if built.sync():
            return built
        self._generations(built.row).discard()
        exact = self._new(built.row)
        exact.load()
        return exact

    def refresh(self, row: CollectionRow) -> None:
        """Syncs a collection's index with the catalog, including changes by other processes."""
        live = self._live.get(row.space)
        if live is not None and not live.sync():
            self._forget(row)

    def switch(self, before: CollectionRow, built: LiveIndex) -> None:
        """Lets searches use the index of the set that has become active."""
        self._live[built.row.space] = built
        self.drop(before)
        self._ask_rebuild(built)

    def follow_put(self, written: Written, vectors: Vectors) -> None:
        """Adds and removes what a put did; `vectors` are all that came with the call."""
        if written.new:
            self._live[written.row.space] = self._new(written.row)
        self._follow(written.row, vectors, added=written.added, removed=written.removed)

    def follow_delete(self, row: CollectionRow, seq: int) -> None:
        """Removes what a delete removed."""
        self._follow(row, np.empty((0, row.spec.dim), np.float32), added={}, removed=[seq])

    def drop(self, row: CollectionRow) -> None:
        """Forgets a collection's index, and removes what was saved of it."""
        self._forget(row)
        self._generations(row).discard()

    def stop(self) -> None:
        """Ends building in the background; the caller does not hold the change lock."""
        if self._rebuilder is not None:
            self._rebuilder.close()

    def close(self) -> None:
        """Saves what would take long to add again; after `stop`."""
        for live in self._live.values():
            live.close()
        self._live.clear()

    def _follow(
        self,
        row: CollectionRow,
        vectors: Vectors,
        *,
        added: Mapping[int, int],
        removed: Sequence[int],
    ) -> None:
        """Follows one commit: `added` maps seqs to positions in `vectors`."""
        live = self._live.get(row.space)
        if live is None:
            return
        try:
            seqs, gone = np.array(list(added), np.int64), np.array(removed, np.int64)
            live.apply(seqs, vectors[list(added.values())], removed=gone)
            live.tidy()
            self._ask_rebuild(live)
        except Exception:  # the change is committed: it must not look as if it had failed
            log.exception("The index of %r did not follow a change; it is loaded anew", row.name)
            self._forget(row)

    def _forget(self, row: CollectionRow) -> None:
        live = self._live.pop(row.space, None)
        if live is not None:
            live.stop()

    def _ask_rebuild(self, live: LiveIndex) -> None:
        if self._rebuilder is not None:
            self._rebuilder.ask(live)

    def _new(self, row: CollectionRow) -> LiveIndex:
        return LiveIndex(self._catalog, row, self._generations(row), self._policy)

    def _generations(self, row: CollectionRow) -> Generations:
        folder = self._folder / str(row.space)
        return Generations(folder, limits=self._policy.limits, read_only=self._read_only)

    def _remove_unknown(self) -> None:
        """Removes saved indexes of vector spaces that no longer exist."""
        known = {str(row.space) for row in self._catalog.collections()}
        with disk_errors("use the folder of indexes"):
            make_folders(self._folder.resolve())
            for folder in self._folder.iterdir():
                if folder.name not in known:
                    shutil.rmtree(folder, ignore_errors=True)


class Rebuilder:
    """Builds indexes that are due, one after the other, in the background."""

    def __init__(self, change: threading.RLock, *, poll_s: float) -> None:
        self._change = change
        self._lock = threading.Lock()
        self._queue: list[LiveIndex] = []
        self._interrupted: list[LiveIndex] = []
        self._current: LiveIndex | None = None
        self._worker = Worker(
            "indexes", self._step, failure="An index was not built anew", every_s=poll_s
        )

    def ask(self, live: LiveIndex) -> None:
        """Has an index built anew if that is due."""
        if not live.due:
            return
        with self._lock:
            if live not in self._queue:
                self._queue.append(live)
        self._worker.wake()

    def close(self) -> None:
        """Ends a build that is under way; the caller does not hold the change lock."""
        self._worker.closing.set()
        with self._lock:
            if self._current is not None:
                self._current.stop()
        self._worker.close()

    def _step(self) -> bool:
        live = self._next()
        if live is None:
            return False
        try:
            while live.rebuild(self._change):
                pass  # changes meanwhile may make the next one due
        except TaskEndedError:
            return True
        except Exception:  # searches go on with the index that is there
            log.exception("The index of %r was not built anew", live.row.name)
        if live.waiting:
            self._interrupted.append(live)
        return True

    def _next(self) -> LiveIndex | None:
        with self._lock:
            self._current = None
            if self._worker.closing.is_set():
                return None
            for live in [one for one in self._interrupted if not one.waiting]:
                self._interrupted.remove(live)
                if live.due and live not in self._queue:
                    self._queue.append(live)
            if self._queue:
                self._current = self._queue.pop(0)
            return self._current
