"""An index that changes over files that do not: a built part, and rows in memory since."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.store.effort import Effort
from lookalike.store.local.index.ann_index import AnnIndex
from lookalike.store.local.index.flat_index import FlatIndex, Found
from lookalike.store.local.index.flat_rows import Positions
from lookalike.store.vectors import Seqs, Vectors, best_first


class LayeredIndex:
    """Looks like a `FlatIndex` that is not all in memory.

    Positions count through the built part first. Searches may run side by side; `add` and `remove`
    must run alone.

    Args:
        base: What was built, approximate or exact, over a mapped file.
        asked: The settings that it was built by; None where they were not recorded.

    Attributes:
        base, asked: As given.
    """

    def __init__(
        self, base: AnnIndex | FlatIndex, *, asked: Mapping[str, Any] | None = None
    ) -> None:
        self.base = base
        self.asked = asked
        self.built = base if isinstance(base, FlatIndex) else base.exact
        self.dim = self.built.dim
        self.tail = FlatIndex(self.dim)
        self._border = len(base)
        self._base_last = self.built.last_seq

    def __len__(self) -> int:
        """Rows, tombstones included."""
        return self._border + len(self.tail)

    @property
    def dead(self) -> int:
        """Tombstones."""
        return self.built.dead + self.tail.dead

    @property
    def seqs(self) -> Seqs:
        """The seq of every row, tombstones included: (N,) int64, ascending."""
        return np.concatenate([self.built.seqs, self.tail.seqs])

    @property
    def alive(self) -> NDArray[np.bool_]:
        """Which rows are no tombstones: (N,) bool."""
        return np.concatenate([self.built.alive, self.tail.alive])

    @property
    def last_seq(self) -> int:
        """The highest seq that was added; 0 where none was."""
        return self.tail.last_seq or self._base_last

    @property
    def factory(self) -> str | None:
        """The factory string of the built part; None where it is exact."""
        return None if isinstance(self.base, FlatIndex) else self.base.ann.factory

    @property
    def bytes(self) -> int:
        """Memory that it takes beyond what is mapped."""
        return self.base.bytes + self.tail.bytes

    @property
    def mapped_bytes(self) -> int:
        """What of files is mapped."""
        return self.base.mapped_bytes

    def add(self, seqs: Seqs, vectors: Vectors) -> None:
        """Appends rows to the exact part, see `FlatIndex.add`."""
        if len(seqs) and seqs[0] <= self._base_last:
            raise ValueError("seqs must ascend")
        self.tail.add(seqs, vectors)

    def remove(self, seqs: Seqs) -> None:
        """Makes tombstones of those rows that are alive."""
        self.built.remove(seqs)
        self.tail.remove(seqs)

    def locate(self, seqs: Seqs) -> Positions:
        """The positions of those seqs that are alive, the built part's first."""
        later = self.tail.locate(seqs) + self._border
        return np.concatenate([self.built.locate(seqs), later])

    def vectors(self, positions: Positions) -> Vectors:
        """Copies of rows: (N, dim) float32."""
        built = positions < self._border
        rows = np.empty((len(positions), self.dim), dtype=np.float32)
        rows[built] = self.built.vectors(positions[built])
        rows[~built] = self.tail.vectors(positions[~built] - self._border)
        return rows

    def blocks(self) -> Iterator[tuple[Seqs, Vectors]]:
        """The rows that are alive, in order, in blocks of about 4 MiB: seqs and vectors."""
        yield from self.built.blocks()
        yield from self.tail.blocks()

    def begin_search(
        self,
        queries: Vectors,
        *,
        k: int,
        among: Positions | None,
        without: Positions | None,
        effort: Effort | None,
    ) -> Callable[[], list[Found]]:
        """Does what changes must not come between, see `FlatIndex.begin_search`."""
        allowed, left_out = self._split(among), self._split(without)
        since = self.tail.search(queries, k=k, among=allowed[1], without=left_out[1])
        finish = self.base.begin_search(
            queries, k=k, among=allowed[0], without=left_out[0], effort=effort
        )
        return lambda: [_merged(*both, k) for both in zip(finish(), since, strict=True)]

    def _split(self, positions: Positions | None) -> tuple[Positions | None, Positions | None]:
        if positions is None:
            return None, None
        built = positions < self._border
        return positions[built], positions[~built] - self._border


def _merged(built: Found, since: Found, k: int) -> Found:
    """The k best of both parts."""
    scores, seqs = (np.concatenate(part) for part in zip(built, since, strict=True))
    order = best_first(scores, seqs, k)
    return scores[order], seqs[order]
