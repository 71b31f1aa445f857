"""A picture's metadata, and the filter language: a JSON object over it.

`{"label": "cat", "price": {"gte": 10, "lt": 50}}`: all conditions hold together; `and`, `or` and
`not` combine filters. A boolean is no number, numbers compare with numbers and text with text.
docs/filters.md describes the language; `Filter.matches` defines it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import operator
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import EllipsisType
from typing import Any

from lookalike.errors import InvalidFilterError, InvalidMetadataError, MetadataTooLargeError
from lookalike.records import Metadata, canonical_json, composed, nfc

MAX_METADATA_BYTES = 65_536
"""Default bound on a picture's metadata, in bytes of its canonical JSON."""

MAX_DEPTH = 16
MIN_INT, MAX_INT = -(2**63), 2**63 - 1
_DATE = re.compile(
    r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])([T ]\d\d:\d\d[\d:.,+Z -]{0,24})?\Z", re.ASCII
)
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def check_metadata(value: Any, max_bytes: int = MAX_METADATA_BYTES) -> dict[str, Any]:
    """Gives decoded JSON back as metadata that every store can hold, its texts composed (NFC).

    That is a JSON object: integers within signed 64 bit, finite numbers, strings and keys without
    NUL and without lone surrogates, at most 16 levels deep. Anything else raises
    `InvalidMetadataError`; more than `max_bytes` of canonical JSON `MetadataTooLargeError`.
    """
    if not isinstance(value, dict):
        raise InvalidMetadataError('Metadata must be a JSON object, e.g. {"label": "cat"}')
    _check_object(value, depth=1)
    metadata: dict[str, Any] = composed(value)
    size = len(canonical_json(metadata).encode())
    if size > max_bytes:
        raise MetadataTooLargeError(f"The metadata has {size} bytes; at most {max_bytes} are kept")
    return metadata


def merge_patch(target: Metadata, patch: Metadata) -> dict[str, Any]:
    """JSON merge patch (RFC 7396): given keys are set, objects merged, null removes a key."""
    merged = {nfc(key): value for key, value in target.items()}
    for key, value in composed(patch).items():
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

MISSING = ...
"""Stands for the value of a field that is not there."""

MAX_CONDITIONS = 32
MAX_NESTED = 8
MAX_ITEMS = 1000
MAX_FIELD_LENGTH = 256
MAX_TEXT_LENGTH = 4096
MAX_NAMED_FIELDS = 64
MAX_FIELDS = 256  # of one picture that facets count
ORDERINGS: Mapping[str, Callable[[Any, Any], bool]] = {
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}
LISTS = ("in", "nin")  # the operators that take a list
OPERATORS = ("eq", "ne", *ORDERINGS, *LISTS, "contains", "exists")
OF_ITEMS = frozenset(("eq", "in", *ORDERINGS))
"""Operators that one item of a list has to meet, all of one condition together."""
DIFFERS = "differs"
"""Whether a value itself is none of some; a list is none. Searches by groups use it."""


class Kind(StrEnum):
    """What a metadata field may hold."""

    TEXT = "text"
    NUMBER = "numbers"
    BOOLEAN = "true or false"
    NULL = "null"
    LIST = "lists"
    OBJECT = "objects"


_KINDS: Mapping[type, Kind] = {
    str: Kind.TEXT,
    bool: Kind.BOOLEAN,
    int: Kind.NUMBER,
    float: Kind.NUMBER,
    type(None): Kind.NULL,
    list: Kind.LIST,
}


def scalar_key(value: Scalar) -> Any:
    """A key that is equal for equal scalars; true equals no number, and 1 equals 1.0."""
    if isinstance(value, str):
        return nfc(value)
    return (value,) if isinstance(value, bool) else value


def value_of(metadata: Metadata, field: str) -> Any:
    """The value under a field; `MISSING` if there is none.

    `a.b` is the key `a.b`, or else `b` in the object under `a`: where several ways lead somewhere,
    the longest first key wins. Below a list of objects, it is the list of what they have there.
    """
    if field in metadata:
        return metadata[field]
    held = metadata
    if not field.isascii():  # keys that were stored in another form of Unicode
        held = {**{nfc(key): one for key, one in reversed(list(held.items()))}, **held}
    found = held.get(field, MISSING)
    ends = [place for place, char in enumerate(field) if char == "."]
    while found is MISSING and ends:
        end = ends.pop()
        inner, rest = held.get(field[:end], MISSING), field[end + 1 :]
        if isinstance(inner, Mapping):
            found = value_of(inner, rest)
        elif isinstance(inner, list):
            found = _value_of_items(inner, rest)
    return found


def _value_of_items(items: Iterable[Any], field: str) -> Any:
    found: list[Any] = []
    objects = (item for item in items if isinstance(item, Mapping))
    values = [value for item in objects if (value := value_of(item, field)) is not MISSING]
    for value in values:
        found += value if isinstance(value, list) else [value]
    return found if values else MISSING


def fields_of(metadata: Metadata) -> list[str]:
    """The first 256 fields, sorted, that hold something else than an object with fields."""
    found = {name for name in _leaves(metadata) if len(name) <= MAX_FIELD_LENGTH}
    return sorted(found)[:MAX_FIELDS]


def _leaves(metadata: Metadata) -> Iterator[str]:
    for key, value in metadata.items():
        items = value if isinstance(value, list) else [value]
        objects = [item for item in items if isinstance(item, Mapping) and item]
        if len(objects) < len(items) or not items:
            yield nfc(key)
        yield from (f"{nfc(key)}.{name}" for item in objects for name in _leaves(item))


def is_date(text: str) -> bool:
    """Whether a text is an ISO date, perhaps with a time: such texts sort as the dates do."""
    return _DATE.match(text) is not None


def kinds_of(value: Any) -> set[Kind]:
    """The kinds of a field's value and, if that is a list, of its items; none if it is missing."""
    if isinstance(value, EllipsisType):
        return set()
    if isinstance(value, list):
        return {Kind.LIST, *(_kind(item) for item in value if not isinstance(item, list | dict))}
    return {_kind(value)}


def _kind(value: Any) -> Kind:
    if type(value) in _KINDS:
        return _KINDS[type(value)]
    # An object, or a subclass of another type.
    return next((kind for one, kind in _KINDS.items() if isinstance(value, one)), Kind.OBJECT)


@dataclass(frozen=True, slots=True)
class Operation:
    """One operator with its operand: a scalar, for `in` and `nin` a tuple of scalars."""

    op: str  # one of `OPERATORS`, or `DIFFERS`
    operand: Scalar | tuple[Scalar, ...]
    _keys: frozenset[Any] = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Prepares the operand for look-ups: it is asked once for every picture."""
        object.__setattr__(self, "_keys", frozenset(map(scalar_key, self.operands)))

    @property
    def operands(self) -> tuple[Scalar, ...]:
        """What it compares with, one or many."""
        return self.operand if isinstance(self.operand, tuple) else (self.operand,)

    def holds(self, value: Any) -> bool:
        """Whether a field's value meets it; of `OF_ITEMS`, whether one item does."""
        if self.op == "exists":
            return bool(self.operand)
        if self.op in ORDERINGS:
            compare = ORDERINGS[self.op]
            if isinstance(self.operand, str):
                return isinstance(value, str) and compare(nfc(value), self.operand)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            return is_number and compare(value, self.operand)
        if self.op in OF_ITEMS:
            return self._is_one(value)
        if self.op == DIFFERS or not isinstance(value, list):
            return self.op != "contains" and not self._is_one(value)
        return any(map(self._is_one, value)) == (self.op == "contains")

    def _is_one(self, value: Any) -> bool:
        return not isinstance(value, list | dict) and scalar_key(value) in self._keys


@dataclass(frozen=True, slots=True)
class Condition:
    """What a field must meet: all of some operations. See `value_of` for the field."""

    field: str
    operations: tuple[Operation, ...]

    def matches(self, metadata: Metadata) -> bool:
        """Whether the condition holds for the metadata."""
        value = value_of(metadata, self.field)
        if value is MISSING:
            return all(one.op == "exists" and not one.operand for one in self.operations)
        of_items = [one for one in self.operations if one.op in OF_ITEMS]
        items = value if isinstance(value, list) else [value]
        return all(one.holds(value) for one in self.operations if one.op not in OF_ITEMS) and (
            not of_items or any(all(one.holds(item) for one in of_items) for item in items)
        )


@dataclass(frozen=True, slots=True)
class AnyOf:
    """At least one of some filters."""

    filters: tuple[Filter, ...]

    def matches(self, metadata: Metadata) -> bool:
        """Whether one of the filters lets the metadata pass."""
        return any(one.matches(metadata) for one in self.filters)


@dataclass(frozen=True, slots=True)
class Not:
    """What a filter does not let pass."""

    filter: Filter

    def matches(self, metadata: Metadata) -> bool:
        """Whether the filter does not let the metadata pass."""
        return not self.filter.matches(metadata)


@dataclass(frozen=True, slots=True)
class Filter:
    """Conditions that must all hold; none at all lets everything pass."""

    conditions: tuple[Condition | AnyOf | Not, ...] = ()

    @classmethod
    def parse(cls, value: Any) -> Filter:
        """Reads a decoded JSON object. Raises `InvalidFilterError`."""
        found = _parse(value, depth=1)
        if found.size > MAX_CONDITIONS:
            raise InvalidFilterError(
                f"A filter has at most {MAX_CONDITIONS} conditions, `or` and `not` counted; "
                'for one of many values write {"FIELD": {"in": [...]}}'
            )
        return found

    def matches(self, metadata: Metadata) -> bool:
        """Whether every condition holds for the metadata."""
        return all(condition.matches(metadata) for condition in self.conditions)

    @property
    def is_open(self) -> bool:
        """Whether it lets everything pass, because it asks for nothing."""
        return all(
            isinstance(one, AnyOf) and any(inner.is_open for inner in one.filters)
            for one in self.conditions
        )

    def walk(self) -> Iterator[Condition]:
        """All conditions on fields, those inside of `or` and `not` too."""
        for one in self.conditions:
            if isinstance(one, Condition):
                yield one
            else:
                for inner in one.filters if isinstance(one, AnyOf) else (one.filter,):
                    yield from inner.walk()

    @property
    def fields(self) -> list[str]:
        """The fields that it names, each once."""
        return list(dict.fromkeys(condition.field for condition in self.walk()))

    @property
    def size(self) -> int:
        """How many operations, `or` and `not` it has."""
        size = 0
        for one in self.conditions:
            if isinstance(one, Condition):
                size += len(one.operations)
            else:
                inner = one.filters if isinstance(one, AnyOf) else (one.filter,)
                size += 1 + sum(each.size for each in inner)
        return size


_WORDS = {"must": "and", "should": "or", "must_not": "not", "nor": "not"}
_SIGNS = {"=": "eq", "==": "eq", "!=": "ne", "<>": "ne", ">": "gt", ">=": "gte", "<": "lt"}
_SIGNS |= {"<=": "lte", "not_in": "nin", "notin": "nin", "any": "in", "match": "eq"}
_EXAMPLE = '[{"label": "cat"}, {"price": {"lt": 50}}]'


def _parse(value: Any, *, depth: int) -> Filter:
    if not isinstance(value, dict):
        raise InvalidFilterError('A filter must be a JSON object, e.g. {"label": "cat"}')
    if depth > MAX_NESTED:
        raise InvalidFilterError(f"A filter is nested at most {MAX_NESTED} levels deep")
    conditions: list[Condition | AnyOf | Not] = []
    for key, wanted in value.items():
        if key == "not" and isinstance(wanted, dict | list):
            conditions.append(Not(_parse_not(wanted, depth=depth)))
        elif key in {"and", "or"} and not _is_on_field(wanted):
            filters = _parse_filters(key, wanted, depth=depth)
            if key == "or":
                conditions.append(AnyOf(filters))
            else:
                conditions += (one for each in filters for one in each.conditions)
        else:
            conditions.append(_parse_field(key, wanted))
    return Filter(tuple(conditions))


def _is_on_field(wanted: Any) -> bool:
    """Whether `and` or `or` with this operand is a field of that name."""
    if isinstance(wanted, dict):
        return all(op in OPERATORS for op in wanted)
    return not isinstance(wanted, list)


def _parse_filters(word: str, wanted: Any, *, depth: int) -> tuple[Filter, ...]:
    if not isinstance(wanted, list) or not 0 < len(wanted) <= MAX_CONDITIONS:
        raise InvalidFilterError(
            f"`{word}` takes a list of 1 to {MAX_CONDITIONS} filters: "
            f'write {{"{word}": {_EXAMPLE}}}'
        )
    return tuple(_parse(one, depth=depth + 1) for one in wanted)


def _parse_not(wanted: Any, *, depth: int) -> Filter:
    if isinstance(wanted, list):
        raise InvalidFilterError(
            '`not` takes one filter: for none of several write {"not": {"or": [...]}}'
        )
    if all(op in OPERATORS for op in wanted):
        raise InvalidFilterError(
            "`not` takes a filter, and this one names no field: "
            'write {"not": {"label": "cat"}} or {"not": {"price": {"gte": 10}}}'
        )
    return _parse(wanted, depth=depth + 1)


def _parse_field(field: Any, wanted: Any) -> Condition:
    field = field_name(field)
    word = field.lstrip("$").lower()
    word = _WORDS.get(word, word)
    if word in {"and", "or", "not"} and word != field and isinstance(wanted, dict | list):
        instead = '{"not": {"or": [...]}}' if word == "not" else f'{{"{word}": {_EXAMPLE}}}'
        raise InvalidFilterError(f"{field!a} does not combine filters: write {instead}")
    if not isinstance(wanted, dict):
        return Condition(field, (Operation("eq", _scalar(field, wanted)),))
    if not wanted:
        raise InvalidFilterError(f"{field!r} has no condition: use one of {', '.join(OPERATORS)}")
    return Condition(
        field, tuple(Operation(op, _operand(field, op, value)) for op, value in wanted.items())
    )


def _operand(field: str, op: Any, value: Any) -> Scalar | tuple[Scalar, ...]:
    if op not in OPERATORS:
        raise _no_operator(field, op)
    if op in LISTS:
        if not isinstance(value, list) or len(value) > MAX_ITEMS:
            raise InvalidFilterError(
                f"`{op}` on {field!r} takes a list of at most {MAX_ITEMS} items"
            )
        return tuple(_scalar(field, item) for item in value)
    if op == "exists":
        if not isinstance(value, bool):
            raise InvalidFilterError(
                f"`exists` on {field!r} takes true (the field is there) or false (it is not)"
            )
        return value
    scalar = _scalar(field, value)
    if op in ORDERINGS and (scalar is None or isinstance(scalar, bool)):
        raise InvalidFilterError(f"`{op}` on {field!r} takes a number or a text")
    return scalar


def _no_operator(field: str, op: Any) -> InvalidFilterError:
    text = f"{ascii(op)[:80]} on {field!r} is no operator: "
    word = str(op).lstrip("$").lower()
    word = _SIGNS.get(word, word)
    if word in OPERATORS:
        return InvalidFilterError(text + f"write `{word}`")
    if word in {"not", "and", "or"}:
        return InvalidFilterError(
            text + f'write `{word}` around the field: {{"not": {{{json.dumps(field)}: ...}}}}'
            if word == "not"
            else text + f'write {{"{word}": [{{{json.dumps(field)}: ...}}, ...]}}'
        )
    return InvalidFilterError(
        text + f"use one of {', '.join(OPERATORS)}; for a field inside of an object write "
        f"{ascii(f'{field}.{op}')[:80]}"
    )


def _scalar(field: str, value: Any) -> Scalar:
    if isinstance(value, str):
        if storable_text(value) and len(value) <= MAX_TEXT_LENGTH:
            return nfc(value)
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
        value = json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as exc:
        raise InvalidFilterError(
            f'filter is not valid JSON ({exc}); send an object such as {{"label": "cat"}}'
        ) from exc
    return Filter.parse(value)


def _without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, of whose equal keys all but the last would be lost."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise InvalidFilterError(
                f"{ascii(key)[:80]} is there twice, and one of them would be ignored: write "
                'all operators on a field in one object, or {"and": [{...}, {...}]}'
            )
        found[key] = value
    return found


def parse_field_names(text: str | None) -> tuple[str, ...]:
    """Reads names of metadata fields, separated by commas. Raises `InvalidFilterError`."""
    names = tuple(dict.fromkeys(part.strip() for part in (text or "").split(",") if part.strip()))
    if len(names) > MAX_NAMED_FIELDS:
        raise InvalidFilterError(
            f"{len(names)} fields are named; at most {MAX_NAMED_FIELDS} can be"
        )
    return tuple(map(field_name, names))


def field_name(field: Any) -> str:
    """A field's name as it is looked up. Raises `InvalidFilterError`."""
    if not isinstance(field, str) or not storable_text(field) or len(field) > MAX_FIELD_LENGTH:
        raise InvalidFilterError(
            f"A field is named by a text of at most {MAX_FIELD_LENGTH} characters without NUL "
            "and without lone surrogates"
        )
    return nfc(field)


def doubts(
    where: Filter | None, kinds: Mapping[str, Collection[Kind]], *, others: Iterable[str] = ()
) -> list[str]:
    """What of a filter cannot match: fields that no picture has, and values of another kind.

    `kinds` has what the pictures hold under each field that the filter, or `others`, names.
    """
    conditions = list(where.walk()) if where else []
    named = dict.fromkeys([*(condition.field for condition in conditions), *others])
    found = [f"No picture has the field {name!r}" for name in named if not kinds[name]]
    for condition in conditions:
        held = kinds[condition.field]
        for one in condition.operations if held else ():
            if one.op == "contains" and Kind.LIST not in held:
                found.append(
                    f"`contains` is for lists, and no picture has a list under "
                    f"{condition.field!r}: write {{{json.dumps(condition.field)}: ...}}"
                )
            elif one.op != "exists":
                found += _mismatches(condition.field, one, held)
    return list(dict.fromkeys(found))


def _mismatches(field: str, one: Operation, held: Collection[Kind]) -> Iterator[str]:
    for operand in one.operands:
        kind = _kind(operand)
        if kind in held or (kind is Kind.NULL and one.op in {"ne", "nin"}):
            continue
        has = " and ".join(name for name in Kind if name in held)
        text = f"{field!r} is compared with {kind}, but holds {has} alone"
        if kind is Kind.NULL:
            text += f': write {{{json.dumps(field)}: {{"exists": false}}}} for pictures without it'
        elif Kind.OBJECT in held:
            text += f": for a field inside of it write {json.dumps(field + '.NAME')}"
        elif {kind, *held} >= {Kind.TEXT, Kind.NUMBER}:
            text += ", and a number never equals a text"
        yield text
