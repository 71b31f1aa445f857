"""Every path under which a picture's bytes were seen."""

from __future__ import annotations

import pytest

from lookalike.records import MAX_COPIES, ImageRecord, OnConflict, Place, PutOutcome, PutStatus
from lookalike.store.base import Store
from tests.store.helpers import new_image, put, unit_vectors

A, B, C = (Place("/photos", path) for path in ("a.jpg", "sub/b.jpg", "c.jpg"))


def seen(
    store: Store,
    image_id: str,
    place: Place | None,
    *,
    content: str | None = None,
    metadata: dict[str, str] | None = None,
    on_conflict: OnConflict = OnConflict.REPLACE,
) -> PutOutcome:
    """Puts a picture as the service does: without a vector, if that is enough."""
    image = new_image(image_id, content=content, metadata=metadata, place=place)
    (outcome,) = store.upsert_known("default", [image], on_conflict=on_conflict)
    if outcome is None:
        (outcome,) = put(store, [image], unit_vectors(1), on_conflict=on_conflict)
    assert outcome.record == store.get("default", image_id) or outcome.status == "conflict"
    return outcome


def paths(record: ImageRecord) -> tuple[str | None, list[str]]:
    return record.path, record.copies


def test_every_place_is_kept_in_the_order_it_was_seen(store: Store) -> None:
    assert seen(store, "i", None).record.places == ()
    for place in (B, A, C, A, B):
        seen(store, "i", place)
    record = store.get("default", "i")
    assert paths(record) == ("sub/b.jpg", ["a.jpg", "c.jpg"])
    assert store.places("default", ["i", "unknown"]) == {"i": [B, A, C]}
    assert store.places("unknown", ["i"]) == {}
    (listed,) = store.scroll("default").records
    assert listed == record


def test_a_file_has_one_place_from_whatever_root_it_is_indexed(store: Store) -> None:
    seen(store, "i", Place("/photos", "sub/b.jpg"))
    for place in (Place("/photos/sub", "b.jpg"), Place("/", "photos/sub/b.jpg")):
        outcome = seen(store, "i", place, metadata={"label": place.root})
        assert outcome.status is PutStatus.UPDATED, "it is the same file, and no copy"
    assert store.places("default", ["i"]) == {"i": [Place("/photos", "sub/b.jpg")]}


def test_a_path_with_other_bytes_moves_to_the_new_picture(store: Store) -> None:
    seen(store, "old", A)
    seen(store, "old", B)
    seen(store, "new", C)
    seen(store, "new", A)
    assert paths(store.get("default", "old")) == ("sub/b.jpg", [])
    assert paths(store.get("default", "new")) == ("c.jpg", ["a.jpg"]), "the latest comes last"
    seen(store, "new", B)
    assert store.get("default", "old").places == ()
    assert store.places("default", ["old", "new"]) == {"new": [C, A, B]}


def test_places_move_within_one_call(store: Store) -> None:
    images = [
        new_image("i0", place=A),
        new_image("i1", place=A),
        new_image("i0", place=B),
        new_image("i1", place=B),
    ]
    outcomes = put(store, images, unit_vectors(4))
    assert [paths(outcome.record) for outcome in outcomes] == [
        ("a.jpg", []),
        ("a.jpg", []),
        ("sub/b.jpg", []),
        ("a.jpg", ["sub/b.jpg"]),
    ]
    assert store.places("default", ["i0", "i1"]) == {"i1": [A, B]}


def test_a_picture_that_is_replaced_has_its_new_place_alone(store: Store) -> None:
    seen(store, "i", A)
    seen(store, "i", B)
    assert seen(store, "i", C, content="other").status is PutStatus.REPLACED
    assert store.places("default", ["i"]) == {"i": [C]}


def test_a_copy_keeps_the_first_metadata_and_the_same_path_changes_it(store: Store) -> None:
    seen(store, "i", A, metadata={"label": "a"})
    for _ in range(3):
        copy = seen(store, "i", B, metadata={"label": "b"})
        assert (copy.status, copy.kept_metadata) == (PutStatus.UNCHANGED, True)
        first = seen(store, "i", A, metadata={"label": "a"})
        assert (first.status, first.kept_metadata) == (PutStatus.UNCHANGED, False)
        assert store.get("default", "i").metadata == {"label": "a"}
    assert not seen(store, "i", B, metadata={"label": "a"}).kept_metadata
    assert seen(store, "i", A, metadata={"label": "new"}).status is PutStatus.UPDATED
    assert seen(store, "i", None, metadata={"label": "newer"}).status is PutStatus.UPDATED
    refused = seen(store, "i", C, metadata={"label": "b"}, on_conflict=OnConflict.ERROR)
    assert refused.status is PutStatus.CONFLICT
    assert store.places("default", ["i"]) == {"i": [A, B]}
    assert (store.copied("default"), store.copied("unknown")) == (["i"], [])


def test_what_is_skipped_is_seen_if_its_bytes_are_the_same(store: Store) -> None:
    seen(store, "i", A)
    seen(store, "i", B, on_conflict=OnConflict.SKIP)
    seen(store, "i", C, content="other", on_conflict=OnConflict.SKIP)
    assert store.places("default", ["i"]) == {"i": [A, B]}


def test_places_go_with_their_picture(store: Store) -> None:
    for name in ("i0", "i1"):
        seen(store, name, Place("/photos", name))
    store.delete("default", "i0")
    assert store.places("default", ["i0", "i1"]) == {"i1": [Place("/photos", "i1")]}
    store.drop("default", wait=True)
    assert store.places("default", ["i1"]) == {}
    seen(store, "i0", Place("/photos", "i1"))
    assert paths(store.get("default", "i0")) == ("i1", [])


def test_a_place_belongs_to_its_collection(store: Store) -> None:
    for collection in ("default", "other"):
        put(store, [new_image("i", place=A)], unit_vectors(1), collection=collection)
    store.forget("other", [A])
    assert store.places("default", ["i"]) == {"i": [A]}
    assert store.places("other", ["i"]) == {}


def test_a_place_is_forgotten_and_the_next_becomes_the_first(store: Store) -> None:
    for place in (A, B, C):
        seen(store, "i", place, metadata={"label": "a"})
    store.forget("default", [A, Place("/no", "such")])
    store.forget("unknown", [B])
    assert store.places("default", ["i"]) == {"i": [B, C]}
    assert seen(store, "i", B, metadata={"label": "b"}).status is PutStatus.UPDATED


def test_a_record_lists_some_places_and_the_store_all(store: Store) -> None:
    count = MAX_COPIES + 20
    places = [Place("/photos", f"{number}.jpg") for number in range(count)]
    put(store, [new_image("i", place=place) for place in places], unit_vectors(count))
    record = store.get("default", "i")
    assert record.places == tuple(places[: 1 + MAX_COPIES])
    assert store.places("default", ["i"]) == {"i": places}
    store.forget("default", places[:10])
    assert store.get("default", "i").places == tuple(places[10 : 11 + MAX_COPIES])


@pytest.mark.parametrize("path", ["ü/ж.jpg", "a'b\"c.jpg", "a\nb.jpg", "%_*.jpg", " .jpg"])
def test_any_path_is_kept_as_it_is(store: Store, path: str) -> None:
    place = Place("/photos of 'me'", path)
    seen(store, "i", place)
    seen(store, "i", place)
    assert store.get("default", "i").places == (place,)
    store.forget("default", [place])
    assert store.get("default", "i").places == ()


def test_what_was_seen_below_a_root_is_told_by_path(store: Store) -> None:
    assert store.seen("default", "/photos") == {}
    seen(store, "i", A)
    seen(store, "i", B)
    seen(store, "j", C)
    seen(store, "k", Place("/photos/sub", "d.jpg"))
    seen(store, "k", Place("/photos2", "a.jpg"))
    seen(store, "l", None)
    assert store.seen("default", "/photos") == {"a.jpg": "i", "sub/b.jpg": "i", "c.jpg": "j"}
    assert store.seen("default", "/photos/sub") == {"d.jpg": "k"}, "as it was said when it was seen"
    assert store.seen("default", "/") == store.seen("none", "/photos") == {}
    put(store, [new_image("m", place=A)], unit_vectors(1), collection="other")
    seen(store, "j", A)  # other bytes by now
    store.forget("default", [B, Place("/photos", "unknown")])
    assert store.seen("default", "/photos") == {"a.jpg": "j", "c.jpg": "j"}
    store.delete("default", "j")
    assert store.seen("default", "/photos") == {}
    assert store.seen("other", "/photos") == {"a.jpg": "m"}


@pytest.mark.parametrize("root", ["/", "shop.csv", "/tmp/a%b_c", "/tmp/a[b]'"])
def test_roots_of_every_kind_keep_their_paths(store: Store, root: str) -> None:
    for number, path in enumerate(("x", "http://shop.test/1.jpg?a=b", "../up.jpg", "é%_")):
        seen(store, f"i{number}", Place(root, path))
    seen(store, "not", Place(f"{root}0", "x"))
    assert len(store.seen("default", root)) == 4


def test_what_somebody_sent_is_known_from_what_was_only_seen(store: Store) -> None:
    seen(store, "sent", None, content="s")
    seen(store, "sent", A, content="s")
    seen(store, "both", B)
    assert store.uploaded("default", ["sent", "both", "none"]) == {"sent"}
    assert store.uploaded("none", ["sent"]) == set()
    for _ in range(2):
        assert seen(store, "both", None).status is PutStatus.UNCHANGED
    assert store.uploaded("default", ["sent", "both"]) == {"sent", "both"}
    seen(store, "sent", A, content="of the folder now")
    assert store.uploaded("default", ["sent", "both"]) == {"both"}
    seen(store, "both", None, content="another", on_conflict=OnConflict.SKIP)
    seen(store, "sent", None, content="another", on_conflict=OnConflict.ERROR)
    store.delete("default", "both")
    seen(store, "both", B)
    assert store.uploaded("default", ["sent", "both"]) == set()


def test_a_validator_goes_with_its_place(store: Store) -> None:
    store.validate("default", "/photos", {"a.jpg": "none yet"})
    seen(store, "i", A)
    seen(store, "j", C)
    store.validate("default", "/photos", {"a.jpg": "1", "c.jpg": "2", "unknown": "3"})
    assert store.validators("default", "/photos") == {"a.jpg": "1", "c.jpg": "2"}
    store.validate("default", "/photos", {"a.jpg": "4"})
    seen(store, "i", A, metadata={"new": "yes"})
    assert store.validators("default", "/photos") == {"a.jpg": "4", "c.jpg": "2"}
    seen(store, "i", A, content="other bytes")
    assert store.validators("default", "/photos") == {"c.jpg": "2"}
    seen(store, "k", C)
    assert store.validators("default", "/photos") == {}
    store.validate("default", "/photos", {"a.jpg": "5", "c.jpg": "6"})
    assert store.validators("none", "/photos") == store.validators("default", "/") == {}
    store.forget("default", [A])
    store.delete("default", "k")
    assert store.validators("default", "/photos") == {}
