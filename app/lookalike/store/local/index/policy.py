"""Index types, and the policy that chooses which one to build and when."""

from __future__ import annotations

import functools
import math
import re
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import faiss as _faiss

from lookalike.cores import memory_bytes
from lookalike.errors import ConfigurationError
from lookalike.records import Effort

if TYPE_CHECKING:
    from lookalike.store.local.index.segments import Segments

faiss: Any = _faiss  # its stubs describe the C++ signatures, not the Python ones
VERSION: str = faiss.__version__

EXACT = "Flat"
AUTO = "auto"

_TRIED_DIMS = (2048, 512, 192, 64)  # a type must fit vectors of some length, not yet known
_ROWS_PER_LIST = 39  # FAISS cannot train good centers from fewer
_SEQ_BYTES = 8  # in a list, beside the codes
_REDUCED = 256  # dimensions that are kept at most if vectors are reduced
_GROWING_SHARE = 10  # build again once a tenth as many rows were added,
_GROWING_NUMBERS = 40_000_000  # but no later than when they take about 10 ms to score exactly
_DEAD_SHARE = 4
_REFINED = re.compile(r",(?:RFlat|Refine\([^()]*\))$")
_UNUSABLE = {
    r"(?:^|,)IDMap": "IDMap is not needed, rows have numbers of their own",
    r"Refine|RFlat": "refining comes last",
    # Nor does it take selectors.
    r"NSG": "NSG never ends with some equal pictures; HNSW serves as well",
    # FAISS would end the process when rows are added.
    r"IVF0+(?!\d)|HNSW0*[01](?!\d)": "the number of its lists or links is too small",
}
_MAX_LISTS = 2**24
_LISTS = re.compile(r"(?:^|,)IVF(\d+)([kM]?)")
_UNITS = {"": 1, "k": 1024, "M": 1024**2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Sizes at which indexes do something else; the defaults were measured."""

    min_rows: int = 10_000  # fewer are searched exactly: it takes a few milliseconds
    exact_numbers: int = 40_000_000  # up to which `auto` stays exact: scoring takes about 10 ms
    pca_dim: int = 4096  # beyond, the covariance of a PCA is too large: a random rotation is used
    mapped_bytes: int = 2**30  # of vectors, from which on an exact index is mapped from a file
    saved_changes: int = 20_000  # and at least half of the rows: then an index is saved
    compacted_rows: int = 1_000  # tombstones, and at least a quarter of the rows

    # Exact search
    scored_rows: int = 2048  # rows that may be found, up to which each is scored without FAISS
    exact_spare: int = 16  # candidates beyond k
    exact_overfetched: int = 256  # rows that a filter excludes; with more, FAISS gets a mask
    parallel_work: int = 2**27  # multiplications from which on a batch of queries uses all cores

    # Approximate search
    spare: int = 16  # candidates beyond k
    overfetched: int = 64  # rows that must not be found, up to which more candidates make up
    small_rows: int = 20_000  # of which any search is fast, however hard it looks
    tried_share: float = 0.2  # of the cost of scoring what may be found, before that is done
    calibrated_k: tuple[int, ...] = (10, 32, 100, 320, 1000)

    # Builds
    inline_numbers: int = 500_000  # of which an index is built within seconds, without a process
    block_bytes: int = 2**19  # of vectors read at a time: no search runs while they are copied
    room_blocks: int = 64  # after which a build checks again that the disk has room
    retry_s: float = 600.0  # before an interrupted build is tried again; doubled each time
    poll_s: float = 30.0  # between looks for builds to try again


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Plan:
    """What to build for a collection of some size."""

    factory: str | None  # a factory string of FAISS; None for exact search
    reason: str  # for people


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexPolicy:
    """The settings about indexes, and what follows from them."""

    index_type: str = EXACT  # `Flat` (exact), `auto`, or a factory string of FAISS
    memory: int | None = None  # bytes that `auto` may take; None for a quarter of the machine's
    recall: float = 0.99  # share of the true matches that an approximate index is to find
    effort: Effort = field(default_factory=Effort)  # what is not given is calibrated
    limits: Limits = DEFAULT_LIMITS

    def __post_init__(self) -> None:
        object.__setattr__(self, "index_type", check_index_type(self.index_type))

    @property
    def build_settings(self) -> dict[str, Any]:
        """The settings that decide how an index is built, as JSON."""
        return {"type": self.index_type, "memory": self.memory, "recall": self.recall}

    def plan(self, rows: int, dim: int) -> Plan:
        """What to build of so many rows with `dim` numbers each."""
        if self.index_type == EXACT:
            return Plan(None, "exact, as set")
        needed = self._needed(dim)
        if self.index_type != AUTO:
            if rows >= needed:
                return Plan(self.index_type, "as set")
            return Plan(
                None, f"exact until there are {needed} pictures to build {self.index_type} of"
            )
        if rows < needed:
            return Plan(None, f"exact: {rows} pictures of {dim} numbers take about 10 ms or less")
        memory = memory_bytes() // 4 if self.memory is None else self.memory
        kept, lists = min(_REDUCED, dim), suitable_lists(rows)
        # FAISS keeps every direction of a PCA, used or not.
        directions = kept + (dim if dim <= self.limits.pca_dim else 0)
        beside = 4 * lists * kept + (4 * dim * directions if dim > kept else 0)
        codes, code_bytes = "SQ8", kept
        if beside + rows * (kept + _SEQ_BYTES) > memory:
            smaller = ("SQ4", kept // 2) if kept % 2 else (f"PQ{kept // 2}x4fs", kept // 4)
            codes, code_bytes = smaller
        total = beside + rows * (code_bytes + _SEQ_BYTES)
        room = "of" if total <= memory else "and so more than the"
        reason = f"about {_mb(total)} {room} {_mb(memory)} it may take"
        return Plan(
            f"{reduction(dim, kept, self.limits)}IVF{lists},{codes}",
            f"{rows} pictures of {dim} numbers: {reason}",
        )

    def _needed(self, dim: int) -> int:
        """Rows from which on an approximate index is built."""
        if self.index_type == AUTO:
            return max(self.limits.min_rows, self.limits.exact_numbers // dim + 1)
        return max(self.limits.min_rows, _ROWS_PER_LIST * list_count(self.index_type))

    def due(self, index: Segments) -> Plan | None:
        """What to build now; None if the index serves well as it is."""
        wanted = self.plan(index.live_rows, index.growing.dim)
        if not len(index.sealed):
            return wanted if wanted.factory or index.bytes >= self.limits.mapped_bytes else None
        if wanted.factory is None and index.factory is not None:
            # An approximate index of a collection that has shrunk still serves.
            return wanted if self._settings_changed(index) else None
        outgrown = min(self._left(index)) < 0
        return wanted if outgrown or self._differs(index, wanted) else None

    def changes_until_due(self, index: Segments) -> int:
        """A lower bound of the changes after which `due`, None now, may say something else."""
        if self._settings_changed(index):
            return 0
        left = list(self._left(index))
        if self.index_type != EXACT:
            left.append(abs(self._needed(index.growing.dim) - index.live_rows))
        return min(left)

    def explain(self, index: Segments) -> str:
        """Why the index has its type, for people."""
        wanted = self.plan(index.live_rows, index.growing.dim)
        factory = wanted.factory or EXACT
        if factory == (index.factory or EXACT):
            return wanted.reason
        if self.due(index) is not None:
            return f"until {factory} is built ({wanted.reason})"
        now = f"built now, it would be {factory} ({wanted.reason})"
        return f"it was built before, and serves on; {now}"

    def _settings_changed(self, index: Segments) -> bool:
        return index.built_with is not None and index.built_with != self.build_settings

    def _differs(self, index: Segments, wanted: Plan) -> bool:
        """True if the settings ask for another index than what was built."""
        # The choice of `auto` changes as rows are added: that alone is no reason to build again.
        changed = self._settings_changed(index)
        if wanted.factory != index.factory:
            return self.index_type != AUTO or index.factory is None or changed
        recall = index.built_with["recall"] if index.built_with else None
        return changed and index.factory is not None and recall != self.recall

    def _left(self, index: Segments) -> tuple[int, int]:
        """Rows that may still be added, and removed, before the sealed rows are built again."""
        sealed = len(index.sealed)
        if index.factory is None:  # growing rows are searched just as fast, but take memory
            growing = self.limits.mapped_bytes // (4 * index.growing.dim)
            if not sealed:
                return growing - len(index.growing), sys.maxsize
            growing, dead = min(sealed // 2, growing), sealed // 2
        else:
            share = min(sealed // _GROWING_SHARE, _GROWING_NUMBERS // index.growing.dim)
            growing = max(self.limits.min_rows // 2, share)
            dead = max(sealed // _DEAD_SHARE, growing)
        return growing - len(index.growing), dead - index.sealed.dead


def check_index_type(text: str) -> str:
    """Normalizes an index type: `Flat` and `auto` in any case, or a factory string of FAISS.

    Refining at its end is dropped: every candidate is scored from its float32 vector anyway.
    Raises `ConfigurationError` if FAISS knows no such type, or it cannot serve here.
    """
    wanted = text.strip()
    for ours in (EXACT, AUTO):
        if wanted.lower() == ours.lower():
            return ours
    factory = _REFINED.sub("", wanted)
    problem = _problem(factory)
    if problem:
        raise ConfigurationError(
            f"{ascii(text)[:80]} is no index type: {problem}. Use {EXACT} (exact), {AUTO}, or a "
            "factory string of FAISS such as HNSW32,SQ8 or PCAR256,IVF1024,SQ8"
        )
    return factory


@functools.lru_cache(maxsize=64)
def _problem(factory: str) -> str | None:
    """Why a factory string cannot be used; None if it can."""
    for pattern, problem in _UNUSABLE.items():
        if re.search(pattern, factory):
            return problem
    if list_count(factory) > _MAX_LISTS:  # FAISS would allocate their memory at once
        return f"it has more than {_MAX_LISTS} lists"
    refusal = "it is empty"
    for dim in _TRIED_DIMS if factory else ():
        try:
            faiss.index_factory(dim, factory, faiss.METRIC_L2)
        except (RuntimeError, MemoryError) as exc:
            refusal = error_text(exc)
        else:
            return None
    return f"FAISS says {refusal!r}"


def default_candidates(rows: int, dim: int) -> list[str]:
    """Index types worth trying for so many rows with `dim` numbers each.

    They may be coarse, to 128 numbers of 2 bits: candidates are scored from float32 vectors.
    """
    lists, kept = suitable_lists(rows), min(dim, _REDUCED)
    first = reduction(dim, kept)
    found = [f"{first}IVF{lists},SQ8", f"{first}HNSW32,SQ8", f"{first}SQ8"]
    if kept % 2 == 0:
        found.insert(1, f"{first}IVF{lists},PQ{kept // 2}x4fs")
    if first:
        found.append(f"{reduction(dim, _REDUCED // 2)}IVF{lists},SQ8")
        found += [f"IVF{lists},SQ8"] if dim <= 4 * _REDUCED else []
    return found


def reduction(dim: int, kept: int, limits: Limits = DEFAULT_LIMITS) -> str:
    """The start of a factory string that reduces vectors of `dim` numbers to `kept`."""
    if dim <= kept:
        return ""
    return f"PCAR{kept}," if dim <= limits.pca_dim else f"RR{kept},"


def suitable_lists(rows: int) -> int:
    """A number of lists for so many rows: a power of two near 4 sqrt(rows) that they can fill."""
    most = max(1, rows // _ROWS_PER_LIST)
    return int(2 ** min(round(math.log2(4 * math.sqrt(rows))), math.floor(math.log2(most))))


def list_count(factory: str) -> int:
    """Lists of an inverted file; 0 for other types."""
    found = _LISTS.search(factory)
    return int(found[1]) * _UNITS[found[2]] if found else 0


def _mb(size: float) -> str:
    return f"{size / 1e6:.0f} MB" if size >= 1e8 else f"{size / 1e6:.3g} MB"


def error_text(error: Exception) -> str:
    """FAISS's own words, without the position in its source that precedes them."""
    text = re.sub(r"^Error in .+? at \S+:\d+: ", "", str(error)).rsplit("Error: ", 1)[-1].strip()
    return (text or type(error).__name__).splitlines()[0][:200]
