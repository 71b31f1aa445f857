"""When an index is built, of what type, and how hard it is searched."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lookalike.cores import memory_bytes
from lookalike.store.effort import Effort
from lookalike.store.local.index.calibration import DEFAULT_RECALL
from lookalike.store.local.index.flat_index import FlatIndex
from lookalike.store.local.index.flat_rows import MAPPED_BYTES
from lookalike.store.local.index.index_types import (
    AUTO,
    EXACT,
    LEAST_ROWS,
    Plan,
    check_index_type,
    plan,
)
from lookalike.store.local.index.layered_index import LayeredIndex

Index = FlatIndex | LayeredIndex

_TAIL_SHARE = 10  # a tenth of what was built may come before it is built anew,
_TAIL_NUMBERS = 40_000_000  # but never more than is scored exactly in about 10 ms
_DEAD_SHARE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexPolicy:
    """What was set about indexes.

    Attributes:
        index_type: `Flat` (exact), `auto`, or a factory string of FAISS.
        memory: Bytes that the type `auto` may take; a quarter of the machine's unless given.
        recall: Share of the true matches that an approximate index is to find.
        effort: Go before what was calibrated.
        least: Pictures below which search stays exact.

    Raises:
        ConfigurationError: There is no such index type.
    """

    index_type: str = EXACT
    memory: int | None = None
    recall: float = DEFAULT_RECALL
    effort: Effort = field(default_factory=Effort)
    least: int = LEAST_ROWS

    def __post_init__(self) -> None:
        """Reads the index type."""
        object.__setattr__(self, "index_type", check_index_type(self.index_type))

    @property
    def asked(self) -> dict[str, Any]:
        """What decides how an index is built, as JSON."""
        return {"type": self.index_type, "memory": self.memory, "recall": self.recall}

    def plan(self, rows: int, dim: int) -> Plan:
        """What to build of so many rows."""
        memory = memory_bytes() // 4 if self.memory is None else self.memory
        return plan(self.index_type, rows=rows, dim=dim, memory=memory, least=self.least)

    def due(self, index: Index) -> Plan | None:
        """What to build now; None where the index serves well as it is."""
        wanted = self.plan(len(index) - index.dead, index.dim)
        if isinstance(index, FlatIndex):
            return wanted if wanted.factory or index.bytes >= MAPPED_BYTES else None
        if wanted.factory is None and index.factory is not None:
            return wanted if self._set_anew(index) else None  # where it has shrunk, it still serves
        return wanted if self._differs(index, wanted) or self._outgrown(index) else None

    def _set_anew(self, index: LayeredIndex) -> bool:
        """Whether the settings changed since it was built."""
        return index.asked is not None and index.asked != self.asked

    def _differs(self, index: LayeredIndex, wanted: Plan) -> bool:
        """Whether what is set asks for another index than what was built.

        The choice of `auto` changes as pictures come: alone that is no reason to build anew.
        """
        anew = self._set_anew(index)
        if wanted.factory != index.factory:
            return self.index_type != AUTO or index.factory is None or anew
        return anew and index.factory is not None and (index.asked or {})["recall"] != self.recall

    def _outgrown(self, index: LayeredIndex) -> bool:
        built = len(index.built)
        if index.factory is None:  # what came since is searched just as fast; it takes memory
            most = min(built // 2, MAPPED_BYTES // (4 * index.dim))
            return len(index.tail) > most or index.built.dead > built // 2
        most = max(self.least // 2, min(built // _TAIL_SHARE, _TAIL_NUMBERS // index.dim))
        return len(index.tail) > most or index.built.dead > max(built // _DEAD_SHARE, most)
