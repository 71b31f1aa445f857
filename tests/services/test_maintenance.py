"""Housekeeping in the background."""

from __future__ import annotations

import hashlib
import io
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from lookalike.files.disk import LocalFiles
from lookalike.services.pictures import file_sweeper
from tests.memory_store import MemoryStore
from tests.waiting import PATIENCE_S, wait_for


class Slow(MemoryStore):
    """Tells when it is asked which files it names, and waits for leave to answer."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()
        self.answer = threading.Event()

    def references(self, sha256s: Iterable[str]) -> set[str]:
        self.asked.set()
        assert self.answer.wait(PATIENCE_S)
        return super().references(sha256s)


def test_closing_waits_for_no_whole_sweep(tmp_path: Path) -> None:
    files, store = LocalFiles(tmp_path, swept_together=2), Slow()
    for n in range(9):
        data = str(n).encode()
        files.put(io.BytesIO(data), hashlib.sha256(data).hexdigest(), "image/png")
    for path in (tmp_path / "images").rglob("*.png"):
        os.utime(path, (1, time.time() - 7200))
    maintenance = file_sweeper(store, files)
    assert store.asked.wait(PATIENCE_S)
    closing = threading.Thread(target=maintenance.close)
    closing.start()
    wait_for(maintenance.closing.is_set)
    store.answer.set()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    assert len(list((tmp_path / "images").rglob("*.png"))) == 7
