"""`Judgements` of the memory store: plain dictionaries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING

from lookalike.errors import (
    InvalidParameterError,
    JudgementNotFoundError,
    LookalikeError,
    VectorSpaceNotFoundError,
)
from lookalike.records import ModelSpec, decode_cursor, encode_cursor, utc_now
from lookalike.store.base import check_vectors, image_not_found, unknown_collection
from lookalike.store.judgements import Judgement, NewJudgement

if TYPE_CHECKING:
    from tests.memory_store import Held, HeldCollection

_numbers = count(1)


@dataclass(slots=True)
class HeldJudgement:
    """A judgement, and the rows that it is about."""

    number: int
    judgement: Judgement
    seqs: set[int]
    spec: ModelSpec | None  # what made its query's vector


class MemoryJudgements:
    """`Judgements` over what a memory store keeps."""

    def __init__(self, held: Held) -> None:
        self._held = held

    def put(
        self, collection: str, given: Sequence[NewJudgement]
    ) -> list[tuple[Judgement, bool] | LookalikeError]:
        with self._held.lock:
            held = self._collection(collection)
            return [_put(collection, held, one) for one in given]

    def page(
        self,
        collection: str,
        *,
        cursor: str | None = None,
        limit: int = 100,
        vectors_of: ModelSpec | None = None,
    ) -> tuple[list[Judgement], str | None]:
        after = decode_cursor(cursor)
        if limit < 1:
            raise InvalidParameterError("limit must be at least 1")
        with self._held.lock:
            held = self._collection(collection).judgements.values()
            found = sorted((one for one in held if one.number > after), key=lambda one: one.number)
            digest = vectors_of and vectors_of.digest
            judgements = [
                one.judgement
                if one.spec and one.spec.digest == digest
                else replace(one.judgement, vector=None)
                for one in found[:limit]
            ]
        more = len(found) > limit
        return judgements, encode_cursor(found[limit - 1].number) if more else None

    def count(self, collection: str) -> int:
        with self._held.lock:
            held = self._held.collections.get(collection)
            return len(held.judgements) if held else 0

    def delete(self, collection: str, judgement_id: str) -> None:
        with self._held.lock:
            if self._collection(collection).judgements.pop(judgement_id, None) is None:
                raise JudgementNotFoundError(judgement_id)

    def _collection(self, name: str) -> HeldCollection:
        held = self._held.collections.get(name)
        if held is None:
            raise unknown_collection(name)
        return held


def _put(
    collection: str, held: HeldCollection, given: NewJudgement
) -> tuple[Judgement, bool] | LookalikeError:
    rows = {one: held.rows.get(one) for one in (given.query, given.match) if one is not None}
    for image_id, row in rows.items():
        if row is None:
            return image_not_found(collection, image_id)
    vector, match = None, held.rows[given.match]
    if given.spec is not None and given.vector is not None:
        if all(one.spec.digest != given.spec.digest for one in held.spaces):
            return VectorSpaceNotFoundError(f"No vectors under {given.spec.digest}")
        (vector,) = check_vectors(given.vector[None, :], count=1, dim=given.spec.dim)
    before = held.judgements.get(given.id)
    query = None if given.query is None else held.rows[given.query]
    judgement = Judgement(
        id=given.id,
        query=given.query,
        query_sha256=str(given.sha256) if query is None else query.record.sha256,
        match=given.match,
        match_sha256=match.record.sha256,
        right=given.right,
        judged_at=given.judged_at or utc_now(),
        vector=vector,
    )
    same = before is not None and before.judgement.right == given.right
    if before is not None and same and (vector is None or before.spec == given.spec):
        return replace(before.judgement, vector=None), False
    seqs = {row.seq for row in (query, match) if row is not None}
    number = before.number if before else next(_numbers)
    held.judgements[given.id] = HeldJudgement(number, judgement, seqs, given.spec)
    return replace(judgement, vector=None), not same
