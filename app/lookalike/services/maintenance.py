"""Housekeeping in the background: files that no row names are swept away."""

from __future__ import annotations

import logging
import threading

from lookalike.files.blobs import LocalFiles
from lookalike.store.base import Store

log = logging.getLogger(__name__)


class Maintenance:
    """Sweeps the files once at start and then every hour, until closed."""

    def __init__(self, store: Store, files: LocalFiles, *, every_s: float = 3600.0) -> None:
        self._store = store
        self._files = files
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="maintenance", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops, also in the middle of a sweep."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                swept = self._files.sweep(self._store.references, stop=self._stop.is_set)
                if swept:
                    log.info("swept %d files that no picture names", swept)
            except Exception:  # the next sweep may do better
                log.exception("the sweep failed and will be tried again")
            self._stop.wait(self._every_s)
