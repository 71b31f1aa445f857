"""What an index is and takes, for people: in `GET /info`."""

from __future__ import annotations

from typing import Any

from app.store.local.index.ann_index import AnnIndex
from app.store.local.index.flat_index import FlatIndex
from app.store.local.index.index_types import EXACT
from app.store.local.index.policy import Index, IndexPolicy


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
