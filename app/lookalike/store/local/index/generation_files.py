"""The files of a saved index: what they hold, and whether that is still so.

```
<folder>/00000007.seqs       (N,) little-endian int64
<folder>/00000007.vectors    (N, dim) little-endian float32
<folder>/00000007.ann        FAISS's own format; only of an approximate index
<folder>/00000007.json       manifest, written last: what it was made of, and checksums
```
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lookalike.files.disk import sync_folder
from lookalike.store.local.catalog import CollectionRow
from lookalike.store.local.index.flat_rows import VERSION
from lookalike.store.vectors import Seqs, Vectors

FORMAT = 2
_READ_BYTES = 8 * 2**20


class BrokenGenerationError(Exception):
    """A saved index that must not be used; the text says why."""


def write_rows(
    stem: Path, blocks: Iterable[tuple[Seqs, Vectors]], row: CollectionRow
) -> dict[str, Any]:
    """Writes seqs and vectors through to the disk; gives the manifest's part about them."""
    held: list[Seqs] = []

    def vectors() -> Iterator[bytes]:
        for seqs, rows in blocks:
            held.append(seqs)
            yield rows.astype("<f4").tobytes()

    digest = write_file(stem.with_suffix(".vectors"), vectors())
    seqs = np.concatenate([np.empty(0, dtype=np.int64), *held])
    return {
        **describe(seqs, row),
        "faiss": VERSION,
        "vectors": digest,
        "seqs": write_file(stem.with_suffix(".seqs"), [seqs.astype("<i8").tobytes()]),
    }


def write_manifest(stem: Path, manifest: dict[str, Any]) -> None:
    """Makes a generation whole: its manifest appears in one step."""
    write_file(stem.with_suffix(".tmp"), [json.dumps(manifest, indent=1).encode()])
    stem.with_suffix(".tmp").replace(stem.with_suffix(".json"))
    sync_folder(stem.parent)


def write_file(path: Path, blocks: Iterable[bytes]) -> str:
    """Writes a file through to the disk and gives the SHA-256 of what was meant."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for block in blocks:
            digest.update(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def read_manifest(stem: Path, row: CollectionRow) -> tuple[dict[str, Any], Seqs]:
    """A manifest that fits, and the seqs.

    Raises:
        BrokenGenerationError: It is of something else, or damaged.
    """
    manifest = json.loads(stem.with_suffix(".json").read_bytes())
    data = stem.with_suffix(".seqs").read_bytes()
    if hashlib.sha256(data).hexdigest() != manifest["seqs"]:
        raise BrokenGenerationError("the checksum of its row numbers is wrong")
    seqs = np.frombuffer(data, dtype="<i8").astype(np.int64)
    for key, wanted in describe(seqs, row).items():
        if manifest[key] != wanted:
            raise BrokenGenerationError(f"its {key} is {manifest[key]!r}, not {wanted!r}")
    return manifest, seqs


def check_digest(path: Path, wanted: str) -> None:
    """Raises `BrokenGenerationError` where a file has changed since it was written."""
    if digest_of(path) != wanted:
        raise BrokenGenerationError(f"the checksum of {path.name} is wrong")


def digest_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_file(path: Path) -> None:
    """Brings what another process wrote through to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def read_blocks(path: Path, seqs: Seqs, dim: int) -> Iterator[tuple[Seqs, Vectors]]:
    """Seqs and vectors of a file in blocks."""
    step = max(1, _READ_BYTES // (4 * dim))
    with path.open("rb") as file:
        for start in range(0, len(seqs), step):
            block = seqs[start : start + step]
            rows = np.frombuffer(file.read(4 * dim * len(block)), dtype="<f4").astype(np.float32)
            yield block, rows.reshape(len(block), dim)


def describe(seqs: Seqs, row: CollectionRow) -> dict[str, Any]:
    """What a generation of these rows must say of itself."""
    return {
        "format": FORMAT,
        "embedding": row.embedding,
        "passport": row.spec.digest,
        "dim": row.spec.dim,
        "count": len(seqs),
        "last_seq": int(seqs[-1]) if len(seqs) else 0,
    }
