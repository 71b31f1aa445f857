"""A picture's metadata, and the filter language: a JSON object over it.

`{"label": "cat"}`, `{"price": {"gte": 10, "lt": 50}}`, `{"tag": {"in": ["a", "b"]}}`: all
conditions hold together. A field that is missing never matches, a boolean is no number, numbers
compare with numbers and text with text.
"""

from __future__ import annotations

import dataclasses
import json
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lookalike.errors import InvalidFilterError, InvalidMetadataError, MetadataTooLargeError
from lookalike.records import Metadata, canonical_json

MAX_METADATA_BYTES = 65_536
"""Default bound on a picture's metadata, in bytes of its canonical JSON."""

MAX_DEPTH = 16
MIN_INT, MAX_INT = -(2**63), 2**63 - 1
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def check_metadata(value: Any, max_bytes: int = MAX_METADATA_BYTES) -> dict[str, Any]:
    """Gives decoded JSON back as metadata that every store can hold.

    That is a JSON object: integers within signed 64 bit, finite numbers, strings and keys without
    NUL and without lone surrogates, at most 16 levels deep. Anything else raises
    `InvalidMetadataError`; more than `max_bytes` of canonical JSON `MetadataTooLargeError`.
    """
    if not isinstance(value, dict):
        raise InvalidMetadataError('Metadata must be a JSON object, e.g. {"label": "cat"}')
    _check_object(value, depth=1)
    size = len(canonical_json(value).encode())
    if size > max_bytes:
        raise MetadataTooLargeError(f"The metadata has {size} bytes; at most {max_bytes} are kept")
    return value


def merge_patch(target: Metadata, patch: Metadata) -> dict[str, Any]:
    """JSON merge patch (RFC 7396): given keys are set, objects merged, null removes a key."""
    merged = dict(target)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            old = merged.get(key)
            merged[key] = merge_patch(old if isinstance(old, Mapping) else {}, value)
        else:
            merged[key] = value
    return merged


def storable_text(text: str) -> bool:
    """Whether every store can hold the text: no NUL, no lone surrogates."""
    return _UNSTORABLE.search(text) is None


def storable_number(number: float) -> bool:
    """Whether every store can hold the number: signed 64 bit, or finite."""
    if isinstance(number, int):
        return MIN_INT <= number <= MAX_INT
    return math.isfinite(number)


def _check_object(value: dict[Any, Any], *, depth: int) -> None:
    for key, item in value.items():
        if not isinstance(key, str) or not storable_text(key):
            raise InvalidMetadataError(
                f"The key {ascii(key)[:80]} cannot be stored: keys are text without NUL and "
                "without lone surrogates"
            )
        _check_value(item, key=key, depth=depth)


def _check_value(value: Any, *, key: str, depth: int) -> None:
    if isinstance(value, dict | list) and depth >= MAX_DEPTH:
        raise InvalidMetadataError(f"Metadata is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        _check_object(value, depth=depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_value(item, key=key, depth=depth + 1)
    elif isinstance(value, str):
        if not storable_text(value):
            raise InvalidMetadataError(f"The text under {key!r} holds NUL or a lone surrogate")
    elif isinstance(value, int | float):
        if not storable_number(value):
            raise InvalidMetadataError(
                f"The number under {key!r} is not finite, or beyond signed 64 bit"
            )
    elif value is not None:
        raise InvalidMetadataError(f"The value under {key!r} is not JSON")


Scalar = str | int | float | bool | None
"""What a condition compares with."""

MAX_CONDITIONS = 32
MAX_ITEMS = 1000
MAX_FIELD_LENGTH = 256
MAX_TEXT_LENGTH = 4096
MAX_NAMED_FIELDS = 64
ORDERINGS: Mapping[str, Callable[[Any, Any], bool]] = {
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}
LISTS = ("in", "nin")  # the operators that take a list
OPERATORS = ("eq", "ne", *ORDERINGS, *LISTS, "contains")
_MISSING = object()


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition on one field: a key of the metadata object, taken literally.

    `op` is one of `OPERATORS`; the operand is a scalar, for `in` and `nin` a tuple of scalars.
    """

    field: str
    op: str
    operand: Scalar | tuple[Scalar, ...]
    _items: frozenset[Any] = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Prepares the operand for look-ups: it is asked once for every picture."""
        items = self.operand if isinstance(self.operand, tuple) else (self.operand,)
        object.__setattr__(self, "_items", frozenset(map(scalar_key, items)))

    def matches(self, metadata: Metadata) -> bool:
        """Whether the condition holds for the metadata."""
        value = metadata.get(self.field, _MISSING)
        return value is not _MISSING and self._holds(value)

    def _holds(self, value: Any) -> bool:
        if self.op == "contains":
            return isinstance(value, list) and any(map(self._is_item, value))
        if self.op in ORDERINGS:
            compare = ORDERINGS[self.op]
            if isinstance(self.operand, str):
                return isinstance(value, str) and compare(value, self.operand)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            return is_number and compare(value, self.operand)
        return self._is_item(value) == (self.op in {"eq", "in"})

    def _is_item(self, value: Any) -> bool:
        return not isinstance(value, list | dict) and scalar_key(value) in self._items


@dataclass(frozen=True, slots=True)
class Filter:
    """Conditions that must all hold; none at all lets everything pass."""

    conditions: tuple[Condition, ...] = ()

    @classmethod
    def parse(cls, value: Any) -> Filter:
        """Reads a decoded JSON object. Raises `InvalidFilterError`."""
        if not isinstance(value, dict):
            raise InvalidFilterError('A filter must be a JSON object, e.g. {"label": "cat"}')
        conditions: list[Condition] = []
        for field, wanted in value.items():
            conditions.extend(_parse_field(field, wanted))
        if len(conditions) > MAX_CONDITIONS:
            raise InvalidFilterError(f"A filter has at most {MAX_CONDITIONS} conditions")
        return cls(tuple(conditions))

    def matches(self, metadata: Metadata) -> bool:
        """Whether every condition holds for the metadata."""
        return all(condition.matches(metadata) for condition in self.conditions)


def scalar_key(value: Scalar) -> Any:
    """A key that is equal for equal scalars; true equals no number, and 1 equals 1.0."""
    return (value,) if isinstance(value, bool) else value


def _parse_field(field: Any, wanted: Any) -> list[Condition]:
    _check_field(field)
    if not isinstance(wanted, dict):
        return [Condition(field, "eq", _scalar(field, wanted))]
    if not wanted:
        raise InvalidFilterError(f"{field!r} has no condition: use one of {', '.join(OPERATORS)}")
    return [Condition(field, op, _operand(field, op, value)) for op, value in wanted.items()]


def _operand(field: str, op: str, value: Any) -> Scalar | tuple[Scalar, ...]:
    if op not in OPERATORS:
        raise InvalidFilterError(
            f"{ascii(op)[:80]} on {field!r} is no operator: use one of {', '.join(OPERATORS)}"
        )
    if op in LISTS:
        if not isinstance(value, list) or len(value) > MAX_ITEMS:
            raise InvalidFilterError(
                f"`{op}` on {field!r} takes a list of at most {MAX_ITEMS} items"
            )
        return tuple(_scalar(field, item) for item in value)
    scalar = _scalar(field, value)
    if op in ORDERINGS and (scalar is None or isinstance(scalar, bool)):
        raise InvalidFilterError(f"`{op}` on {field!r} takes a number or a text")
    return scalar


def _scalar(field: str, value: Any) -> Scalar:
    if isinstance(value, str):
        if storable_text(value) and len(value) <= MAX_TEXT_LENGTH:
            return value
        raise InvalidFilterError(
            f"The text compared with {field!r} has more than {MAX_TEXT_LENGTH} characters, "
            "or holds NUL or a lone surrogate"
        )
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        if storable_number(value):
            return value
        raise InvalidFilterError(
            f"The number compared with {field!r} is not finite, or beyond signed 64 bit"
        )
    raise InvalidFilterError(
        f"{field!r} is compared with text, a number, true, false or null; "
        'for one of several use {"in": [...]}, for an item of a list {"contains": ...}'
    )


def parse_filter(text: str | None) -> Filter | None:
    """Reads a filter from JSON; an empty text is none. Raises `InvalidFilterError`."""
    if text is None or not text.strip():
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise InvalidFilterError(
            f'filter is not valid JSON ({exc}); send an object such as {{"label": "cat"}}'
        ) from exc
    return Filter.parse(value)


def parse_field_names(text: str | None) -> tuple[str, ...]:
    """Reads names of metadata fields, separated by commas. Raises `InvalidFilterError`."""
    names = tuple(dict.fromkeys(part.strip() for part in (text or "").split(",") if part.strip()))
    if len(names) > MAX_NAMED_FIELDS:
        raise InvalidFilterError(
            f"{len(names)} fields are named; at most {MAX_NAMED_FIELDS} can be"
        )
    for name in names:
        _check_field(name)
    return names


def _check_field(field: Any) -> None:
    if not isinstance(field, str) or not storable_text(field) or len(field) > MAX_FIELD_LENGTH:
        raise InvalidFilterError(
            f"A field is named by a text of at most {MAX_FIELD_LENGTH} characters without NUL "
            "and without lone surrogates"
        )
