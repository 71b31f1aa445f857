"""What every store promises."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lookalike.errors import (
    CollectionNotFoundError,
    ConflictError,
    ImageNotFoundError,
    InvalidParameterError,
    MetadataTooLargeError,
    SpecMismatchError,
)
from lookalike.records import FacetValue, OnConflict, Place, PutStatus
from lookalike.store.base import Capability, Store, count_of, scan, spec_of
from lookalike.store.filters import Filter, Kind
from tests.store.helpers import (
    DIM,
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


def test_an_empty_store_answers(store: Store) -> None:
    assert store.collections() == []
    assert spec_of(store, "default") is None
    assert count_of(store, "default") == 0
    assert store.find("default", ["a"]) == {}
    assert store.scroll("default").records == []
    assert search(store, unit_vectors(2)) == [[], []]
    assert store.references([digest("a")]) == set()
    assert put(store, [], unit_vectors(0)) == []
    assert store.collections() == []
    for ask in (store.get, store.delete):
        with pytest.raises(ImageNotFoundError):
            ask("default", "a")
    with pytest.raises(ImageNotFoundError):
        store.update_metadata("default", "a", {})
    with pytest.raises(CollectionNotFoundError):
        store.drop("default")


def test_known_pictures_are_settled_without_a_vector_as_put_would(store: Store) -> None:
    vectors = fill(store, 2)
    for image, status, metadata in (
        (new_image("i1"), PutStatus.UNCHANGED, {"n": 1}),
        (new_image("i1", metadata={"n": True}), PutStatus.UPDATED, {"n": True}),
        (new_image("i1", metadata={"n": True}), PutStatus.UNCHANGED, {"n": True}),
    ):
        (outcome,) = store.upsert_known("default", [image], on_conflict=OnConflict.REPLACE)
        assert outcome is not None
        assert (outcome.status, outcome.record) == (status, store.get("default", "i1"))
        assert outcome.record.metadata == metadata
    other = new_image("i1", content="other")
    for on_conflict, status in (
        (OnConflict.SKIP, PutStatus.SKIPPED),
        (OnConflict.ERROR, PutStatus.CONFLICT),
    ):
        (outcome,) = store.upsert_known("default", [other], on_conflict=on_conflict)
        assert outcome is not None
        assert outcome.status is status
    assert store.get("default", "i1").sha256 == digest("i1")
    assert np.array_equal(vector_of(store, "default", "i1"), vectors[1])


def test_pictures_that_need_a_vector_are_left_to_put(store: Store) -> None:
    fill(store, 1)
    replaced = new_image("i0", content="other")
    for collection, image in (
        ("default", replaced),
        ("default", new_image("new")),
        ("no", replaced),
    ):
        found = store.upsert_known(collection, [image], on_conflict=OnConflict.REPLACE)
        assert found == [None]
    assert store.get("default", "i0").sha256 == digest("i0")
    assert spec_of(store, "no") is None


def test_put_keeps_rows_and_vectors(store: Store) -> None:
    vectors = fill(store, 3)
    record = store.get("default", "i1")
    assert (record.collection, record.id, record.sha256) == ("default", "i1", digest("i1"))
    assert (record.filename, record.width, record.height, record.bytes) == ("i1.png", 4, 3, 100)
    assert record.metadata == {"n": 1}
    assert record.created_at == record.updated_at
    assert np.array_equal(vector_of(store, "default", "i1"), vectors[1])
    assert set(store.find("default", ["i0", "i2", "no"])) == {"i0", "i2"}
    info = store.collections()[0]
    assert (info.name, info.count, info.spec) == ("default", 3, SPEC)
    assert (info.provenance, info.index) == ({"precision": "float32"}, "Flat")
    assert store.describe()["collections"]["default"]["count"] == 3


def test_search_finds_the_nearest_first(store: Store) -> None:
    vectors = fill(store, 200)
    for query, matches in zip(vectors[:20], search(store, vectors[:20], k=7), strict=True):
        scores = (vectors.astype(np.float64) @ query.astype(np.float64)).clip(-1, 1)
        assert ids(matches) == [f"i{n}" for n in np.argsort(-scores, kind="stable")[:7]]
        assert [m.rank for m in matches] == list(range(1, 8))
        assert np.allclose([m.score for m in matches], np.sort(scores)[::-1][:7], atol=1e-6)


def test_search_gives_what_there_is(store: Store) -> None:
    vectors = fill(store, 5)
    assert len(search(store, vectors[:1], k=1000)[0]) == 5
    assert len(search(store, vectors[:1], k=5)[0]) == 5
    assert search(store, vectors[:0], k=5) == []


def test_equal_scores_come_oldest_first(store: Store) -> None:
    needs(store, Capability.OLDEST_FIRST)
    same = np.repeat(unit_vectors(1), 50, axis=0)
    put(store, [new_image(f"i{n}") for n in range(50)], same)
    assert ids(search(store, same[:1], k=5)[0]) == ["i0", "i1", "i2", "i3", "i4"]
    put(store, [new_image("i0", content="new")], same[:1])
    assert ids(search(store, same[:1], k=50)[0])[-1] == "i0"


def test_filters_and_exclusions_come_before_ranking(store: Store) -> None:
    vectors = fill(store, 100)
    where = Filter.parse({"n": {"gte": 90}})
    found = search(store, vectors[:1], k=10, where=where)[0]
    assert sorted(ids(found)) == sorted(f"i{n}" for n in range(90, 100))
    found = search(store, vectors[:1], k=99, exclude=["i0", "unknown"])[0]
    assert len(found) == 99
    assert "i0" not in ids(found)
    found = search(store, vectors[:1], k=10, where=where, exclude=["i95"])[0]
    assert len(found) == 9
    assert search(store, vectors[:1], where=Filter.parse({"no": 1})) == [[]]
    assert len(search(store, vectors[:1], where=Filter.parse({}))[0]) == 10


SHOP: list[dict[str, Any]] = [
    {
        "label": "cat",
        "size": {"w": 3, "h": 2.0},
        "tags": ["new", "new", "sale"],
        "day": "2026-01-31",
    },
    {
        "label": "cat",
        "size": {"w": 1.5},
        "tags": [],
        "day": "2025-12-01T10:00:00Z",
        "id": "x" * 300,
    },
    {"label": "cafe\u0301", "size": {"w": 3.0}, "tags": ["sale", 3, None], "sold": True},
    {"label": "caf\u00e9", "day": "2026-02-01", "empty": {}, "sold": False, "id": "a"},
]


def test_counts_and_facets(store: Store) -> None:
    assert (store.count("default"), store.facets("default").facets) == (0, [])
    put(store, [new_image(f"i{n}", metadata=one) for n, one in enumerate(SHOP)], unit_vectors(4))
    assert store.count("default") == store.count("default", Filter()) == 4
    assert store.count("default", Filter.parse({"size.w": 3, "tags": "sale"})) == 2
    found = store.facets("default")
    assert (found.count, found.fields) == (4, 8)
    by_name = {one.field: one for one in found.facets}
    assert list(by_name) == ["label", "day", "size.w", "tags", "id", "sold", "empty", "size.h"]
    label = by_name["label"]
    assert (label.count, label.distinct, label.numbers, label.dates) == (4, 2, None, None)
    assert label.values == (FacetValue("caf\u00e9", 2), FacetValue("cat", 2))
    width = by_name["size.w"]
    assert (width.numbers, width.values) == ((1.5, 3), (FacetValue(3, 2), FacetValue(1.5, 1)))
    assert by_name["day"].dates == ("2025-12-01T10:00:00Z", "2026-02-01")
    tags = [(one.value, one.count) for one in by_name["tags"].values]
    assert tags == [("sale", 2), ("new", 1), (3, 1), (None, 1)]
    assert (by_name["id"].distinct, by_name["id"].values) == (2, (FacetValue("a", 1),))
    assert (by_name["empty"].count, by_name["empty"].distinct) == (1, 0)
    assert [one.value for one in by_name["sold"].values] == [False, True]


def test_facets_of_named_fields_under_a_filter(store: Store) -> None:
    put(store, [new_image(f"i{n}", metadata=one) for n, one in enumerate(SHOP)], unit_vectors(4))
    where = Filter.parse({"not": {"label": "cat"}})
    found = store.facets("default", fields=["size", "none", "label"], where=where, limit=1)
    assert (found.count, found.fields) == (2, 3)
    assert [(one.field, one.count) for one in found.facets] == [
        ("size", 1),
        ("none", 0),
        ("label", 2),
    ]
    assert [len(one.values) for one in found.facets] == [0, 0, 1]
    store.delete("default", "i3")
    store.update_metadata("default", "i2", {"label": "dog", "none": 1})
    found = store.facets("default", fields=["none", "label"], where=where)
    assert [one.values for one in found.facets] == [(FacetValue(1, 1),), (FacetValue("dog", 1),)]


def test_facets_of_numbers_beyond_64_bits(store: Store) -> None:
    numbers = [2.0**63, 2.0**63, 2.0**63 - 1024, -(2.0**63), 1e300]
    rows = [new_image(f"i{n}", metadata={"a": one}) for n, one in enumerate(numbers)]
    put(store, rows, unit_vectors(5))
    (found,) = store.facets("default").facets
    assert (found.distinct, found.numbers) == (4, (-(2.0**63), 1e300))
    assert found.values == tuple(
        FacetValue(one, count)
        for one, count in ((2.0**63, 2), (-(2.0**63), 1), (2.0**63 - 1024, 1), (1e300, 1))
    )


def test_facets_of_many_fields_are_those_that_most_have(store: Store) -> None:
    rows = [{f"f{n:02}": 1 for n in range(first, 40)} for first in range(40)]
    put(store, [new_image(f"i{n}", metadata=one) for n, one in enumerate(rows)], unit_vectors(40))
    found = store.facets("default")
    assert found.fields == 40
    assert [one.field for one in found.facets] == [f"f{n:02}" for n in range(39, 7, -1)]


def test_kinds_of_what_is_held(store: Store) -> None:
    assert store.kinds("default", ["a"]) == {"a": frozenset()}
    put(store, [new_image(f"i{n}", metadata=one) for n, one in enumerate(SHOP)], unit_vectors(4))
    found = store.kinds("default", ["label", "size", "size.w", "tags", "sold", "no"])
    assert found["label"] == {Kind.TEXT}
    assert found["size"] == {Kind.OBJECT}
    assert found["size.w"] == {Kind.NUMBER}
    assert found["tags"] == {Kind.LIST, Kind.TEXT, Kind.NUMBER, Kind.NULL}
    assert found["sold"] == {Kind.BOOLEAN}
    assert found["no"] == set()
    store.delete("default", "i2")
    store.update_metadata("default", "i3", {"sold": None})
    found = store.kinds("default", ["tags", "sold"])
    assert found == {"tags": {Kind.LIST, Kind.TEXT}, "sold": frozenset()}


def test_the_same_bytes_again_are_unchanged(store: Store) -> None:
    fill(store, 1)
    before = store.get("default", "i0")
    for on_conflict in (OnConflict.REPLACE, OnConflict.ERROR):
        again = put(store, [new_image("i0")], unit_vectors(1, seed=5), on_conflict=on_conflict)
        assert again[0].status is PutStatus.UNCHANGED
        assert again[0].record == before
    assert np.array_equal(vector_of(store, "default", "i0"), unit_vectors(1)[0])


def test_other_metadata_is_an_update(store: Store) -> None:
    fill(store, 1)
    outcome = put(store, [new_image("i0", metadata={"n": 7})], unit_vectors(1))[0]
    assert outcome.status is PutStatus.UPDATED
    assert store.get("default", "i0").metadata == {"n": 7}
    assert (
        put(store, [new_image("i0", metadata={"n": True})], unit_vectors(1))[0].status == "updated"
    )
    assert put(store, [new_image("i0", metadata={"n": 1})], unit_vectors(1))[0].status == "updated"


def test_times_that_an_image_brings_are_those_of_a_new_row(store: Store) -> None:
    made, changed = "2020-01-31T12:00:00.000Z", "2021-01-31T12:00:00.000Z"
    images = [
        replace(new_image(f"i{n}", metadata={"n": n}), created_at=made, updated_at=changed)
        for n in range(2)
    ]
    for status in (PutStatus.CREATED, PutStatus.UNCHANGED):
        outcomes = put(store, images, unit_vectors(2))
        assert [one.status for one in outcomes] == [status] * 2
        for record in store.find("default", ["i0", "i1"]).values():
            assert (record.created_at, record.updated_at) == (made, changed)
    put(store, [replace(images[0], metadata={"n": 7})], unit_vectors(1))
    put(store, [replace(images[1], sha256=digest("other"))], unit_vectors(1))
    for record in store.find("default", ["i0", "i1"]).values():
        assert record.created_at == made
        assert record.updated_at > "2026"


def test_other_bytes_replace(store: Store) -> None:
    fill(store, 2)
    before = store.get("default", "i0")
    vector = unit_vectors(1, seed=9)
    outcome = put(store, [new_image("i0", content="other")], vector)[0]
    assert outcome.status is PutStatus.REPLACED
    after = store.get("default", "i0")
    assert after == outcome.record
    assert (after.sha256, after.created_at) == (digest("other"), before.created_at)
    assert after.metadata == before.metadata
    assert ids(search(store, vector, k=1)[0]) == ["i0"]
    assert [record.id for record in store.scroll("default").records] == ["i1", "i0"]
    assert store.references([digest("i0"), digest("other")]) == {digest("other")}


def test_conflicts_are_told_apart(store: Store) -> None:
    fill(store, 2)
    images = [new_image("i0", content="other"), new_image("new"), new_image("i1")]
    outcomes = put(store, images, unit_vectors(3, seed=3), on_conflict=OnConflict.SKIP)
    assert [outcome.status for outcome in outcomes] == ["skipped", "created", "skipped"]
    images[1] = new_image("newer")
    outcomes = put(store, images, unit_vectors(3, seed=3), on_conflict=OnConflict.ERROR)
    assert [outcome.status for outcome in outcomes] == ["conflict", "created", "unchanged"]
    assert store.get("default", "i0").sha256 == digest("i0")


def test_an_id_given_twice_is_handled_in_order(store: Store) -> None:
    vectors = unit_vectors(3)
    images = [new_image("a"), new_image("a", content="b", metadata={"x": 1}), new_image("a")]
    outcomes = put(store, images, vectors)
    assert [outcome.status for outcome in outcomes] == ["created", "replaced", "replaced"]
    assert outcomes[2].record.metadata == {"x": 1}
    assert count_of(store, "default") == 1
    assert np.array_equal(vector_of(store, "default", "a"), vectors[2])
    assert [m.score for m in search(store, vectors[2:], k=3)[0]] == pytest.approx([1.0])


def test_collections_keep_apart(store: Store) -> None:
    fill(store, 3, collection="one")
    fill(store, 2, collection="two", seed=1)
    assert [(c.name, c.count) for c in store.collections()] == [("one", 3), ("two", 2)]
    store.delete("two", "i0")
    assert count_of(store, "one") == 3
    assert store.drop("one", wait=True) == 3
    assert count_of(store, "one") == 0
    assert store.references([digest("i0"), digest("i1")]) == {digest("i1")}
    assert search(store, unit_vectors(1), collection="one") == [[]]
    assert len(search(store, unit_vectors(1), collection="two")[0]) == 1
    fill(store, 1, collection="one")
    assert len(search(store, unit_vectors(1), collection="one")[0]) == 1


def test_other_specs_are_refused(store: Store) -> None:
    vectors = fill(store, 1)
    with pytest.raises(SpecMismatchError, match="model: 'tiny' there, 'other' here"):
        store.upsert("default", [new_image("b")], vectors, spec=OTHER_SPEC, provenance={})
    with pytest.raises(SpecMismatchError):
        search(store, vectors, spec=OTHER_SPEC)
    assert count_of(store, "default") == 1


def test_metadata_is_merged_and_replaced(store: Store) -> None:
    put(store, [new_image("a", metadata={"x": 1, "deep": {"u": 1, "v": 2}})], unit_vectors(1))
    patched = store.update_metadata("default", "a", {"x": None, "deep": {"u": None}, "y": [1]})
    assert patched.metadata == {"deep": {"v": 2}, "y": [1]}
    assert store.get("default", "a") == patched
    with pytest.raises(MetadataTooLargeError):
        store.update_metadata("default", "a", {"long": "x" * 100}, max_bytes=50)
    assert store.get("default", "a") == patched
    replaced = store.update_metadata("default", "a", dict.fromkeys(patched.metadata) | {"z": 1})
    assert replaced.metadata == {"z": 1}
    assert store.get("default", "a").metadata == {"z": 1}


def test_what_is_handed_out_changes_nothing(store: Store) -> None:
    put(store, [new_image("a", metadata={"tags": ["x"]})], unit_vectors(1))
    store.get("default", "a").metadata["tags"].append("y")
    search(store, unit_vectors(1))[0][0].record.metadata["tags"].append("y")
    vector_of(store, "default", "a")[:] = 0
    assert store.get("default", "a").metadata == {"tags": ["x"]}
    assert np.array_equal(vector_of(store, "default", "a"), unit_vectors(1)[0])


def test_deleted_pictures_are_gone(store: Store) -> None:
    vectors = fill(store, 30)
    store.delete("default", "i7")
    with pytest.raises(ImageNotFoundError):
        store.delete("default", "i7")
    assert count_of(store, "default") == 29
    assert "i7" not in ids(search(store, vectors[7:8], k=30)[0])
    assert store.references([digest("i7")]) == set()


def test_digests_of_rows_that_are_gone_come_up_once(store: Store) -> None:
    def unnamed() -> set[str]:
        return {digest for batch in store.unnamed() for digest in batch}

    fill(store, 5)
    fill(store, 2, collection="other")
    assert unnamed() == set()
    store.delete("default", "i4")
    store.delete("default", "i0")  # of which the other collection has a row
    put(store, [new_image("i3", content="changed")], unit_vectors(1))
    store.expect([digest("expected"), digest("i1")])
    gone = {digest("i4"), digest("i3"), digest("expected")}
    for batch in store.unnamed():
        assert set(batch) <= gone
        break  # as a sweep that is ended
    assert unnamed() == gone
    assert unnamed() == set()
    store.expect([digest("i4")])
    assert unnamed() == {digest("i4")}
    for name in ("default", "other"):
        store.drop(name, wait=True)
    assert unnamed() == {digest(text) for text in ("i0", "i1", "i2", "changed")}


def test_a_page_is_in_the_order_of_coming(store: Store) -> None:
    needs(store, Capability.OLDEST_FIRST)
    fill(store, 12)
    put(store, [new_image("i3", content="new")], unit_vectors(1))
    found = [record.id for record in store.scroll("default", limit=100).records]
    assert found == [f"i{n}" for n in range(12) if n != 3] + ["i3"]


def test_many_rows_come_together_or_not_at_all(store: Store) -> None:
    needs(store, Capability.ALL_OR_NOTHING)
    vectors, rounds, seen = unit_vectors(300), itertools.count(), {0}
    fill(store, 1, collection="all")

    def write() -> None:
        images = [new_image(f"i{n}", metadata={"round": next(rounds)}) for n in range(300)]
        put(store, images, vectors, collection="all")
        store.drop("all", wait=True)

    def read() -> None:
        seen.add(count_of(store, "all"))
        found = store.scroll("all", limit=1000).records if store.collection("all") else []
        seen.add(len(found))

    repeat_together(write, read, read, seconds=0.5, enough=lambda: 300 in seen)
    assert seen <= {0, 1, 300}


def test_pages_follow_each_other(store: Store) -> None:
    fill(store, 25)
    seen: list[str] = []
    cursor = None
    while True:
        page = store.scroll("default", cursor=cursor, limit=10)
        seen += [record.id for record in page.records]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == [f"i{n}" for n in range(25)]
    page = store.scroll("default", limit=25)
    assert (len(page.records), page.next_cursor) == (25, None)
    where = Filter.parse({"n": {"gte": 20}})
    first = store.scroll("default", limit=3, where=where)
    rest = store.scroll("default", limit=3, where=where, cursor=first.next_cursor)
    assert [r.id for r in first.records + rest.records] == [f"i{n}" for n in range(20, 25)]


@pytest.mark.parametrize("cursor", ["", "7", "c", "cg", "c" + "f" * 16, "c" + "0" * 17, "c1 "])
def test_other_cursors_are_refused(store: Store, cursor: str) -> None:
    with pytest.raises(InvalidParameterError, match="no cursor"):
        store.scroll("default", cursor=cursor)


def test_numbers_out_of_range_are_refused(store: Store) -> None:
    with pytest.raises(InvalidParameterError):
        store.scroll("default", limit=0)
    with pytest.raises(InvalidParameterError):
        search(store, unit_vectors(1), k=0)


@pytest.mark.parametrize(
    "vectors",
    [
        unit_vectors(2),
        unit_vectors(1, dim=DIM + 1),
        np.full((1, DIM), np.nan, np.float32),
        np.zeros((1, DIM), np.float32),
    ],
)
def test_vectors_that_would_spoil_the_order_are_refused(store: Store, vectors: np.ndarray) -> None:
    with pytest.raises(ValueError, match="vectors"):
        put(store, [new_image("a")], vectors)
    assert count_of(store, "default") == 0


def test_closing_twice_does_no_harm(store: Store) -> None:
    store.close()
    store.close()


def test_a_scan_gives_every_row_with_its_vector(store: Store) -> None:
    fill(store, 7)
    put(store, [new_image("i3", content="other")], unit_vectors(1, seed=5))
    store.delete("default", "i5")
    blocks = list(scan(store, "default"))
    records = [record for block in blocks for record in block.records]
    assert records == store.scroll("default", limit=100).records
    for block in blocks:
        for record, vector in zip(block.records, block.vectors, strict=True):
            assert np.array_equal(vector, vector_of(store, "default", record.id))
    assert list(scan(store, "default", cursor=blocks[-1].end)) == []
    assert list(scan(store, "nothing")) == []


def test_a_scan_continues_behind_its_cursor(store: Store) -> None:
    fill(store, 4)
    (*_, last) = scan(store, "default")
    put(store, [new_image("new"), new_image("i1", content="other")], unit_vectors(2, seed=5))
    later = [
        record.id for block in scan(store, "default", cursor=last.end) for record in block.records
    ]
    assert later == ["new", "i1"]


def test_a_scan_is_filtered(store: Store) -> None:
    images = [new_image(f"p{i}", metadata={"even": i % 2 == 0}) for i in range(6)]
    put(store, images, unit_vectors(6))
    passing = Filter.parse({"even": True})
    found = [r.id for block in scan(store, "default", where=passing) for r in block.records]
    assert found == ["p0", "p2", "p4"]


def test_an_empty_collection_is_made_once_and_filled(store: Store) -> None:
    assert store.make("new", spec=SPEC, provenance={"precision": "float32"})
    assert not store.make("new", spec=OTHER_SPEC, provenance={})
    (info,) = store.collections()
    assert (info.name, info.count, info.spec) == ("new", 0, SPEC)
    assert search(store, unit_vectors(1), collection="new") == [[]]
    with pytest.raises(SpecMismatchError):
        store.upsert("new", [new_image("a")], unit_vectors(1), spec=OTHER_SPEC, provenance={})
    vectors = fill(store, 3, collection="new")
    assert [ids(one) for one in search(store, vectors, collection="new", k=1)] == [
        ["i0"],
        ["i1"],
        ["i2"],
    ]


def test_a_renamed_collection_keeps_all_that_it_has(store: Store) -> None:
    vectors, even = fill(store, 4, collection="one"), Filter.parse({"n": {"in": [0, 2]}})
    assert ids(search(store, vectors[:1], collection="one", where=even)[0]) == ["i0", "i2"]
    fill(store, 1, collection="two")
    with pytest.raises(ConflictError):
        store.rename("one", "two")
    with pytest.raises(CollectionNotFoundError):
        store.rename("none", "three")
    before = store.collection("one")
    store.rename("one", "three")
    store.rename("two", "one")
    after = store.collection("three")
    assert before is not None
    assert after == replace(before, name="three")
    assert count_of(store, "one") == 1
    assert store.get("three", "i3").collection == "three"
    (found,) = search(store, vectors[:1], collection="three", where=even)
    assert set(ids(found)) == {"i0", "i2"}
    store.delete("three", "i0")
    put(store, [new_image("new")], vectors[:1], collection="three")
    assert ids(search(store, vectors[:1], collection="three", k=1)[0]) == ["new"]
    store.rename("three", "three")
    assert [one.name for one in store.collections()] == ["one", "three"]


def test_an_alias_leads_wherever_a_collection_is_named(store: Store) -> None:
    old, new = fill(store, 2, collection="shop_1"), fill(store, 3, collection="shop_2")
    store.alias("shop", "shop_1")
    found = store.collection("shop")
    assert found is not None
    assert found == store.collection("shop_1")
    assert (found.name, found.aliases) == ("shop_1", ("shop",))
    assert [one.name for one in store.collections()] == ["shop_1", "shop_2"]
    assert search(store, old, collection="shop") == search(store, old, collection="shop_1")
    assert store.get("shop", "i0") == store.get("shop_1", "i0")
    (known,) = store.upsert_known("shop", [new_image("i0")], on_conflict=OnConflict.REPLACE)
    assert known is not None
    assert known.record.collection == "shop_1"
    put(store, [new_image("more", place=Place("/p", "a.png"))], new[:1], collection="shop")
    assert store.get("shop_1", "more").collection == "shop_1"
    assert store.seen("shop", "/p") == {"a.png": "more"}
    assert store.places("shop", ["more"]) == {"more": [Place("/p", "a.png")]}
    assert store.spaces.all("shop") == store.spaces.all("shop_1")
    store.alias("shop", "shop_2")  # moved, in one step
    assert count_of(store, "shop") == 3
    assert search(store, new, collection="shop") == search(store, new, collection="shop_2")
    assert not store.make("shop", spec=SPEC, provenance={})
    store.rename("shop_2", "shop_3")
    assert store.get("shop", "i2").collection == "shop_3"
    store.drop("shop_1")
    assert store.delete_many("shop", ["i0", "i1", "more"]) == {"i0", "i1"}
    store.unalias("shop")
    assert store.collection("shop") is None
    assert count_of(store, "shop_3") == 1


def test_names_of_collections_and_aliases_do_not_clash(store: Store) -> None:
    fill(store, 1, collection="one")
    fill(store, 2, collection="two")
    store.alias("other", "one")
    for change in (
        lambda: store.alias("one", "two"),
        lambda: store.alias("one", "one"),
        lambda: store.rename("two", "other"),
        lambda: store.rename("other", "three"),
        lambda: store.drop("other"),
        lambda: store.drop("one"),
    ):
        with pytest.raises(ConflictError):
            change()
    for change in (
        lambda: store.alias("new", "none"),
        lambda: store.unalias("one"),
        lambda: store.unalias("none"),
    ):
        with pytest.raises(CollectionNotFoundError):
            change()
    store.alias("third", "other")  # which leads to its collection
    assert [(one.name, one.aliases) for one in store.collections()] == [
        ("one", ("other", "third")),
        ("two", ()),
    ]
    store.unalias("other")
    assert count_of(store, "third") == 1
