"""What can still be read of a catalog that is damaged, or belongs to other files."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from lookalike.store.local.rows import RECORD_FIELDS
from lookalike.store.sqlite import open_reader


def salvage(path: Path) -> Iterator[dict[str, Any]]:
    """Rows as the fields of `ImageRecord`, unchecked: from both ends up to where it is damaged."""
    if not path.is_file():
        return
    with suppress(sqlite3.Error, UnicodeDecodeError), closing(open_reader(path)) as reader:
        reader.text_factory = lambda text: text.decode("utf-8", "replace")
        names = dict(reader.execute("SELECT id, name FROM collections WHERE name NOT NULL"))
        last = 0
        for sql in ("seq > ? ORDER BY seq", "seq > ? ORDER BY seq DESC"):
            with suppress(sqlite3.Error):
                columns = ", ".join(("seq", "collection", *RECORD_FIELDS))
                rows = reader.execute(f"SELECT {columns} FROM images WHERE {sql}", (last,))  # noqa: S608 - only constants
                for seq, collection, *values in rows:
                    last = seq if "DESC" not in sql else last
                    if collection in names:
                        fields = dict(zip(RECORD_FIELDS, values, strict=True))
                        fields |= _places(reader, seq)
                        with suppress(ValueError):
                            fields["metadata"] = json.loads(fields["metadata"])
                            yield {"collection": names[collection], **fields}


def _places(reader: sqlite3.Connection, seq: int) -> dict[str, Any]:
    with suppress(sqlite3.Error):  # damaged, or of a version without this table
        sql = "SELECT root, path FROM places WHERE seq = ? ORDER BY place LIMIT 101"
        places = [{"root": root, "path": path} for root, path in reader.execute(sql, (seq,))]
        return {"place": places[0], "others": places[1:]} if places else {}
    return {}
