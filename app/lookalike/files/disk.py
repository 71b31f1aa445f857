"""Writes that survive a crash, and the disk's errors in this project's words."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

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


@contextmanager
def atomic_write(path: Path, *, durable: bool = True, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Opens a file that appears under its name whole, at the end of the block, or not at all.

    The bytes go to a temporary file beside it, which is renamed at the end. If the block raises,
    the temporary file is removed and the old file stays.

    Args:
        path: The file's name; its folder is made if it is missing.
        durable: Wait until file and name have reached the disk.
        mode: Permission bits of a new file, before the umask.

    Raises:
        OSError: The disk refuses; see `disk_errors`.
    """
    make_folders(path.parent.absolute())
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with open(partial, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Waits until what was written to a file, by any process, has reached the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder have reached the disk."""
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
