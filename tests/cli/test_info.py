"""`lookalike info`: what serves, what it takes, and what a folder has saved."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lookalike.cli.collections import about
from lookalike.store.local.index.policy import IndexPolicy, Limits
from lookalike.store.local.store import LocalStore
from tests.cli.conftest import Run
from tests.servers import ADMIN_KEY, Server
from tests.store.helpers import fill
from tests.waiting import wait_for

TYPE = "IVF2,SQ8"
LONG = "b" + "0" * 62


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder that a service with an index type of its own has left."""
    policy = IndexPolicy(index_type=TYPE, limits=Limits(min_rows=100))
    with closing(LocalStore(tmp_path / "data", policy=policy)) as store:
        fill(store, 200)
        fill(store, 3, collection=LONG)
        wait_for(lambda: store.describe()["collections"]["default"].get("type") == TYPE)
    return tmp_path / "data"


def words(text: str) -> str:
    return " ".join(text.split())


def test_a_folder_says_what_is_saved_rather_than_what_is_set_here(lookalike: Run, data: Path):
    shown = lookalike("info", env={"COLUMNS": "80", "LOOKALIKE_INDEX": "HNSW32"})
    assert shown.exit_code == 0, shown.output
    manifest = data / "index" / "1" / "manifest.json"
    size = sum(path.stat().st_size for path in manifest.parent.glob("*/*"))
    said = words(shown.stdout)
    assert f"index not loaded; saved: {TYPE} of 200 pictures, {size / 1e3:.1f} KB on" in said
    assert "HNSW32" not in said
    assert f"{LONG}: 3 pictures" in shown.stdout.splitlines()
    facts = json.loads(lookalike("info", "--json").stdout)["store"]["collections"]
    assert facts["default"]["saved"] == {"type": TYPE, "count": 200, "bytes": size}
    assert facts["default"]["reason"] == "not loaded yet"
    manifest.write_text("{")
    assert "nothing is saved; as set here: HNSW32" in words(
        lookalike("info", env={"LOOKALIKE_INDEX": "HNSW32"}).stdout
    )


def test_beside_the_owner_too(lookalike: Run, data: Path):
    policy = IndexPolicy(index_type=TYPE, limits=Limits(min_rows=100))
    with closing(LocalStore(data, policy=policy)):
        assert f"not loaded; saved: {TYPE} of 200 pictures" in words(lookalike("info").stdout)


def test_a_service_says_what_serves_and_what_it_takes(
    lookalike: Run, server: Server, pictures: Path
):
    place = ["--server", server.url, "--api-key", ADMIN_KEY]
    assert "There are no collections" in lookalike("info", *place).stdout
    lookalike("index", str(pictures / "mug"), *place)
    said = words(lookalike("info", *place, env={"COLUMNS": "80"}).stdout)
    assert "default: 6 pictures" in said
    assert "index Flat: exact, as set" in said
    index = server.http.get("/info").json()["store"]["collections"]["default"]
    assert f"{index['bytes_per_picture']:,.0f} bytes a picture" in said


def collection(**index: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    spec = {"model": "resnet50", "weights": "w/[b].pth", "head": "0123456789", "dim": 2048}
    one = {"name": "a", "index": "auto", "passport": spec, "provenance": {"precision": "int8"}}
    return one, {"store": {"collections": {"a": index}}}


def test_all_that_a_service_may_say():
    one, facts = collection(
        type="PCAR256,IVF64,SQ8",
        reason="as set",
        bytes=2_500_000,
        bytes_per_picture=250.4,
        mapped_bytes=80_000_000,
        building={"stage": "read", "done": 5_000, "total": 16_000},
        failure="the disk was full",
        calibration=[{"k": 10, "recall": 0.992}, {"k": 1000, "recall": 1.0}],
    )
    assert dict(about(one, facts)) == {
        "model": "resnet50 with w/[b].pth weights, head 01234567, 2,048 numbers, int8",
        "index": "PCAR256,IVF64,SQ8: as set",
        "building": "read, 5,000 of 16,000",
        "failure": "the disk was full",
        "memory": "2.5 MB, 250 bytes a picture; 80 MB mapped",
        "recall": "when it was built 0.9920 for 10 matches, 1.0000 for 1,000 matches",
    }
    facts["recall"] = {"a": {"mean": 0.98765, "samples": 1234}}
    measured = "0.9877, mean of the last 200 searches that were measured"
    assert dict(about(one, facts))["recall"] == measured


def test_what_an_exact_index_and_none_say():
    one, facts = collection(type="Flat", reason="as set", bytes=999, bytes_per_picture=1.0)
    said = dict(about(one, facts))
    assert said["memory"] == "999 bytes, 1 bytes a picture"
    assert not {"recall", "building", "failure"} & set(said)
    assert dict(about(*collection()))["index"].startswith("not loaded, and nothing is saved")
