"""What every store offers: the protocols, and the rules about vectors and spaces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import (
    CollectionNotFoundError,
    ConflictError,
    ImageNotFoundError,
    LookalikeError,
    SpecMismatchError,
)
from lookalike.progress import Progress
from lookalike.records import (
    CollectionInfo,
    Effort,
    Facets,
    Finding,
    ImageRecord,
    Match,
    Metadata,
    ModelSpec,
    NewImage,
    OnConflict,
    Place,
    PutOutcome,
    decode_cursor,
)
from lookalike.store.filters import MAX_METADATA_BYTES, Filter, Kind
from lookalike.store.judgements import Judgements

Recipe = Mapping[str, Any]
"""How to make an encoder again: a JSON object of settings. The store only keeps it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorSpace:
    """All vectors of one collection under one spec."""

    spec: ModelSpec  # what made the vectors
    provenance: Mapping[str, str]  # recorded beside it: precision, runtime, library versions
    recipe: Recipe | None  # how to make its encoder again, if that was recorded
    count: int  # pictures with a vector in it
    active: bool  # whether searches are answered from it; of each collection exactly one is


@dataclass(frozen=True, slots=True)
class Missing:
    """Images without a vector in a space, oldest first, and the cursor that goes on behind them."""

    records: list[ImageRecord]
    cursor: str


class VectorSpaces(Protocol):
    """Makes a second vector space beside the active one, and switches to it.

    A deleted or replaced image loses its vectors in every space; a new one gets its vector in the
    active space alone and is `missing` in the others. Every method raises
    `CollectionNotFoundError` if there is no such collection, and all but `all` and `begin` raise
    `VectorSpaceNotFoundError` if it has no space under the spec.
    """

    def all(self, collection: str) -> list[VectorSpace]:
        """All spaces, in the order they were made."""

    def begin(
        self,
        collection: str,
        spec: ModelSpec,
        *,
        provenance: Mapping[str, str],
        recipe: Recipe | None = None,
    ) -> VectorSpace:
        """Makes an inactive, empty space, or finds the one that is there already.

        A recipe takes the place of the one that was recorded; None leaves it.
        """

    def missing(
        self, collection: str, spec: ModelSpec, *, limit: int, cursor: str | None = None
    ) -> Missing:
        """Up to `limit` images that lack a vector in the space, behind an earlier call's cursor.

        Raises `InvalidParameterError` for another cursor, or a limit below 1.
        """

    def vectors(
        self, collection: str, spec: ModelSpec, records: Sequence[ImageRecord]
    ) -> dict[str, NDArray[np.float32]]:
        """Vectors of images that still have a record's content, by id, each (dim,) float32."""

    def add(
        self, collection: str, spec: ModelSpec, records: Sequence[ImageRecord], vectors: Vectors
    ) -> int:
        """Adds vectors, (N, dim) float32, to the space in one step; returns how many were added.

        Pictures that are gone, have other content by now, or have a vector, are left out. Raises
        `StorageFullError`, and ValueError as `check_vectors`.
        """

    def prepared(self, collection: str, spec: ModelSpec) -> AbstractContextManager[None]:
        """Loads what searches in the space will need, so that `activate` in the block is quick.

        The space may still lack vectors. What was loaded is freed unless it is active in the end.
        """

    def activate(self, collection: str, spec: ModelSpec) -> bool:
        """Makes the space the active one, in one step; the one before it stays, inactive.

        Returns False, and changes nothing, if some picture lacks a vector in the space.
        """

    def discard(self, collection: str, spec: ModelSpec) -> None:
        """Removes a space with its vectors. Raises `ConflictError` where it is the active one."""

    def calibration(self, collection: str, spec: ModelSpec) -> Mapping[str, Any] | None:
        """What the scores of the space mean, as `calibrate` was given it; None if nothing. Cheap.

        None, too, if there is no such collection or space.
        """

    def calibrate(
        self, collection: str, spec: ModelSpec, content: Mapping[str, Any] | None
    ) -> None:
        """Keeps what the scores of the space mean, a JSON object; None removes it."""


Vectors = NDArray[np.float32]
"""Unit vectors: (N, dim) float32."""

Seqs = NDArray[np.int64]
"""Row numbers of a store, (N,) int64."""

Scores = NDArray[np.float64]
"""Cosine similarities in [-1, 1], (N,) float64."""

_BLOCK = 2**19  # numbers at a time in `exact_scores`: 4 MiB of float64
_LENGTH_TOLERANCE = 1e-2


def check_vectors(vectors: Vectors, *, count: int | None, dim: int) -> Vectors:
    """Gives `count` vectors back, any number if None, as C-contiguous (N, dim) float32.

    Raises ValueError for another shape, or rows that are not finite or not of length 1: a NaN
    would break the order of every later search.
    """
    rows = np.ascontiguousarray(vectors, dtype=np.float32)
    if rows.ndim != 2 or rows.shape[1] != dim or (count is not None and len(rows) != count):
        wanted = "N" if count is None else count
        raise ValueError(f"vectors have the shape {rows.shape}; ({wanted}, {dim}) was expected")
    if not has_unit_length(rows):
        raise ValueError("vectors must be finite and of length 1")
    return rows


def has_unit_length(rows: Vectors) -> bool:
    """Whether all of (N, dim) rows are finite and of length 1."""
    with np.errstate(all="ignore"):  # damaged vectors may be huge
        lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    return bool(np.all(np.abs(lengths - 1.0) <= _LENGTH_TOLERANCE))


def exact_scores(rows: Vectors, query: NDArray[np.float32]) -> Scores:
    """Cosines of (N, dim) rows with one (dim,) query: (N,) float64, clipped to [-1, 1].

    Each row is summed by itself in double precision, so that equal rows get equal scores wherever
    they stand: a matrix product does not promise that.
    """
    scores = np.empty(len(rows), dtype=np.float64)
    wide = query.astype(np.float64)
    step = max(1, _BLOCK // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        scores[start : start + step] = (rows[start : start + step] * wide).sum(axis=1)
    return np.clip(scores, -1.0, 1.0)


def best_first(scores: Scores, seqs: Seqs, k: int) -> NDArray[np.intp]:
    """Positions of the k best scores, best first; of equal scores the lowest seq first."""
    return np.lexsort((seqs, -scores))[:k]


_BLOCK_BYTES = 8 * 2**20
_ROWS = 500  # of a page without vectors


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some images of a collection, oldest first."""

    records: list[ImageRecord]  # N rows
    next_cursor: str | None  # continues after this page; None if nothing follows at the moment
    end: str  # continues after this page, also at the end: with images that are added later
    # (N, dim) float32, rows of length 1, if they were asked for; otherwise (0, 0)
    vectors: Vectors = field(default_factory=lambda: np.empty((0, 0), np.float32))


class Capability(StrEnum):
    """Promises that a store may leave out. Tests of one are skipped for stores without it."""

    ALL_OR_NOTHING = "all_or_nothing"
    """`upsert` stores all of its rows or none, and nobody ever sees some of them."""

    OLDEST_FIRST = "oldest_first"
    """Equal scores come oldest first, and so does `scroll`; a replaced image counts as new."""

    SWITCH_IN_ONE_STEP = "switch_in_one_step"
    """`VectorSpaces.activate` checks that a space is complete and switches to it as one step."""


class Store(Protocol):
    """Rows with their vectors, and how to find them again; safe to call from many threads.

    A change has reached the disk when the call returns. A collection comes into being with its
    first `upsert`, under that call's spec. Wherever a collection is named, its alias will do,
    and is looked up by each call anew; only `rename` and `drop` take its own name alone.
    """

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What this store promises beyond the rest of this protocol."""

    @property
    def spaces(self) -> VectorSpaces:
        """The vector spaces of all collections, and the switch between them."""

    @property
    def judgements(self) -> Judgements:
        """What people said of matches, of all collections."""

    # Collections

    def collections(self) -> list[CollectionInfo]:
        """All collections, by name."""

    def collection(self, name: str) -> CollectionInfo | None:
        """One collection; None if there is none. Cheap."""

    def make(self, collection: str, *, spec: ModelSpec, provenance: Mapping[str, str]) -> bool:
        """Makes an empty collection, as the first `upsert` would; False if it is there already."""

    def rename(self, collection: str, new: str) -> None:
        """Gives a collection another name, in one step.

        Its aliases stay with it. Raises `CollectionNotFoundError`, or `ConflictError` if another
        one has that name, also as an alias, or `collection` is an alias.
        """

    def alias(self, alias: str, collection: str) -> None:
        """Makes `alias` another name of a collection, or moves it there, in one step.

        Raises `CollectionNotFoundError`, or `ConflictError` if a collection has that very name.
        """

    def unalias(self, alias: str) -> None:
        """Removes an alias; its collection stays. Raises `CollectionNotFoundError`."""

    def drop(self, collection: str, *, wait: bool = False) -> int:
        """Removes a collection and returns how many images it had.

        It is gone at once. What it leaves on the disk goes before returning, if `wait`, or in the
        background, perhaps after the next start. Raises `CollectionNotFoundError`, or
        `ConflictError` if it has aliases, or `collection` is one.
        """

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
        """Adds or replaces N images with (N, dim) float32 vectors of length 1; outcomes in order.

        The collection is made if it does not exist, and `provenance` recorded beside its spec. An
        id that is given twice is handled in order, as two calls would. See `decide`. The places
        of the images are noted; one that another image had moves to the new one.

        Raises `StorageFullError`, `SpecMismatchError` if the collection's vectors were made by
        something else, and ValueError as `check_vectors`.
        """

    def upsert_known(
        self, collection: str, images: Sequence[NewImage], *, on_conflict: OnConflict
    ) -> list[PutOutcome | None]:
        """Does what `upsert` would do, in one step; None for each image that needs a vector."""

    def places(self, collection: str, image_ids: Sequence[str]) -> dict[str, list[Place]]:
        """All places of those of the ids that have some, by id, in the order they were seen.

        Every `upsert` and `upsert_known` notes the image's `place` beside its row. So a row with
        two places or more stands for files that are copies of each other: `copied` names them.
        Records list the places too, up to `MAX_COPIES`.
        A place whose file was deleted or changed since stays until the file is indexed again, and
        a place may be a link or another name of the same file: compare the files before one is
        removed.
        """

    def copied(self, collection: str) -> list[str]:
        """Ids of the pictures that have two places or more, in any order."""

    def seen(self, collection: str, root: str) -> dict[str, str]:
        """The paths of all places below a root, each with the id of the picture that has it."""

    def uploaded(self, collection: str, image_ids: Sequence[str]) -> set[str]:
        """Those of the ids whose bytes were also put without a place: somebody sent the picture."""

    def validators(self, collection: str, root: str) -> dict[str, str]:
        """What `validate` noted of places below a root and of the bytes there, by path."""

    def validate(self, collection: str, root: str, validators: Mapping[str, str]) -> None:
        """Notes, by path below a root, the header that asks a server whether its file changed.

        It goes with the place, and when the place gets other bytes. Paths that are not places are
        passed over.
        """

    def forget(self, collection: str, places: Sequence[Place]) -> None:
        """Removes places where files lie no more; those that are not known are passed over."""

    def get(self, collection: str, image_id: str) -> ImageRecord:
        """One image's row. Raises `ImageNotFoundError`."""

    def find(self, collection: str, image_ids: Sequence[str]) -> dict[str, ImageRecord]:
        """Those of the ids that exist, with their rows."""

    def scroll(
        self,
        collection: str,
        *,
        cursor: str | None = None,
        limit: int = 100,
        where: Filter | None = None,
        vectors_of: ModelSpec | None = None,
    ) -> Page:
        """Up to `limit` images after a cursor that pass `where`; none if there is no collection.

        With `vectors_of`, their vectors in that space. Images that have none in it are left out,
        so that the page may hold fewer images although more follow. Raises
        `InvalidParameterError` if no page gave this cursor, or the limit is below 1.
        """

    def count(self, collection: str, where: Filter | None = None) -> int:
        """How many images pass; 0 if there is no such collection."""

    def facets(
        self,
        collection: str,
        *,
        fields: Sequence[str] | None = None,
        where: Filter | None = None,
        limit: int = 10,
    ) -> Facets:
        """What the images that pass have under some fields: `limit` values of each.

        Without `fields`, those `MAX_FACETS` that most of these images have, see `fields_of`, most
        first and then by name. Nothing if there is no such collection.
        """

    def kinds(self, collection: str, fields: Iterable[str]) -> dict[str, frozenset[Kind]]:
        """What the images hold under each of some fields: no kind where none has the field."""

    def update_metadata(
        self,
        collection: str,
        image_id: str,
        patch: Metadata,
        *,
        max_bytes: int = MAX_METADATA_BYTES,
    ) -> ImageRecord:
        """Merges into an image's metadata, see `merge_patch`.

        Raises `ImageNotFoundError`, or `MetadataTooLargeError` for more than `max_bytes`.
        """

    def update_many(
        self,
        collection: str,
        image_ids: Sequence[str],
        patch: Metadata,
        *,
        replace: bool = False,
        where: Filter | None = None,
        max_bytes: int = MAX_METADATA_BYTES,
    ) -> dict[str, ImageRecord | LookalikeError]:
        """Does what `update_metadata` does to many images, in one step; with `where`, if they pass.

        With `replace`, `patch` takes the place of all that was there. Returns the new row of each
        id, or why it stays as it is; ids that do not exist, or do not pass, are left out.
        """

    def update_each(
        self,
        collection: str,
        patches: Mapping[str, Metadata],
        *,
        max_bytes: int = MAX_METADATA_BYTES,
    ) -> dict[str, ImageRecord | LookalikeError]:
        """As `update_many`, with a patch of its own for each id."""

    def refer(self, collection: str, image: NewImage) -> None:
        """Notes where an image's file lies by now, if a row has its id and bytes."""

    def delete(self, collection: str, image_id: str) -> None:
        """Removes one image. Raises `ImageNotFoundError`."""

    def delete_many(
        self, collection: str, image_ids: Sequence[str], *, where: Filter | None = None
    ) -> set[str]:
        """Removes those of the images that exist, and pass, in one step; returns their ids."""

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
        """The k best matches of each of (Q, dim) float32 queries by cosine, best first.

        Gives k matches, at least 1, whenever k images pass; none if there is no such collection.
        The filter is applied before ranking; excluded ids are left out. An index that is not exact
        may miss one of the k best, and looks as hard as `effort` says; every score is a cosine all
        the same. Raises `SpecMismatchError` if the vectors were made by something else.
        """

    # The store itself

    def references(self, sha256s: Iterable[str], *, thorough: bool = False) -> set[str]:
        """Those of the digests that some row names, also one that a dropped collection leaves.

        `thorough` reads every row, and trusts no index: for files that are about to be deleted.
        """

    def expect(self, sha256s: Iterable[str]) -> None:
        """Notes files that may be without a row, before they are put; for `unnamed`."""

    def unnamed(self) -> Iterator[list[str]]:
        """Digests that no row names, in batches: of rows that were removed, and of `expect`.

        Each comes once: who cannot remove its files yet notes it again with `expect`. If the caller
        ends early, all come again. Files that this store knows nothing of never come.
        """

    def noted(self) -> Iterator[str]:
        """Digests that `unnamed` is going to look at."""

    def verify(self, *, quick: bool, progress: Progress) -> Iterator[Finding]:
        """Compares what this store keeps with itself, and changes nothing.

        `quick` leaves out what reads every vector. Raises `StorageError` if it cannot be read.
        """

    def mend(self) -> None:
        """Makes again what `verify` found wrong and the store can make.

        Counts rows anew, drops vectors that cannot be used, and builds indexes from the others.
        """

    def load(self) -> None:
        """Brings everything that a search needs into memory; otherwise the first one does it."""

    def check(self) -> None:
        """Raises `StorageError` if changes cannot be kept now, but for a full disk. Cheap."""

    def describe(self) -> dict[str, Any]:
        """Facts for `GET /info`: kind, index types, versions, sizes in bytes."""

    def close(self) -> None:
        """Saves what can be saved and lets go of the data folder. May be called twice."""


class BlobStore(Protocol):
    """Originals and thumbnails, by the SHA-256 of the original. Safe to call from many threads."""

    def put(self, source: BinaryIO, sha256: str, media_type: str) -> None:
        """Stores an original so that it survives a crash; one that is here and whole stays.

        It is read from its start, and its bytes must have the SHA-256, 64 lower-case hex digits.

        Raises:
            StorageFullError: There is no room; nothing was kept.
            StorageError: The disk refuses.
            UnreadableImageError: The source cannot be read, or has another digest.
        """

    def holds(self, sha256: str, media_type: str) -> bool:
        """Whether an original lies in its place, whole or not. Reads nothing of it."""

    def put_thumbnail(self, sha256: str, data: bytes) -> None:
        """Stores a picture's thumbnail, whole or not at all. Raises as `put`."""

    def open(self, record: ImageRecord) -> BinaryIO | None:
        """Opens a picture's original, in place or kept; None if it is in neither.

        Raises `OriginalDamagedError` if its bytes are not those that were sent, and `StorageError`
        if they cannot be read.
        """

    def exists(self, record: ImageRecord) -> bool:
        """Whether a picture's original is here, in place or kept, and not damaged."""

    def verify(self) -> Iterator[int]:
        """Reads all kept originals; yields how many, some at a time. Raises `StorageError`."""

    @property
    def damaged(self) -> Sequence[object]:
        """Kept originals that were found damaged and have not been healed or removed since."""

    def open_thumbnail(self, sha256: str) -> BinaryIO | None:
        """Opens a picture's thumbnail; None where there is none, or it is damaged."""

    def set_aside(self, sha256s: Iterable[str], *, needless: bool = True) -> set[str]:
        """Moves originals and thumbnails that no row names to the trash; raises `StorageError`.

        Young files stay: their row may be on its way. Returns their digests. A disk too full for
        the trash refuses files that are not known to be `needless`. Nothing else removes
        files, so no request can lose a file that another one needs.
        """

    def size(self, record: ImageRecord) -> int | None:
        """The bytes of a picture's original; None where there is none. Reads nothing of it."""

    def changed_at(self, record: ImageRecord) -> str | None:
        """When the first of the files that a row refers to was changed last, in UTC; ISO 8601.

        None where there is none any more, or the picture is kept here.
        """

    def digests(self) -> Iterator[list[str]]:
        """Digests that files lie here under, in batches; of young files none."""

    def put_back(self, record: ImageRecord) -> None:
        """Moves a picture's files back from the trash, where they are missing or not whole."""

    def tidy(
        self,
        referenced: Callable[[Iterable[str]], set[str]],
        *,
        days: int,
        stop: Callable[[], bool],
    ) -> int:
        """Deletes what lay in the trash for `days`, and sooner if the disk is short of room.

        What some row names, as `referenced` says of digests, is put back instead. Once `stop` says
        so, what is left is for the next time. Returns how many files were deleted; raises
        `StorageError`.
        """


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of one or more pictures, as a snapshot names them."""

    sha256: str
    media_type: str
    in_place: bool  # some row refers to a file outside of the data folder


class Snapshots(Protocol):
    """Copies of a catalog, for backups; of a store that keeps its rows in a file.

    `check` and the others raise `DataFolderError` for a file that is no catalog, or a newer one.
    """

    def take(self, target: Path, progress: Progress) -> None:
        """Copies the catalog, as it is at one moment, into a new file; holds up no writer.

        Another process may own the data folder. `progress` is told pages. Raises
        `StorageFullError` if there is no room, `DataFolderError` if the catalog is damaged.
        """

    def copy(self, source: Path, target: Path) -> None:
        """Copies another small SQLite file in the same way. Raises as `take`."""

    def check(self, catalog: Path) -> None:
        """Reads a copy through. Raises `BackupError` if it is damaged, or more than a catalog."""

    def collections(self, catalog: Path) -> dict[str, int]:
        """The collections of a copy, each with its number of pictures."""

    def contents(self, catalog: Path) -> Iterator[Content]:
        """All that a copy's pictures are made of, once each, by digest."""


def spec_of(store: Store, collection: str) -> ModelSpec | None:
    """What made a collection's active vectors; None if there is no such collection."""
    found = store.collection(collection)
    return found.spec if found else None


def count_of(store: Store, collection: str) -> int:
    """How many images a collection has; 0 if there is no such collection."""
    found = store.collection(collection)
    return found.count if found else 0


def scan(
    store: Store,
    collection: str,
    *,
    cursor: str | None = None,
    where: Filter | None = None,
    vectors: bool = True,
) -> Iterator[Page]:
    """Rows that pass, behind a page's `end`, in pages of a few megabytes.

    With `vectors`, those that have an active one, with it. Images that are added meanwhile come at
    the end, but not after a switch to another space; those that are deleted may come. Raises
    `InvalidParameterError` if no page gave the cursor.
    """
    decode_cursor(cursor)
    return _scan(store, collection, cursor, where, vectors)


def _scan(
    store: Store, collection: str, cursor: str | None, where: Filter | None, vectors: bool
) -> Iterator[Page]:
    found = store.collection(collection)
    while found is not None:
        page = store.scroll(
            collection,
            cursor=cursor,
            limit=max(1, _BLOCK_BYTES // (4 * found.spec.dim)) if vectors else _ROWS,
            where=where,
            vectors_of=found.spec if vectors else None,
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


def name_taken(name: str) -> ConflictError:
    """The error for a name that another collection has."""
    return ConflictError(
        f"There is a collection or an alias {name!r} already; choose another name, or rename or "
        "delete that one"
    )


def has_aliases(name: str, aliases: Sequence[str]) -> ConflictError:
    """The error for a collection that cannot be dropped, because of its aliases."""
    listed = ", ".join(map(repr, aliases))
    return ConflictError(
        f"Calls reach the collection {name!r} as {listed}; move or remove these aliases first, "
        "then delete it"
    )


def is_alias(alias: str, name: str) -> ConflictError:
    """The error for an alias where only a collection's own name will do."""
    return ConflictError(
        f"{alias!r} is an alias of the collection {name!r}; name that one, or remove the alias"
    )


def unknown_alias(alias: str) -> CollectionNotFoundError:
    """The error for an alias that does not exist."""
    return CollectionNotFoundError(f"There is no alias {alias!r}; GET /collections lists them")


def real_name(store: Store, collection: str) -> str:
    """The own name of a collection, for what must not follow an alias that moves meanwhile."""
    found = store.collection(collection)
    return collection if found is None else found.name


def image_not_found(collection: str, image_id: str) -> ImageNotFoundError:
    """The error for an id that a collection does not have."""
    return ImageNotFoundError(f"No picture {image_id!r} in the collection {collection!r}")
