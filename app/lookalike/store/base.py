"""What every store offers, and the decisions that all of them share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import CollectionNotFoundError, ImageNotFoundError, SpecMismatchError
from lookalike.records import (
    CollectionInfo,
    ImageRecord,
    Match,
    Metadata,
    ModelSpec,
    NewImage,
    OnConflict,
    Page,
    PutOutcome,
)
from lookalike.store.effort import Effort
from lookalike.store.embedding_sets import EmbeddingSets
from lookalike.store.filters import Filter
from lookalike.store.metadata import MAX_METADATA_BYTES
from lookalike.store.vectors import Vectors

__all__ = ["ScanBlock", "Store", "Vectors", "require_same_spec", "utc_now"]


@dataclass(frozen=True, slots=True)
class ScanBlock:
    """Some pictures of a collection with their vectors.

    Attributes:
        records: N rows, oldest first.
        vectors: (N, dim) float32, rows of length 1.
        cursor: Continues behind this block.
    """

    records: list[ImageRecord]
    vectors: Vectors
    cursor: str


class Store(Protocol):
    """Rows, vectors, specs, and how to find them again.

    Safe to call from many threads. `put` has reached the disk when it returns. A collection comes
    into being with its first `put`, under that call's spec.
    """

    @property
    def sets(self) -> EmbeddingSets:
        """The embedding sets of all collections, and the switch between them."""
        ...

    def collections(self) -> list[CollectionInfo]:
        """All collections, by name."""
        ...

    def spec(self, collection: str) -> ModelSpec | None:
        """The spec of the collection's active embedding set; None where there is none yet."""
        ...

    def count(self, collection: str) -> int:
        """Pictures in the collection; 0 where there is no such collection."""
        ...

    def put(
        self,
        collection: str,
        images: Sequence[NewImage],
        vectors: Vectors,
        *,
        spec: ModelSpec,
        provenance: Mapping[str, str],
        on_conflict: OnConflict = OnConflict.REPLACE,
    ) -> list[PutOutcome]:
        """Adds or replaces pictures, all of them or none; one outcome for each, in order.

        An id that is given twice is handled in order, as two calls would.

        Args:
            collection: Made where it does not exist.
            images: The rows.
            vectors: (N, dim) float32, one unit vector for each row.
            spec: What made the vectors; must agree with the collection's.
            provenance: Recorded beside the spec when the collection is made.
            on_conflict: What to do with ids that exist, see `decide`.

        Raises:
            SpecMismatchError: The collection's vectors were made by something else.
            StorageFullError: Nothing was stored.
            ValueError: The vectors have another shape, or are not finite or not of length 1.
        """
        ...

    def put_known(
        self, collection: str, image: NewImage, *, on_conflict: OnConflict
    ) -> PutOutcome | None:
        """Does what `put` would do, where that needs no vector; None where it needs one.

        So bytes that are stored already are settled without an embedding, and still as one step:
        nothing that happens beside it comes in between.
        """
        ...

    def get(self, collection: str, image_id: str) -> ImageRecord:
        """One picture's row. Raises `ImageNotFoundError`."""
        ...

    def find(self, collection: str, image_ids: Sequence[str]) -> dict[str, ImageRecord]:
        """Those of the ids that exist, with their rows."""
        ...

    def vector(self, collection: str, image_id: str) -> NDArray[np.float32]:
        """One picture's active vector, (dim,) float32. Raises `ImageNotFoundError`."""
        ...

    def page(
        self,
        collection: str,
        *,
        cursor: str | None = None,
        limit: int = 100,
        where: Filter | None = None,
    ) -> Page:
        """A stretch of pictures, oldest first; a replaced picture counts as new.

        Raises:
            InvalidParameterError: The cursor is not one that `page` gave.
        """
        ...

    def scan(
        self, collection: str, *, cursor: str | None = None, where: Filter | None = None
    ) -> Iterator[ScanBlock]:
        """Rows with their active vectors, oldest first, in blocks of a few megabytes.

        Pictures that come or are replaced while it goes on are met in the end; those that are
        deleted may be. Nothing comes where there is no such collection. All vectors are of the set
        that was active at the start: pictures that come after a switch are not met.

        Args:
            collection: Which one.
            cursor: Where to start: behind a block or a page that was read before.
            where: Only pictures that pass.

        Raises:
            InvalidParameterError: The cursor is not one that `page` or `scan` gave.
        """
        ...

    def patch_metadata(
        self,
        collection: str,
        image_id: str,
        patch: Metadata,
        *,
        max_bytes: int = MAX_METADATA_BYTES,
    ) -> ImageRecord:
        """Merges into a picture's metadata, see `merge_patch`.

        Raises:
            ImageNotFoundError: No picture has this id.
            MetadataTooLargeError: What comes out has more than `max_bytes`.
        """
        ...

    def set_metadata(self, collection: str, image_id: str, metadata: Metadata) -> ImageRecord:
        """Replaces a picture's metadata. Raises `ImageNotFoundError`."""
        ...

    def refer(self, collection: str, image: NewImage) -> None:
        """Notes that a picture's file lies at `image.source` by now; nothing else changes.

        Nothing happens where no row has this id and these bytes.
        """
        ...

    def delete(self, collection: str, image_id: str) -> None:
        """Removes one picture. Raises `ImageNotFoundError`."""
        ...

    def drop(self, collection: str) -> int:
        """Removes a collection and returns how many pictures it had.

        It is gone at once. What it leaves on the disk goes in the background; if need be, after
        the next start.

        Raises:
            CollectionNotFoundError: There is no such collection.
        """
        ...

    def purge(self) -> None:
        """Removes what dropped collections left now, without waiting for the background."""
        ...

    def search(
        self,
        collection: str,
        queries: Vectors,
        *,
        k: int,
        spec: ModelSpec,
        where: Filter | None = None,
        exclude: Sequence[str] = (),
        effort: Effort | None = None,
    ) -> list[list[Match]]:
        """The k best matches of each query by cosine, best first; equal scores oldest first.

        Gives k matches whenever k pictures pass; none where there is no such collection. An index
        that is not exact may miss one of the k best; every score is a cosine all the same.

        Args:
            collection: Where to search.
            queries: (Q, dim) float32, rows of length 1.
            k: How many matches, at least 1.
            spec: What made the queries.
            where: Only pictures that pass; applied before ranking, never after.
            exclude: Ids that are left out.
            effort: For indexes that are not exact; theirs unless given.

        Raises:
            SpecMismatchError: The collection's vectors were made by something else.
        """
        ...

    def is_exact(self, collection: str) -> bool:
        """Whether searches score every picture, so that none of the k best can be missed.

        Cheap. True where there is no such collection.
        """
        ...

    def references(self, sha256s: Iterable[str]) -> set[str]:
        """Those of the digests that some row of any collection names.

        Rows that a dropped collection leaves count until they are gone, see `purge`.
        """
        ...

    def load(self) -> None:
        """Brings everything that a search needs into memory; otherwise the first one does it."""
        ...

    def describe(self) -> dict[str, Any]:
        """Facts for `GET /info`: kind, index types, versions, sizes in bytes."""
        ...

    def close(self) -> None:
        """Saves what can be saved and lets go of the data folder. May be called twice."""
        ...


def require_same_spec(collection: str, own: ModelSpec, other: ModelSpec) -> None:
    """Raises `SpecMismatchError`, naming what differs, where vectors cannot be compared."""
    apart = own.differences(other)
    if apart:
        listed = "; ".join(
            f"{name}: {mine!r} there, {theirs!r} here" for name, (mine, theirs) in apart.items()
        )
        raise SpecMismatchError(
            f"The collection {collection!r} was made by another model ({listed}). "
            "Use the settings it was made with or another collection, or re-embed this one"
        )


def unknown_collection(name: str) -> CollectionNotFoundError:
    """The error for a collection that does not exist."""
    return CollectionNotFoundError(
        f"There is no collection {name!r}; GET /collections lists them, and indexing a picture "
        "into a new name makes one"
    )


def image_not_found(collection: str, image_id: str) -> ImageNotFoundError:
    """The error for an id that a collection does not have."""
    return ImageNotFoundError(f"No picture {image_id!r} in the collection {collection!r}")


def utc_now() -> str:
    """This moment as rows record it: ISO 8601 in UTC, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
