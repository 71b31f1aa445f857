"""Indexes that are built in the background, while everything else goes on."""

from __future__ import annotations

import gc
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lookalike.errors import NotFoundError, StorageError, StorageFullError
from lookalike.records import Effort
from lookalike.store.base import Store, count_of
from lookalike.store.filters import Filter
from lookalike.store.local.index import building, calibration
from lookalike.store.local.index.approximate import CandidateIndex
from lookalike.store.local.index.building import BuildError, Generations
from lookalike.store.local.index.indexes import LiveIndex
from lookalike.store.local.index.policy import IndexPolicy, Limits
from lookalike.store.local.index.segments import Segments
from lookalike.store.local.store import LocalStore
from tests.memory_store import MemoryStore
from tests.store.helpers import (
    answers,
    digest,
    fill,
    ids,
    is_exact,
    new_image,
    put,
    search,
    unit_vectors,
)
from tests.store.test_kill import CHILD, vectors_of
from tests.store.test_spaces import NEW, begin, complete, new_vectors, put_new
from tests.waiting import PATIENCE_S, repeat_together, wait_for

LEAST, TYPE = 100, "IVF2,SQ8"
EVERYTHING = Effort(nprobe=65_536, ef_search=65_536, k_factor=1_000)
QUERIES = unit_vectors(3, seed=42)


LIMITS = Limits(min_rows=LEAST, calibrated_k=(10,))
APART = replace(LIMITS, inline_numbers=0)
"""Every index is built in a process of its own."""
MAPPED = replace(LIMITS, mapped_bytes=50 * 8 * 4)
SOON = replace(LIMITS, retry_s=0.2, poll_s=0.02)
"""An interrupted build is tried again soon."""


def opened(
    folder: Path, index_type: str = TYPE, *, limits: Limits = LIMITS, **given: Any
) -> LocalStore:
    return LocalStore(folder, policy=IndexPolicy(index_type=index_type, limits=limits), **given)


def facts(store: LocalStore, name: str = "default") -> dict[str, Any]:
    found: dict[str, Any] = store.describe()["collections"][name]
    return found


def wait_built(store: LocalStore, index_type: str = TYPE) -> None:
    wait_for(lambda: facts(store)["type"] == index_type and "building" not in facts(store))


def children() -> set[int]:
    """Processes that build an index for this one."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int(path.joinpath("stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == os.getpid() and b"index.building" in path.joinpath("cmdline").read_bytes():
                found.add(int(path.name))
    return found


def hold_child() -> int:
    """Waits for the process that builds, and stops it as if its work were long."""
    wait_for(lambda: bool(children()))
    (child,) = children()
    os.kill(child, signal.SIGSTOP)
    return child


@pytest.fixture
def held_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Builds wait for the second event after setting the first."""
    begun, go_on = threading.Event(), threading.Event()
    build = building.build_here

    def wait(*given: Any) -> Any:
        begun.set()
        assert go_on.wait(PATIENCE_S)
        return build(*given)

    monkeypatch.setattr(building, "build_here", wait)
    yield begun, go_on
    go_on.set()


NAMES = [f"i{n}" for n in range(400)]
STABLE = unit_vectors(60, seed=1)
VECTOR_OF = {digest(f"{n}"): unit_vectors(1, seed=n)[0] for n in range(100)}
VECTOR_OF |= {digest(f"s{n}"): STABLE[n] for n in range(60)}


def change_something(chance: random.Random, *stores: Store) -> None:
    """Adds, replaces or deletes the same in all stores."""
    if chance.random() < 0.2:
        name = chance.choice(NAMES)
        for store in stores:
            with suppress(NotFoundError):
                store.delete("default", name)
        return
    chosen = {name: chance.randrange(100) for name in chance.sample(NAMES, 5)}
    images = [new_image(i, content=f"{n}", metadata={"n": n % 3}) for i, n in chosen.items()]
    vectors = np.concatenate([unit_vectors(1, seed=n) for n in chosen.values()])
    for store in stores:
        put(store, images, vectors)


def ask_something(chance: random.Random, store: Store) -> None:
    """Every match is a picture that exists, with its score, and passes the filter."""
    n, where = chance.randrange(60), chance.choice([None, Filter.parse({"n": 1})])
    (found,) = search(store, STABLE[n : n + 1], k=chance.choice([1, 10, 200]), where=where)
    assert where is not None or found[0].record.id == f"s{n}"
    assert len(set(ids(found))) == len(found)
    for match in found:
        score = float(VECTOR_OF[match.record.sha256] @ STABLE[n])
        assert match.score == pytest.approx(score, abs=1e-5)
        assert where is None or where.matches(match.record.metadata)


def test_a_build_beside_searches_and_changes(tmp_path: Path, chance: random.Random) -> None:
    memory = MemoryStore()
    with closing(opened(tmp_path)) as store:
        for one in (store, memory):
            put(one, [new_image(f"s{n}") for n in range(60)], STABLE)
        ask = partial(ask_something, chance, store)
        change = partial(change_something, chance, store, memory)
        repeat_together(change, ask, ask, seconds=2.5, enough=lambda: facts(store)["type"] == TYPE)
        wait_built(store)
        wait_for(lambda: facts(store)["since_build"] <= LEAST // 2)
        for where in (None, Filter.parse({"n": 1})):
            for k in (5, 1000):
                asked: dict[str, Any] = {"k": k, "where": where, "effort": EVERYTHING}
                mine, true = search(store, QUERIES, **asked), search(memory, QUERIES, **asked)
                assert answers(mine) == answers(true)


def test_the_next_generation_takes_the_place_of_the_last(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def saved() -> set[str]:
        folders = (path for path in (tmp_path / "index" / "1").iterdir() if path.is_dir())
        return {path.name for path in folders}

    with closing(opened(tmp_path)) as store:
        fill(store, 150)
        wait_built(store)
        first = saved()
        put(store, [new_image(f"x{n}") for n in range(120)], unit_vectors(120, seed=1))
        wait_for(lambda: facts(store)["since_build"] == 0)
        wait_for(lambda: len(saved()) == 1)  # removed once the new one serves
        second = saved()
        assert first != second
        expected = answers(search(store, QUERIES, k=300, effort=EVERYTHING))
    caplog.clear()
    with closing(opened(tmp_path)) as store:
        store.load()
        assert facts(store)["type"] == TYPE
        assert facts(store)["calibration"]
        assert facts(store)["mapped_bytes"] >= 270 * 8 * 4
        assert answers(search(store, QUERIES, k=300, effort=EVERYTHING)) == expected
        assert not store._indexes.rebuild("default")
    assert "Building" not in caplog.text
    assert saved() == second


def test_what_comes_during_a_build_is_built_without_being_asked(
    tmp_path: Path, held_up: tuple[threading.Event, threading.Event]
) -> None:
    begun, go_on = held_up
    with closing(opened(tmp_path)) as store:
        fill(store, 100)
        assert begun.wait(PATIENCE_S)
        put(store, [new_image(f"x{n}") for n in range(200)], unit_vectors(200, seed=1))
        assert facts(store)["building"]["total"] == 100
        go_on.set()
        wait_for(lambda: facts(store)["type"] == TYPE and facts(store)["since_build"] == 0)


def test_changes_and_searches_do_not_wait_for_a_build(
    tmp_path: Path, held_up: tuple[threading.Event, threading.Event]
) -> None:
    begun, go_on = held_up
    with closing(opened(tmp_path)) as store:
        vectors = fill(store, 120)
        assert begun.wait(PATIENCE_S)
        put(store, [new_image("late")], unit_vectors(1, seed=9))
        store.delete("default", "i1")
        assert ids(search(store, unit_vectors(1, seed=9), k=1)[0]) == ["late"]
        go_on.set()
        wait_built(store)
        assert ids(search(store, unit_vectors(1, seed=9), k=1)[0]) == ["late"]
        assert "i1" not in ids(search(store, vectors[1:2], k=200, effort=EVERYTHING)[0])


def test_a_build_that_fails_is_told_and_not_repeated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(opened(tmp_path, "PCAR9,SQ8")) as store:  # of vectors of 8 numbers
        memory = MemoryStore()
        for one in (store, memory):
            fill(one, 110)
        wait_for(lambda: "failure" in facts(store))
        assert facts(store)["type"] == "Flat"
        assert "PCAR9,SQ8 was not built" in facts(store)["failure"]
        wait_for(lambda: "stays as it is: PCAR9,SQ8 was not built" in caplog.text)
        assert answers(search(store, QUERIES)) == answers(search(memory, QUERIES))
        assert not list((tmp_path / "index" / "1").iterdir())
        caplog.clear()
        put(store, [new_image(f"x{n}") for n in range(50)], unit_vectors(50))
        assert not store._indexes.rebuild("default")
        assert caplog.text == ""
        put(store, [new_image(f"y{n}") for n in range(6)], unit_vectors(6))
        wait_for(lambda: "was not built" in caplog.text)


def test_a_program_in_the_working_folder_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = tmp_path / "there" / "lookalike"
    foreign.mkdir(parents=True)
    (foreign / "__init__.py").write_text("print('foreign')\nraise SystemExit(7)\n")
    monkeypatch.chdir(foreign.parent)
    with closing(opened(tmp_path / "data", limits=APART)) as store:
        fill(store, 150)
        wait_built(store)


def test_a_process_that_ends_says_its_last_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no answer\necho first >&2\necho out of luck >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with closing(opened(tmp_path / "data", limits=APART)) as store:
        fill(store, 150)
        wait_for(lambda: "ended with status 3: out of luck" in facts(store).get("failure", ""))


def test_what_a_kill_left_of_an_older_generation_goes(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as store:
        fill(store, 150)
        wait_built(store)
    folder = tmp_path / "index" / "1"
    whole = {path.name for path in folder.iterdir()}
    (folder / "older").mkdir()
    (folder / "older" / "vectors").touch()
    (folder / ".manifest.json.1.part").touch()
    with closing(opened(tmp_path)) as store:
        store.load()
        assert {path.name for path in folder.iterdir()} == whole | {"in-use"}


def test_any_error_of_a_build_leaves_the_thread_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def fail(*_: object) -> None:
        tried.append(1)
        raise BuildError("cannot")

    with closing(opened(tmp_path)) as store:
        with monkeypatch.context() as patch:
            patch.setattr(building, "build_here", fail)
            fill(store, 100)
            wait_for(lambda: "cannot" in facts(store).get("failure", ""))
            put(store, [new_image("x")], unit_vectors(1))
            assert not store._indexes.rebuild("default")
            assert len(tried) == 1, "it does not try again at every change"
        fill(store, 120, collection="other")
        wait_for(lambda: facts(store, "other")["type"] == TYPE)
        put(store, [new_image(f"y{n}") for n in range(60)], unit_vectors(60))
        wait_built(store)


@pytest.mark.parametrize("error", [StorageFullError("full"), MemoryError()])
def test_what_may_pass_is_tried_again_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Without another picture, and longer after each time."""
    times: list[float] = []

    def build_candidates(*given: Any, **named: Any) -> Any:
        times.append(time.monotonic())
        if len(times) < 4:
            raise error
        return real(*given, **named)

    real: Any = vars(calibration)["build_candidates"]
    monkeypatch.setattr(calibration, "build_candidates", build_candidates)
    with closing(opened(tmp_path, limits=SOON)) as store:
        fill(store, 150)
        wait_for(lambda: "failure" in facts(store))
        wait_built(store)
        assert "failure" not in facts(store)
    pauses = np.diff(times)
    assert pauses[0] >= 0.2
    assert pauses[1] >= 0.4
    assert pauses[2] >= 0.8


def test_a_build_leaves_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = [10_000]
    usage = shutil.disk_usage

    def little(path: Path) -> Any:
        return usage(path)._replace(free=free[0], total=100_000)

    monkeypatch.setattr(shutil, "disk_usage", little)
    (tmp_path / "reserve").touch()  # held: this is about what an index takes
    with closing(opened(tmp_path, limits=SOON)) as store:
        vectors = fill(store, 150)
        wait_for(lambda: "MB are free on the disk" in facts(store).get("failure", ""))
        assert not list((tmp_path / "index").rglob("vectors"))
        assert ids(search(store, vectors[:1], k=1)[0]) == ["i0"]
        free[0] = 4 * 8 * 150 * 5 // 4 + 5_000
        wait_built(store)


def test_room_that_gets_short_ends_a_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = replace(LIMITS, block_bytes=10 * 8 * 4, room_blocks=2)
    asked: list[int] = []
    require = Generations.require_room

    def short(self: Generations, rows: int, dim: int) -> None:
        asked.append(rows)
        if len(asked) == 4:
            raise StorageFullError("short")
        require(self, rows, dim)

    monkeypatch.setattr(Generations, "require_room", short)
    with closing(opened(tmp_path, limits=limits)) as store:
        fill(store, 150)
        wait_for(lambda: "short" in facts(store).get("failure", ""))
        assert asked == [150, 0, 0, 0]
        assert not list((tmp_path / "index" / "1").iterdir())


def test_an_error_after_a_build_is_told_and_not_repeated_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, synced = [], LiveIndex._synced

    def failing(self: LiveIndex, index: Segments) -> Segments:
        if index.factory:
            built.append(index.factory)
            raise StorageError("the disk cannot be read")
        return synced(self, index)

    monkeypatch.setattr(LiveIndex, "_synced", failing)
    with closing(opened(tmp_path, limits=replace(LIMITS, poll_s=0.02, retry_s=600))) as store:
        fill(store, LEAST)
        wait_for(lambda: "failure" in facts(store))
        assert facts(store)["failure"] == f"{TYPE} was not built: the disk cannot be read"
        assert not store._indexes.rebuild("default")
        assert built == [TYPE]


def test_a_dropped_index_is_freed_while_another_is_built(
    tmp_path: Path, held_up: tuple[threading.Event, threading.Event]
) -> None:
    begun, go_on = held_up
    with closing(opened(tmp_path)) as store:
        fill(store, 5, collection="small")
        search(store, QUERIES, collection="small")
        fill(store, LEAST)
        assert begun.wait(PATIENCE_S)
        (small,) = (one for one in store._indexes._live.values() if one.row.name == "small")
        held = weakref.ref(small)
        del small
        store.drop("small", wait=True)
        gc.collect()
        assert held() is None
        go_on.set()
        wait_built(store)


def test_no_build_begins_once_the_store_is_closing(
    tmp_path: Path,
    held_up: tuple[threading.Event, threading.Event],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, go_on = held_up
    store = opened(tmp_path)
    for name in ("first", "second"):
        fill(store, 5, collection=name)
        search(store, QUERIES, collection=name)
    monkeypatch.setattr(LiveIndex, "stop", lambda self: None)  # as of one that is loaded late
    fill(store, LEAST, collection="first", seed=1)
    assert begun.wait(PATIENCE_S)
    fill(store, LEAST, collection="second", seed=1)
    closing = threading.Thread(target=store.close)
    closing.start()
    wait_for(store._indexes._worker.closing.is_set)
    begun.clear()
    go_on.set()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    assert not begun.is_set()


def test_an_index_that_cannot_be_read_back_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(opened(tmp_path)) as store:
        with monkeypatch.context() as patch:
            patch.setattr(CandidateIndex, "read", lambda *_, **__: 1 / 0)
            patch.setattr(Generations, "load", lambda *_, **__: None)
            fill(store, 100)
            wait_for(lambda: "cannot be read" in facts(store).get("failure", ""))
        assert len(search(store, QUERIES, k=200)[0]) == 100


def test_a_build_in_a_process_of_its_own(tmp_path: Path) -> None:
    memory = MemoryStore()
    with closing(opened(tmp_path, limits=APART)) as store:
        for one in (store, memory):
            fill(one, 200)
        wait_built(store)
        assert children() == set()
        mine, true = (search(x, QUERIES, k=50, effort=EVERYTHING) for x in (store, memory))
        assert answers(mine) == answers(true)


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    with closing(opened(tmp_path, "PCAR9,SQ8", limits=APART)) as store:
        fill(store, 100)
        wait_for(lambda: "9 dimensions" in facts(store).get("failure", ""))


def test_closing_ends_a_build(tmp_path: Path) -> None:
    store = opened(tmp_path, limits=APART)
    fill(store, 200)
    hold_child()
    started = time.monotonic()
    store.close()
    assert time.monotonic() - started < PATIENCE_S
    assert children() == set()
    assert not list(tmp_path.rglob("candidates")), "at most the exact index"
    with closing(opened(tmp_path, limits=APART)) as store:
        store.load()
        wait_built(store)


def test_dropping_ends_a_build(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with closing(opened(tmp_path, limits=APART)) as store:
        fill(store, 200)
        hold_child()
        store.drop("default")
        wait_for(lambda: not children())
        assert search(store, QUERIES)[0] == []
        fill(store, 150, seed=3)
        wait_built(store)
        assert not (tmp_path / "index" / "1").exists()
    assert "stays as it is" not in caplog.text


def test_a_collection_dropped_while_it_waits_is_not_built(
    tmp_path: Path,
    held_up: tuple[threading.Event, threading.Event],
    caplog: pytest.LogCaptureFixture,
) -> None:
    begun, go_on = held_up
    with closing(opened(tmp_path)) as store:
        fill(store, 100)
        assert begun.wait(PATIENCE_S)
        fill(store, 100, collection="other")
        store.drop("other")
        store.drop("default")
        go_on.set()
        fill(store, 100, collection="third")
        wait_for(lambda: facts(store, "third")["type"] == TYPE)
        assert {path.name for path in (tmp_path / "index").iterdir()} == {"3"}
    assert "stays as it is" not in caplog.text
    assert "not built anew" not in caplog.text


ORPHAN = """
import sys, time
from pathlib import Path
from tests.store.test_rebuild import APART, fill, hold_child, opened
store = opened(Path(sys.argv[1]), limits=APART)
fill(store, 200)
print(hold_child(), flush=True)
time.sleep(60)
"""


def test_the_process_ends_with_the_one_that_asked(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ORPHAN, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
    os.kill(child, signal.SIGCONT)
    wait_for(lambda: not Path(f"/proc/{child}").exists(), seconds=20)
    assert not list(tmp_path.rglob("candidates")), "it did not go on"
    with closing(opened(tmp_path)) as store:
        assert len(search(store, QUERIES, k=300)[0]) == 200
        wait_built(store)


REBUILDING = CHILD.replace(
    "put_forever(",
    "from tests.store import test_rebuild\ntest_rebuild.rebuild_often()\nput_forever(",
    1,
)


def rebuild_often() -> None:
    """Runs in a child: few pictures more make a build due."""
    from tests.store import test_kill

    vars(test_kill)["LocalStore"] = often


def often(folder: Path) -> LocalStore:
    return opened(folder, limits=replace(LIMITS, min_rows=80))


def test_kill_during_builds_loses_nothing(tmp_path: Path, chance: random.Random) -> None:
    acknowledged: list[str] = []
    built = 0
    for turn in range(3):
        command = [sys.executable, "-c", REBUILDING, str(tmp_path), f"r{turn}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            first = [child.stdout.readline() for _ in range(100)]
            time.sleep(chance.uniform(0.05, 0.5))
            child.send_signal(signal.SIGKILL)
            lines = ("".join(first) + child.stdout.read()).split("\n")[:-1]
        acknowledged += lines
        store = often(tmp_path)
        assert set(store.find("default", acknowledged)) == set(acknowledged)
        found = search(store, vectors_of(acknowledged), k=1, effort=EVERYTHING)
        assert [ids(matches) for matches in found] == [[name] for name in acknowledged]
        count = count_of(store, "default")
        assert len(search(store, QUERIES, k=100_000)[0]) == count
        wait_built(store)
        built += facts(store)["type"] == TYPE
        store._indexes.stop()
        store._catalog.close()
        store._owned.close()
    assert built == 3


def test_a_reader_uses_what_was_saved_and_builds_nothing(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as store:
        fill(store, 150)
        wait_built(store)
        expected = answers(search(store, QUERIES, k=200, effort=EVERYTHING))
    saved = sorted(path.name for path in (tmp_path / "index" / "1").iterdir())
    with closing(opened(tmp_path, read_only=True)) as reader:
        assert answers(search(reader, QUERIES, k=200, effort=EVERYTHING)) == expected
        assert facts(reader)["type"] == TYPE
    with closing(opened(tmp_path, "SQ8", read_only=True)) as reader:
        assert answers(search(reader, QUERIES, k=200, effort=EVERYTHING)) == expected
        assert not reader._indexes.rebuild("default")
        assert facts(reader)["type"] == TYPE
    assert sorted(path.name for path in (tmp_path / "index" / "1").iterdir()) == saved


def test_a_vector_space_gets_the_type_once_it_is_active(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as store:
        fill(store, 150)
        wait_built(store)
        begin(store)
        complete(store, limit=100)
        with store.spaces.prepared("default", NEW):
            put(store, [new_image("late")], unit_vectors(1))
            store.delete("default", "i7")
            complete(store)
            assert store.spaces.activate("default", NEW)
        wait_built(store)
        query = vectors_of_new("late")
        found = search(store, query, k=200, spec=NEW, effort=EVERYTHING)[0]
        assert len(found) == 150
        assert found[0].record.id == "late"
        assert "i7" not in ids(found)
        assert not (tmp_path / "index" / "1").exists()
    with closing(opened(tmp_path)) as store:
        again = search(store, query, k=200, spec=NEW, effort=EVERYTHING)[0]
        assert ids(again) == ids(found)
        assert facts(store)["type"] == TYPE


def vectors_of_new(content: str) -> np.ndarray:
    return unit_vectors(1, dim=6, seed=int(digest(content)[:8], 16))


def test_a_mapped_exact_index(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    memory = MemoryStore()

    def agree(store: LocalStore) -> None:
        for k in (1, 10, 500):
            for where in (None, Filter.parse({"n": 3})):
                mine, true = (search(x, QUERIES, k=k, where=where) for x in (store, memory))
                assert answers(mine) == answers(true)

    store = opened(tmp_path, "Flat", limits=MAPPED)
    for one in (store, memory):
        fill(one, 120)
    store.close()
    store = opened(tmp_path, "Flat", limits=MAPPED)
    agree(store)
    wait_for(lambda: facts(store)["mapped_bytes"] == 120 * 8 * 4)
    assert facts(store)["type"] == "Flat"
    assert is_exact(store)
    for one in (store, memory):
        put(
            one,
            [new_image(f"t{n}", metadata={"n": 3}) for n in range(20)],
            unit_vectors(20, seed=3),
        )
        for n in range(0, 30, 2):
            one.delete("default", f"i{n}")
        put(one, [new_image("i3", content="other")], unit_vectors(1, seed=8))
    agree(store)
    assert facts(store)["since_build"] == 21
    assert facts(store)["tombstones"] == 16
    store.close()
    caplog.clear()
    store = opened(tmp_path, "Flat", limits=MAPPED)
    agree(store)
    assert "Building" not in caplog.text
    for one in (store, memory):
        put(one, [new_image(f"u{n}") for n in range(100)], unit_vectors(100, seed=4))
    wait_for(lambda: facts(store)["since_build"] == 0)
    agree(store)
    store.close()
    store = opened(tmp_path, "SQ8", limits=MAPPED)
    store.load()
    wait_built(store, "SQ8")
    assert not is_exact(store)
    mine, true = (search(x, QUERIES, k=300, effort=EVERYTHING) for x in (store, memory))
    assert answers(mine) == answers(true)
    store.close()


def is_mapped(store: LocalStore) -> bool:
    return bool(facts(store)["mapped_bytes"] > 0)


def test_deleting_everything_beside_searches(tmp_path: Path) -> None:
    """A search that has begun goes on with the rows that were there."""
    limits = replace(MAPPED, scored_rows=0)
    for index_type in ("Flat", TYPE):
        with closing(opened(tmp_path / index_type, index_type, limits=limits)) as store:
            fill(store, 130)
            wait_for(partial(is_mapped, store))
            row = store._catalog.collection("default")
            live = row and store._indexes.get(row)
            assert live
            index = live._index
            for n in range(130):
                store.delete("default", f"i{n}")
            found = index.search(QUERIES, k=10)
            assert found
            assert [len(seqs) for _, seqs in found] == [10, 10, 10]
            assert search(store, QUERIES)[0] == []


def test_the_log_says_what_was_built(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), closing(opened(tmp_path)) as store:
        fill(store, 100)
        wait_for(lambda: f"is {TYPE} now" in caplog.text)


def test_an_index_that_missed_a_vector_is_exact_until_the_background_has_built_it(
    tmp_path: Path, held_up: tuple[threading.Event, threading.Event]
) -> None:
    """The switch holds changes up, so nothing long happens in it."""
    begun, go_on = held_up
    go_on.set()
    with closing(opened(tmp_path)) as store:
        fill(store, 150)
        wait_built(store)
        begin(store)
        records = store.scroll("default", limit=200).records
        store.spaces.add("default", NEW, records[1:], new_vectors(records[1:]))
        with store.spaces.prepared("default", NEW):
            store.spaces.add("default", NEW, records[:1], new_vectors(records[:1]))
            begun.clear()
            go_on.clear()
            assert store.spaces.activate("default", NEW)
            put_new(store, [new_image("late")])
            found = search(store, new_vectors(records[:1]), k=200, spec=NEW)[0]
            assert found[0].record.id == "i0"
            assert len(found) == 151
            assert begun.wait(PATIENCE_S)
            assert facts(store)["type"] == "Flat"
            go_on.set()
        wait_built(store)
