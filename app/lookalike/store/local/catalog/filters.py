"""Filters as SQL over the metadata column; `Filter.matches` is their definition."""

# ruff: noqa: S608 - only constants go into the SQL texts, every value is bound

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from typing import Any

from lookalike.store.filters import ORDERINGS, Condition, Filter, Scalar, kind_of

FUNCTION = "condition_holds"
"""The SQL name of `holds`."""

Sql = tuple[str, list[Any]]
"""An expression and the values of its question marks."""

_SYMBOLS = dict(zip(ORDERINGS, (">", ">=", "<", "<="), strict=True))
_BAND = 1e-12


def filter_sql(where: Filter | None) -> Sql:
    """An expression over a row of `images`, true where the filter lets it pass."""
    parts = [_condition_sql(condition) for condition in where.conditions] if where else []
    return _joined(" AND ", [("1", []), *parts])


def holds(metadata: str, condition: str) -> bool:
    """One condition on one row, in Python: SQL calls it for a number with a fraction.

    SQLite reads decimals into doubles with an error in the last place now and then, so a stored
    fraction that comes close to what it is compared with is decided here.
    """
    return _read_condition(condition).matches(json.loads(metadata))


def _condition_sql(condition: Condition) -> Sql:
    test, values = _test_sql(condition)
    return (
        f"EXISTS (SELECT 1 FROM json_each(images.metadata) AS f WHERE f.key = ? AND ({test}))",
        [condition.field, *values],
    )


def _test_sql(condition: Condition) -> Sql:
    operand = condition.operand
    if isinstance(operand, tuple):
        test, values = _any_of("f", operand, Condition(condition.field, "in", operand))
        return (f"NOT ({test})", values) if condition.op == "nin" else (test, values)
    if condition.op == "contains":
        test, values = _any_of("e", (operand,), condition)
        return (
            f"f.type = 'array' AND EXISTS (SELECT 1 FROM json_each(f.value) AS e WHERE {test})",
            values,
        )
    if condition.op in ORDERINGS:
        return _ordering(condition, operand)
    test, values = _any_of("f", (operand,), Condition(condition.field, "eq", operand))
    return (f"NOT ({test})", values) if condition.op == "ne" else (test, values)


def _any_of(alias: str, items: Iterable[Scalar], condition: Condition) -> Sql:
    """True where the value `alias` is one of the items; fractions ask `condition` itself."""
    kinds: dict[str, list[Any]] = {}
    for item in items:
        kinds.setdefault(kind_of(item), []).append(item)
    parts: list[Sql] = [("0", [])]
    if texts := kinds.get("text"):
        parts.append((f"{alias}.type = 'text' AND {alias}.atom IN ({_marks(texts)})", texts))
    if numbers := kinds.get("number"):
        parts.append((f"{alias}.type = 'integer' AND {alias}.atom IN ({_marks(numbers)})", numbers))
        low, high = _band(min(numbers), max(numbers))
        near = f"{alias}.type = 'real' AND {alias}.atom BETWEEN ? AND ?"
        asked = f"{near} AND {FUNCTION}(images.metadata, ?)"
        parts.append((asked, [low, high, _write(condition)]))
    names = ["true" if item else "false" for item in kinds.get("boolean", [])]
    names += ["null"] * ("null" in kinds)
    parts.extend((f"{alias}.type = '{name}'", []) for name in sorted(set(names)))
    return _joined(" OR ", parts)


def _ordering(condition: Condition, operand: Scalar) -> Sql:
    symbol = _SYMBOLS[condition.op]
    if isinstance(operand, str):
        return f"f.type = 'text' AND f.atom {symbol} ?", [operand]
    assert isinstance(operand, int | float)
    low, high = _band(operand, operand)
    sql = (
        f"(f.type = 'integer' AND f.atom {symbol} ?) OR (f.type = 'real' AND "
        f"CASE WHEN f.atom BETWEEN ? AND ? THEN {FUNCTION}(images.metadata, ?) "
        f"ELSE f.atom {symbol} ? END)"
    )
    return sql, [operand, low, high, _write(condition), operand]


def _band(low: float, high: float) -> tuple[float, float]:
    """Where a fraction that SQLite read may in truth lie between, or be one of, low and high."""
    return low - max(abs(low) * _BAND, 1e-300), high + max(abs(high) * _BAND, 1e-300)


def _joined(word: str, parts: list[Sql]) -> Sql:
    sql = word.join(f"({sql})" for sql, _ in parts)
    return sql, [value for _, values in parts for value in values]


def _marks(items: list[Any]) -> str:
    return ", ".join("?" * len(items))


def _write(condition: Condition) -> str:
    return json.dumps([condition.field, condition.op, condition.operand])


@functools.lru_cache(maxsize=64)
def _read_condition(text: str) -> Condition:
    field, op, operand = json.loads(text)
    return Condition(field, op, tuple(operand) if isinstance(operand, list) else operand)
