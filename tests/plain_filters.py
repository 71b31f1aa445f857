"""Filters, facets and kinds evaluated slowly and plainly, and strategies that draw filters."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

from lookalike.records import MAX_FACETS, Facet, Facets, FacetValue
from lookalike.store.filters import Kind

ORDERINGS: dict[str, Callable[[Any, Any], bool]] = {
    "gt": lambda left, right: left > right,
    "gte": lambda left, right: left >= right,
    "lt": lambda left, right: left < right,
    "lte": lambda left, right: left <= right,
}


def composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def found(metadata: Any, field: str) -> list[Any]:
    """The value under a field as the only item of a list; an empty list if it is not there."""
    parts = field.split(".")
    for size in range(len(parts), 0, -1):
        head, rest = ".".join(parts[:size]), ".".join(parts[size:])
        keys = sorted(metadata, key=lambda key: key != head)  # the same form comes first
        key = next((key for key in keys if composed(key) == composed(head)), None)
        if key is None:
            continue
        value = metadata[key]
        if size == len(parts):
            return [value]
        if isinstance(value, dict) and (inner := found(value, rest)):
            return inner
        if isinstance(value, list):
            inner = [one for item in value if isinstance(item, dict) for one in found(item, rest)]
            if inner:
                flat: list[Any] = []
                for one in inner:
                    flat.extend(one if isinstance(one, list) else [one])
                return [flat]
    return []


def kind(value: Any) -> Kind:
    if isinstance(value, bool):
        return Kind.BOOLEAN
    if isinstance(value, int | float):
        return Kind.NUMBER
    if isinstance(value, str):
        return Kind.TEXT
    if isinstance(value, list):
        return Kind.LIST
    return Kind.NULL if value is None else Kind.OBJECT


def equal(left: Any, right: Any) -> bool:
    if kind(left) != kind(right) or kind(left) in {Kind.LIST, Kind.OBJECT}:
        return False
    return composed(left) == composed(right) if isinstance(left, str) else bool(left == right)


def orders(op: str, left: Any, right: Any) -> bool:
    if kind(left) != kind(right) or kind(left) not in {Kind.TEXT, Kind.NUMBER}:
        return False
    if isinstance(left, str):
        left, right = composed(left), composed(right)
    return ORDERINGS[op](left, right)


def passes(where: Mapping[str, Any], metadata: Mapping[str, Any]) -> bool:
    """Whether metadata passes a filter, as it is in JSON."""
    return all(_holds(key, wanted, metadata) for key, wanted in where.items())


def _holds(key: str, wanted: Any, metadata: Mapping[str, Any]) -> bool:
    if key == "and" and isinstance(wanted, list):
        return all(passes(one, metadata) for one in wanted)
    if key == "or" and isinstance(wanted, list):
        return any(passes(one, metadata) for one in wanted)
    if key == "not" and isinstance(wanted, dict):
        return not passes(wanted, metadata)
    operators = dict(wanted) if isinstance(wanted, dict) else {"eq": wanted}
    return _meets(found(metadata, key), operators)


def _meets(values: list[Any], operators: dict[str, Any]) -> bool:
    """Whether a field's value, or no value, meets all operators."""
    if "exists" in operators and operators.pop("exists") != bool(values):
        return False
    if not operators or not values:
        return not operators
    (value,) = values
    items = value if isinstance(value, list) else [value]
    refused = [*operators.get("nin", ()), *(operators[op] for op in ("ne",) if op in operators)]
    if any(equal(item, one) for one in refused for item in items):
        return False
    for wanted in (operators[op] for op in ("contains",) if op in operators):
        if not isinstance(value, list) or not any(equal(item, wanted) for item in value):
            return False
    for_one = [one for one in operators.items() if one[0] not in {"ne", "nin", "contains"}]
    return not for_one or any(all(_is(item, *one) for one in for_one) for item in items)


def _is(item: Any, op: str, operand: Any) -> bool:
    if op == "eq":
        return equal(item, operand)
    if op == "in":
        return any(equal(item, one) for one in operand)
    return orders(op, item, operand)


def kinds(rows: Iterable[Mapping[str, Any]], field: str) -> frozenset[Kind]:
    """What rows hold under a field."""
    held = set()
    for value in (value for row in rows for value in found(row, field)):
        held.add(kind(value))
        items = value if isinstance(value, list) else []
        held |= {kind(item) for item in items if not isinstance(item, list | dict)}
    return frozenset(held)


def leaves(metadata: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The fields of one picture."""
    for key, value in metadata.items():
        name = prefix + composed(key)
        items = value if isinstance(value, list) else [value]
        if not items or any(not isinstance(item, dict) or not item for item in items):
            yield name
        for item in items:
            if isinstance(item, dict):
                yield from leaves(item, name + ".")


def facets(
    rows: Sequence[Mapping[str, Any]], fields: Sequence[str] | None = None, limit: int = 10
) -> Facets:
    """What rows hold under some fields."""
    total = Counter(name for row in rows for name in set(leaves(row)) if len(name) <= 256)
    if fields is None:
        names = sorted(total, key=lambda name: (-total[name], name))[:MAX_FACETS]
        return Facets(count=len(rows), fields=len(total), facets=_facets(rows, names, limit))
    return Facets(count=len(rows), fields=len(fields), facets=_facets(rows, fields, limit))


def _facets(rows: Sequence[Mapping[str, Any]], names: Iterable[str], limit: int) -> list[Facet]:
    return [_facet(rows, name, limit) for name in names]


def _facet(rows: Sequence[Mapping[str, Any]], field: str, limit: int) -> Facet:
    held = [value for row in rows for value in found(row, field)]
    counts: Counter[Any] = Counter()
    for value in held:
        items = value if isinstance(value, list) else [value]
        counts.update({_countable(item) for item in items if not isinstance(item, list | dict)})
    ranked = sorted(
        (one for one in counts if not isinstance(one[1], str) or len(one[1]) <= 256),
        key=lambda one: (-counts[one], one[0], one[1] is not None and one[1]),
    )
    numbers = [value for kind_, value in counts if kind_ == 1]
    texts = [value for kind_, value in counts if kind_ == 0]
    are_dates = all(
        re.match(r"\d{4}-[01]\d-[0-3]\d([T ]\d\d:\d\d[0-9:.,+Z -]*)?$", t, re.ASCII) for t in texts
    )
    return Facet(
        field=field,
        count=len(held),
        distinct=len(counts),
        values=tuple(FacetValue(one[1], counts[one]) for one in ranked[:limit]),
        numbers=(min(numbers), max(numbers)) if numbers else None,
        dates=(min(texts), max(texts)) if texts and are_dates else None,
    )


def _countable(item: Any) -> tuple[int, Any]:
    """A scalar with its kind: texts, numbers, truth values, null."""
    if isinstance(item, str):
        return 0, composed(item)
    if isinstance(item, bool):
        return 2, item
    if item is None:
        return 3, None
    return 1, int(item) if -(2**63) <= item < 2**63 and item == int(item) else item


# Strategies

FIELDS = ["a", "b", "s", "s.w", "s.w.x", "é", "or"]
SCALARS = [None, True, False, 0, 1, 1.0, 2, 2.5, -(2**63), 2**53 + 1, "", "x", "xy", "1", "é"]
SCALARS += ["e\u0301", "2026-01-31", "2026-02-01T10:00:00Z"]
_scalars = st.sampled_from(SCALARS)
_objects = st.dictionaries(
    st.sampled_from(["w", "w.x", "x"]), _scalars | st.lists(_scalars), max_size=2
)
VALUES = (
    _scalars
    | st.lists(_scalars | _objects | st.just([1]), max_size=3)
    | st.dictionaries(st.sampled_from(["w", "x"]), _scalars | _objects, max_size=2)
)
METADATA = st.dictionaries(
    st.sampled_from(["a", "b", "s", "s.w", "e\u0301", "é", "or"]), VALUES, max_size=3
)


@st.composite
def _conditions(draw: st.DrawFn) -> Any:
    def operand(op: str) -> st.SearchStrategy[Any]:
        if op in {"in", "nin"}:
            return st.lists(_scalars, max_size=3)
        if op == "exists":
            return st.booleans()
        if op in ORDERINGS:
            return st.sampled_from(
                [one for one in SCALARS if kind(one) in {Kind.TEXT, Kind.NUMBER}]
            )
        return _scalars

    ops = ["eq", "ne", *ORDERINGS, "in", "nin", "contains", "exists"]
    some = draw(st.lists(st.sampled_from(ops), max_size=3, unique=True))
    found: Any = {op: draw(operand(op)) for op in some}
    return found or draw(_scalars)


_leaf = st.dictionaries(st.sampled_from(FIELDS), _conditions(), min_size=1, max_size=2)
FILTERS: st.SearchStrategy[dict[str, Any]] = st.recursive(
    _leaf,
    lambda inner: st.one_of(
        st.fixed_dictionaries({"and": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"or": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"not": inner}),
        st.builds(lambda left, right: {**left, "not": right}, _leaf, inner),
    ),
    max_leaves=5,
)
"""Filters in JSON, in every form, over `METADATA`."""
