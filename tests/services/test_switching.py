"""Requests that meet the switch of their collection to another model."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lookalike.errors import (
    ImageNotFoundError,
    InvalidParameterError,
    NotReadyError,
    SpecMismatchError,
)
from lookalike.media.decoder import ImageDecoder
from lookalike.models.color import ColorEncoder
from lookalike.records import PutStatus
from lookalike.services.checks import Canary
from lookalike.services.pipeline import PutGate
from lookalike.services.queries import Part, Query
from lookalike.services.search import SearchOptions
from lookalike.store.base import Store
from lookalike.store.local.store import LocalStore
from tests.memory_store import MemoryStore
from tests.services.moving import HEADED, NEW, OLD, World, make, picture, some, vectors
from tests.store.helpers import vector_of
from tests.waiting import PATIENCE_S

PICTURES = some(10)


@pytest.fixture(params=["memory", "local"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    folder = tmp_path / "data"
    store: Store = MemoryStore() if request.param == "memory" else LocalStore(folder)
    made = World(store, folder)
    made.index(PICTURES)
    made.move(NEW)
    made.encoders.add(make(NEW))
    made.move(OLD)
    made.encoders.add(make(NEW))
    yield made
    made.close()


def before(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, *happen: Any) -> None:
    """Lets something happen right before each of the next calls of a method."""
    method, waiting = getattr(owner, name), list(happen)

    def happens_first(*args: Any, **options: Any) -> Any:
        if waiting:
            waiting.pop(0)()
        return method(*args, **options)

    monkeypatch.setattr(owner, name, happens_first)


def to(world: World, recipe: Any) -> Callable[[], None]:
    """Switches at once, as a move does when its last vector is there."""

    def switch() -> None:
        spec = make(recipe).spec
        missing = world.store.spaces.missing("default", spec, limit=100).records
        if missing:
            pictures = [picture(int(record.id.removeprefix("p"))) for record in missing]
            rows = vectors(make(recipe), pictures)
            world.store.spaces.add("default", spec, missing, rows)
        assert world.store.spaces.activate("default", spec)

    return switch


def best(world: World, number: int) -> tuple[str, int]:
    found = world.search.search(io.BytesIO(picture(number)), SearchOptions(k=3))
    assert found.matches[0].score == pytest.approx(1.0, abs=1e-5)
    return found.matches[0].record.id, found.spec.dim


def test_a_search_that_meets_the_switch(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    before(monkeypatch, world.store, "search", to(world, NEW))
    assert best(world, 3) == ("p3", 27)


def test_a_search_that_meets_two(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    before(monkeypatch, world.store, "search", to(world, NEW), to(world, OLD))
    assert best(world, 3) == ("p3", 48)


def test_a_search_whose_encoder_was_retired(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    to(world, NEW)()
    new = world.encoders.for_spec(make(NEW).spec)

    def retire() -> None:
        to(world, OLD)()
        world.encoders.remove(new.spec)

    before(monkeypatch, new, "embed", retire)
    assert best(world, 3) == ("p3", 48)


def test_a_search_between_the_spec_and_its_encoder(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    to(world, NEW)()

    def retire() -> None:
        to(world, OLD)()
        world.encoders.remove(make(NEW).spec)

    before(monkeypatch, world.encoders, "for_spec", retire)
    assert best(world, 3) == ("p3", 48)


def test_a_shutdown_is_told(world: World) -> None:
    world.encoders.close()
    with pytest.raises(NotReadyError):
        best(world, 3)
    (item,) = world.index({"p77": picture(77)})
    assert isinstance(item.error, NotReadyError)


def test_a_model_that_is_not_live_is_told(world: World) -> None:
    to(world, NEW)()
    world.encoders.remove(make(NEW).spec)
    with pytest.raises(SpecMismatchError):
        best(world, 3)
    with pytest.raises(SpecMismatchError):
        world.index({"p77": picture(77)})


def test_a_stored_picture_as_the_query_meets_the_switch(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct = vectors(make(NEW), [picture(3), picture(5)])
    before(monkeypatch, world.store, "search", to(world, NEW))
    found = world.search.similar("p3", SearchOptions(k=9))
    scores = {match.record.id: match.score for match in found.matches}
    assert found.spec.dim == 27
    assert scores["p5"] == pytest.approx(float(direct[0] @ direct[1]), abs=1e-5)
    with pytest.raises(ImageNotFoundError, match="'gone'"):
        world.search.similar("gone", SearchOptions())


@pytest.mark.parametrize("when", ["search", "find", "vectors"])
def test_a_query_of_several_things_meets_the_switch(
    world: World, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    owner = world.store.spaces if when == "vectors" else world.store
    before(monkeypatch, owner, when, to(world, NEW))
    parts = [Part(picture=io.BytesIO(picture(3))), Part(id="p5", weight=-0.5)]
    found = world.search.search(Query(parts=parts), SearchOptions(k=9))
    assert found.spec.dim == 27
    rows = vectors(make(NEW), [*PICTURES.values()]).astype(np.float64)
    sought = rows[3] - 0.5 * rows[5]
    expected = rows @ (sought / np.linalg.norm(sought))
    scores = {match.record.id: match.score for match in found.matches}
    assert scores == pytest.approx({f"p{n}": expected[n] for n in range(10) if n != 5}, abs=1e-5)
    old = Part(vector=[1.0] * 48)
    with pytest.raises(InvalidParameterError, match="48 numbers"):
        world.search.search(Query(parts=[old]), SearchOptions())


def test_vectors_that_meet_the_end_of_their_encoder(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    to(world, NEW)()
    new = world.encoders.for_spec(make(NEW).spec)

    def retire() -> None:
        to(world, OLD)()
        world.encoders.remove(new.spec)

    before(monkeypatch, new, "submit", retire)
    parts = [Part(picture=io.BytesIO(picture(n))) for n in range(3)]
    spec, made = world.search.embed(parts, "default")
    assert spec.dim == 48
    assert np.allclose(made, vectors(make(OLD), [picture(n) for n in range(3)]), atol=1e-6)


@pytest.mark.parametrize("switches", [[NEW], [NEW, OLD], [NEW, OLD, NEW]])
def test_indexing_that_meets_the_switch(
    world: World, monkeypatch: pytest.MonkeyPatch, switches: list[Any]
) -> None:
    before(monkeypatch, world.store, "upsert", *(to(world, recipe) for recipe in switches))
    fresh = some(9, start=50)
    assert {item.status for item in world.index(fresh)} == {PutStatus.CREATED}
    to(world, switches[-1])()
    world.check(PICTURES | fresh, switches[-1])


def test_indexing_whose_encoder_was_retired(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    to(world, NEW)()
    new = world.encoders.for_spec(make(NEW).spec)

    def retire() -> None:
        to(world, OLD)()
        world.encoders.remove(new.spec)

    before(monkeypatch, new, "submit", retire)
    fresh = some(9, start=50)
    assert {item.status for item in world.index(fresh)} == {PutStatus.CREATED}
    world.check(PICTURES | fresh, OLD)


def test_a_group_of_two_models_is_never_stored_together(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two models of the same length: only their specs tell them apart."""
    cropped = ColorEncoder(resize="crop")
    world.encoders.add(cropped)
    world.store.spaces.begin("default", cropped.spec, provenance={})

    def switch() -> None:
        missing = world.store.spaces.missing("default", cropped.spec, limit=100).records
        rows = vectors(cropped, [picture(int(r.id.removeprefix("p"))) for r in missing])
        world.store.spaces.add("default", cropped.spec, missing, rows)
        assert world.store.spaces.activate("default", cropped.spec)

    old = world.encoders.default
    waiting = iter([lambda: None, lambda: None, switch])
    submit = old.submit

    def submit_then(*args: Any, **options: Any) -> Any:
        next(waiting, lambda: None)()
        return submit(*args, **options)

    monkeypatch.setattr(old, "submit", submit_then)
    fresh = some(9, start=50)
    assert {item.status for item in world.index(fresh)} == {PutStatus.CREATED}
    expected = vectors(cropped, list(fresh.values()))
    for image_id, row in zip(fresh, expected, strict=True):
        assert np.allclose(vector_of(world.store, "default", image_id), row, atol=1e-6)


def test_the_canary_outlives_the_switch(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    before(monkeypatch, world.store, "search", to(world, NEW))
    Canary(world.encoders, world.store, ImageDecoder()).check()


def test_many_clients_beside_many_switches(world: World) -> None:
    """8 search, 2 index, and no request fails or answers wrongly."""
    done = threading.Event()
    numbers = count(100)
    lock = threading.Lock()
    added: dict[str, bytes] = {}
    searches = [0] * 8

    def search_it(client: int) -> None:
        while not done.is_set():
            number = client
            if client % 4 == 3:
                found = world.search.similar(f"p{number}", SearchOptions(k=5))
                assert found.matches
            else:
                assert best(world, number)[0] == f"p{number}"
            searches[client] += 1

    def index_it() -> None:
        while not done.wait(0.02):  # every move embeds all that was added before it
            with lock:
                fresh = {f"p{number}": picture(number) for number in (next(numbers), next(numbers))}
            for item in world.index(fresh):
                assert item.status is PutStatus.CREATED, item.error
            with lock:
                added.update(fresh)

    with ThreadPoolExecutor(10) as pool:
        work = [pool.submit(search_it, client) for client in range(8)]
        work += [pool.submit(index_it) for _ in range(2)]
        try:
            for recipe in (NEW, HEADED, OLD) * 3:
                world.move(recipe)
        finally:
            done.set()
        for one in work:
            one.result()
    assert min(searches) > 0
    assert added
    world.check(PICTURES | added, OLD)


def test_the_gate_waits_for_those_inside_and_holds_the_others() -> None:
    gate, order = PutGate(), []
    inside, leave = threading.Event(), threading.Event()

    def pass_slowly() -> None:
        with gate.passing("one"):
            inside.set()
            assert leave.wait(PATIENCE_S)
            order.append("left")

    def close() -> None:
        with gate.closed("one"):
            order.append("closed")
            with gate.passing("two"):
                order.append("another collection")
            late = pool.submit(pass_late)
            assert not late.done()
            order.append("open")
        late.result(PATIENCE_S)

    def pass_late() -> None:
        with gate.passing("one"):
            order.append("late")

    with ThreadPoolExecutor(3) as pool:
        slow = pool.submit(pass_slowly)
        assert inside.wait(PATIENCE_S)
        closing = pool.submit(close)
        leave.set()
        slow.result(PATIENCE_S)
        closing.result(PATIENCE_S)
    assert order == ["left", "closed", "another collection", "open", "late"]


def test_the_canary_is_decoded_like_any_picture(world: World) -> None:
    decoder = ImageDecoder(slots=1)
    canary = Canary(world.encoders, world.store, decoder, timeout_s=0.5, kept_s=0.0)
    canary.check()
    place = decoder._quick.place  # there are two, and nobody comes back
    with place(), place(), pytest.raises(NotReadyError, match=r"0\.5 s"):
        canary.check()
    canary.check()
