"""The walk over pictures that lack a vector, where many of them fail."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from lookalike.errors import LookalikeError, OriginalNotKeptError
from lookalike.records import ImageRecord
from lookalike.services.job_run import CanceledError
from lookalike.services.reembedding_walk import Made, Vectorizer, Walk
from lookalike.store.base import Store
from lookalike.store.embedding_sets import Missing
from lookalike.store.memory_store import MemoryStore
from tests.services.moving import Watched
from tests.store.helpers import OTHER_PASSPORT, new_image, put, unit_vectors

COUNT = 95
BATCH = 4
PAGE = 20


@dataclass
class Sent:
    """A batch of the vectorizer below."""

    records: Sequence[ImageRecord]


@dataclass
class Failing:
    """A `Vectorizer` for which every picture fails, but those named."""

    good: set[str] = field(default_factory=set)
    collection: str = "default"

    @property
    def live(self) -> Any:
        return self

    spec = OTHER_PASSPORT

    def begin(self, records: Sequence[ImageRecord]) -> Sent:
        assert len(records) <= BATCH
        return Sent(records)

    def finish(self, batch: Sent) -> Made:
        errors: dict[str, LookalikeError] = {
            one.id: OriginalNotKeptError("not here")
            for one in batch.records
            if one.id not in self.good
        }
        good = [one.id for one in batch.records if one.id in self.good]
        return Made(dict(zip(good, unit_vectors(len(good)), strict=True)), errors)


@dataclass
class Scene:
    """A collection whose pictures all failed, and what its walk reads from now on."""

    store: Store
    walk: Walk
    watch: Watched
    vectorizer: Failing
    read: list[int]


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setattr("lookalike.services.reembedding_walk._PAGE", PAGE)
    store, watch, vectorizer = MemoryStore(), Watched(), Failing()
    put(store, [new_image(f"i{n}") for n in range(COUNT)], unit_vectors(COUNT))
    store.sets.begin("default", OTHER_PASSPORT, provenance={})
    walk = Walk(store, cast("Vectorizer", vectorizer), watch, batch=BATCH)
    assert walk.run(lambda: False)
    read: list[int] = []
    missing = store.sets.missing

    def count(*args: Any, limit: int, **named: Any) -> Missing:
        found = missing(*args, limit=limit, **named)
        read.append(len(found.records))
        return found

    monkeypatch.setattr(store.sets, "missing", count)
    yield Scene(store, walk, watch, vectorizer, read)
    store.close()


def late(scene: Scene) -> None:
    put(scene.store, [new_image("late")], unit_vectors(1, seed=9))


def test_every_error_is_counted_and_few_texts_are_kept(scene: Scene) -> None:
    assert len(scene.walk.failed) == len(scene.watch.errors) == COUNT
    assert len(scene.walk.errors) == 20
    assert scene.walk.errors["i0"] == "not here"


def test_what_failed_is_read_a_page_at_a_time(scene: Scene) -> None:
    assert not scene.walk.unexplained()
    assert scene.read == [PAGE] * 4 + [COUNT - 4 * PAGE, 0]
    late(scene)
    assert scene.walk.unexplained()


def test_looking_for_what_did_not_fail_can_be_ended(scene: Scene) -> None:
    def cancel() -> None:
        if len(scene.read) == 2:
            raise CanceledError

    scene.watch.at_step = cancel
    with pytest.raises(CanceledError):
        scene.walk.unexplained()


def test_starting_over_can_be_ended(scene: Scene) -> None:
    def cancel() -> None:
        if len(scene.read) == 2:
            raise CanceledError

    late(scene)
    scene.watch.at_step = cancel
    with pytest.raises(CanceledError):
        scene.walk.start_over()


def test_starting_over_leaves_little_for_the_time_that_puts_wait(scene: Scene) -> None:
    late(scene)
    scene.vectorizer.good = {"late"}
    scene.walk.start_over()
    assert sum(scene.read) == COUNT + 1
    (_, made) = scene.store.sets.all("default")
    assert made.count == 1
    scene.read.clear()
    assert scene.walk.run(lambda: False)
    assert scene.read == [0]
    assert len(scene.watch.errors) == COUNT, "what failed is not tried twice"


def test_starting_over_does_not_follow_what_comes_meanwhile(scene: Scene) -> None:
    numbers = iter(range(10_000))
    fresh = lambda: [new_image(f"more{next(numbers)}") for _ in range(BATCH)]  # noqa: E731
    scene.watch.at_step = lambda: put(scene.store, fresh(), unit_vectors(BATCH))
    scene.walk.start_over()
    assert next(numbers) < 10 * COUNT


def test_passing_over_what_failed_ends_when_told_so(scene: Scene) -> None:
    scene.walk._cursor = None
    asked = iter([False, False, True])
    assert not scene.walk.run(lambda: next(asked))
    assert scene.read == [PAGE]
    met = scene.walk.met
    assert scene.walk.run(lambda: False), "and goes on from there"
    assert scene.walk.met - met == COUNT - 2 * BATCH
