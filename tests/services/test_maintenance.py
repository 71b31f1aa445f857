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

    def references(self, sha256s: Iterable[str], *, thorough: bool = False) -> set[str]:
        self.asked.set()
        assert self.answer.wait(PATIENCE_S)
        return super().references(sha256s, thorough=thorough)


def originals(folder: Path, part: str = "images") -> list[Path]:
    """Not `rglob`, which fails where a folder goes meanwhile."""
    found = [Path(top) / name for top, _, names in os.walk(folder / part) for name in names]
    return [path for path in found if path.name != ".seen"]


def put_nine(files: LocalFiles, store: MemoryStore, folder: Path) -> None:
    """Old files without a row."""
    for n in range(9):
        data = str(n).encode()
        store.expect([digest := hashlib.sha256(data).hexdigest()])
        files.put(io.BytesIO(data), digest, "image/png")
    for path in originals(folder):
        os.utime(path, (1, time.time() - 7200))


def test_files_without_a_row_go_to_the_trash(tmp_path: Path) -> None:
    files, store = LocalFiles(tmp_path), MemoryStore()
    put_nine(files, store, tmp_path)
    os.utime(originals(tmp_path)[0])  # young: its row may be on its way
    unknown = hashlib.sha256(b"unknown").hexdigest()
    files.put(io.BytesIO(b"unknown"), unknown, "image/png")
    os.utime(files.path(unknown, "image/png") or "", (1, 1))
    sweeper = file_sweeper(store, files, trash_days=7)
    wait_for(lambda: len(originals(tmp_path)) == 2)
    sweeper.close()
    assert any(path.stem == unknown for path in originals(tmp_path)), "nothing accounts for it"
    assert len(originals(tmp_path, "trash")) == 8
    for path in originals(tmp_path):
        os.utime(path, (1, 1))
    sweeper = file_sweeper(store, files, trash_days=0)
    wait_for(lambda: len(originals(tmp_path)) == 1)
    wait_for(lambda: not originals(tmp_path, "trash"))
    sweeper.close()


def test_closing_waits_for_no_whole_sweep(tmp_path: Path) -> None:
    files, store = LocalFiles(tmp_path), Slow()  # which names two at a time
    put_nine(files, store, tmp_path)
    maintenance = file_sweeper(store, files, trash_days=7)
    assert store.asked.wait(PATIENCE_S)
    closing = threading.Thread(target=maintenance.close)
    closing.start()
    wait_for(maintenance.closing.is_set)
    store.answer.set()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    assert len(originals(tmp_path)) == 9
