"""Vectors of an extraction that has not ended, written as they come.

```
pending.vectors    rows of dim little-endian float32
pending.jsonl      a line for each: {"id", "sha256", "size", "mtime_ns", "ctime_ns", "row", "crc32"}
```

A line is written after its row, and its `crc32` covers the sha256 and the row: so a kill loses at
most the picture that was being written, and what is torn or damaged is not believed. `row` and
`crc32` are null where the content's vector was known already.
"""

from __future__ import annotations

import json
import os
import zlib
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.evaluation.datasets.base import Stamp
from lookalike.evaluation.vector_files import Row

_VECTORS = "pending.vectors"
_LINES = "pending.jsonl"


class PendingVectors:
    """The vectors that were made so far, and those that come.

    Attributes:
        contents: Digest and stamp of each picture that was read, by its id.
        rows: Where the vector of a content is, by its digest.

    Args:
        folder: Where the two files are, or will be. Nobody else may write there.
        dim: Numbers in a vector.

    Raises:
        OSError: The disk refuses, here and in every method.
    """

    def __init__(self, folder: Path, *, dim: int) -> None:
        self._paths = folder / _VECTORS, folder / _LINES
        self._dim = dim
        self.contents: dict[str, tuple[str, Stamp]] = {}
        self.rows: dict[str, int] = {}
        with ExitStack() as opened:
            for path in self._paths:
                path.touch()
            self._vectors = opened.enter_context(self._paths[0].open("r+b"))
            self._lines = opened.enter_context(self._paths[1].open("r+b"))
            self._read()
            self._opened = opened.pop_all()

    def add(self, row: Row, vector: NDArray[np.float32] | None) -> None:
        """Writes one picture, with its vector, (dim,) float32, unless its content's is known."""
        line: dict[str, Any] = {"id": row.id, "sha256": row.sha256, **row.stamp._asdict()}
        line |= {"row": None, "crc32": None}
        if vector is not None:
            data = vector.astype("<f4").tobytes()
            self._vectors.write(data)
            self._vectors.flush()
            line |= {"row": self._count, "crc32": _crc32(row.sha256, data)}
            self.rows[row.sha256] = self._count
            self._count += 1
        self._lines.write(json.dumps(line).encode() + b"\n")
        self._lines.flush()
        self.contents[row.id] = row.sha256, row.stamp

    def vector(self, sha256: str) -> NDArray[np.float32]:
        """The vector of a content, (dim,) float32."""
        return np.frombuffer(self._row(self.rows[sha256]), dtype="<f4")

    def close(self) -> None:
        """Closes the files, which stay."""
        self._opened.close()

    def discard(self) -> None:
        """Closes and removes the files."""
        self.close()
        for path in self._paths:
            path.unlink(missing_ok=True)

    def _read(self) -> None:
        """Takes what is whole, and makes ready to write behind it."""
        for line in self._lines:
            with suppress(ValueError, KeyError, TypeError, OverflowError, OSError):
                self._take(json.loads(line))
        self._count = max(self.rows.values(), default=-1) + 1
        self._vectors.truncate(self._count * 4 * self._dim)
        self._vectors.seek(0, os.SEEK_END)
        if self._lines.seek(0, os.SEEK_END):
            self._lines.write(b"\n")  # the last line may have been cut short

    def _take(self, line: dict[str, Any]) -> None:
        """Believes a line whose row is there as it was written."""
        sha256, row = line["sha256"], line["row"]
        if row is not None:
            if _crc32(sha256, self._row(row)) != line["crc32"]:
                return
            self.rows[sha256] = row
        self.contents[line["id"]] = sha256, Stamp(line["size"], line["mtime_ns"], line["ctime_ns"])

    def _row(self, row: int) -> bytes:
        return os.pread(self._vectors.fileno(), 4 * self._dim, row * 4 * self._dim)


def _crc32(sha256: str, data: bytes) -> int:
    return zlib.crc32(data, zlib.crc32(sha256.encode()))
