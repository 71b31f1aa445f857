"""Synthetic vectors in a file that is mapped, grown where it is too short, kept from run to run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.vectors import BLOCK, Collection
from lookalike.cores import available_cores

_SPARE_BYTES = 2 * 2**30  # of the disk, left to others


@dataclass(frozen=True, slots=True)
class VectorFile:
    """The first rows of one collection, as little-endian float32, and the clusters they are of.

    Attributes:
        folder: Where the files are.
        dim: Numbers in a vector.
        seed: Of the collection.
    """

    folder: Path
    dim: int
    seed: int = 0

    @property
    def path(self) -> Path:
        """The vectors, one after the other; named by what they are drawn from."""
        return self.folder / f"vectors-{self._collection.digest}.f32"

    def vectors(self, count: int) -> NDArray[np.float32]:
        """The first rows, (count, dim), mapped read-only; written first where there are fewer.

        Raises:
            SystemExit: The disk has no room for them.
        """
        self._grow(count)
        return np.memmap(self.path, dtype="<f4", mode="r", shape=(count, self.dim))

    def clusters(self, count: int) -> NDArray[np.int32]:
        """The cluster of each of the first rows, (count,)."""
        self._grow(count)
        return np.fromfile(self._clusters, dtype="<i4", count=count)

    def queries(self, count: int) -> NDArray[np.float32]:
        """Vectors of the same collection that are none of its rows, (count, dim)."""
        return self._collection.queries(count)[0]

    def missing_bytes(self, count: int) -> int:
        """How much the files would grow by to hold so many rows."""
        return max(0, -(-count // BLOCK) - self._whole_blocks()) * BLOCK * 4 * (self.dim + 1)

    def lacking(self, count: int) -> str:
        """Why the disk cannot hold so many rows; empty if it can."""
        self.folder.mkdir(parents=True, exist_ok=True)
        missing = self.missing_bytes(count)
        free = max(0, shutil.disk_usage(self.folder).free - _SPARE_BYTES)
        if not missing or missing <= free:
            return ""
        return (
            f"{count} vectors need {missing / 1e9:.1f} GB more in {self.folder}, where "
            f"{free / 1e9:.1f} GB may be used"
        )

    @property
    def _collection(self) -> Collection:
        return Collection(self.dim, seed=self.seed)

    @property
    def _clusters(self) -> Path:
        return self.path.with_suffix(".clusters")

    def _whole_blocks(self) -> int:
        sizes = [
            file.stat().st_size if file.exists() else 0 for file in (self.path, self._clusters)
        ]
        return min(sizes[0] // (4 * self.dim), sizes[1] // 4) // BLOCK

    def _grow(self, count: int) -> None:
        missing = self.missing_bytes(count)
        if not missing:
            return
        lacking = self.lacking(count)
        if lacking:
            raise SystemExit(f"{lacking}; name another folder with --work")
        start, end = self._whole_blocks(), -(-count // BLOCK)
        with self.path.open("ab") as vectors, self._clusters.open("ab") as clusters:
            vectors.truncate(start * BLOCK * self.dim * 4)
            clusters.truncate(start * BLOCK * 4)
            for rows, kinds in drawn(self._collection, start, end):
                rows.astype("<f4", copy=False).tofile(vectors)
                kinds.astype("<i4", copy=False).tofile(clusters)


def drawn(
    collection: Collection, start: int, end: int
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int32]]]:
    """Blocks of a collection in order, drawn on every core, few of them in memory at once."""
    cores = available_cores()
    with ThreadPoolExecutor(cores) as pool:
        for first in range(start, end, cores):
            yield from pool.map(collection.block, range(first, min(first + cores, end)))
