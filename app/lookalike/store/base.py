"""What every store offers, and the decisions that all of them share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Protocol

import numpy as np

from lookalike.errors import CollectionNotFoundError, ImageNotFoundError, SpecMismatchError
from lookalike.records import (
    CollectionInfo,
    ImageRecord,
    Match,
    Metadata,
    ModelSpec,
    NewImage,
    OnConflict,
    PutOutcome,
)
from lookalike.store.effort import Effort
from lookalike.store.filters import Filter
from lookalike.store.metadata import MAX_METADATA_BYTES
from lookalike.store.names import decode_cursor
from lookalike.store.spaces import VectorSpaces
from lookalike.store.vectors import Vectors

_BLOCK_BYTES = 8 * 2**20


class Capability(StrEnum):
    """What only some stores promise. The contract's tests run where it is claimed."""

    ALL_OR_NOTHING = "all_or_nothing"
    """`upsert` stores all of its rows or none, however many there are."""

    OLDEST_FIRST = "oldest_first"
    """Equal scores come oldest first, and so does `scroll`; a replaced image counts as new."""

    KNOWN_IN_ONE_STEP = "known_in_one_step"
    """Nothing that happens beside `upsert_known` comes between its look and its change."""

    SWITCH_IN_ONE_STEP = "switch_in_one_step"
    """`VectorSpaces.activate` checks that a space is complete and switches to it as one step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some images of a collection, oldest first.

    Attributes:
        records: N rows.
        next_cursor: Continues after this page; None if nothing follows at the moment.
        end: Continues after this page, also at the end: with images that are added later.
        vectors: (N, dim) float32, rows of length 1, if they were asked for; otherwise (0, 0).
    """

    records: list[ImageRecord]
    next_cursor: str | None
    end: str
    vectors: Vectors = field(default_factory=lambda: np.empty((0, 0), np.float32))


class Store(Protocol):
    """Rows with their vectors, and how to find them again.

    Safe to call from many threads. A change has reached the disk when the call returns. A
    collection comes into being with its first `upsert`, under that call's spec.
    """

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What this store promises beyond the rest of this protocol."""
        ...

    @property
    def spaces(self) -> VectorSpaces:
        """The vector spaces of all collections, and the switch between them."""
        ...

    # Collections

    def collections(self) -> list[CollectionInfo]:
        """All collections, by name."""
        ...

    def collection(self, name: str) -> CollectionInfo | None:
        """One collection; None if there is none of this name. Cheap."""
        ...

    def drop(self, collection: str, *, wait: bool = False) -> int:
        """Removes a collection and returns how many images it had.

        It is gone at once. What it leaves on the disk goes in the background; if need be, after
        the next start.

        Args:
            collection: Its name.
            wait: Remove what it leaves before returning.

        Raises:
            CollectionNotFoundError: There is no such collection.
        """
        ...

    # Images

    def upsert(
        self,
        collection: str,
        images: Sequence[NewImage],
        vectors: Vectors,
        *,
        spec: ModelSpec,
        provenance: Mapping[str, str],
        on_conflict: OnConflict = OnConflict.REPLACE,
    ) -> list[PutOutcome]:
        """Adds or replaces images; one outcome for each, in order.

        An id that is given twice is handled in order, as two calls would.

        Args:
            collection: Made if it does not exist.
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

    def upsert_known(
        self, collection: str, image: NewImage, *, on_conflict: OnConflict
    ) -> PutOutcome | None:
        """Does what `upsert` would do if that needs no vector; None if it needs one.

        So bytes that are stored already cost no embedding.
        """
        ...

    def get(self, collection: str, image_id: str) -> ImageRecord:
        """One image's row. Raises `ImageNotFoundError`."""
        ...

    def find(self, collection: str, image_ids: Sequence[str]) -> dict[str, ImageRecord]:
        """Those of the ids that exist, with their rows."""
        ...

    def scroll(
        self,
        collection: str,
        *,
        cursor: str | None = None,
        limit: int = 100,
        where: Filter | None = None,
        vectors_of: ModelSpec | None = None,
    ) -> Page:
        """The next images after a cursor.

        Args:
            collection: Which one; without it, the page is empty.
            cursor: Continue after an earlier page.
            limit: How many images at most.
            where: Only images that pass.
            vectors_of: Add the vectors of this space. Images that have none in it are left out, so
                that the page may hold fewer images although more follow.

        Raises:
            InvalidParameterError: No page gave this cursor, or the limit is below 1.
        """
        ...

    def update_metadata(
        self,
        collection: str,
        image_id: str,
        patch: Metadata,
        *,
        max_bytes: int = MAX_METADATA_BYTES,
    ) -> ImageRecord:
        """Merges into an image's metadata, see `merge_patch`.

        Raises:
            ImageNotFoundError: No image has this id.
            MetadataTooLargeError: The result has more than `max_bytes`.
        """
        ...

    def refer(self, collection: str, image: NewImage) -> None:
        """Notes that an image's file lies at `image.source` by now; nothing else changes.

        Nothing happens if no row has this id and these bytes.
        """
        ...

    def delete(self, collection: str, image_id: str) -> None:
        """Removes one image. Raises `ImageNotFoundError`."""
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
        """The k best matches of each query by cosine, best first.

        Gives k matches whenever k images pass; none if there is no such collection. An index that
        is not exact may miss one of the k best; every score is a cosine all the same.

        Args:
            collection: Where to search.
            queries: (Q, dim) float32, rows of length 1.
            k: How many matches, at least 1.
            spec: What made the queries.
            where: Only images that pass; applied before ranking, never after.
            exclude: Ids that are left out.
            effort: For indexes that are not exact; theirs unless given.

        Raises:
            SpecMismatchError: The collection's vectors were made by something else.
        """
        ...

    # The store itself

    def references(self, sha256s: Iterable[str]) -> set[str]:
        """Those of the digests that some row of any collection names.

        Rows that a dropped collection leaves count until they are gone.
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


def spec_of(store: Store, collection: str) -> ModelSpec | None:
    """What made a collection's active vectors; None if there is no such collection."""
    found = store.collection(collection)
    return found.spec if found else None


def count_of(store: Store, collection: str) -> int:
    """How many images a collection has; 0 if there is no such collection."""
    found = store.collection(collection)
    return found.count if found else 0


def scan(
    store: Store, collection: str, *, cursor: str | None = None, where: Filter | None = None
) -> Iterator[Page]:
    """Rows with their active vectors, in pages of a few megabytes.

    Images that are added or replaced meanwhile come at the end; those that are deleted may come.
    All vectors are of the space that was active at the start: images that are added after a switch
    do not come.

    Args:
        store: The store.
        collection: Which one; without it, nothing comes.
        cursor: Where to start: the `end` of a page that was read before.
        where: Only images that pass.

    Raises:
        InvalidParameterError: No page gave this cursor.
    """
    decode_cursor(cursor)
    return _scan(store, collection, cursor, where)


def _scan(
    store: Store, collection: str, cursor: str | None, where: Filter | None
) -> Iterator[Page]:
    found = store.collection(collection)
    while found is not None:
        page = store.scroll(
            collection,
            cursor=cursor,
            limit=max(1, _BLOCK_BYTES // (4 * found.spec.dim)),
            where=where,
            vectors_of=found.spec,
        )
        if page.records:
            yield page
        elif page.next_cursor is None:
            return
        cursor = page.end


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
