"""Vectors that are made once, by spec, precision and content.

```
<cache>/vectors/<digest of the spec>-<precision>/<dataset>-<digest of its origin>/
├── vectors.npy, manifest.json              the whole: see `vector_files`
├── pending.vectors, pending.jsonl          while an extraction runs
└── lock                                    held by the process that extracts; never removed
```

A vector is found by the sha256 of its picture's bytes, in the dataset's own files or in those of
other datasets under the same spec and precision: a sample of a dataset that was extracted costs
nothing. Everything here can be deleted while no extraction runs, and is made again.

Vectors of an extraction that has not ended are written as they come:

```
pending.vectors    rows of dim little-endian float32
pending.jsonl      a line for each: {"id", "sha256", "size", "mtime_ns", "ctime_ns", "row", "crc32"}
```

A line is written after its row, and its `crc32` covers the sha256 and the row: so a kill loses at
most the picture that was being written, and what is torn or damaged is not believed. `row` and
`crc32` are null where the content's vector was known already.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from lookalike.evaluation import vector_files
from lookalike.evaluation.datasets.base import Dataset, Stamp
from lookalike.evaluation.vector_files import Manifest, Row, Saved
from lookalike.files.disk import disk_errors, make_folders
from lookalike.models.base import Encoder

log = logging.getLogger(__name__)


_PENDING_VECTORS = "pending.vectors"
_PENDING_LINES = "pending.jsonl"


class PendingVectors:
    """The vectors that were made so far, and those that come.

    Attributes:
        contents: Digest and stamp of each picture that was read, by its id.
        rows: Where the vector of a content is, by its digest.

    Nobody else may write to the two files in the folder.

    Raises:
        OSError: The disk refuses, here and in every method.
    """

    def __init__(self, folder: Path, *, dim: int) -> None:
        self._paths = folder / _PENDING_VECTORS, folder / _PENDING_LINES
        self._dim = dim
        self.contents: dict[str, tuple[str, Stamp]] = {}
        self.rows: dict[str, int] = {}
        with ExitStack() as opened:
            for path in self._paths:
                path.touch()
            self._vectors = opened.enter_context(self._paths[0].open("r+b"))
            self._lines = opened.enter_context(self._paths[1].open("r+b"))
            self._read()
            self._opened = opened.pop_all()

    def add(self, row: Row, vector: NDArray[np.float32] | None) -> None:
        """Writes one picture, with its vector, (dim,) float32, unless its content's is known."""
        line: dict[str, Any] = {"id": row.id, "sha256": row.sha256, **row.stamp._asdict()}
        line |= {"row": None, "crc32": None}
        if vector is not None:
            data = vector.astype("<f4").tobytes()
            self._vectors.write(data)
            self._vectors.flush()
            line |= {"row": self._count, "crc32": _crc32(row.sha256, data)}
            self.rows[row.sha256] = self._count
            self._count += 1
        self._lines.write(json.dumps(line).encode() + b"\n")
        self._lines.flush()
        self.contents[row.id] = row.sha256, row.stamp

    def vector(self, sha256: str) -> NDArray[np.float32]:
        """The vector of a content, (dim,) float32."""
        return np.frombuffer(self._row(self.rows[sha256]), dtype="<f4")

    def close(self) -> None:
        """Closes the files, which stay."""
        self._opened.close()

    def discard(self) -> None:
        """Closes and removes the files."""
        self.close()
        for path in self._paths:
            path.unlink(missing_ok=True)

    def _read(self) -> None:
        """Takes what is whole, and makes ready to write behind it."""
        for line in self._lines:
            with suppress(ValueError, KeyError, TypeError, OverflowError, OSError):
                self._take(json.loads(line))
        self._count = max(self.rows.values(), default=-1) + 1
        self._vectors.truncate(self._count * 4 * self._dim)
        self._vectors.seek(0, os.SEEK_END)
        if self._lines.seek(0, os.SEEK_END):
            self._lines.write(b"\n")  # the last line may have been cut short

    def _take(self, line: dict[str, Any]) -> None:
        """Believes a line whose row is there as it was written."""
        sha256, row = line["sha256"], line["row"]
        if row is not None:
            if _crc32(sha256, self._row(row)) != line["crc32"]:
                return
            self.rows[sha256] = row
        self.contents[line["id"]] = sha256, Stamp(line["size"], line["mtime_ns"], line["ctime_ns"])

    def _row(self, row: int) -> bytes:
        return os.pread(self._vectors.fileno(), 4 * self._dim, row * 4 * self._dim)


def _crc32(sha256: str, data: bytes) -> int:
    return zlib.crc32(data, zlib.crc32(sha256.encode()))


class VectorKeeper:
    """Finds the vectors of a dataset that are known, and keeps those that an extraction makes.

    Only `open_keeper` makes one: the folder must be locked. `knows` may be called on many threads
    at once, also beside the other methods.
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
    """Opens where a dataset's vectors are kept; without a cache folder, in one that is removed.

    One process at a time: another one waits, and then finds the work done.

    Raises:
        StorageError: The cache folder cannot be used; `StorageFullError` where it is full.
    """
    if cache is None:
        with (
            TemporaryDirectory() as made,
            open_keeper(dataset, encoder, cache=Path(made)) as keeper,
        ):
            yield keeper
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
            keeper = VectorKeeper(folder, dim=encoder.spec.dim)
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
