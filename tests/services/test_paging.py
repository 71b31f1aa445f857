"""Pages of matches, on exact indexes and on those that find more when they are asked for more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lookalike.media.decoder import ImageDecoder
from lookalike.models.color import ColorEncoder
from lookalike.models.encoders import Encoders
from lookalike.records import Effort, Match
from lookalike.services.queries import Combine, Part, Query
from lookalike.services.search import SearchOptions, SearchService
from lookalike.store.base import Store
from lookalike.store.filters import Filter
from lookalike.store.local.index.policy import IndexPolicy, Limits
from lookalike.store.local.store import LocalStore
from tests.memory_store import MemoryStore
from tests.store.helpers import is_exact, new_image, put, unit_vectors
from tests.waiting import wait_for

COUNT = 400
EVERYTHING = Effort(nprobe=65_536, ef_search=65_536, k_factor=1_000)
LOSSY = ["IVF8,Flat", "PQ2x4fs"]


@pytest.fixture(scope="module", params=["memory", "Flat", *LOSSY])
def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SearchService]:
    """A collection of 400, with groups of all sizes; the value of one is a list."""
    kind = request.param
    folder = tmp_path_factory.mktemp("paging")
    limits = Limits(min_rows=60, scored_rows=16, overfetched=8, calibrated_k=(10, 32))
    store: Store = MemoryStore()
    if kind != "memory":
        store = LocalStore(folder, policy=IndexPolicy(index_type=kind, limits=limits))
    rng = np.random.default_rng(5)
    metadata = [
        {"n": n % 5, "group": [["a"], n % 9, f"g{n % 20}"][rng.integers(3)]} for n in range(COUNT)
    ]
    images = [new_image(f"i{n}", metadata=one) for n, one in enumerate(metadata)]
    put(store, images, unit_vectors(COUNT, seed=4))
    if kind in LOSSY:
        wait_for(lambda: not is_exact(store))
    encoders = Encoders(ColorEncoder())
    yield SearchService(encoders, store, ImageDecoder())
    encoders.close()
    store.close()


def pages(service: SearchService, query: Query, size: int, **options: Any) -> list[Match]:
    """All pages until an empty one."""
    found: list[Match] = []
    while True:
        chosen = SearchOptions(k=size, offset=len(found), **options)
        page = service.search(query, chosen).matches
        if not page:
            return found
        found += page


queries = st.builds(
    lambda seeds, combine: Query(
        parts=[
            Part(vector=unit_vectors(1, seed=100 + seed)[0], weight=1 if number == 0 else weight)
            for number, (seed, weight) in enumerate(seeds)
        ],
        combine=combine,
    ),
    st.lists(
        st.tuples(st.integers(0, 99), st.sampled_from([1.0, 0.5, -0.3])),
        min_size=1,
        max_size=3,
        unique_by=lambda one: one[0],
    ),
    st.sampled_from(Combine),
)


@settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    query=queries,
    size=st.sampled_from([40, 150]),
    where=st.sampled_from([None, {"n": 2}, {"n": {"ne": 1}}]),
    group_by=st.sampled_from([None, "group"]),
)
def test_pages_repeat_nothing_and_end_with_everything(service, query, size, where, group_by):
    options: dict[str, Any] = {"group_by": group_by}
    options["where"] = None if where is None else Filter.parse(where)
    found = pages(service, query, size, **options)
    assert [match.rank for match in found] == list(range(1, len(found) + 1))
    whole = service.search(query, SearchOptions(k=COUNT, effort=Effort(exact=True), **options))
    wanted = [match.record.id for match in whole.matches]
    seen = [match.record.id for match in found]
    exact = is_exact(service.store)
    if exact:
        assert found == whole.matches
    elif group_by is None:
        assert sorted(seen) == sorted(wanted)
        assert {m.record.id: m.score for m in found} == {
            m.record.id: m.score for m in whole.matches
        }
    else:
        groups = [str(match.record.metadata["group"]) for match in found]
        assert len(set(groups)) == len(groups)
        assert set(groups) == {str(match.record.metadata["group"]) for match in whole.matches}
    thorough = pages(service, query, size, effort=EVERYTHING, **options)
    assert [match.record.id for match in thorough] == wanted


def test_equal_scores_of_several_vectors_keep_their_order(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "data")
    one, other = unit_vectors(2, seed=1)
    put(store, [new_image(f"i{n}") for n in range(12)], np.stack([one, other] * 6))
    encoders = Encoders(ColorEncoder())
    service = SearchService(encoders, store, ImageDecoder())
    query = Query(parts=[Part(vector=other), Part(vector=one)], combine=Combine.ANY)
    whole = service.search(query, SearchOptions(k=12)).matches
    assert len({match.score for match in whole}) <= 2
    for size in (1, 2, 5):
        assert pages(service, query, size) == whole
    encoders.close()
    store.close()
