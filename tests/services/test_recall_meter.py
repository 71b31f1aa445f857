"""The live recall meter: what it measures, and that it harms nobody."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lookalike.records import CollectionInfo, Effort
from lookalike.services.checks import MAX_WAITING, WINDOW, RecallFigures, RecallMeter
from lookalike.services.search import SearchOptions, SearchService
from lookalike.store.base import Store
from lookalike.store.filters import Filter
from lookalike.store.local.index.policy import IndexPolicy, Limits
from lookalike.store.local.store import LocalStore
from tests.memory_store import MemoryStore
from tests.store.helpers import (
    OTHER_SPEC,
    SPEC,
    fill,
    ids,
    is_exact,
    new_image,
    put,
    search,
    unit_vectors,
)
from tests.waiting import PATIENCE_S, wait_for

BUSY = 1.0  # no rest between samples
QUERY = unit_vectors(1, seed=9)[0]


class Forgetful(MemoryStore):
    """An approximate store: never finds the pictures that it was told to miss."""

    def __init__(self, missed: set[str] | None = None) -> None:
        super().__init__()
        self.missed = missed or set()
        self.exact = 0
        self.before_exact: Callable[[], Any] = lambda: None

    def collection(self, name: str) -> CollectionInfo | None:
        found = super().collection(name)
        return replace(found, exact=False) if found else None

    def search(self, collection, queries, *, k, exclude=(), effort=None, **options):
        if effort is not None and effort.exact:
            self.before_exact()
            self.exact += 1
            return super().search(collection, queries, k=k, exclude=exclude, **options)
        out = [*exclude, *self.missed]
        return super().search(collection, queries, k=k, exclude=out, **options)


def best(store: MemoryStore, k: int) -> list[str]:
    found = store.search(
        "default",
        QUERY[np.newaxis],
        k=k,
        spec=SPEC,
        effort=Effort(exact=True),
    )
    return [match.record.id for match in found[0]]


@contextmanager
def measuring(store: Store, **options: Any) -> Iterator[RecallMeter]:
    with closing(RecallMeter(store, **{"share": 1.0, "busy": BUSY, **options})) as meter:
        yield meter


def offer(meter: RecallMeter, **options: Any) -> None:
    asked = {"k": 10, "spec": SPEC, **options}
    meter.offer(asked.pop("collection", "default"), asked.pop("vector", QUERY), **asked)


def search_once(store: MemoryStore, meter: RecallMeter) -> None:
    """One search of the service, by a stored picture: it needs neither encoder nor decoder."""
    nothing: Any = None
    service = SearchService(nothing, store, nothing, meter=meter)
    service.similar(best(store, 1)[0], SearchOptions())


def settled(meter: RecallMeter, count: int = 1) -> RecallFigures:
    """The figures once so many searches were done again, or could not be."""

    def enough() -> RecallFigures | None:
        figures = meter.figures().get("default", RecallFigures())
        return figures if figures.samples + figures.skipped >= count else None

    return wait_for(enough, state=meter.figures)


@pytest.fixture
def store() -> Forgetful:
    made = Forgetful()
    fill(made, 60)
    return made


def test_what_the_index_misses_is_measured(store):
    ranked = best(store, 10)
    store.missed = {ranked[0], ranked[4], ranked[9]}
    with measuring(store) as meter:
        offer(meter)
        assert settled(meter) == RecallFigures(samples=1, mean=0.7)
        store.missed = set()
        offer(meter)
        both = settled(meter, 2)
        assert both == RecallFigures(samples=2, mean=both.mean)
        assert both.mean == pytest.approx(0.85)


def test_the_search_is_done_again_as_it_was_asked(store):
    where = Filter.parse({"n": {"lt": 20}})
    passing = [
        m.record.id
        for m in store.search("default", QUERY[np.newaxis], k=5, spec=SPEC, where=where)[0]
    ]
    store.missed = {passing[0], passing[1]}
    with measuring(store) as meter:
        offer(meter, k=4, where=where, exclude=[passing[0]])
        assert settled(meter).mean == pytest.approx(0.75)


def test_the_mean_is_that_of_the_last_searches(store, monkeypatch):
    store.missed = set(best(store, 60))
    with measuring(store) as meter:
        offer(meter)
        assert settled(meter).mean == 0.0
        store.missed = set()
        for done in range(WINDOW):
            offer(meter)
            settled(meter, done + 2)
        assert settled(meter).mean == 1.0


def test_a_share_of_the_searches_is_done_again(store, monkeypatch):
    drawn = iter([0.2, 0.6, 0.49, 0.5])
    monkeypatch.setattr("random.random", lambda: next(drawn))
    with measuring(store, share=0.5) as meter:
        for _ in range(4):
            search_once(store, meter)
        assert settled(meter, 2).samples == 2
        assert next(drawn, None) is None


def test_exact_indexes_and_searches_with_parameters_are_left_alone(store):
    exact = MemoryStore()
    fill(exact, 5)
    with measuring(exact) as meter:
        offer(meter)
        assert meter.figures() == {}
        assert not meter._waiting
    with measuring(store) as meter:
        offer(meter, effort=Effort(nprobe=1))
        offer(meter, effort=Effort(exact=True))
        assert meter.figures() == {}
        assert not meter._waiting
        offer(meter)
        assert settled(meter).samples == 1


def test_a_share_of_none_starts_no_thread(store):
    before = threading.active_count()
    with measuring(store, share=0.0) as meter:
        assert threading.active_count() == before
        search_once(store, meter)
        assert meter.figures() == {}


@pytest.mark.parametrize("change", ["add", "replace", "delete"])
def test_a_write_in_between_is_no_miss(store, change):
    """The exact search sees the change, the search before it did not."""
    nearest = best(store, 1)[0]

    def write() -> None:
        time.sleep(0.002)  # times are in milliseconds
        if change == "delete":
            store.delete("default", nearest)
        else:
            name = "new" if change == "add" else nearest
            put(store, [new_image(name, content=change)], QUERY[np.newaxis])

    store.before_exact = write
    with measuring(store) as meter:
        offer(meter)
        assert settled(meter) == RecallFigures(skipped=1)
        store.before_exact = lambda: None
        offer(meter)
        assert settled(meter, 2) == RecallFigures(samples=1, mean=1.0, skipped=1)


def test_a_collection_that_moved_on_or_went_is_skipped(store):
    with measuring(store) as meter:
        offer(meter, spec=replace(OTHER_SPEC, dim=SPEC.dim))
        assert settled(meter) == RecallFigures(skipped=1)
        offer(meter, where=Filter.parse({"n": -1}))  # nothing passes
        assert settled(meter, 2) == RecallFigures(skipped=2)
        store.drop("default")
        assert meter.figures() == {}


def test_a_failing_search_does_not_end_the_thread(store):
    def fail() -> None:
        raise RuntimeError("planted")

    store.before_exact = fail
    with measuring(store) as meter:
        offer(meter)
        assert settled(meter) == RecallFigures(skipped=1)
        store.before_exact = lambda: None
        offer(meter)
        assert settled(meter, 2).samples == 1


def test_a_busy_meter_drops_and_never_makes_a_search_wait(store):
    going, go = threading.Event(), threading.Event()

    def hold() -> None:
        going.set()
        assert go.wait(PATIENCE_S)

    store.before_exact = hold
    with measuring(store) as meter:
        offer(meter)
        assert going.wait(PATIENCE_S)
        started = time.monotonic()
        for _ in range(20):
            offer(meter)
        assert time.monotonic() - started < PATIENCE_S
        assert meter.figures()["default"].dropped == 20 - MAX_WAITING
        go.set()
        assert settled(meter, 1 + MAX_WAITING).samples == 1 + MAX_WAITING


def test_after_work_the_thread_rests_and_closes_at_once_all_the_same(store):
    store.before_exact = lambda: time.sleep(0.1)
    started = time.monotonic()
    with measuring(store, busy=0.25) as meter:
        offer(meter)
        offer(meter)
        settled(meter, 2)
        assert time.monotonic() - started >= 0.1 + 0.3 + 0.1
    store.before_exact = lambda: time.sleep(0.02)
    meter = RecallMeter(store, share=1.0, busy=1e-6)  # would rest for hours
    offer(meter)
    offer(meter)
    settled(meter)
    started = time.monotonic()
    meter.close()
    meter.close()
    assert time.monotonic() - started < PATIENCE_S
    offer(meter)
    assert meter.figures()["default"].samples == 1


def test_a_real_index_that_visits_one_list_of_many(tmp_path):
    policy = IndexPolicy(
        index_type="IVF16,SQ8",
        effort=Effort(nprobe=1, k_factor=1),
        limits=Limits(min_rows=500),
    )
    with closing(LocalStore(tmp_path, policy=policy)) as store:
        fill(store, 1000)
        wait_for(lambda: not is_exact(store), state=store.describe)
        queries = unit_vectors(30, seed=7)
        truth = MemoryStore()
        fill(truth, 1000)
        shares = []
        with measuring(store) as meter:
            for done, query in enumerate(queries):
                (found,) = search(store, query[np.newaxis])
                (true,) = search(truth, query[np.newaxis])
                shares.append(len(set(ids(found)) & set(ids(true))) / 10)
                offer(meter, vector=query)
                settled(meter, done + 1)
            assert meter.figures()["default"].samples == 30
            assert settled(meter).mean == pytest.approx(np.mean(shares))
    assert 0.1 < np.mean(shares) < 0.9
