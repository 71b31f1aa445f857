"""An index on the disk: generations of it, each whole or not used. Only ever a cache."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lookalike.errors import StorageFullError
from lookalike.files.disk import disk_errors, make_folders
from lookalike.store.local.catalog import CollectionRow
from lookalike.store.local.index.ann import Ann
from lookalike.store.local.index.ann_index import AnnIndex
from lookalike.store.local.index.calibration import Calibration
from lookalike.store.local.index.flat_index import FlatIndex
from lookalike.store.local.index.flat_rows import MAPPED_BYTES, MappedRows
from lookalike.store.local.index.generation_files import (
    BrokenGenerationError,
    check_digest,
    read_blocks,
    read_manifest,
    write_manifest,
    write_rows,
)
from lookalike.store.local.index.index_types import EXACT
from lookalike.store.local.index.layered_index import LayeredIndex
from lookalike.store.vectors import Seqs, Vectors

Builder = Callable[[Path, int], dict[str, Any]]
"""Builds the `.ann` file of a stem from its `.vectors` of so many numbers each.

Gives what the manifest says of it: `index`, `ann` (SHA-256), `calibration`, `asked`.
"""

_MANIFEST = re.compile(r"(\d{8})\.json")
_WITH_INDEX = 1.25  # of the vectors' bytes, as most types hold far less than the vectors
_SPARE_BYTES = 2**30
_SPARE_SHARE = 20  # of a small disk
_CHECKED_BYTES = 2**28  # up to which a mapped file is read as a whole before it is used

log = logging.getLogger(__name__)


class Generations:
    """The saved generations of one embedding set's index; nothing is changed where `read_only`.

    See `generation_files` for the files.
    """

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        self._folder = folder
        self._read_only = read_only

    def save(
        self,
        blocks: Iterable[tuple[Seqs, Vectors]],
        row: CollectionRow,
        *,
        build: Builder | None = None,
    ) -> bool:
        """Writes a new generation beside the older ones; False where nothing may be changed.

        Args:
            blocks: Seqs, ascending, and (N, dim) float32 vectors.
            row: The collection and embedding set that they are of.
            build: Makes the index approximate.

        Raises:
            StorageError: The disk refuses; the older generations stay.
        """
        if self._read_only:
            return False
        newest = max(self._numbers(), default=0)
        stem = self._folder / f"{newest + 1:08d}"
        with disk_errors("save the index"):
            make_folders(self._folder.resolve())
            try:
                manifest = {"index": EXACT, **write_rows(stem, blocks, row)}
                if build is not None:
                    manifest.update(build(stem, row.spec.dim))
                write_manifest(stem, manifest)
            except BaseException:
                self._remove(lambda path: path.stem == stem.name)
                raise
        return True

    def require_room(self, rows: int, dim: int) -> None:
        """Leaves room on the disk for the pictures that come.

        Args:
            rows: That are to be written, with what is made of them.
            dim: Numbers in a vector.

        Raises:
            StorageFullError: They would not fit beside that.
        """
        folder = next(one for one in (self._folder, *self._folder.parents) if one.is_dir())
        disk = shutil.disk_usage(folder)
        needed = int(4 * dim * rows * _WITH_INDEX)
        left = min(_SPARE_BYTES, disk.total // _SPARE_SHARE)
        if disk.free < needed + left:
            raise StorageFullError(
                f"{disk.free / 1e6:,.0f} MB are free on the disk of the data folder; an index "
                f"needs {needed / 1e6:,.0f} MB, beside {left / 1e6:,.0f} MB that are left for "
                "pictures: make room"
            )

    def keep_newest(self) -> None:
        """Removes older generations; a mapped file stays readable for those who have it."""
        self._keep_only(f"{max(self._numbers(), default=0):08d}")

    def load(self, row: CollectionRow, *, exact: bool) -> FlatIndex | LayeredIndex | None:
        """The newest generation that is whole and fits; None where there is none.

        What is broken is removed, and the log says why.

        Args:
            row: What it must be of.
            exact: Whether an approximate part is left aside.
        """
        self._remove_unfinished()
        for number in sorted(self._numbers(), reverse=True):
            stem = self._folder / f"{number:08d}"
            try:
                found = _read(stem, row, exact=exact)
            except (
                BrokenGenerationError,
                OSError,
                ValueError,
                KeyError,
                TypeError,
                RuntimeError,
            ) as exc:
                log.warning("The saved index of %r cannot be used: %s", row.name, exc)
                continue
            self._keep_only(stem.name)
            return found
        self.discard()
        return None

    def saved(self) -> dict[str, Any] | None:
        """What the newest generation says of itself, unchecked: its type, rows, bytes on the disk.

        None where there is none that says so.
        """
        name = f"{max(self._numbers(), default=0):08d}"
        try:
            manifest = json.loads((self._folder / f"{name}.json").read_bytes())
            size = sum(path.stat().st_size for path in self._folder.glob(f"{name}.*"))
            return {"type": manifest["index"], "count": manifest["count"], "bytes": size}
        except (OSError, ValueError, KeyError, TypeError):  # damaged, or exchanged meanwhile
            return None

    def discard(self) -> None:
        """Removes every generation."""
        if not self._read_only:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _numbers(self) -> list[int]:
        if not self._folder.is_dir():
            return []
        names = (path.name for path in self._folder.iterdir())
        return [int(found[1]) for name in names if (found := _MANIFEST.fullmatch(name))]

    def _keep_only(self, name: str) -> None:
        if not self._read_only:
            self._remove(lambda path: path.stem != name)

    def _remove_unfinished(self) -> None:
        """Removes what a crash has left of a generation that was being written."""
        whole = {f"{number:08d}" for number in self._numbers()}
        if not self._read_only:
            self._remove(lambda path: path.stem not in whole)

    def _remove(self, which: Callable[[Path], bool]) -> None:
        for path in self._folder.iterdir() if self._folder.is_dir() else ():
            if which(path):
                with contextlib.suppress(OSError):  # the next save tries again
                    path.unlink()


def _read(stem: Path, row: CollectionRow, *, exact: bool) -> FlatIndex | LayeredIndex:
    manifest, seqs = read_manifest(stem, row)
    dim, vectors = row.spec.dim, stem.with_suffix(".vectors")
    if vectors.stat().st_size != 4 * dim * len(seqs):
        raise BrokenGenerationError(f"{vectors.name} has the wrong size")
    if vectors.stat().st_size <= _CHECKED_BYTES:
        check_digest(vectors, manifest["vectors"])
    if not exact and manifest["index"] != EXACT:
        check_digest(stem.with_suffix(".ann"), manifest["ann"])
        rows = FlatIndex(dim, MappedRows.open(vectors, dim=dim), seqs)
        ann = Ann.read(stem.with_suffix(".ann"), factory=manifest["index"])
        calibration = Calibration.from_json(manifest["calibration"])
        return LayeredIndex(AnnIndex(rows, ann, calibration), asked=manifest.get("asked"))
    if vectors.stat().st_size >= MAPPED_BYTES:
        return LayeredIndex(FlatIndex(dim, MappedRows.open(vectors, dim=dim), seqs))
    index = FlatIndex(dim)
    for block, rows_read in read_blocks(vectors, seqs, dim):
        index.add(block, rows_read)
    return index
