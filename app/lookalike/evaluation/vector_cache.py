"""Vectors of a dataset on the disk, made once by spec, precision and content.

```
<cache>/vectors/<digest of the spec>-<precision>/<dataset>-<digest of its origin>/
├── vectors.npy, manifest.json              the whole
├── pending.vectors, pending.jsonl          while an extraction runs
└── lock                                    held by the process that extracts; never removed
```

A vector is found by the sha256 of its picture's bytes, in the dataset's own files or in those of
other datasets under the same spec and precision: a sample of a dataset that was extracted costs
nothing. Everything here can be deleted while no extraction runs, and is made again.

```
vectors.npy        (N, dim) little-endian float32, rows of length 1
manifest.json      {"version": 1, "dataset": name, "passport": {...}, "provenance": {...},
                    "vectors": {"rows": N, "dim", "size", "mtime_ns", "sha256"},
                    "pictures": [{"id", "label", "sha256", "size", "mtime_ns", "ctime_ns"}, ...],
                    "skipped": [{"id", "reason"}, ...], "checksum"}
pending.vectors    rows of dim little-endian float32
pending.jsonl      a line for each picture: as in the manifest, with "row" and "crc32"
```

Others may read `vectors.npy`: entry i of `pictures` says what row i is. The facts of a picture are
of its bytes and of the file that holds it; those in `vectors` are of the rows and of `vectors.npy`;
`checksum` is the sha256 of the manifest's own bytes up to the comma before it.

A pending line is written after its row, and its `crc32` covers the sha256 and the row: so a kill
loses at most the picture that was being written, and what is torn or damaged is not believed. `row`
and `crc32` are null where the content's vector was known already.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from lookalike.evaluation.datasets import Dataset, Stamp
from lookalike.files.data_folder import claim_folder, mark_folder
from lookalike.files.disk import atomic_write, disk_errors, make_folders, sync
from lookalike.models.base import Encoder
from lookalike.services.vector_set import Skipped

log = logging.getLogger(__name__)

_VERSION = 1
_VECTORS = "vectors.npy"
_MANIFEST = "manifest.json"
_NEXT = "manifest.next.json"
_SEAL = b', "checksum": "'


class Row(NamedTuple):
    """Which picture a row's vector is of, as in the manifest."""

    id: str  # the picture's, in its dataset
    label: str | None  # its label, or None where there are none
    sha256: str  # hex digest of its bytes
    size: int  # with the next two, the `Stamp` of the file that holds it
    mtime_ns: int
    ctime_ns: int


class _Saved(NamedTuple):
    manifest: dict[str, Any]
    vectors: NDArray[np.float32]  # (N, dim) float32, a read-only memory map


class VectorKeeper:
    """Finds the vectors of a dataset that are known, and keeps those that an extraction makes.

    Only `open_keeper` makes one: the folder must be locked. `knows` may be called on many threads
    at once, also beside the other methods.
    """

    def __init__(self, folder: Path, dataset: Dataset, encoder: Encoder) -> None:
        self._folder, self._dataset, self._encoder = folder, dataset, encoder
        self._width = 4 * encoder.spec.dim  # bytes of a vector
        # by the digest of a content: the array and the row of its vector; None for pending.vectors
        self._rows: dict[str, tuple[NDArray[np.float32] | None, int]] = {}
        self._contents: dict[str, tuple[str, Stamp]] = {}  # digest and stamp of pictures, by id
        self._saved = _load_newest(folder)
        if self._saved is not None:
            self._offer(self._saved)
            pictures = self._saved.manifest["pictures"]
            self._contents = {row["id"]: (row["sha256"], _stamp(row)) for row in pictures}
        self._pending = folder / "pending.vectors", folder / "pending.jsonl"
        self._added, self._count = False, 0  # whether a vector was added; how many are pending
        with ExitStack() as opened:
            self._vectors, self._lines = (
                opened.enter_context(path.open("a+b")) for path in self._pending
            )
            self._read_pending()
            self._opened = opened.pop_all()

    def recall(self, picture_id: str, stamp: Stamp) -> str | None:
        """The digest of a picture whose file is as it was and whose vector is known."""
        sha256, known_stamp = self._contents.get(picture_id, ("", None))
        return sha256 if stamp == known_stamp and self.knows(sha256) else None

    def expect(self) -> None:
        """Looks for vectors in the folders of other datasets."""
        with _keeping(self._folder):
            for folder in sorted(self._folder.parent.iterdir()):
                other = None if folder == self._folder else _load(folder, _MANIFEST)
                if other is not None:
                    self._offer(other)

    def knows(self, sha256: str) -> bool:
        """Whether the vector of a content is here."""
        return sha256 in self._rows

    def add(self, row: Row, vector: NDArray[np.float32] | None) -> None:
        """Writes a picture down, with its vector, (dim,) float32, unless its content's is known.

        Raises:
            StorageError: The disk refuses.
        """
        line: dict[str, Any] = {**row._asdict(), "row": None, "crc32": None}
        with _keeping(self._folder):
            if vector is not None:
                data = vector.astype("<f4").tobytes()
                self._vectors.write(data)
                self._vectors.flush()
                line |= {"row": self._count, "crc32": _crc32(row.sha256, data)}
                self._rows[row.sha256] = None, self._count
                self._added, self._count = True, self._count + 1
            self._lines.write(json.dumps(line).encode() + b"\n")
            self._lines.flush()

    def finish(
        self, rows: Sequence[Row], skipped: Sequence[Skipped]
    ) -> tuple[NDArray[np.float32], Mapping[str, str]]:
        """Writes the whole, unless it stands there already, and removes what was pending.

        Returns:
            The vectors of the rows, (N, dim), and the provenance of the run that made the last.

        Raises:
            StorageError: The disk refuses; what is pending stays, and the old whole too.
        """
        manifest: dict[str, Any] = {
            "version": _VERSION,
            "dataset": self._dataset.name,
            "passport": self._encoder.spec.to_dict(),
            "provenance": dict(self._encoder.provenance),
            "vectors": None,
            "pictures": [row._asdict() for row in rows],
            "skipped": [{"id": picture.name, "reason": picture.reason} for picture in skipped],
        }
        with _keeping(self._folder):
            vectors = self._write(manifest)
            self._opened.close()
            for path in self._pending:
                path.unlink(missing_ok=True)
        return vectors, manifest["provenance"]

    def close(self) -> None:
        """Lets go of the files, which stay."""
        with _keeping(self._folder):
            self._opened.close()

    def _read_pending(self) -> None:
        """Believes lines whose row is as it was written, and makes ready to write behind them."""
        self._lines.seek(0)
        for text in self._lines:
            with suppress(ValueError, KeyError, TypeError, OverflowError, OSError):
                line = json.loads(text)
                sha256, row = line["sha256"], line["row"]
                if row is not None:
                    if _crc32(sha256, self._pending_row(row)) != line["crc32"]:
                        continue
                    self._rows[sha256] = None, row
                    self._count = max(self._count, row + 1)
                self._contents[line["id"]] = sha256, _stamp(line)
        self._vectors.truncate(self._count * self._width)
        if self._lines.tell():
            self._lines.write(b"\n")  # the last line may have been cut short

    def _pending_row(self, row: int) -> bytes:
        return os.pread(self._vectors.fileno(), self._width, row * self._width)

    def _write(self, manifest: dict[str, Any]) -> NDArray[np.float32]:
        before = self._saved
        if before is not None and not self._added:
            manifest["provenance"] = before.manifest["provenance"]
        contents = [picture["sha256"] for picture in manifest["pictures"]]
        if before is None or contents != [row["sha256"] for row in before.manifest["pictures"]]:
            return _save(self._folder, manifest, map(self._vector, contents))
        text = _sealed(manifest | {"vectors": before.manifest["vectors"]})
        if text != (self._folder / _MANIFEST).read_bytes():
            with atomic_write(self._folder / _MANIFEST) as file:
                file.write(text)
        return before.vectors

    def _offer(self, saved: _Saved) -> None:
        for position, picture in enumerate(saved.manifest["pictures"]):
            self._rows.setdefault(picture["sha256"], (saved.vectors, position))

    def _vector(self, sha256: str) -> NDArray[np.float32]:
        vectors, row = self._rows[sha256]
        if vectors is None:
            return np.frombuffer(self._pending_row(row), dtype="<f4")
        vector: NDArray[np.float32] = vectors[row]
        return vector


def _crc32(sha256: str, data: bytes) -> int:
    return zlib.crc32(data, zlib.crc32(sha256.encode()))


def _stamp(picture: Mapping[str, Any]) -> Stamp:
    return Stamp(picture["size"], picture["mtime_ns"], picture["ctime_ns"])


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
    precision = encoder.provenance.get("precision", "unknown")
    origin = hashlib.sha256(os.fsencode(dataset.origin)).hexdigest()[:16]
    name = re.sub(r"[^A-Za-z0-9._]+", "-", dataset.name)[:40].strip("-.") or "dataset"
    folder = cache / "vectors" / f"{encoder.spec.digest}-{precision}" / f"{name}-{origin}"
    with _keeping(folder):
        claim_folder(cache, "cache")
        make_folders(folder.resolve())
        mark_folder(cache / "vectors", "cache")
        lock = FileLock(folder / "lock", thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.warning("waiting for another process that extracts %s", dataset.name)
            lock.acquire()
    try:
        with _keeping(folder):
            keeper = VectorKeeper(folder, dataset, encoder)
        with closing(keeper):
            yield keeper
    finally:
        lock.release()


def _keeping(folder: Path) -> AbstractContextManager[None]:
    return disk_errors(f"keep vectors in {folder} (LOOKALIKE_CACHE_DIR sets another place)")


def _save(
    folder: Path, manifest: dict[str, Any], vectors: Iterable[NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Writes both files so that a crash leaves the old ones or the new ones; gives a map.

    The N vectors, (dim,) float32 each, are taken one by one. Where the disk refuses, which raises
    OSError, the old files stay.
    """
    shape = len(manifest["pictures"]), manifest["passport"]["dim"]
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    digest = hashlib.sha256()
    with atomic_write(folder / _VECTORS) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for vector in vectors:
            data = vector.astype("<f4").tobytes()
            digest.update(data)
            file.write(data)
        file.flush()
        facts = os.fstat(file.fileno())
        manifest["vectors"] = {
            "rows": shape[0],
            "dim": shape[1],
            "size": facts.st_size,
            "mtime_ns": facts.st_mtime_ns,
            "sha256": digest.hexdigest(),
        }
        with atomic_write(folder / _NEXT) as following:  # it stands there before the vectors do
            following.write(_sealed(manifest))
    _put_in_place(folder)
    return _map(folder)


def _put_in_place(folder: Path) -> None:
    (folder / _NEXT).replace(folder / _MANIFEST)
    sync(folder)


def _load_newest(folder: Path) -> _Saved | None:
    """As `_load`; ends a save that was cut off between its renames. Nobody else may be saving."""
    for partial in folder.glob(".*.part"):  # of `atomic_write` in a process that was killed
        partial.unlink()
    saved = _load(folder, _NEXT)
    if saved is None:
        (folder / _NEXT).unlink(missing_ok=True)
        return _load(folder, _MANIFEST)
    _put_in_place(folder)
    return saved


def _load(folder: Path, name: str) -> _Saved | None:
    """What was saved; None where there is nothing, or nothing that can be believed."""
    try:
        text = (folder / name).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        manifest = _unsealed(text)
        vectors = _map(folder)
        _check_vectors(folder / _VECTORS, vectors, manifest["vectors"])
    except (OSError, EOFError, ValueError, KeyError, TypeError) as exc:
        log.warning("the vectors in %s cannot be used and are made again: %s", folder, exc)
        return None
    return _Saved(manifest, vectors)


def _map(folder: Path) -> NDArray[np.float32]:
    vectors: NDArray[np.float32] = np.load(folder / _VECTORS, mmap_mode="r", allow_pickle=False)
    return vectors


def _check_vectors(path: Path, vectors: NDArray[np.float32], wanted: dict[str, Any]) -> None:
    """Compares mapped vectors with what the manifest says; raises ValueError.

    The file is looked at after it was mapped: one that fits then is the one that was mapped, for
    files are only ever replaced by newer ones.
    """
    if vectors.dtype != np.dtype("<f4") or vectors.shape != (wanted["rows"], wanted["dim"]):
        raise ValueError(f"{_VECTORS} is {vectors.shape} {vectors.dtype}")
    facts = path.stat()
    if facts.st_size != wanted["size"]:
        raise ValueError(f"{_VECTORS} has {facts.st_size:,} bytes instead of {wanted['size']:,}")
    same_time = facts.st_mtime_ns == wanted["mtime_ns"]
    if not same_time and hashlib.sha256(vectors.data).hexdigest() != wanted["sha256"]:
        raise ValueError(f"the checksum of {_VECTORS} is wrong")


def _sealed(manifest: dict[str, Any]) -> bytes:
    """The manifest as JSON, with its own checksum at the end."""
    body = json.dumps(manifest).encode()[:-1]
    return body + _SEAL + hashlib.sha256(body).hexdigest().encode() + b'"}\n'


def _unsealed(text: bytes) -> dict[str, Any]:
    """Reads what `_sealed` wrote; raises ValueError where it was changed since."""
    body, _, checksum = text.rpartition(_SEAL)
    if checksum != hashlib.sha256(body).hexdigest().encode() + b'"}\n':
        raise ValueError("the checksum of the manifest is wrong")
    manifest: dict[str, Any] = json.loads(text)
    if manifest["version"] != _VERSION:
        raise ValueError(f"version {manifest['version']} is not {_VERSION}")
    return manifest
