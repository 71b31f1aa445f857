"""Commands in a folder that holds what earlier commands wrote: they never take it for pictures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lookalike.cli.main import app  # noqa: F401 - imported before the folder changes
from lookalike.errors import ConfigurationError


@pytest.fixture(autouse=True)
def _cache_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKALIKE_CACHE_DIR", str(tmp_path / "cache"))


def rows(lookalike: Any) -> list[dict[str, Any]]:
    return sorted(json.loads(lookalike("list", "--json").stdout), key=lambda row: row["id"])


def indexed(lookalike: Any, *words: str) -> dict[str, Any]:
    done = lookalike("index", *words, "--json")
    assert done.exit_code == 0, done.exception
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_indexing_here_five_times_gives_the_same_rows(lookalike, pictures, tmp_path):
    """The data folder, outputs, the cache and single pictures of ours lie among the photos."""
    first = indexed(lookalike, ".", "--folder-field", "label")
    assert first["created"] == 18
    before = rows(lookalike)
    assert {row["metadata"]["label"] for row in before} == {"mug", "fish", "car"}
    for command in ("evaluate", "map", "cluster"):
        assert lookalike(command, "pictures", "--out", f"results-{command}").exit_code == 0
    query = str(next((tmp_path / "pictures").rglob("*.jpg")))
    for name in ("sheet.png", "pictures/mug/sheet.jpg", "sheet.webp"):
        assert lookalike("search", query, "--save", name).exit_code == 0
    for _ in range(4):
        again = indexed(lookalike, ".", "--folder-field", "label")
        assert {key for key in again if key.endswith("ed")} == {"unchanged"}
        # three sheets; data, cache and three outputs
        assert again["passed_over"] == {"ours": 8}
        assert rows(lookalike) == before


def test_older_outputs_without_a_mark_are_recognized(lookalike, pictures, tmp_path):
    assert lookalike("evaluate", "pictures", "--out", "old").exit_code == 0
    assert lookalike("map", "pictures", "--out", "older").exit_code == 0
    for name in ("old", "older"):
        (tmp_path / name / ".lookalike").unlink()
    answer = indexed(lookalike, ".")
    assert answer["created"] == 18
    assert answer["passed_over"]["ours"] == 4


@pytest.mark.parametrize("command", ["evaluate", "map", "cluster"])
def test_a_set_is_read_without_its_own_outputs(lookalike, pictures, tmp_path, command):
    for path in pictures.iterdir():
        path.rename(tmp_path / path.name)
    pictures.rmdir()
    indexed(lookalike, "mug")
    for out in ("one", "two", "two"):
        done = lookalike(command, ".", "--out", out)
        assert done.exit_code == 0, done.exception
    classes = json.loads(lookalike("evaluate", ".", "--json").stdout)["dataset"]
    assert (classes["pictures"], classes["classes"]) == (18, 3)


def test_the_folder_that_is_written_to_is_passed_over_whatever_it_holds(
    lookalike, pictures, tmp_path
):
    shutil.copytree(pictures / "mug", pictures / "results")
    done = lookalike("evaluate", "pictures", "--out", "pictures/results", "--json")
    assert json.loads(done.stdout)["dataset"]["classes"] == 3
    assert not (pictures / "results" / ".lookalike").exists(), "the user's pictures lie in it"
    assert json.loads(lookalike("evaluate", "pictures", "--json").stdout)["dataset"]["classes"] == 4


def test_excluded_classes_do_not_count(lookalike, pictures):
    done = lookalike(
        "evaluate", "pictures", "--exclude", "fish/", "--exclude", "*-1.jpg", "-k", "3", "--json"
    )
    assert done.exit_code == 0, done.exception
    facts = json.loads(done.stdout)["dataset"]
    assert (facts["pictures"], facts["classes"]) == (6, 2)


def test_what_is_passed_over_is_said_in_one_line(lookalike, pictures):
    for name in ("a.CR2", "b.nef", "c.psd", ".DS_Store"):
        (pictures / name).touch()
    (pictures / "again.jpg").symlink_to(next((pictures / "mug").iterdir()))
    done = lookalike("index", "pictures", "--exclude", "fish")
    assert done.exit_code == 0
    line = "passed over: 2 raw, 1 excluded, 1 hidden, 1 link, 1 psd"
    assert done.stdout.splitlines() == ["12 created", line]
    done = lookalike("index", "pictures", "--exclude", "*.jpg")
    assert done.exit_code == 1
    assert "No pictures found there (passed over: 19 excluded, 2 raw" in str(done.exception)


def test_a_folder_of_ours_that_is_named_is_refused(lookalike, pictures):
    indexed(lookalike, "pictures")
    for command in ("index", "evaluate"):
        for path in ("data", "data/images"):
            done = lookalike(command, path)
            assert isinstance(done.exception, ConfigurationError)
            assert "name a folder of your own pictures" in str(done.exception)
