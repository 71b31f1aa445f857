"""Moving a collection to another model, beside searches and changes."""

from __future__ import annotations

import errno
import io
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lookalike.errors import (
    CollectionNotFoundError,
    ConfigurationError,
    ReembeddingIncompleteError,
    SpecMismatchError,
)
from lookalike.models.base import Encoder
from lookalike.models.color import ColorEncoder
from lookalike.models.spec import ModelRequest
from lookalike.records import ModelSpec, NewImage, PutStatus, utc_now
from lookalike.services.pipeline import Pipeline
from lookalike.services.reembedding import Backfill
from lookalike.services.search import SearchOptions
from lookalike.store.base import Store, count_of
from lookalike.store.local.store import LocalStore
from tests.memory_store import MemoryStore
from tests.services.moving import HEADED, NEW, OLD, Watched, World, make, picture, some
from tests.waiting import wait_for


class StopError(Exception):
    """Ends the work from a watch."""


def originals(world: World) -> list[Path]:
    return [path for path in (world.folder / "images").rglob("*") if path.is_file()]


@pytest.fixture(params=["memory", "local"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return MemoryStore() if request.param == "memory" else LocalStore(tmp_path / "data")


@pytest.fixture
def world(store: Store, tmp_path: Path) -> Iterator[World]:
    made = World(store, tmp_path / "data")
    yield made
    made.close()


@pytest.mark.parametrize("target", [NEW, HEADED])
def test_there_and_back(world: World, target: ModelRequest) -> None:
    pictures = some(23)
    world.index(pictures)
    watched = Watched()
    text = world.move(target, watched)
    assert f"{make(target).spec.dim} numbers a picture" in text
    world.check(pictures, target)
    assert watched.told[0] == (0, 23)
    assert watched.told[-1] == (23, 23)
    assert watched.errors == []
    late = some(3, start=50)
    world.index(late)
    world.store.delete("default", "p3")
    del pictures["p3"]
    watched = Watched()
    world.move(OLD, watched)
    assert watched.told[0] == (22, 25)
    world.check(pictures | late, OLD)


def test_a_head_needs_no_pictures(world: World) -> None:
    pictures = some(9)
    world.index(pictures)
    for path in originals(world):
        path.unlink()
    world.move(HEADED)
    world.check(pictures, HEADED)


def test_a_head_is_put_on_the_set_below_it_even_when_that_is_not_active(world: World) -> None:
    pictures = some(9)
    world.index(pictures)
    world.move(HEADED)
    for path in originals(world):
        path.unlink()
    world.index(late := some(2, start=20))
    other = replace(HEADED, head="8")
    world.move(other)
    world.check(pictures | late, other)
    assert [one.count for one in world.store.spaces.all("default")] == [9, 11, 11]


def test_an_original_that_cannot_be_opened_is_an_error_of_its_picture(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.index(some(6))
    closed = world.store.get("default", "p4")
    path, open_path = world.files.path(closed.sha256, closed.media_type), Path.open

    def refusing(self: Path, *given: Any, **options: Any) -> Any:
        if self == path:
            raise PermissionError(errno.EACCES, "Permission denied")
        return open_path(self, *given, **options)

    monkeypatch.setattr(Path, "open", refusing)
    with pytest.raises(ReembeddingIncompleteError, match=r"p4: .*Permission denied"):
        world.move(NEW)
    assert world.store.spaces.all("default")[1].count == 5


def test_a_picture_without_its_original_keeps_the_collection_where_it_is(world: World) -> None:
    pictures = some(11)
    world.index(pictures)
    lost = world.store.get("default", "p4")
    path = world.files.path(lost.sha256, lost.media_type)
    assert path is not None
    path.unlink()
    watched = Watched()
    with pytest.raises(ReembeddingIncompleteError, match=r"1 pictures .*p4: .* is not here"):
        world.move(NEW, watched)
    assert [error.split(":")[0] for error in watched.errors] == ["p4"]
    world.check(pictures, OLD)
    assert world.store.spaces.all("default")[1].count == 10
    path.write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(ReembeddingIncompleteError, match="p4"):
        world.move(NEW)
    world.index({"p4": picture(4)})  # unchanged, but its original is kept again
    path.write_bytes(picture(4))
    world.move(NEW)
    world.check(pictures, NEW)


def test_what_failed_may_be_deleted_or_replaced_instead(world: World) -> None:
    pictures = some(6)
    world.index(pictures)
    for path in originals(world):
        path.unlink()

    def mend() -> None:
        for image_id in ("p0", "p1", "p2"):
            if image_id in pictures:
                world.store.delete("default", image_id)
                del pictures[image_id]
        fresh = {f"p{n}": picture(n + 100) for n in range(3, 6)}
        if pictures.keys() == fresh.keys() and pictures != fresh:
            pictures.update(fresh)
            world.index(fresh)

    with pytest.raises(ReembeddingIncompleteError, match="6 pictures"):
        world.move(NEW)
    mend()
    world.move(NEW)
    world.check(pictures, NEW)


def test_an_interrupted_move_goes_on_with_what_is_missing(world: World) -> None:
    pictures = some(30)
    world.index(pictures)
    steps = 0

    def stop() -> None:
        nonlocal steps
        steps += 1
        if steps == 4:
            raise StopError

    with pytest.raises(StopError):
        world.move(NEW, Watched(stop))
    done = world.store.spaces.all("default")[1].count
    assert 0 < done < 30
    world.check(pictures, OLD)
    assert [live.spec.dim for live in world.encoders.live] == [48], "the new one is gone"
    watched = Watched()
    world.move(NEW, watched)
    assert watched.told[0] == (done, 30)
    world.check(pictures, NEW)


def test_steady_indexing_is_not_waited_for(world: World) -> None:
    """Each step of the walk finds more pictures than it embeds, and still it ends."""
    pictures = some(12)
    world.index(pictures)
    numbers = iter(range(100, 100_000))
    moved = threading.Event()

    def index_more() -> dict[str, bytes]:
        added: dict[str, bytes] = {}
        while not moved.is_set():
            number = next(numbers)
            fresh = {f"p{number}": picture(number), f"p{number % 5}": picture(number + 10**6)}
            for item in world.index(fresh):
                assert item.status in {PutStatus.CREATED, PutStatus.REPLACED}, item.error
            added |= fresh
        return added

    def behind() -> None:
        before = count_of(world.store, "default")
        deadline = time.monotonic() + 0.1
        while count_of(world.store, "default") < before + 6 and time.monotonic() < deadline:
            time.sleep(0.001)

    with ThreadPoolExecutor(1) as pool:
        indexing = pool.submit(index_more)
        try:
            world.move(NEW, Watched(behind))
        finally:
            moved.set()
        pictures |= indexing.result()
    world.check(pictures, NEW)


def test_the_same_model_again_is_nothing_to_do(world: World) -> None:
    pictures = some(3)
    world.index(pictures)
    assert "already" in world.move(OLD)
    assert len(world.store.spaces.all("default")) == 1
    assert world.store.spaces.all("default")[0].recipe == OLD.to_dict()
    world.check(pictures, OLD)


def test_the_file_of_a_picture_that_was_replaced_is_not_taken_for_the_old_one(
    world: World,
) -> None:
    """Not even when the old content comes back before its vector is stored."""
    world.index(some(1))
    (before,) = world.store.scroll("default").records
    with Pipeline(threads=1, window=1) as pipeline:
        backfill = Backfill(
            world.store,
            "default",
            world.encoders.default,
            pictures=world.pictures,
            pipeline=pipeline,
            progress=Watched(),
            batch=1,
        )
        world.index({"p0": picture(9)})
        (made,) = backfill.vectors([[before]])
        assert made == [(before, None)]
        world.index({"p0": picture(0)})
        (made,) = backfill.vectors([[before]])
        assert [isinstance(vector, np.ndarray) for _, vector in made] == [True]


def test_what_failed_is_not_tried_twice(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.index(some(9))
    lost = world.store.get("default", "p4")
    path = world.files.path(lost.sha256, lost.media_type)
    assert path is not None
    path.unlink()
    activate, late = world.store.spaces.activate, [True]

    def activate_then(collection: str, spec: ModelSpec) -> bool:
        if late.pop() if late else False:  # as if something had been missed
            vectors = np.ones((1, 48), np.float32) / np.sqrt(48, dtype=np.float32)
            image = NewImage(
                id="x",
                sha256=lost.sha256,
                filename="x",
                media_type="image/png",
                width=1,
                height=1,
                bytes=1,
            )
            world.store.upsert("default", [image], vectors, spec=make(OLD).spec, provenance={})
        return activate(collection, spec)

    monkeypatch.setattr(world.store.spaces, "activate", activate_then)
    watched = Watched()
    with pytest.raises(ReembeddingIncompleteError, match="2 pictures"):
        world.move(NEW, watched)
    assert sorted(error.split(":")[0] for error in watched.errors) == ["p4", "x"]


def test_an_empty_collection_moves(world: World) -> None:
    world.index(some(1))
    world.store.delete("default", "p0")
    world.move(NEW)
    world.index(some(2))
    world.check(some(2), NEW)


def test_what_cannot_be_moved(world: World) -> None:
    with pytest.raises(CollectionNotFoundError):
        world.move(NEW)
    world.index(some(1))

    def refuse(request: ModelRequest) -> ColorEncoder:
        raise ConfigurationError("no such model")

    world.models.make = refuse
    with pytest.raises(ConfigurationError):
        world.move(NEW)
    assert len(world.store.spaces.all("default")) == 1


def test_encoders_live_as_long_as_they_are_needed(world: World) -> None:
    def dims() -> list[int]:
        return [live.spec.dim for live in world.encoders.live]

    world.index(some(4))
    world.move(NEW)
    assert dims() == [48, 27]
    world.move(HEADED)
    assert dims() == [48, 6]
    list(world.indexing.index([], collection="other"))
    world.move(OLD)
    assert dims() == [48]


def test_a_restart_makes_what_active_sets_need(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = World(LocalStore(tmp_path), tmp_path)
    pictures = some(5)
    first.index(pictures)
    first.move(NEW)
    first.close()
    second = World(LocalStore(tmp_path), tmp_path)
    with pytest.raises(SpecMismatchError):
        second.search.search(io.BytesIO(picture(0)), SearchOptions())
    second.models.restore()
    second.check(pictures, NEW)
    assert second.made == [NEW]
    second.models.restore()
    assert second.made == [NEW]
    second.move(OLD)
    second.check(pictures, OLD)
    second.close()
    assert caplog.records == []


def test_a_restart_with_other_settings_amid_a_move(tmp_path: Path) -> None:
    """The service comes back with the new model as its default: the old set still answers."""
    first = World(LocalStore(tmp_path), tmp_path)
    pictures = some(20)
    first.index(pictures)
    steps = iter(range(100))

    def stop() -> None:
        if next(steps) == 3:
            raise StopError

    with pytest.raises(StopError):
        first.move(NEW, Watched(stop))
    first.close()
    second = World(LocalStore(tmp_path), tmp_path, default=NEW)
    second.models.restore()
    second.check(pictures, OLD)
    second.move(NEW)
    second.check(pictures, NEW)
    assert [live.spec.dim for live in second.encoders.live] == [27]
    second.close()


def test_a_recipe_that_makes_something_else_now_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = World(LocalStore(tmp_path), tmp_path)
    first.index(some(3))
    first.move(NEW)
    first.close()
    second = World(LocalStore(tmp_path), tmp_path)
    second.models.make = lambda request: ColorEncoder(grid=2)
    second.models.restore()
    assert "builds another model now" in caplog.text
    with pytest.raises(SpecMismatchError):
        second.search.search(io.BytesIO(picture(0)), SearchOptions())
    second.close()


def test_a_served_head_takes_over_a_collection_made_without_it(tmp_path: Path) -> None:
    first = World(LocalStore(tmp_path), tmp_path)
    pictures = some(12)
    first.index(pictures)
    first.close()
    second = World(LocalStore(tmp_path), tmp_path, default=HEADED)
    second.models.restore()
    with pytest.raises(SpecMismatchError, match="head"):
        second.search.search(io.BytesIO(picture(0)), SearchOptions())
    answers = []

    def look() -> None:
        found = second.search.search(io.BytesIO(picture(2)), SearchOptions(k=1))
        answers.append((found.spec.head is None, found.matches[0].record.id))

    second.move(HEADED, Watched(look))
    assert answers
    assert set(answers) == {(True, "p2")}, "the old set answers while the move goes on"
    second.check(pictures, HEADED)
    second.move(OLD)
    second.check(pictures, OLD)
    second.close()


def test_a_model_that_cannot_be_made_keeps_no_service_from_starting(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.index(some(3))
    world.move(NEW)
    second = World(world.store, world.folder)

    def refuse(request: ModelRequest) -> Encoder:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(second.models, "make", refuse)
    second.models.restore()
    assert "searches in the collection default are refused" in caplog.text
    second.encoders.close()


def test_a_collection_that_was_made_anew_is_not_moved(world: World) -> None:
    world.index(some(3))
    parameters = world.reembedding.parameters("default", NEW)
    world.store.drop("default")
    wait_for(lambda: utc_now() > parameters["created_at"])
    world.index(some(4, start=10))
    with pytest.raises(CollectionNotFoundError, match="made anew"):
        world.reembedding.as_job(parameters, Watched())
    world.check(some(4, start=10), OLD)
    world.reembedding.as_job(world.reembedding.parameters("default", NEW), Watched())
    world.check(some(4, start=10), NEW)
