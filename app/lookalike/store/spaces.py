"""The vector spaces of a collection: one is active, others are being made or are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import ConflictError, EmbeddingSetNotFoundError
from lookalike.records import ImageRecord, ModelSpec
from lookalike.store.vectors import Vectors

Recipe = Mapping[str, Any]
"""How to make an encoder again: a JSON object of settings. The store only keeps it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorSpace:
    """All vectors of one collection under one spec.

    Attributes:
        spec: What made the vectors.
        provenance: Recorded beside the spec: precision, runtime, library versions.
        recipe: How to make its encoder again; None where that was not recorded.
        count: Pictures with a vector in it.
        active: Whether searches are answered from it; of each collection exactly one is.
    """

    spec: ModelSpec
    provenance: Mapping[str, str]
    recipe: Recipe | None
    count: int
    active: bool


@dataclass(frozen=True, slots=True)
class Missing:
    """Images without a vector in a space, oldest first, and the cursor that continues behind them.

    The cursor stays good at the end: pictures that come later are behind it.
    """

    records: list[ImageRecord]
    cursor: str


class VectorSpaces(Protocol):
    """Makes a second vector space beside the active one, and switches to it.

    A deleted or replaced image loses its vectors in every space; a new one gets its vector in the
    active space alone and is `missing` in the others. Every method raises
    `CollectionNotFoundError` if there is no such collection, and all but `all` and `begin` raise
    `EmbeddingSetNotFoundError` if it has no space under the spec.
    """

    def all(self, collection: str) -> list[VectorSpace]:
        """All spaces, in the order they were made."""
        ...

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
        ...

    def missing(
        self, collection: str, spec: ModelSpec, *, limit: int, cursor: str | None = None
    ) -> Missing:
        """Up to `limit` images that lack a vector in the space.

        A walk by the cursor meets every picture that is missing or comes meanwhile: a picture that
        is replaced counts as new.

        Raises:
            InvalidParameterError: The cursor is not one that this call gave, or limit is below 1.
        """
        ...

    def vectors(
        self, collection: str, spec: ModelSpec, records: Sequence[ImageRecord]
    ) -> dict[str, NDArray[np.float32]]:
        """Vectors of the space by id, each (dim,) float32.

        Left out are pictures without one, and those that no longer have a record's content.
        """
        ...

    def add(
        self,
        collection: str,
        spec: ModelSpec,
        records: Sequence[ImageRecord],
        vectors: Vectors,
    ) -> int:
        """Adds vectors to the space, as one step that has reached the disk when it returns.

        Args:
            collection: Which collection.
            spec: Which space.
            records: N pictures. Those that are gone or have other content now, and those that
                have a vector already, are left out in silence.
            vectors: (N, dim) float32, rows of length 1.

        Returns:
            How many were added.

        Raises:
            StorageFullError: Nothing was added.
            ValueError: The vectors have another shape, or are not finite or not of length 1.
        """
        ...

    def prepared(self, collection: str, spec: ModelSpec) -> AbstractContextManager[None]:
        """Loads what searches in the space will need, so that `activate` in the block is quick.

        The space may lack vectors yet; those that come are followed. What was loaded is let go at
        the end of the block unless the space is active then.
        """
        ...

    def activate(self, collection: str, spec: ModelSpec) -> bool:
        """Makes the space the active one, in one step; the one before it stays, inactive.

        Everything that a search needs is loaded before. A space that is active already stays so.

        Returns:
            False, and nothing is changed, where some picture lacks a vector in the space.
        """
        ...

    def discard(self, collection: str, spec: ModelSpec) -> None:
        """Removes a space with its vectors. Raises `ConflictError` where it is the active one."""
        ...


def no_such_space(collection: str, spec: ModelSpec) -> EmbeddingSetNotFoundError:
    """The error for a space that does not exist."""
    return EmbeddingSetNotFoundError(
        f"The collection {collection!r} has no vectors under the spec {spec.digest} "
        f"({spec.model}); re-embed it to make them"
    )


def active_space(collection: str) -> ConflictError:
    """The error for removing what searches need."""
    return ConflictError(
        f"These vectors of the collection {collection!r} are in use; re-embed it with another "
        "model first"
    )
