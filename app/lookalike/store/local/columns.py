"""The metadata of a collection as NumPy columns, one for each field that a filter names.

A column says of all rows at once what `Filter.matches` says of one. Nothing here is saved: columns
are read from the catalog when a filter first names their field, and follow every later change.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from types import EllipsisType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import FilterTooSlowError, QueueFullError
from lookalike.records import ImageRecord
from lookalike.store.base import Seqs
from lookalike.store.filters import (
    MAX_INT,
    MIN_INT,
    ORDERINGS,
    Condition,
    Filter,
    Scalar,
    scalar_key,
)
from lookalike.store.local.catalog import Catalog, Changes, CollectionRow, Rows

FILTER_S = 30.0  # that a filter may take unless it is set
MAX_WAITING = 16  # filters that may wait for columns to be read: each holds a thread
MAX_UNNAMED = 64  # columns of a collection that are kept though no setting names their field
_BLOCK = 4096  # rows that are read at a time for a new column
_COMPACT_AFTER = 1_000  # deleted rows or unused values, and at least as many as are in use

_WALKED = 16  # rows that are looked at for each that a page holds, before columns are read
_WALKED_TOGETHER = 1000

log = logging.getLogger(__name__)

MISSING = ...
"""Stands for the value of a row that has no such field."""

# What a row has under the field: numbers keep their type, so that each is exact; of texts, truth
# values and null, the cell is a code. Zero is what memory holds at first.
_MISSING, _INT, _FLOAT, _CODED, _LIST, _OTHER = range(6)
_KINDS: dict[type, int] = dict.fromkeys((bool, str, type(None)), _CODED)
_KINDS |= {EllipsisType: _MISSING, int: _INT, float: _FLOAT, list: _LIST}

Mask = NDArray[np.bool_]
Kinds = NDArray[np.uint8]
Cells = NDArray[np.int64]
Slots = NDArray[np.int64]
"""Positions of rows in the columns."""


class Growing:
    """An array that rows are appended to."""

    def __init__(self, values: NDArray[Any]) -> None:
        self._array = values
        self._size = len(values)

    @property
    def values(self) -> NDArray[Any]:
        """What is in it; writing to it changes the array."""
        return self._array[: self._size]

    def append(self, values: Any) -> None:
        """Adds rows at the end."""
        size = self._size + len(values)
        if size > len(self._array):
            larger = np.zeros((size + size // 4, *self._array.shape[1:]), self._array.dtype)
            larger[: self._size] = self.values
            self._array = larger
        self._array[self._size : size] = values
        self._size = size


class Column:
    """One field of all rows: nine bytes for each, and every distinct text and list item once."""

    def __init__(self, rows: int) -> None:
        self._kinds = Growing(np.zeros(rows, np.uint8))
        self._cells = Growing(np.zeros(rows, np.int64))
        self._codes: dict[Any, int] = {}  # by `scalar_key`
        # Each item of a list: its row's slot and its code, or -1 once it is removed.
        self._items = Growing(np.empty((0, 2), np.int64))
        self._removed_items = 0
        self.reached = 0  # rows up to this seq have their value; others were not read
        self.used = 0.0  # when a filter last named it, on the clock of `time.monotonic`

    def extend(self, rows: int) -> None:
        """Adds rows at the end that have no such field."""
        self._kinds.append(np.zeros(rows, np.uint8))
        self._cells.append(np.zeros(rows, np.int64))

    def write(self, slots: Slots, values: Sequence[Any]) -> None:
        """Sets the values of rows, each of them once."""
        kinds = np.array([_kind(value) for value in values], np.uint8)
        lists = slots[self._kinds.values[slots] == _LIST]
        if len(lists):
            rows, codes = self._items.values.T
            stale = np.isin(rows, lists) & (codes >= 0)
            codes[stale] = -1
            self._removed_items += int(np.count_nonzero(stale))
        self._kinds.values[slots] = kinds
        self._cells.values[slots] = self._encoded(kinds, values)
        if _LIST in kinds:
            items = [
                (slot, self._code(key))
                for slot, kind, value in zip(slots.tolist(), kinds.tolist(), values, strict=True)
                if kind == _LIST
                for key in {scalar_key(item) for item in value if not isinstance(item, list | dict)}
            ]
            self._items.append(np.array(items, np.int64).reshape(-1, 2))

    def holds(self, condition: Condition, part: slice) -> Mask:
        """For which rows of a part a condition holds, (rows,) bool."""
        op, operand = condition.op, condition.operand
        kinds, cells = self._kinds.values[part], self._cells.values[part]
        if op == "contains":
            found = np.zeros(len(self._kinds.values), bool)
            rows, codes = self._items.values.T
            assert not isinstance(operand, tuple)
            found[rows[codes == self._codes.get(scalar_key(operand), -2)]] = True
            return found[part]
        if op in ORDERINGS:
            assert isinstance(operand, str | int | float)
            return self._ordered(op, operand, kinds, cells)
        same = self._one_of(operand if isinstance(operand, tuple) else (operand,), kinds, cells)
        return same if op in {"eq", "in"} else (kinds != _MISSING) & ~same

    def kept(self, slots: Slots) -> Column:
        """A copy of some rows, without texts and items that no row has any more."""
        copy = Column(0)
        copy.reached, copy.used = self.reached, self.used
        kinds, cells = self._kinds.values[slots], self._cells.values[slots]
        moved = np.full(len(self._kinds.values), -1, np.int64)
        moved[slots] = np.arange(len(slots))
        rows, codes = self._items.values.T
        stay = (moved[rows] >= 0) & (codes >= 0)
        coded = kinds == _CODED
        held = np.concatenate([cells[coded], codes[stay]])
        used, fresh = np.unique(held, return_inverse=True)
        renamed = dict(zip(used.tolist(), range(len(used)), strict=True))
        copy._codes = {key: renamed[code] for key, code in self._codes.items() if code in renamed}
        border = int(np.count_nonzero(coded))
        cells[coded] = fresh[:border]
        copy._kinds, copy._cells = Growing(kinds), Growing(cells)
        copy._items = Growing(np.stack([moved[rows[stay]], fresh[border:]], axis=1))
        return copy

    @property
    def is_wasteful(self) -> bool:
        """Whether most of its codes, or of its items, may belong to no row any more."""
        items = len(self._items.values)
        in_use = len(self._kinds.values) + items - self._removed_items
        return (
            len(self._codes) > 2 * in_use + _COMPACT_AFTER
            or self._removed_items > items // 2 + _COMPACT_AFTER
        )

    def _encoded(self, kinds: NDArray[np.uint8], values: Sequence[Any]) -> NDArray[np.int64]:
        """The cells of values: integers, the bits of floats, codes."""
        cells = np.zeros(len(values), np.int64)
        for kind in {_INT, _FLOAT, _CODED} & set(kinds.tolist()):
            of_kind = kinds == kind
            chosen = [values[n] for n in np.flatnonzero(of_kind).tolist()]
            if kind == _CODED:
                cells[of_kind] = [self._code(scalar_key(one)) for one in chosen]
            elif kind == _INT:
                cells[of_kind] = chosen
            else:
                cells[of_kind] = np.array(chosen, np.float64).view(np.int64)
        return cells

    def _code(self, key: Any) -> int:
        return self._codes.setdefault(key, len(self._codes))

    def _one_of(self, items: Iterable[Scalar], kinds: Kinds, cells: Cells) -> Mask:
        """Which rows have one of the items as their value."""
        wanted: dict[int, list[Any]] = {_CODED: [], _INT: [], _FLOAT: []}
        for item in items:
            if isinstance(item, bool | str) or item is None:
                wanted[_CODED].append(self._codes.get(scalar_key(item), -1))
                continue
            if int(item) == item and MIN_INT <= item <= MAX_INT:
                wanted[_INT].append(int(item))
            if float(item) == item:
                wanted[_FLOAT].append(float(item))
        found = np.zeros(len(kinds), bool)
        for kind, values in wanted.items():
            if values:
                held = cells.view(np.float64) if kind == _FLOAT else cells
                same = held == values[0]
                if len(values) > 1:
                    same = np.isin(held, np.array(values, held.dtype))
                found |= same & (kinds == kind)
        return found

    def _ordered(self, op: str, operand: float | str, kinds: Kinds, cells: Cells) -> Mask:
        """Which rows have a value of the operand's kind on one side of it."""
        compare, below = ORDERINGS[op], op in {"lt", "lte"}
        found: Mask
        if isinstance(operand, str):
            found = kinds == _CODED
            passes = (isinstance(key, str) and compare(key, operand) for key in self._codes)
            found[found] = np.fromiter(passes, bool, len(self._codes))[cells[found]]
            return found
        # The last integer and the last double for which the ordering holds: an operand may lie
        # between two of them, and only Python compares the two kinds exactly.
        whole = math.floor(operand) if below else math.ceil(operand)
        if not compare(whole, operand):
            whole += -1 if below else 1
        real = float(operand)
        if not compare(real, operand):
            real = math.nextafter(real, -math.inf if below else math.inf)
        reals = cells.view(np.float64)
        with np.errstate(invalid="ignore"):  # cells of other kinds may look like NaN
            ints = cells <= whole if below else cells >= whole
            floats = reals <= real if below else reals >= real
        found = ((kinds == _INT) & ints) | ((kinds == _FLOAT) & floats)
        return found


def _kind(value: Any) -> int:
    """The kind of a value under a field."""
    if type(value) in _KINDS:
        return _KINDS[type(value)]
    # An object, or a subclass of another type.
    return next((kind for one, kind in _KINDS.items() if isinstance(value, one)), _OTHER)


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
                slots, _ = self._known([(seq, {}) for seq in changes.removed])
                self._alive.values[slots] = False
            self._compact()
            self.changes = number

    def passing(self, where: Filter, *, after: int = 0, enough: int | None = None) -> Seqs | None:
        """The seqs of the rows that pass, ascending; None where a column must be filled first.

        Rows up to the seq `after` are left out. All rows behind are looked at, or only as far as it
        takes to find `enough`.
        """
        with self._lock:
            if not self._are_full(where):
                return None
            rows = self._seqs.values
            start = int(np.searchsorted(rows, after, side="right"))
            size = len(rows) if enough is None else 8 * enough
            found: list[Seqs] = [rows[:0]]
            while start < len(rows) and (enough is None or sum(map(len, found)) < enough):
                part = slice(start, start + size)
                mask = self._alive.values[part].copy()
                for condition in where.conditions:
                    column = self._columns[condition.field]
                    column.used = time.monotonic()
                    mask &= column.holds(condition, part)
                found.append(rows[part][mask])
                start, size = start + size, len(rows)
            return np.concatenate(found)

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
            values = [metadata.get(name, MISSING) for _, metadata in rows]
            self._columns[name].write(slots, values)

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

    def _are_full(self, where: Filter) -> bool:
        found = [self._columns.get(condition.field) for condition in where.conditions]
        return all(column is not None and column.reached >= self._last for column in found)

    def _begin(self, names: set[str]) -> None:
        """Makes the columns that are missing, and drops some that were not used for long."""
        with self._lock:
            for name in names - self._columns.keys():
                self._columns[name] = Column(len(self._seqs.values))
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
        with self._lock:
            current = [name for name in names if self._columns[name].reached == low]
            self._write(current, [row for row in rows if row[0] not in self._touched])
            for name in current:
                self._columns[name].reached = high


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
        columns, names = self._get(row), [condition.field for condition in where.conditions]
        read, deadline = partial(self._catalog.metadata, row), time.monotonic() + self._seconds
        while (seqs := columns.passing(where, after=after, enough=enough)) is None:
            if not self._fill(columns, names, read, deadline=deadline):
                raise FilterTooSlowError(
                    f"Reading the fields of the filter takes longer than {self._seconds:g} s on a "
                    "collection of this size. Try again: it goes on where it stopped. Name the "
                    "fields in LOOKALIKE_FILTER_FIELDS to have them read at the start, or raise "
                    "LOOKALIKE_FILTER_TIMEOUT"
                )
        return seqs

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
