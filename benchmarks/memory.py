"""How much memory a process takes, as Linux counts it."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace


def anonymous_bytes() -> int:
    """Memory of this process that no file stands behind (RssAnon), after giving back what is free.

    Raises:
        OSError: The system has no /proc.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc
        trim(0)
    return _anonymous()


def _anonymous() -> int:
    return _field(Path("/proc/self/status"), "RssAnon")


def _field(file: Path, name: str) -> int:
    """A size in one of Linux's tables, in bytes."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{file} names no {name}")


def available_bytes() -> int | None:
    """What the system has to give (MemAvailable); None where it does not say."""
    try:
        return _field(Path("/proc/meminfo"), "MemAvailable")
    except OSError:
        return None


@contextmanager
def peak(every: float = 0.05) -> Iterator[SimpleNamespace]:
    """Watches RssAnon meanwhile; `growth` is then the most above the beginning, in bytes."""
    seen = SimpleNamespace(growth=0)
    before, done = anonymous_bytes(), threading.Event()

    def watch() -> None:
        while not done.wait(every):
            seen.growth = max(seen.growth, _anonymous() - before)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        seen.growth = max(seen.growth, _anonymous() - before)
        done.set()
        thread.join()
