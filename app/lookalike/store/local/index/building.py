"""The index of one vector space, made from the catalog: loaded, synced, or built anew."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lookalike.errors import StorageError
from lookalike.progress import Progress, TaskEndedError
from lookalike.store.base import Seqs, Vectors
from lookalike.store.local.catalog import Catalog, CollectionRow
from lookalike.store.local.index import build_process
from lookalike.store.local.index.build_process import BuildError, BuildRequest
from lookalike.store.local.index.exact import ExactSegment
from lookalike.store.local.index.generations import Generations
from lookalike.store.local.index.policy import EXACT, IndexPolicy, Plan
from lookalike.store.local.index.segments import Segments, in_memory

_PAUSE_S = 0.0005  # after each block that a build reads, so that searches run
_COMPARED = 16  # vectors that a saved index is compared with the catalog by
_MORE_ROWS = 1.5
_MAX_RETRY_S = 6 * 3600.0

log = logging.getLogger(__name__)


class Retries:
    """When a build that failed is tried again.

    A type that FAISS cannot build waits for more rows. What may pass by itself, such as a full
    disk, waits for some time, and longer each time.

    Args:
        first_s: Seconds that the first wait takes.
    """

    def __init__(self, first_s: float) -> None:
        self._first_s = first_s
        self._pause = first_s
        self._rows = 0
        self._at = 0.0

    def allowed(self, rows: int) -> bool:
        """True if a build of so many rows may be tried now."""
        return rows >= self._rows and not self.waiting

    @property
    def waiting(self) -> bool:
        """True if time alone will allow a build."""
        return time.monotonic() < self._at

    def failed(self, rows: int) -> None:
        """FAISS cannot build the type of so many rows; half as many more may do."""
        self._rows = int(rows * _MORE_ROWS) + 1

    def interrupted(self) -> None:
        """The disk was full, memory was short, or a process was ended."""
        self._at = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, _MAX_RETRY_S)

    def succeeded(self) -> None:
        """Allows the next build at once."""
        self._rows, self._at, self._pause = 0, 0.0, self._first_s


class BuildProgress(Progress):
    """How far a build is; `stop` ends it.

    Attributes:
        now: The stage, what is done and of how many; None while nothing is built.
        stopped: Set once nobody needs the index any more.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now: tuple[str, int, int] | None = None
        self.stopped = threading.Event()

    def check(self) -> None:
        """Raises `TaskEndedError` once nobody needs the index any more."""
        if self.stopped.is_set():
            raise TaskEndedError

    def report(self, done: int, total: int, *, stage: str = "") -> None:
        """Remembers how far the build is."""
        self.now = stage, done, total


class IndexBuilding:
    """Makes the index of one vector space.

    Args:
        catalog: What it is made from.
        row: The collection and its vector space.
        generations: Where the index is saved.
        policy: What is to be built.

    Attributes:
        progress: How far a build is.
        retries: When a build that failed is tried again.
        failure: Why the last build failed; None if it did not.
    """

    def __init__(
        self, catalog: Catalog, row: CollectionRow, generations: Generations, policy: IndexPolicy
    ) -> None:
        self._catalog = catalog
        self._row = row
        self._generations = generations
        self._policy = policy
        self._limits = policy.limits
        self.progress = BuildProgress()
        self.retries = Retries(policy.limits.retry_s)
        self.failure: str | None = None

    def load(self) -> tuple[Segments, int]:
        """The saved index if it fits, else an exact one; and the changes since it was saved.

        What the policy wants beyond exact search is left to a later `build`.
        """
        name, held = self._row.name, self._catalog.embedded(self._row)
        index = self._generations.load(self._row, exact=self._policy.index_type == EXACT)
        if index and not self._agrees(index, held):
            log.warning("The saved index of %r is not of this catalog", name)
            self._generations.discard()
            index = None
        if index is None:
            if len(held):
                log.warning("Building the index of %r from %d stored vectors", name, len(held))
            index = self._exact(len(held))
        return index, self.sync(index)

    def make(self) -> tuple[Segments, int]:
        """An exact index of a set that nobody searches yet, and the changes that it followed.

        What the policy wants beyond that is left to a later `build`, which can be stopped.
        """
        self._generations.discard()
        index = self._exact(len(self._catalog.embedded(self._row)))
        return index, self.sync(index)

    def sync(self, index: Segments) -> int:
        """Brings an index up to date with the catalog; returns the number of changes."""
        held = self._catalog.embedded(self._row)
        gone = np.setdiff1d(index.seqs[index.alive], held, assume_unique=True)
        index.remove(gone)
        changes = len(gone)
        for seqs, vectors in self._catalog.vectors_after(self._row, index.last_seq):
            index.add(seqs, vectors)
            changes += len(seqs)
        return changes

    def due(self, index: Segments) -> Plan | None:
        """What to build now; None if the index serves well, or a build has just failed."""
        return self._policy.due(index) if self.retries.allowed(index.live_rows) else None

    def build(self, plan: Plan, rows: int) -> Segments | None:
        """Builds and saves an index of what is in the catalog; None if that fails.

        Takes minutes for a million rows, while searches and changes go on.

        Raises:
            TaskEndedError: Nobody needs the index any more.
        """
        self.progress.check()
        try:
            built = self._build(plan, rows)
        except TaskEndedError:
            raise
        except Exception as exc:  # whatever it is, it would fail again at once
            # If the collection was dropped, its folder went with it.
            self.progress.check()
            why = str(exc) or type(exc).__name__
            self.failure = f"{plan.factory or EXACT} was not built: {why}"
            if isinstance(exc, BuildError):
                self.retries.failed(rows)
            else:
                self.retries.interrupted()
            log.warning("The index of %r stays as it is: %s", self._row.name, self.failure)
            return None
        finally:
            self.progress.now = None
        self.failure = None
        self.retries.succeeded()
        return built

    def _build(self, plan: Plan, rows: int) -> Segments | None:
        self.progress.report(0, rows, stage="read")
        self._generations.require_room(rows, self._row.spec.dim)
        build = partial(self._build_candidates, plan.factory) if plan.factory else None
        if not self._generations.save(self._paced_blocks(rows), self._row, build=build):
            return None
        built = self._generations.load(self._row, exact=False)
        if built is None or built.factory != plan.factory:  # it would be due again at once
            raise BuildError("what was saved cannot be read")
        return built

    def _paced_blocks(self, rows: int) -> Iterator[tuple[Seqs, Vectors]]:
        """All vectors, with a pause after each block; ends the build if room gets short."""
        blocks = self._catalog.vectors_after(self._row, 0, block_bytes=self._limits.block_bytes)
        done = 0
        for number, block in enumerate(blocks):
            time.sleep(_PAUSE_S)
            self.progress.check()
            if number % self._limits.room_blocks == 0:
                self._generations.require_room(0, self._row.spec.dim)
            yield block
            done += len(block[0])
            self.progress.report(min(done, rows), rows, stage="read")
        self.progress.check()

    def _build_candidates(self, factory: str, folder: Path, dim: int) -> dict[str, Any]:
        """Builds an approximate index of a folder's vectors, see `generations.Build`."""
        request = BuildRequest(
            folder=str(folder),
            dim=dim,
            factory=factory,
            recall=self._policy.recall,
            calibrated_k=self._limits.calibrated_k,
        )
        calibration = build_process.build(
            request, self.progress, inline_numbers=self._limits.inline_numbers
        )
        return {
            "index": factory,
            "calibration": calibration,
            "built_with": self._policy.build_settings,
        }

    def _exact(self, rows: int) -> Segments:
        """An exact index; if its rows are many, they are written to a file that is mapped."""
        if 4 * rows * self._row.spec.dim >= self._limits.mapped_bytes:
            try:
                saved = self._generations.save(self._catalog.vectors_after(self._row, 0), self._row)
            except StorageError as exc:
                log.warning("The index of %r is kept in memory: %s", self._row.name, exc)
                saved = False
            index = self._generations.load(self._row, exact=True) if saved else None
            if index:
                return index
        return in_memory(ExactSegment(self._row.spec.dim, limits=self._limits))

    def _agrees(self, index: Segments, held: Seqs) -> bool:
        """True if a saved index was made from this catalog.

        A catalog restored from a backup gives seqs again that the index knows; comparing a few
        vectors shows it.
        """
        covered = held[held <= index.last_seq]
        in_catalog = index.last_seq <= self._catalog.last_seq()
        if not in_catalog or len(index.locate(covered)) != len(covered):
            return False
        picked = covered[:: max(1, len(covered) // _COMPARED)]
        seqs, vectors = self._catalog.vectors_at(self._row, picked.tolist())
        return np.array_equal(index.vectors(index.locate(seqs)), vectors)
