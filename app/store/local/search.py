"""One search over the catalog and an index that may be a moment apart."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from app.errors import InvalidParameterError, StorageError
from app.records import ImageRecord, Match, Passport
from app.store.base import require_same_passport
from app.store.filters import Filter
from app.store.local.catalog.catalog import Catalog
from app.store.local.index.flat_index import Found
from app.store.local.index.indexes import Indexes
from app.store.local.index.live_index import LiveIndex
from app.store.search_parameters import SearchParameters
from app.store.vectors import Vectors, check_vectors

_ATTEMPTS = 3  # searches beside changes before one that changes wait for


class Searcher:
    """Searches a catalog and its indexes as one.

    Args:
        catalog: The rows.
        indexes: Their vectors.
        change: The store's change lock.
    """

    def __init__(self, catalog: Catalog, indexes: Indexes, *, change: threading.RLock) -> None:
        self._catalog = catalog
        self._indexes = indexes
        self._change = change

    def search(
        self,
        collection: str,
        queries: Vectors,
        *,
        k: int,
        passport: Passport,
        where: Filter | None,
        exclude: Sequence[str],
        parameters: SearchParameters | None,
    ) -> list[list[Match]]:
        """The k best matches of each query, see `Store.search`."""
        asked = check_vectors(queries, count=None, dim=passport.dim)
        if k < 1:
            raise InvalidParameterError("k must be at least 1")

        def once() -> list[list[Match]] | None:
            row = self._catalog.collection(collection)
            if row is None:
                return [[] for _ in asked]
            require_same_passport(collection, row.passport, passport)
            live = self._indexes.get(row)
            if live is None:
                return None
            return self._once(live, asked, k=k, where=where, exclude=exclude, parameters=parameters)

        for _ in range(_ATTEMPTS):
            found = once()
            if found is not None:
                return found
        with self._change:
            found = once()
            if found is None:
                raise StorageError(
                    f"The catalog and the index of {collection!r} disagree; restart to rebuild it"
                )
            return found

    def _once(
        self,
        live: LiveIndex,
        queries: Vectors,
        *,
        k: int,
        where: Filter | None,
        exclude: Sequence[str],
        parameters: SearchParameters | None,
    ) -> list[list[Match]] | None:
        """The k best matches of each query; None where a change came in between: ask again.

        The filter is evaluated first and the rows are read last. Whatever was changed in between
        shows as a row that is missing or no longer passes, and such an answer is never given.
        """
        row = live.row
        among = self._catalog.passing(row, where) if where and where.conditions else None
        without = self._catalog.seqs_of(row, exclude) if exclude else None
        found = live.search(queries, k=k, among=among, without=without, parameters=parameters)
        if found is None:
            return None
        seqs = {seq for _, seqs in found for seq in seqs.tolist()}
        records = self._catalog.at(row, seqs)
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
