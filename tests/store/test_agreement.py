"""The local store against the memory store, under random work."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from lookalike.errors import ConflictError, LookalikeError, NotFoundError
from lookalike.records import ImageRecord, OnConflict, Place, PutOutcome
from lookalike.store.filters import Filter
from lookalike.store.local.index.policy import DEFAULT_LIMITS, IndexPolicy, Limits
from lookalike.store.local.store import LocalStore
from tests import plain_filters
from tests.memory_store import MemoryStore
from tests.store.helpers import SPEC, answers, new_image, put, search, unit_vectors, vector_of

POOL = unit_vectors(12)
IDS = st.sampled_from([f"i{n}" for n in range(12)])
COLLECTIONS = st.sampled_from(["one", "two", "one", "two", "three"])
METADATA = st.none() | plain_filters.METADATA
PLACES = st.none() | st.builds(
    Place, st.sampled_from(["/a", "/a/b", "z.zip", ""]), st.sampled_from(["b/x", "x", "y"])
)
FILTERS = st.none() | plain_filters.FILTERS


def row(record: ImageRecord) -> dict[str, Any]:
    """A record without its times, which differ between stores."""
    return {
        name: getattr(record, name)
        for name in ("collection", "id", "sha256", "filename", "metadata", "source", "places")
    }


def told(outcomes: Sequence[PutOutcome | None]) -> list[Any]:
    """What must be the same for every store."""
    return [one and (one.status, row(one.record), one.kept_metadata) for one in outcomes]


class Agreement(RuleBasedStateMachine):
    limits = DEFAULT_LIMITS

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.memory = MemoryStore()
        self.local = LocalStore(self.folder, policy=IndexPolicy(limits=self.limits))

    def both(self, method: str, *args: Any, **options: Any) -> tuple[Any, Any]:
        results: list[Any] = []
        for store in (self.memory, self.local):
            try:
                results.append(getattr(store, method)(*args, **options))
            except (ConflictError, NotFoundError) as exc:
                results.append(type(exc))
        return results[0], results[1]

    @rule(
        collection=COLLECTIONS,
        items=st.lists(
            st.tuples(IDS, st.integers(0, 11), METADATA, PLACES), min_size=1, max_size=6
        ),
        on_conflict=st.sampled_from(OnConflict),
        known=st.booleans(),
    )
    def put(self, collection: str, items: list[Any], on_conflict: OnConflict, known: bool) -> None:
        images = [new_image(i, content=f"{n}", metadata=m, place=p) for i, n, m, p in items]
        if known:
            settled = [
                store.upsert_known(collection, images, on_conflict=on_conflict)
                for store in (self.memory, self.local)
            ]
            assert told(settled[0]) == told(settled[1])
            return
        vectors = POOL[[n for _, n, _, _ in items]]
        outcomes = [
            put(store, images, vectors, collection=collection, on_conflict=on_conflict)
            for store in (self.memory, self.local)
        ]
        assert told(outcomes[0]) == told(outcomes[1])

    @rule(collection=COLLECTIONS, image_id=IDS)
    def delete(self, collection: str, image_id: str) -> None:
        left, right = self.both("delete", collection, image_id)
        assert left == right

    @rule(collection=COLLECTIONS, image_ids=st.lists(IDS), where=FILTERS)
    def delete_many(self, collection: str, image_ids: list[str], where: Any) -> None:
        parsed = None if where is None else Filter.parse(where)
        left, right = self.both("delete_many", collection, image_ids, where=parsed)
        assert left == right

    @rule(
        collection=COLLECTIONS,
        image_ids=st.lists(IDS),
        patch=METADATA,
        where=FILTERS,
        how=st.fixed_dictionaries({"replace": st.booleans(), "max_bytes": st.integers(2, 60)}),
    )
    def patch_many(
        self, collection: str, image_ids: list[str], patch: Any, where: Any, how: dict[str, Any]
    ) -> None:
        how["where"] = None if where is None else Filter.parse(where)
        self.changed_alike("update_many", collection, image_ids, patch or {}, **how)

    @rule(
        collection=COLLECTIONS,
        patches=st.dictionaries(IDS, METADATA.map(lambda patch: patch or {}), max_size=4),
        max_bytes=st.integers(2, 60),
    )
    def patch_each(self, collection: str, patches: dict[str, Any], max_bytes: int) -> None:
        self.changed_alike("update_each", collection, patches, max_bytes=max_bytes)

    def changed_alike(self, *call: Any, **how: Any) -> None:
        left, right = self.both(*call, **how)
        assert left.keys() == right.keys()
        for image_id, changed in left.items():
            if isinstance(changed, LookalikeError):
                assert str(changed) == str(right[image_id])
            else:
                assert row(changed) == row(right[image_id])

    @rule(collection=COLLECTIONS, places=st.lists(PLACES.filter(bool), max_size=3))
    def forget(self, collection: str, places: list[Place]) -> None:
        assert self.both("forget", collection, places) == (None, None)
        left, right = self.both("copied", collection)
        assert sorted(left) == sorted(right)

    @rule(collection=COLLECTIONS, image_id=IDS, patch=METADATA)
    def patch(self, collection: str, image_id: str, patch: Any) -> None:
        left, right = self.both("update_metadata", collection, image_id, patch or {})
        assert left is right or row(left) == row(right)

    @rule(collection=COLLECTIONS)
    def drop(self, collection: str) -> None:
        left, right = self.both("drop", collection)
        assert left == right

    @rule(collection=COLLECTIONS)
    def make(self, collection: str) -> None:
        left, right = self.both("make", collection, spec=SPEC, provenance={})
        assert left == right

    @rule(collection=COLLECTIONS, new=COLLECTIONS)
    def rename(self, collection: str, new: str) -> None:
        left, right = self.both("rename", collection, new)
        assert left == right

    @rule(
        collection=COLLECTIONS,
        root=st.sampled_from(["/a", "/a/b", ""]),
        noted=st.dictionaries(st.sampled_from(["b/x", "x", "y"]), st.sampled_from("vw")),
    )
    def validate(self, collection: str, root: str, noted: dict[str, str]) -> None:
        self.both("validate", collection, root, noted)
        for ask in ("validators", "seen"):
            left, right = self.both(ask, collection, root)
            assert left == right, ask
        left, right = self.both("uploaded", collection, [f"i{n}" for n in range(12)])
        assert left == right

    @rule(alias=COLLECTIONS, collection=COLLECTIONS)
    def alias(self, alias: str, collection: str) -> None:
        left, right = self.both("alias", alias, collection)
        assert left == right

    @rule(alias=COLLECTIONS)
    def unalias(self, alias: str) -> None:
        left, right = self.both("unalias", alias)
        assert left == right

    @rule()
    def reopen(self) -> None:
        self.local.close()
        self.local = LocalStore(self.folder, policy=IndexPolicy(limits=self.limits))

    @rule(
        collection=COLLECTIONS,
        k=st.integers(1, 15),
        where=FILTERS,
        exclude=st.lists(IDS, max_size=3),
    )
    def search(self, collection: str, k: int, where: Any, exclude: list[str]) -> None:
        parsed = None if where is None else Filter.parse(where)
        found = [
            search(store, POOL[:3], collection=collection, k=k, where=parsed, exclude=exclude)
            for store in (self.memory, self.local)
        ]
        assert answers(found[0]) == answers(found[1])

    @rule(collection=COLLECTIONS, where=FILTERS, limit=st.integers(1, 15))
    def page(self, collection: str, where: Any, limit: int) -> None:
        parsed = None if where is None else Filter.parse(where)
        left, right = self.both("scroll", collection, limit=limit, where=parsed)
        assert [row(r) for r in left.records] == [row(r) for r in right.records]
        assert (left.next_cursor is None) == (right.next_cursor is None)

    @rule(
        collection=COLLECTIONS,
        where=FILTERS,
        fields=st.none() | st.lists(st.sampled_from(plain_filters.FIELDS), max_size=3, unique=True),
        limit=st.integers(1, 4),
    )
    def count(self, collection: str, where: Any, fields: list[str] | None, limit: int) -> None:
        parsed = None if where is None else Filter.parse(where)
        left, right = self.both("count", collection, parsed)
        assert left == right
        left, right = self.both("facets", collection, fields=fields, where=parsed, limit=limit)
        assert left == right
        left, right = self.both("kinds", collection, plain_filters.FIELDS)
        assert left == right

    @invariant()
    def same_collections(self) -> None:
        left, right = self.both("collections")
        assert [(c.name, c.count) for c in left] == [(c.name, c.count) for c in right]

    @invariant()
    def same_places(self) -> None:
        for name in ("one", "two"):
            rows = {one.id: one for one in self.local.scroll(name).records}
            left, right = self.both("places", name, [*rows, "unknown"])
            assert left == right
            assert {key: one.places for key, one in rows.items() if one.places} == {
                key: tuple(places) for key, places in right.items()
            }
            locations = [place.location for places in right.values() for place in places]
            assert len(locations) == len(set(locations)), "a file has the bytes of one picture"

    @invariant()
    def same_vectors(self) -> None:
        for name in ("one", "two"):
            held = {r.id for r in self.memory.scroll(name).records}
            for image_id in held:
                left, right = (vector_of(one, name, image_id) for one in (self.memory, self.local))
                assert np.array_equal(left, right)

    def teardown(self) -> None:
        self.local.close()
        shutil.rmtree(self.folder)


class SmallLimits(Agreement):
    """The same with saves and compactions all the time, and FAISS asked even for few rows."""

    limits = Limits(
        saved_changes=2, compacted_rows=1, scored_rows=0, exact_spare=1, exact_overfetched=2
    )


RUNS = settings(
    max_examples=15,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    database=None,
)
TestAgreement = Agreement.TestCase
TestAgreement.settings = RUNS
TestSmallLimits = SmallLimits.TestCase
TestSmallLimits.settings = RUNS
