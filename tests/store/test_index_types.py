"""Any index type: what it finds, what it survives, compared with the memory store."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lookalike.records import Effort
from lookalike.store.base import count_of
from lookalike.store.filters import Filter
from lookalike.store.local.index.policy import IndexPolicy, Limits
from lookalike.store.local.store import LocalStore
from tests.memory_store import MemoryStore
from tests.store.helpers import SPEC, answers, new_image, put, unit_vectors

TYPES = (
    "IVF4,Flat",
    "IVF4,SQ8,RFlat",
    "HNSW16,SQ8",
    "PCAR4,IVF2,SQ8",
    "SQ8",
    "PQ4x4fs",
    "IVF2,PQ4x4fs,RFlat",
)
WANTED: tuple[Any, ...] = (
    None,
    *({"n": n} for n in range(4)),
    {"or": [{"n": 1}, {"s.w": {"gte": 5}}], "not": {"t": "z"}},
    {"t": {"in": ["y", "z"]}},
    {"not": {"t": "x"}},
    {"and": [{"s.w": {"lt": 4}}, {"no": {"exists": False}}]},
)
EVERYTHING = Effort(nprobe=65_536, ef_search=65_536, k_factor=1_000)
"""Hard enough to find all there is in a small collection."""


def copy_if_there(source: str, target: str) -> None:
    """Copies a file; one that a build removes meanwhile is not there for the next process."""
    with suppress(FileNotFoundError):
        shutil.copy2(source, target)


class IndexMachine(RuleBasedStateMachine):
    """Adds, replaces, deletes, filters, rebuilds, kills and restarts, beside a memory store."""

    limits = Limits(min_rows=60)

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="lookalike-test-"))
        self.memory = MemoryStore()
        self.added = 0

    @initialize(index_type=st.sampled_from(TYPES), count=st.integers(0, 250))
    def begin(self, index_type: str, count: int) -> None:
        self.index_type = index_type
        self.store = self.open()
        if count:
            self.put([f"i{n}" for n in range(count)], seed=1)

    def open(self) -> LocalStore:
        policy = IndexPolicy(index_type=self.index_type, limits=self.limits)
        return LocalStore(self.folder, policy=policy)

    def put(self, ids: list[str], *, seed: int) -> None:
        rng = np.random.default_rng(seed)
        images = [
            new_image(
                i,
                content=f"{i}-{seed}",
                metadata={"n": n % 3, "s": {"w": n % 7}, "t": ["x", "yz"[n % 2]][: n % 3]},
            )
            for n, i in enumerate(ids)
        ]
        vectors = unit_vectors(len(ids), seed=seed)
        # Equal scores, a few each: of more equal rows than it has links a graph may lose some.
        repeated = np.flatnonzero(rng.random(len(ids)) < 0.2)
        vectors[repeated] = vectors[repeated - repeated % 12]
        for store in (self.store, self.memory):
            put(store, images, vectors)
        self.added += len(ids)

    @rule(start=st.integers(0, 300), count=st.integers(1, 60), seed=st.integers(2, 9))
    def add_or_replace(self, start: int, count: int, seed: int) -> None:
        self.put([f"i{n}" for n in range(start, start + count)], seed=seed)

    @precondition(lambda self: count_of(self.memory, "default") > 0)
    @rule(share=st.floats(0, 1), count=st.integers(1, 60))
    def delete(self, share: float, count: int) -> None:
        records = self.memory.scroll("default", limit=1000).records
        first = int(share * (len(records) - 1))
        for record in records[first : first + count]:
            self.store.delete("default", record.id)
            self.memory.delete("default", record.id)

    @rule()
    def rebuild(self) -> None:
        self.store._indexes.rebuild("default")

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = self.open()

    @rule()
    def kill(self) -> None:
        """What is on the disk right now is all that the next process gets."""
        copy = Path(tempfile.mkdtemp(prefix="lookalike-test-"))
        with self.store._catalog.connections._write_lock:  # files copied one by one, of one moment
            try:
                shutil.copytree(
                    self.folder,
                    copy,
                    dirs_exist_ok=True,
                    ignore=shutil.ignore_patterns("*.lock"),
                    copy_function=copy_if_there,
                )
            except shutil.Error as exc:  # nor is a folder that a build removes meanwhile
                if any(Path(source).exists() for source, *_ in exc.args[0]):
                    raise
        self.store.close()
        shutil.rmtree(self.folder)
        self.folder = copy
        self.store = self.open()

    @rule(index_type=st.sampled_from(("Flat", *TYPES)))
    def change_type(self, index_type: str) -> None:
        self.store.close()
        self.index_type = index_type
        self.store = self.open()

    @rule(
        seed=st.integers(0, 99),
        k=st.integers(1, 40),
        wanted=st.sampled_from(WANTED),
        leave_out=st.integers(0, 3),
        exact=st.booleans(),
    )
    def search(self, seed: int, k: int, wanted: Any, leave_out: int, exact: bool) -> None:
        queries = unit_vectors(2, seed=seed)
        where = None if wanted is None else Filter.parse(wanted)
        exclude = [f"i{number}" for number in range(leave_out)]
        effort = Effort(exact=True) if exact else EVERYTHING
        mine, true = (
            store.search(
                "default",
                queries,
                k=k,
                spec=SPEC,
                where=where,
                exclude=exclude,
                effort=effort,
            )
            for store in (self.store, self.memory)
        )
        assert answers(mine) == answers(true)

    @rule(seed=st.integers(0, 99), k=st.integers(1, 40), n=st.integers(0, 2))
    def search_lightly(self, seed: int, k: int, n: int) -> None:
        """With the least effort it may miss some, but never says anything untrue."""
        where = Filter.parse({"n": n})
        queries = unit_vectors(1, seed=seed)
        least = Effort(nprobe=1, ef_search=1, k_factor=1)
        (found,) = self.store.search("default", queries, k=k, spec=SPEC, where=where, effort=least)
        (all_there,) = self.memory.search("default", queries, k=1000, spec=SPEC, where=where)
        scores = {match.record.id: match.score for match in all_there}
        assert len(found) == min(k, len(all_there))
        assert [m.score for m in found] == sorted((m.score for m in found), reverse=True)
        assert all(abs(scores[m.record.id] - m.score) < 1e-12 for m in found)

    @invariant()
    def count(self) -> None:
        if hasattr(self, "store"):
            assert count_of(self.store, "default") == count_of(self.memory, "default")

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class SmallLimits(IndexMachine):
    """The same with FAISS asked for parts too, and tombstones hidden from it."""

    limits = Limits(min_rows=60, tried_share=1e9, spare=1, overfetched=1)


RUNS = settings(
    max_examples=8,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    database=None,
)
TestIndexMachine = IndexMachine.TestCase
TestIndexMachine.settings = RUNS
TestSmallLimits = SmallLimits.TestCase
TestSmallLimits.settings = RUNS
