"""The thread that builds indexes anew, one after the other."""

from __future__ import annotations

import logging
import threading

from lookalike.store.local.catalog import Catalog
from lookalike.store.local.index.build_process import BuildStoppedError
from lookalike.store.local.index.live_index import LiveIndex

_LOOK_S = 30.0

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
        self._later: list[LiveIndex] = []
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
            self._later.clear()
            if self._current is not None:
                self._current.stop()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        while (live := self._next()) is not None:
            try:
                while live.rebuild(self._catalog, self._change):
                    pass  # what came meanwhile may make the next one due
            except BuildStoppedError:
                continue
            except Exception:  # searches go on with what is there
                log.exception("The index of %r was not built anew", live.row.name)
            if live.waiting:
                with self._changed:
                    self._later.append(live)

    def _next(self) -> LiveIndex | None:
        """Waits for an index that is to be built; None at the end."""
        with self._changed:
            self._current = None
            while not self._closed:
                for live in [one for one in self._later if not one.waiting]:
                    self._later.remove(live)
                    if live.due and live not in self._waiting:
                        self._waiting.append(live)
                if self._waiting:
                    self._current = self._waiting.pop(0)
                    return self._current
                self._changed.wait(_LOOK_S if self._later else None)
        return None
