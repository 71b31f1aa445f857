"""Vectors that are made once: on the disk, by spec, precision and content, or in memory.

```
<cache>/vectors/<digest of the spec>-<precision>/<dataset>-<digest of its origin>/
├── vectors.npy, manifest.json              the whole: see `vector_files`
├── pending.vectors, pending.jsonl          while an extraction runs: see `pending_vectors`
└── lock                                    held by the process that extracts; never removed
```

A vector is found by the sha256 of its picture's bytes, in the dataset's own files or in those of
other datasets under the same spec and precision: a sample of a dataset that was extracted costs
nothing. Everything here can be deleted while no extraction runs, and is made again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from lookalike.evaluation import vector_files
from lookalike.evaluation.datasets.base import Dataset, Stamp
from lookalike.evaluation.pending_vectors import PendingVectors
from lookalike.evaluation.vector_files import Manifest, Row, Saved
from lookalike.files.disk import disk_errors, make_folders
from lookalike.models.base import Encoder

log = logging.getLogger(__name__)


class VectorKeeper(Protocol):
    """Where an extraction finds the vectors that are known, and puts those that it makes.

    `knows` may be called on many threads at once, also beside the other methods.
    """

    def recall(self, picture_id: str, stamp: Stamp) -> str | None:
        """The digest of a picture whose file is as it was and whose vector is known."""
        ...

    def expect(self) -> None:
        """Makes ready for `knows` and `add`."""
        ...

    def knows(self, sha256: str) -> bool:
        """Whether the vector of a content is here."""
        ...

    def add(self, row: Row, vector: NDArray[np.float32] | None) -> None:
        """Takes a picture; its vector, (dim,) float32, unless its content's is here or comes."""
        ...

    def finish(self, manifest: Manifest) -> Saved:
        """The vectors of all rows; every content is here."""
        ...


class MemoryKeeper:
    """Keeps the vectors of one run in one array.

    Args:
        dataset: N pictures.
        dim: Numbers in a vector.
    """

    def __init__(self, dataset: Dataset, *, dim: int) -> None:
        self._vectors = np.empty((len(dataset), dim), dtype=np.float32)
        self._positions = {picture_id: position for position, picture_id in enumerate(dataset.ids)}
        self._made: dict[str, int] = {}

    def recall(self, picture_id: str, stamp: Stamp) -> str | None:  # noqa: ARG002 - as in the protocol
        """Nothing is known from before."""
        return None

    def expect(self) -> None:
        """Nothing to do."""

    def knows(self, sha256: str) -> bool:
        """Whether the vector of a content is here."""
        return sha256 in self._made

    def add(self, row: Row, vector: NDArray[np.float32] | None) -> None:
        """Puts a vector where its picture is in the dataset."""
        if vector is not None:
            self._made[row.sha256] = position = self._positions[row.id]
            self._vectors[position] = vector

    def finish(self, manifest: Manifest) -> Saved:
        """Copies what identical pictures share, then closes the gaps, in place."""
        positions = [self._positions[row.id] for row in manifest.rows]
        for position, row in zip(positions, manifest.rows, strict=True):
            if (made := self._made[row.sha256]) != position:
                self._vectors[position] = self._vectors[made]
        for target, position in enumerate(positions):
            if target != position:  # then it is smaller, and its row was moved or is not wanted
                self._vectors[target] = self._vectors[position]
        return Saved(manifest, self._vectors[: len(positions)])


class DiskKeeper:
    """Keeps the vectors of one dataset under one spec and precision on the disk.

    Only `open_keeper` makes one: the folder must be locked.
    """

    def __init__(self, folder: Path, *, dim: int) -> None:
        self._folder = folder
        vector_files.recover(folder)
        self._saved = vector_files.load(folder)
        self._pending = PendingVectors(folder, dim=dim)
        self._found: dict[str, tuple[NDArray[np.float32], int]] = {}
        self._contents: dict[str, tuple[str, Stamp]] = {}
        self._added = False
        if self._saved is not None:
            self._offer(self._saved)
            self._contents = {row.id: (row.sha256, row.stamp) for row in self._saved.manifest.rows}
        self._contents |= self._pending.contents

    def recall(self, picture_id: str, stamp: Stamp) -> str | None:
        """The digest of a picture whose file is as it was and whose vector is known."""
        sha256, known_stamp = self._contents.get(picture_id, ("", None))
        return sha256 if stamp == known_stamp and self.knows(sha256) else None

    def expect(self) -> None:
        """Looks for vectors in the folders of other datasets."""
        with _keeping(self._folder):
            for folder in sorted(self._folder.parent.iterdir()):
                other = None if folder == self._folder else vector_files.load(folder)
                if other is not None:
                    self._offer(other)

    def knows(self, sha256: str) -> bool:
        """Whether the vector of a content is here."""
        return sha256 in self._found or sha256 in self._pending.rows

    def add(self, row: Row, vector: NDArray[np.float32] | None) -> None:
        """Writes a picture down. Raises `StorageError` where the disk refuses."""
        self._added = self._added or vector is not None
        with _keeping(self._folder):
            self._pending.add(row, vector)

    def finish(self, manifest: Manifest) -> Saved:
        """Writes the whole, unless it stands there already, and removes what was pending.

        Raises:
            StorageError: The disk refuses; what is pending stays, and the old whole too.
        """
        with _keeping(self._folder):
            saved = self._write(manifest)
            self._pending.discard()
        return saved

    def close(self) -> None:
        """Lets go of the files."""
        with _keeping(self._folder):
            self._pending.close()

    def _write(self, manifest: Manifest) -> Saved:
        before = self._saved
        if before is not None and not self._added:
            manifest = replace(manifest, provenance=before.manifest.provenance)
        contents = [row.sha256 for row in manifest.rows]
        if before is None or contents != [row.sha256 for row in before.manifest.rows]:
            return vector_files.save(self._folder, manifest, map(self._vector, contents))
        saved = Saved(manifest, before.vectors)
        if manifest != before.manifest:
            vector_files.save_manifest(self._folder, saved)
        return saved

    def _offer(self, saved: Saved) -> None:
        for position, row in enumerate(saved.manifest.rows):
            self._found.setdefault(row.sha256, (saved.vectors, position))

    def _vector(self, sha256: str) -> NDArray[np.float32]:
        if sha256 in self._pending.rows:
            return self._pending.vector(sha256)
        vectors, position = self._found[sha256]
        vector: NDArray[np.float32] = vectors[position]
        return vector


@contextmanager
def open_keeper(
    dataset: Dataset, encoder: Encoder, *, cache: Path | None
) -> Iterator[VectorKeeper]:
    """Opens where a dataset's vectors are kept: in memory without a cache folder.

    On the disk, one process at a time: another one waits, and then finds the work done.

    Raises:
        StorageError: The cache folder cannot be used; `StorageFullError` where it is full.
    """
    dim = encoder.spec.dim
    if cache is None:
        yield MemoryKeeper(dataset, dim=dim)
        return
    folder = _folder(cache, dataset, encoder)
    with _keeping(folder):
        make_folders(folder.resolve())
        lock = FileLock(folder / "lock", thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.warning("waiting for another process that extracts %s", dataset.name)
            lock.acquire()
    try:
        with _keeping(folder):
            keeper = DiskKeeper(folder, dim=dim)
        with closing(keeper):
            yield keeper
    finally:
        lock.release()


def _folder(cache: Path, dataset: Dataset, encoder: Encoder) -> Path:
    precision = encoder.provenance.get("precision", "unknown")
    origin = hashlib.sha256(os.fsencode(dataset.origin)).hexdigest()[:16]
    name = re.sub(r"[^A-Za-z0-9._]+", "-", dataset.name)[:40].strip("-.") or "dataset"
    return cache / "vectors" / f"{encoder.spec.digest}-{precision}" / f"{name}-{origin}"


def _keeping(folder: Path) -> AbstractContextManager[None]:
    return disk_errors(f"keep vectors in {folder} (LOOKALIKE_CACHE_DIR sets another place)")
