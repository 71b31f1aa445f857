"""Small collections to test stores with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lookalike.records import Match, Metadata, ModelSpec, NewImage, OnConflict, Place, PutOutcome
from lookalike.store.base import Capability, Store, spec_of

DIM = 8
SPEC = ModelSpec(model="tiny", weights="random", weights_sha256="0" * 64, dim=DIM)
OTHER_SPEC = ModelSpec(model="other", weights="random", weights_sha256="1" * 64, dim=DIM)


def unit_vectors(count: int, *, dim: int = DIM, seed: int = 0) -> NDArray[np.float32]:
    """(count, dim) float32, rows of length 1."""
    rows = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def new_image(
    image_id: str,
    *,
    content: str | None = None,
    metadata: Metadata | None = None,
    place: Place | None = None,
) -> NewImage:
    return NewImage(
        id=image_id,
        sha256=digest(content or image_id),
        filename=f"{image_id}.png",
        media_type="image/png",
        width=4,
        height=3,
        bytes=100,
        metadata=metadata,
        place=place,
    )


def put(
    store: Store,
    images: Sequence[NewImage],
    vectors: NDArray[np.float32],
    *,
    collection: str = "default",
    on_conflict: OnConflict = OnConflict.REPLACE,
) -> list[PutOutcome]:
    return store.upsert(
        collection,
        images,
        vectors,
        spec=SPEC,
        provenance={"precision": "float32"},
        on_conflict=on_conflict,
    )


def fill(store: Store, count: int, *, seed: int = 0, **options: Any) -> NDArray[np.float32]:
    """Puts pictures i0, i1, ... with metadata {"n": 0, 1, ...}; gives their vectors."""
    vectors = unit_vectors(count, seed=seed)
    images = [new_image(f"i{n}", metadata={"n": n}) for n in range(count)]
    put(store, images, vectors, **options)
    return vectors


def search(store: Store, queries: NDArray[np.float32], **options: Any) -> list[list[Match]]:
    options = {"k": 10, "spec": SPEC, **options}
    return store.search(options.pop("collection", "default"), queries, **options)


def needs(store: Store, capability: Capability) -> None:
    """Skips a test for stores that do not promise what it is about."""
    if capability not in store.capabilities:
        pytest.skip(f"this store does not promise {capability}")


def vector_of(store: Store, collection: str, image_id: str) -> NDArray[np.float32]:
    """An image's active vector, (dim,) float32. Raises `ImageNotFoundError`."""
    record, spec = store.get(collection, image_id), spec_of(store, collection)
    assert spec is not None
    return store.spaces.vectors(collection, spec, [record])[image_id]


def is_exact(store: Store, collection: str = "default") -> bool:
    found = store.collection(collection)
    return found is None or found.exact


def ids(matches: Sequence[Match]) -> list[str]:
    return [match.record.id for match in matches]


def answers(found: list[list[Match]]) -> list[list[tuple[int, float, str, Any]]]:
    """What must be the same for every store."""
    return [[(m.rank, m.score, m.record.id, m.record.metadata) for m in one] for one in found]
