"""Collections as files that other programs read: JSON lines, and where they lie.

The sidecar holds one JSON object a line, for each picture one, oldest first, in UTF-8:

```
{"collection": "default", "id": "p1", "sha256": "9f86...", "filename": "a.jpg",
 "media_type": "image/jpeg", "width": 640, "height": 480, "bytes": 52114,
 "metadata": {"label": "cat"}, "source": null,
 "created_at": "2026-01-31T12:00:00.000Z", "updated_at": "2026-01-31T12:00:00.000Z"}
```

These are the fields of `ImageRecord`. A reader takes those that it knows; one with a default may be
missing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import TypeAdapter, ValidationError

from lookalike.errors import BackupError, LookalikeError
from lookalike.files.disk import disk_errors
from lookalike.media.decode import MEDIA_TYPES
from lookalike.records import ImageRecord, check_collection_name, check_id
from lookalike.store.filters import check_metadata, storable_text

_MAX_METADATA = 1_000_000  # bytes; the highest that the setting allows
_MAX_LINE = 4 * _MAX_METADATA
_MAX_NUMBER = 2**53
_DIGEST = re.compile(r"[0-9a-f]{64}")
_RECORDS = TypeAdapter(ImageRecord)


def write_sidecar(records: Iterable[ImageRecord], file: BinaryIO) -> int:
    """Writes one line for each picture; returns how many."""
    count = 0
    for count, record in enumerate(records, start=1):  # noqa: B007 - the last is the answer
        file.write(json.dumps(asdict(record), ensure_ascii=False).encode() + b"\n")
    return count


def read_sidecar(path: Path) -> Iterator[ImageRecord]:
    """The pictures of a sidecar, in its order; a line is checked before it is given.

    Raises:
        BackupError: A line is no picture; the text names it.
        StorageError: The file cannot be read.
    """
    with disk_errors(f"read {path}"), path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE), b""), start=1):
            if line.strip():
                try:
                    yield read_record(json.loads(line))
                except (ValueError, RecursionError, LookalikeError) as exc:
                    raise BackupError(f"{path}, line {number}: {exc}") from exc


def read_record(values: Any) -> ImageRecord:
    """One picture from JSON that a stranger may have written.

    Raises:
        BackupError: A field is missing, of another type, or out of its range.
        LookalikeError: The id, the collection or the metadata cannot be stored.
    """
    try:
        record = _RECORDS.validate_python(values)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the line"
        raise BackupError(f"{field}: {first['msg']}") from exc
    check_id(record.id)
    check_collection_name(record.collection)
    check_metadata(dict(record.metadata), max_bytes=_MAX_METADATA)
    if not _DIGEST.fullmatch(record.sha256):
        raise BackupError("sha256 is no SHA-256 in lower-case hex")
    if record.media_type not in MEDIA_TYPES.values():
        raise BackupError(f"{record.media_type[:80]!r} is no type of pictures that are read here")
    if not all(storable_text(text) for text in (record.filename, record.source or "")):
        raise BackupError("a name holds characters that cannot be stored")
    sizes = (record.width, record.height, record.bytes)
    if not 1 <= min(sizes) <= max(sizes) < _MAX_NUMBER:
        raise BackupError("width, height or bytes are out of range")
    return record
