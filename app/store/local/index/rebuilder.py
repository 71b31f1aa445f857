"""The thread that builds indexes anew, one after the other."""

from __future__ import annotations

import logging
import threading

from app.store.local.catalog.catalog import Catalog
from app.store.local.index.build_process import BuildStoppedError
from app.store.local.index.live_index import LiveIndex

log = logging.getLogger(__name__)


class Rebuilder:
    """Builds what is due in the background.

    Args:
        catalog: What indexes are built of.
        change: The store's change lock.
    """

    def __init__(self, catalog: Catalog, change: threading.RLock) -> None:
        self._catalog = catalog
        self._change = change
        self._changed = threading.Condition()
        self._waiting: list[LiveIndex] = []
        self._current: LiveIndex | None = None
        self._closed = False
        self._thread: threading.Thread | None = None

    def ask(self, live: LiveIndex) -> None:
        """Has an index built anew where that is due."""
        if not live.due:
            return
        with self._changed:
            if self._closed or live in self._waiting or live is self._current:
                return
            self._waiting.append(live)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="indexes", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def close(self) -> None:
        """Ends what is under way; the caller does not hold the change lock."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            if self._current is not None:
                self._current.stop()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._current = None
                self._changed.wait_for(lambda: self._closed or bool(self._waiting))
                if self._closed:
                    return
                self._current = live = self._waiting.pop(0)
            try:
                while live.rebuild(self._catalog, self._change):
                    pass  # what came meanwhile may make the next one due
            except BuildStoppedError:
                pass
            except Exception:  # searches go on with what is there
                log.exception("The index of %r was not built anew", live.row.name)
