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


class FolderLock:
    """A lock that dies with the process: owns `folder` from construction to `release`.

    The lock file itself is never removed.

    Raises:
        DataFolderInUseError: Somebody else owns it; the text names them.
        StorageError: The folder cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self._owner = folder / "lock.owner"
        with disk_errors(f"use the data folder {folder}"):
            make_folders(folder.resolve())
            # Not thread-local: whoever closes the store lets go, on whatever thread.
            self._lock = FileLock(folder / "lock", thread_local=False)
            try:
                self._lock.acquire(timeout=0)
            except Timeout as exc:
                raise DataFolderInUseError(
                    f"The data folder {folder} is in use by {self._describe_owner()}. Stop it, or "
                    "talk to the running service with --server URL"
                ) from exc
            self._write_owner()

    def release(self) -> None:
        """Lets go of the folder; may be called twice."""
        self._lock.release()

    def _write_owner(self) -> None:
        # Only the command's first word: flags may carry keys.
        command = [Path(sys.argv[0]).name, *(a for a in sys.argv[1:2] if not a.startswith("-"))]
        owner = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "command": " ".join(command),
            "started": utc_now(),
        }
        with suppress(OSError):  # a courtesy to whoever comes second; a full disk may refuse it
            self._owner.write_text(json.dumps(owner))

    def _describe_owner(self) -> str:
        try:
            owner = json.loads(self._owner.read_text())
            return "process {pid} on {host} ({command}), since {started}".format(**owner)
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"
