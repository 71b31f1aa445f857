"""Duplicates of a collection that changes, and the work in the background."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from lookalike.errors import (
    CollectionNotFoundError,
    InvalidParameterError,
    NotFoundError,
    NotReadyError,
)
from lookalike.progress import caller
from lookalike.records import MAX_COPIES, DuplicateKind, NewImage, Place, utc_now
from lookalike.services.duplicates import (
    _WAITING,
    DuplicateOptions,
    DuplicateService,
    Unfinished,
)
from lookalike.store.base import spec_of
from lookalike.store.local.store import LocalStore
from tests.memory_store import MemoryStore
from tests.services.duplicate_helpers import (
    CONTENTS,
    add,
    groups_of,
    picture_service,
    plain_groups,
    ready,
)
from tests.store.helpers import fill, new_image, put, unit_vectors
from tests.waiting import wait_for

WAIT_S = 30.0
IDS = st.sampled_from([f"i{n}" for n in range(14)])


class Changing(RuleBasedStateMachine):
    """Random additions, replacements and deletions; the groups are as defined at every moment."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store = self.make_store()
        self.service = DuplicateService(
            self.store, picture_service(self.store, self.folder), wait_s=WAIT_S, first_k=2
        )

    def make_store(self):
        return MemoryStore()

    @initialize(contents=st.lists(st.integers(0, CONTENTS - 1), min_size=8, max_size=14))
    def fill(self, contents) -> None:
        for number, content in enumerate(contents):
            add(self.store, f"i{number}", content)

    @rule(items=st.lists(st.tuples(IDS, st.integers(0, CONTENTS - 1)), min_size=1, max_size=6))
    def add(self, items) -> None:
        for image_id, content in items:
            add(self.store, image_id, content)

    @rule(image_ids=st.lists(IDS, min_size=1, max_size=4))
    def delete(self, image_ids) -> None:
        for image_id in image_ids:
            try:
                self.store.delete("default", image_id)
            except NotFoundError:
                continue

    @rule()
    def drop(self) -> None:
        if spec_of(self.store, "default") is not None:
            self.store.drop("default")

    @rule(kind=st.sampled_from(DuplicateKind), threshold=st.sampled_from([0.82, 0.95, 0.97, 1.0]))
    def find(self, kind, threshold) -> None:
        found = ready(self.service, kind=kind, threshold=threshold)
        records = self.store.scroll("default", limit=100).records
        expected = plain_groups(records, kind=kind, threshold=threshold)
        assert groups_of(found) == expected
        assert found.total_groups == len(expected)
        assert found.truncated == 0

    def teardown(self) -> None:
        self.service.close()
        self.store.close()
        shutil.rmtree(self.folder)


class ChangingOnDisk(Changing):
    def make_store(self):
        return LocalStore(self.folder)


RUNS = settings(
    max_examples=15,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    database=None,
)
TestChanging = Changing.TestCase
TestChanging.settings = RUNS
TestChangingOnDisk = ChangingOnDisk.TestCase
TestChangingOnDisk.settings = settings(RUNS, max_examples=5)


class Watched(MemoryStore):
    """Counts the queries; each search may be held up."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = 0
        self.takes_s = 0.0
        self.gate = threading.Event()
        self.gate.set()

    def search(self, collection, queries, **options):
        self.queries += len(queries)
        assert self.gate.wait(WAIT_S)
        time.sleep(self.takes_s)
        return super().search(collection, queries, **options)


@pytest.fixture
def store():
    return Watched()


@pytest.fixture
def make(store, tmp_path):
    made = []

    def service(wait_s: float = WAIT_S, **options: int) -> DuplicateService:
        pictures = picture_service(store, tmp_path)
        made.append(DuplicateService(store, pictures, wait_s=wait_s, **options))
        return made[-1]

    yield service
    store.gate.set()
    for one in made:
        one.close()


def test_only_what_came_since_is_searched_for(store, make):
    service = make()
    fill(store, 20)
    ready(service)
    assert store.queries == 20
    ready(service, kind="near", threshold=0.99)
    ready(service, kind="exact")
    assert store.queries == 20
    put(store, [new_image("new")], unit_vectors(1, seed=9))
    ready(service)
    assert store.queries == 21


def test_a_lower_threshold_searches_again_and_a_little_lower_one_does_not(store, make):
    service = make()
    fill(store, 20)
    ready(service, threshold=0.93)
    ready(service, threshold=0.91)  # both are searched for at 0.9
    assert store.queries == 20
    ready(service, threshold=0.8)
    assert store.queries == 40


def test_exact_copies_need_no_search_and_are_one_query(store, make):
    service = make()
    images = [new_image(f"i{n}", content="same") for n in range(300)]
    put(store, images, unit_vectors(1).repeat(300, axis=0))
    (group,) = ready(service, kind=DuplicateKind.EXACT).groups
    assert (len(group.members), store.queries) == (299, 0)
    found = ready(service)
    assert store.queries <= 4  # one for each block, asked again for more
    assert len(found.groups[0].members) == 299


def test_more_neighbors_than_are_looked_at_are_said(store, make):
    service = make()
    images = [new_image(f"i{n}") for n in range(40)]
    put(store, images, unit_vectors(1).repeat(40, axis=0))
    found = ready(service)
    assert (found.truncated, found.total_groups, found.total_duplicates) == (0, 1, 39)
    assert ready(make(max_neighbors=16)).truncated == 40


def test_pages_hold_every_group_once_the_largest_first(store, make):
    service = make()
    for n, copies in enumerate([3, 2, 2, 4, 2, 3, 5]):
        images = [new_image(f"g{n}-{copy}", content=f"c{n}") for copy in range(copies)]
        put(store, images, unit_vectors(1, seed=n).repeat(copies, axis=0))
    whole = ready(service, kind=DuplicateKind.EXACT)
    assert [len(group.members) for group in whole.groups] == [4, 3, 2, 2, 1, 1, 1]
    seen, cursor = [], None
    while True:
        page = ready(service, kind=DuplicateKind.EXACT, limit=2, cursor=cursor)
        assert (page.total_groups, page.total_duplicates) == (7, 14)
        seen += groups_of(page)
        if (cursor := page.next_cursor) is None:
            break
    assert seen == groups_of(whole)


def placed(image_id: str, content: str, path: str, **facts) -> NewImage:
    return replace(new_image(image_id, content=content), place=Place("/photos", path), **facts)


def test_copies_under_other_paths_are_shown_and_are_no_members(store, make):
    service = make()
    fill(store, 5)
    ready(service)
    for path in ("a", "b", "c"):  # seen after the pictures were searched for
        put(store, [placed("one", "c1", path)], unit_vectors(1, seed=1))
    put(store, [placed("also", "c2", "d")], unit_vectors(1, seed=2))
    put(store, [placed("two", "c2", "e")], unit_vectors(1, seed=2))
    put(store, [placed("two", "c2", "f")], unit_vectors(1, seed=2))
    for kind in DuplicateKind:
        found = ready(service, kind=kind)
        assert groups_of(found) == [("also", [("two", "exact", 1.0)]), ("one", [])]
        assert [group.keep.copies for group in found.groups] == [[], ["b", "c"]]
        assert found.groups[0].members[0].record.copies == ["f"]
        assert [group.kind.value for group in found.groups] == ["exact", "exact"]
        assert (found.total_groups, found.total_duplicates, found.total_copies) == (2, 1, 3)
        assert found.bytes_saved == 0  # the service's folder keeps the same bytes once
    first = ready(service, limit=1)
    second = ready(service, limit=1, cursor=first.next_cursor)
    assert [*groups_of(first), *groups_of(second)] == groups_of(found)
    assert second.next_cursor is None
    store.forget("default", [Place("/photos", path) for path in ("b", "c", "f")])
    assert groups_of(ready(service)) == [("also", [("two", "exact", 1.0)])]


def test_more_copies_than_a_record_lists_are_all_counted(store, make):
    for n in range(MAX_COPIES + 5):
        image = placed("one", "c1", f"{n}", source="/photos/0")
        put(store, [image], unit_vectors(1, seed=1))
    found = ready(make(), kind=DuplicateKind.EXACT)
    (group,) = found.groups
    assert found.total_copies == len(group.keep.copies) == MAX_COPIES + 4
    assert found.bytes_saved == group.keep.bytes * found.total_copies  # each path is a file


def test_pictures_that_cannot_be_compared_in_time_are_no_reencoded_ones(store, make):
    service = make()
    add(store, "a", 0)
    add(store, "b", 1)
    decoder = service.pictures.decoder
    decoder.limits = replace(decoder.limits, max_seconds=1e-4)  # no more than a thumbnail needs
    assert ready(service, kind=DuplicateKind.REENCODED).groups == []
    (group,) = ready(service).groups
    assert [one.kind for one in group.members] == [DuplicateKind.NEAR]


def test_closing_ends_a_comparison(store, make, monkeypatch):
    service = make(wait_s=0.05)
    add(store, "a", 0)
    add(store, "b", 1)
    comparing = threading.Event()

    def hang(*_: object) -> int:
        gone = threading.Event()
        with caller.get().on_leave(gone.set):
            comparing.set()
            gone.wait(WAIT_S)
        raise AssertionError

    monkeypatch.setattr(service.pictures.decoder, "compare", hang)
    assert isinstance(service.find(DuplicateOptions()), Unfinished)
    assert comparing.wait(WAIT_S)
    service.wait_s = WAIT_S
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(service.find, DuplicateOptions())
        wait_for(lambda: service._waiting._value < _WAITING)
        service.close()
        with pytest.raises(NotReadyError):
            asked.result(WAIT_S)


def test_a_collection_that_takes_a_name_over_has_its_own_groups(store, make):
    service = make()
    same = [new_image(one, content="c") for one in ("a", "b")]
    put(store, same, unit_vectors(1).repeat(2, axis=0), collection="two")
    wait_for(lambda: utc_now() != store.collection("two").created_at)
    fill(store, 3)  # whose rows are newer
    assert ready(service, kind=DuplicateKind.EXACT).groups == []
    store.rename("default", "three")
    store.rename("two", "default")
    (group,) = ready(service, kind=DuplicateKind.EXACT).groups
    assert {group.keep.id, *(one.record.id for one in group.members)} == {"a", "b"}


def test_deleting_what_was_shown_does_not_disturb_the_next_page(store, make):
    service = make()
    for n in range(4):
        images = [new_image(f"g{n}-{copy}", content=f"c{n}") for copy in range(2)]
        put(store, images, unit_vectors(1, seed=n).repeat(2, axis=0))
    first = ready(service, kind=DuplicateKind.EXACT, limit=2)
    for group in first.groups:
        store.delete("default", group.members[0].record.id)
    second = ready(service, kind=DuplicateKind.EXACT, limit=2, cursor=first.next_cursor)
    assert [group.keep.id for group in (*first.groups, *second.groups)] == [
        f"g{n}-0" for n in range(4)
    ]
    assert second.next_cursor is None


def test_a_picture_that_is_replaced_while_the_answer_is_made_is_left_out(store, make, monkeypatch):
    service = make()
    images = [new_image(image_id, content="same") for image_id in ("a", "b")]
    put(store, images, unit_vectors(1).repeat(2, axis=0))
    find = store.find

    def replace_and_find(collection, image_ids):
        put(store, [new_image("b", content="other")], unit_vectors(1, seed=5))
        return find(collection, image_ids)

    monkeypatch.setattr(store, "find", replace_and_find)
    assert ready(service, kind=DuplicateKind.EXACT).groups == []


def test_a_content_that_comes_back_meets_what_came_meanwhile(store, make):
    service = make()
    add(store, "a", 0)
    ready(service)
    store.delete("default", "a")
    add(store, "x", 1)
    assert ready(service).groups == []
    add(store, "a", 0)
    assert ready(service).total_groups == 1


def test_long_work_is_told_and_shared(store, make):
    service = make(wait_s=0.05)
    fill(store, 10)
    store.gate.clear()
    options = DuplicateOptions()
    for _ in range(3):
        running = service.find(options)
        assert isinstance(running, Unfinished)
        assert (running.done, running.total) == (0, 10)
    store.gate.set()
    deadline = time.monotonic() + WAIT_S
    while isinstance(service.find(options), Unfinished):
        assert time.monotonic() < deadline
    assert store.queries == 10


def test_closing_stops_the_work_promptly(store, make):
    store.takes_s = 0.05
    service = make(wait_s=0.1, together=1)
    fill(store, 1000)
    assert isinstance(service.find(DuplicateOptions()), Unfinished)
    service.close()
    assert store.queries < 1000
    with pytest.raises(NotReadyError):
        service.find(DuplicateOptions())


def test_a_caller_whose_work_had_not_begun_is_told_when_the_service_closes(store, make):
    service = make(wait_s=0.05)
    for name in ("one", "two", "three"):
        fill(store, 3, collection=name)
    store.gate.clear()
    for name in ("one", "two"):  # as many as work at a time
        assert isinstance(service.find(DuplicateOptions(collection=name)), Unfinished)
    service.wait_s = WAIT_S

    def works():
        return list(service._works.items())

    with ThreadPoolExecutor(2) as threads:
        asked = threads.submit(service.find, DuplicateOptions(collection="three"))
        wait_for(lambda: any(name == "three" and one.job for (name, *_), one in works()))
        closed = threads.submit(service.close)
        wait_for(service._stop.is_set)
        store.gate.set()
        with pytest.raises(NotReadyError):
            asked.result(WAIT_S)
        closed.result(WAIT_S)
    assert store.queries == 6  # those of the third were never asked


def test_an_error_of_the_work_reaches_the_caller_and_the_next_call_tries_again(
    store, make, monkeypatch
):
    service = make()
    fill(store, 5)
    with monkeypatch.context() as broken:
        broken.setattr(Watched, "search", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            service.find(DuplicateOptions())
    assert ready(service).total_groups == 0


def test_an_error_after_the_caller_left_reaches_the_next_one(store, make, monkeypatch):
    service = make(wait_s=0.05)
    fill(store, 5)
    store.gate.clear()
    assert isinstance(service.find(DuplicateOptions()), Unfinished)
    service.wait_s = WAIT_S
    with monkeypatch.context() as broken:
        broken.setattr(MemoryStore, "search", lambda *_, **__: 1 / 0)
        store.gate.set()
        with pytest.raises(ZeroDivisionError):
            service.find(DuplicateOptions())
    assert ready(service).total_groups == 0


def test_collections_that_are_gone_are_forgotten(store, make):
    service = make()
    for name in ("one", "two"):
        fill(store, 3, collection=name)
        ready(service, collection=name)
    store.drop("one")
    fill(store, 3, collection="three")
    ready(service, collection="three")
    assert {name for name, *_ in service._works} == {"two", "three"}


def test_many_deletions_are_forgotten_in_the_end(store, make):
    service = make(stale_spare=5)
    fill(store, 30)
    ready(service)
    for n in range(28):
        store.delete("default", f"i{n}")
    ready(service)
    (work,) = service._works.values()
    assert len(work.graph) == 2


def test_an_empty_service_has_no_duplicates_and_an_unknown_collection_is_an_error(make):
    service = make()
    assert ready(service).groups == []
    with pytest.raises(CollectionNotFoundError):
        service.find(DuplicateOptions(collection="shoes"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"threshold": 0.4},
        {"threshold": 1.1},
        {"threshold": float("nan")},
        {"limit": 0},
        {"limit": 1001},
        {"cursor": "c1"},
        {"cursor": "0.a"},
        {"cursor": ""},
    ],
)
def test_options_out_of_range(wrong):
    with pytest.raises(InvalidParameterError):
        DuplicateOptions(**wrong)
