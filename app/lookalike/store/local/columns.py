"""The metadata of a collection as NumPy columns, one for each field that a filter names.

A column says of all rows at once what `Filter.matches` says of one. Nothing here is saved: columns
are read from the catalog when a filter first names their field, and follow every later change.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np

from lookalike.errors import FilterTooSlowError, QueueFullError
from lookalike.records import MAX_FACETS, Facets, ImageRecord
from lookalike.store.base import Seqs
from lookalike.store.filters import (
    MISSING,
    AnyOf,
    Condition,
    Filter,
    Kind,
    Not,
    fields_of,
    value_of,
)
from lookalike.store.local.catalog import Catalog, Changes, Rows
from lookalike.store.local.column import Column, Growing, Mask, Slots, Tally
from lookalike.store.local.rows import CollectionRow

FILTER_S = 30.0  # that a filter may take unless it is set
MAX_WAITING = 16  # filters that may wait for columns to be read: each holds a thread
MAX_COUNTING = 4  # facets that are made at a time: of a million rows each takes a second
MAX_UNNAMED = 64  # columns of a collection that are kept though no setting names their field
_BLOCK = 4096  # rows that are read at a time for a new column
_COMPACT_AFTER = 1_000  # deleted rows, and at least as many as are in use

_FILLED_TOGETHER = 4  # columns

_WALKED = 16  # rows that are looked at for each that a page holds, before columns are read
_WALKED_TOGETHER = 1000

_FIELDS = "\0fields"  # names the column of what `fields_of` gives of each row, as JSON
_Answer = TypeVar("_Answer")

log = logging.getLogger(__name__)


class Columns:
    """The rows of one collection, and a column for each field that was asked for.

    `changes` is the collection's change number that they are of. Safe to call from many threads;
    whoever calls `apply` does so in the order of the commits.
    """

    def __init__(self, seqs: Seqs, changes: int, named: Iterable[str] = ()) -> None:
        self._lock = threading.Lock()
        self._filling = threading.Lock()
        self._seqs = Growing(seqs)
        self._alive = Growing(np.ones(len(seqs), bool))
        self._named = tuple(named)
        self._columns = {name: Column(len(seqs)) for name in self._named}
        # Rows that changed while a block of older values was being read.
        self._touched: set[int] = set()
        self.changes = changes

    def apply(self, changes: Changes, number: int) -> None:
        """Follows a commit; `number` is the collection's change number after it."""
        with self._lock:
            if changes.added:
                self._add([seq for seq, _ in changes.added])
            self._touched.update(seq for seq, _ in changes.updated)
            self._write(self._columns, [*changes.added, *changes.updated])
            if changes.removed:
                self._touched.update(changes.removed)
                slots, _ = self._known([(seq, {}) for seq in changes.removed])
                self._alive.values[slots] = False
                for column in self._columns.values():
                    column.write(slots, [MISSING] * len(slots))
            self._compact()
            self.changes = number

    def passing(self, where: Filter, *, after: int = 0, enough: int | None = None) -> Seqs | None:
        """The seqs of the rows that pass, ascending; None where a column must be filled first.

        Rows up to the seq `after` are left out. All rows behind are looked at, or only as far as it
        takes to find `enough`.
        """
        with self._lock:
            if not self._are_full(where.fields):
                return None
            rows = self._seqs.values
            start = int(np.searchsorted(rows, after, side="right"))
            size = len(rows) if enough is None else 8 * enough
            found: list[Seqs] = [rows[:0]]
            while start < len(rows) and (enough is None or sum(map(len, found)) < enough):
                part = slice(start, start + size)
                mask = self._holds(where, part)
                mask &= self._alive.values[part]
                found.append(rows[part][mask])
                start, size = start + size, len(rows)
            return np.concatenate(found)

    def _holds(self, where: Filter, part: slice) -> Mask:
        """Which rows of a part pass, those that were deleted too: a mask of the caller's own."""
        masks: Iterator[Mask] = (self._meets(one, part) for one in where.conditions)
        mask = next(masks, None)
        if mask is None:
            return np.ones(len(self._alive.values[part]), bool)
        for other in masks:
            mask &= other
        return mask

    def _meets(self, one: Condition | AnyOf | Not, part: slice) -> Mask:
        if isinstance(one, Condition):
            column = self._columns[one.field]
            column.used = time.monotonic()
            return column.holds(one, part)
        if isinstance(one, Not):
            return ~self._holds(one.filter, part)
        mask, *others = (self._holds(each, part) for each in one.filters)
        for other in others:
            mask |= other
        return mask

    def tally(self, name: str, where: Filter) -> Tally | None:
        """The values that the rows that pass have under a field; None as `passing`."""
        with self._lock:
            if not self._are_full([name, *where.fields]):
                return None
            self._columns[name].used = time.monotonic()
            mask = self._holds(where, slice(None))
            mask &= self._alive.values
            return self._columns[name].tally(mask)

    def kinds(self, names: Sequence[str]) -> dict[str, frozenset[Kind]] | None:
        """What the rows hold under some fields; None as `passing`."""
        with self._lock:
            return {n: self._columns[n].held for n in names} if self._are_full(names) else None

    def fill(
        self, names: Iterable[str], read: Callable[[int, int], Rows], *, deadline: float
    ) -> bool:
        """Reads what the columns of some fields lack; False if that lasts beyond `deadline`.

        What was read stays, so that the next call goes on from there. `read` gives the rows with
        seqs above its first argument and up to its second.
        """
        wanted = set(names)
        patience = min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)
        if not self._filling.acquire(timeout=patience):
            return False
        try:
            self._begin(wanted)
            while (block := self._next_block(wanted)) is not None:
                self._take(wanted, *block, read(*block))
                if time.monotonic() > deadline and self._next_block(wanted) is not None:
                    return False
        finally:
            self._filling.release()
        return True

    @property
    def state(self) -> tuple[Seqs, int, int]:
        """The rows that there are, the highest seq that was ever here or 0, and `changes`."""
        with self._lock:
            return self._seqs.values[self._alive.values], self._last, self.changes

    def describe(self) -> dict[str, str]:
        """`complete` or `building` for each field that has a column, by name."""
        with self._lock:
            return {
                name: "complete" if column.reached >= self._last else "building"
                for name, column in sorted(self._columns.items())
                if name != _FIELDS
            }

    def _add(self, seqs: Sequence[int]) -> None:
        full = [column for column in self._columns.values() if column.reached >= self._last]
        self._seqs.append(seqs)
        self._alive.append(np.ones(len(seqs), bool))
        for column in self._columns.values():
            column.extend(len(seqs))
        for column in full:
            column.reached = self._last

    def _write(self, names: Iterable[str], rows: Rows) -> None:
        slots, rows = self._known(rows)
        for name in names if rows else ():
            self._columns[name].write(slots, _values(name, rows))

    def _known(self, rows: Rows) -> tuple[Slots, Rows]:
        """Those of the rows that are here, with their slots."""
        seqs = self._seqs.values
        wanted = np.array([seq for seq, _ in rows], np.int64)
        slots = np.searchsorted(seqs, wanted)
        here = slots < len(seqs)
        here[here] = seqs[slots[here]] == wanted[here]
        return slots[here], [row for row, known in zip(rows, here.tolist(), strict=True) if known]

    @property
    def _last(self) -> int:
        return int(self._seqs.values[-1]) if len(self._seqs.values) else 0

    def _compact(self) -> None:
        """Drops deleted rows where they are as many as the others."""
        rows = len(self._seqs.values)
        dead = rows - int(np.count_nonzero(self._alive.values))
        if dead > _COMPACT_AFTER and 2 * dead > rows:
            slots = np.flatnonzero(self._alive.values)
            self._seqs = Growing(self._seqs.values[slots])
            self._alive = Growing(np.ones(len(slots), bool))
            self._columns = {name: column.kept(slots) for name, column in self._columns.items()}
            return
        for name, column in self._columns.items():
            if column.is_wasteful:
                self._columns[name] = column.kept(np.arange(rows))

    def _are_full(self, names: Iterable[str]) -> bool:
        found = [self._columns.get(name) for name in names]
        return all(column is not None and column.reached >= self._last for column in found)

    def _begin(self, names: set[str]) -> None:
        """Makes the columns that are missing, and drops some that were not used for long."""
        with self._lock:
            for name in names - self._columns.keys():
                self._columns[name] = Column(len(self._seqs.values))
                self._columns[name].used = time.monotonic()
            unnamed = [name for name in self._columns if name not in {*self._named, *names}]
            unnamed.sort(key=lambda name: self._columns[name].used)
            for name in unnamed[: max(0, len(unnamed) - MAX_UNNAMED)]:
                del self._columns[name]

    def _next_block(self, names: set[str]) -> tuple[int, int] | None:
        """Between which seqs to read next: above the first, up to the second; None where full."""
        with self._lock:
            seqs = self._seqs.values
            low = min((self._columns[name].reached for name in names), default=self._last)
            start = int(np.searchsorted(seqs, low, side="right"))
            if start == len(seqs):
                return None
            self._touched.clear()
            return low, int(seqs[min(start + _BLOCK, len(seqs)) - 1])

    def _take(self, names: set[str], low: int, high: int, rows: Rows) -> None:
        """Writes a block that was just read, but for rows that were changed meanwhile."""
        wanted = list(names)
        for start in range(0, len(wanted), _FILLED_TOGETHER):
            some = wanted[start : start + _FILLED_TOGETHER]
            with self._lock:  # a few at a time: filters on other fields go on in between
                current = [name for name in some if self._columns[name].reached == low]
                self._write(current, [row for row in rows if row[0] not in self._touched])
                for name in current:
                    self._columns[name].reached = high


def _values(name: str, rows: Rows) -> list[Any]:
    """What rows have under a field."""
    if name == _FIELDS:
        return [json.dumps(fields_of(metadata)) for _, metadata in rows]
    if name.isascii() and "." not in name:
        return [metadata.get(name, MISSING) for _, metadata in rows]
    return [value_of(metadata, name) for _, metadata in rows]


class Filtering:
    """The columns of every collection that was filtered: made when first needed, then followed.

    Callers of `follow`, `refresh` and `drop` hold the store's change lock.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        change: threading.RLock,
        fields: Sequence[str],
        seconds: float,
        read_only: bool,
    ) -> None:
        self._catalog = catalog
        self._change = change
        self._fields = tuple(fields)
        self._seconds = seconds
        self._read_only = read_only
        self._columns: dict[int, Columns] = {}
        self._waiting = threading.BoundedSemaphore(MAX_WAITING)
        self._counting = threading.BoundedSemaphore(MAX_COUNTING)

    def load(self, row: CollectionRow) -> None:
        """Reads the columns of the fields that were named."""
        if self._fields:
            read = partial(self._catalog.metadata, row)
            self._get(row).fill(self._fields, read, deadline=float("inf"))

    def passing(
        self, row: CollectionRow, where: Filter, *, after: int = 0, enough: int | None = None
    ) -> Seqs:
        """The seqs of the rows that pass, ascending: (N,) int64; see `Columns.passing`.

        Raises `FilterTooSlowError` if columns were not read in time; the next call goes on there.
        Raises `QueueFullError` if too many filters wait for that already.
        """
        ask = partial(Columns.passing, where=where, after=after, enough=enough)
        return self._asked(row, where.fields, ask)

    def kinds(self, row: CollectionRow, fields: Iterable[str]) -> dict[str, frozenset[Kind]]:
        """See `Store.kinds`. Raises as `passing`."""
        names = list(fields)
        return self._asked(row, names, partial(Columns.kinds, names=names))

    def facets(
        self, row: CollectionRow, fields: Sequence[str] | None, where: Filter, *, limit: int
    ) -> Facets:
        """See `Store.facets`. Raises as `passing`, and `QueueFullError` for too many at a time."""
        if not self._counting.acquire(blocking=False):
            raise QueueFullError("Too many facets are being counted; try again in a moment")
        try:
            needed, total = list(where.fields), Counter[str]()
            if fields is None:
                for names, count in self._tally(row, _FIELDS, where).texts_used().items():
                    total.update(dict.fromkeys(json.loads(names), count))
                fields = sorted(total, key=lambda name: (-total[name], name))[:MAX_FACETS]
                needed.append(_FIELDS)
            # All together, so that the rows are read once, and no column makes room for another.
            self.kinds(row, [*needed, *fields])
            facets = [self._tally(row, name, where).facet(name, limit) for name in fields]
            passing = len(self.passing(row, where))
            return Facets(count=passing, fields=len(total) or len(fields), facets=facets)
        finally:
            self._counting.release()

    def _tally(self, row: CollectionRow, name: str, where: Filter) -> Tally:
        return self._asked(
            row, [name, *where.fields], partial(Columns.tally, name=name, where=where)
        )

    def _asked(
        self, row: CollectionRow, names: Sequence[str], ask: Callable[[Columns], _Answer | None]
    ) -> _Answer:
        """What the columns answer, once those of some fields are full."""
        columns = self._get(row)
        read, deadline = partial(self._catalog.metadata, row), time.monotonic() + self._seconds
        while (answer := ask(columns)) is None:
            if not self._fill(columns, names, read, deadline=deadline):
                raise FilterTooSlowError(
                    f"Reading the fields takes longer than {self._seconds:g} s on a "
                    "collection of this size. Try again: it goes on where it stopped. Name the "
                    "fields in LOOKALIKE_FILTER_FIELDS to have them read at the start, or raise "
                    "LOOKALIKE_FILTER_TIMEOUT"
                )
        return answer

    def _fill(self, columns: Columns, *what: Any, deadline: float) -> bool:
        if not self._waiting.acquire(blocking=False):
            raise QueueFullError(
                "Too many filters wait for their fields to be read; try again in a moment, or name "
                "the fields in LOOKALIKE_FILTER_FIELDS to have them read at the start"
            )
        try:
            return columns.fill(*what, deadline=deadline)
        finally:
            self._waiting.release()

    def page(
        self, row: CollectionRow, where: Filter, *, after: int, limit: int
    ) -> dict[int, ImageRecord]:
        """Up to `limit` rows behind the seq `after` that pass, by seq. Raises as `passing`."""
        # A filter that many rows pass fills a page within a short walk, before columns are read.
        rows: dict[int, ImageRecord] = {}
        is_read = self._get(row).passing(where, enough=0) is not None
        walked = 0 if is_read else _WALKED * limit
        while walked > 0:
            block = self._catalog.page(row, after=after, limit=_WALKED_TOGETHER)
            rows |= {seq: one for seq, one in block.items() if where.matches(one.metadata)}
            if len(rows) >= limit or len(block) < _WALKED_TOGETHER:
                return dict(list(rows.items())[:limit])
            walked, after = walked - len(block), max(block)
        while (lacking := limit - len(rows)) > 0:
            seqs = self.passing(row, where, after=after, enough=lacking)[:lacking].tolist()
            if not seqs:
                break
            block = self._catalog.at(row, seqs)
            rows |= {seq: one for seq, one in block.items() if where.matches(one.metadata)}
            after = seqs[-1]
        return rows

    def made(self, row: CollectionRow) -> None:
        """Has columns of the named fields for a collection that a commit has just made."""
        if self._fields:
            self._columns[row.id] = Columns(np.empty(0, np.int64), 0, self._fields)

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
            columns.apply(*self._catalog.changes_since(row, *columns.state))

    def drop(self, row: CollectionRow) -> None:
        """Forgets the columns of a collection."""
        self._columns.pop(row.id, None)

    def describe(self, row: CollectionRow) -> dict[str, str]:
        """See `Columns.describe`."""
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
