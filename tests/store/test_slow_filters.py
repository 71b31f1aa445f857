"""Filters that would take too long."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from lookalike.errors import FilterTooSlowError
from lookalike.store.filters import Filter
from lookalike.store.local import search as searching
from lookalike.store.local.catalog import connections
from lookalike.store.local.catalog.connections import Connections
from lookalike.store.local.local_store import LocalStore
from tests.store.helpers import SPEC, fill, ids, new_image, put, search, unit_vectors
from tests.store.test_fields import found
from tests.waiting import wait_for

MANY = {f"f{n}": {"ne": n} for n in range(30)}


def test_a_filter_that_takes_too_long_is_refused_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_STEPS", 100)
    with closing(LocalStore(tmp_path, filter_s=0.02)) as store:
        metadata = {f"f{n}": "x" for n in range(30)}
        images = [new_image(f"i{n}", metadata=metadata) for n in range(3000)]
        put(store, images, unit_vectors(3000))
        for ask in (lambda: found(store, MANY), lambda: found(store, {"f0": "y"} | MANY)):
            with pytest.raises(FilterTooSlowError, match="LOOKALIKE_FILTER_FIELDS"):
                ask()
        with pytest.raises(FilterTooSlowError):
            store.search("default", unit_vectors(1), k=3, spec=SPEC, where=Filter.parse(MANY))
        assert store.count("default") == 3000
        assert len(store.search("default", unit_vectors(1), k=3, spec=SPEC)[0]) == 3
        monkeypatch.setattr(store._catalog._connections, "_filter_s", 60)
        assert len(found(store, MANY)) == 3000


def test_slow_filters_leave_readers_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(LocalStore(tmp_path, filter_s=0.3)) as store, ExitStack() as held:
        fill(store, 3)
        for _ in range(2):
            held.enter_context(store._catalog._connections.read_filtered())
        with pytest.raises(FilterTooSlowError):
            found(store, {"n": 1})
        assert store.count("default") == 3
        held.close()
        assert found(store, {"n": 1}) == ["i1"]


@pytest.mark.parametrize("most", [0, 10_000])
def test_long_lists_on_one_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr("lookalike.store.local.catalog.field_spans._MOST_PAIRS", most)
    with closing(LocalStore(tmp_path, filter_fields=["n"])) as store:
        fill(store, 50)
        where = {"n": {"in": [*range(40), "x"], "nin": [*range(5, 60), 0.5]}}
        assert found(store, where) == [f"i{n}" for n in range(5)]
        assert found(store, {"n": {"nin": list(range(48)), "gt": 2}}) == ["i48", "i49"]


@contextmanager
def reading(connections: Connections) -> Iterator[threading.Event]:
    """A filter that goes on until the event is set, and at most until the block ends."""
    inside, end = threading.Event(), threading.Event()

    def read() -> None:
        with connections.read_filtered() as connection:
            connection.execute("SELECT count(*) FROM images").fetchone()
            inside.set()
            end.wait(60)

    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(read)
        try:
            wait_for(lambda: inside.is_set() or work.done())
            yield end
        finally:
            end.set()
        work.result(60)


def meet_changes(patch: pytest.MonkeyPatch, *, looks: int, then: Callable[[], None]) -> None:
    """Has the first looks of a collection's searches come to nothing, as beside changes."""
    once, left = searching.Searcher._once, iter(range(looks - 1, -1, -1))

    def look(searcher: Any, live: Any, *given: Any, **named: Any) -> Any:
        answer = once(searcher, live, *given, **named)
        number = next(left, None) if live.row.name == "default" else None
        if number == 0:
            then()
        return answer if number is None else None

    patch.setattr(searching.Searcher, "_once", look)


def test_a_search_that_met_changes_waits_for_no_other_filter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does whoever waits for the change lock that it holds then."""
    with closing(LocalStore(tmp_path)) as store, ExitStack() as others:
        vectors = fill(store, 20)

        def take_both_places() -> None:
            for _ in range(2):
                others.enter_context(reading(store._catalog._connections))

        meet_changes(monkeypatch, looks=3, then=take_both_places)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(search, store, vectors[3:4], k=1, where=Filter.parse({"n": 3}))
            assert ids(asked.result(20)[0]) == ["i3"]
            putting = pool.submit(put, store, [new_image("p")], unit_vectors(1), collection="other")
            putting.result(20)


def test_a_search_that_waits_for_changes_keeps_no_other_filter_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(LocalStore(tmp_path, filter_s=20)) as store:
        vectors = fill(store, 20)
        fill(store, 20, collection="other")
        where, met = Filter.parse({"n": 3}), threading.Event()
        meet_changes(monkeypatch, looks=6, then=met.set)
        with ThreadPoolExecutor(2) as pool:
            with store._change:
                asked = [pool.submit(search, store, vectors[3:4], k=1, where=where) for _ in "ab"]
                assert met.wait(60)
                (found_there,) = search(store, vectors[3:4], k=1, where=where, collection="other")
                assert ids(found_there) == ["i3"]
            assert [ids(one.result(60)[0]) for one in asked] == [["i3"], ["i3"]]


def test_filters_that_overlap_do_not_let_the_log_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite begins its log anew only where nobody reads of it, and then there never is nobody."""
    monkeypatch.setattr(connections, "_LOG_BYTES", 200_000)
    monkeypatch.setattr(connections, "_CUT_EVERY_S", 0.0)
    with closing(LocalStore(tmp_path)) as store:
        fill(store, 20)
        log = tmp_path / "catalog.db-wal"
        ways = store._catalog._connections

        def grow() -> None:
            for n in range(200):
                put(store, [new_image(f"i{n}", metadata={"t": "x" * 2000})], unit_vectors(1))

        with ThreadPoolExecutor(1) as pool:
            with reading(ways):
                grow()
                assert log.stat().st_size > 200_000, "a snapshot was open"
                waiting = pool.submit(found, store, {"t": "y"})
                assert store.count("default") == 200, "others read on"
                put(store, [new_image("more")], unit_vectors(1))
                assert not waiting.done(), "the next filter would open another"
            assert waiting.result(60) == []
        assert log.stat().st_size == 0
