"""A collection as a Parquet file, which pandas, DuckDB, Spark and others read.

One row for each picture, oldest first, with these columns:

```
id, sha256, filename, media_type     text
width, height, bytes                 64-bit integers
metadata                             text: a JSON object
source                               text or null: the file that is referred to in place
path                                 text or null: where it was indexed from, below `root`
places                               text: all such places, a JSON list of {"root", "path"}
created_at, updated_at, collection   text
vector                               list of float32, of length 1
```

The file's own metadata has the key `lookalike`: a JSON object with `format`, `product`, and the
facts of `Exported`. A reader passes over columns that it does not know.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lookalike import __version__
from lookalike.errors import BackupError, LookalikeError
from lookalike.extras import require_extra
from lookalike.progress import TaskEndedError
from lookalike.records import ImageRecord, canonical_json
from lookalike.store.base import Page

FORMAT = 1
_KEY = b"lookalike"
_NUMBERS = ("width", "height", "bytes")
_TEXTS = (
    *("id", "sha256", "filename", "media_type", "metadata", "source"),
    *("path", "places", "created_at", "updated_at", "collection"),
)
_ROWS = 1024  # read at once

Rows = list[dict[str, Any]]


def write_parquet(file: BinaryIO, pages: Iterable[Page], facts: Mapping[str, Any]) -> None:
    """Writes pages with their vectors, each as a row group, so that memory stays small.

    Raises `ConfigurationError` if the extra `parquet` is not installed.
    """
    pa, pq = _pyarrow("an export as Parquet")
    held = {"format": FORMAT, "product": __version__, **facts}
    fields = [pa.field(name, pa.string()) for name in _TEXTS]
    fields += [pa.field(name, pa.int64()) for name in _NUMBERS]
    fields.append(pa.field("vector", pa.list_(pa.float32())))
    schema = pa.schema(fields, metadata={_KEY: json.dumps(held)})
    texts = [name for name in _TEXTS if name not in {"id", "sha256"}]
    how = {"compression": "zstd", "use_dictionary": texts, "write_page_checksum": True}
    with pq.ParquetWriter(file, schema, **how) as writer:
        for page in pages:
            writer.write_table(_table(pa, schema, page))


def _table(pa: Any, schema: Any, page: Page) -> Any:
    rows = [_row(record) for record in page.records]
    columns = [pa.array([row[name] for row in rows], pa.string()) for name in _TEXTS]
    columns += [pa.array([row[name] for row in rows], pa.int64()) for name in _NUMBERS]
    ends = np.arange(len(rows) + 1, dtype=np.int32) * page.vectors.shape[1]
    columns.append(pa.ListArray.from_arrays(ends, pa.array(page.vectors.ravel())))
    return pa.Table.from_arrays(columns, schema=schema)


def _row(record: ImageRecord) -> dict[str, Any]:
    places = json.dumps([asdict(place) for place in record.places])
    texts = {"metadata": canonical_json(record.metadata), "path": record.path, "places": places}
    return asdict(record) | texts


class ParquetExport:
    """A file that `write_parquet` made, or a stranger.

    Raises:
        ConfigurationError: The extra `parquet` is not installed.
        BackupError: It is no such file.
    """

    def __init__(self, path: Path) -> None:
        _, pq = _pyarrow("an import of Parquet")
        self._path = path
        with self._errors():
            self._file = pq.ParquetFile(path, page_checksum_verification=True)
            self.facts = json.loads(self._file.schema_arrow.metadata[_KEY])
            number = int(self.facts["format"])
            self.count = int(self._file.metadata.num_rows)
        if number > FORMAT:
            raise BackupError(
                f"{path} was written by Lookalike {self.facts['product']!s:.40}, in a format that "
                "this version does not know; use that version or a later one"
            )

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def rows(self) -> Iterator[tuple[Rows, NDArray[np.float32]]]:
        """Rows as JSON objects, some at a time, and their vectors: (N, dim) float32."""
        columns = [*_TEXTS, *_NUMBERS, "vector"]
        with self._errors():
            known = [name for name in columns if name in self._file.schema_arrow.names]
            for batch in self._file.iter_batches(batch_size=_ROWS, columns=known):
                vectors = self._vectors(batch.column("vector"), batch.num_rows)
                rows = batch.select([name for name in known if name != "vector"]).to_pylist()
                for row in rows:
                    row["metadata"] = json.loads(row["metadata"])
                    row["place"], *row["others"] = json.loads(row.get("places") or "[]") or [None]
                yield rows, vectors

    def _vectors(self, column: Any, count: int) -> NDArray[np.float32]:
        lengths = set(column.value_lengths().to_pylist())
        if column.null_count or len(lengths) > 1 or None in lengths:
            raise BackupError(f"{self._path}: the vectors are not all of one length")
        flat = column.flatten().to_numpy(zero_copy_only=False)
        return np.ascontiguousarray(flat.reshape(count, -1), dtype=np.float32)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Whatever the library raises over a broken file becomes an error of ours."""
        try:
            yield
        except (LookalikeError, TaskEndedError, GeneratorExit):
            raise
        except Exception as exc:
            raise BackupError(
                f"{self._path} is no export of Lookalike, or it is damaged ({exc!s:.200})"
            ) from exc


def _pyarrow(doing: str) -> tuple[Any, Any]:
    require_extra("parquet", doing)
    import pyarrow as pa  # noqa: PLC0415 - an extra
    import pyarrow.parquet as pq  # noqa: PLC0415

    return pa, pq
