"""A dataset's vectors as two files that others can read too.

```
vectors.npy      (N, dim) little-endian float32, rows of length 1
manifest.json    {"version": 1,
                  "dataset": name, "passport": {...}, "provenance": {...},
                  "vectors": {"rows": N, "dim", "size", "mtime_ns", "sha256"},
                  "pictures": [{"id", "label", "sha256", "size", "mtime_ns", "ctime_ns"}, ...],
                  "skipped": [{"id", "reason"}, ...],
                  "checksum"}
```

`np.load("vectors.npy", mmap_mode="r")` gives the vectors, and entry i of `pictures` says what row i
is: `sha256` is of the picture's bytes, `size`, `mtime_ns` and `ctime_ns` are of the file that holds
it, `label` is null where there are none. `vectors.sha256` is of the rows' bytes, `vectors.size` and
`mtime_ns` are of `vectors.npy` itself; `checksum` is the sha256 of the manifest's own bytes up to
the comma before it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.evaluation.datasets.base import Stamp
from lookalike.files.disk import sync
from lookalike.records import ModelSpec
from lookalike.services.vector_set import Skipped

VERSION = 1
VECTORS = "vectors.npy"
MANIFEST = "manifest.json"

_NEXT = "manifest.next.json"
_SEAL = b', "checksum": "'

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Row:
    """Which picture a row's vector is of."""

    id: str  # the picture's, in its dataset
    label: str | None  # its label, or None where there are none
    sha256: str  # Hex digest of its bytes
    stamp: Stamp  # of the file that holds it


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a set of vectors is."""

    dataset: str  # its name
    spec: ModelSpec  # what made the vectors
    # recorded beside it, of the run that made the last of the vectors
    provenance: Mapping[str, str]
    rows: tuple[Row, ...]  # which picture each vector is of
    skipped: tuple[Skipped, ...]  # pictures that could not be read


@dataclass(frozen=True, slots=True)
class Saved:
    """A manifest and its vectors, (N, dim) float32; from the disk, a read-only memory map."""

    manifest: Manifest
    vectors: NDArray[np.float32]


def save(folder: Path, manifest: Manifest, vectors: Iterable[NDArray[np.float32]]) -> Saved:
    """Writes both files so that a crash leaves the old ones or the new ones.

    The N vectors, (dim,) float32 each, are taken one by one.

    Raises:
        OSError: The disk refuses; the old files stay.
    """
    written = folder / f"{VECTORS}.tmp"
    try:
        digest = _write_vectors(written, vectors, shape=(len(manifest.rows), manifest.spec.dim))
        _write(folder / _NEXT, _sealed(manifest, _describe(written, manifest, digest)))
        written.replace(folder / VECTORS)
    except BaseException:
        written.unlink(missing_ok=True)
        (folder / _NEXT).unlink(missing_ok=True)
        raise
    (folder / _NEXT).replace(folder / MANIFEST)
    sync(folder)
    return Saved(manifest, _map(folder / VECTORS))


def save_manifest(folder: Path, saved: Saved) -> None:
    """Writes another manifest for vectors that stay. Raises OSError where the disk refuses."""
    described = _describe(folder / VECTORS, saved.manifest, _digest(saved.vectors))
    _write(folder / _NEXT, _sealed(saved.manifest, described))
    (folder / _NEXT).replace(folder / MANIFEST)
    sync(folder)


def recover(folder: Path) -> None:
    """Ends a `save` that was cut off between its two renames; nobody else may be saving."""
    if (folder / _NEXT).exists():
        if load(folder, name=_NEXT) is None:
            (folder / _NEXT).unlink()
        else:
            (folder / _NEXT).replace(folder / MANIFEST)


def load(folder: Path, *, name: str = MANIFEST) -> Saved | None:
    """What `save` wrote; None where there is nothing, or nothing that can be believed.

    The vectors are compared with the manifest by size and time of change, and where these differ,
    by checksum.
    """
    try:
        text = (folder / name).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        document = _unsealed(text)
        vectors = _map(folder / VECTORS)
        _check_vectors(folder / VECTORS, vectors, document["vectors"])
        return Saved(_manifest(document), vectors)
    except (OSError, EOFError, ValueError, KeyError, TypeError) as exc:
        log.warning("the vectors in %s cannot be used and are made again: %s", folder, exc)
        return None


def _write_vectors(
    path: Path, vectors: Iterable[NDArray[np.float32]], *, shape: tuple[int, int]
) -> str:
    """Writes a .npy file through to the disk; gives the digest of what was meant."""
    digest = hashlib.sha256()
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for vector in vectors:
            data = vector.astype("<f4").tobytes()
            digest.update(data)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _map(path: Path) -> NDArray[np.float32]:
    vectors: NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
    return vectors


def _digest(vectors: NDArray[np.float32]) -> str:
    return hashlib.sha256(vectors.data).hexdigest()


def _describe(path: Path, manifest: Manifest, digest: str) -> dict[str, Any]:
    facts = path.stat()
    return {
        "rows": len(manifest.rows),
        "dim": manifest.spec.dim,
        "size": facts.st_size,
        "mtime_ns": facts.st_mtime_ns,
        "sha256": digest,
    }


def _check_vectors(path: Path, vectors: NDArray[np.float32], wanted: dict[str, Any]) -> None:
    """Compares mapped vectors with what the manifest says; raises ValueError.

    The file is looked at after it was mapped: one that fits then is the one that was mapped, for
    files are only ever replaced by newer ones.
    """
    if vectors.dtype != np.dtype("<f4") or vectors.shape != (wanted["rows"], wanted["dim"]):
        raise ValueError(f"{VECTORS} is {vectors.shape} {vectors.dtype}")
    facts = path.stat()
    if facts.st_size != wanted["size"]:
        raise ValueError(f"{VECTORS} has {facts.st_size:,} bytes instead of {wanted['size']:,}")
    if facts.st_mtime_ns != wanted["mtime_ns"] and _digest(vectors) != wanted["sha256"]:
        raise ValueError(f"the checksum of {VECTORS} is wrong")


def _sealed(manifest: Manifest, vectors: dict[str, Any]) -> bytes:
    """The manifest as JSON, with its own checksum at the end."""
    document = {
        "version": VERSION,
        "dataset": manifest.dataset,
        "passport": manifest.spec.to_dict(),
        "provenance": dict(manifest.provenance),
        "vectors": vectors,
        "pictures": [
            {"id": row.id, "label": row.label, "sha256": row.sha256, **row.stamp._asdict()}
            for row in manifest.rows
        ],
        "skipped": [{"id": picture.name, "reason": picture.reason} for picture in manifest.skipped],
    }
    body = json.dumps(document).encode()[:-1]
    return body + _SEAL + hashlib.sha256(body).hexdigest().encode() + b'"}\n'


def _unsealed(text: bytes) -> dict[str, Any]:
    """Reads what `_sealed` wrote; raises ValueError where it was changed since."""
    body, _, checksum = text.rpartition(_SEAL)
    if checksum != hashlib.sha256(body).hexdigest().encode() + b'"}\n':
        raise ValueError("the checksum of the manifest is wrong")
    document: dict[str, Any] = json.loads(text)
    if document["version"] != VERSION:
        raise ValueError(f"version {document['version']} is not {VERSION}")
    return document


def _manifest(document: dict[str, Any]) -> Manifest:
    pictures, skipped = document["pictures"], document["skipped"]
    if len(pictures) != document["vectors"]["rows"]:
        raise ValueError(f"{len(pictures)} pictures for {document['vectors']['rows']} vectors")
    return Manifest(
        dataset=document["dataset"],
        spec=ModelSpec.from_dict(document["passport"]),
        provenance=document["provenance"],
        rows=tuple(
            Row(p["id"], p["label"], p["sha256"], Stamp(p["size"], p["mtime_ns"], p["ctime_ns"]))
            for p in pictures
        ),
        skipped=tuple(Skipped(picture["id"], picture["reason"]) for picture in skipped),
    )
