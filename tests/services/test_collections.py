"""Deleting a collection while imports into it wait, and vectors that it no longer uses."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lookalike.errors import CollectionNotFoundError, ConflictError, StorageFullError
from lookalike.services.jobs import FOLDER_KIND, REEMBED_KIND, JobService
from lookalike.services.pictures import CollectionService
from lookalike.services.pipeline import PutGate
from lookalike.store.base import count_of
from lookalike.store.jobs import JobState, JobStore
from lookalike.store.local.store import LocalStore
from lookalike.store.sqlite import Connections
from tests.store.helpers import OTHER_SPEC, fill
from tests.waiting import PATIENCE_S


class World:
    """A store with the collection `c`, and imports that never begin."""

    def __init__(self, folder: Path) -> None:
        self.store = LocalStore(folder)
        self.gate = PutGate()
        kinds = dict.fromkeys((FOLDER_KIND, REEMBED_KIND), lambda *_: "done")
        self.job_store = JobStore(folder / "jobs.db")
        self.jobs = JobService(self.job_store, kinds)
        self.collections = CollectionService(self.store, self.jobs, self.gate)
        fill(self.store, 3, collection="c")

    def start(self, collection: str) -> str:
        parameters = {"collection": collection, "path": "/p"}
        return self.jobs.start(FOLDER_KIND, parameters).job.id

    def drop(self, collection: str = "c") -> int:
        return self.collections.drop(collection)

    def state(self, job_id: str) -> JobState:
        return self.job_store.get(job_id).state


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    with closing(made.store), closing(made.job_store):
        yield made


def refuse(*_: Any, **__: Any) -> None:
    raise StorageFullError("no room")


def test_imports_into_a_deleted_collection_end(world: World) -> None:
    into_it, other = world.start("c"), world.start("other")
    assert world.drop() == 3
    assert world.state(into_it) is JobState.CANCELED
    assert world.state(other) is JobState.QUEUED


def test_a_collection_that_is_not_there_is_left_to_its_imports(world: World) -> None:
    into_it = world.start("new")
    with pytest.raises(CollectionNotFoundError):
        world.drop("new")
    assert world.state(into_it) is JobState.QUEUED


def test_nothing_is_deleted_where_the_imports_cannot_be_ended(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would make it anew behind an answer that says it is gone."""
    into_it = world.start("c")
    with monkeypatch.context() as patch:
        patch.setattr(world.job_store, "change", refuse)
        with pytest.raises(StorageFullError):
            world.drop()
    assert count_of(world.store, "c") == 3
    assert world.state(into_it) is JobState.QUEUED
    assert world.drop() == 3
    assert world.state(into_it) is JobState.CANCELED


def test_imports_end_even_where_the_disk_keeps_the_collection(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    into_it = world.start("c")
    with monkeypatch.context() as patch:
        patch.setattr(world.store, "drop", refuse)
        with pytest.raises(StorageFullError):
            world.drop()
    assert count_of(world.store, "c") == 3
    assert world.job_store.get(into_it).message == "Canceled by the deletion of the collection 'c'"
    assert passes(world.gate)


def test_the_gate_opens_before_the_rows_are_gone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, free = threading.Event(), threading.Event()
    give_room_back: Callable[[Connections], None] = Connections.give_room_back

    def wait(connections: Connections) -> None:
        begun.set()
        assert free.wait(PATIENCE_S)
        give_room_back(connections)

    monkeypatch.setattr(Connections, "give_room_back", wait)
    try:
        assert world.drop() == 3
        assert begun.wait(PATIENCE_S)
        assert not free.is_set()
        assert passes(world.gate)
    finally:
        free.set()


def passes(gate: PutGate) -> bool:
    """Whether a put into `c` need not wait for ever."""
    through = threading.Event()

    def put() -> None:
        with gate.passing("c"):
            through.set()

    threading.Thread(target=put, daemon=True).start()
    return through.wait(PATIENCE_S)


def test_vectors_that_a_job_may_be_making_are_not_discarded(world: World) -> None:
    world.store.spaces.begin("c", OTHER_SPEC, provenance={})
    job = world.jobs.start(REEMBED_KIND, {"collection": "c"}).job.id
    with pytest.raises(ConflictError, match="re-embedded"):
        world.collections.discard("c", OTHER_SPEC.digest)
    assert len(world.collections.vector_sets("c")) == 2
    world.jobs.cancel(job)
    world.collections.discard("c", OTHER_SPEC.digest)
    assert [one.active for one in world.collections.vector_sets("c")] == [True]


def test_a_collection_that_a_job_works_on_is_not_renamed(world: World) -> None:
    into_it = world.start("c")
    for one, other in (("c", "new"), ("other", "c")):
        with pytest.raises(ConflictError, match=into_it):
            world.collections.rename(one, other)
    world.jobs.cancel(into_it)
    assert world.collections.rename("c", "new").count == 3
    assert passes(world.gate)
