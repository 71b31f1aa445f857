"""The index of metadata fields: gives the rows that `Filter.matches` gives, at any moment."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lookalike.errors import ImageNotFoundError, InvalidFilterError, StorageError
from lookalike.records import OnConflict
from lookalike.store.filters import LISTS, OPERATORS, Condition, Filter, parse_field_names
from lookalike.store.local.catalog import (
    field_builder,
    field_postings,
    field_spans,
)
from lookalike.store.local.catalog import (
    fields as catalog_fields,
)
from lookalike.store.local.catalog import (
    passing as catalog_passing,
)
from lookalike.store.local.catalog.background import Background
from lookalike.store.local.catalog.catalog import Catalog
from lookalike.store.local.catalog.field_postings import read_postings, write_postings
from lookalike.store.local.catalog.field_spans import Lookup, Span, keys_of, lookups
from lookalike.store.local.catalog.fields import advance, register_fields, unfinished
from lookalike.store.local.catalog.filters import filter_sql
from lookalike.store.local.catalog.migrations import MIGRATIONS
from lookalike.store.local.local_store import LocalStore
from tests.store.helpers import SPEC, fill, new_image, put, unit_vectors
from tests.store.test_filters import SCALARS, TEXT
from tests.waiting import wait_for

ALL = ["a", "b", 'q"\\']
FIELDS = st.sampled_from(ALL)
COLLECTIONS = st.sampled_from(["one", "two"])
NUMBERS = [0, 1, 1.0, 2**53, 2**53 + 1, float(2**53), 2**63 - 1, 2.0**63, 8.41e21]
NEAR = [0.3, 0.1 + 0.2, 0.30000000000000027]
TEXTS = ["x", "xyz", "xyza", "xyzb", "é", "\U0001f600", "\uffff"]
COMMON = st.sampled_from([None, True, False, *NUMBERS, *NEAR, *TEXTS])
ANY = COMMON | SCALARS
VALUES = ANY | st.lists(ANY, max_size=3) | st.dictionaries(TEXT, SCALARS, max_size=1)
METADATA = st.dictionaries(FIELDS, VALUES, max_size=3)
LISTS_OF_FEW = st.dictionaries(FIELDS, st.lists(COMMON, min_size=1, max_size=4), min_size=1)


def is_orderable(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


@st.composite
def filters(draw: st.DrawFn, held: list[Any]) -> Filter:
    """Conditions, any of them more than once; half of the filters let some metadata held pass."""
    some = [metadata for metadata in held if metadata]
    one: dict[str, Any] = {}
    if some and bool(draw(st.booleans())):
        one = draw(st.sampled_from(some))
    fields = st.sampled_from(sorted(one)) if one else FIELDS
    conditions: list[Condition] = []
    for field in draw(st.lists(fields, min_size=1, max_size=2, unique=True)):
        near = [*scalars({field: one.get(field)}), *scalars(one)] or [0]
        operands = st.sampled_from(near) if one else ANY
        often = ["contains"] * 9 if isinstance(one.get(field), list) else []
        for op in draw(st.lists(st.sampled_from([*OPERATORS, *often]), min_size=1, max_size=4)):
            if op in LISTS:
                operand: Any = draw(st.lists(operands, max_size=3))
            elif op[0] in "gl":
                orderable = operands if any(map(is_orderable, near)) else ANY
                operand = draw(orderable.filter(is_orderable))
            else:
                operand = draw(operands)
            conditions += Filter.parse({field: {op: operand}}).conditions
    return Filter(tuple(c for c in conditions if not one or c.matches(one)))


def scalars(metadata: Any) -> Iterator[Any]:
    for value in metadata.values():
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, list | dict):
                yield one


class Fields(RuleBasedStateMachine):
    """Random work on a catalog whose fields are indexed step by step, and tiny limits."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = pytest.MonkeyPatch()
        for module, name, value in (
            (Background, "wake", lambda _: None),  # the steps are rules here
            (catalog_fields, "STEP", 3),
            (catalog_passing, "_FIRST_BOUND", 2),
            (catalog_passing, "_NEXT_BOUND", 2),
            (catalog_passing, "_CHECKED", 1),
            (catalog_passing, "_WALKED", 1),
            (catalog_passing, "_MOST_WALKED", 3),
            (catalog_passing, "_TOGETHER", 2),
            (field_postings, "_BLOCK", 64),
            (field_postings, "_BITS", 16),
            (field_spans, "KEPT", 3),
        ):
            self.limits.setattr(module, name, value)
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "catalog.db"
        self.catalog = Catalog(self.path, fields=["a"])
        self.rows: dict[str, dict[str, Any]] = {}
        self.contents = 0

    @rule(
        collection=COLLECTIONS,
        items=st.lists(st.tuples(st.integers(0, 30), METADATA), min_size=1, max_size=12),
        known=st.booleans(),
    )
    def put(self, collection: str, items: list[Any], known: bool) -> None:
        self.contents += not known
        self.catalog.put(
            collection,
            [new_image(f"i{n}", content=f"{self.contents}", metadata=m) for n, m in items],
            unit_vectors(len(items)),
            spec=SPEC,
            provenance={},
            on_conflict=OnConflict.REPLACE,
        )
        held = self.rows.setdefault(collection, {})
        held.update({f"i{n}": m for n, m in items})

    @rule(collection=COLLECTIONS, n=st.integers(0, 30), metadata=METADATA)
    def change(self, collection: str, n: int, metadata: Any) -> None:
        if f"i{n}" in self.rows.get(collection, {}):
            self.catalog.change_metadata(collection, f"i{n}", lambda _: metadata)
            self.rows[collection][f"i{n}"] = metadata

    @rule(collection=COLLECTIONS, n=st.integers(0, 30))
    def delete(self, collection: str, n: int) -> None:
        if self.rows.get(collection, {}).pop(f"i{n}", None) is not None:
            self.catalog.delete(collection, f"i{n}")
        else:
            with pytest.raises(ImageNotFoundError):
                self.catalog.delete(collection, f"i{n}")

    @rule()
    def undo(self) -> None:
        with pytest.raises(sqlite3.OperationalError, match="no such table"):
            self.delete_all_and_fail()

    def delete_all_and_fail(self) -> None:
        with self.catalog._connections.write() as connection:
            connection.execute("DELETE FROM images")
            connection.execute("DELETE FROM nowhere")

    @rule(collection=COLLECTIONS)
    def drop(self, collection: str) -> None:
        if self.rows.pop(collection, None) is not None:
            self.catalog.drop(collection)
            self.catalog.purger.finish()

    @rule()
    def reopen(self) -> None:
        self.catalog.close()
        self.catalog = Catalog(self.path, fields=["a"])

    @rule(collection=COLLECTIONS, field=FIELDS)
    def index(self, collection: str, field: str) -> None:
        row = self.catalog.collection(collection)
        if row:
            with self.catalog._connections.write() as connection:
                register_fields(connection, row.id, [field])

    @rule(steps=st.integers(1, 30))
    def build(self, steps: int) -> None:
        for _ in range(steps):
            with self.catalog._connections.write() as connection:
                advance(connection)

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def filter(self, data: st.DataObject) -> None:
        collection = data.draw(st.sampled_from(sorted(self.rows)))
        held = self.rows[collection]
        where = data.draw(filters(list(held.values())))
        expected = {i for i, metadata in held.items() if where.matches(metadata)}
        row = self.catalog.collection(collection)
        assert row is not None
        seqs = self.catalog.passing(row, where).seqs.tolist()
        assert seqs == sorted(seqs)
        assert {record.id for record in self.catalog.at(row, seqs).values()} == expected
        assert seqs == self.row_by_row(row.id, where)
        limit, after = data.draw(st.integers(1, 8)), data.draw(st.sampled_from([0, *seqs]))
        page = self.catalog.page(collection, after=after, limit=limit, where=where)
        assert [seq for seq, _ in page] == [seq for seq in seqs if seq > after][:limit]
        assert all(where.matches(record.metadata) for _, record in page)

    def row_by_row(self, collection: int, where: Filter) -> list[int]:
        passes, values = filter_sql(where)
        sql = f"SELECT seq FROM images WHERE collection = ? AND {passes} ORDER BY seq"
        with self.catalog._connections.read() as connection:
            return [seq for (seq,) in connection.execute(sql, (collection, *values))]

    @invariant()
    def counts(self) -> None:
        held = {row.name: count for row, count in self.catalog.collections()}
        assert held == {name: len(rows) for name, rows in self.rows.items()}

    @invariant()
    def complete_fields_hold_every_row(self) -> None:
        for row, _ in self.catalog.collections():
            with self.catalog._connections.read() as connection:
                fields = catalog_fields.complete_fields(connection, row.id)
                found = postings(connection, fields)
                rows = connection.execute(
                    "SELECT seq, id FROM images WHERE collection = ?", (row.id,)
                ).fetchall()
            assert found == {
                (name, kind, value, seq)
                for seq, image_id in rows
                for name in fields.keys() & self.rows[row.name][image_id].keys()
                for kind, value in keys_of(self.rows[row.name][image_id][name])
            }

    def teardown(self) -> None:
        while True:
            with self.catalog._connections.write() as connection:
                advance(connection)
                if not unfinished(connection):
                    break
        for name in list(self.rows):
            self.catalog.drop(name)
            self.catalog.purger.finish()
            self.build(200)
        with self.catalog._connections.read() as connection:
            for table in ("fields", "field_values"):
                sql = f"SELECT count(*) FROM {table}"
                assert connection.execute(sql).fetchone() == (0,)
        self.catalog.close()
        self.folder.cleanup()
        self.limits.undo()


def postings(connection: sqlite3.Connection, fields: dict[str, int]) -> set[tuple[Any, ...]]:
    names = {number: name for name, number in fields.items()}
    keys = connection.execute("SELECT DISTINCT field, kind, value FROM field_values").fetchall()
    return {
        (names[field], kind, value, seq)
        for field, kind, value in keys
        if field in names
        for seq in read_postings(connection, point(field, kind, value)).tolist()
    }


def point(field: int, kind: int, value: Any) -> Lookup:
    return Lookup(field, (Span(kind, value, value),), (), exact=True)


TestFields = Fields.TestCase
TestFields.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    database=None,
)


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with (
        closing(Catalog(tmp_path / "catalog.db")) as catalog,
        catalog._connections.write() as opened,
    ):
        yield opened


@pytest.fixture
def complete(tmp_path: Path) -> Iterator[Catalog]:
    """A catalog that indexes every field from the first row on."""
    with closing(Catalog(tmp_path / "catalog.db", fields=ALL)) as catalog:
        yield catalog


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(rows=st.lists(METADATA | LISTS_OF_FEW, min_size=1, max_size=4), data=st.data())
def test_complete_fields_agree_with_python(
    complete: Catalog, rows: list[Any], data: st.DataObject
) -> None:
    name = uuid.uuid4().hex
    complete.put(
        name,
        [new_image(f"i{n}", metadata=one) for n, one in enumerate(rows)],
        unit_vectors(len(rows)),
        spec=SPEC,
        provenance={},
        on_conflict=OnConflict.REPLACE,
    )
    row = complete.collection(name)
    assert row is not None
    for where in data.draw(st.lists(filters(rows), min_size=1, max_size=4)):
        found = complete.at(row, complete.passing(row, where).seqs.tolist()).values()
        expected = {f"i{n}" for n, metadata in enumerate(rows) if where.matches(metadata)}
        assert {record.id for record in found} == expected


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    changes=st.lists(
        st.tuples(st.booleans(), st.integers(0, 9000), st.integers(1, 700), st.integers(1, 40)),
        max_size=8,
    )
)
def test_postings_of_all_sizes_are_sets(connection: Any, changes: list[Any]) -> None:
    connection.execute("DELETE FROM field_values")
    expected: set[int] = set()
    for add, start, count, step in changes:
        seqs = range(start, start + count * step, step)
        pairs = [((1, (3, "x")), seq) for seq in seqs]
        write_postings(connection, **{"added" if add else "removed": pairs})
        expected = expected.union(seqs) if add else expected.difference(seqs)
        assert read_postings(connection, point(1, 3, "x")).tolist() == sorted(expected)
    longest = connection.execute("SELECT max(length(seqs)) FROM field_values").fetchone()[0]
    assert (longest or 0) <= 8 + 4096 // 8


def states(store: LocalStore, collection: str = "default") -> Any:
    return store.describe()["collections"][collection]["filter_fields"]


def found(store: LocalStore, where: Any) -> list[str]:
    page = store.page("default", limit=10_000, where=Filter.parse(where))
    return [record.id for record in page.records]


def test_named_fields_are_indexed_from_the_first_row_on(tmp_path: Path) -> None:
    with closing(LocalStore(tmp_path, filter_fields=["n", "label"])) as store:
        fill(store, 3)
        assert states(store) == {"label": "complete", "n": "complete"}
        assert found(store, {"n": {"gte": 1}}) == ["i1", "i2"]


def test_building_stops_with_the_store_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog_fields, "STEP", 5)
    with closing(LocalStore(tmp_path)) as store:
        fill(store, 2000)
        assert states(store) == {}
    with closing(LocalStore(tmp_path, filter_fields=["n"])) as store:
        wait_for(lambda: reached(store) > 0)
    assert "fields" not in {thread.name for thread in threading.enumerate()}
    with closing(LocalStore(tmp_path, read_only=True)) as store:
        assert states(store) == {"n": "building"}
        before = reached(store)
        assert 0 < before < 2000
        assert found(store, {"n": {"lt": 3}}) == ["i0", "i1", "i2"]
        time.sleep(0.05)
        assert reached(store) == before
    monkeypatch.setattr(catalog_fields, "STEP", 500)
    with closing(LocalStore(tmp_path)) as store:
        wait_for(lambda: states(store) == {"n": "complete"})
        assert found(store, {"n": {"lt": 3}}) == ["i0", "i1", "i2"]


def test_a_store_that_cannot_be_opened_builds_nothing(tmp_path: Path) -> None:
    with closing(LocalStore(tmp_path)) as store:
        fill(store, 2000)
    shutil.rmtree(tmp_path / "index")
    (tmp_path / "index").write_text("in the folder's place")
    with pytest.raises(StorageError):
        LocalStore(tmp_path, filter_fields=["n"])
    assert "fields" not in {thread.name for thread in threading.enumerate()}


def test_long_lists_make_a_step_no_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Background, "wake", lambda _: None)  # the steps are taken here
    with closing(LocalStore(tmp_path)) as store:
        lists = [{"tags": [f"{n} {item}" for item in range(100)]} for n in range(20)]
        images = [new_image(f"i{n}", metadata=one) for n, one in enumerate(lists)]
        put(store, images, unit_vectors(20))
        monkeypatch.setattr(catalog_fields, "STEP", 250)
        steps = 0
        with store._catalog._connections.write() as connection:
            register_fields(connection, 1, ["tags"])
            while unfinished(connection):
                before = connection.total_changes
                advance(connection)
                assert connection.total_changes - before <= 250 + 101 + 1
                steps += 1
        assert steps == 7  # three rows of 101 values each, and two in the last
        assert found(store, {"tags": {"contains": "19 99"}}) == ["i19"]


def reached(store: LocalStore) -> int:
    with store._catalog._connections.read() as connection:
        return int(connection.execute("SELECT reached FROM fields").fetchone()[0])


def test_fields_that_are_filtered_on_slowly_are_indexed_by_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(field_builder, "SLOW_S", -1)
    monkeypatch.setattr(catalog_fields, "MAX_AUTOMATIC", 2)
    with closing(LocalStore(tmp_path, filter_fields=["named"])) as store:
        metadata = {"a": 1, "b": 1, "c": 1, "named": 1}
        put(store, [new_image("x", metadata=metadata)], unit_vectors(1))
        for field in ("missing", "a", "b", "c"):
            for _ in range(field_builder.SLOW_TIMES):
                store.page("default", where=Filter.parse({field: 1}))
        wait_for(lambda: states(store) == dict.fromkeys(("a", "b", "named"), "complete"))


def test_a_filter_must_be_slow_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(LocalStore(tmp_path)) as store:
        fill(store, 3)
        for _ in range(field_builder.SLOW_TIMES + 1):
            found(store, {"n": 1})
        monkeypatch.setattr(field_builder, "SLOW_S", -1)
        for _ in range(field_builder.SLOW_TIMES - 1):
            found(store, {"n": 1})
        assert not store._catalog.fields._wanted
        assert states(store) == {}


def test_a_reader_uses_what_is_complete_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(field_builder, "SLOW_S", -1)
    with closing(LocalStore(tmp_path, filter_fields=["n"])) as store:
        fill(store, 100)
        with closing(LocalStore(tmp_path, filter_fields=["m"], read_only=True)) as reader:
            for _ in range(2 * field_builder.SLOW_TIMES):
                assert found(reader, {"n": 7, "m": {"ne": 1}}) == []
                assert found(reader, {"n": 7}) == ["i7"]
            assert states(reader) == {"n": "complete"}
            assert plans(reader, {"n": 7})


def test_a_dropped_collection_leaves_no_values(tmp_path: Path) -> None:
    with closing(LocalStore(tmp_path, filter_fields=["n"])) as store:
        fill(store, 10)
        store.drop("default")

        def left() -> int:
            with store._catalog._connections.read() as connection:
                sql = "SELECT (SELECT count(*) FROM fields) + (SELECT count(*) FROM field_values)"
                return int(connection.execute(sql).fetchone()[0])

        wait_for(lambda: left() == 0)


def plans(store: LocalStore, where: Any) -> list[str]:
    """How SQLite goes about what `passing` asks of it."""
    row = store._catalog.collection("default")
    assert row is not None
    asked: list[str] = []
    with store._catalog._connections.read() as connection:
        connection.set_trace_callback(asked.append)
        catalog_passing.passing_seqs(connection, row, Filter.parse(where))
        connection.set_trace_callback(None)
        return [
            line for sql in asked for *_, line in connection.execute(f"EXPLAIN QUERY PLAN {sql}")
        ]


@pytest.mark.parametrize(
    ("where", "place"),
    [
        ({"n": 5}, "field=? AND kind=? AND value=?"),
        ({"n": {"in": [5, "x"]}}, "field=? AND kind=? AND value=?"),
        ({"n": {"nin": [5, "x"]}}, "field=? AND kind=? AND value>?"),
        ({"n": {"gt": 5}}, "field=? AND kind=? AND value>?"),
        ({"n": {"gte": 5, "lt": 9}}, "field=? AND kind=? AND value>? AND value<?"),
        ({"n": {"contains": 5}}, "field=? AND kind=? AND value=?"),
    ],
)
def test_the_index_is_searched_and_no_row_is_read(tmp_path: Path, where: Any, place: str) -> None:
    with closing(LocalStore(tmp_path, filter_fields=["n"])) as store:
        fill(store, 50)
        found = plans(store, where)
        assert f"SEARCH field_values USING PRIMARY KEY ({place})" in found
        assert not any("images" in line for line in found)


def test_what_the_index_does_not_know_is_asked_of_few_rows(tmp_path: Path) -> None:
    with closing(LocalStore(tmp_path, filter_fields=["n"])) as store:
        fill(store, 50)
        found = plans(store, {"n": {"lt": 5}, "other": 1})
        assert "SEARCH images USING INTEGER PRIMARY KEY (rowid=?)" in found
        walked = plans(store, {"n": {"lt": 49}, "other": 1})
        assert any("images_by_collection" in line for line in walked)


def test_a_catalog_of_the_second_version_is_brought_up_to_date(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "catalog.db", isolation_level=None)) as old:
        old.execute("CREATE TABLE migrations (name TEXT PRIMARY KEY, applied_at TEXT NOT NULL)")
        for name, statements in MIGRATIONS[:2]:
            for statement in statements:
                old.execute(statement)
            old.execute("INSERT INTO migrations VALUES (?, '')", (name,))
        old.execute("INSERT INTO collections VALUES (1, 'default', '', NULL)")
        old.execute("INSERT INTO embeddings VALUES (1, 1, ?, '{}', NULL)", (SPEC.to_json(),))
        old.execute("UPDATE collections SET embedding = 1")
        for n, vector in enumerate(unit_vectors(4), 1):
            old.execute(
                "INSERT INTO images VALUES (?, 1, ?, '', '', '', 1, 1, 1, '', '', NULL, ?)",
                (n, f"i{n}", f'{{"n":{n}}}'),
            )
            old.execute("INSERT INTO vectors VALUES (1, ?, ?)", (n, vector.tobytes()))
    with closing(LocalStore(tmp_path, filter_fields=["n"])) as store:
        assert store.count("default") == 4
        wait_for(lambda: states(store) == {"n": "complete"})
        put(store, [new_image("new", metadata={"n": 9})], unit_vectors(1))
        store.delete("default", "i2")
        assert found(store, {"n": {"gt": 1}}) == ["i3", "i4", "new"]
        assert store.count("default") == 4


def test_one_field_is_one_lookup() -> None:
    where = Filter.parse({"a": {"gte": 1, "lt": 5, "ne": 3}, "b": 1})
    asked, left = lookups(where, {"a": 7})
    assert [condition.field for condition in left] == ["b"]
    assert [(one.field, one.exact) for one in asked] == [(7, True)]
    assert set(asked[0].spans) == {
        Span(2, low=1, high=3, below=True),
        Span(2, low=3, high=5, above=True, below=True),
    }


def test_each_item_that_a_list_must_contain_is_a_lookup() -> None:
    conditions = (Condition("a", "contains", "x"), Condition("a", "contains", "y"))
    asked, left = lookups(Filter(conditions), {"a": 7})
    assert not left
    assert [one.conditions for one in asked] == [(one,) for one in conditions]


def test_names_of_fields_are_read() -> None:
    assert parse_field_names(None) == ()
    assert parse_field_names(" label, shop,,label") == ("label", "shop")
    with pytest.raises(InvalidFilterError, match="256"):
        parse_field_names("x" * 257)
    with pytest.raises(InvalidFilterError, match="at most 64"):
        parse_field_names(",".join(map(str, range(65))))
