"""A picture's file that lies elsewhere by now."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lookalike.store.base import Store
from lookalike.store.filters import Filter
from tests.store.helpers import digest, new_image, put, unit_vectors, vector_of


def test_a_row_names_another_file_and_nothing_else_of_it_changes(store: Store) -> None:
    image = replace(new_image("a", metadata={"n": 1}), source="/old/a.jpg")
    other = replace(new_image("b"), source="/old/b.jpg")
    vectors = unit_vectors(2)
    put(store, [image, other], vectors)
    put(store, [image], vectors[:1], collection="second")
    before = store.get("default", "a")
    assert store.scroll("default", where=Filter.parse({"n": 1})).records == [before]

    store.refer("default", replace(image, source="/new/a.jpg", filename="x", metadata={"n": 2}))
    assert store.get("default", "a") == replace(before, source="/new/a.jpg")
    assert store.scroll("default", where=Filter.parse({"n": 1})).records == [
        store.get("default", "a")
    ]
    assert np.array_equal(vector_of(store, "default", "a"), vectors[0])
    assert store.get("default", "b").source == "/old/b.jpg"
    assert store.get("second", "a").source == "/old/a.jpg"


def test_nothing_happens_to_other_bytes_and_where_there_is_no_row(store: Store) -> None:
    image = replace(new_image("a"), source="/old/a.jpg")
    store.refer("default", image)
    assert store.collections() == []
    put(store, [image], unit_vectors(1))
    before = store.get("default", "a")
    store.refer("default", replace(image, sha256=digest("other"), source="/new/a.jpg"))
    store.refer("default", replace(image, id="b", source="/new/a.jpg"))
    store.refer("second", replace(image, source="/new/a.jpg"))
    assert store.get("default", "a") == before
    assert [info.count for info in store.collections()] == [1]
