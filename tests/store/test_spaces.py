"""What every store promises about vector spaces and the switch between them."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lookalike.errors import (
    CollectionNotFoundError,
    ConflictError,
    InvalidParameterError,
    NotFoundError,
    SpecMismatchError,
    VectorSpaceNotFoundError,
)
from lookalike.records import ImageRecord, ModelSpec, NewImage
from lookalike.store.base import Capability, Store, scan, spec_of
from lookalike.store.local.index.indexes import Indexes, LiveIndex
from lookalike.store.local.spaces import LocalSpaces
from lookalike.store.local.store import LocalStore
from tests.store.helpers import (
    OTHER_SPEC,
    SPEC,
    digest,
    fill,
    ids,
    needs,
    new_image,
    put,
    search,
    unit_vectors,
    vector_of,
)
from tests.waiting import repeat_together

NEW = ModelSpec(model="new", weights="random", weights_sha256="2" * 64, dim=6)


def new_vectors(records: list[ImageRecord]) -> NDArray[np.float32]:
    """The vector that each content has under the spec NEW: (N, 6) float32."""
    seeds = [int(record.sha256[:8], 16) for record in records]
    return np.concatenate([unit_vectors(1, dim=6, seed=seed) for seed in seeds])


def begin(store: Store, spec: ModelSpec = NEW) -> None:
    store.spaces.begin("default", spec, provenance={"precision": "float64"})


def complete(store: Store, *, limit: int = 3) -> int:
    """Adds every vector that is missing under NEW; gives how many."""
    added, cursor = 0, None
    while (missing := store.spaces.missing("default", NEW, limit=limit, cursor=cursor)).records:
        cursor = missing.cursor
        added += store.spaces.add("default", NEW, missing.records, new_vectors(missing.records))
    return added


def missing_ids(store: Store, spec: ModelSpec = NEW) -> list[str]:
    return [r.id for r in store.spaces.missing("default", spec, limit=100).records]


def put_new(store: Store, images: list[NewImage]) -> None:
    """Puts pictures into a collection whose active set is NEW."""
    vectors = np.concatenate(
        [unit_vectors(1, dim=6, seed=int(image.sha256[:8], 16)) for image in images]
    )
    store.upsert("default", images, vectors, spec=NEW, provenance={})


def test_a_collection_begins_with_one_active_set(store: Store) -> None:
    fill(store, 3)
    (only,) = store.spaces.all("default")
    assert (only.spec, only.count, only.active) == (SPEC, 3, True)
    assert (only.provenance, only.recipe) == ({"precision": "float32"}, None)


def test_a_set_is_made_once(store: Store) -> None:
    fill(store, 3)
    made = store.spaces.begin("default", NEW, provenance={"a": "1"}, recipe={"model": "new"})
    assert (made.spec, made.count, made.active) == (NEW, 0, False)
    assert (made.provenance, made.recipe) == ({"a": "1"}, {"model": "new"})
    again = store.spaces.begin("default", NEW, provenance={"a": "2"})
    assert again == made
    changed = store.spaces.begin("default", NEW, provenance={}, recipe={"model": "newer"})
    assert changed.recipe == {"model": "newer"}
    old = store.spaces.begin("default", SPEC, provenance={}, recipe={"model": "old"})
    assert (old.active, old.count, old.recipe) == (True, 3, {"model": "old"})
    assert [one.spec for one in store.spaces.all("default")] == [SPEC, NEW]
    assert spec_of(store, "default") == SPEC


def test_the_same_weights_under_another_name_are_the_same_set(store: Store) -> None:
    fill(store, 1)
    renamed = ModelSpec(model="tiny", weights="file.pth", weights_sha256="0" * 64, dim=8)
    assert store.spaces.begin("default", renamed, provenance={}).active
    assert store.spaces.activate("default", renamed)
    assert len(store.spaces.all("default")) == 1


def test_what_is_missing_comes_oldest_first(store: Store) -> None:
    fill(store, 7)
    begin(store)
    first = store.spaces.missing("default", NEW, limit=3)
    assert [record.id for record in first.records] == ["i0", "i1", "i2"]
    assert first.records[0] == store.get("default", "i0")
    second = store.spaces.missing("default", NEW, limit=5, cursor=first.cursor)
    assert [record.id for record in second.records] == ["i3", "i4", "i5", "i6"]
    end = store.spaces.missing("default", NEW, limit=5, cursor=second.cursor)
    assert (end.records, end.cursor) == ([], second.cursor)
    put(store, [new_image("i1", content="other"), new_image("late")], unit_vectors(2))
    later = store.spaces.missing("default", NEW, limit=5, cursor=end.cursor)
    assert [record.id for record in later.records] == ["i1", "late"]
    store.spaces.add("default", NEW, later.records, new_vectors(later.records))
    assert missing_ids(store) == ["i0", "i2", "i3", "i4", "i5", "i6"]
    assert missing_ids(store, SPEC) == []


def test_the_switch_waits_for_the_last_vector(store: Store) -> None:
    vectors = fill(store, 5)
    begin(store)
    assert not store.spaces.activate("default", NEW)
    missing = store.spaces.missing("default", NEW, limit=100).records
    assert store.spaces.add("default", NEW, missing[:4], new_vectors(missing[:4])) == 4
    assert not store.spaces.activate("default", NEW)
    assert spec_of(store, "default") == SPEC
    assert ids(search(store, vectors[:1], k=1)[0]) == ["i0"]
    assert store.spaces.add("default", NEW, missing[4:], new_vectors(missing[4:])) == 1
    assert store.spaces.activate("default", NEW)
    assert store.spaces.activate("default", NEW)
    assert spec_of(store, "default") == NEW
    assert [(s.spec, s.active) for s in store.spaces.all("default")] == [
        (SPEC, False),
        (NEW, True),
    ]
    assert store.collections()[0].spec == NEW
    assert store.collections()[0].provenance == {"precision": "float64"}


def test_everything_is_of_the_new_set_after_the_switch(store: Store) -> None:
    fill(store, 30)
    begin(store)
    complete(store)
    store.spaces.activate("default", NEW)
    records = store.scroll("default").records
    expected = new_vectors(records)
    for record, vector in zip(records, expected, strict=True):
        assert np.array_equal(vector_of(store, "default", record.id), vector)
        assert ids(search(store, vector[None], k=1, spec=NEW)[0]) == [record.id]
    (block,) = scan(store, "default")
    assert np.array_equal(block.vectors, expected)
    with pytest.raises(SpecMismatchError):
        search(store, unit_vectors(1))
    with pytest.raises(SpecMismatchError):
        put(store, [new_image("b")], unit_vectors(1))


def test_pictures_that_come_go_and_change_meanwhile(store: Store) -> None:
    fill(store, 6)
    begin(store)
    seen = store.spaces.missing("default", NEW, limit=100).records
    store.delete("default", "i0")
    put(store, [new_image("i1", content="other"), new_image("late")], unit_vectors(2))
    assert store.spaces.add("default", NEW, seen, new_vectors(seen)) == 4
    assert missing_ids(store) == ["i1", "late"]
    store.delete("default", "i2")
    put(store, [new_image("i3", content="another")], unit_vectors(1))
    assert store.spaces.all("default")[1].count == 2
    assert missing_ids(store) == ["i1", "late", "i3"]
    complete(store)
    assert store.spaces.activate("default", NEW)
    for record in store.scroll("default").records:
        vector = new_vectors([record])
        assert ids(search(store, vector, k=1, spec=NEW)[0]) == [record.id]
    assert len(search(store, unit_vectors(1, dim=6), k=100, spec=NEW)[0]) == 5


def test_what_is_there_is_not_written_again(store: Store) -> None:
    fill(store, 2)
    begin(store)
    records = store.scroll("default").records
    first = new_vectors(records)
    assert store.spaces.add("default", NEW, records, first) == 2
    assert store.spaces.add("default", NEW, records, unit_vectors(2, dim=6)) == 0
    found = store.spaces.vectors("default", NEW, records)
    assert np.array_equal(np.stack([found["i0"], found["i1"]]), first)
    assert store.spaces.add("default", SPEC, records, unit_vectors(2)) == 0
    assert store.spaces.add("default", NEW, [], unit_vectors(0, dim=6)) == 0


def test_vectors_of_a_set_belong_to_the_content(store: Store) -> None:
    vectors = fill(store, 3)
    begin(store)
    records = store.scroll("default").records
    put(store, [new_image("i1", content="other")], unit_vectors(1, seed=3))
    store.delete("default", "i2")
    found = store.spaces.vectors("default", SPEC, records)
    assert list(found) == ["i0"]
    assert np.array_equal(found["i0"], vectors[0])
    found["i0"][:] = 0
    assert np.array_equal(vector_of(store, "default", "i0"), vectors[0])
    assert store.spaces.vectors("default", NEW, records) == {}


def test_there_and_back_again_lacks_what_came_later(store: Store) -> None:
    vectors = fill(store, 4)
    begin(store)
    complete(store)
    store.spaces.activate("default", NEW)
    put_new(store, [new_image("late"), new_image("i1", content="other")])
    store.delete("default", "i3")
    assert missing_ids(store, SPEC) == ["late", "i1"]
    assert not store.spaces.activate("default", SPEC)
    records = store.spaces.missing("default", SPEC, limit=10).records
    store.spaces.add("default", SPEC, records, unit_vectors(2, seed=8))
    assert store.spaces.activate("default", SPEC)
    assert ids(search(store, vectors[:1], k=1)[0]) == ["i0"]
    assert len(search(store, vectors[:1], k=100)[0]) == 4
    assert store.spaces.activate("default", NEW)
    assert len(search(store, unit_vectors(1, dim=6), k=100, spec=NEW)[0]) == 4


def test_an_empty_collection_switches_at_once(store: Store) -> None:
    fill(store, 1)
    store.delete("default", "i0")
    begin(store)
    assert store.spaces.activate("default", NEW)
    put_new(store, [new_image("a")])
    assert len(search(store, unit_vectors(1, dim=6), spec=NEW)[0]) == 1


def test_sets_are_discarded_unless_active(store: Store) -> None:
    vectors = fill(store, 1203)
    begin(store)
    with pytest.raises(ConflictError, match="in use"):
        store.spaces.discard("default", SPEC)
    complete(store, limit=1000)
    store.spaces.discard("default", NEW)
    assert [one.spec for one in store.spaces.all("default")] == [SPEC]
    begin(store)
    assert store.spaces.all("default")[1].count == 0
    assert ids(search(store, vectors[:1], k=1)[0]) == ["i0"]


def test_dropping_a_collection_takes_all_of_its_sets(store: Store) -> None:
    fill(store, 3)
    begin(store)
    complete(store)
    store.spaces.activate("default", NEW)
    assert store.drop("default") == 3
    with pytest.raises(CollectionNotFoundError):
        store.spaces.all("default")
    fill(store, 1)
    assert [one.spec for one in store.spaces.all("default")] == [SPEC]


def test_what_is_not_there_is_said(store: Store) -> None:
    with pytest.raises(CollectionNotFoundError):
        begin(store)
    records: list[ImageRecord] = []
    for act in (
        lambda: store.spaces.missing("default", NEW, limit=1),
        lambda: store.spaces.vectors("default", NEW, records),
        lambda: store.spaces.add("default", NEW, records, unit_vectors(0, dim=6)),
        lambda: store.spaces.activate("default", NEW),
        lambda: store.spaces.discard("default", NEW),
    ):
        with pytest.raises(CollectionNotFoundError):
            act()
    fill(store, 1)
    for act in (
        lambda: store.spaces.missing("default", NEW, limit=1),
        lambda: store.spaces.vectors("default", NEW, records),
        lambda: store.spaces.add("default", NEW, records, unit_vectors(0, dim=6)),
        lambda: store.spaces.activate("default", NEW),
        lambda: store.spaces.discard("default", NEW),
    ):
        with pytest.raises(VectorSpaceNotFoundError, match="re-embed"):
            act()
    begin(store)
    with pytest.raises(InvalidParameterError):
        store.spaces.missing("default", NEW, limit=0)
    with pytest.raises(InvalidParameterError, match="no cursor"):
        store.spaces.missing("default", NEW, limit=1, cursor="7")


@pytest.mark.parametrize(
    "vectors",
    [unit_vectors(2, dim=6), unit_vectors(1), np.zeros((1, 6), np.float32)],
)
def test_vectors_that_would_spoil_the_order_are_refused(store: Store, vectors: np.ndarray) -> None:
    fill(store, 1)
    begin(store)
    with pytest.raises(ValueError, match="vectors"):
        store.spaces.add("default", NEW, store.scroll("default").records, vectors)
    assert missing_ids(store) == ["i0"]


def vector_under(spec: ModelSpec, sha256: str) -> NDArray[np.float32]:
    """What a spec makes of a content: (dim,) float32."""
    return unit_vectors(1, dim=spec.dim, seed=int(sha256[:8], 16))[0]


class Traffic:
    """Switches, changes and searches."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.switches = 0
        self.searches = [0, 0, 0]
        self.switching, self.changing = count(1), count(1)

    def spec(self) -> ModelSpec:
        found = spec_of(self.store, "default")
        assert found is not None
        return found

    def switch(self) -> None:
        spec = (SPEC, NEW)[next(self.switching) % 2]
        records = self.store.spaces.missing("default", spec, limit=100).records
        if records:
            vectors = np.stack([vector_under(spec, record.sha256) for record in records])
            self.store.spaces.add("default", spec, records, vectors)
        self.switches += self.store.spaces.activate("default", spec)

    def change(self) -> None:
        turn = next(self.changing)
        image = new_image(f"c{turn % 5}", content=f"{turn}")
        spec = self.spec()
        vector = vector_under(spec, image.sha256)[None]
        with suppress(SpecMismatchError):
            self.store.upsert("default", [image], vector, spec=spec, provenance={})
        if turn % 3 == 0:
            with suppress(NotFoundError):
                self.store.delete("default", f"c{turn % 4}")

    def look(self, number: int) -> None:
        spec = self.spec()
        query = vector_under(spec, digest(f"i{number}"))
        try:
            matches = search(self.store, query[None], k=50, spec=spec)[0]
        except SpecMismatchError:
            return
        assert matches[0].record.id == f"i{number}"
        assert {f"i{n}" for n in range(40)} <= set(ids(matches))
        for match in matches:
            expected = float(vector_under(spec, match.record.sha256) @ query)
            assert match.score == pytest.approx(expected, abs=1e-5)
        self.searches[number] += 1


def test_searches_and_changes_beside_switches_are_right(store: Store) -> None:
    """Whoever reads the spec and then searches is right, or is told of the switch."""
    needs(store, Capability.SWITCH_IN_ONE_STEP)
    images = [new_image(f"i{n}") for n in range(40)]
    put(store, images, np.stack([vector_under(SPEC, image.sha256) for image in images]))
    begin(store)
    traffic = Traffic(store)
    repeat_together(
        traffic.switch,
        traffic.change,
        *(partial(traffic.look, number) for number in range(3)),
        seconds=2.0,
        enough=lambda: traffic.switches > 4 and min(traffic.searches) > 5,
    )


def test_the_local_index_is_there_before_the_switch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path)
    fill(store, 20)
    begin(store)
    complete(store)
    store.spaces.activate("default", NEW)
    monkeypatch.setattr(LiveIndex, "load", lambda *_: pytest.fail("the first search must not wait"))
    assert len(search(store, unit_vectors(1, dim=6), k=20, spec=NEW)[0]) == 20
    assert [folder.name for folder in (tmp_path / "index").iterdir()] in ([], ["2"])
    store.close()


def test_a_prepared_switch_builds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path)
    fill(store, 20)
    begin(store)
    records = store.scroll("default").records
    store.spaces.add("default", NEW, records[:15], new_vectors(records[:15]))
    with store.spaces.prepared("default", NEW):
        monkeypatch.setattr(Indexes, "build", lambda *_: pytest.fail("it is there already"))
        assert not store.spaces.activate("default", NEW)
        store.delete("default", "i3")
        put(store, [new_image("late")], unit_vectors(1))
        complete(store)
        assert store.spaces.activate("default", NEW)
    assert store.spaces.activate("default", NEW)
    records = store.scroll("default").records
    for record, vector in zip(records, new_vectors(records), strict=True):
        assert ids(search(store, vector[None], k=1, spec=NEW)[0]) == [record.id]
    assert len(search(store, unit_vectors(1, dim=6), k=100, spec=NEW)[0]) == 20
    store.close()


def test_what_was_prepared_in_vain_is_let_go(store: Store) -> None:
    vectors = fill(store, 3)
    begin(store)
    with store.spaces.prepared("default", NEW):
        assert not store.spaces.activate("default", NEW)
    if isinstance(store.spaces, LocalSpaces):
        assert store.spaces._prepared == {}
    with store.spaces.prepared("default", SPEC):
        assert store.spaces.activate("default", SPEC)
    assert ids(search(store, vectors[:1], k=1)[0]) == ["i0"]
    with pytest.raises(VectorSpaceNotFoundError), store.spaces.prepared("default", OTHER_SPEC):
        pass


def test_changes_while_the_local_index_is_built_are_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deletes, replacements, and vectors that come out of order, right behind the build."""
    store = LocalStore(tmp_path)
    fill(store, 20)
    begin(store)
    complete(store)
    built = Indexes.build

    def build_then_change(self, row):
        index = built(self, row)
        monkeypatch.setattr(Indexes, "build", built)
        store.delete("default", "i1")
        put(store, [new_image("i2", content="other"), new_image("late")], unit_vectors(2))
        late = store.spaces.missing("default", NEW, limit=10).records[::-1]
        for record in late:
            store.spaces.add("default", NEW, [record], new_vectors([record]))
        return index

    monkeypatch.setattr(Indexes, "build", build_then_change)
    assert store.spaces.activate("default", NEW)
    records = store.scroll("default").records
    for record, vector in zip(records, new_vectors(records), strict=True):
        assert ids(search(store, vector[None], k=1, spec=NEW)[0]) == [record.id]
    assert len(search(store, unit_vectors(1, dim=6), k=100, spec=NEW)[0]) == 20
    store.close()


def test_a_picture_that_comes_while_the_local_index_is_built_keeps_the_old_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path)
    vectors = fill(store, 5)
    begin(store)
    complete(store)
    built = Indexes.build

    def build_then_put(self, row):
        index = built(self, row)
        put(store, [new_image("late")], unit_vectors(1, seed=4))
        return index

    with monkeypatch.context() as patch:
        patch.setattr(Indexes, "build", build_then_put)
        assert not store.spaces.activate("default", NEW)
    assert spec_of(store, "default") == SPEC
    assert ids(search(store, vectors[:1], k=1)[0]) == ["i0"]
    complete(store)
    assert store.spaces.activate("default", NEW)
    assert len(store._indexes._live) == 1, "the old index is let go"
    store.close()


def test_a_vector_before_those_of_the_built_index_makes_it_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path)
    fill(store, 5)
    begin(store)
    complete(store)
    (first, *_) = store.scroll("default").records
    built = Indexes.build
    put(store, [new_image("i0", content="other")], unit_vectors(1))
    waiting = store.spaces.missing("default", NEW, limit=1).records

    def build_then_add(self, row):
        monkeypatch.setattr(Indexes, "build", built)
        put(store, [new_image("last")], unit_vectors(1, seed=4))
        last = store.spaces.missing("default", NEW, limit=2).records[-1:]
        store.spaces.add("default", NEW, last, new_vectors(last))
        index = built(self, row)
        store.spaces.add("default", NEW, waiting, new_vectors(waiting))
        return index

    monkeypatch.setattr(Indexes, "build", build_then_add)
    monkeypatch.setattr("lookalike.store.local.spaces._is_complete", lambda *_: True)
    assert store.spaces.activate("default", NEW)
    assert first.sha256 != waiting[0].sha256
    assert ids(search(store, new_vectors(waiting), k=1, spec=NEW)[0]) == ["i0"]
    store.close()


def test_sets_survive_a_restart(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    fill(store, 6)
    store.spaces.begin("default", NEW, provenance={"a": "1"}, recipe={"model": "new", "n": 1})
    half = store.scroll("default").records[:3]
    store.spaces.add("default", NEW, half, new_vectors(half))
    store.close()
    store = LocalStore(tmp_path)
    assert spec_of(store, "default") == SPEC
    assert store.spaces.all("default")[1].recipe == {"model": "new", "n": 1}
    assert complete(store) == 3
    assert store.spaces.activate("default", NEW)
    store.close()
    store = LocalStore(tmp_path)
    assert spec_of(store, "default") == NEW
    records = store.scroll("default").records
    assert ids(search(store, new_vectors(records)[:1], k=1, spec=NEW)[0]) == [records[0].id]
    store.close()


def test_another_spec_is_another_set(store: Store) -> None:
    fill(store, 1)
    begin(store, OTHER_SPEC)
    begin(store)
    assert len(store.spaces.all("default")) == 3
