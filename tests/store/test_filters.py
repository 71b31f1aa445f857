"""The filter language."""

from __future__ import annotations

import json
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
)
from lookalike.store.local.catalog import Changes
from lookalike.store.local.columns import Columns

CASES: list[tuple[Any, Any, bool]] = [
    ({}, {}, True),
    ({"a": "x"}, {"a": "x"}, True),
    ({"a": "x"}, {"a": "y"}, False),
    ({"a": "x"}, {}, False),
    ({"a": {"ne": "x"}}, {}, False),
    ({"a": {"ne": "x"}}, {"a": ["x"]}, True),
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
    ({"a": {"in": ["x"]}}, {"a": ["x"]}, False),
    ({"a": {"nin": ["x", 1]}}, {"a": 1.0}, False),
    ({"a": {"nin": ["x", 1]}}, {"a": True}, True),
    ({"a": {"nin": ["x", 1]}}, {"a": ["x"]}, True),
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
    ({'"\\\u0001é': '\u0001"\\é\U0001f600'}, {'"\\\u0001é': '\u0001"\\é\U0001f600'}, True),
]


def passes_in_columns(where: Filter, metadata: Any) -> bool:
    columns = Columns(np.empty(0, np.int64), 0, {c.field for c in where.conditions})
    columns.apply(Changes(added=[(1, metadata)]), 1)
    found = columns.passing(where)
    assert found is not None
    return bool(len(found))


@pytest.mark.parametrize(("where", "metadata", "expected"), CASES)
def test_what_passes(where: Any, metadata: Any, expected: bool) -> None:
    parsed = Filter.parse(where)
    assert parsed.matches(metadata) is expected
    assert passes_in_columns(parsed, metadata) is expected


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
        else:
            conditions[field] = {op: draw(orderable if op[0] in "gl" else scalar)}
    return conditions, metadata


@settings(max_examples=1500, deadline=None, derandomize=True, database=None)
@given(filters_and_metadata())
@example(({"a": {"lt": 1e23}}, {"a": 9.999999999999999e22}))
def test_columns_agree_with_python(drawn: tuple[Any, Any]) -> None:
    where, metadata = Filter.parse(drawn[0]), json.loads(canonical_json(drawn[1]))
    assert passes_in_columns(where, metadata) == where.matches(metadata)


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
    with pytest.raises(InvalidFilterError, match=text.replace("{", r"\{")):
        Filter.parse(value)
