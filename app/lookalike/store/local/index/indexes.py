"""The indexes of all collections: loaded when first needed, following the catalog."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lookalike.errors import StorageError
from lookalike.files.artifacts import BrokenArtifactError
from lookalike.files.disk import disk_errors, make_folders
from lookalike.progress import TaskEndedError, Worker
from lookalike.records import Effort
from lookalike.store.base import Seqs, Vectors
from lookalike.store.local.catalog import Catalog
from lookalike.store.local.index.building import (
    BuildError,
    BuildProgress,
    Generations,
    Retries,
    build,
)
from lookalike.store.local.index.policy import EXACT, IndexPolicy, Plan
from lookalike.store.local.index.segments import ExactSegment, Found, Segments, in_memory
from lookalike.store.local.rows import CollectionRow

_SAVED_SHARE = 0.01  # changes as a part of the rows; fewer are cheaper to add again
_JOINED_K = 100  # searches for more matches would slow those that they join
_PAUSE_S = 0.0005  # after each block that a build reads, so that searches run
_COMPARED = 16  # vectors that a saved index is compared with the catalog by

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Ticket:
    queries: Vectors
    k: int
    result: Future[list[Found]] = field(default_factory=Future)


class Coalescer:
    """Searches for the queries of many threads together: a batch costs little more than one query.

    A few searches run side by side, each on its caller's thread. If more arrive, they gather until
    one of these ends; then one of their callers searches for all of them.
    """

    def __init__(self, search: Callable[[Vectors, int], list[Found]], *, places: int = 3) -> None:
        self._search = search
        self._changed = threading.Condition()
        self._places = places
        self._waiting: list[_Ticket] = []

    def search(self, queries: Vectors, k: int) -> list[Found]:
        """Returns what `search` returns, and raises what it raises for the batch."""
        ticket = _Ticket(queries, k)
        with self._changed:
            self._waiting.append(ticket)
            self._changed.wait_for(
                lambda: ticket.result.done() or (self._places and ticket in self._waiting)
            )
            if ticket.result.done():
                return ticket.result.result()
            self._places -= 1
            batch, self._waiting = self._waiting, []
        try:
            self._search_batch(batch)
        finally:
            with self._changed:
                self._places += 1
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
    """The index of one vector space: what searches use, and how it is loaded, synced and built.

    Searches take `_index` as it is at the moment; it is never changed, only replaced. Whoever
    replaces it holds the store's change lock, so that seqs arrive in order; `search` and `rebuild`
    need no lock from their caller.
    """

    def __init__(
        self, catalog: Catalog, row: CollectionRow, generations: Generations, policy: IndexPolicy
    ) -> None:
        self.row = row
        self._catalog = catalog
        self._generations = generations
        self._policy = policy
        self._limits = policy.limits
        self._index = in_memory(ExactSegment(row.spec.dim, limits=policy.limits))
        self._joined = Coalescer(self._search_all)
        self._rebuilding = threading.Lock()
        self._changes = 0  # rows that were added or removed
        self._saved_changes = 0  # what `_changes` was when it was saved
        self._quiet_changes = 0  # below so many, no build is due
        self._progress = BuildProgress()
        self._retries = Retries(policy.limits.retry_s)
        self._failure: str | None = None

    def load(self) -> None:
        """Takes the saved index if it is of this catalog, or makes an exact one, and syncs it.

        What the policy wants beyond exact search is left to a later `rebuild`.
        """
        name, held = self.row.name, self._catalog.embedded(self.row)
        index = self._generations.load(self.row, exact=self._policy.index_type == EXACT)
        if index and not self._agrees(index, held):
            log.warning("The saved index of %r is not of this catalog", name)
            index = None
        if index is None:
            if len(held):
                log.warning("Building the index of %r from %d stored vectors", name, len(held))
            self.make()
        else:
            self._index = index
            self.sync()
        self._tidy()

    def make(self) -> None:
        """Makes an exact index, without what was saved."""
        self._generations.discard()
        self._index = self._exact(len(self._catalog.embedded(self.row)))
        self.sync()

    def _exact(self, rows: int) -> Segments:
        """An exact index; if its rows are many, they are written to a file that is mapped."""
        if 4 * rows * self.row.spec.dim >= self._limits.mapped_bytes:
            try:
                if self._generations.save(self._catalog.vectors_after(self.row, 0), self.row):
                    mapped = self._generations.load(self.row, exact=True)
                    if mapped:
                        return mapped
            except StorageError as exc:
                log.warning("The index of %r is kept in memory: %s", self.row.name, exc)
        return in_memory(ExactSegment(self.row.spec.dim, limits=self._limits))

    def _agrees(self, index: Segments, held: Seqs) -> bool:
        """True if a saved index was made from this catalog."""
        # One restored from a backup gives seqs again that the index knows: a few vectors show it.
        rows = index.sealed if len(index.sealed) else index.growing
        covered = held[held <= rows.last_seq]
        in_catalog = rows.last_seq <= self._catalog.last_seq()
        if not in_catalog or len(rows.locate(covered)) != len(covered):
            return False
        picked = covered[:: max(1, len(covered) // _COMPARED)]
        seqs, vectors = self._catalog.vectors_at(self.row, picked.tolist())
        return np.array_equal(rows.vectors[rows.locate(seqs)], vectors)

    def sync(self) -> bool:
        """Follows all changes; False if vectors were added below its last seq: it misses them."""
        self._take(self._synced(self._index))
        return self._index.live_rows == len(self._catalog.embedded(self.row))

    def _synced(self, index: Segments) -> Segments:
        """An index brought up to date with the catalog."""
        held = self._catalog.embedded(self.row)
        index = index.removed(np.setdiff1d(index.live_seqs, held, assume_unique=True))
        for seqs, vectors in self._catalog.vectors_after(self.row, index.last_seq):
            index = index.added(seqs, vectors)
        return index

    def _take(self, index: Segments) -> None:
        """Replaces the index that searches use."""
        before, self._index = self._index, index
        self._changes += len(index) - len(before) + index.dead - before.dead

    def search(
        self,
        queries: Vectors,
        *,
        k: int,
        allowed: Seqs | None,
        excluded: Seqs | None,
        effort: Effort | None = None,
    ) -> list[Found] | None:
        """The k best rows of each query; None while the catalog is ahead or behind of the index."""
        plain = allowed is None and excluded is None and k <= _JOINED_K
        if plain and (effort is None or self.is_exact):
            found = self._joined.search(queries, k)
            if effort is None or self.is_exact:  # no approximate one took its place meanwhile
                return found
        effort = (effort or Effort()).over(self._policy.effort)
        return self._index.search(queries, k=k, allowed=allowed, excluded=excluded, effort=effort)

    def _search_all(self, queries: Vectors, k: int) -> list[Found]:
        return self._index.search(queries, k=k, effort=self._policy.effort) or []

    def apply(self, seqs: Seqs, vectors: Vectors, *, removed: Seqs) -> None:
        """Adds and removes rows as one change."""
        self._take(self._index.added(seqs, vectors).removed(removed))
        self._tidy()

    def _tidy(self) -> None:
        """Drops tombstones once they pile up, and saves after many changes."""
        limits, index = self._limits, self._index
        if len(index.sealed):
            return  # rows added since it was built are in the catalog
        if index.dead > limits.compacted_rows and index.dead > len(index) // 4:
            self._index = index = in_memory(index.growing.compacted())
        # A large one is built anew in the background, with a mapped file.
        unsaved = self._changes - self._saved_changes
        large = index.bytes >= limits.mapped_bytes
        if not large and unsaved > max(limits.saved_changes, len(index) // 2):
            self.save()

    def save(self) -> None:
        """Saves it; if the disk refuses, the log says so and nothing is lost."""
        if not self._rebuilding.acquire(blocking=False):
            return  # a newer one is being built
        try:
            self._catalog.connections.check()  # rather than make a folder that was taken away anew
            self._generations.save(self._index.blocks(), self.row)
        except StorageError as exc:
            log.warning("The index of %r was not saved: %s", self.row.name, exc)
        finally:
            self._rebuilding.release()
        self._saved_changes = self._changes

    def close(self) -> None:
        """Saves what would take long to add again."""
        unsaved = self._changes - self._saved_changes
        if unsaved >= max(1, _SAVED_SHARE * len(self._index)) and not len(self._index.sealed):
            self.save()
        self._generations.release()

    def is_whole(self) -> bool:
        """False if a mapped file is damaged; large ones are read for that, once and with pauses.

        The log says what is wrong. Raises `TaskEndedError` after `stop`.
        """

        def step() -> None:
            time.sleep(_PAUSE_S)
            self._progress.check()

        try:
            self._generations.read_rest(step)
        except (BrokenArtifactError, OSError) as exc:
            self._progress.check()  # if the collection was dropped, its folder went with it
            log.warning("The saved index of %r cannot be used: %s", self.row.name, exc)
            return False
        return True

    @property
    def is_cut(self) -> bool:
        """True if a file that searches read was cut."""
        return self._index.is_cut

    def stop(self) -> None:
        """Ends a build that is under way: nobody needs the index any more."""
        self._progress.stopped.set()

    @property
    def may_be_due(self) -> bool:
        """False if it was found to serve well, and few rows were added or removed since."""
        return self._changes >= self._quiet_changes

    def _due(self) -> Plan | None:
        """What to build now; None if the index serves well, or a build has just failed."""
        changes, index = self._changes, self._index  # in this order: changes go on
        if not self._retries.allowed(index.live_rows):
            return None
        plan = self._policy.due(index)
        if plan is None:
            self._quiet_changes = changes + self._policy.changes_until_due(index)
        return plan

    def rebuild(self, change: threading.RLock) -> bool:
        """Builds what is due, and takes it in one step. Raises `TaskEndedError` after `stop`.

        Searches and changes go on: the change lock is held only for the last changes.
        """
        with self._rebuilding:
            plan = self._due()
            if plan is None:
                return False
            self._progress.check()
            kind, rows = plan.factory or EXACT, self._index.live_rows
            try:
                self._replace(self._save_built(plan.factory, rows), change)
            except TaskEndedError:
                raise
            except Exception as exc:  # whatever it is, it would fail again at once
                # If the collection was dropped, its folder went with it.
                self._progress.check()
                self._failure = f"{kind} was not built: {str(exc) or type(exc).__name__}"
                if isinstance(exc, BuildError):
                    self._retries.failed(rows)
                else:
                    self._retries.interrupted()
                log.warning("The index of %r stays as it is: %s", self.row.name, self._failure)
                return False
            finally:
                self._progress.now = None
            self._failure = None
            self._retries.succeeded()
            log.info("The index of %r is %s now: %s", self.row.name, kind, plan.reason)
            return True

    def _replace(self, built: Segments, change: threading.RLock) -> None:
        """Has searches use an index that was built, once it is synced with the catalog."""
        built = self._synced(built)
        with change:
            before, self._index = self._index, self._synced(built)
            self._saved_changes = self._changes
        del before, built  # freed, and its files removed, while nobody waits for a lock

    def _save_built(self, factory: str | None, rows: int) -> Segments:
        self._progress.report(0, rows, stage="read")
        self._catalog.connections.check()
        self._generations.require_room(rows, self.row.spec.dim)
        how: dict[str, Any] = {"policy": self._policy, "progress": self._progress}
        how |= {"dim": self.row.spec.dim, "factory": factory}
        candidates = partial(build, **how) if factory else None
        self._generations.save(self._paced_blocks(rows), self.row, build=candidates)
        built = self._generations.load(self.row, exact=False)
        if built is None or built.factory != factory:  # it would be due again at once
            raise BuildError("what was saved cannot be read")
        return built

    def _paced_blocks(self, rows: int) -> Iterator[tuple[Seqs, Vectors]]:
        """All vectors, with a pause after each block; ends the build if room gets short."""
        blocks = self._catalog.vectors_after(self.row, 0, block_bytes=self._limits.block_bytes)
        done = 0
        for number, block in enumerate(blocks):
            time.sleep(_PAUSE_S)
            self._progress.check()
            if number % self._limits.room_blocks == 0:
                self._generations.require_room(0, self.row.spec.dim)
            yield block
            done += len(block[0])
            self._progress.report(min(done, rows), rows, stage="read")
        self._progress.check()

    @property
    def is_exact(self) -> bool:
        """True if every row is scored, so that none of the best can be missed."""
        return self._index.approximate is None

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
        if self._failure:
            facts["failure"] = self._failure
        if now := self._progress.now:  # read once: the build goes on
            facts["building"] = dict(zip(("stage", "done", "total"), now, strict=True))
        return facts


class Indexes:
    """One `LiveIndex` for each vector space that was asked for; builds those that are due.

    Callers of anything but `get`, `build`, `rebuild`, `stop` and `describe` hold the store's change
    lock; those of `rebuild` and `stop` do not.
    """

    def __init__(
        self,
        catalog: Catalog,
        folder: Path,
        *,
        policy: IndexPolicy,
        change: threading.RLock,
        read_only: bool,
    ) -> None:
        self._catalog = catalog
        self._folder = folder
        self._policy = policy
        self._change = change
        self._read_only = read_only
        self._live: dict[int, LiveIndex] = {}
        failure, poll_s = "An index was not built anew", policy.limits.poll_s
        self._worker = Worker("indexes", self._rebuild_all, failure=failure, every_s=poll_s)
        if not read_only:
            self._remove_unknown()

    def get(self, row: CollectionRow) -> LiveIndex | None:
        """A collection's index, loaded if it was not; None if the collection was dropped.

        One whose file was cut is made again first: a search in it would end the process.
        """
        live = self._live.get(row.space)
        if live is not None and live.is_cut:
            log.warning("A file of the index of %r was cut while it was in use", row.name)
            self._make_again(live)
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

    def _make_again(self, live: LiveIndex) -> None:
        with self._change:
            if self._live.get(live.row.space) is live:
                self.remake(live.row)

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

    def build(self, row: CollectionRow) -> LiveIndex:
        """The index of a set that is not active, unknown to searches until `switch`."""
        live = self._new(row)
        live.make()
        return live

    def sync(self, built: LiveIndex) -> None:
        """Has an index from `build` follow all changes since, or makes it anew if that cannot be.

        Changes wait meanwhile: what the policy wants beyond exact search is built later.
        """
        if not built.sync():
            built.make()

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

    def made(self, row: CollectionRow) -> None:
        """Has an empty index for a collection that a commit has just made."""
        self._live[row.space] = self._new(row)

    def follow(
        self, row: CollectionRow, added: Mapping[int, int], vectors: Vectors, removed: Sequence[int]
    ) -> None:
        """Follows a commit of this process: `added` maps seqs to positions in `vectors`."""
        live = self._live.get(row.space)
        if live is None:
            return
        try:
            seqs, gone = np.array(list(added), np.int64), np.array(removed, np.int64)
            live.apply(seqs, vectors[list(added.values())], removed=gone)
            self._ask_rebuild(live)
        except Exception:  # the change is committed: it must not look as if it had failed
            log.exception("The index of %r did not follow a change; it is loaded anew", row.name)
            self._forget(row)

    def drop(self, row: CollectionRow) -> None:
        """Forgets a collection's index, and removes what was saved of it."""
        self._forget(row)
        self._generations(row).discard()

    def problem(self, row: CollectionRow, *, quick: bool) -> str | None:
        """What is wrong with a collection's saved index; None if it fits, or none is saved.

        Every vector is compared with the catalog, unless `quick`. A check in a process of its own
        asks, or its owner: nothing is loaded or changed.
        """
        try:
            index = self._generations(row).verified(row, quick=quick)
        except BrokenArtifactError as exc:
            return f"it cannot be used: {exc}"
        if index is None or quick:
            return None
        rows = index.sealed if len(index.sealed) else index.growing
        apart = 0
        for seqs, vectors in self._catalog.vectors_after(row, 0):
            covered = seqs <= rows.last_seq
            held = np.isin(seqs[covered], rows.seqs, assume_unique=True)
            same = rows.vectors[rows.locate(seqs[covered][held])] == vectors[covered][held]
            apart += int(np.count_nonzero(~held)) + int(np.count_nonzero(~same.all(axis=1)))
        return f"{apart:,} of its vectors are not those of the catalog" if apart else None

    def remake(self, row: CollectionRow) -> None:
        """Builds a collection's index from the catalog, and forgets what was saved."""
        self.drop(row)
        self.get(row)

    def close(self) -> None:
        """Saves what would take long to add again; after `stop`."""
        for live in self._live.values():
            live.close()
        self._live.clear()

    def _forget(self, row: CollectionRow) -> None:
        live = self._live.pop(row.space, None)
        if live is not None:
            live.stop()

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

    # Builds

    def rebuild(self, collection: str) -> bool:
        """Builds a collection's index anew if that is due, and waits for it; False if not."""
        row = None if self._read_only else self._catalog.collection(collection)
        live = self.get(row) if row else None
        try:
            return live is not None and live.rebuild(self._change)
        except TaskEndedError:  # the collection was dropped
            return False

    def stop(self) -> None:
        """Ends building in the background."""
        self._worker.closing.set()
        with self._change:
            for live in self._live.values():
                live.stop()
        self._worker.close()

    def _ask_rebuild(self, live: LiveIndex) -> None:
        if live.may_be_due and not self._read_only:
            self._worker.wake()

    def _rebuild_all(self) -> bool:
        """Builds what is due, one after the other, on the background's thread."""
        with self._change:
            loaded = list(self._live)
        for space in loaded:  # not the indexes: one that is dropped meanwhile must be freed
            live = self._live.get(space)
            if live is None or self._worker.closing.is_set():
                continue
            try:
                if live.is_cut or not live.is_whole():
                    self._make_again(live)
                    continue
                while live.may_be_due and live.rebuild(self._change):
                    pass  # changes meanwhile may make the next one due
            except TaskEndedError:
                pass
            except Exception:  # searches go on with the index that is there
                log.exception("The index of %r was not built anew", live.row.name)
        return False
