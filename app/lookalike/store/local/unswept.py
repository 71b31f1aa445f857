"""The file `unswept`: digests whose files a sweep may take, if no row names them by then.

A digest is noted before its file is put, because its row may never come, and when its row is
removed. So a sweep looks at these files alone, and never takes one that nothing accounts for.

The file also says of which catalog it is, and the highest seq that was committed. If the folder
gets another catalog or an older one, the notes are worth nothing: the rows that name these files
may be missing. Then they are dropped, and the files stay.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from lookalike.files.disk import atomic_write

_HEADER = re.compile(rb"catalog (\d+)\n")
_SEQ = re.compile(rb"seq (\d+)\n")
_DIGEST = re.compile(rb"([0-9a-f]{64})\n")
_TOGETHER = 500

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Known:
    """What the file says of the catalog that it was written beside."""

    identity: int  # see `Catalog.identity`
    last_seq: int  # the highest seq that was committed, or a lower one after a power failure


def read_known(folder: Path) -> Known | None:
    """What a data folder's file says; None if there is none, or it is damaged."""
    for name in ("unswept", "unswept.old"):
        with suppress(OSError), (folder / name).open("rb") as file:
            if header := _HEADER.fullmatch(file.readline()):
                seqs = (found for line in file if (found := _SEQ.fullmatch(line)))
                return Known(int(header[1]), max((int(found[1]) for found in seqs), default=0))
    return None


def read_noted(folder: Path) -> Iterator[str]:
    """All digests that are noted in a data folder."""
    for name in ("unswept.old", "unswept"):
        with suppress(OSError), (folder / name).open("rb") as file:
            yield from (found[1].decode() for line in file if (found := _DIGEST.fullmatch(line)))


class Unswept:
    """The notes of a catalog that this process owns; safe to call from many threads.

    They are lost if the disk refuses them: then files stay that could have gone.
    """

    def __init__(self, folder: Path, known: Known, *, keep: bool) -> None:
        """Goes on with the notes of a data folder, or begins anew unless `keep`."""
        self._path = folder / "unswept"
        self._old = folder / "unswept.old"
        self.warning: str | None = None  # that notes from before were dropped, and why
        self._known = known
        self._refused = False  # whether the disk refused the last notes
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None
        with self._forgiven():
            if not keep:  # before anything that a full disk refuses
                self._old.unlink(missing_ok=True)
                self._path.unlink(missing_ok=True)
            if not keep or not self._path.exists():
                self._begin()
            self._file = self._path.open("ab", buffering=0)

    def note(self, sha256s: Iterable[str], *, last_seq: int | None = None) -> None:
        """Notes digests, and the highest seq that was committed if it has changed."""
        lines = [f"{sha256}\n" for sha256 in sha256s]
        with self._lock, self._forgiven():
            if last_seq is not None:
                self._known = Known(self._known.identity, last_seq)
                lines.append(f"seq {last_seq}\n")
            if self._file is not None and lines:
                self._file.write("".join(lines).encode())

    def batches(self, named: Callable[[list[str]], set[str]]) -> Iterator[list[str]]:
        """Digests that no row names, as `named` says; notes of before go when all were taken.

        On a full disk they stay, and come again.
        """
        with self._forgiven():
            with self._lock:
                if not self._old.exists():  # else an earlier sweep ended early
                    self._set_aside()
                path = self._old if self._old.exists() else self._path
                end = path.stat().st_size  # what is noted meanwhile is for the next sweep
            with path.open("rb") as file:
                lines = iter(lambda: file.readline() if file.tell() < end else b"", b"")
                digests = (
                    found[1].decode() for line in lines if (found := _DIGEST.fullmatch(line))
                )
                while batch := list(dict.fromkeys(islice(digests, _TOGETHER))):
                    held = named(batch)
                    if free := [digest for digest in batch if digest not in held]:
                        yield free
            self._old.unlink(missing_ok=True)

    def close(self) -> None:
        """Closes the file; what is noted later is lost."""
        with self._lock:
            if self._file is not None:
                self._file.close()
            self._file = None

    def _begin(self) -> None:
        with atomic_write(self._path) as file:
            file.write(f"catalog {self._known.identity}\nseq {self._known.last_seq}\n".encode())

    def _set_aside(self) -> None:
        """Renames the file, and begins a new one; changes nothing on a full disk."""
        self._path.replace(self._old)
        try:
            self._begin()
        except OSError:
            self._old.replace(self._path)
            return
        before, self._file = self._file, self._path.open("ab", buffering=0)
        if before is not None:
            before.close()

    @contextmanager
    def _forgiven(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            if not self._refused:
                log.warning("Files that no picture needs may stay in the data folder: %s", exc)
            self._refused = True
        else:
            self._refused = False
