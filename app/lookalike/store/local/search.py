"""Searches and filters over the catalog, the indexes and the columns of metadata.

The three are a moment apart while a change is being followed. An answer that does not fit the
catalog is never given: the search is done again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lookalike.errors import FilterTooSlowError, InvalidParameterError, StorageError
from lookalike.records import Effort, ImageRecord, Match, ModelSpec
from lookalike.store.base import Seqs, Vectors, check_vectors, require_same_spec
from lookalike.store.filters import Filter
from lookalike.store.local.catalog import Catalog, Changes, CollectionRow, Rows
from lookalike.store.local.columns import Columns
from lookalike.store.local.index.indexes import Indexes
from lookalike.store.local.index.segments import Found

FILTER_S = 30.0
"""Seconds that a filter may take unless it is set."""

_FREE_ATTEMPTS = 3
_ATTEMPTS = 14
_WALKED = 16  # rows that are looked at for each that a page holds, before columns are read
_WALKED_TOGETHER = 1000
_NO_SEQS: Seqs = np.empty(0, np.int64)

log = logging.getLogger(__name__)


class Filtering:
    """The columns of every collection that was filtered: made when first needed, then followed.

    Args:
        catalog: What the columns are read from.
        change: The store's change lock. Whoever calls `follow`, `drop` or `refresh` holds it.
        fields: Metadata fields of every collection that get a column at once.
        seconds: How long a filter may wait for its columns.
        read_only: Whether another process may change the catalog.
    """

    def __init__(
        self,
        catalog: Catalog,
        change: threading.RLock,
        *,
        fields: Sequence[str] = (),
        seconds: float = FILTER_S,
        read_only: bool = False,
    ) -> None:
        self._catalog = catalog
        self._change = change
        self._fields = tuple(fields)
        self._seconds = seconds
        self._read_only = read_only
        self._columns: dict[int, Columns] = {}

    def load(self, row: CollectionRow) -> None:
        """Reads the columns of the fields that were named."""
        if self._fields:
            columns = self._get(row)
            self._fill(columns, row, self._fields, deadline=float("inf"))

    def prepare(self, row: CollectionRow, where: Filter) -> Columns:
        """The columns of a collection, with those that a filter needs.

        Raises:
            FilterTooSlowError: They were not read in time; the next call goes on from there.
        """
        columns = self._get(row)
        deadline = time.monotonic() + self._seconds
        while not columns.is_ready(where):
            names = [condition.field for condition in where.conditions]
            if not self._fill(columns, row, names, deadline=deadline):
                raise FilterTooSlowError(
                    f"Reading the fields of the filter takes longer than {self._seconds:g} s on a "
                    "collection of this size. Try again: it goes on where it stopped. Name the "
                    "fields in LOOKALIKE_FILTER_FIELDS to have them read at the start, or raise "
                    "LOOKALIKE_FILTER_TIMEOUT"
                )
        return columns

    def passing(self, row: CollectionRow, where: Filter) -> Seqs:
        """The seqs of the rows that pass, ascending: (N,) int64. Raises as `prepare`."""
        while True:
            seqs = self.prepare(row, where).passing(where)
            if seqs is not None:
                return seqs

    def page(
        self, row: CollectionRow, where: Filter, *, after: int, limit: int
    ) -> dict[int, ImageRecord]:
        """Up to `limit` rows behind the seq `after` that pass, by seq. Raises as `prepare`.

        A filter that many rows pass fills a page within a short walk, sooner than columns are read.
        """
        rows: dict[int, ImageRecord] = {}
        walked = _WALKED * limit if not self._get(row).is_ready(where) else 0
        while walked > 0:
            block = self._catalog.page(row, after=after, limit=_WALKED_TOGETHER)
            rows |= {seq: one for seq, one in block.items() if where.matches(one.metadata)}
            if len(rows) >= limit or len(block) < _WALKED_TOGETHER:
                return dict(list(rows.items())[:limit])
            walked, after = walked - len(block), max(block)
        seqs = self.passing(row, where)
        seqs = seqs[seqs > after]
        while len(rows) < limit and len(seqs):
            some, seqs = seqs[: limit - len(rows)], seqs[limit - len(rows) :]
            block = self._catalog.at(row, some.tolist())
            rows |= {seq: one for seq, one in block.items() if where.matches(one.metadata)}
        return rows

    def made(self, row: CollectionRow) -> None:
        """Has columns of the named fields for a collection that a commit has just made."""
        if self._fields:
            self._columns[row.id] = Columns(_NO_SEQS, 0, self._fields)

    def follow(self, row: CollectionRow, changes: Changes) -> None:
        """Follows a commit of this process."""
        columns = self._columns.get(row.id)
        if columns is None:
            return
        try:
            columns.apply(changes, row.changes)
        except Exception:  # the change is committed: it must not look as if it had failed
            log.exception("The columns of %r did not follow a change; they are read anew", row.name)
            self._columns.pop(row.id, None)

    def refresh(self, row: CollectionRow) -> None:
        """Brings the columns to where the catalog is, whoever changed it."""
        columns = self._columns.get(row.id)
        if columns is not None and columns.changes != row.changes:
            known = columns.changes
            seqs, last = columns.seqs, columns.last_seq
            columns.apply(*self._catalog.changes_since(row, seqs, last, known))

    def drop(self, row: CollectionRow) -> None:
        """Forgets the columns of a collection."""
        self._columns.pop(row.id, None)

    def describe(self, row: CollectionRow) -> dict[str, str]:
        """`complete` or `building` for each field that has a column, by name."""
        columns = self._columns.get(row.id)
        return columns.describe() if columns else {}

    def _get(self, row: CollectionRow) -> Columns:
        columns = self._columns.get(row.id)
        if columns is None:
            with self._change:
                columns = self._columns.get(row.id)
                if columns is None:
                    columns = Columns(*self._catalog.seqs(row), self._fields)
                    self._columns[row.id] = columns
        if self._read_only and columns.changes != row.changes:
            with self._change:
                self.refresh(row)
        return columns

    def _fill(
        self, columns: Columns, row: CollectionRow, names: Sequence[str], *, deadline: float
    ) -> bool:
        def read(above: int, upto: int) -> Rows:
            return self._catalog.metadata(row, above, upto)

        return columns.fill(names, read, deadline=deadline)


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What a search was asked, see `Store.search`."""

    collection: str
    vectors: Vectors
    k: int
    spec: ModelSpec
    where: Filter | None
    exclude: Sequence[str]
    effort: Effort | None


class Searcher:
    """Searches a catalog, its indexes and its columns as one.

    Args:
        catalog: The rows.
        indexes: Their vectors.
        filtering: Their metadata.
        change: The store's change lock.
    """

    def __init__(
        self,
        catalog: Catalog,
        indexes: Indexes,
        filtering: Filtering,
        *,
        change: threading.RLock,
    ) -> None:
        self._catalog = catalog
        self._indexes = indexes
        self._filtering = filtering
        self._change = change

    def search(self, query: Query) -> list[list[Match]]:
        """The k best matches of each vector, see `Store.search`.

        A search that met a change is done again: at first freely, then while changes of this
        process wait, then also after index and columns were brought to where the catalog is,
        because another process, or a change that failed, may have left them behind.
        """
        vectors = check_vectors(query.vectors, count=None, dim=query.spec.dim)
        query = replace(query, vectors=vectors)
        if query.k < 1:
            raise InvalidParameterError("k must be at least 1")
        for attempt in range(_ATTEMPTS):
            if attempt < _FREE_ATTEMPTS:
                found = self._attempt(query)
            else:
                with self._change:
                    if attempt > _FREE_ATTEMPTS:
                        self._refresh(query.collection)
                    found = self._attempt(query)
            if found is not None:
                return found
        raise StorageError(
            f"The catalog and the index of {query.collection!r} disagree; try again, or restart"
        )

    def _attempt(self, query: Query) -> list[list[Match]] | None:
        """The k best matches of each vector; None where a change came in between.

        The filter is evaluated first and the rows are read last. Whatever was changed in between
        shows as a row that is missing or no longer passes, and such an answer is never given.
        """
        row = self._catalog.collection(query.collection)
        if row is None:
            return [[] for _ in query.vectors]
        require_same_spec(query.collection, row.spec, query.spec)
        where = query.where if query.where and query.where.conditions else None
        allowed = self._filtering.passing(row, where) if where else None
        excluded = self._catalog.seqs_of(row, query.exclude) if query.exclude else None
        live = self._indexes.get(row)
        found = None
        if live is not None:
            found = live.search(
                query.vectors,
                k=query.k,
                allowed=allowed,
                excluded=excluded,
                effort=query.effort,
            )
        if found is None:
            return None
        seqs = {seq for _, seqs in found for seq in seqs.tolist()}
        records = self._catalog.at(row, seqs)
        fits = len(records) == len(seqs) and not any(
            one.id in query.exclude or (where and not where.matches(one.metadata))
            for one in records.values()
        )
        return [_matches(one, records) for one in found] if fits else None

    def _refresh(self, collection: str) -> None:
        row = self._catalog.collection(collection)
        if row is not None:
            self._indexes.refresh(row)
            self._filtering.refresh(row)


def _matches(found: Found, records: dict[int, ImageRecord]) -> list[Match]:
    return [
        Match(rank, score, records[seq])
        for rank, (score, seq) in enumerate(zip(*(part.tolist() for part in found), strict=True), 1)
    ]
