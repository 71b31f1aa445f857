"""The audit log: a line of JSON for each change, in files that are only ever appended to."""

from __future__ import annotations

import errno
import getpass
import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lookalike.errors import LookalikeError, StorageError
from lookalike.files.disk import disk_errors, make_folders
from lookalike.records import MAX_SEQ, decode_cursor, encode_cursor, redacted, utc_now

MOST_NOTED = 100  # ids or fields of one change in its entry
FILE_BYTES = 1_000_000  # of a file, from which on the next one is begun
_OFFSET_BITS = 32  # of a cursor; the rest is the file's number
_LOG_EVERY_S = 10.0
_FIELDS = {
    "at": str,
    "who": str,
    "key": str | None,
    "address": str,
    "call": str,
    "outcome": str,
    "details": dict,
}
"""What an entry holds."""

log = logging.getLogger(__name__)


class AuditLog:
    """Appends entries, and reads them back; safe to use from many threads and processes.

    ```
    audit/00000001.jsonl      the oldest goes once all have more than `max_bytes`
    audit/00000002.jsonl
    ```

    An entry is one `write` to a file opened for appending, without fsync: it survives the end of
    the process, and a power cut may take the last few. A line that was cut short is passed over.
    """

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder = folder
        self._most_files = max(1, max_bytes // FILE_BYTES)
        self._lock = threading.Lock()
        self._number = 0  # of the file to append to; 0 if not known
        self._failed_at = -_LOG_EVERY_S

    def append(
        self,
        call: str,
        *,
        who: str,
        key: str | None = None,
        address: str = "",
        outcome: str = "done",
        details: Mapping[str, Any],
    ) -> None:
        """Appends what was changed, by whom, from where and how it ended.

        Never raises: the change was made already. An entry that cannot be written is logged.
        """
        entry = {
            "at": utc_now(),
            "who": who,
            "key": key,
            "address": address,
            "call": call,
            "outcome": outcome,
            "details": {name: value for name, value in details.items() if value is not None},
        }
        line = redacted(json.dumps(entry, separators=(",", ":"))) + "\n"
        try:
            with self._lock, disk_errors("write the audit log"):
                self._write(line.encode("ascii"))
        except StorageError as exc:
            if time.monotonic() - self._failed_at >= _LOG_EVERY_S:
                self._failed_at = time.monotonic()
                log.warning("%s; this change is not in it: %s", exc, line.rstrip())

    @contextmanager
    def noting(self, call: str, **details: Any) -> Iterator[dict[str, Any]]:
        """Notes a change that a command makes on the data folder itself, however the block ends.

        What the block adds to the details is noted, too. `call` is named as over HTTP.
        """
        outcome = "done"
        details["user"] = _user()
        try:
            yield details
        except BaseException as exc:
            outcome = exc.code if isinstance(exc, LookalikeError) else "interrupted"
            raise
        finally:
            self.append(call, who="local", outcome=outcome, details=details)

    @contextmanager
    def noting_long(self, call: str, **details: Any) -> Iterator[dict[str, Any]]:
        """As `noting`, with an entry at the beginning, too: the process may be killed."""
        begun = {"user": _user(), **details}
        self.append(call, who="local", outcome="begun", details=begun)
        with self.noting(call, **details) as noted:
            yield noted

    def page(
        self, *, cursor: str | None = None, limit: int = 100
    ) -> tuple[list[dict[str, Any]], str | None]:
        """Entries, newest first, and the cursor behind them, if any; raises as `decode_cursor`."""
        before = decode_cursor(cursor) if cursor else MAX_SEQ
        last, end = before >> _OFFSET_BITS, before & (1 << _OFFSET_BITS) - 1
        entries: list[dict[str, Any]] = []
        for number in reversed(self._numbers()):
            if number > last:
                continue
            lines = self._lines(number, end if number == last else None)
            end_of_line = sum(map(len, lines))
            for line in reversed(lines):
                if len(entries) == limit:
                    return entries, encode_cursor(number << _OFFSET_BITS | end_of_line)
                end_of_line -= len(line)
                if (entry := _parse(line)) is not None:
                    entries.append(entry)
        return entries, None

    def _write(self, line: bytes) -> None:
        if not self._number:
            make_folders(self._folder.absolute())
            self._number = max(self._numbers(), default=1)
        with self._open() as handle:
            is_full = os.fstat(handle).st_size >= FILE_BYTES or _is_cut_short(handle)
            if not is_full:
                _write_line(handle, line)
        if is_full:
            self._number += 1
            with self._open() as handle:
                self._remove_old()
                _write_line(handle, line)

    @contextmanager
    def _open(self) -> Iterator[int]:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
        handle = os.open(self._path(self._number), flags, 0o600)
        try:
            yield handle
        finally:
            os.close(handle)

    def _remove_old(self) -> None:
        for number in self._numbers()[: -self._most_files]:
            self._path(number).unlink(missing_ok=True)

    def _numbers(self) -> list[int]:
        if not self._folder.exists():
            return []
        with disk_errors("read the audit log"):
            names = [path.stem for path in self._folder.iterdir() if path.suffix == ".jsonl"]
        return sorted(int(name) for name in names if name.isdecimal())

    def _lines(self, number: int, end: int | None) -> list[bytes]:
        try:
            with disk_errors("read the audit log"), self._path(number).open("rb") as file:
                return file.read(-1 if end is None else end).splitlines(keepends=True)
        except StorageError:
            if self._path(number).exists():
                raise
            return []  # it was the oldest, and went meanwhile

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:08}.jsonl"


def _write_line(handle: int, line: bytes) -> None:
    if os.write(handle, line) < len(line):  # the next line goes to another file
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _is_cut_short(handle: int) -> bool:
    """Whether the last line of a file has no end."""
    size = os.fstat(handle).st_size
    return size > 0 and os.pread(handle, 1, size - 1) != b"\n"


def _parse(line: bytes) -> dict[str, Any] | None:
    """The entry of a line; None if the line is damaged."""
    try:
        entry: dict[str, Any] = json.loads(line)
        json.dumps(entry, ensure_ascii=False, allow_nan=False).encode()  # as it is answered
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or entry.keys() != _FIELDS.keys():
        return None
    return entry if all(isinstance(entry[name], kind) for name, kind in _FIELDS.items()) else None


def _user() -> str | None:
    """The name of the account that runs this; None for one without a name."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return None
