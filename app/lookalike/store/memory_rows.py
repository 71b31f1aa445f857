"""What the memory stores keep: plain dictionaries."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from lookalike.records import ImageRecord, ModelSpec, NewImage
from lookalike.store.embedding_sets import Recipe
from lookalike.store.filters import Filter


@dataclass(frozen=True, slots=True)
class Row:
    """One picture under the number that it got when it came."""

    seq: int
    record: ImageRecord


@dataclass(slots=True)
class HeldSet:
    """One embedding set: seq -> (dim,) float32."""

    spec: ModelSpec
    provenance: Mapping[str, str]
    recipe: Recipe | None = None
    vectors: dict[int, NDArray[np.float32]] = field(default_factory=dict)


@dataclass(slots=True)
class HeldCollection:
    """One collection: id -> row, and its sets in the order they were made."""

    created_at: str
    active: HeldSet
    sets: list[HeldSet]
    rows: dict[str, Row] = field(default_factory=dict)

    def passing(self, where: Filter | None) -> list[Row]:
        """The rows that pass, oldest first."""
        rows = [
            row for row in self.rows.values() if not where or where.matches(row.record.metadata)
        ]
        return sorted(rows, key=lambda row: row.seq)

    def remove(self, image_id: str) -> None:
        """Takes a row out, and its vectors of all sets."""
        seq = self.rows.pop(image_id).seq
        for held in self.sets:
            held.vectors.pop(seq, None)


@dataclass(slots=True)
class Held:
    """Everything that a memory store keeps, and the lock over it."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    collections: dict[str, HeldCollection] = field(default_factory=dict)
    last_seq: int = 0

    def refer(self, collection: str, image: NewImage) -> None:
        """See `Store.refer`."""
        with self.lock:
            held = self.collections.get(collection)
            row = held.rows.get(image.id) if held else None
            if held and row and row.record.sha256 == image.sha256:
                record = replace(row.record, source=image.source)
                held.rows[image.id] = replace(row, record=record)


def own(record: ImageRecord) -> ImageRecord:
    """A copy whose metadata nobody else can change."""
    return replace(record, metadata=copy.deepcopy(dict(record.metadata)))
