"""One process owns a data folder: a lock that dies with the process."""

from __future__ import annotations

import json
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from lookalike.errors import DataFolderInUseError
from lookalike.files.disk import disk_errors, make_folders
from lookalike.store.base import utc_now


class FolderLock:
    """Owns `folder` from construction to `release`; the lock file itself is never removed.

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
