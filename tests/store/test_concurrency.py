"""Searches beside changes: never a wrong answer, none lost."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lookalike.errors import NotFoundError
from lookalike.store.base import Store, count_of
from lookalike.store.filters import Filter
from lookalike.store.local.catalog import Catalog
from lookalike.store.local.index.indexes import LiveIndex
from lookalike.store.local.index.policy import Limits
from lookalike.store.local.store import LocalStore
from tests.store.helpers import digest, fill, ids, new_image, put, search, unit_vectors
from tests.waiting import repeat_together

SECONDS = 2.0


@pytest.fixture
def limits() -> Limits:
    """Saves and compactions in between, and FAISS asked even for few rows."""
    return Limits(saved_changes=100, compacted_rows=50, scored_rows=0)


def run_together(*jobs: Callable[[], None]) -> None:
    """Repeats every job on a thread of its own."""
    repeat_together(*jobs, seconds=SECONDS)


def test_searches_beside_changes_are_right(store: Store, chance: random.Random) -> None:
    """Pictures s* stay; c* come, go and change. Content, vector and metadata tell the version."""
    stable = unit_vectors(60, seed=1)
    put(store, [new_image(f"s{n}", metadata={"kind": "stable"}) for n in range(60)], stable)
    versions = unit_vectors(40, seed=2)
    by_digest = {digest(f"v{n}"): versions[n] for n in range(40)}
    by_digest |= {digest(f"s{n}"): stable[n] for n in range(60)}

    def replace() -> None:
        n = chance.randrange(40)
        metadata = {"kind": "moving", "even": n % 2 == 0}
        image = new_image(f"c{chance.randrange(30)}", content=f"v{n}", metadata=metadata)
        put(store, [image], versions[n : n + 1])

    def delete() -> None:
        with suppress(NotFoundError):
            store.delete("default", f"c{chance.randrange(30)}")

    def flip_metadata() -> None:
        with suppress(NotFoundError):
            store.update_metadata("default", f"c{chance.randrange(30)}", {"even": None})

    def check(query: np.ndarray, where: Filter | None, k: int, *, at_least: int) -> None:
        matches = search(store, query[None], k=k, where=where, exclude=["s3"])[0]
        assert len(matches) >= at_least
        assert "s3" not in ids(matches)
        assert len(set(ids(matches))) == len(matches), "one picture twice"
        keys = [match.score for match in matches]
        assert keys == sorted(keys, reverse=True)
        for match in matches:
            vector = by_digest[match.record.sha256]
            assert match.score == pytest.approx(float(vector @ query), abs=1e-5)
            assert where is None or where.matches(match.record.metadata)

    def search_all() -> None:
        n = chance.choice([n for n in range(60) if n != 3])
        check(stable[n], None, 20, at_least=20)
        top = search(store, stable[n : n + 1], k=1)[0][0]
        assert top.record.id == f"s{n}"

    def search_stable() -> None:
        where = Filter.parse({"kind": "stable"})
        check(unit_vectors(1, seed=chance.randrange(99))[0], where, 100, at_least=59)

    def search_moving() -> None:
        where = Filter.parse({"even": True})
        check(versions[chance.randrange(40)], where, 30, at_least=0)

    run_together(replace, replace, delete, flip_metadata, search_all, search_stable, search_moving)


def test_a_replaced_picture_is_never_missing(store: Store, chance: random.Random) -> None:
    vectors = unit_vectors(30)
    fill(store, 30)

    def replace() -> None:
        n = chance.randrange(30)
        image = new_image(f"i{n}", content=str(chance.random()), metadata={"n": n})
        put(store, [image], vectors[n : n + 1])

    def search_filtered() -> None:
        n = chance.randrange(30)
        where = Filter.parse({"n": n})
        assert ids(search(store, vectors[n : n + 1], where=where)[0]) == [f"i{n}"]

    def search_all() -> None:
        assert sorted(ids(search(store, vectors[:1], k=30)[0])) == sorted(
            f"i{n}" for n in range(30)
        )

    run_together(replace, replace, search_filtered, search_all)


def test_columns_are_read_once_however_much_changes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replacements, deletions and other metadata between the filter and the index."""
    store = LocalStore(tmp_path)
    where = Filter.parse({"n": 1})
    blocks: list[Any] = []
    read, find = Catalog.metadata, LiveIndex.search

    def counted(*given: Any) -> Any:
        blocks.append(given)
        return read(*given)

    changes = iter(
        [
            lambda: put(
                store, [new_image("i0", content="new", metadata={"n": 1})], unit_vectors(1)
            ),
            lambda: store.delete("default", "i1"),
            lambda: store.update_metadata("default", "i2", {"n": 2}),
        ]
    )

    def interrupted(*given: Any, **named: Any) -> Any:
        next(changes, lambda: None)()
        return find(*given, **named)

    with closing(store):
        images = [new_image(f"i{n}", metadata={"n": 1}) for n in range(6)]
        put(store, images, unit_vectors(6))
        monkeypatch.setattr(Catalog, "metadata", counted)
        monkeypatch.setattr(LiveIndex, "search", interrupted)
        (found,) = search(store, unit_vectors(1), k=10, where=where)
        assert sorted(ids(found)) == ["i0", "i3", "i4", "i5"]
        assert found[0].record.id == "i0"
        assert len(blocks) == 1


def test_collections_come_and_go_beside_searches(store: Store) -> None:
    vectors = unit_vectors(20)

    def come_and_go() -> None:
        fill(store, 20, collection="brief")
        assert store.drop("brief") == 20

    def search_it() -> None:
        found = search(store, vectors[:1], k=20, collection="brief")[0]
        assert len(found) in {0, 20}
        assert all(page.id for page in store.scroll("brief").records)
        assert count_of(store, "brief") in {0, 20}

    run_together(come_and_go, search_it, search_it)


def test_what_many_put_is_all_there(store: Store) -> None:
    vectors = unit_vectors(400)

    def put_one(n: int) -> None:
        put(store, [new_image(f"i{n}", metadata={"n": n})], vectors[n : n + 1])
        assert ids(search(store, vectors[n : n + 1], k=1)[0]) == [f"i{n}"], "found once answered"

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(put_one, range(400)))
    assert count_of(store, "default") == 400
    assert len(search(store, vectors[:1], k=400)[0]) == 400
