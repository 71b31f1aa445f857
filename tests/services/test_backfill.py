"""The backfill of pictures that lack a vector, where many of them fail."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from lookalike.errors import OriginalNotKeptError
from lookalike.records import ImageRecord
from lookalike.services.jobs import CanceledError
from lookalike.services.reembedding import Backfill, Item
from lookalike.store.base import Missing, Store
from tests.memory_store import MemoryStore
from tests.services.moving import Watched
from tests.store.helpers import OTHER_SPEC, new_image, put, unit_vectors

COUNT = 95
BATCH = 4
PAGE = 20


class Failing(Backfill):
    """For which every picture fails, but those named."""

    def __init__(self, store: Store, progress: Watched) -> None:
        live: Any = SimpleNamespace(spec=OTHER_SPEC)
        unused: Any = None
        super().__init__(
            store,
            "default",
            live,
            pictures=unused,
            pipeline=unused,
            progress=progress,
            batch=BATCH,
            page=PAGE,
        )
        self.good: set[str] = set()

    def vectors(
        self, batches: Iterable[Sequence[ImageRecord]]
    ) -> Generator[list[Item], None, None]:
        for records in batches:
            assert len(records) <= BATCH
            rows = unit_vectors(len(records))
            yield [
                (one, row if one.id in self.good else OriginalNotKeptError("not here"))
                for one, row in zip(records, rows, strict=True)
            ]


@dataclass
class Scene:
    """A collection whose pictures all failed, and what its walk reads from now on."""

    store: Store
    backfill: Failing
    watch: Watched
    read: list[int]


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    store, watch = MemoryStore(), Watched()
    put(store, [new_image(f"i{n}") for n in range(COUNT)], unit_vectors(COUNT))
    store.spaces.begin("default", OTHER_SPEC, provenance={})
    backfill = Failing(store, watch)
    assert backfill.run()
    read: list[int] = []
    missing = store.spaces.missing

    def count(*args: Any, limit: int, **named: Any) -> Missing:
        found = missing(*args, limit=limit, **named)
        read.append(len(found.records))
        return found

    monkeypatch.setattr(store.spaces, "missing", count)
    yield Scene(store, backfill, watch, read)
    store.close()


def late(scene: Scene) -> None:
    put(scene.store, [new_image("late")], unit_vectors(1, seed=9))


def test_every_error_is_counted_and_few_texts_are_kept(scene: Scene) -> None:
    assert len(scene.backfill.failed) == len(scene.watch.errors) == COUNT
    assert len(scene.backfill.errors) == 20
    assert scene.backfill.errors["i0"] == "not here"


def test_what_failed_is_read_a_page_at_a_time(scene: Scene) -> None:
    assert not scene.backfill.unexplained()
    assert scene.read == [PAGE] * 4 + [COUNT - 4 * PAGE, 0]
    late(scene)
    assert scene.backfill.unexplained()


def test_looking_for_what_did_not_fail_can_be_ended(scene: Scene) -> None:
    def cancel() -> None:
        if len(scene.read) == 2:
            raise CanceledError

    scene.watch.at_step = cancel
    with pytest.raises(CanceledError):
        scene.backfill.unexplained()


def test_starting_over_can_be_ended(scene: Scene) -> None:
    def cancel() -> None:
        if len(scene.read) == 2:
            raise CanceledError

    late(scene)
    scene.watch.at_step = cancel
    with pytest.raises(CanceledError):
        scene.backfill.start_over()


def test_starting_over_leaves_little_for_the_time_that_puts_wait(scene: Scene) -> None:
    late(scene)
    scene.backfill.good = {"late"}
    scene.backfill.start_over()
    assert sum(scene.read) == COUNT + 1
    (_, made) = scene.store.spaces.all("default")
    assert made.count == 1
    scene.read.clear()
    assert scene.backfill.run()
    assert scene.read == [0]
    assert len(scene.watch.errors) == COUNT, "what failed is not tried twice"


def test_starting_over_does_not_follow_what_comes_meanwhile(scene: Scene) -> None:
    numbers = iter(range(10_000))
    fresh = lambda: [new_image(f"more{next(numbers)}") for _ in range(BATCH)]  # noqa: E731
    scene.watch.at_step = lambda: put(scene.store, fresh(), unit_vectors(BATCH))
    scene.backfill.start_over()
    assert next(numbers) < 10 * COUNT


def test_passing_over_what_failed_ends_when_told_so(scene: Scene) -> None:
    scene.backfill._cursor = None
    assert not scene.backfill.run(goal=scene.backfill.met + 2 * BATCH)
    assert scene.read == [PAGE]
    met = scene.backfill.met
    assert scene.backfill.run(), "and goes on from there"
    assert scene.backfill.met - met == COUNT - 2 * BATCH
