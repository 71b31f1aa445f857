"""A picture's metadata: what can be stored, how it is written, how it is merged."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from lookalike.errors import InvalidMetadataError, MetadataTooLargeError
from lookalike.records import Metadata

MAX_METADATA_BYTES = 65_536
"""Default bound on a picture's metadata, in bytes of its canonical JSON."""

MAX_DEPTH = 16
MIN_INT, MAX_INT = -(2**63), 2**63 - 1
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def check_metadata(value: Any, max_bytes: int = MAX_METADATA_BYTES) -> dict[str, Any]:
    """Gives decoded JSON back as metadata that every store can hold.

    Args:
        value: A JSON object: integers within signed 64 bit, finite numbers, strings and keys
            without NUL and without lone surrogates, at most 16 levels deep.
        max_bytes: Bound on its canonical JSON in UTF-8.

    Raises:
        InvalidMetadataError: It is something else.
        MetadataTooLargeError: It has more bytes.
    """
    if not isinstance(value, dict):
        raise InvalidMetadataError('Metadata must be a JSON object, e.g. {"label": "cat"}')
    _check_object(value, depth=1)
    size = len(canonical_json(value).encode())
    if size > max_bytes:
        raise MetadataTooLargeError(f"The metadata has {size} bytes; at most {max_bytes} are kept")
    return value


def canonical_json(metadata: Metadata) -> str:
    """One text for equal metadata: sorted keys, no spaces; true and 1 stay apart."""
    return json.dumps(
        metadata, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    )


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
