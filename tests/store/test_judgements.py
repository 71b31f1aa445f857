"""What every store promises about judgements, and about what the scores of a space mean."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lookalike.errors import (
    CollectionNotFoundError,
    ImageNotFoundError,
    InvalidParameterError,
    JudgementNotFoundError,
    VectorSpaceNotFoundError,
)
from lookalike.records import OnConflict
from lookalike.store.base import Store
from lookalike.store.judgements import Judgement, NewJudgement
from lookalike.store.local.store import LocalStore
from tests.store.helpers import (
    OTHER_SPEC,
    SPEC,
    digest,
    fill,
    new_image,
    put,
    unit_vectors,
)

OLD = Path(__file__).parents[1] / "formats" / "v2" / "exact.zip"


def judge(
    store: Store, query: str, match: str, *, right: bool = True, at: str | None = None
) -> tuple[Judgement, bool]:
    given = NewJudgement(query=query, match=match, right=right, judged_at=at)
    (found,) = store.judgements.put("default", [given])
    assert isinstance(found, tuple)
    return found


def listed(store: Store) -> list[tuple[str | None, str, bool]]:
    found, _ = store.judgements.page("default")
    return [(one.query, one.match, one.right) for one in found]


def test_a_pair_has_one_judgement_the_last(store: Store) -> None:
    fill(store, 3)
    days = [f"2026-01-0{day}T00:00:00Z" for day in (1, 2, 3)]
    first, new = judge(store, "i0", "i1", at=days[0])
    assert new
    again, new = judge(store, "i0", "i1", at=days[1])
    assert (again.id, again.judged_at, new) == (first.id, first.judged_at, False)
    assert first.judged_at == days[0]
    changed, new = judge(store, "i0", "i1", right=False, at=days[2])
    assert (changed.id, changed.right, new) == (first.id, False, True)
    assert changed.judged_at == days[2]
    other, _ = judge(store, "i1", "i0")
    assert other.id != first.id
    assert listed(store) == [("i0", "i1", False), ("i1", "i0", True)]
    assert store.judgements.count("default") == 2
    assert (changed.query_sha256, changed.match_sha256) == (digest("i0"), digest("i1"))


def test_a_query_without_an_id_keeps_its_vector_for_its_space(store: Store) -> None:
    fill(store, 2)
    (vector,) = unit_vectors(1, seed=9)
    given = NewJudgement(match="i1", right=True, sha256=digest("x"), spec=SPEC, vector=vector)
    ((kept, new),) = store.judgements.put("default", [given])  # type: ignore[misc]
    assert new
    assert kept.query is None
    assert kept.query_sha256 == digest("x")
    ((found,), _) = store.judgements.page("default", vectors_of=SPEC)
    assert found.vector is not None
    assert np.array_equal(found.vector, vector)
    ((found,), _) = store.judgements.page("default")
    assert found.vector is None
    ((found,), _) = store.judgements.page("default", vectors_of=OTHER_SPEC)
    assert found.vector is None


def test_a_vector_of_no_space_is_refused(store: Store) -> None:
    fill(store, 1)
    (vector,) = unit_vectors(1)
    given = NewJudgement(match="i0", right=True, sha256=digest("x"), spec=OTHER_SPEC, vector=vector)
    (error,) = store.judgements.put("default", [given])
    assert isinstance(error, VectorSpaceNotFoundError)


def test_it_goes_with_the_space_of_its_vector(store: Store) -> None:
    vectors = fill(store, 1)
    store.spaces.begin("default", OTHER_SPEC, provenance={})
    given = NewJudgement(match="i0", right=True, sha256=digest("x"), spec=SPEC, vector=vectors[0])
    store.judgements.put("default", [given])
    records = [store.get("default", "i0")]
    store.spaces.add("default", OTHER_SPEC, records, vectors)
    assert store.spaces.activate("default", OTHER_SPEC)
    assert store.judgements.count("default") == 1
    store.spaces.discard("default", SPEC)
    assert store.judgements.count("default") == 0


@pytest.mark.parametrize("gone", ["i0", "i1"])
@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_it_goes_with_either_picture(store: Store, gone: str, how: str) -> None:
    fill(store, 4)
    judge(store, "i0", "i1")
    judge(store, "i2", "i3")
    if how == "deleted":
        store.delete("default", gone)
    else:
        put(store, [new_image(gone, content="other")], unit_vectors(1, seed=5))
    assert listed(store) == [("i2", "i3", True)]


def test_it_stays_with_the_same_bytes(store: Store) -> None:
    fill(store, 2)
    judge(store, "i0", "i1")
    put(store, [new_image("i0", metadata={"n": 7})], unit_vectors(1))
    store.update_metadata("default", "i1", {"n": 8})
    store.upsert_known("default", [new_image("i1")], on_conflict=OnConflict.REPLACE)
    assert listed(store) == [("i0", "i1", True)]


def test_pictures_that_are_not_there(store: Store) -> None:
    fill(store, 2)
    given = [
        NewJudgement(query="i0", match="nothing", right=True),
        NewJudgement(query="nothing", match="i0", right=True),
        NewJudgement(query="i0", match="i1", right=True),
    ]
    *errors, kept = store.judgements.put("default", given)
    assert [type(one) for one in errors] == [ImageNotFoundError] * 2
    assert isinstance(kept, tuple)
    assert listed(store) == [("i0", "i1", True)]


def test_pages_and_deletes(store: Store) -> None:
    fill(store, 6)
    made = [judge(store, "i0", f"i{n}")[0].id for n in range(1, 6)]
    found, cursor, pages = [], None, 0
    while pages == 0 or cursor is not None:
        page, cursor = store.judgements.page("default", cursor=cursor, limit=2)
        found += [one.id for one in page]
        pages += 1
    assert found == made
    assert pages == 3
    store.judgements.delete("default", made[2])
    with pytest.raises(JudgementNotFoundError):
        store.judgements.delete("default", made[2])
    assert store.judgements.count("default") == 4
    with pytest.raises(InvalidParameterError):
        store.judgements.page("default", cursor="x")
    with pytest.raises(InvalidParameterError):
        store.judgements.page("default", limit=0)


def test_a_collection_that_is_not_there(store: Store) -> None:
    with pytest.raises(CollectionNotFoundError):
        store.judgements.put("none", [])
    with pytest.raises(CollectionNotFoundError):
        store.judgements.page("none")
    with pytest.raises(CollectionNotFoundError):
        store.judgements.delete("none", "0")
    assert store.judgements.count("none") == 0
    assert store.spaces.calibration("none", SPEC) is None


def test_a_dropped_collection_takes_its_judgements_along(store: Store) -> None:
    fill(store, 2)
    judge(store, "i0", "i1")
    store.spaces.calibrate("default", SPEC, {"a": 1})
    store.drop("default", wait=True)
    fill(store, 2)
    assert listed(store) == []
    assert store.spaces.calibration("default", SPEC) is None


def test_a_calibration_belongs_to_one_space(store: Store) -> None:
    vectors = fill(store, 2)
    assert store.spaces.calibration("default", SPEC) is None
    store.spaces.calibrate("default", SPEC, {"slope": 1.5})
    store.spaces.calibrate("default", SPEC, {"slope": 2.5})
    store.spaces.begin("default", OTHER_SPEC, provenance={})
    assert store.spaces.calibration("default", OTHER_SPEC) is None
    records = [store.get("default", f"i{n}") for n in range(2)]
    store.spaces.add("default", OTHER_SPEC, records, vectors)
    assert store.spaces.activate("default", OTHER_SPEC)
    assert store.spaces.calibration("default", SPEC) == {"slope": 2.5}
    assert store.spaces.activate("default", SPEC)  # back again: it counts again
    store.spaces.calibrate("default", SPEC, None)
    assert store.spaces.calibration("default", SPEC) is None
    other = replace(SPEC, model="none")
    with pytest.raises(VectorSpaceNotFoundError):
        store.spaces.calibrate("default", other, {})


def test_both_survive_a_kill(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _CHILD, str(tmp_path)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    with closing(LocalStore(tmp_path)) as store:
        assert listed(store) == [("i0", "i1", True), ("i1", "i0", False)]
        assert store.spaces.calibration("default", SPEC) == {"a": 1}


_CHILD = """
import sys
from tests.store.test_judgements import write_and_die
write_and_die(sys.argv[1])
"""


def write_and_die(folder: str) -> None:
    store = LocalStore(Path(folder))
    fill(store, 2)
    judge(store, "i0", "i1")
    judge(store, "i1", "i0", right=False)
    store.spaces.calibrate("default", SPEC, {"a": 1})
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_reader_beside_a_service_of_the_version_before_sees_none(tmp_path: Path) -> None:
    shutil.unpack_archive(OLD, tmp_path)
    with closing(LocalStore(tmp_path, read_only=True)) as reader:
        info = reader.collection("default")
        assert info is not None
        assert reader.judgements.page("default") == ([], None)
        assert reader.spaces.calibration("default", info.spec) is None
    with closing(LocalStore(tmp_path)) as store:
        store.spaces.calibrate("default", info.spec, {"a": 1})
        assert store.spaces.calibration("default", info.spec) == {"a": 1}


def test_a_calibration_belongs_to_one_collection_and_its_aliases(store: Store) -> None:
    for name in ("one", "other"):
        store.make(name, spec=SPEC, provenance={})
    store.spaces.calibrate("one", SPEC, {"slope": 1.5})
    assert store.spaces.calibration("other", SPEC) is None
    store.alias("shop", "one")
    assert store.spaces.calibration("shop", SPEC) == {"slope": 1.5}
    store.alias("shop", "other")
    assert store.spaces.calibration("shop", SPEC) is None
