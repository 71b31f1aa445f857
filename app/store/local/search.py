"""One search over the catalog and an index that may be a moment apart."""

from __future__ import annotations

from collections.abc import Sequence

from app.records import ImageRecord, Match
from app.store.filters import Filter
from app.store.local.catalog import Catalog
from app.store.local.faiss_index import Found
from app.store.local.live_index import LiveIndex
from app.store.vectors import Vectors


def search_once(
    catalog: Catalog,
    live: LiveIndex,
    queries: Vectors,
    *,
    k: int,
    where: Filter | None,
    exclude: Sequence[str],
) -> list[list[Match]] | None:
    """The k best matches of each query; None where a change came in between: ask again.

    The filter is evaluated first and the rows are read last. Whatever was changed in between shows
    as a row that is missing or no longer passes, and such an answer is never given.
    """
    row = live.row
    among = catalog.passing(row, where) if where and where.conditions else None
    without = catalog.seqs_of(row, exclude) if exclude else None
    found = live.search(queries, k=k, among=among, without=without)
    if found is None:
        return None
    seqs = {seq for _, seqs in found for seq in seqs.tolist()}
    records = catalog.at(row, seqs)
    if len(records) != len(seqs) or not all(
        _passes(record, where, exclude) for record in records.values()
    ):
        return None
    return [_matches(one, records) for one in found]


def _passes(record: ImageRecord, where: Filter | None, exclude: Sequence[str]) -> bool:
    return record.id not in exclude and (where is None or where.matches(record.metadata))


def _matches(found: Found, records: dict[int, ImageRecord]) -> list[Match]:
    return [
        Match(rank, score, records[seq])
        for rank, (score, seq) in enumerate(zip(*(part.tolist() for part in found), strict=True), 1)
    ]
