"""Conditions of a filter as stretches of the field index; `Filter.matches` is their definition."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from lookalike.store.filters import Condition, Filter, Scalar, kind_of

KEPT = 64
"""Characters of a text that the index keeps."""

KINDS = {"null": 0, "boolean": 1, "number": 2, "text": 3, "other": 4}
_ITEM = 8
_MOST_PAIRS = 10_000

Key = tuple[int, Any]
"""A kind, and a value that orders as its metadata does: what one value is found under."""


@dataclass(frozen=True, slots=True)
class Span:
    """All keys of one kind between two values; None is no bound.

    Attributes:
        kind: One of `KINDS`, or that of an item in a list.
        low, high: The bounds.
        above, below: Whether the bound itself is left out.
    """

    kind: int
    low: Any = None
    high: Any = None
    above: bool = False
    below: bool = False

    def sql(self, field: int) -> tuple[str, list[Any]]:
        """An expression over `field_values` and its values."""
        bounds: list[tuple[str, Any]] = [("field =", field), ("kind =", self.kind)]
        if self.low is not None and self.low == self.high:
            bounds.append(("value =", self.low))
        else:
            if self.low is not None:
                bounds.append(("value >" if self.above else "value >=", self.low))
            if self.high is not None:
                bounds.append(("value <" if self.below else "value <=", self.high))
        return " AND ".join(f"{test} ?" for test, _ in bounds), [value for _, value in bounds]

    def meet(self, other: Span) -> Span | None:
        """What lies in both; None where nothing can."""
        if self.kind != other.kind:
            return None
        met = self
        if other.low is not None and (met.low is None or other.low >= met.low):
            same = met.low is not None and met.low == other.low
            met = replace(met, low=other.low, above=other.above or (same and met.above))
        if other.high is not None and (met.high is None or other.high <= met.high):
            same = met.high is not None and met.high == other.high
            met = replace(met, high=other.high, below=other.below or (same and met.below))
        if met.low is None or met.high is None:
            return met
        empty = met.low > met.high or (met.low == met.high and (met.above or met.below))
        return None if empty else met


@dataclass(frozen=True, slots=True)
class Lookup:
    """What the index says about one field.

    Attributes:
        field: The field's number.
        spans: Disjoint; a row that passes has one key in one of them.
        conditions: What is looked up.
        exact: Whether every row with a key there passes; otherwise each is looked at again.
    """

    field: int
    spans: tuple[Span, ...]
    conditions: tuple[Condition, ...]
    exact: bool


def keys_of(value: Any) -> set[Key]:
    """The keys of one field's value: its own, and those of the items of a list."""
    found = {_key(value)}
    if isinstance(value, list):
        found.update((_ITEM + kind, key) for kind, key in map(_key, value))
    return found


def lookups(where: Filter, fields: dict[str, int]) -> tuple[list[Lookup], list[Condition]]:
    """What the index of these fields can say about a filter, and the conditions it cannot.

    Conditions on a field's one value are looked up together; a list has a key for each item, so
    every `contains` is looked up by itself.

    Args:
        where: The filter.
        fields: The number of each field that is indexed.
    """
    listed: list[Lookup] = []
    found: dict[str, Lookup] = {}
    left: list[Condition] = []
    for condition in where.conditions:
        number = fields.get(condition.field)
        spans = None if number is None else _spans(condition)
        if number is None or spans is None:
            left.append(condition)
            continue
        one = Lookup(number, tuple(spans), (condition,), _decided(condition))
        if condition.op == "contains":
            listed.append(one)
        else:
            before = found.get(condition.field)
            found[condition.field] = _both(before, one) if before else one
    return [*found.values(), *listed], left


def _both(one: Lookup, other: Lookup) -> Lookup:
    """Two lookups of one field's value, of which each row has one."""
    if len(one.spans) * len(other.spans) > _MOST_PAIRS:  # the rows of one are asked for the other
        few = min(one, other, key=lambda lookup: len(lookup.spans))
        return replace(few, conditions=one.conditions + other.conditions, exact=False)
    met = (a.meet(b) for a in one.spans for b in other.spans)
    return Lookup(
        one.field,
        tuple(span for span in met if span is not None),
        one.conditions + other.conditions,
        one.exact and other.exact,
    )


def _spans(condition: Condition) -> list[Span] | None:
    """Where the rows are for which a condition may hold; None where that is anywhere."""
    operand, op = condition.operand, condition.op
    if isinstance(operand, tuple):
        keys = {_key(item) for item in operand}
        if op == "in":
            return [Span(kind, key, key) for kind, key in keys]
        return _between(keys) if _decided(condition) else None
    kind, key = _key(operand)
    if op in {"eq", "contains"}:
        kind += _ITEM if op == "contains" else 0
        return [Span(kind, key, key)]
    if not _decided(condition):
        return None
    below = Span(kind, high=key, below=op != "lte")
    above = Span(kind, low=key, above=op != "gte")
    if op == "ne":
        return [*(Span(one) for one in KINDS.values() if one != kind), below, above]
    return [below if op in {"lt", "lte"} else above]


def _between(keys: set[Key]) -> list[Span]:
    """Everything that lies beside these keys."""
    spans: list[Span] = []
    for kind in KINDS.values():
        inner = sorted(key for one, key in keys if one == kind)
        for low, high in zip([None, *inner], [*inner, None], strict=True):
            spans.append(Span(kind, low, high, above=low is not None, below=high is not None))
    return spans


def _decided(condition: Condition) -> bool:
    """Whether keys say all: two texts have one key only where they are long."""
    operand = condition.operand
    items: tuple[Scalar, ...] = operand if isinstance(operand, tuple) else (operand,)
    return not any(isinstance(item, str) and len(item) >= KEPT for item in items)


def _key(value: Any) -> Key:
    kind = KINDS[kind_of(value)]
    if isinstance(value, str):
        return kind, value[:KEPT]
    return kind, value if kind == KINDS["number"] else int(value is True)
