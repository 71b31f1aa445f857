"""Vector spaces of the local store against those of the memory store, under random work."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from lookalike.errors import ConflictError, NotFoundError
from lookalike.records import ModelSpec
from lookalike.store.base import Store, spec_of
from lookalike.store.local.store import LocalStore
from tests.memory_store import MemoryStore
from tests.store.helpers import answers, new_image, unit_vectors
from tests.store.test_agreement import RUNS, row

PASSPORTS = [
    ModelSpec(model=f"m{n}", weights="random", weights_sha256=str(n) * 64, dim=4 + n)
    for n in range(3)
]
POOLS = {spec.model: unit_vectors(6, dim=spec.dim) for spec in PASSPORTS}
IDS = st.sampled_from([f"i{n}" for n in range(6)])
SETS = st.sampled_from(PASSPORTS)


class SetsAgree(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.memory = MemoryStore()
        self.local = LocalStore(self.folder)

    def both(self, act: Any) -> tuple[Any, Any]:
        results: list[Any] = []
        for store in (self.memory, self.local):
            try:
                results.append(act(store))
            except (NotFoundError, ConflictError) as exc:
                results.append(type(exc))
        return results[0], results[1]

    def same(self, act: Any) -> None:
        left, right = self.both(act)
        assert left == right

    @rule(items=st.lists(st.tuples(IDS, st.integers(0, 5)), min_size=1, max_size=4))
    def put(self, items: list[Any]) -> None:
        spec = spec_of(self.memory, "default") or PASSPORTS[0]
        images = [new_image(i, content=str(n)) for i, n in items]
        vectors = POOLS[spec.model][[n for _, n in items]]

        def act(store: Store) -> Any:
            outcomes = store.upsert("default", images, vectors, spec=spec, provenance={})
            return [(one.status, row(one.record)) for one in outcomes]

        self.same(act)

    @rule(image_id=IDS)
    def delete(self, image_id: str) -> None:
        self.same(lambda store: store.delete("default", image_id))

    @rule()
    def drop(self) -> None:
        self.same(lambda store: store.drop("default"))

    @rule(spec=SETS)
    def begin(self, spec: ModelSpec) -> None:
        self.same(lambda store: store.spaces.begin("default", spec, provenance={}))

    @rule(spec=SETS, limit=st.integers(1, 6))
    def add(self, spec: ModelSpec, limit: int) -> None:
        def act(store: Store) -> Any:
            records = store.spaces.missing("default", spec, limit=limit).records
            contents = [_content(record.sha256) for record in records]
            vectors = POOLS[spec.model][contents].reshape(-1, spec.dim)
            return store.spaces.add("default", spec, records, vectors)

        self.same(act)

    @rule(spec=SETS, image_id=IDS, content=st.integers(0, 5))
    def add_what_may_be_gone(self, spec: ModelSpec, image_id: str, content: int) -> None:
        def act(store: Store) -> Any:
            found = store.find("default", [image_id])
            records = [
                r for r in found.values() if r.sha256 == new_image("x", content=str(content)).sha256
            ]
            vectors = POOLS[spec.model][[content] * len(records)]
            return store.spaces.add("default", spec, records, vectors)

        self.same(act)

    @rule(spec=SETS)
    def activate(self, spec: ModelSpec) -> None:
        self.same(lambda store: store.spaces.activate("default", spec))

    @rule(spec=SETS)
    def discard(self, spec: ModelSpec) -> None:
        self.same(lambda store: store.spaces.discard("default", spec))

    @rule()
    def reopen(self) -> None:
        self.local.close()
        self.local = LocalStore(self.folder)

    @rule(k=st.integers(1, 7))
    def search(self, k: int) -> None:
        spec = spec_of(self.memory, "default") or PASSPORTS[0]
        queries = POOLS[spec.model][:2]
        self.same(lambda store: answers(store.search("default", queries, k=k, spec=spec)))

    @invariant()
    def same_sets(self) -> None:
        self.same(lambda store: store.spaces.all("default"))
        self.same(lambda store: spec_of(store, "default"))

    @invariant()
    def same_vectors(self) -> None:
        records = self.memory.scroll("default").records
        for spec in PASSPORTS:
            self.same(
                lambda store, spec=spec: [
                    row(r) for r in store.spaces.missing("default", spec, limit=9).records
                ]
            )
            left, right = self.both(
                lambda store, spec=spec: store.spaces.vectors("default", spec, records)
            )
            if isinstance(left, dict):
                assert left.keys() == right.keys()
                for image_id, vector in left.items():
                    assert np.array_equal(vector, right[image_id])
                    content = _content(self.memory.get("default", image_id).sha256)
                    assert np.array_equal(vector, POOLS[spec.model][content])
            else:
                assert left is right

    def teardown(self) -> None:
        self.local.close()
        shutil.rmtree(self.folder)


def _content(sha256: str) -> int:
    """Which of the six contents has this digest."""
    return next(n for n in range(6) if new_image("x", content=str(n)).sha256 == sha256)


TestSetsAgree = SetsAgree.TestCase
TestSetsAgree.settings = RUNS
