"""What a store holds and takes, for `GET /collections` and `GET /info`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from app.records import CollectionInfo
from app.store.local.catalog import connections
from app.store.local.catalog.catalog import Catalog
from app.store.local.index import flat_rows
from app.store.local.index.indexes import Indexes
from app.store.local.index.policy import IndexPolicy


def collection_infos(catalog: Catalog, policy: IndexPolicy) -> list[CollectionInfo]:
    """All collections, by name."""
    return [
        CollectionInfo(
            name=row.name,
            count=count,
            passport=row.passport,
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
            **indexes.describe(row),
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
