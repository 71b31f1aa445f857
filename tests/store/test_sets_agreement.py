"""Embedding sets of the local store against those of the memory store, under random work."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from lookalike.errors import ConflictError, NotFoundError
from lookalike.records import Passport
from lookalike.store.base import Store
from lookalike.store.local.local_store import LocalStore
from lookalike.store.memory_store import MemoryStore
from tests.store.helpers import answers, new_image, unit_vectors
from tests.store.test_agreement import RUNS, row

PASSPORTS = [
    Passport(model=f"m{n}", weights="random", weights_sha256=str(n) * 64, dim=4 + n)
    for n in range(3)
]
POOLS = {passport.model: unit_vectors(6, dim=passport.dim) for passport in PASSPORTS}
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
        passport = self.memory.passport("default") or PASSPORTS[0]
        images = [new_image(i, content=str(n)) for i, n in items]
        vectors = POOLS[passport.model][[n for _, n in items]]

        def act(store: Store) -> Any:
            outcomes = store.put("default", images, vectors, passport=passport, provenance={})
            return [(one.status, row(one.record)) for one in outcomes]

        self.same(act)

    @rule(image_id=IDS)
    def delete(self, image_id: str) -> None:
        self.same(lambda store: store.delete("default", image_id))

    @rule()
    def drop(self) -> None:
        self.same(lambda store: store.drop("default"))

    @rule(passport=SETS)
    def begin(self, passport: Passport) -> None:
        self.same(lambda store: store.sets.begin("default", passport, provenance={}))

    @rule(passport=SETS, limit=st.integers(1, 6))
    def add(self, passport: Passport, limit: int) -> None:
        def act(store: Store) -> Any:
            records = store.sets.missing("default", passport, limit=limit).records
            contents = [_content(record.sha256) for record in records]
            vectors = POOLS[passport.model][contents].reshape(-1, passport.dim)
            return store.sets.add("default", passport, records, vectors)

        self.same(act)

    @rule(passport=SETS, image_id=IDS, content=st.integers(0, 5))
    def add_what_may_be_gone(self, passport: Passport, image_id: str, content: int) -> None:
        def act(store: Store) -> Any:
            found = store.find("default", [image_id])
            records = [
                r for r in found.values() if r.sha256 == new_image("x", content=str(content)).sha256
            ]
            vectors = POOLS[passport.model][[content] * len(records)]
            return store.sets.add("default", passport, records, vectors)

        self.same(act)

    @rule(passport=SETS)
    def activate(self, passport: Passport) -> None:
        self.same(lambda store: store.sets.activate("default", passport))

    @rule(passport=SETS)
    def discard(self, passport: Passport) -> None:
        self.same(lambda store: store.sets.discard("default", passport))

    @rule()
    def reopen(self) -> None:
        self.local.close()
        self.local = LocalStore(self.folder)

    @rule(k=st.integers(1, 7))
    def search(self, k: int) -> None:
        passport = self.memory.passport("default") or PASSPORTS[0]
        queries = POOLS[passport.model][:2]
        self.same(lambda store: answers(store.search("default", queries, k=k, passport=passport)))

    @invariant()
    def same_sets(self) -> None:
        self.same(lambda store: store.sets.all("default"))
        self.same(lambda store: store.passport("default"))

    @invariant()
    def same_vectors(self) -> None:
        records = self.memory.page("default").records
        for passport in PASSPORTS:
            self.same(
                lambda store, passport=passport: [
                    row(r) for r in store.sets.missing("default", passport, limit=9).records
                ]
            )
            left, right = self.both(
                lambda store, passport=passport: store.sets.vectors("default", passport, records)
            )
            if isinstance(left, dict):
                assert left.keys() == right.keys()
                for image_id, vector in left.items():
                    assert np.array_equal(vector, right[image_id])
                    content = _content(self.memory.get("default", image_id).sha256)
                    assert np.array_equal(vector, POOLS[passport.model][content])
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
