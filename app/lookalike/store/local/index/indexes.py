"""The indexes of all collections: loaded when first needed, following the catalog."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lookalike.files.disk import disk_errors, make_folders
from lookalike.progress import TaskEndedError
from lookalike.store.base import Vectors
from lookalike.store.local.catalog import Catalog, CollectionRow, Written
from lookalike.store.local.index.generations import Generations
from lookalike.store.local.index.live import LiveIndex
from lookalike.store.local.index.policy import IndexPolicy
from lookalike.worker import Worker

log = logging.getLogger(__name__)


class Indexes:
    """One `LiveIndex` for each vector space that was asked for.

    Args:
        catalog: What the indexes are derived from.
        folder: Where they are saved; made if it is missing.
        policy: What is built, and how it is searched.
        change: The store's change lock. Callers of anything but `get`, `build`, `rebuild`, `stop`
            and `describe` hold it.
        read_only: True if another process may own the folder, so that nothing is saved.

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
    """Builds indexes that are due, one after the other, in the background.

    Args:
        change: The store's change lock.
        poll_s: Seconds after which it looks for interrupted builds to try again.
    """

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
