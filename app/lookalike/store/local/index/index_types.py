"""Index types: what may be asked for, and what is built of it for so many pictures."""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass

from lookalike.errors import ConfigurationError
from lookalike.store.local.index.flat_rows import faiss, said_by

EXACT = "Flat"
AUTO = "auto"

_TRIED_DIMS = (2048, 512, 192, 64)  # vectors of some length must fit; which ones come is not known
_EXACT_NUMBERS = 40_000_000  # `auto` scores every picture up to so many numbers: about 10 ms
LEAST_ROWS = 10_000
"""Pictures below which search stays exact: it takes a few milliseconds."""
_ROWS_PER_LIST = 39  # fewer train no good centers, says FAISS
MOST_REDUCED = 256
"""Numbers of a vector that are kept at most, where it is cut before it is indexed."""

_SEQ_BYTES = 8  # in a list, beside the codes
_MOST_PCA_DIM = 4096  # beyond it a covariance matrix is too large
_REFINED = re.compile(r",(?:RFlat|Refine\([^()]*\))$")
_TOO_FEW = re.compile(r"IVF0+(?!\d)|HNSW0*[01](?!\d)")
_MOST_LISTS = 2**24
_LISTS = re.compile(r"(?:^|,)IVF(\d+)([kM]?)")
_UNITS = {"": 1, "k": 1024, "M": 1024**2}


@dataclass(frozen=True, slots=True)
class Plan:
    """What to build for a collection of some size.

    Attributes:
        factory: A factory string of FAISS; None for exact search.
        reason: Why, in words.
    """

    factory: str | None
    reason: str


def check_index_type(text: str) -> str:
    """Gives an index type back as FAISS reads it: `Flat`, `auto` (in any case), a factory string.

    A last `,RFlat` or `,Refine(...)` goes: every candidate is scored from its float32 vector
    anyway.

    Raises:
        ConfigurationError: FAISS knows no such type, or it cannot serve here.
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
    """Why FAISS cannot build it for vectors of any usual length."""
    if factory.startswith("IDMap") or ",IDMap" in factory:
        return "IDMap is not needed, rows have numbers of their own"
    if "Refine" in factory or "RFlat" in factory:
        return "refining comes last"
    return _danger(factory) or _refusal(factory)


def _danger(factory: str) -> str | None:
    """What FAISS would make, and the process would not survive."""
    if "NSG" in factory:  # nor does it take selectors
        return "NSG never ends with some equal pictures; HNSW serves as well"
    if _TOO_FEW.search(factory):  # FAISS makes it, and ends the process when rows are added
        return "the number of its lists or links is too small"
    if lists_of(factory) > _MOST_LISTS:  # FAISS would take the memory for them now
        return f"it has more than {_MOST_LISTS} lists"
    return None


def _refusal(factory: str) -> str | None:
    said = "it is empty"
    for dim in _TRIED_DIMS if factory else ():
        try:
            faiss.index_factory(dim, factory, faiss.METRIC_L2)
        except (RuntimeError, MemoryError) as exc:
            said = said_by(exc)
        else:
            return None
    return f"FAISS says {said!r}"


def plan(index_type: str, *, rows: int, dim: int, memory: int, least: int = LEAST_ROWS) -> Plan:
    """What to build.

    Args:
        index_type: From `check_index_type`.
        rows: Pictures.
        dim: Numbers in a vector.
        memory: Bytes that `auto` may take.
        least: Pictures below which search stays exact.
    """
    if index_type == EXACT:
        return Plan(None, "exact, as set")
    if index_type == AUTO:
        return _automatic(rows, dim, memory)
    needed = max(least, _ROWS_PER_LIST * lists_of(index_type))
    if rows < needed:
        return Plan(None, f"exact until there are {needed} pictures to build {index_type} of")
    return Plan(index_type, "as set")


def _automatic(rows: int, dim: int, memory: int) -> Plan:
    if rows * dim <= _EXACT_NUMBERS or rows < LEAST_ROWS:
        return Plan(None, f"exact: {rows} pictures of {dim} numbers take about 10 ms or less")
    kept, lists = min(MOST_REDUCED, dim), suitable_lists(rows)
    small, bytes_small = (f"PQ{kept // 2}x4fs", kept // 4) if kept % 2 == 0 else ("SQ4", kept // 2)
    beside = _reduction_bytes(dim, kept) + 4 * lists * kept
    fits = beside + rows * (kept + _SEQ_BYTES) <= memory
    codes, bytes_each = ("SQ8", kept) if fits else (small, bytes_small)
    total = beside + rows * (bytes_each + _SEQ_BYTES)
    room = "of" if total <= memory else "and so more than the"
    return Plan(
        f"{reduction(dim, kept)}IVF{lists},{codes}",
        f"{rows} pictures of {dim} numbers: about {_mb(total)} {room} {_mb(memory)} it may take",
    )


def _mb(size: float) -> str:
    return f"{size / 1e6:.0f} MB" if size >= 1e8 else f"{size / 1e6:.3g} MB"


def reduction(dim: int, kept: int) -> str:
    """The beginning of a factory string that cuts vectors of `dim` numbers to `kept`."""
    if dim <= kept:
        return ""
    return f"PCAR{kept}," if dim <= _MOST_PCA_DIM else f"RR{kept},"


def _reduction_bytes(dim: int, kept: int) -> int:
    """What `reduction` takes; FAISS keeps all directions of a PCA, also those that are cut."""
    if dim <= kept:
        return 0
    return 4 * dim * (kept + (dim if dim <= _MOST_PCA_DIM else 0))


def suitable_lists(rows: int) -> int:
    """A number of lists for so many rows: a power of two near 4 sqrt(rows) that they can fill."""
    most = max(1, rows // _ROWS_PER_LIST)
    return int(2 ** min(round(math.log2(4 * math.sqrt(rows))), math.floor(math.log2(most))))


def lists_of(factory: str) -> int:
    """Lists of an inverted file; 0 where it is none."""
    found = _LISTS.search(factory)
    return int(found[1]) * _UNITS[found[2]] if found else 0
