"""Indexes made of what is in the catalog: loaded, brought up to date, or built anew."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lookalike.errors import StorageError
from lookalike.store.local.catalog import Catalog, CollectionRow
from lookalike.store.local.index.build_process import (
    BuildError,
    BuildRequest,
    BuildStoppedError,
    Stage,
    build_files,
)
from lookalike.store.local.index.flat_index import FlatIndex
from lookalike.store.local.index.flat_rows import MAPPED_BYTES
from lookalike.store.local.index.generations import Generations
from lookalike.store.local.index.index_types import EXACT, Plan
from lookalike.store.local.index.layered_index import LayeredIndex
from lookalike.store.local.index.policy import Index, IndexPolicy
from lookalike.store.local.index.retries import Retries
from lookalike.store.vectors import Seqs, Vectors

_BLOCK_BYTES = 2**19  # read for a build at a time: while they are copied, no search goes on
_PAUSE_S = 0.0005  # after each, so that searches do
_ROOM_EVERY = 64  # blocks
_SAMPLED = 16  # vectors that a saved index is compared with the catalog by

log = logging.getLogger(__name__)


class IndexBuilding:
    """Makes the indexes of one embedding set, and knows how far a build is.

    Args:
        row: The collection and its embedding set.
        generations: Where its indexes are saved.
        policy: What is to be built.

    Attributes:
        stop: Set when nobody needs the index any more: a build that is under way ends.
        stage: What is being done; None where nothing is.
        failure: Why the last build came to nothing; None where it did not.
    """

    def __init__(self, row: CollectionRow, generations: Generations, policy: IndexPolicy) -> None:
        self._row = row
        self._generations = generations
        self._policy = policy
        self._retries = Retries()
        self.stop = threading.Event()
        self.stage: Stage | None = None
        self.failure: str | None = None

    def load(self, catalog: Catalog) -> tuple[Index, int]:
        """The newest saved index that fits, else one of all rows; and changes since it was saved.

        What the type needs beyond exact search is left to a later `build`.
        """
        held = catalog.embedded(self._row)
        index = self._generations.load(self._row, exact=self._policy.index_type == EXACT)
        if index and not _agree(index, catalog, self._row, held):
            log.warning("The saved index of %r is not of this catalog", self._row.name)
            self._generations.discard()
            index = None
        if index is None and len(held):
            log.warning(
                "Building the index of %r from %d stored vectors", self._row.name, len(held)
            )
        index = index or self._exact(catalog, len(held))
        return index, follow(index, catalog, self._row, held)

    def make(self, catalog: Catalog) -> tuple[Index, int]:
        """An exact index of a set that nobody searches yet, whatever was saved before.

        What the policy wants is left to a later `build`, which can be stopped.
        """
        self._generations.discard()
        index = self._exact(catalog, len(catalog.embedded(self._row)))
        return index, follow(index, catalog, self._row, catalog.embedded(self._row))

    def due(self, index: Index) -> Plan | None:
        """What should be built now; None where the index serves well as it is."""
        if not self._retries.allowed(len(index) - index.dead):
            return None
        return self._policy.due(index)

    @property
    def waiting(self) -> bool:
        """Whether a build was interrupted, and is due again after some time."""
        return self._retries.waiting

    def build(self, catalog: Catalog, plan: Plan, rows: int) -> Index | None:
        """Builds and saves an index of what is in the catalog; None where that fails.

        Takes minutes for a million rows, while searches and changes go on.

        Raises:
            BuildStoppedError: `stop` was set.
        """
        if self.stop.is_set():
            raise BuildStoppedError
        self.stage = ("read", 0, rows)
        try:
            self._generations.require_room(rows, self._row.spec.dim)
            rows_read = catalog.vectors_after(self._row, 0, block_bytes=_BLOCK_BYTES)
            blocks = self._paced(rows_read, rows)
            builder = self._builder(plan.factory) if plan.factory else None
            saved = self._generations.save(blocks, self._row, build=builder)
            built = self._read_back(plan) if saved else None
        except BuildStoppedError:
            raise
        except Exception as exc:  # whatever it is, at once again would fail again
            if self.stop.is_set():  # the collection was dropped, and its folder with it
                raise BuildStoppedError from exc
            why = str(exc) or type(exc).__name__
            self.failure = f"{plan.factory or EXACT} was not built: {why}"
            if isinstance(exc, BuildError):
                self._retries.failed(rows)
            else:
                self._retries.interrupted()
            log.warning("The index of %r stays as it is: %s", self._row.name, self.failure)
            return None
        finally:
            self.stage = None
        self.failure = None
        self._retries.succeeded()
        return built

    def _paced(
        self, blocks: Iterator[tuple[Seqs, Vectors]], rows: int
    ) -> Iterator[tuple[Seqs, Vectors]]:
        """The blocks, with a pause after each, until nobody wants them or room gets short."""
        done = 0
        for number, block in enumerate(blocks):
            if self.stop.wait(_PAUSE_S):
                raise BuildStoppedError
            if number % _ROOM_EVERY == 0:
                self._generations.require_room(0, self._row.spec.dim)
            yield block
            done += len(block[0])
            self.stage = ("read", min(done, rows), rows)
        if self.stop.is_set():
            raise BuildStoppedError

    def _read_back(self, plan: Plan) -> Index:
        """What was just saved; an older generation would be due again at once."""
        built = self._generations.load(self._row, exact=False)
        factory = built.factory if isinstance(built, LayeredIndex) else None
        if built is None or factory != plan.factory:
            raise BuildError("what was saved cannot be read")
        return built

    def _builder(self, factory: str) -> Any:
        def tell(stage: Stage) -> None:
            self.stage = stage

        def build(stem: Path, dim: int) -> dict[str, Any]:
            request = BuildRequest(str(stem), dim, factory, self._policy.recall)
            made = build_files(request, stop=self.stop, tell=tell)
            return {**made, "asked": self._policy.asked}

        return build

    def _exact(self, catalog: Catalog, rows: int) -> Index:
        """An exact index; where its rows are many it maps a file, which is written first."""
        if 4 * rows * self._row.spec.dim >= MAPPED_BYTES:
            try:
                saved = self._generations.save(catalog.vectors_after(self._row, 0), self._row)
            except StorageError as exc:
                log.warning("The index of %r is kept in memory: %s", self._row.name, exc)
                saved = None
            index = self._generations.load(self._row, exact=True) if saved else None
            if index:
                return index
        return FlatIndex(self._row.spec.dim)


def follow(index: Index, catalog: Catalog, row: CollectionRow, held: Seqs) -> int:
    """Brings an index up to date with the catalog; gives the number of changes.

    Args:
        index: Changed.
        catalog: What it follows.
        row: The collection and embedding set.
        held: From `Catalog.embedded`, just now.
    """
    gone = np.setdiff1d(index.seqs[index.alive], held, assume_unique=True)
    index.remove(gone)
    changes = len(gone)
    for seqs, vectors in catalog.vectors_after(row, index.last_seq):
        index.add(seqs, vectors)
        changes += len(seqs)
    return changes


def _agree(index: Index, catalog: Catalog, row: CollectionRow, held: Seqs) -> bool:
    """Whether a saved index was made of this catalog, and not e.g. of a later one.

    A catalog that was restored from a backup gives seqs again that the index knows; a few vectors
    are compared to see it.
    """
    covered = held[held <= index.last_seq]
    if index.last_seq > catalog.last_seq() or len(index.locate(covered)) != len(covered):
        return False
    picked = covered[:: max(1, len(covered) // _SAMPLED)]
    seqs, vectors = catalog.vectors_at(row, picked.tolist())
    return np.array_equal(index.vectors(index.locate(seqs)), vectors)
