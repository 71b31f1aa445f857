"""A saved index: an artifact folder that is whole and fits the catalog, or not used.

It holds `seqs`, (N,) little-endian int64; `vectors`, (N, dim) little-endian float32, which are
mapped; and `candidates` in FAISS's own format, if the index is approximate. It is only a cache.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lookalike.errors import StorageFullError
from lookalike.files.artifacts import (
    Artifact,
    BrokenArtifactError,
    read_artifact,
    remove_artifact,
    remove_leftovers,
    save_artifact,
)
from lookalike.files.disk import disk_errors
from lookalike.store.base import Seqs, Vectors
from lookalike.store.local.catalog import CollectionRow
from lookalike.store.local.index.approximate import ApproximateSegment, CandidateIndex
from lookalike.store.local.index.calibration import Calibration
from lookalike.store.local.index.policy import EXACT, VERSION, Limits
from lookalike.store.local.index.segments import ExactSegment, Segments, in_memory

_KIND, _FORMAT = "index", 3
_SIZE_SHARE = 1.25  # of the vectors' bytes; most types take far less than the vectors
_SPARE_BYTES = 2**30
_SPARE_SHARE = 20  # of a small disk
_CHECKED_BYTES = 2**28  # up to which a mapped file is read as a whole before it is used
_READ_BYTES = 8 * 2**20

Build = Callable[[Path, int], dict[str, Any]]
"""Writes `candidates` into the folder that holds `vectors` of so many numbers each.

Returns what to keep of it: `index`, `calibration`, `built_with`.
"""

log = logging.getLogger(__name__)


class Generations:
    """The saved index of one vector space. Each save replaces the last one in one step."""

    def __init__(self, folder: Path, *, limits: Limits, read_only: bool = False) -> None:
        self._folder = folder
        self._limits = limits
        self._read_only = read_only

    def save(
        self,
        blocks: Iterable[tuple[Seqs, Vectors]],
        row: CollectionRow,
        *,
        build: Build | None = None,
    ) -> bool:
        """Saves a generation; False if nothing may be saved.

        Raises `StorageError` if the disk refuses; then the older generation stays.
        """
        if self._read_only:
            return False
        facts: dict[str, Any] = {"index": EXACT, "faiss": VERSION}

        def write(folder: Path) -> None:
            seqs = _write_rows(folder, blocks)
            facts.update(_identity(seqs, row))
            if build is not None:
                facts.update(build(folder, row.spec.dim))

        with disk_errors("save the index"):
            saved = save_artifact(
                self._folder, kind=_KIND, version=_FORMAT, facts=facts, write=write
            )
            remove_leftovers(saved, older_than_s=0)  # what is mapped stays readable
        return True

    def require_room(self, rows: int, dim: int) -> None:
        """Raises `StorageFullError` if the disk lacks room for a build and for images to come."""
        folder = next(one for one in (self._folder, *self._folder.parents) if one.is_dir())
        disk = shutil.disk_usage(folder)
        needed = int(4 * dim * rows * _SIZE_SHARE)
        left = min(_SPARE_BYTES, disk.total // _SPARE_SHARE)
        if disk.free < needed + left:
            raise StorageFullError(
                f"{disk.free / 1e6:,.0f} MB are free on the disk of the data folder; an index "
                f"needs {needed / 1e6:,.0f} MB, beside {left / 1e6:,.0f} MB that are left for "
                "pictures: make room"
            )

    def load(self, row: CollectionRow, *, exact: bool) -> Segments | None:
        """The saved index; None if there is none that is whole and fits.

        A broken one is removed, and the log says why; so is what a crash left.
        """
        try:
            artifact = read_artifact(self._folder, kind=_KIND, version=_FORMAT)
            if artifact is not None:
                found = self._open(artifact, row, exact=exact)
                if not self._read_only:
                    remove_leftovers(artifact, older_than_s=0)
                return found
        except (BrokenArtifactError, OSError, ValueError, KeyError, TypeError, RuntimeError) as exc:
            log.warning("The saved index of %r cannot be used: %s", row.name, exc)
        self.discard()
        return None

    def _open(self, artifact: Artifact, row: CollectionRow, *, exact: bool) -> Segments:
        facts, dim = artifact.facts, row.spec.dim
        seqs = np.frombuffer(artifact.verify("seqs").read_bytes(), "<i8").astype(np.int64)
        for key, wanted in _identity(seqs, row).items():
            if facts[key] != wanted:
                raise BrokenArtifactError(f"its {key} is {facts[key]!r}, not {wanted!r}")
        vectors = artifact.path("vectors")
        size = vectors.stat().st_size
        if size != 4 * dim * len(seqs):
            raise BrokenArtifactError("vectors has the wrong size")
        if size <= _CHECKED_BYTES:
            artifact.verify("vectors")
        growing = ExactSegment(dim, limits=self._limits)
        approximate = not exact and facts["index"] != EXACT
        if not approximate and size < self._limits.mapped_bytes:
            return in_memory(_read_rows(vectors, seqs, growing))
        rows = ExactSegment.map(vectors, dim, seqs, limits=self._limits)
        if not approximate:
            return Segments(rows, growing)
        candidates = CandidateIndex.read(artifact.verify("candidates"), factory=facts["index"])
        segment = ApproximateSegment(rows, candidates, Calibration.from_json(facts["calibration"]))
        return Segments(rows, growing, segment, built_with=facts["built_with"])

    def saved(self) -> dict[str, Any] | None:
        """Type, rows and bytes on the disk, as the manifest says; None if there is none."""
        try:
            found = read_artifact(self._folder, kind=_KIND, version=_FORMAT)
            if found is None:
                return None
            size = sum(file["bytes"] for file in found.files.values())
            return {"type": found.facts["index"], "count": found.facts["count"], "bytes": size}
        except (BrokenArtifactError, OSError, KeyError):  # damaged, or replaced meanwhile
            return None

    def discard(self) -> None:
        """Removes the saved index."""
        if not self._read_only:
            remove_artifact(self._folder)


def _write_rows(folder: Path, blocks: Iterable[tuple[Seqs, Vectors]]) -> Seqs:
    held: list[Seqs] = [np.empty(0, np.int64)]
    with (folder / "vectors").open("wb") as file:
        for seqs, vectors in blocks:
            held.append(seqs)
            file.write(vectors.astype("<f4").data)
    seqs = np.concatenate(held)
    (folder / "seqs").write_bytes(seqs.astype("<i8").tobytes())
    return seqs


def _read_rows(path: Path, seqs: Seqs, segment: ExactSegment) -> ExactSegment:
    """The segment with a copy of the rows, read block by block."""
    step = max(1, _READ_BYTES // (4 * segment.dim))
    with path.open("rb") as file:
        for start in range(0, len(seqs), step):
            block = seqs[start : start + step]
            rows = np.frombuffer(file.read(4 * segment.dim * len(block)), "<f4")
            segment = segment.added(block, rows.reshape(len(block), segment.dim))
    return segment


def _identity(seqs: Seqs, row: CollectionRow) -> dict[str, Any]:
    """What a generation of these rows must say of itself."""
    return {
        "embedding": row.space,
        "spec": row.spec.digest,
        "dim": row.spec.dim,
        "count": len(seqs),
        "last_seq": int(seqs[-1]) if len(seqs) else 0,
    }
