"""One search over the catalog and an index that may be a moment apart."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from lookalike.errors import InvalidParameterError, StorageError
from lookalike.records import ImageRecord, Match, ModelSpec
from lookalike.store.base import require_same_spec
from lookalike.store.effort import Effort
from lookalike.store.filters import Filter
from lookalike.store.local.catalog.catalog import Catalog
from lookalike.store.local.catalog.passing import Passing
from lookalike.store.local.catalog.rows import CollectionRow
from lookalike.store.local.index.flat_index import Found
from lookalike.store.local.index.indexes import Indexes
from lookalike.store.local.index.live_index import LiveIndex
from lookalike.store.vectors import Seqs, Vectors, check_vectors

_ATTEMPTS = 3  # searches beside changes before one that changes wait for
_REFRESHED = 10  # times that an index which does not fit the catalog is brought up to date


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
        spec: ModelSpec,
        where: Filter | None,
        exclude: Sequence[str],
        effort: Effort | None,
    ) -> list[list[Match]]:
        """The k best matches of each query, see `Store.search`."""
        asked = check_vectors(queries, count=None, dim=spec.dim)
        if k < 1:
            raise InvalidParameterError("k must be at least 1")

        filtered = _Filtered(self._catalog, where)

        def once() -> list[list[Match]] | None:
            row = self._catalog.collection(collection)
            if row is None:
                return [[] for _ in asked]
            require_same_spec(collection, row.spec, spec)
            live = self._indexes.get(row)
            if live is None:
                return None
            return self._once(live, asked, filtered, k=k, exclude=exclude, effort=effort)

        for _ in range(_ATTEMPTS):
            found = once()
            if found is not None:
                return found
        with self._change:  # by now the filter only looks at what came since: nobody waits long
            found = once()
        if found is not None:
            return found
        filtered.forget()  # metadata that changed: what was known passes no longer
        with filtered.at_once(), self._change:
            found = once()
            return found if found is not None else self._refreshed(collection, once)

    def _refreshed(
        self, collection: str, once: Callable[[], list[list[Match]] | None]
    ) -> list[list[Match]]:
        """Searches an index that another process, or a change that failed, left behind."""
        for _ in range(_REFRESHED):
            row = self._catalog.collection(collection)
            if row is not None:
                self._indexes.refresh(row)
            found = once()
            if found is not None:
                return found
        raise StorageError(
            f"The catalog and the index of {collection!r} disagree; try again, or restart"
        )

    def _once(
        self,
        live: LiveIndex,
        queries: Vectors,
        filtered: _Filtered,
        *,
        k: int,
        exclude: Sequence[str],
        effort: Effort | None,
    ) -> list[list[Match]] | None:
        """The k best matches of each query; None where a change came in between: ask again.

        The filter is evaluated first and the rows are read last. Whatever was changed in between
        shows as a row that is missing or no longer passes, and such an answer is never given.
        """
        row = live.row
        among = filtered.among(row)
        without = self._catalog.seqs_of(row, exclude) if exclude else None
        found = live.search(queries, k=k, among=among, without=without, effort=effort)
        if found is None:
            return None
        seqs = {seq for _, seqs in found for seq in seqs.tolist()}
        records = self._catalog.at(row, seqs)
        whole = len(records) == len(seqs)
        if not filtered.confirm(records) or any(r.id in exclude for r in records.values()):
            whole = False
        return [_matches(one, records) for one in found] if whole else None


class _Filtered:
    """The rows that pass a filter during one search, which changes may come between.

    They are found once; when the search is done again, only what came since is looked at.
    """

    def __init__(self, catalog: Catalog, where: Filter | None) -> None:
        self._catalog = catalog
        self._where = where if where and where.conditions else None
        self._known: tuple[int, Passing] | None = None
        self._placed = False

    def among(self, row: CollectionRow) -> Seqs | None:
        """The seqs of those that pass now, ascending; None where everything does."""
        if self._where is None:
            return None
        before = self._known[1] if self._known and self._known[0] == row.id else None
        passing = self._catalog.passing(row, self._where, before=before, placed=self._placed)
        self._known = row.id, passing
        return passing.seqs

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Has `among` in the block wait for no other filters, as it waits before the block."""
        if self._where is None:
            yield
            return
        with self._catalog.filter_place():
            self._placed = True
            yield

    def forget(self) -> None:
        """Has all rows looked at once more."""
        self._known = None

    def confirm(self, records: Mapping[int, ImageRecord]) -> bool:
        """Whether rows that were just read, by seq, still pass; those that do not are forgotten."""
        if self._where is None or self._known is None:
            return True
        fail = [seq for seq, one in records.items() if not self._where.matches(one.metadata)]
        if fail:
            number, passing = self._known
            self._known = number, passing.without(fail)
        return not fail


def _matches(found: Found, records: dict[int, ImageRecord]) -> list[Match]:
    return [
        Match(rank, score, records[seq])
        for rank, (score, seq) in enumerate(zip(*(part.tolist() for part in found), strict=True), 1)
    ]
