"""The filter language."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lookalike.errors import InvalidFilterError
from lookalike.records import canonical_json
from lookalike.store.filters import (
    LISTS,
    MAX_CONDITIONS,
    MAX_ITEMS,
    OPERATORS,
    Filter,
    Kind,
    doubts,
    parse_filter,
)
from lookalike.store.local.catalog import Changes
from lookalike.store.local.columns import Columns
from tests import plain_filters

CASES: list[tuple[Any, Any, bool]] = [
    ({}, {}, True),
    ({"a": "x"}, {"a": "x"}, True),
    ({"a": "x"}, {"a": "y"}, False),
    ({"a": "x"}, {}, False),
    ({"a": {"ne": "x"}}, {}, False),
    ({"a": {"ne": "x"}}, {"a": ["x"]}, False),
    ({"a": {"ne": "x"}}, {"a": ["y", 1]}, True),
    ({"a": {"ne": "x"}}, {"a": []}, True),
    ({"a": {"ne": "x"}}, {"a": {"b": "x"}}, True),
    ({"a": {"ne": "x"}}, {"a": None}, True),
    ({"a": 1}, {"a": True}, False),
    ({"a": True}, {"a": 1}, False),
    ({"a": True}, {"a": True}, True),
    ({"a": False}, {"a": True}, False),
    ({"a": 1}, {"a": 1.0}, True),
    ({"a": 0.1}, {"a": 0.1}, True),
    ({"a": "1"}, {"a": 1}, False),
    ({"a": None}, {"a": None}, True),
    ({"a": None}, {"a": 0}, False),
    ({"a": None}, {}, False),
    ({"a": {"gte": 10, "lt": 50}}, {"a": 10}, True),
    ({"a": {"gte": 10, "lt": 50}}, {"a": 50}, False),
    ({"a": {"gt": 10}}, {"a": "11"}, False),
    ({"a": {"gt": 0}}, {"a": True}, False),
    ({"a": {"gt": "2026-01-31"}}, {"a": "2026-02-01"}, True),
    ({"a": {"lte": "a"}}, {"a": "B"}, True),
    ({"a": {"in": ["x", 1]}}, {"a": 1.0}, True),
    ({"a": {"in": ["x", 1]}}, {"a": True}, False),
    ({"a": {"in": [None, True]}}, {"a": None}, True),
    ({"a": {"in": []}}, {"a": 1}, False),
    ({"a": {"in": ["x"]}}, {"a": ["x"]}, True),
    ({"a": {"in": ["x"]}}, {"a": ["y", "z"]}, False),
    ({"a": "x"}, {"a": ["y", "x"]}, True),
    ({"a": "x"}, {"a": [["x"]]}, False),
    ({"a": "x"}, {"a": []}, False),
    ({"a": True}, {"a": [1, "true"]}, False),
    ({"a": None}, {"a": [1, None]}, True),
    ({"a": {"gt": 3}}, {"a": [1, 4]}, True),
    ({"a": {"gt": 3}}, {"a": [1, "4", True, None, [4]]}, False),
    ({"a": {"gte": 10, "lt": 50}}, {"a": [5, 60]}, False),
    ({"a": {"gte": 10, "lt": 50}}, {"a": [5, 60, 49.5]}, True),
    ({"and": [{"a": {"gte": 10}}, {"a": {"lt": 50}}]}, {"a": [5, 60]}, True),
    ({"a": {"gte": "2026-01", "lt": "2026-02"}}, {"a": ["2025-12-31", "2026-01-31"]}, True),
    ({"a": {"in": [1, 2], "gt": 1}}, {"a": [1, 3]}, False),
    ({"a": {"gt": 1, "ne": 3}}, {"a": [2, 3]}, False),
    ({"a": {"nin": ["x", 1]}}, {"a": 1.0}, False),
    ({"a": {"nin": ["x", 1]}}, {"a": True}, True),
    ({"a": {"nin": ["x", 1]}}, {"a": ["x"]}, False),
    ({"a": {"nin": ["x", 1]}}, {"a": ["y", True]}, True),
    ({"a": {"nin": ["x", 1]}}, {}, False),
    ({"a": {"nin": [None]}}, {"a": None}, False),
    ({"a": {"nin": [0.1]}}, {"a": 0.1}, False),
    ({"a": {"nin": []}}, {"a": None}, True),
    ({"a": {"contains": "x"}}, {"a": ["y", "x"]}, True),
    ({"a": {"contains": "x"}}, {"a": "x"}, False),
    ({"a": {"contains": 1}}, {"a": [True]}, False),
    ({"a": {"contains": 0.5}}, {"a": [[0.5], 0.5]}, True),
    ({"a": {"contains": None}}, {"a": [None]}, True),
    ({"a": {"eq": 9007199254740993}}, {"a": 9007199254740992.0}, False),
    ({"a.b": 1, '$."x"': 2}, {"a.b": 1, '$."x"': 2}, True),
    ({"a": {"exists": True}}, {"a": None}, True),
    ({"a": {"exists": True}}, {}, False),
    ({"a": {"exists": False}}, {}, True),
    ({"a": {"exists": False}}, {"a": []}, False),
    ({"a": {"exists": False, "eq": 1}}, {}, False),
    ({"a": {"exists": True, "lt": 3}}, {"a": 2}, True),
    ({"or": [{"a": 1}, {"b": 1}]}, {"b": 1}, True),
    ({"or": [{"a": 1}, {"b": 1}]}, {"a": 2}, False),
    ({"or": [{"a": 1}, {"b": 1}], "c": 1}, {"a": 1}, False),
    ({"and": [{"or": [{"a": 1}, {"a": 2}]}, {"not": {"b": 1}}]}, {"a": 2}, True),
    ({"and": [{"a": 1}, {"b": 1}]}, {"a": 1, "b": 2}, False),
    ({"not": {"a": 1}}, {}, True),
    ({"not": {"a": 1}}, {"a": 1}, False),
    ({"not": {"a": 1, "b": 1}}, {"a": 1}, True),
    ({"not": {"not": {"a": 1}}}, {"a": 1}, True),
    ({"not": {"or": [{"a": 1}, {"b": 1}]}}, {"b": 1}, False),
    # Fields that are named as what combines filters
    ({"or": "x", "and": 1, "not": None}, {"or": "x", "and": 1, "not": None}, True),
    ({"or": {"in": ["x", "y"]}}, {"or": "y"}, True),
    ({"and": {"exists": False}}, {}, True),
    # Fields inside of objects
    ({"size.w": 3}, {"size": {"w": 3}}, True),
    ({"size.w": {"exists": False}}, {"size": {"h": 3}}, True),
    ({"size.w": {"exists": False}}, {"size": 3}, True),
    ({"size": {"exists": True}}, {"size": {}}, True),
    ({"size.w": 3}, {"size.w": 4, "size": {"w": 3}}, False),
    ({"a.b.c": 1}, {"a.b": {"c": 1}, "a": {"b": {"c": 2}, "b.c": 3}}, True),
    ({"a.b.c": 1}, {"a.b": {"d": 1}, "a": {"b": {"c": 2}, "b.c": 1}}, True),
    ({"a.b.c": 1}, {"a.b": 1, "a": {"b": {"c": 1}}}, True),
    ({"a.": 1, ".": 2, ".b": 3}, {"a": {"": 1}, "": {"": 2, "b": 3}}, True),
    ({"box.w": {"gt": 5}}, {"box": [{"w": 1}, 7, {"w": 6}]}, True),
    ({"box.w": {"gt": 5, "lt": 6}}, {"box": [{"w": 1}, {"w": 9}]}, False),
    ({"box.tags": "x"}, {"box": [{"tags": ["y"]}, {"tags": ["x"]}]}, True),
    ({"box.tags": {"contains": "x"}}, {"box": [{"tags": "x"}]}, True),
    ({"box.w": {"exists": True}}, {"box": [{"h": 1}, 3]}, False),
    # One text in two forms of Unicode
    ({"\u00e9.\u00e9": 1}, {"e\u0301": {"e\u0301": 1}}, True),
    ({"\u00e9": 1}, {"e\u0301": 2, "\u00e9": 1}, True),
    ({"\u00e9": 1}, {"\u00e9": 1, "e\u0301": 2}, True),
    ({"caf\u00e9": "\u00e9"}, {"cafe\u0301": "e\u0301"}, True),
    ({"cafe\u0301": "e\u0301"}, {"caf\u00e9": "\u00e9"}, True),
    ({"a": {"in": ["\u00e9"]}}, {"a": ["e\u0301"]}, True),
    ({"a": {"gte": "\u00e9"}}, {"a": "e\u0301"}, True),
    ({"a.\u00e9": 1}, {"a": {"e\u0301": 1}}, True),
    ({"a": {"ne": "\u00e9"}}, {"a": "e\u0301"}, False),
    ({'"\\\u0001é': '\u0001"\\é\U0001f600'}, {'"\\\u0001é': '\u0001"\\é\U0001f600'}, True),
]


def passes_in_columns(where: Filter, metadata: Any) -> bool:
    columns = Columns(np.empty(0, np.int64), 0, where.fields)
    columns.apply(Changes(added=[(1, metadata)]), 1)
    found = columns.passing(where)
    assert found is not None
    return bool(len(found))


@pytest.mark.parametrize(("where", "metadata", "expected"), CASES)
def test_what_passes(where: Any, metadata: Any, expected: bool) -> None:
    parsed = Filter.parse(where)
    assert parsed.matches(metadata) is expected
    assert passes_in_columns(parsed, metadata) is expected


def nested(depth: int) -> Any:
    """A filter inside of so many others."""
    where: Any = {"a": 1}
    for _ in range(depth):
        where = {"not": where}
    return where


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
NUMBERS = (
    st.integers(-(2**63), 2**63 - 1)
    | st.integers(-2, 2)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([0.1, 0.3, 1e23, 8.41e21, 5e-324, 1.7976931348623157e308, -0.0, 2.0**63])
)
SCALARS = st.none() | st.booleans() | NUMBERS | TEXT
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(TEXT, SCALARS, max_size=1)


@st.composite
def filters_and_metadata(draw: st.DrawFn) -> tuple[Any, Any]:
    """A filter whose operands often are, or nearly are, what the metadata holds."""
    metadata = draw(st.dictionaries(st.sampled_from(["a", 'q"\\']) | TEXT, VALUES, max_size=3))
    near = [v for v in metadata.values() if not isinstance(v, list | dict)]
    near += [v for held in metadata.values() if isinstance(held, list) for v in held]
    near += [v * (1 + 2**-52) for v in near if isinstance(v, float) and abs(v) < 1e300]
    scalar = (st.sampled_from(near) | SCALARS) if near else SCALARS
    fields = st.sampled_from([*metadata, "a"])
    conditions: dict[str, Any] = {}
    for field in draw(st.lists(fields, max_size=3, unique=True)):
        op = draw(st.sampled_from(OPERATORS))
        orderable = scalar.filter(
            lambda v: isinstance(v, str | int | float) and v not in (True, False)
        )
        if op in LISTS:
            conditions[field] = {op: draw(st.lists(scalar, max_size=4))}
        elif op == "exists":
            conditions[field] = {op: draw(st.booleans())}
        else:
            conditions[field] = {op: draw(orderable if op[0] in "gl" else scalar)}
    return conditions, metadata


@settings(max_examples=250, deadline=None, derandomize=True, database=None)
@given(filters_and_metadata())
@example(({"a": {"lt": 1e23}}, {"a": 9.999999999999999e22}))
def test_columns_agree_with_python(drawn: tuple[Any, Any]) -> None:
    where, metadata = Filter.parse(drawn[0]), json.loads(canonical_json(drawn[1]))
    assert where.matches(metadata) == plain_filters.passes(drawn[0], metadata)
    assert passes_in_columns(where, metadata) == where.matches(metadata)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(plain_filters.FILTERS, st.lists(plain_filters.METADATA, min_size=1, max_size=5))
def test_every_form_agrees_with_a_plain_evaluation(wanted: Any, rows: list[Any]) -> None:
    where = Filter.parse(wanted)
    expected = [plain_filters.passes(wanted, metadata) for metadata in rows]
    assert [where.matches(metadata) for metadata in rows] == expected
    columns = Columns(np.empty(0, np.int64), 0, where.fields)
    columns.apply(Changes(added=list(enumerate(rows))), 1)
    found = columns.passing(where, after=-1)
    assert found is not None
    assert found.tolist() == np.flatnonzero(expected).tolist()


def test_the_largest_filter_is_answered() -> None:
    many = {f"f{n}": {"in": list(range(MAX_ITEMS))} for n in range(MAX_CONDITIONS)}
    assert passes_in_columns(Filter.parse(many), {f"f{n}": 7 for n in range(MAX_CONDITIONS)})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([], "JSON object"),
        ("label", "JSON object"),
        ({"a": {}}, "no condition"),
        ({"a": {"like": "x"}}, "use one of eq, ne"),
        ({"a": {1: "x"}}, "no operator"),
        ({"a": {"$gte": 1}}, "write `gte`"),
        ({"a": {"<=": 1}}, "write `lte`"),
        ({"a": {"not_in": [1]}}, "write `nin`"),
        ({"a": {"w": 3}}, "inside of an object write 'a.w'"),
        ({"a": {"not": {"eq": 1}}}, 'write `not` around the field: {"not": {"a": ...}}'),
        ({"a": {"or": [1, 2]}}, 'write {"or": [{"a": ...}, ...]}'),
        ({"a": {"exists": 1}}, "takes true"),
        ({"a": {"exists": None}}, "takes true"),
        ({"or": []}, "list of 1 to 32 filters"),
        ({"or": {"a": 1}}, 'write {"or": [{"label": "cat"}, '),
        ({"and": {"a": 1, "in": [1]}}, 'write {"and": [{"label": "cat"}, '),
        ({"and": [{}] * 33}, "list of 1 to 32 filters"),
        ({"and": ["x"]}, "JSON object"),
        ({"not": [{"a": 1}]}, 'write {"not": {"or": [...]}}'),
        ({"not": {}}, "names no field"),
        ({"not": {"exists": True}}, "names no field"),
        ({"$or": [{"a": 1}]}, 'write {"or": '),
        ({"AND": [{"a": 1}]}, 'write {"and": '),
        ({"must": [{"a": 1}]}, 'write {"and": '),
        ({"must_not": [{"a": 1}]}, 'write {"not": {"or": [...]}}'),
        ({"$not": {"a": 1}}, 'write {"not": {"or": [...]}}'),
        ({"or": [{"a": n} for n in range(32)]}, "at most 32"),
        ({"and": [{"or": [{"a": n}]} for n in range(17)]}, "at most 32"),
        (nested(8), "at most 8 levels"),
        (nested(100_000), "at most 8 levels"),
        ({"a": ["x"]}, '{"in": '),
        ({"a": {"eq": {"b": 1}}}, "compared with text"),
        ({"a": {"in": "x"}}, "list of at most 1000"),
        ({"a": {"in": [1] * 1001}}, "list of at most 1000"),
        ({"a": {"in": [["x"]]}}, "compared with text"),
        ({"a": {"gt": True}}, "takes a number or a text"),
        ({"a": {"lt": None}}, "takes a number or a text"),
        ({"a": 2**63}, "signed 64 bit"),
        ({"a": float("nan")}, "not finite"),
        ({"a": float("inf")}, "not finite"),
        ({"a": "x\0"}, "NUL"),
        ({"a": "\ud800"}, "surrogate"),
        ({"a": "x" * 4097}, "4096"),
        ({"a\0": 1}, "field is named"),
        ({"x" * 257: 1}, "field is named"),
        ({1: 1}, "field is named"),
        ({f"f{n}": 1 for n in range(33)}, "at most 32"),
    ],
)
def test_what_is_no_filter(value: Any, text: str) -> None:
    with pytest.raises(InvalidFilterError, match=re.escape(text)):
        Filter.parse(value)


def test_the_deepest_filter_is_answered() -> None:
    assert Filter.parse(nested(7)).matches({"a": 1}) is False
    assert Filter.parse(nested(6)).matches({"a": 1}) is True


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1, "b": 2, "a": 3}', "'a' is there twice"),
        ('{"a": {"gt": 1, "gt": 2}}', "'gt' is there twice"),
        ('{"a": {"ne": 1, "ne": 2}}', re.escape('{"and": [{...}, {...}]}')),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_what_is_no_text_of_a_filter(text: str, reason: str) -> None:
    with pytest.raises(InvalidFilterError, match=reason):
        parse_filter(text)


HELD = {
    "n": {Kind.NUMBER},
    "t": {Kind.TEXT, Kind.LIST},
    "o": {Kind.OBJECT},
    "f": {Kind.BOOLEAN, Kind.NULL},
    "no": set[Kind](),
}


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"n": 1, "t": "x", "f": None}, []),
        ({"n": {"in": [1, 2.5], "ne": None}}, []),
        ({"t": {"contains": "x"}, "o": {"exists": True}}, []),
        ({"not": {"or": [{"no": 1}, {"n": 1}]}}, ["No picture has the field 'no'"]),
        ({"no": {"exists": False}}, ["No picture has the field 'no'"]),
        ({"n": "1"}, ["'n' is compared with text, but holds numbers alone, and a number never"]),
        (
            {"t": {"gte": 1}},
            ["'t' is compared with numbers, but holds text and lists alone, and a"],
        ),
        ({"n": {"nin": ["1", 1]}}, ["'n' is compared with text"]),
        ({"n": True}, ["'n' is compared with true or false, but holds numbers alone"]),
        ({"n": None}, ['write {"n": {"exists": false}} for pictures without it']),
        ({"o": 1}, ['for a field inside of it write "o.NAME"']),
        ({"n": {"contains": 1}}, ["no picture has a list under 'n': write {\"n\": ...}"]),
    ],
)
def test_what_is_doubted(where: Any, expected: list[str]) -> None:
    found = doubts(Filter.parse(where), HELD)
    assert len(found) == len(expected)
    for text, part in zip(found, expected, strict=True):
        assert part in text
    assert doubts(None, HELD, others=["n", "no"]) == ["No picture has the field 'no'"]
