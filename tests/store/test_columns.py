"""Columns of metadata: give the rows that `Filter.matches` gives, at any moment."""

from __future__ import annotations

import pickle
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lookalike.errors import (
    FilterTooSlowError,
    ImageNotFoundError,
    InvalidFilterError,
    QueueFullError,
)
from lookalike.store import sqlite
from lookalike.store.base import count_of
from lookalike.store.filters import LISTS, OPERATORS, Filter, parse_field_names
from lookalike.store.local import column as column_module
from lookalike.store.local import columns as columns_module
from lookalike.store.local.catalog import Changes
from lookalike.store.local.column import Column
from lookalike.store.local.columns import MAX_COUNTING, MAX_UNNAMED, MAX_WAITING, Columns
from lookalike.store.local.store import LocalStore
from tests import plain_filters
from tests.store.helpers import fill, ids, new_image, put, unit_vectors
from tests.store.helpers import search as search_store
from tests.store.test_filters import SCALARS, TEXT
from tests.waiting import PATIENCE_S, wait_for

ALL = ["a", "b", 'q"\\']
FIELDS = st.sampled_from(ALL)
COLLECTIONS = st.sampled_from(["one", "two"])
NUMBERS = [0, 1, 1.0, -0.0, 2**53, 2**53 + 1, float(2**53), 2**63 - 1, -(2**63), 2.0**63, 8.41e21]
NEAR = [0.3, 0.1 + 0.2, 0.30000000000000027]
TEXTS = ["x", "xyz", "xyza", "xyzb", "é", "\U0001f600", "\uffff"]
COMMON = st.sampled_from([None, True, False, *NUMBERS, *NEAR, *TEXTS])
ANY = COMMON | SCALARS
VALUES = (
    ANY
    | st.lists(ANY, max_size=3)
    | st.lists(st.lists(ANY, max_size=1), max_size=2)
    | st.dictionaries(TEXT, SCALARS, max_size=1)
)
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
    conditions: list[Any] = []
    for field in draw(st.lists(fields, min_size=1, max_size=2, unique=True)):
        near = [*scalars({field: one.get(field)}), *scalars(one)] or [0]
        operands = st.sampled_from(near) if one else ANY
        often = ["contains"] * 9 if isinstance(one.get(field), list) else []
        for op in draw(st.lists(st.sampled_from([*OPERATORS, *often]), min_size=1, max_size=4)):
            if op in LISTS:
                operand: Any = draw(st.lists(operands, max_size=3))
            elif op == "exists":
                operand = draw(st.booleans())
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


def filled(rows: list[Any]) -> Columns:
    """Columns of rows that were there before, read in blocks."""
    columns = Columns(np.arange(1, len(rows) + 1), 1)

    def read(above: int, upto: int) -> Any:
        return [(n, one) for n, one in enumerate(rows, 1) if above < n <= upto]

    assert columns.fill(ALL, read, deadline=float("inf"))
    return columns


def followed(rows: list[Any]) -> Columns:
    """Columns of rows that came one after the other, and had other metadata at first."""
    columns = Columns(np.empty(0, np.int64), 0, ALL)
    for n in range(1, len(rows) + 1):
        columns.apply(Changes(added=[(n, rows[-n])]), n)
    columns.apply(Changes(updated=list(enumerate(rows, 1))), len(rows) + 1)
    return columns


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(rows=st.lists(METADATA | LISTS_OF_FEW, min_size=1, max_size=9), data=st.data())
def test_columns_agree_with_python(rows: list[Any], data: st.DataObject) -> None:
    made = filled(rows), followed(rows)
    for where in data.draw(st.lists(filters(rows), min_size=1, max_size=6)):
        expected = [n for n, metadata in enumerate(rows, 1) if where.matches(metadata)]
        for columns in made:
            found = columns.passing(where)
            assert found is not None
            assert found.tolist() == expected
            after, enough = data.draw(st.tuples(st.integers(0, len(rows)), st.integers(1, 4)))
            behind = [seq for seq in expected if seq > after]
            first = columns.passing(where, after=after, enough=enough)
            assert first is not None
            assert first.tolist() == behind[: len(first)]
            assert len(first) >= min(enough, len(behind))


class FollowedColumns(RuleBasedStateMachine):
    """Random work on a store and a reader beside it, with tiny limits."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = pytest.MonkeyPatch()
        for module, name, value in (
            (columns_module, "_BLOCK", 2),
            (columns_module, "_COMPACT_AFTER", 1),
            (column_module, "_COMPACT_AFTER", 1),
            (columns_module, "MAX_UNNAMED", 1),
            (columns_module, "_WALKED", 1),
            (columns_module, "_WALKED_TOGETHER", 3),
        ):
            self.limits.setattr(module, name, value)
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name)
        self.rows: dict[str, dict[str, Any]] = {}
        self.contents = 0
        self.open()

    def open(self) -> None:
        self.store = LocalStore(self.path, filter_fields=["a"])
        self.reader = LocalStore(self.path, filter_fields=["b"], read_only=True)

    @rule(
        collection=COLLECTIONS,
        items=st.lists(st.tuples(st.integers(0, 30), METADATA), min_size=1, max_size=12),
        known=st.booleans(),
    )
    def put(self, collection: str, items: list[Any], known: bool) -> None:
        self.contents += not known
        images = [new_image(f"i{n}", content=f"{self.contents}", metadata=m) for n, m in items]
        put(self.store, images, unit_vectors(len(items)), collection=collection)
        held = self.rows.setdefault(collection, {})
        held.update({f"i{n}": m for n, m in items})

    @rule(collection=COLLECTIONS, n=st.integers(0, 30), metadata=METADATA)
    def change(self, collection: str, n: int, metadata: Any) -> None:
        if f"i{n}" in self.rows.get(collection, {}):
            row = self.store.get(collection, f"i{n}")
            patch = dict.fromkeys(row.metadata.keys() - metadata.keys()) | {
                # A merge patch would keep parts of an object, and remove what is null.
                key: value
                for key, value in metadata.items()
                if value is not None and not isinstance(value, dict)
            }
            changed = self.store.update_metadata(collection, f"i{n}", patch)
            self.rows[collection][f"i{n}"] = dict(changed.metadata)

    @rule(collection=COLLECTIONS, n=st.integers(0, 30))
    def delete(self, collection: str, n: int) -> None:
        if self.rows.get(collection, {}).pop(f"i{n}", None) is not None:
            self.store.delete(collection, f"i{n}")
        else:
            with pytest.raises(ImageNotFoundError):
                self.store.delete(collection, f"i{n}")

    @rule(collection=COLLECTIONS)
    def drop(self, collection: str) -> None:
        if self.rows.pop(collection, None) is not None:
            self.store.drop(collection)

    @rule()
    def reopen(self) -> None:
        self.reader.close()
        self.store.close()
        self.open()

    @rule()
    def load(self) -> None:
        self.store.load()

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), beside=st.booleans())
    def filter(self, data: st.DataObject, beside: bool) -> None:
        store = self.reader if beside else self.store
        collection = data.draw(st.sampled_from(sorted(self.rows)))
        held = self.rows[collection]
        where = data.draw(filters(list(held.values())))
        expected = {i for i, metadata in held.items() if where.matches(metadata)}
        row = store._catalog.collection(collection)
        assert row is not None
        limit = data.draw(st.integers(1, 8))
        page = store.scroll(
            collection, limit=limit, where=where
        )  # before there are columns, perhaps
        seqs = store._filtering.passing(row, where).tolist()
        assert seqs == sorted(seqs)
        by_seq = [one.id for one in store._catalog.at(row, seqs).values()]
        assert set(by_seq) == expected
        assert [one.id for one in page.records] == by_seq[:limit]
        passing = [metadata for metadata in held.values() if where.matches(metadata)]
        assert store.count(collection, where) == len(passing)
        fields = data.draw(st.none() | st.just(ALL))
        counted = store.facets(collection, fields=fields, where=where, limit=limit)
        assert counted == plain_filters.facets(passing, fields, limit)
        assert store.kinds(collection, ALL) == {
            field: plain_filters.kinds(held.values(), field) for field in ALL
        }
        if page.next_cursor:
            page = store.scroll(collection, limit=limit, where=where, cursor=page.next_cursor)
            assert [one.id for one in page.records] == by_seq[limit:][:limit]

    @invariant()
    def counts(self) -> None:
        held = {one.name: one.count for one in self.reader.collections()}
        assert held == {name: len(rows) for name, rows in self.rows.items()}

    def teardown(self) -> None:
        self.reader.close()
        self.store.close()
        self.folder.cleanup()
        self.limits.undo()


TestFollowedColumns = FollowedColumns.TestCase
TestFollowedColumns.settings = settings(
    max_examples=15,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    database=None,
)


def states(store: LocalStore, collection: str = "default") -> Any:
    return store.describe()["collections"][collection]["filter_fields"]


def found(store: LocalStore, where: Any) -> list[str]:
    page = store.scroll("default", limit=10_000, where=Filter.parse(where))
    return [record.id for record in page.records]


@pytest.fixture
def no_walks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages are read by columns, however short a walk over the rows would be."""
    monkeypatch.setattr(columns_module, "_WALKED", 0)


def test_named_fields_have_columns_from_the_first_row_on(tmp_path: Path) -> None:
    with closing(LocalStore(tmp_path, filter_fields=["n", "label"])) as store:
        fill(store, 3)
        assert states(store) == {"label": "complete", "n": "complete"}
        assert found(store, {"n": {"gte": 1}}) == ["i1", "i2"]
    with closing(LocalStore(tmp_path, filter_fields=["n"])) as store:
        assert states(store) == {}
        store.load()
        assert states(store) == {"n": "complete"}


def test_other_fields_have_columns_once_a_filter_names_them(tmp_path: Path) -> None:
    with closing(LocalStore(tmp_path)) as store:
        vectors = fill(store, 3)
        assert states(store) == {}
        where = Filter.parse({"n": {"gte": 1}, "missing": {"ne": 1}})
        assert search_store(store, vectors[:1], where=where) == [[]]
        assert states(store) == {"missing": "complete", "n": "complete"}
        assert ids(search_store(store, vectors[2:], where=Filter.parse({"n": 2}))[0]) == ["i2"]


def test_the_columns_used_last_are_kept() -> None:
    columns = Columns(np.arange(1, 4), 1, ["named"])
    for n in range(MAX_UNNAMED + 3):
        for name in ("first", f"f{n}"):
            assert columns.fill([name], lambda *_: [], deadline=float("inf"))
            assert columns.passing(Filter.parse({name: 1})) is not None
    kept = columns.describe()
    assert {"named", "first", f"f{n}"} <= kept.keys()
    assert "f0" not in kept
    assert len(kept) <= MAX_UNNAMED + 2


def test_rows_that_change_while_a_column_is_read_have_their_last_value() -> None:
    rows: dict[int, Any] = {n: {"a": [n]} for n in range(1, 6)}
    columns = Columns(np.arange(1, 6), 1)
    added, changed = (6, {"a": [2]}), (2, {"a": ["new"]})

    def read(above: int, upto: int) -> Any:
        stale = [(n, one) for n, one in rows.items() if above < n <= upto]
        if 6 not in rows:
            columns.apply(Changes(added=[added], updated=[changed], removed=[3]), 2)
            rows.update([added, changed])
        return stale

    assert columns.fill(["a"], read, deadline=float("inf"))
    for value, expected in ((2, [6]), ("new", [2]), (3, []), (4, [4])):
        passing = columns.passing(Filter.parse({"a": {"contains": value}}))
        assert passing is not None
        assert passing.tolist() == expected


@pytest.mark.usefixtures("no_walks")
def test_a_filter_that_takes_too_long_goes_on_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns_module, "_BLOCK", 100)
    with closing(LocalStore(tmp_path)) as store:
        vectors = fill(store, 1000)
    with closing(LocalStore(tmp_path, filter_s=1e-9)) as store:
        where = Filter.parse({"n": 7})
        with pytest.raises(FilterTooSlowError, match="LOOKALIKE_FILTER_FIELDS"):
            found(store, {"n": 7})
        with pytest.raises(FilterTooSlowError):
            search_store(store, vectors[:1], where=where)
        assert len(search_store(store, vectors[:1], k=3)[0]) == 3, "nothing else is refused"
        for _ in range(8):
            with suppress(FilterTooSlowError):
                found(store, {"n": 7})
        assert ids(search_store(store, vectors[:1], where=where)[0]) == ["i7"]


@pytest.mark.usefixtures("no_walks")
def test_filters_read_columns_beside_other_reads(tmp_path: Path) -> None:
    with closing(LocalStore(tmp_path, filter_s=0.05)) as store:
        fill(store, 3)
        row = store._catalog.collection("default")
        assert row is not None
        columns = store._filtering._get(row)
        with columns._filling:  # as if another filter read a large collection
            with pytest.raises(FilterTooSlowError):
                found(store, {"n": 1})
            assert count_of(store, "default") == 3
        assert found(store, {"n": 1}) == ["i1"]


@pytest.mark.usefixtures("no_walks")
def test_few_filters_wait_for_columns_so_that_other_calls_have_threads(tmp_path: Path) -> None:
    with closing(LocalStore(tmp_path)) as store, ThreadPoolExecutor(MAX_WAITING) as pool:
        fill(store, 3)
        row = store._catalog.collection("default")
        assert row is not None
        with store._filtering._get(row)._filling:  # as if another filter read a large collection
            waiting = [pool.submit(found, store, {"n": n}) for n in range(MAX_WAITING)]
            wait_for(lambda: store._filtering._waiting._value == 0)
            with pytest.raises(QueueFullError, match="LOOKALIKE_FILTER_FIELDS"):
                found(store, {"n": 1})
        assert [one.result() for one in waiting[:4]] == [["i0"], ["i1"], ["i2"], []]
        assert found(store, {"n": 1}) == ["i1"]


def test_few_facets_are_made_at_a_time(tmp_path: Path) -> None:
    with closing(LocalStore(tmp_path)) as store:
        fill(store, 3)
        with ExitStack() as held:
            for _ in range(MAX_COUNTING):
                held.enter_context(store._filtering._counting)
            with pytest.raises(QueueFullError, match="Too many facets"):
                store.facets("default")
            assert store.count("default", Filter.parse({"n": {"gte": 1}})) == 2
        assert [one.field for one in store.facets("default").facets] == ["n"]
        assert states(store) == {"n": "complete"}


def test_facets_of_more_fields_than_are_kept_read_the_rows_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"f{n}" for n in range(20)]
    reads = []
    with closing(LocalStore(tmp_path)) as store:
        put(store, [new_image("i0", metadata=dict.fromkeys(names, 1))], unit_vectors(1))
        read = store._catalog.metadata
        monkeypatch.setattr(columns_module, "MAX_UNNAMED", 3)
        monkeypatch.setattr(
            store._catalog, "metadata", lambda *args: reads.append(args) or read(*args)
        )
        where = Filter.parse({"or": [{"a": 1}, {"b": 1}, {"f0": 1}, {"c": 1}]})
        found = store.facets("default", where=where)
        assert [one.count for one in found.facets] == [1] * 20
        assert len(reads) == 2, "once to find the fields, and once for all of them"
        reads.clear()
        where = Filter.parse({"or": [{"d": 1}, {"f1": 1}]})
        found = store.facets("default", fields=["f0", "f2"], where=where)
        assert (found.count, [one.count for one in found.facets]) == (1, [1, 1])
        assert len(reads) == 1, "fields that are named need not be found"


def test_columns_that_do_not_follow_a_change_are_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    with closing(LocalStore(tmp_path, filter_fields=["n"])) as store:
        vectors = fill(store, 3)
        with monkeypatch.context() as patch:
            patch.setattr(Columns, "apply", fail)
            put(store, [new_image("i3", metadata={"n": 1})], vectors[:1])
        assert "did not follow" in caplog.text
        where = Filter.parse({"n": 1})
        assert set(ids(search_store(store, vectors[:1], where=where)[0])) == {"i1", "i3"}


def test_a_reader_follows_the_owner_and_changes_nothing(tmp_path: Path) -> None:
    with closing(LocalStore(tmp_path)) as owner:
        vectors = fill(owner, 100)
        with closing(LocalStore(tmp_path, filter_fields=["n"], read_only=True)) as reader:
            where = Filter.parse({"n": {"gte": 50}})
            assert len(search_store(reader, vectors[:1], k=99, where=where)[0]) == 50
            owner.delete("default", "i50")
            owner.update_metadata("default", "i0", {"n": 99})
            put(owner, [new_image("new", metadata={"n": 51})], vectors[:1])
            names = set(ids(search_store(reader, vectors[:1], k=99, where=where)[0]))
            assert names == {"new", "i0", *(f"i{n}" for n in range(51, 100))}
            assert states(owner) == {}


def test_what_is_changed_again_and_again_does_not_pile_up() -> None:
    columns = Columns(np.arange(1, 101), 1)
    for name in ("t", "l"):
        assert columns.fill([name], lambda *_: [], deadline=float("inf"))
    sizes = []
    for n in range(100):
        updated = [(seq, {"t": f"{n} {seq}", "l": [f"{n}", seq]}) for seq in range(1, 101)]
        columns.apply(Changes(updated=updated), n)
        sizes.append(size(columns._columns))
    assert max(sizes) < 20 * sizes[0]
    for n in range(100):
        seqs = range(101 + 100 * n, 201 + 100 * n)
        changes = Changes(
            added=[(seq, {"t": f"{seq}", "l": [seq]}) for seq in seqs],
            removed=[seq - 100 for seq in seqs],
        )
        columns.apply(changes, n)
        sizes.append(size(columns._columns))
    assert max(sizes) < 20 * sizes[0]
    assert columns.state[0].tolist() == list(seqs)


def size(held: Any) -> int:
    """About the memory that it takes."""
    return len(pickle.dumps(held)) - len(pickle.dumps(Column(0)))


def test_memory_of_a_column() -> None:
    column = Column(0)
    column.extend(10_000)
    column.write(np.arange(10_000), [n / 7 for n in range(10_000)])
    assert size(column) <= 10_000 * 9 * 1.25 + 100
    column.write(np.arange(10_000), [("cat", "dog")[n % 2] for n in range(10_000)])
    assert size(column) <= 10_000 * 9 * 1.25 + 1_000


def test_long_lists_on_one_field(tmp_path: Path) -> None:
    with closing(LocalStore(tmp_path, filter_fields=["n"])) as store:
        fill(store, 50)
        where = {"n": {"in": [*range(40), "x"], "nin": [*range(5, 60), 0.5]}}
        assert found(store, where) == [f"i{n}" for n in range(5)]
        assert found(store, {"n": {"nin": list(range(48)), "gt": 2}}) == ["i48", "i49"]


def test_a_search_that_waits_for_changes_keeps_no_other_filter_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As beside changes, whose answers the first attempts are not."""
    attempt, failures = LocalStore._attempt, iter(range(6))

    def meet_changes(searched: LocalStore, collection: str, *query: Any, **how: Any) -> Any:
        answer = attempt(searched, collection, *query, **how)
        if collection == "default" and next(failures, None) is not None:
            return None
        return answer

    with closing(LocalStore(tmp_path)) as store:
        vectors = fill(store, 20)
        fill(store, 20, collection="other")
        where = Filter.parse({"n": 3})
        monkeypatch.setattr(LocalStore, "_attempt", meet_changes)
        with ThreadPoolExecutor(2) as pool:
            with store._change:
                asked = [
                    pool.submit(search_store, store, vectors[3:4], k=1, where=where) for _ in "ab"
                ]
                wait_for(lambda: next(failures, None) is None)
                (there,) = search_store(store, vectors[3:4], k=1, where=where, collection="other")
                assert ids(there) == ["i3"]
            assert [ids(one.result(PATIENCE_S)[0]) for one in asked] == [["i3"], ["i3"]]


def test_reads_that_overlap_do_not_let_the_log_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite begins its log anew only where nobody reads of it, and then there never is nobody."""
    monkeypatch.setattr(sqlite, "_LOG_BYTES", 200_000)
    monkeypatch.setattr(sqlite, "_CUT_EVERY_S", 0.0)
    stop = threading.Event()
    with closing(LocalStore(tmp_path)) as store:
        fill(store, 20)
        log = tmp_path / "catalog.db-wal"

        def read() -> None:
            while not stop.is_set():
                found(store, {"t": "y"})

        with ThreadPoolExecutor(3) as pool:
            reading = [pool.submit(read) for _ in range(3)]
            for n in range(150):
                put(store, [new_image(f"i{n}", metadata={"t": "x" * 2000})], unit_vectors(1))
            stop.set()
            for one in reading:
                one.result(PATIENCE_S)
        assert log.stat().st_size < 400_000


def test_names_of_fields_are_read() -> None:
    assert parse_field_names(None) == ()
    assert parse_field_names(" label, shop,,label") == ("label", "shop")
    with pytest.raises(InvalidFilterError, match="256"):
        parse_field_names("x" * 257)
    with pytest.raises(InvalidFilterError, match="at most 64"):
        parse_field_names(",".join(map(str, range(65))))
