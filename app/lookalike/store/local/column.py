"""One metadata field of all rows of a collection as NumPy arrays, and its facet."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.records import MAX_LISTED, Facet, FacetValue
from lookalike.store.filters import (
    DIFFERS,
    MAX_INT,
    MIN_INT,
    OF_ITEMS,
    ORDERINGS,
    Condition,
    Kind,
    Operation,
    Scalar,
    is_date,
    scalar_key,
)

_COMPACT_AFTER = 1_000  # values that no row has any more, and at least as many as are in use

# What a row, or an item of a list, has under the field: numbers keep their type, so that each is
# exact; of a text the cell is a code. Zero is what memory holds at first.
_MISSING, _INT, _FLOAT, _TEXT, _BOOL, _NULL, _LIST, _OTHER = range(8)
_KINDS: dict[type, int] = {EllipsisType: _MISSING, int: _INT, float: _FLOAT, str: _TEXT}
_KINDS |= {bool: _BOOL, type(None): _NULL, list: _LIST}
_NAMES = (
    None,
    Kind.NUMBER,
    Kind.NUMBER,
    Kind.TEXT,
    Kind.BOOLEAN,
    Kind.NULL,
    Kind.LIST,
    Kind.OBJECT,
)

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
    """One field of all rows: nine bytes for each, 17 for a list item, every distinct text once."""

    def __init__(self, rows: int) -> None:
        self._kinds = Growing(np.zeros(rows, np.uint8))
        self._cells = Growing(np.zeros(rows, np.int64))
        self._codes: dict[str, int] = {}  # by text; codes count from zero, in this order
        # Each item of a list: its row's slot, its kind (missing once it is removed) and its cell.
        self._owners = Growing(np.zeros(0, np.int64))
        self._item_kinds = Growing(np.zeros(0, np.uint8))
        self._item_cells = Growing(np.zeros(0, np.int64))
        self._removed_items = 0
        self._held: frozenset[Kind] | None = None
        self.reached = 0  # rows up to this seq have their value; others were not read
        self.used = 0.0  # when it was last asked, on the clock of `time.monotonic`

    def extend(self, rows: int) -> None:
        """Adds rows at the end that have no such field."""
        self._kinds.append(np.zeros(rows, np.uint8))
        self._cells.append(np.zeros(rows, np.int64))

    def write(self, slots: Slots, values: Sequence[Any]) -> None:
        """Sets the values of rows, each of them once."""
        self._held = None
        kinds = _kinds(values)
        lists = slots[self._kinds.values[slots] == _LIST]
        if len(lists):
            stale = np.isin(self._owners.values, lists) & (self._item_kinds.values != _MISSING)
            self._item_kinds.values[stale] = _MISSING
            self._removed_items += int(np.count_nonzero(stale))
        self._kinds.values[slots] = kinds
        self._cells.values[slots] = self._encoded(kinds, values)
        if _LIST in kinds:
            owned = [
                (slot, item)
                for slot, kind, value in zip(slots.tolist(), kinds.tolist(), values, strict=True)
                if kind == _LIST
                for item in _different(value)
            ]
            items = [item for _, item in owned]
            item_kinds = _kinds(items)
            self._owners.append(np.array([slot for slot, _ in owned], np.int64))
            self._item_kinds.append(item_kinds)
            self._item_cells.append(self._encoded(item_kinds, items))

    @property
    def held(self) -> frozenset[Kind]:
        """The kinds of values that the rows and the items of their lists have."""
        if self._held is None:
            numbers = (
                number
                for number in range(1, len(_NAMES))
                if np.any(self._kinds.values == number) or np.any(self._item_kinds.values == number)
            )
            self._held = frozenset(name for number in numbers if (name := _NAMES[number]))
        return self._held

    def holds(self, condition: Condition, part: slice) -> Mask:
        """For which rows of a part a condition holds, (rows,) bool."""
        kinds, cells = self._kinds.values[part], self._cells.values[part]
        of_items = [one for one in condition.operations if one.op in OF_ITEMS]
        masks = []
        if of_items:
            masks.append(self._hold(of_items, kinds, cells))
            if len(self._owners.values):
                masks[0] |= self._some_item(of_items, part)
        whole = (one for one in condition.operations if one.op not in OF_ITEMS)
        masks.extend(self._holds_whole(one, kinds, cells, part) for one in whole)
        return _all(masks)

    def _holds_whole(self, one: Operation, kinds: Kinds, cells: Cells, part: slice) -> Mask:
        """For which rows an operation holds that looks at a list as a whole."""
        if one.op == "contains":
            return self._some_item([one], part)
        if one.op == "exists":
            exists: Mask = kinds != _MISSING if one.operand else kinds == _MISSING
            return exists
        found = ~self._one_of(one.operands, kinds, cells)
        found &= kinds != _MISSING
        if one.op != DIFFERS and len(self._owners.values):
            found &= ~self._some_item([one], part)
        return found

    def _some_item(self, operations: Sequence[Operation], part: slice) -> Mask:
        """For which rows one item of a list meets all operations, see `_hold`."""
        passes = self._hold(operations, self._item_kinds.values, self._item_cells.values)
        found = np.zeros(len(self._kinds.values), bool)
        found[self._owners.values[passes]] = True
        return found[part]

    def _hold(self, operations: Sequence[Operation], kinds: Kinds, cells: Cells) -> Mask:
        """Which scalars meet all operations; `ne`, `nin` and `contains` ask for equal ones here."""
        return _all(
            [
                self._ordered(one.op, one.operand, kinds, cells)
                if one.op in ORDERINGS and isinstance(one.operand, str | int | float)
                else self._one_of(one.operands, kinds, cells)
                for one in operations
            ]
        )

    def kept(self, slots: Slots) -> Column:
        """A copy of some rows, without texts and items that no row has any more."""
        copy = Column(0)
        copy.reached, copy.used = self.reached, self.used
        kinds, cells = self._kinds.values[slots], self._cells.values[slots]
        moved = np.full(len(self._kinds.values), -1, np.int64)
        moved[slots] = np.arange(len(slots))
        owners = moved[self._owners.values]
        stay = (owners >= 0) & (self._item_kinds.values != _MISSING)
        item_kinds, item_cells = self._item_kinds.values[stay], self._item_cells.values[stay]
        texts, item_texts = kinds == _TEXT, item_kinds == _TEXT
        used, fresh = np.unique(
            np.concatenate([cells[texts], item_cells[item_texts]]), return_inverse=True
        )
        renamed = dict(zip(used.tolist(), range(len(used)), strict=True))
        copy._codes = {text: renamed[code] for text, code in self._codes.items() if code in renamed}
        border = int(np.count_nonzero(texts))
        cells[texts], item_cells[item_texts] = fresh[:border], fresh[border:]
        copy._kinds, copy._cells = Growing(kinds), Growing(cells)
        copy._owners = Growing(owners[stay])
        copy._item_kinds, copy._item_cells = Growing(item_kinds), Growing(item_cells)
        return copy

    @property
    def is_wasteful(self) -> bool:
        """Whether most of its codes, or of its items, may belong to no row any more."""
        items = len(self._owners.values)
        in_use = len(self._kinds.values) + items - self._removed_items
        return (
            len(self._codes) > 2 * in_use + _COMPACT_AFTER
            or self._removed_items > items // 2 + _COMPACT_AFTER
        )

    def tally(self, rows: Mask) -> Tally:
        """A copy of the values of some rows."""
        kinds, cells = self._kinds.values[rows], self._cells.values[rows]
        count = int(np.count_nonzero(kinds))
        if len(self._owners.values):
            items = rows[self._owners.values]
            kinds = np.concatenate([kinds, self._item_kinds.values[items]])
            cells = np.concatenate([cells, self._item_cells.values[items]])
        return Tally(count, kinds, cells, list(self._codes))

    def _encoded(self, kinds: Kinds, values: Sequence[Any]) -> Cells:
        """The cells of values: integers, the bits of floats, codes of texts, 1 for true."""
        cells = np.zeros(len(values), np.int64)
        for kind in {_INT, _FLOAT, _TEXT, _BOOL} & set(kinds.tolist()):
            of_kind = kinds == kind
            chosen = [values[n] for n in np.flatnonzero(of_kind).tolist()]
            if kind == _TEXT:
                cells[of_kind] = [self._code(scalar_key(one)) for one in chosen]
            elif kind == _FLOAT:
                cells[of_kind] = np.array(chosen, np.float64).view(np.int64)
            else:
                cells[of_kind] = chosen
        return cells

    def _code(self, text: str) -> int:
        return self._codes.setdefault(text, len(self._codes))

    def _one_of(self, items: Iterable[Scalar], kinds: Kinds, cells: Cells) -> Mask:
        """Which rows have one of the items as their value."""
        wanted: dict[int, list[Any]] = {_TEXT: [], _BOOL: [], _NULL: [], _INT: [], _FLOAT: []}
        for item in items:
            if isinstance(item, str):
                wanted[_TEXT].append(self._codes.get(scalar_key(item), -1))
            elif isinstance(item, bool):
                wanted[_BOOL].append(int(item))
            elif item is None:
                wanted[_NULL].append(0)
            else:
                if int(item) == item and MIN_INT <= item <= MAX_INT:
                    wanted[_INT].append(int(item))
                if float(item) == item:
                    wanted[_FLOAT].append(float(item))
        found: Mask | None = None
        for kind, values in wanted.items():
            if values:
                held = cells.view(np.float64) if kind == _FLOAT else cells
                same: Mask = held == values[0]
                if len(values) > 1:
                    same = np.isin(held, np.array(values, held.dtype))
                same &= kinds == kind
                found = same if found is None else np.logical_or(found, same, out=found)
        return np.zeros(len(kinds), bool) if found is None else found

    def _ordered(self, op: str, operand: float | str, kinds: Kinds, cells: Cells) -> Mask:
        """Which rows have a value of the operand's kind on one side of it."""
        compare, below = ORDERINGS[op], op in {"lt", "lte"}
        found: Mask
        if isinstance(operand, str):
            found = kinds == _TEXT
            passes = (compare(text, operand) for text in self._codes)
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
            ints: Mask = cells <= whole if below else cells >= whole
            floats = reals <= real if below else reals >= real
        ints &= kinds == _INT
        floats &= kinds == _FLOAT
        ints |= floats
        return ints


def _all(masks: Sequence[Mask]) -> Mask:
    """Where all masks hold, in the first one's place."""
    found = masks[0]
    for other in masks[1:]:
        found &= other
    return found


def _kinds(values: Sequence[Any]) -> Kinds:
    """The kinds of values under a field."""
    return np.fromiter(map(_kind, values), np.uint8, len(values))


def _kind(value: Any) -> int:
    if type(value) in _KINDS:
        return _KINDS[type(value)]
    # An object, or a subclass of another type.
    return next((kind for one, kind in _KINDS.items() if isinstance(value, one)), _OTHER)


def _different(items: Sequence[Any]) -> Iterable[Scalar]:
    """The scalars of a list, each once."""
    return {scalar_key(one): one for one in items if not isinstance(one, list | dict)}.values()


@dataclass(frozen=True, slots=True)
class Tally:
    """Values of some rows, and of the items of their lists, each once for a row."""

    count: int  # rows that have the field
    kinds: Kinds
    cells: Cells
    texts: Sequence[str]  # by code

    def facet(self, field: str, limit: int) -> Facet:
        """What the rows have under the field, with the `limit` most frequent values."""
        numbers, texts = self._numbers(), self.texts_used()
        flags = np.bincount(self.cells[self.kinds == _BOOL], minlength=2).tolist()
        others: list[tuple[Scalar, int]] = [(False, flags[0]), (True, flags[1])]
        others.append((None, int(np.count_nonzero(self.kinds == _NULL))))
        others = [(value, count) for value, count in others if count]
        # Of equally frequent values texts come first, then numbers, then the others.
        top = [*_top_texts(texts, limit), *_top_numbers(numbers, limit), *others]
        top.sort(key=lambda one: -one[1])
        ends = [one.item() for values, _ in numbers if len(values) for one in values[[0, -1]]]
        dates = all(map(is_date, texts)) if texts else False
        return Facet(
            field=field,
            count=self.count,
            distinct=len(texts) + sum(len(values) for values, _ in numbers) + len(others),
            values=tuple(FacetValue(value, count) for value, count in top[:limit]),
            numbers=(min(ends), max(ends)) if ends else None,
            dates=(min(texts), max(texts)) if dates else None,
        )

    def texts_used(self) -> dict[str, int]:
        """Each text, and how many rows have it."""
        counts = np.bincount(self.cells[self.kinds == _TEXT], minlength=len(self.texts))
        if len(counts) and counts.all():
            return dict(zip(self.texts, counts.tolist(), strict=True))
        used = np.flatnonzero(counts)
        names = map(self.texts.__getitem__, used.tolist())
        return dict(zip(names, counts[used].tolist(), strict=True))

    def _numbers(self) -> list[tuple[NDArray[Any], NDArray[np.int64]]]:
        """Whole numbers, and others; each ascending, with how many rows have it."""
        whole = self.cells[self.kinds == _INT]
        reals = self.cells[self.kinds == _FLOAT].view(np.float64)
        is_whole = (reals == np.trunc(reals)) & (reals >= MIN_INT) & (reals < MAX_INT)
        whole = np.concatenate([whole, reals[is_whole].astype(np.int64)])
        return [np.unique(values, return_counts=True) for values in (whole, reals[~is_whole])]


def _top_texts(counts: Mapping[str, int], limit: int) -> list[tuple[str, int]]:
    """The most frequent texts, best first; those that are too long to be listed are left out."""
    listed = [(-count, text) for text, count in counts.items() if len(text) <= MAX_LISTED]
    return [(text, -count) for count, text in heapq.nsmallest(limit, listed)]


def _top_numbers(
    numbers: Iterable[tuple[NDArray[Any], NDArray[np.int64]]], limit: int
) -> list[tuple[Scalar, int]]:
    """The most frequent numbers, best first; of equally frequent ones the smallest first."""
    top: list[tuple[int, float]] = []
    for values, counts in numbers:
        places = np.argsort(-counts, kind="stable")[:limit]
        top += zip((-counts[places]).tolist(), values[places].tolist(), strict=True)
    return [(value, -count) for count, value in sorted(top)[:limit]]
