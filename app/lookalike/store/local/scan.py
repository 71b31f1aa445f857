"""A walk over the rows of a collection with their vectors."""

from __future__ import annotations

from collections.abc import Iterator

from lookalike.store.base import ScanBlock
from lookalike.store.filters import Filter
from lookalike.store.local.catalog.catalog import Catalog
from lookalike.store.names import encode_cursor

_BLOCK_BYTES = 8 * 2**20


def scan_catalog(
    catalog: Catalog, collection: str, *, after: int, where: Filter | None
) -> Iterator[ScanBlock]:
    """Rows behind the seq `after` with their active vectors, in short reads.

    A picture that is replaced or deleted between the two reads of a block is left out of it.
    """
    row = catalog.collection(collection)
    if row is None:
        return
    limit = max(1, _BLOCK_BYTES // (4 * row.spec.dim))
    while found := catalog.page(collection, after=after, limit=limit, where=where):
        after = found[-1][0]
        seqs, vectors = catalog.vectors.at(row, [seq for seq, _ in found])
        here = set(seqs.tolist())
        records = [record for seq, record in found if seq in here]
        yield ScanBlock(records, vectors, encode_cursor(after))
