"""The indexes of all collections: loaded when first needed, following the catalog."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lookalike.files.disk import disk_errors, make_folders
from lookalike.store.local.catalog import Catalog, CollectionRow, Written
from lookalike.store.local.index.build_process import BuildStoppedError
from lookalike.store.local.index.generations import Generations
from lookalike.store.local.index.live_index import LiveIndex
from lookalike.store.local.index.policy import IndexPolicy
from lookalike.store.local.index.rebuilder import Rebuilder
from lookalike.store.vectors import Vectors

log = logging.getLogger(__name__)


class Indexes:
    """One `LiveIndex` for each embedding set that was asked for.

    Args:
        catalog: What the indexes are derived from.
        folder: Where they are saved, made where it does not exist.
        policy: What is built, and how it is searched.
        read_only: Whether another process may own the folder, so that nothing is saved.
        change: The store's change lock; whoever calls anything but `get`, `build` and `describe`
            holds it.

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
        self._rebuilder = None if read_only else Rebuilder(catalog, change)
        if not read_only:
            self._remove_strangers()

    def get(self, row: CollectionRow) -> LiveIndex | None:
        """A collection's index, loaded where it was not; None where it was dropped meanwhile."""
        live = self._live.get(row.embedding)
        if live is None:
            with self._change:
                live = self._live.get(row.embedding)
                current = self._catalog.collection(row.name)
                if live is None and current and current.embedding == row.embedding:
                    live = self._new(row)
                    live.load(self._catalog)
                    self._live[row.embedding] = live
                    self._keep_fit(live)
        return live

    def describe(self, row: CollectionRow) -> dict[str, Any]:
        """Facts about a collection's index; that it is not loaded, where it is not."""
        live = self._live.get(row.embedding)
        return live.describe() if live else {"bytes": 0, "reason": "not loaded yet"}

    def is_exact(self, row: CollectionRow) -> bool:
        """Whether searches score every row; an index that is not loaded yet counts as exact."""
        live = self._live.get(row.embedding)
        return live is None or live.is_exact

    def rebuild(self, row: CollectionRow) -> bool:
        """Builds a collection's index anew where that is due, and waits for it.

        The caller does not hold the change lock.
        """
        live = self.get(row)
        try:
            return live is not None and live.rebuild(self._catalog, self._change)
        except BuildStoppedError:  # it was dropped meanwhile
            return False

    def build(self, row: CollectionRow) -> LiveIndex:
        """The index of a set that is not active, unknown to searches until `switch`.

        The caller need not hold the change lock; changes meanwhile are for `caught_up`.
        """
        live = self._new(row)
        live.make(self._catalog)
        return live

    def caught_up(self, built: LiveIndex) -> LiveIndex:
        """An index from `build` with all changes since, or an exact one where that cannot be.

        Changes wait meanwhile: what the policy says beyond that is built in the background.
        """
        if built.catch_up(self._catalog):
            return built
        self._generations(built.row).discard()
        exact = self._new(built.row)
        exact.load(self._catalog)
        return exact

    def refresh(self, row: CollectionRow) -> None:
        """Brings a collection's index to where the catalog is, by whoever it was changed."""
        live = self._live.get(row.embedding)
        if live is not None and not live.catch_up(self._catalog):
            live.stop()
            self._live.pop(row.embedding, None)

    def switch(self, before: CollectionRow, built: LiveIndex) -> None:
        """Gives searches the index of the set that has become active."""
        self._live[built.row.embedding] = built
        self.drop(before)
        self._keep_fit(built)

    def follow_put(self, written: Written, vectors: Vectors) -> None:
        """Adds and removes what a put did; `vectors` are all that came with the call."""
        row = written.row
        if written.new:
            self._live[row.embedding] = self._new(row)

        def change(live: LiveIndex) -> None:
            added = np.array(list(written.added), dtype=np.int64)
            removed = np.array(written.removed, dtype=np.int64)
            live.apply(added, vectors[list(written.added.values())], removed=removed)

        self._follow(row, change)

    def follow_delete(self, row: CollectionRow, seq: int) -> None:
        """Removes what a delete removed."""

        def change(live: LiveIndex) -> None:
            none, nothing = np.empty(0, np.int64), np.empty((0, row.spec.dim), np.float32)
            live.apply(none, nothing, removed=np.array([seq], dtype=np.int64))

        self._follow(row, change)

    def drop(self, row: CollectionRow) -> None:
        """Forgets a collection's index, and removes what was saved of it."""
        live = self._live.pop(row.embedding, None)
        if live is not None:
            live.stop()
        self._generations(row).discard()

    def stop(self) -> None:
        """Ends building in the background; the caller does not hold the change lock."""
        if self._rebuilder is not None:
            self._rebuilder.close()

    def close(self) -> None:
        """Saves what would be tedious to add again; after `stop`."""
        for live in self._live.values():
            live.close()
        self._live.clear()

    def _follow(self, row: CollectionRow, change: Callable[[LiveIndex], None]) -> None:
        live = self._live.get(row.embedding)
        if live is None:
            return
        try:
            change(live)
            live.tidy()
            self._keep_fit(live)
        except Exception:  # the change is committed: it must not look as if it had failed
            log.exception("The index of %r did not follow a change; it is loaded anew", row.name)
            live.stop()
            self._live.pop(row.embedding, None)

    def _keep_fit(self, live: LiveIndex) -> None:
        if self._rebuilder is not None:
            self._rebuilder.ask(live)

    def _new(self, row: CollectionRow) -> LiveIndex:
        return LiveIndex(row, self._generations(row), self._policy)

    def _generations(self, row: CollectionRow) -> Generations:
        return Generations(self._folder / str(row.embedding), read_only=self._read_only)

    def _remove_strangers(self) -> None:
        """Removes saved indexes of embedding sets that are gone."""
        known = {str(row.embedding) for row in self._catalog.collections()}
        with disk_errors("use the folder of indexes"):
            make_folders(self._folder.resolve())
            for folder in self._folder.iterdir():
                if folder.name not in known:
                    shutil.rmtree(folder, ignore_errors=True)
