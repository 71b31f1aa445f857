"""An index as searches see it: sealed rows of a file, and rows added since, in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lookalike.records import Effort
from lookalike.store.base import Seqs, Vectors, best_first
from lookalike.store.local.index.approximate import ApproximateSegment
from lookalike.store.local.index.exact import ExactSegment, Found, Mask, Positions, Selection


@dataclass(frozen=True, slots=True)
class PreparedSearch:
    """A search that is half done: the rest may run while rows are added and removed.

    Attributes:
        selection: The sealed rows that it may find.
        growing: What it found among the growing rows.
    """

    selection: Selection
    growing: list[Found]


class Segments:
    """A sealed segment and a growing one, searched as one.

    Positions count through the sealed rows first. Searches may run side by side; `add` and `remove`
    must run alone.

    Args:
        sealed: Rows in a mapped file; may be none.
        approximate: Searches the sealed rows approximately; None to search them exactly.
        growing: Rows added since; none unless given.
        built_with: The settings that the approximate index was built with; None if unknown.

    Attributes:
        sealed, approximate, growing, built_with: As given.
        dim: Numbers in a vector.
    """

    def __init__(
        self,
        sealed: ExactSegment,
        *,
        approximate: ApproximateSegment | None = None,
        growing: ExactSegment | None = None,
        built_with: Mapping[str, Any] | None = None,
    ) -> None:
        self.sealed = sealed
        self.approximate = approximate
        if growing is None:
            growing = ExactSegment(sealed.dim, limits=sealed.limits)
        self.growing = growing
        self.built_with = built_with
        self.dim = sealed.dim

    def __len__(self) -> int:
        """Rows, tombstones included."""
        return len(self.sealed) + len(self.growing)

    @property
    def dead(self) -> int:
        """Tombstones."""
        return self.sealed.dead + self.growing.dead

    @property
    def live_rows(self) -> int:
        """Rows that are no tombstones."""
        return len(self) - self.dead

    @property
    def seqs(self) -> Seqs:
        """The seq of every row, tombstones included; ascending."""
        return np.concatenate([self.sealed.seqs, self.growing.seqs])

    @property
    def alive(self) -> Mask:
        """Which rows are no tombstones."""
        return np.concatenate([self.sealed.alive, self.growing.alive])

    @property
    def last_seq(self) -> int:
        """The highest seq that was added; 0 if there is none."""
        return self.growing.last_seq or self.sealed.last_seq

    @property
    def factory(self) -> str | None:
        """The factory string of the sealed part; None if it is exact."""
        return self.approximate.candidates.factory if self.approximate else None

    @property
    def built_recall(self) -> float | None:
        """The recall that the approximate index was built for; None if unknown."""
        return float(self.built_with["recall"]) if self.built_with else None

    @property
    def bytes(self) -> int:
        """Memory, without what is mapped."""
        candidates = self.approximate.candidates.bytes if self.approximate else 0
        return self.growing.bytes + candidates

    @property
    def mapped_bytes(self) -> int:
        """Bytes of mapped files."""
        candidates = self.approximate.candidates.mapped_bytes if self.approximate else 0
        return self.sealed.mapped_bytes + candidates

    def add(self, seqs: Seqs, vectors: Vectors) -> None:
        """Appends rows to the growing segment, see `ExactSegment.add`."""
        if len(seqs) and seqs[0] <= self.sealed.last_seq:
            raise ValueError("seqs must ascend")
        self.growing.add(seqs, vectors)

    def remove(self, seqs: Seqs) -> None:
        """Makes tombstones of those rows that are alive."""
        self.sealed.remove(seqs)
        self.growing.remove(seqs)

    def locate(self, seqs: Seqs) -> Positions:
        """The positions of those seqs that are alive, the sealed ones first."""
        later = self.growing.locate(seqs) + len(self.sealed)
        return np.concatenate([self.sealed.locate(seqs), later])

    def vectors(self, positions: Positions) -> Vectors:
        """Copies of rows: (N, dim) float32."""
        sealed, growing = self._split(positions)
        rows = np.empty((len(positions), self.dim), np.float32)
        rows[positions < len(self.sealed)] = self.sealed.vectors(sealed)
        rows[positions >= len(self.sealed)] = self.growing.vectors(growing)
        return rows

    def blocks(self) -> Iterator[tuple[Seqs, Vectors]]:
        """Seqs and vectors of the rows that are alive, in order, in blocks of about 4 MiB."""
        yield from self.sealed.blocks()
        yield from self.growing.blocks()

    def prepare(
        self, queries: Vectors, allowed: Positions | None, excluded: Positions | None, *, k: int
    ) -> PreparedSearch:
        """Does the part of a search that changes must not run beside."""
        parts = [
            (None, None) if positions is None else self._split(positions)
            for positions in (allowed, excluded)
        ]
        selection = self.sealed.select(parts[0][0], parts[1][0], k=k)
        growing = self.growing.search(queries, k=k, allowed=parts[0][1], excluded=parts[1][1])
        return PreparedSearch(selection, growing)

    def finish(
        self, queries: Vectors, prepared: PreparedSearch, *, k: int, effort: Effort
    ) -> list[Found]:
        """Does the rest: the k best of both segments for each query, best first."""
        if not len(self.sealed):
            return prepared.growing
        if self.approximate is None:
            found = self.sealed.search_selected(queries, prepared.selection, k=k)
        else:
            found = self.approximate.search_selected(
                queries, prepared.selection, k=k, effort=effort
            )
        return [_merged(*both, k) for both in zip(found, prepared.growing, strict=True)]

    def _split(self, positions: Positions) -> tuple[Positions, Positions]:
        """Positions in the sealed segment, and positions in the growing one."""
        border = len(self.sealed)
        if not border:
            return positions[:0], positions
        sealed = positions < border
        return positions[sealed], positions[~sealed] - border


def in_memory(growing: ExactSegment) -> Segments:
    """An index of growing rows alone."""
    return Segments(ExactSegment(growing.dim, limits=growing.limits), growing=growing)


def _merged(sealed: Found, growing: Found, k: int) -> Found:
    """The k best of both parts."""
    scores, seqs = (np.concatenate(part) for part in zip(sealed, growing, strict=True))
    order = best_first(scores, seqs, k)
    return scores[order], seqs[order]
