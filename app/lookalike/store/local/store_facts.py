"""What a store holds and takes, for `GET /collections` and `GET /info`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lookalike.records import CollectionInfo
from lookalike.store.local.catalog import connections
from lookalike.store.local.catalog.catalog import Catalog
from lookalike.store.local.catalog.rows import CollectionRow
from lookalike.store.local.index import flat_rows
from lookalike.store.local.index.generations import Generations
from lookalike.store.local.index.indexes import Indexes
from lookalike.store.local.index.policy import IndexPolicy


def collection_infos(catalog: Catalog, policy: IndexPolicy) -> list[CollectionInfo]:
    """All collections, by name."""
    return [
        CollectionInfo(
            name=row.name,
            count=count,
            spec=row.spec,
            provenance=row.provenance,
            index=policy.index_type,
            created_at=row.created_at,
        )
        for row, count in catalog.collections()
    ]


def store_facts(
    folder: Path, catalog: Catalog, indexes: Indexes, policy: IndexPolicy
) -> dict[str, Any]:
    """Versions, and each collection's size, index and indexed fields; bytes of memory."""
    collections = {
        row.name: {
            "index": policy.index_type,
            "count": count,
            **_index_facts(folder, indexes, row),
            "filter_fields": catalog.fields.states(row),
        }
        for row, count in catalog.collections()
    }
    return {
        "kind": "local",
        "path": str(folder),
        "sqlite": connections.VERSION,
        "faiss": flat_rows.VERSION,
        "collections": collections,
    }


def _index_facts(folder: Path, indexes: Indexes, row: CollectionRow) -> dict[str, Any]:
    """Facts about an index; what is saved of it, where it is not loaded."""
    facts = indexes.describe(row)
    if "type" in facts:
        return facts
    return facts | {"saved": Generations(folder / "index" / str(row.embedding)).saved()}
