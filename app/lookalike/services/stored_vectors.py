"""A collection as a vector set, for evaluation, maps and groups."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from PIL import Image

from lookalike.errors import InvalidParameterError
from lookalike.records import ImageRecord
from lookalike.services.pictures import PictureService
from lookalike.services.search import group_key
from lookalike.services.vector_set import Skipped, VectorSet
from lookalike.store.base import Store, unknown_collection
from lookalike.store.filters import Filter


def stored_vectors(
    store: Store,
    pictures: PictureService,
    collection: str,
    *,
    label_field: str | None = None,
    where: Filter | None = None,
) -> VectorSet:
    """Reads a collection's rows and vectors into memory.

    Args:
        store: Where they are.
        pictures: Opens the pictures.
        collection: Which collection.
        label_field: The metadata field that says what a picture shows; pictures without it are
            skipped. None for no labels.
        where: Only pictures that pass.

    Raises:
        CollectionNotFoundError: There is no such collection.
        InvalidParameterError: No picture has the field, or none passes.
    """
    info = next((one for one in store.collections() if one.name == collection), None)
    if info is None:
        raise unknown_collection(collection)
    records: list[ImageRecord] = []
    skipped: list[Skipped] = []
    fields: Counter[str] = Counter()
    vectors = np.empty((info.count, info.spec.dim), dtype=np.float32)
    for block in store.scan(collection, where=where):
        for record, vector in zip(block.records, block.vectors, strict=True):
            fields.update(record.metadata.keys())
            if label_field is not None and label_field not in record.metadata:
                skipped.append(Skipped(record.id, f"has no metadata field {label_field!r}"))
            elif len(records) < len(vectors):  # what came since it was counted is left out
                vectors[len(records)] = vector
                records.append(record)
    if not records:
        if where is not None and not skipped:
            raise InvalidParameterError(
                f"No picture of the collection {collection!r} passes the filter; widen it"
            )
        raise InvalidParameterError(_nothing(collection, label_field, fields))
    return VectorSet(
        name=collection,
        spec=info.spec,
        provenance=info.provenance,
        vectors=vectors[: len(records)],
        ids=[record.id for record in records],
        names=[record.filename for record in records],
        labels=None if label_field is None else [_label(r.metadata[label_field]) for r in records],
        sha256s=[record.sha256 for record in records],
        picture=_Reader(pictures, collection, [record.id for record in records]),
        skipped=skipped,
    )


class _Reader:
    """Opens a collection's pictures by position."""

    def __init__(self, pictures: PictureService, collection: str, ids: list[str]) -> None:
        self._pictures = pictures
        self._collection = collection
        self._ids = ids

    def __call__(self, position: int, *, size: int) -> Image.Image:
        """See `PictureReader`."""
        return self._pictures.open(self._collection, self._ids[position], size=size)


def _label(value: Any) -> str:
    return value if isinstance(value, str) else group_key(value)


def _nothing(collection: str, label_field: str | None, fields: Counter[str]) -> str:
    if label_field is None:
        return f"The collection {collection!r} is empty; index some pictures first"
    known = ", ".join(name for name, _ in fields.most_common(10)) or "none"
    return (
        f"No picture of the collection {collection!r} has the metadata field {label_field!r}; "
        f"the fields there are: {known}"
    )
