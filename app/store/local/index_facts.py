"""What an index is and takes, for people: in `GET /info`."""

from __future__ import annotations

from typing import Any

from app.store.local.ann_index import AnnIndex
from app.store.local.flat_index import FlatIndex
from app.store.local.index_policy import Index, IndexPolicy
from app.store.local.index_types import EXACT


def index_facts(index: Index, policy: IndexPolicy) -> dict[str, Any]:
    """Facts about an index; bytes of memory and of mapped files."""
    rows = len(index) - index.dead
    layered = None if isinstance(index, FlatIndex) else index
    facts: dict[str, Any] = {
        "type": (layered.factory if layered else None) or EXACT,
        "reason": policy.plan(rows, index.dim).reason,
        "bytes": index.bytes,
        "mapped_bytes": index.mapped_bytes,
        "bytes_per_picture": round(index.bytes / rows, 1) if rows else 0,
        "tombstones": index.dead,
        "since_build": len(layered.tail) if layered else 0,
    }
    if layered and isinstance(layered.base, AnnIndex):
        facts["calibration"] = [
            {"k": x.k, "parameters": str(x.parameters), "recall": x.recall, "ms": round(x.ms, 3)}
            for x in layered.base.calibration.levels
        ]
    return facts
