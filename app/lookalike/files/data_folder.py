"""The data folder itself: there, or made, and owned by one process at a time."""

from __future__ import annotations

import json
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from lookalike.errors import ConfigurationError, DataFolderInUseError
from lookalike.files.disk import disk_errors, make_folders
from lookalike.records import utc_now

_OWNER = "lock.owner"


def require_data_folder(path: Path) -> None:
    """Refuses a folder that holds no collection, rather than make one in silence."""
    if not (path / "catalog.db").is_file():
        raise ConfigurationError(
            f"There is no collection in {path.resolve()}; index pictures first "
            "(lookalike index PATH), name another folder with --data-dir, or a running service "
            "with --server URL"
        )


def make_data_folder(path: Path) -> None:
    """Makes the data folder where it is missing; raises `ConfigurationError` where it cannot."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigurationError(
            f"The data folder {path} cannot be made: {exc.strerror}. Choose another with "
            "LOOKALIKE_DATA_DIR, or make it writable"
        ) from exc


def lock_folder(folder: Path) -> FileLock:
    """Makes this process the owner of a folder, until it releases the lock or dies.

    The lock file itself is never removed.

    Raises:
        DataFolderInUseError: Somebody else owns it; the text names them.
        StorageError: The folder cannot be used.
    """
    with disk_errors(f"use the data folder {folder}"):
        make_folders(folder.resolve())
        # Not thread-local: whoever closes the store lets go, on whatever thread.
        lock = FileLock(folder / "lock", thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout as exc:
            raise DataFolderInUseError(
                f"The data folder {folder} is in use by {_describe(folder / _OWNER)}. Stop it, or "
                "talk to the running service with --server URL"
            ) from exc
        # Only the command's first word: flags may carry keys.
        command = [Path(sys.argv[0]).name, *(a for a in sys.argv[1:2] if not a.startswith("-"))]
        owner = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "command": " ".join(command),
            "started": utc_now(),
        }
        with suppress(OSError):  # a courtesy to whoever comes second; a full disk may refuse it
            (folder / _OWNER).write_text(json.dumps(owner))
    return lock


def _describe(owner: Path) -> str:
    try:
        facts = json.loads(owner.read_text())
        return "process {pid} on {host} ({command}), since {started}".format(**facts)
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
