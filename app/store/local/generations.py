"""An index on the disk: generations of it, each whole or not used. Only ever a cache."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from app.store.disk import disk_errors, make_folders, sync_folder
from app.store.local.catalog_rows import CollectionRow
from app.store.local.faiss_index import VERSION, FlatIndex
from app.store.vectors import Seqs

_FORMAT = 1
_READ_BYTES = 8 * 2**20
_MANIFEST = re.compile(r"(\d{8})\.json")

log = logging.getLogger(__name__)


class BrokenGenerationError(Exception):
    """A saved index that must not be used; the text says why."""


class Generations:
    """The saved generations of one embedding set's index; nothing is changed where `read_only`.

    ```
    <folder>/00000007.seqs       (N,) little-endian int64
    <folder>/00000007.vectors    (N, dim) little-endian float32
    <folder>/00000007.json       manifest, written last: what it was made of, and checksums
    ```
    """

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        self._folder = folder
        self._read_only = read_only

    def save(self, index: FlatIndex, row: CollectionRow) -> None:
        """Writes a new generation, then removes the older ones.

        The index must not change meanwhile; it may be searched.

        Raises:
            StorageError: The disk refuses; the older generation stays.
        """
        if self._read_only:
            return
        newest = max(self._numbers(), default=0)
        stem = f"{newest + 1:08d}"
        with disk_errors("save the index"):
            make_folders(self._folder.resolve())
            try:
                self._write_all(stem, index, row)
            except BaseException:
                self._remove(keep=f"{newest:08d}")
                raise
            self._remove(keep=stem)

    def load(self, row: CollectionRow) -> FlatIndex | None:
        """The newest generation that is whole and fits; None where there is none.

        What is broken is removed, and the log says why.
        """
        for number in sorted(self._numbers(), reverse=True):
            stem = f"{number:08d}"
            try:
                return self._read(stem, row)
            except (BrokenGenerationError, OSError, ValueError, KeyError, TypeError) as exc:
                log.warning("The saved index of %r cannot be used: %s", row.name, exc)
        self.discard()
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

    def _write_all(self, stem: str, index: FlatIndex, row: CollectionRow) -> None:
        alive = index.seqs[index.alive]
        manifest = _describe(alive, row)
        manifest["seqs"] = self._write(f"{stem}.seqs", [alive.astype("<i8").tobytes()])
        rows = (vectors.astype("<f4").tobytes() for _, vectors in index.blocks())
        manifest["vectors"] = self._write(f"{stem}.vectors", rows)
        self._write(f"{stem}.tmp", [json.dumps(manifest, indent=1).encode()])
        (self._folder / f"{stem}.tmp").replace(self._folder / f"{stem}.json")
        sync_folder(self._folder)

    def _write(self, name: str, blocks: Iterable[bytes]) -> str:
        """Writes a file through to the disk and gives the digest of what was meant."""
        digest = hashlib.sha256()
        with (self._folder / name).open("wb") as file:
            for block in blocks:
                digest.update(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        return digest.hexdigest()

    def _read(self, stem: str, row: CollectionRow) -> FlatIndex:
        manifest = json.loads((self._folder / f"{stem}.json").read_bytes())
        seqs = self._read_seqs(stem, manifest)
        for key, wanted in _describe(seqs, row).items():
            if key != "faiss" and manifest[key] != wanted:
                raise BrokenGenerationError(f"its {key} is {manifest[key]!r}, not {wanted!r}")
        index = FlatIndex(row.passport.dim)
        with (self._folder / f"{stem}.vectors").open("rb") as file:
            if _fill(index, seqs, file) != manifest["vectors"]:
                raise BrokenGenerationError("the checksum of its vectors is wrong")
        return index

    def _read_seqs(self, stem: str, manifest: dict[str, Any]) -> Seqs:
        data = (self._folder / f"{stem}.seqs").read_bytes()
        if hashlib.sha256(data).hexdigest() != manifest["seqs"]:
            raise BrokenGenerationError("the checksum of its row numbers is wrong")
        return np.frombuffer(data, dtype="<i8").astype(np.int64)

    def _remove(self, *, keep: str) -> None:
        for path in self._folder.iterdir():
            if path.stem != keep:
                path.unlink(missing_ok=True)


def _describe(seqs: Seqs, row: CollectionRow) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "index": "Flat",
        "faiss": VERSION,
        "embedding": row.embedding,
        "passport": row.passport.digest,
        "dim": row.passport.dim,
        "count": len(seqs),
        "last_seq": int(seqs[-1]) if len(seqs) else 0,
    }


def _fill(index: FlatIndex, seqs: Seqs, file: BinaryIO) -> str:
    """Reads vectors into an index block by block and gives the digest of what was read."""
    digest = hashlib.sha256()
    step = max(1, _READ_BYTES // (4 * index.dim))
    for start in range(0, len(seqs), step):
        block = seqs[start : start + step]
        data = file.read(4 * index.dim * len(block))
        digest.update(data)
        rows = np.frombuffer(data, dtype="<f4").astype(np.float32)
        index.add(block, rows.reshape(len(block), index.dim))
    digest.update(file.read())
    return digest.hexdigest()
