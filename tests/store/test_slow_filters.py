"""Filters that would take too long."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from app.errors import FilterTooSlowError
from app.store.filters import Filter
from app.store.local.catalog import connections
from app.store.local.local_store import LocalStore
from tests.store.helpers import PASSPORT, fill, new_image, put, unit_vectors
from tests.store.test_fields import found

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
            store.search(
                "default", unit_vectors(1), k=3, passport=PASSPORT, where=Filter.parse(MANY)
            )
        assert store.count("default") == 3000
        assert len(store.search("default", unit_vectors(1), k=3, passport=PASSPORT)[0]) == 3
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
    monkeypatch.setattr("app.store.local.catalog.field_spans._MOST_PAIRS", most)
    with closing(LocalStore(tmp_path, filter_fields=["n"])) as store:
        fill(store, 50)
        where = {"n": {"in": [*range(40), "x"], "nin": [*range(5, 60), 0.5]}}
        assert found(store, where) == [f"i{n}" for n in range(5)]
        assert found(store, {"n": {"nin": list(range(48)), "gt": 2}}) == ["i48", "i49"]
