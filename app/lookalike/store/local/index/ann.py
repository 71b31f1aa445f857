"""An approximate index of FAISS, of any type: candidates for a query, and how hard to look."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.store.effort import LIMITS, Effort
from lookalike.store.local.index.flat_rows import (
    Positions,
    faiss,
    most_threads,
    search_method,
    selector,
    threads,
)
from lookalike.store.vectors import Vectors

_PARALLEL_QUERIES = 16  # from so many on, more threads pay
_WIDER = 4  # how much harder each further look is
_LEAST_EF = 16


class Ann:
    """A trained index that never changes; searches may run side by side.

    FAISS compares by Euclidean distance: of unit vectors the nearest are those of the highest
    cosine, and unlike the inner product it survives a PCA, which centers. Distances are used to
    choose candidates and for nothing else.

    Args:
        index: FAISS's, trained and filled, with `METRIC_L2`.
        factory: The factory string that it was made by.
        mapped: Whether it lies in a file where its type allows.
    """

    def __init__(self, index: Any, *, factory: str, mapped: bool = False) -> None:
        self._index = index
        self.factory = factory
        self._mapped = mapped
        self._inner = _innermost(index)
        self.takes_selectors = self._try_selector()

    @classmethod
    def read(cls, path: Path, *, factory: str) -> Ann:
        """Maps a saved index. Raises `RuntimeError` where FAISS cannot read it."""
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        read = cls(index, factory=factory, mapped=True)
        read.total_bytes = path.stat().st_size  # instead of writing it to count
        return read

    def write(self, path: Path) -> None:
        """Writes it to a file. Raises `RuntimeError` where the disk refuses."""
        faiss.write_index(self._index, str(path))

    def __len__(self) -> int:
        """Rows."""
        return int(self._index.ntotal)

    @property
    def knob(self) -> str | None:
        """The search parameter that this type has: `nprobe`, `ef_search`, or None."""
        if isinstance(self._inner, faiss.IndexIVF):
            return "nprobe"
        return "ef_search" if isinstance(self._inner, faiss.IndexHNSW) else None

    @property
    def most(self) -> int:
        """The value of the knob at which every row is looked at; 1 where there is none."""
        if self.knob == "nprobe":
            return min(int(self._inner.nlist), LIMITS["nprobe"])
        return min(max(len(self), _LEAST_EF), LIMITS["ef_search"]) if self.knob else 1

    @property
    def least(self) -> int:
        """The smallest useful value of the knob; 1 where there is none."""
        return min(_LEAST_EF, self.most) if self.knob == "ef_search" else 1

    @property
    def bytes(self) -> int:
        """Memory that cannot be given back; what is mapped is not counted."""
        return self.total_bytes - self.mapped_bytes

    @functools.cached_property
    def total_bytes(self) -> int:
        """Its size as a file."""
        counted = 0

        def count(data: Any) -> None:
            nonlocal counted
            counted += len(data)

        faiss.write_index(self._index, faiss.PyCallbackIOWriter(count))
        return counted

    @property
    def mapped_bytes(self) -> int:
        """What of it lies in the mapped file.

        An inverted file keeps its row numbers in memory, and the codes too where they are laid out
        for fast scans; both were measured.
        """
        if not self._mapped:
            return 0
        if isinstance(self._inner, (faiss.IndexIVFFastScan, faiss.IndexFastScan)):
            return 0
        if self.knob != "nprobe":
            return self.total_bytes
        return len(self) * int(self._inner.code_size)

    def setting(self, value: int) -> Effort:
        """Search parameters with the knob at a value."""
        return self._turned(Effort(), value)

    def harder(self, effort: Effort) -> Effort | None:
        """The same with the knob turned up; None where it is at its end."""
        if self.knob is None:
            return None
        now = getattr(effort, self.knob) or self.least
        if now >= self.most:
            return None
        return self._turned(effort, min(now * _WIDER, self.most))

    def nearest(
        self,
        queries: Vectors,
        width: int,
        effort: Effort,
        chosen: NDArray[np.bool_] | None = None,
    ) -> Positions:
        """Candidates, likely ones first: (Q, width) int64, -1 for none.

        Args:
            queries: (Q, dim) float32, C-contiguous.
            width: How many for each.
            effort: `nprobe` and `ef_search`; the least where not given.
            chosen: Which rows may be found, (N,) bool; only where `takes_selectors`.
        """
        count = most_threads() if len(queries) >= _PARALLEL_QUERIES else 1
        with threads(count):
            arguments = self._arguments(effort, None if chosen is None else selector(chosen))
            found = search_method(self._index)(queries, min(width, len(self)), params=arguments)
            positions: Positions = found[1]
        return positions

    def _turned(self, effort: Effort, value: int) -> Effort:
        if self.knob == "nprobe":
            return replace(effort, nprobe=value)
        return replace(effort, ef_search=value) if self.knob else effort

    def _arguments(self, effort: Effort, sel: Any) -> Any:
        """A fresh object of the class that the innermost index takes.

        FAISS ignores a selector in silence where it is given to an outer layer.
        """
        value = min((self.knob and getattr(effort, self.knob)) or self.least, self.most)
        if self.knob == "nprobe":
            return faiss.SearchParametersIVF(sel=sel, nprobe=value)
        if self.knob == "ef_search":
            return faiss.SearchParametersHNSW(sel=sel, efSearch=value)
        return None if sel is None else faiss.SearchParameters(sel=sel)

    def _try_selector(self) -> bool:
        """Whether rows can be ruled out while FAISS searches: tried, since types differ."""
        if not len(self):
            return False
        query = np.zeros((1, int(self._index.d)), dtype=np.float32)
        none = selector(np.zeros(len(self), dtype=np.bool_))
        try:
            arguments = self._arguments(Effort(), none)
            found = search_method(self._index)(query, 1, params=arguments)[1]
        except RuntimeError:
            return False
        return bool((found < 0).all())


def _innermost(index: Any) -> Any:
    """The index behind all transformations of vectors."""
    inner = faiss.downcast_index(index)
    while isinstance(inner, faiss.IndexPreTransform):
        inner = faiss.downcast_index(inner.index)
    return inner
