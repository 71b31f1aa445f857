"""The vectors of datasets on the disk, so that each is made once.

```
<cache>/vectors/<digest of the spec>-<precision>/<dataset>-<digest of its origin>/
├── set/                                an artifact: see `files.artifacts`
│   ├── manifest.json
│   └── <content>/
│       ├── vectors.npy                 (N, dim) float32, rows of length 1
│       └── set.json                    dataset, spec, provenance; pictures: N objects of id, label,
│                                       sha256, size, mtime_ns, ctime_ns; skipped: id, reason
├── pending.vectors, pending.jsonl      while an extraction runs: see `_Pending`
└── lock                                held by the process that extracts; never removed
```

A vector is found by the sha256 of its picture's bytes: in the dataset's own set, or in those of
other datasets with the same spec and precision. So a sample of a dataset that was extracted costs
nothing. Everything here can be deleted while no extraction runs, and is made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from lookalike.evaluation.datasets.base import Dataset, Stamp
from lookalike.files.artifacts import BrokenArtifactError, read_artifact, save_artifact
from lookalike.files.disk import disk_errors, make_folders
from lookalike.models.base import Encoder
from lookalike.records import ModelSpec
from lookalike.services.vector_set import Skipped

KIND: Final = "vectors"
VERSION: Final = 1
VECTORS: Final = "vectors.npy"
SET: Final = "set.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Row:
    """Which picture a vector belongs to.

    Attributes:
        id: The picture's id in its dataset.
        label: Its label, or None if there are none.
        sha256: Hex digest of its bytes.
        stamp: Of the file that holds it.
    """

    id: str
    label: str | None
    sha256: str
    stamp: Stamp


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a set of vectors is.

    Attributes:
        dataset: Its name.
        spec: What made the vectors.
        provenance: Recorded beside it, by the run that made the last of the vectors.
        rows: The picture of each vector.
        skipped: Pictures that could not be read.
    """

    dataset: str
    spec: ModelSpec
    provenance: Mapping[str, str]
    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True, slots=True)
class Saved:
    """A set on the disk.

    Attributes:
        manifest: What it is.
        vectors: (N, dim) float32, a read-only memory map.
        content: The folder of its files.
    """

    manifest: Manifest
    vectors: NDArray[np.float32]
    content: Path


class VectorKeeper:
    """Finds the known vectors of one dataset, and keeps the new ones.

    Only `open_keeper` makes one: the folder must be locked. `knows` may be called on many threads
    at once, also beside the other methods.
    """

    def __init__(self, folder: Path, *, dim: int) -> None:
        self._folder = folder
        self._saved = _load(folder / "set")
        self._pending = _Pending(folder, dim=dim)
        self._found: dict[str, tuple[NDArray[np.float32], int]] = {}
        self._contents: dict[str, tuple[str, Stamp]] = {}
        self._added = False
        if self._saved is not None:
            self._offer(self._saved)
            self._contents = {row.id: (row.sha256, row.stamp) for row in self._saved.manifest.rows}
        self._contents |= self._pending.contents

    def recall(self, picture_id: str, stamp: Stamp) -> str | None:
        """The digest of a picture if its file is unchanged and its vector is known."""
        sha256, known_stamp = self._contents.get(picture_id, ("", None))
        return sha256 if stamp == known_stamp and self.knows(sha256) else None

    def expect(self) -> None:
        """Reads the sets of other datasets; called once, before `knows` and `add`."""
        with _keeping(self._folder):
            for folder in sorted(self._folder.parent.iterdir()):
                other = None if folder == self._folder else _load(folder / "set")
                if other is not None:
                    self._offer(other)

    def knows(self, sha256: str) -> bool:
        """True if the vector of these bytes is here."""
        return sha256 in self._found or sha256 in self._pending.rows

    def add(self, row: Row, vector: NDArray[np.float32] | None) -> None:
        """Writes one picture down.

        Args:
            row: The picture.
            vector: (dim,) float32; None if the vector of the same bytes is here or will come.

        Raises:
            StorageError: The disk refuses.
        """
        self._added = self._added or vector is not None
        with _keeping(self._folder):
            self._pending.add(row, vector)

    def finish(self, manifest: Manifest) -> Saved:
        """Saves the whole set, unless it is saved already, and removes what was pending.

        Args:
            manifest: Its rows' vectors are all known.

        Raises:
            StorageError: The disk refuses; what is pending stays, and so does the old set.
        """
        with _keeping(self._folder):
            saved = self._save(manifest)
            self._pending.discard()
        return saved

    def close(self) -> None:
        """Closes the files."""
        with _keeping(self._folder):
            self._pending.close()

    def _save(self, manifest: Manifest) -> Saved:
        before = self._saved
        if before is not None and not self._added:
            manifest = replace(manifest, provenance=before.manifest.provenance)
            if manifest == before.manifest:
                return before
        saved = _save(
            self._folder / "set", manifest, (self._vector(r.sha256) for r in manifest.rows)
        )
        if before is not None:
            shutil.rmtree(before.content, ignore_errors=True)  # maps of its files stay valid
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
    """Opens the vectors of a dataset; without a cache folder, in a temporary one.

    One process at a time: another one waits, and then finds the work done.

    Raises:
        StorageError: The cache folder cannot be used; `StorageFullError` if the disk is full.
    """
    with ExitStack() as stack:
        if cache is None:
            cache = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = _folder(cache, dataset, encoder)
        with _keeping(folder):
            make_folders(folder.resolve())
            lock = FileLock(folder / "lock", thread_local=False)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                log.warning("waiting for another process that extracts %s", dataset.name)
                lock.acquire()
            stack.callback(lock.release)
            keeper = VectorKeeper(folder, dim=encoder.spec.dim)
        yield stack.enter_context(closing(keeper))


class _Pending:
    """The vectors of an extraction that has not ended, written as they come.

    ```
    pending.vectors    rows of dim little-endian float32
    pending.jsonl      a line for each: {"id", "sha256", "size", "mtime_ns", "ctime_ns", "row",
                       "crc32"}
    ```

    A line is written after its row, and its `crc32` covers the sha256 and the row. So a kill loses
    at most the picture that was being written, and damaged lines or rows are ignored. `row` and
    `crc32` are null if the vector of the same bytes was known already.

    Attributes:
        contents: Digest and stamp of each picture that was read, by its id.
        rows: The row of each known vector, by the digest of its picture's bytes.

    Args:
        folder: Where the two files are, or will be; no other process may write there.
        dim: Numbers in a vector.

    Raises:
        OSError: The disk refuses, here and in every method.
    """

    def __init__(self, folder: Path, *, dim: int) -> None:
        self._paths = folder / "pending.vectors", folder / "pending.jsonl"
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
        """Writes one picture, with its vector, (dim,) float32, unless that is known."""
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
        """The vector of a picture by the digest of its bytes, (dim,) float32."""
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
        """Reads what is whole, and positions both files behind it."""
        for line in self._lines:
            with suppress(ValueError, KeyError, TypeError, OverflowError, OSError):
                self._take(json.loads(line))
        self._count = max(self.rows.values(), default=-1) + 1
        self._vectors.truncate(self._count * 4 * self._dim)
        self._vectors.seek(0, os.SEEK_END)
        if self._lines.seek(0, os.SEEK_END):
            self._lines.write(b"\n")  # the last line may have been cut short

    def _take(self, line: dict[str, Any]) -> None:
        """Takes a line, unless its row is not the one that was written."""
        sha256, row = line["sha256"], line["row"]
        if row is not None:
            if _crc32(sha256, self._row(row)) != line["crc32"]:
                return
            self.rows[sha256] = row
        self.contents[line["id"]] = sha256, _stamp(line)

    def _row(self, row: int) -> bytes:
        return os.pread(self._vectors.fileno(), 4 * self._dim, row * 4 * self._dim)


def _crc32(sha256: str, data: bytes) -> int:
    return zlib.crc32(data, zlib.crc32(sha256.encode()))


def _stamp(values: Mapping[str, Any]) -> Stamp:
    return Stamp(values["size"], values["mtime_ns"], values["ctime_ns"])


def _save(folder: Path, manifest: Manifest, vectors: Iterable[NDArray[np.float32]]) -> Saved:
    """Saves N vectors, each (dim,) float32; a crash leaves the old set or the new one."""

    def write(content: Path) -> None:
        shape = len(manifest.rows), manifest.spec.dim
        _write_vectors(content / VECTORS, vectors, shape=shape)
        (content / SET).write_text(json.dumps(_document(manifest)), encoding="utf-8")

    saved = save_artifact(folder, kind=KIND, version=VERSION, facts={}, write=write)
    return Saved(manifest, _map(saved.path(VECTORS)), saved.content)


def _load(folder: Path) -> Saved | None:
    """Reads what `_save` wrote; None if there is nothing, or nothing that can be trusted."""
    try:
        artifact = read_artifact(folder, kind=KIND, version=VERSION)
        if artifact is None:
            return None
        manifest = _manifest(json.loads(artifact.path(SET).read_text(encoding="utf-8")))
        return Saved(manifest, _map(artifact.path(VECTORS)), artifact.content)
    except (BrokenArtifactError, OSError, EOFError, ValueError, KeyError, TypeError) as exc:
        log.warning("the vectors in %s cannot be used and are made again: %s", folder, exc)
        return None


def _write_vectors(
    path: Path, vectors: Iterable[NDArray[np.float32]], *, shape: tuple[int, int]
) -> None:
    """Writes a .npy file row by row, so that the whole is never in memory."""
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for vector in vectors:
            file.write(vector.astype("<f4").tobytes())


def _map(path: Path) -> NDArray[np.float32]:
    vectors: NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
    return vectors


def _document(manifest: Manifest) -> dict[str, Any]:
    return {
        "dataset": manifest.dataset,
        "spec": manifest.spec.to_dict(),
        "provenance": dict(manifest.provenance),
        "pictures": [
            {"id": row.id, "label": row.label, "sha256": row.sha256, **row.stamp._asdict()}
            for row in manifest.rows
        ],
        "skipped": [{"id": picture.name, "reason": picture.reason} for picture in manifest.skipped],
    }


def _manifest(document: Mapping[str, Any]) -> Manifest:
    return Manifest(
        dataset=document["dataset"],
        spec=ModelSpec.from_dict(document["spec"]),
        provenance=document["provenance"],
        rows=tuple(Row(p["id"], p["label"], p["sha256"], _stamp(p)) for p in document["pictures"]),
        skipped=tuple(Skipped(each["id"], each["reason"]) for each in document["skipped"]),
    )


def _folder(cache: Path, dataset: Dataset, encoder: Encoder) -> Path:
    precision = encoder.provenance.get("precision", "unknown")
    origin = hashlib.sha256(os.fsencode(dataset.origin)).hexdigest()[:16]
    name = re.sub(r"[^A-Za-z0-9._]+", "-", dataset.name)[:40].strip("-.") or "dataset"
    return cache / "vectors" / f"{encoder.spec.digest}-{precision}" / f"{name}-{origin}"


def _keeping(folder: Path) -> AbstractContextManager[None]:
    return disk_errors(f"keep vectors in {folder} (LOOKALIKE_CACHE_DIR sets another place)")
