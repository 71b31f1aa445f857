"""What people said of matches, right or wrong: what a store offers to keep it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import LookalikeError
from lookalike.records import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NewJudgement:
    """What somebody says of one match.

    The query is a picture of the collection, by its id, or another one, by its digest and vector.
    """

    match: str  # id of the match
    right: bool
    query: str | None = None  # id of the query
    sha256: str | None = None  # of the bytes of a query without an id
    spec: ModelSpec | None = None  # what made its vector
    vector: NDArray[np.float32] | None = None  # (dim,) float32, of length 1
    judged_at: str | None = None  # None is now

    @property
    def id(self) -> str:
        """Names the pair: the same query and the same match have one judgement, the last one."""
        pair = f"{self.query or self.sha256} {self.match}"
        return hashlib.sha256(pair.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judgement:
    """What somebody said of one match; both pictures still have the bytes that they had then."""

    id: str
    query: str | None  # id of the query; None if it is no picture of the collection
    query_sha256: str
    match: str  # id of the match
    match_sha256: str
    right: bool
    judged_at: str  # ISO 8601 in UTC
    vector: NDArray[np.float32] | None = None  # of a query without an id, where asked for


class Judgements(Protocol):
    """Judgements of all collections; a change has reached the disk when the call returns.

    What is about a picture goes when it is deleted or replaced by other bytes, in the same step.
    What has a vector goes with its vector space.
    """

    def put(
        self, collection: str, given: Sequence[NewJudgement]
    ) -> list[tuple[Judgement, bool] | LookalikeError]:
        """Keeps judgements in one step; each with whether it is new or says another thing.

        One of a pair that is judged already takes its place. In the place of one whose query or
        match does not exist stands an `ImageNotFoundError`; of one whose vector has no space under
        its spec, a `VectorSpaceNotFoundError`. Raises `CollectionNotFoundError`, and
        `StorageFullError`.
        """

    def page(
        self,
        collection: str,
        *,
        cursor: str | None = None,
        limit: int = 100,
        vectors_of: ModelSpec | None = None,
    ) -> tuple[list[Judgement], str | None]:
        """Some judgements, oldest first, and the cursor of the next page; None at the end.

        With `vectors_of`, queries without an id have their vector, if it is in that space. Raises
        `CollectionNotFoundError`, and `InvalidParameterError` for a cursor that no page gave.
        """

    def count(self, collection: str) -> int:
        """How many there are; 0 if there is no such collection."""

    def delete(self, collection: str, judgement_id: str) -> None:
        """Removes one. Raises `CollectionNotFoundError`, `JudgementNotFoundError`."""


def all_judgements(
    judgements: Judgements, collection: str, *, vectors_of: ModelSpec | None = None
) -> Iterator[list[Judgement]]:
    """All of a collection, some at a time; otherwise as `Judgements.page`."""
    cursor: str | None = None
    while True:
        page, cursor = judgements.page(collection, cursor=cursor, vectors_of=vectors_of)
        yield page
        if cursor is None:
            return
