"""Ids, collection names, index types and cursors: what they may look like."""

from __future__ import annotations

import re

from lookalike.errors import (
    ConfigurationError,
    InvalidCollectionNameError,
    InvalidIdError,
    InvalidParameterError,
)

INDEX_TYPES = ("Flat",)
"""Index types that can be chosen; `Flat` is exact."""

MAX_SEQ = 2**63 - 1
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~-]{0,127}")
_COLLECTION = re.compile(r"[a-z][a-z0-9_]{0,62}")
_CURSOR = re.compile(r"c([0-9a-f]{1,16})")


def check_id(value: str) -> str:
    """Gives a picture's id back; raises `InvalidIdError` where it cannot be one."""
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise InvalidIdError(
            f"{_shown(value)} is no id: use 1 to 128 letters, digits or . _ ~ -, "
            "starting with a letter or digit"
        )
    return value


def check_collection_name(value: str) -> str:
    """Gives a collection's name back; raises `InvalidCollectionNameError` where it is none."""
    if not isinstance(value, str) or not _COLLECTION.fullmatch(value):
        raise InvalidCollectionNameError(
            f"{_shown(value)} is no collection name: use 1 to 63 lower-case letters, digits "
            "or _, starting with a letter"
        )
    return value


def check_index_type(name: str) -> str:
    """Gives an index type back; raises `ConfigurationError` where there is none of this name."""
    if name not in INDEX_TYPES:
        raise ConfigurationError(f"There is no index type {name!r}: use {', '.join(INDEX_TYPES)}")
    return name


def encode_cursor(seq: int) -> str:
    """The cursor that continues after the row `seq`."""
    return f"c{seq:x}"


def decode_cursor(cursor: str | None) -> int:
    """The row to continue after; 0 at the start. Raises `InvalidParameterError`."""
    if cursor is None:
        return 0
    found = _CURSOR.fullmatch(cursor)
    seq = int(found[1], 16) if found else MAX_SEQ + 1
    if seq > MAX_SEQ:
        raise InvalidParameterError(
            f"{_shown(cursor)} is no cursor: use the one that the previous page gave, or none"
        )
    return seq


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."
