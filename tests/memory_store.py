"""A store in memory: the plain definition that the local store is compared with."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import (
    ConflictError,
    InvalidParameterError,
    LookalikeError,
    VectorSpaceNotFoundError,
)
from lookalike.progress import Progress
from lookalike.records import (
    MAX_COPIES,
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
    PutStatus,
    decode_cursor,
    encode_cursor,
    utc_now,
)
from lookalike.store.base import (
    Capability,
    Missing,
    Page,
    Recipe,
    Vectors,
    VectorSpace,
    VectorSpaces,
    best_first,
    check_vectors,
    exact_scores,
    has_aliases,
    image_not_found,
    is_alias,
    name_taken,
    require_same_spec,
    unknown_alias,
    unknown_collection,
)
from lookalike.store.filters import MAX_METADATA_BYTES, Filter, Kind, check_metadata, merge_patch
from lookalike.store.judgements import Judgements
from lookalike.store.outcomes import decide, is_upload, put_outcome
from tests import plain_filters
from tests.memory_judgements import HeldJudgement, MemoryJudgements


@dataclass(frozen=True, slots=True)
class Row:
    """One picture under the number that it got when it came."""

    seq: int
    record: ImageRecord


@dataclass(slots=True)
class HeldSpace:
    """One vector space: seq -> (dim,) float32."""

    spec: ModelSpec
    provenance: Mapping[str, str]
    recipe: Recipe | None = None
    vectors: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    calibration: Mapping[str, Any] | None = None


@dataclass(slots=True)
class HeldCollection:
    """One collection: id -> row, and its spaces in the order they were made."""

    created_at: str
    active: HeldSpace
    spaces: list[HeldSpace]
    rows: dict[str, Row] = field(default_factory=dict)
    # by location, in the order in which they were seen: the picture's id, and the place
    places: dict[str, tuple[str, Place]] = field(default_factory=dict)
    judgements: dict[str, HeldJudgement] = field(default_factory=dict)
    uploads: set[str] = field(default_factory=set)  # ids that were put without a place
    validators: dict[str, str] = field(default_factory=dict)  # by location

    def places_of(self, image_id: str) -> list[Place]:
        """All places of a picture."""
        return [place for owner, place in self.places.values() if owner == image_id]

    def see(self, image_id: str, place: Place) -> None:
        """Gives a picture a place, and takes it from the one that had it."""
        owner, _ = self.places.get(place.location, (None, place))
        if owner != image_id:
            self.forget({place.location})
            self.places[place.location] = image_id, place
            self.list_places(image_id)

    def forget(self, locations: Iterable[str]) -> None:
        """Takes places away from whatever pictures have them."""
        for location in locations:
            self.validators.pop(location, None)
            owner, _ = self.places.pop(location, (None, None))
            if owner is not None:
                self.list_places(owner)

    def list_places(self, image_id: str) -> None:
        """Lists a picture's places in its row."""
        places, row = self.places_of(image_id)[: 1 + MAX_COPIES], self.rows[image_id]
        first = places[0] if places else None
        record = replace(row.record, place=first, others=tuple(places[1:]))
        self.rows[image_id] = replace(row, record=record)

    def passing(self, where: Filter | None) -> list[Row]:
        """The rows that pass, oldest first."""
        rows = [
            row for row in self.rows.values() if not where or where.matches(row.record.metadata)
        ]
        return sorted(rows, key=lambda row: row.seq)

    def remove(self, image_id: str) -> None:
        """Takes a row out, and its vectors of all spaces."""
        self.forget([place.location for place in self.places_of(image_id)])
        self.uploads.discard(image_id)
        seq = self.rows.pop(image_id).seq
        for held in self.spaces:
            held.vectors.pop(seq, None)
        for key in [key for key, one in self.judgements.items() if seq in one.seqs]:
            del self.judgements[key]


class Collections(dict[str, HeldCollection]):
    """Collections by their names; aliases are followed wherever one is looked up."""

    def __init__(self) -> None:
        self.aliases: dict[str, str] = {}

    def real(self, name: str) -> str:
        return self.aliases.get(name, name)

    def __contains__(self, name: object) -> bool:
        return super().__contains__(self.real(str(name)))

    def __getitem__(self, name: str) -> HeldCollection:
        return super().__getitem__(self.real(name))

    def get(self, name: str, default: Any = None) -> Any:
        return super().get(self.real(name), default)


@dataclass(slots=True)
class Held:
    """Everything that a memory store keeps, and the lock over it."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    collections: Collections = field(default_factory=Collections)
    last_seq: int = 0
    noted: list[str] = field(default_factory=list)


def own(record: ImageRecord) -> ImageRecord:
    """A copy whose metadata nobody else can change."""
    return replace(record, metadata=copy.deepcopy(dict(record.metadata)))


class MemoryStore:
    """A `Store` that forgets: NumPy brute force over plain dictionaries, behind one lock."""

    def __init__(self) -> None:
        self._held = Held()
        self._lock = self._held.lock
        self._collections = self._held.collections
        self._spaces = MemorySpaces(self._held)
        self._judgements = MemoryJudgements(self._held)

    @property
    def capabilities(self) -> frozenset[Capability]:
        return frozenset(Capability)

    @property
    def spaces(self) -> VectorSpaces:
        return self._spaces

    @property
    def judgements(self) -> Judgements:
        return self._judgements

    def collections(self) -> list[CollectionInfo]:
        with self._lock:
            return [self._described(name) for name in sorted(self._collections)]

    def collection(self, name: str) -> CollectionInfo | None:
        with self._lock:
            return self._described(name) if name in self._collections else None

    def _described(self, name: str) -> CollectionInfo:
        name, held = self._collections.real(name), self._collections[name]
        leading = [alias for alias, to in self._collections.aliases.items() if to == name]
        return CollectionInfo(
            name=name,
            count=len(held.rows),
            spec=held.active.spec,
            provenance=dict(held.active.provenance),
            index="Flat",
            created_at=held.created_at,
            aliases=tuple(sorted(leading)),
        )

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
        rows = check_vectors(vectors, count=len(images), dim=spec.dim)
        if not images:
            return []
        now = utc_now()
        with self._lock:
            held = self._collections.get(collection)
            if held:
                require_same_spec(collection, held.active.spec, spec)
            else:
                active = HeldSpace(spec, dict(provenance))
                held = HeldCollection(now, active, [active])
                self._collections[collection] = held
            how: dict[str, Any] = {"on_conflict": on_conflict, "now": now}
            pairs = zip(images, rows, strict=True)
            return [self._put(collection, held, *pair, **how) for pair in pairs]

    def _put(
        self,
        collection: str,
        held: HeldCollection,
        image: NewImage,
        vector: NDArray[np.float32],
        *,
        on_conflict: OnConflict,
        now: str,
    ) -> PutOutcome:
        old, collection = held.rows.get(image.id), self._collections.real(collection)
        existing = old.record if old else None
        outcome = put_outcome(collection, existing, image, on_conflict=on_conflict, now=now)
        record = own(outcome.record)
        if outcome.status is PutStatus.REPLACED:
            self._held.noted.append(held.rows[record.id].record.sha256)
            held.remove(record.id)
        if outcome.status in {PutStatus.CREATED, PutStatus.REPLACED}:
            self._held.last_seq += 1
            held.rows[record.id] = Row(self._held.last_seq, record)
            held.active.vectors[self._held.last_seq] = vector.copy()
        elif outcome.status is PutStatus.UPDATED:
            held.rows[record.id] = replace(held.rows[record.id], record=record)
        if is_upload(outcome.record, image, outcome.status):
            held.uploads.add(image.id)
        if image.place is not None and outcome.record is not existing:
            held.see(image.id, image.place)
        return replace(outcome, record=own(outcome.record))

    def get(self, collection: str, image_id: str) -> ImageRecord:
        with self._lock:
            return own(self._row(collection, image_id).record)

    def find(self, collection: str, image_ids: Sequence[str]) -> dict[str, ImageRecord]:
        with self._lock:
            held = self._collections.get(collection)
            rows = held.rows if held else {}
            return {key: own(rows[key].record) for key in image_ids if key in rows}

    def scroll(
        self,
        collection: str,
        *,
        cursor: str | None = None,
        limit: int = 100,
        where: Filter | None = None,
        vectors_of: ModelSpec | None = None,
    ) -> Page:
        after = decode_cursor(cursor)
        if limit < 1:
            raise InvalidParameterError("limit must be at least 1")
        with self._lock:
            held = self._collections.get(collection)
            found = [row for row in held.passing(where) if row.seq > after] if held else []
            rows = found[:limit]
            end = encode_cursor(rows[-1].seq if rows else after)
            next_cursor = end if len(found) > limit else None
            vectors = np.empty((0, 0), np.float32)
            if vectors_of is not None:
                space = _find(held, vectors_of) if held else None
                rows = [row for row in rows if space and row.seq in space.vectors]
                if space and rows:
                    vectors = np.stack([space.vectors[row.seq] for row in rows])
            records = [own(row.record) for row in rows]
        return Page(records=records, next_cursor=next_cursor, end=end, vectors=vectors)

    def count(self, collection: str, where: Filter | None = None) -> int:
        return len(self._metadata(collection, where))

    def facets(
        self,
        collection: str,
        *,
        fields: Sequence[str] | None = None,
        where: Filter | None = None,
        limit: int = 10,
    ) -> Facets:
        if self.collection(collection) is None:
            return Facets(count=0, fields=len(fields or ()), facets=[])
        return plain_filters.facets(self._metadata(collection, where), fields, limit)

    def kinds(self, collection: str, fields: Iterable[str]) -> dict[str, frozenset[Kind]]:
        rows = self._metadata(collection, None)
        return {field: plain_filters.kinds(rows, field) for field in fields}

    def _metadata(self, collection: str, where: Filter | None) -> list[Metadata]:
        with self._lock:
            held = self._collections.get(collection)
            return [row.record.metadata for row in held.passing(where)] if held else []

    def upsert_known(
        self, collection: str, images: Sequence[NewImage], *, on_conflict: OnConflict
    ) -> list[PutOutcome | None]:
        with self._lock:
            held, now = self._collections.get(collection), utc_now()
            outcomes: list[PutOutcome | None] = []
            for image in images:
                status = PutStatus.CREATED
                if held is not None and image.id in held.rows:
                    status = decide(held.rows[image.id].record, image, on_conflict)
                if held is None or status in {PutStatus.CREATED, PutStatus.REPLACED}:
                    outcomes.append(None)
                    continue
                none = np.empty(0, np.float32)
                outcomes.append(
                    self._put(collection, held, image, none, on_conflict=on_conflict, now=now)
                )
            return outcomes

    def places(self, collection: str, image_ids: Sequence[str]) -> dict[str, list[Place]]:
        with self._lock:
            held = self._collections.get(collection)
            found = {key: held.places_of(key) for key in image_ids} if held else {}
            return {key: places for key, places in found.items() if places}

    def copied(self, collection: str) -> list[str]:
        with self._lock:
            held = self._collections.get(collection)
            return [key for key in held.rows if len(held.places_of(key)) > 1] if held else []

    def seen(self, collection: str, root: str) -> dict[str, str]:
        with self._lock:
            held = self._collections.get(collection)
            places = held.places.values() if held else ()
            return {place.path: owner for owner, place in places if place.root == root}

    def uploaded(self, collection: str, image_ids: Sequence[str]) -> set[str]:
        with self._lock:
            held = self._collections.get(collection)
            return held.uploads & set(image_ids) if held else set()

    def validators(self, collection: str, root: str) -> dict[str, str]:
        with self._lock:
            held = self._collections.get(collection)
            noted = held.validators.items() if held else ()
            places = {location: held.places[location][1] for location, _ in noted}
            return {places[key].path: text for key, text in noted if places[key].root == root}

    def validate(self, collection: str, root: str, validators: Mapping[str, str]) -> None:
        with self._lock:
            held = self._collections.get(collection)
            for path, text in validators.items():
                location = Place(root, path).location
                if held and location in held.places:
                    held.validators[location] = text

    def forget(self, collection: str, places: Sequence[Place]) -> None:
        with self._lock:
            if collection in self._collections:
                self._collections[collection].forget([place.location for place in places])

    def update_metadata(
        self,
        collection: str,
        image_id: str,
        patch: Metadata,
        *,
        max_bytes: int = MAX_METADATA_BYTES,
    ) -> ImageRecord:
        with self._lock:
            old = self._row(collection, image_id).record.metadata
            merged = check_metadata(merge_patch(old, patch), max_bytes)
            return self._set(collection, image_id, merged)

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
        changed: dict[str, ImageRecord | LookalikeError] = {}
        with self._lock:
            for image_id, record in self.find(collection, image_ids).items():
                if where and not where.matches(record.metadata):
                    continue
                try:
                    wanted = patch if replace else merge_patch(record.metadata, patch)
                    metadata = check_metadata(wanted, max_bytes)
                except LookalikeError as exc:
                    changed[image_id] = exc
                else:
                    changed[image_id] = self._set(collection, image_id, metadata)
        return changed

    def update_each(
        self,
        collection: str,
        patches: Mapping[str, Metadata],
        *,
        max_bytes: int = MAX_METADATA_BYTES,
    ) -> dict[str, ImageRecord | LookalikeError]:
        changed: dict[str, ImageRecord | LookalikeError] = {}
        for image_id, patch in patches.items():
            changed |= self.update_many(collection, [image_id], patch, max_bytes=max_bytes)
        return changed

    def _set(self, collection: str, image_id: str, metadata: Metadata) -> ImageRecord:
        row = self._row(collection, image_id)
        record = own(replace(row.record, metadata=metadata, updated_at=utc_now()))
        self._collections[collection].rows[image_id] = replace(row, record=record)
        return own(record)

    def refer(self, collection: str, image: NewImage) -> None:
        with self._lock:
            held = self._collections.get(collection)
            row = held.rows.get(image.id) if held else None
            if held and row and row.record.sha256 == image.sha256:
                record = replace(row.record, source=image.source)
                held.rows[image.id] = replace(row, record=record)

    def delete(self, collection: str, image_id: str) -> None:
        with self._lock:
            self._held.noted.append(self._row(collection, image_id).record.sha256)
            self._collections[collection].remove(image_id)

    def delete_many(
        self, collection: str, image_ids: Sequence[str], *, where: Filter | None = None
    ) -> set[str]:
        with self._lock:
            found = self.find(collection, image_ids)
            gone = {key for key, one in found.items() if not where or where.matches(one.metadata)}
            for key in gone:
                self.delete(collection, key)
            return gone

    def make(self, collection: str, *, spec: ModelSpec, provenance: Mapping[str, str]) -> bool:
        with self._lock:
            if collection in self._collections:
                return False
            active = HeldSpace(spec, dict(provenance))
            self._collections[collection] = HeldCollection(utc_now(), active, [active])
            return True

    def rename(self, collection: str, new: str) -> None:
        with self._lock:
            self._require_named(collection)
            if new != collection and new in self._collections:
                raise name_taken(new)
            held = self._collections.pop(collection)
            for alias, to in self._collections.aliases.items():
                self._collections.aliases[alias] = new if to == collection else to
            for image_id, row in held.rows.items():
                held.rows[image_id] = replace(row, record=replace(row.record, collection=new))
            self._collections[new] = held

    def _require_named(self, collection: str) -> None:
        if collection not in self._collections:
            raise unknown_collection(collection)
        if (real := self._collections.real(collection)) != collection:
            raise is_alias(collection, real)

    def alias(self, alias: str, collection: str) -> None:
        with self._lock:
            if self._collections.real(alias) == alias and alias in self._collections:
                raise name_taken(alias)
            if collection not in self._collections:
                raise unknown_collection(collection)
            self._collections.aliases[alias] = self._collections.real(collection)

    def unalias(self, alias: str) -> None:
        with self._lock:
            if self._collections.aliases.pop(alias, None) is None:
                raise unknown_alias(alias)

    def drop(self, collection: str, *, wait: bool = False) -> int:
        with self._lock:
            self._require_named(collection)
            if aliases := self._described(collection).aliases:
                raise has_aliases(collection, aliases)
            rows = self._collections.pop(collection).rows
            self._held.noted += [row.record.sha256 for row in rows.values()]
            return len(rows)

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
        asked = check_vectors(queries, count=None, dim=spec.dim)
        if k < 1:
            raise InvalidParameterError("k must be at least 1")
        with self._lock:
            held = self._collections.get(collection)
            if held:
                require_same_spec(collection, held.active.spec, spec)
            rows = [r for r in held.passing(where) if r.record.id not in exclude] if held else []
            vectors = [held.active.vectors[row.seq] for row in rows] if held else []
            return [_rank(rows, vectors, query, k) for query in asked]

    def references(self, sha256s: Iterable[str], *, thorough: bool = False) -> set[str]:
        with self._lock:
            held = self._collections.values()
            return set(sha256s) & {row.record.sha256 for c in held for row in c.rows.values()}

    def expect(self, sha256s: Iterable[str]) -> None:
        with self._lock:
            self._held.noted += sha256s

    def unnamed(self) -> Iterator[list[str]]:
        with self._lock:
            noted, self._held.noted = self._held.noted, []
        try:
            while batch := list(dict.fromkeys(noted[:2])):
                if free := [digest for digest in batch if digest not in self.references(batch)]:
                    yield free
                del noted[:2]
        finally:
            self.expect(noted)

    def noted(self) -> Iterator[str]:
        return iter(list(self._held.noted))

    def verify(self, *, quick: bool, progress: Progress) -> Iterator[Finding]:
        return iter(())

    def mend(self) -> None:
        """Nothing of it can be damaged."""

    def check(self) -> None:
        pass

    def describe(self) -> dict[str, Any]:
        with self._lock:
            sizes = {
                name: {
                    "index": "Flat",
                    "count": len(c.rows),
                    "bytes": 4 * c.active.spec.dim * len(c.rows),
                }
                for name, c in sorted(self._collections.items())
            }
            return {"kind": "memory", "collections": sizes}

    def load(self) -> None:
        """Everything is in memory already."""

    def close(self) -> None:
        """Nothing to let go of."""

    def _row(self, collection: str, image_id: str) -> Row:
        held = self._collections.get(collection)
        row = held.rows.get(image_id) if held else None
        if row is None:
            raise image_not_found(collection, image_id)
        return row


class MemorySpaces:
    """`VectorSpaces` over what a memory store keeps."""

    def __init__(self, held: Held) -> None:
        self._held = held

    def all(self, collection: str) -> list[VectorSpace]:
        with self._held.lock:
            held = self._collection(collection)
            return [_described(held, one) for one in held.spaces]

    def begin(
        self,
        collection: str,
        spec: ModelSpec,
        *,
        provenance: Mapping[str, str],
        recipe: Recipe | None = None,
    ) -> VectorSpace:
        with self._held.lock:
            held = self._collection(collection)
            found = _find(held, spec)
            if found is None:
                found = HeldSpace(spec, dict(provenance))
                held.spaces.append(found)
            if recipe is not None:
                found.recipe = dict(recipe)
            return _described(held, found)

    def missing(
        self, collection: str, spec: ModelSpec, *, limit: int, cursor: str | None = None
    ) -> Missing:
        after = decode_cursor(cursor)
        if limit < 1:
            raise InvalidParameterError("limit must be at least 1")
        with self._held.lock:
            held, one = self._space(collection, spec)
            rows = [
                row for row in held.passing(None) if row.seq > after and row.seq not in one.vectors
            ][:limit]
            last = rows[-1].seq if rows else after
            return Missing([own(row.record) for row in rows], encode_cursor(last))

    def vectors(
        self, collection: str, spec: ModelSpec, records: Sequence[ImageRecord]
    ) -> dict[str, NDArray[np.float32]]:
        with self._held.lock:
            held, one = self._space(collection, spec)
            seqs = {record.id: _seq(held, record) for record in records}
            return {
                image_id: one.vectors[seq].copy()
                for image_id, seq in seqs.items()
                if seq in one.vectors
            }

    def add(
        self, collection: str, spec: ModelSpec, records: Sequence[ImageRecord], vectors: Vectors
    ) -> int:
        rows = check_vectors(vectors, count=len(records), dim=spec.dim)
        added = 0
        with self._held.lock:
            held, one = self._space(collection, spec)
            for record, vector in zip(records, rows, strict=True):
                seq = _seq(held, record)
                if seq and seq not in one.vectors:
                    one.vectors[seq] = vector.copy()
                    added += 1
        return added

    def prepared(self, collection: str, spec: ModelSpec) -> AbstractContextManager[None]:
        with self._held.lock:
            self._space(collection, spec)
        return nullcontext()

    def activate(self, collection: str, spec: ModelSpec) -> bool:
        with self._held.lock:
            held, one = self._space(collection, spec)
            if any(row.seq not in one.vectors for row in held.rows.values()):
                return False
            held.active = one
            return True

    def discard(self, collection: str, spec: ModelSpec) -> None:
        with self._held.lock:
            held, one = self._space(collection, spec)
            if one is held.active:
                raise ConflictError("These vectors are in use")
            held.spaces.remove(one)
            for key in [key for key, held_one in held.judgements.items() if held_one.spec == spec]:
                del held.judgements[key]

    def calibration(self, collection: str, spec: ModelSpec) -> Mapping[str, Any] | None:
        with self._held.lock:
            held = self._held.collections.get(collection)
            found = _find(held, spec) if held else None
            return copy.deepcopy(found.calibration) if found else None

    def calibrate(
        self, collection: str, spec: ModelSpec, content: Mapping[str, Any] | None
    ) -> None:
        with self._held.lock:
            _, one = self._space(collection, spec)
            one.calibration = copy.deepcopy(content)

    def _collection(self, name: str) -> HeldCollection:
        held = self._held.collections.get(name)
        if held is None:
            raise unknown_collection(name)
        return held

    def _space(self, name: str, spec: ModelSpec) -> tuple[HeldCollection, HeldSpace]:
        held = self._collection(name)
        found = _find(held, spec)
        if found is None:
            raise VectorSpaceNotFoundError(f"No vectors under {spec.digest}: re-embed it")
        return held, found


def _find(held: HeldCollection, spec: ModelSpec) -> HeldSpace | None:
    return next((one for one in held.spaces if one.spec.digest == spec.digest), None)


def _seq(held: HeldCollection, record: ImageRecord) -> int:
    """The number of the row that still has a record's content; 0 where none has."""
    row = held.rows.get(record.id)
    return row.seq if row and row.record.sha256 == record.sha256 else 0


def _described(held: HeldCollection, one: HeldSpace) -> VectorSpace:
    return VectorSpace(
        spec=one.spec,
        provenance=dict(one.provenance),
        recipe=None if one.recipe is None else dict(one.recipe),
        count=len(one.vectors),
        active=one is held.active,
    )


def _rank(
    rows: list[Row], vectors: list[NDArray[np.float32]], query: NDArray[np.float32], k: int
) -> list[Match]:
    if not rows:
        return []
    scores = exact_scores(np.stack(vectors), query)
    seqs = np.array([row.seq for row in rows], dtype=np.int64)
    order = best_first(scores, seqs, k)
    return [
        Match(rank, float(scores[i]), own(rows[i].record)) for rank, i in enumerate(order, start=1)
    ]
