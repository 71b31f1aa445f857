"""Writing so that it survives a crash, and the disk's errors in this project's words."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lookalike.errors import StorageError, StorageFullError

_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Turns an `OSError` inside into ours; `doing` completes "Cannot ...".

    Raises:
        StorageFullError: No room is left, or a quota is used up.
        StorageError: Anything else that the disk refuses.
    """
    try:
        yield
    except OSError as exc:
        if exc.errno in _FULL:
            raise StorageFullError(f"Cannot {doing}: the disk is full; make room") from exc
        raise StorageError(f"Cannot {doing}: {exc.strerror or exc}") from exc


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder survive a crash."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folders(folder: Path) -> None:
    """Makes a folder and the missing ones above it, so that they survive a crash."""
    if folder.is_dir():
        return
    make_folders(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def has_room(folder: Path, size: int = 65_536) -> bool:
    """Whether `size` bytes can be written into the folder right now, quotas included."""
    probe = folder / f".room-{os.getpid()}"
    try:
        with probe.open("wb") as file:
            file.write(b"\1" * size)
            file.flush()
            os.fsync(file.fileno())
    except OSError as exc:
        return exc.errno not in _FULL
    finally:
        probe.unlink(missing_ok=True)
    return True
