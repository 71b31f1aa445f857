"""What an index is and takes, for people: in `GET /info`."""

from __future__ import annotations

from typing import Any

from lookalike.store.local.index.ann_index import AnnIndex
from lookalike.store.local.index.flat_index import FlatIndex
from lookalike.store.local.index.index_types import EXACT, Plan
from lookalike.store.local.index.policy import Index, IndexPolicy


def index_facts(index: Index, policy: IndexPolicy) -> dict[str, Any]:
    """Facts about an index; bytes of memory and of mapped files."""
    rows = len(index) - index.dead
    layered = None if isinstance(index, FlatIndex) else index
    serves = (layered.factory if layered else None) or EXACT
    facts: dict[str, Any] = {
        "type": serves,
        "reason": _reason(serves, policy.plan(rows, index.dim), due=policy.due(index)),
        "bytes": index.bytes,
        "mapped_bytes": index.mapped_bytes,
        "bytes_per_picture": round(index.bytes / rows, 1) if rows else 0,
        "tombstones": index.dead,
        "since_build": len(layered.tail) if layered else 0,
    }
    if layered and isinstance(layered.base, AnnIndex):
        facts["calibration"] = [
            {"k": x.k, "parameters": str(x.effort), "recall": x.recall, "ms": round(x.ms, 3)}
            for x in layered.base.calibration.levels
        ]
    return facts


def _reason(serves: str, wanted: Plan, *, due: Plan | None) -> str:
    """Why this type serves, also where another is wanted by now."""
    factory = wanted.factory or EXACT
    if factory == serves:
        return wanted.reason
    if due is not None:
        return f"until {factory} is built ({wanted.reason})"
    return f"it was built before, and serves on; built now, it would be {factory} ({wanted.reason})"
