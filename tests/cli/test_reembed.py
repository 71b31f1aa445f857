"""`lookalike reembed` on a data folder and on a running service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lookalike.errors import (
    CollectionNotFoundError,
    ConfigurationError,
    ConflictError,
    InvalidParameterError,
    ReembeddingIncompleteError,
    ServerError,
)
from lookalike.models.head import save_head
from tests.servers import ADMIN_KEY
from tests.services.moving import make_head


@pytest.fixture
def head(tmp_path: Path) -> str:
    return str(save_head(make_head(7), tmp_path / "head.safetensors"))


@pytest.fixture
def there(server: Any) -> list[str]:
    server.http.delete("/collections/things")
    return ["--server", server.url, "--api-key", ADMIN_KEY, "--collection", "things"]


def dims(lookalike: Any, *place: str) -> dict[str, int]:
    facts = json.loads(lookalike("info", "--json", *place).stdout)
    return {one["name"]: one["passport"]["dim"] for one in facts["collections"]}


def test_on_a_data_folder(lookalike: Any, pictures: Path, head: str) -> None:
    assert lookalike("index", str(pictures)).exit_code == 0
    done = lookalike("reembed", "--head", head)
    assert done.exit_code == 0, done.output
    assert "6 numbers a picture" in done.stdout
    assert dims(lookalike) == {"default": 6}
    query = str(pictures / "mug" / "mug-00-0.jpg")
    found = json.loads(lookalike("search", query, "--json").stdout)
    assert found["model"]["dim"] == 6, "the collection's own model answers, not the flags'"
    assert found["matches"][0]["filename"] == "mug-00-0.jpg"
    assert "already" in lookalike("reembed", "--head", head).stdout
    back = lookalike("reembed", "--head", "none")
    assert back.exit_code == 0, back.output
    assert dims(lookalike) == {"default": 48}


def test_no_head_where_the_settings_have_one(
    lookalike: Any, pictures: Path, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOKALIKE_HEAD", head)
    assert lookalike("index", str(pictures)).exit_code == 0
    assert dims(lookalike) == {"default": 6}
    assert lookalike("reembed", "--head", "none").exit_code == 0
    assert dims(lookalike) == {"default": 48}
    assert lookalike("reembed").exit_code == 0
    assert dims(lookalike) == {"default": 6}


def test_what_cannot_be_done_on_a_data_folder(
    lookalike: Any, pictures: Path, tmp_path: Path, head: str
) -> None:
    assert isinstance(lookalike("reembed").exception, ConfigurationError)
    assert lookalike("index", str(pictures)).exit_code == 0
    unknown = lookalike("reembed", "--collection", "nothing")
    assert isinstance(unknown.exception, CollectionNotFoundError)
    assert isinstance(
        lookalike("reembed", "--model", "resnet51").exception,
        ConfigurationError | InvalidParameterError,
    )
    assert lookalike("reembed", "--head", head).exit_code == 0
    fresh = pictures / "mug" / "mug-00-0.jpg"
    copy = tmp_path / "copy.jpg"
    copy.write_bytes(fresh.read_bytes() + b" ")
    assert lookalike("index", str(copy), "--head", head).exit_code == 0
    for path in (tmp_path / "data" / "images").rglob("*.jpg"):
        path.unlink()
    refused = lookalike("reembed", "--head", "none")
    assert isinstance(refused.exception, ReembeddingIncompleteError)
    assert refused.stderr.count("is not here") == 1
    assert dims(lookalike) == {"default": 6}


def test_on_a_service(lookalike: Any, pictures: Path, head: str, there: list[str]) -> None:
    assert lookalike("index", str(pictures), *there).exit_code == 0
    done = lookalike("reembed", "--watch", "--head", head, *there)
    assert done.exit_code == 0, done.output
    assert "is done: The collection 'things' is on color with head" in done.stdout
    assert dims(lookalike, *there[:4])["things"] == 6
    started = lookalike("reembed", "--head", "none", "--json", *there)
    job = json.loads(started.stdout)
    assert job["parameters"]["recipe"]["head"] is None
    assert job["state"] in {"queued", "running", "done"}
    watched = lookalike("reembed", "--head", "none", "--watch", *there)
    assert watched.exit_code == 0, watched.output
    assert dims(lookalike, *there[:4])["things"] == 48


def test_a_job_that_fails(lookalike: Any, pictures: Path, there: list[str]) -> None:
    assert lookalike("index", str(pictures), *there).exit_code == 0
    failed = lookalike("reembed", "--watch", "--head", "/nowhere", *there)
    assert failed.exit_code == 1
    assert "is failed" in failed.stdout
    assert "/nowhere" in failed.stdout


def test_bad_flags_for_a_service(lookalike: Any, pictures: Path, there: list[str]) -> None:
    assert isinstance(lookalike("reembed", *there).exception, ServerError)
    assert lookalike("index", str(pictures), *there).exit_code == 0
    for words in (["--input-size", "many"], ["--device", "cpu"]):
        assert isinstance(lookalike("reembed", *words, *there).exception, ConfigurationError)
    too_small = lookalike("reembed", "--input-size", "3", *there)
    assert isinstance(too_small.exception, ServerError)


def test_ctrl_c_ends_the_watching_alone(
    lookalike: Any, pictures: Path, head: str, there: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lookalike("index", str(pictures), *there).exit_code == 0

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("time.sleep", interrupt)
        stopped = lookalike("reembed", "--watch", "--head", head, *there)
    assert stopped.exit_code == 130
    assert "goes on" in stopped.stderr
    assert lookalike("reembed", "--watch", "--head", head, *there).exit_code == 0
    assert dims(lookalike, *there[:4])["things"] == 6


def test_another_head_under_the_same_name_is_another_head(
    lookalike: Any, pictures: Path, head: str, tmp_path: Path
) -> None:
    assert lookalike("index", str(pictures)).exit_code == 0
    assert lookalike("index", str(pictures), "-c", "two").exit_code == 0
    assert lookalike("reembed", "--head", head).exit_code == 0

    def used(collection: str) -> str:
        facts = json.loads(lookalike("info", "--json").stdout)["collections"]
        return next(one["passport"]["head"] for one in facts if one["name"] == collection)

    assert used("default") == make_head(7).digest
    other = make_head(8)
    save_head(other, head)
    query = str(pictures / "mug" / "mug-00-0.jpg")
    found = json.loads(lookalike("search", query, "--json").stdout)
    assert found["model"]["head"] == make_head(7).digest[:16], "the one that was kept"
    assert lookalike("reembed", "--head", head, "-c", "two").exit_code == 0
    assert used("two") == other.digest
    assert lookalike("reembed", "--head", head).exit_code == 0
    assert used("default") == other.digest
    for kept in tmp_path.glob("head.*"):
        kept.unlink()
    for collection in ("default", "two"):
        assert lookalike("search", query, "-c", collection).exit_code == 0


def test_a_head_that_cannot_be_read(lookalike: Any, pictures: Path, tmp_path: Path) -> None:
    assert lookalike("index", str(pictures)).exit_code == 0
    for name in ("x" * 300, "nowhere.safetensors", "a\0b.safetensors"):
        assert isinstance(lookalike("reembed", "--head", name).exception, ConfigurationError)


@pytest.mark.parametrize("where", ["folder", "service"])
def test_vectors_that_are_no_longer_used_are_discarded(
    lookalike: Any, pictures: Path, head: str, there: list[str], where: str
) -> None:
    place = there if where == "service" else ["--collection", "things"]
    words = place[:-2]  # the collection is an argument of `vectors`
    assert lookalike("index", str(pictures / "mug"), *place).exit_code == 0
    watch = ["--watch"] if where == "service" else []
    assert lookalike("reembed", "--head", head, *watch, *place).exit_code == 0
    shown = lookalike("vectors", "list", "things", *words)
    assert shown.exit_code == 0, shown.output
    assert "48 numbers" in shown.stdout
    old, new = json.loads(lookalike("vectors", "list", "things", "--json", *words).stdout)
    assert (old["active"], new["active"], new["count"]) == (False, True, 6)
    digest = new["passport"]["digest"]
    in_use = lookalike("vectors", "discard", "things", digest, *words)
    assert isinstance(in_use.exception, ConflictError)
    assert lookalike("vectors", "discard", "things", "--unused", *words).stdout == "discarded 1\n"
    assert json.loads(lookalike("vectors", "list", "things", "--json", *words).stdout) == [new]
    for wrong in ([], [digest, "--unused"]):
        asked = lookalike("vectors", "discard", "things", *wrong, *words)
        assert isinstance(asked.exception, ConfigurationError)
